//! The session thread: drives [`Sessions`] with what workers and the table tell, sends its
//! datagrams from the data port, and wakes workers when a peer has a new key. It sleeps until the
//! next deadline. Datagrams from strangers come last.

use std::sync::{
    Arc,
    atomic::Ordering::SeqCst,
    mpsc::{Receiver, RecvTimeoutError},
};

use super::shared::{SessionEvent, Shared, Stranger};
use crate::{
    engine::session::{Output, Sessions},
    io::{clock, udp::DataSocket},
    types::DropReason,
};

/// The thread's state.
pub(super) struct SessionThread {
    sessions: Sessions,
    socket: DataSocket,
    shared: Arc<Shared>,
    events: Receiver<SessionEvent>,
    strangers: Receiver<Stranger>,
}

/// What there is to do next.
enum Next {
    Event(SessionEvent),
    Stranger(Stranger),
    Deadline,
    End,
}

impl SessionThread {
    pub(super) fn new(
        sessions: Sessions,
        socket: DataSocket,
        shared: Arc<Shared>,
        events: Receiver<SessionEvent>,
        strangers: Receiver<Stranger>,
    ) -> Self {
        Self { sessions, socket, shared, events, strangers }
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self) {
        loop {
            match self.next() {
                Next::Event(SessionEvent::Stop) | Next::End => return,
                Next::Event(event) => self.handle(event),
                Next::Stranger(Stranger { bytes, from }) => {
                    let result = self.sessions.handle_datagram(&bytes, from, clock::now());
                    self.count(result);
                }
                Next::Deadline => {}
            }
            self.sessions.handle_timeout(clock::now());
            self.drain();
        }
    }

    /// Takes the next event, else the next stranger's datagram, else waits.
    fn next(&self) -> Next {
        if let Ok(event) = self.events.try_recv() {
            return Next::Event(event);
        }
        // A worker puts a datagram into the queue before it looks at the flag; so whatever comes
        // after the second look below finds the flag down, and tells.
        if let Ok(stranger) = self.strangers.try_recv() {
            return Next::Stranger(stranger);
        }
        self.shared.strangers_told.store(false, SeqCst);
        if let Ok(stranger) = self.strangers.try_recv() {
            return Next::Stranger(stranger);
        }
        let event = match self.sessions.poll_timeout() {
            Some(at) => self.events.recv_timeout(at.since(clock::now())),
            None => self.events.recv().map_err(RecvTimeoutError::from),
        };
        match event {
            Ok(event) => Next::Event(event),
            Err(RecvTimeoutError::Timeout) => Next::Deadline,
            Err(RecvTimeoutError::Disconnected) => Next::End,
        }
    }

    fn count(&self, result: Result<(), DropReason>) {
        if let Err(reason) = result {
            self.shared.drops[self.shared.workers()].count(reason, 1);
        }
    }

    fn handle(&mut self, event: SessionEvent) {
        let now = clock::now();
        match event {
            SessionEvent::Datagram { bytes, from, link } => {
                link.free_handshake_place();
                let result = self.sessions.handle_datagram(&bytes, from, now);
                self.count(result);
            }
            SessionEvent::Demand(peer) => self.sessions.handle_demand(peer, now),
            SessionEvent::Echo(peer) => self.sessions.handle_echo(peer, now),
            SessionEvent::Active(peer) => self.sessions.handle_activity(peer, now),
            SessionEvent::Confirmed { peer, index } => {
                self.sessions.handle_confirmed(peer, index, now);
            }
            SessionEvent::Control { peer, index, control } => {
                self.sessions.handle_control(peer, index, control, now);
            }
            SessionEvent::UnknownSession(from) => self.sessions.handle_unknown_session(from, now),
            SessionEvent::Peers(peers) => self.sessions.handle_table(peers, now),
            SessionEvent::Strangers | SessionEvent::Stop => {}
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
