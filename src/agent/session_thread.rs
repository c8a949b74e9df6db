//! The session thread: drives [`Sessions`] with what workers and the table tell, sends its
//! datagrams from the data port, and wakes workers when a peer has a new key. It sleeps until the
//! next deadline.

use std::sync::{
    Arc,
    mpsc::{Receiver, RecvTimeoutError},
};

use super::shared::{SessionEvent, Shared};
use crate::{
    engine::session::{Output, Sessions},
    io::{clock, udp::DataSocket},
};

/// The thread's state.
pub(super) struct SessionThread {
    sessions: Sessions,
    socket: DataSocket,
    shared: Arc<Shared>,
    events: Receiver<SessionEvent>,
}

impl SessionThread {
    pub(super) fn new(
        sessions: Sessions,
        socket: DataSocket,
        shared: Arc<Shared>,
        events: Receiver<SessionEvent>,
    ) -> Self {
        Self { sessions, socket, shared, events }
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self) {
        loop {
            let event = match self.sessions.poll_timeout() {
                Some(at) => self.events.recv_timeout(at.since(clock::now())),
                None => self.events.recv().map_err(RecvTimeoutError::from),
            };
            match event {
                Ok(SessionEvent::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.sessions.handle_timeout(clock::now());
            self.drain();
        }
    }

    fn handle(&mut self, event: SessionEvent) {
        let now = clock::now();
        match event {
            SessionEvent::Datagram { bytes, from } => {
                if let Err(reason) = self.sessions.handle_datagram(&bytes, from, now) {
                    self.shared.drops[self.shared.workers()].count(reason, 1);
                }
            }
            SessionEvent::Demand(peer) => self.sessions.handle_demand(peer, now),
            SessionEvent::Active(peer) => self.sessions.handle_activity(peer, now),
            SessionEvent::Confirmed { peer, index } => {
                self.sessions.handle_confirmed(peer, index, now);
            }
            SessionEvent::Control { peer, index, control } => {
                self.sessions.handle_control(peer, index, control, now);
            }
            SessionEvent::UnknownSession(from) => self.sessions.handle_unknown_session(from, now),
            SessionEvent::Peers(peers) => self.sessions.handle_table(peers, now),
            SessionEvent::Stop => {}
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.sessions.poll_output() {
            match output {
                Output::Transmit { to, datagram } => {
                    // What is lost here is repeated by the protocol.
                    if let Err(error) = self.socket.send(&datagram, datagram.len(), &to) {
                        tracing::debug!(%error, %to, "a session's datagram was not sent");
                    }
                }
                Output::Ready { .. } => self.shared.wake_all(),
            }
        }
    }
}
