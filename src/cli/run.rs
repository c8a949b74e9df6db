//! `run`: a command in a fresh network namespace on a network.
//!
//! ```text
//! thread: fresh namespace -> waits -> starts CMD, which inherits it -> waits for its end -> waits
//! main:      `-> attach ------^                                          `-> detach --------^
//! ```
//! The thread lives until all is over, because the namespace is named by it.

use std::{
    io::{self, ErrorKind, IsTerminal as _},
    os::unix::process::ExitStatusExt as _,
    process::{self, ExitCode, ExitStatus},
    sync::mpsc as blocking,
    thread::{self, JoinHandle},
};

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    signal::unix::{self, SignalKind},
    sync::oneshot,
};
use tonic::Code;

use super::{
    Failure,
    attach::{On, warn_of_lagging},
    client::{Client, answer},
};
use crate::{
    api::proto::{DetachRequest, attach_request::Target},
    sys::enter_fresh_network_namespace,
    types::{EndpointId, Id},
};

/// `overlayctl run`.
#[derive(Args, Debug)]
pub struct Run {
    #[command(flatten)]
    on: On,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Run {
    /// Runs the command and returns its exit code.
    pub async fn execute(self, client: &Client) -> Result<ExitCode, Failure> {
        let what = format!("run {}", self.command[0]);
        // From here on signals are heard instead of ending this process.
        let mut signals = Signals::new().map_err(|error| Failure::new(&what, error.to_string()))?;
        let mut local = client.local().await?;
        let mut container = Container::make(self.command)?;
        let path = container.namespace().await?;
        let request = self.on.request(Target::Netns(path));
        let attached = tokio::select! {
            attached = answer(&what, local.attach(request)) => attached?,
            // The namespace ends with this process, and the endpoint with it.
            signal = signals.next() => return Ok(signal_code(signal)),
        };
        warn_of_lagging(&attached);
        let endpoint = attached.endpoint.ok_or_else(|| Failure::bent(&what))?;
        let ended = container.run(&mut signals).await;

        let id: EndpointId = <[u8; 16]>::try_from(endpoint.id.as_slice())
            .map(Id::from_bytes)
            .map_err(|_| Failure::bent(&what))?;
        let detach = DetachRequest { reference: id.to_string() };
        match local.detach(detach).await {
            Ok(_) => {}
            // It ended with the namespace already.
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => eprintln!("overlayctl: {}", Failure::of("detach", &status)),
        }
        container.end();
        match ended {
            Ok(status) => Ok(exit_code(status)),
            Err(error) => {
                eprintln!("overlayctl: {what}: {error}; check the command");
                // As shells say it.
                let code = if error.kind() == ErrorKind::NotFound { 127 } else { 126 };
                Ok(ExitCode::from(code))
            }
        }
    }
}

/// The thread that holds the namespace, and what it is told.
struct Container {
    thread: JoinHandle<()>,
    /// Told to start the command.
    start: blocking::Sender<()>,
    /// Dropped when the namespace is not needed any more.
    hold: blocking::Sender<()>,
    namespace: Option<oneshot::Receiver<io::Result<String>>>,
    started: Option<oneshot::Receiver<Pid>>,
    ended: Option<oneshot::Receiver<io::Result<ExitStatus>>>,
}

impl Container {
    fn make(command: Vec<String>) -> Result<Self, Failure> {
        let (start, may_start) = blocking::channel::<()>();
        let (hold, held) = blocking::channel::<()>();
        let (to_namespace, namespace) = oneshot::channel();
        let (to_started, started) = oneshot::channel();
        let (to_ended, ended) = oneshot::channel();
        let body = move || {
            let entered = enter_fresh_network_namespace().map(|()| {
                let thread = rustix::thread::gettid();
                format!("/proc/{}/task/{}/ns/net", process::id(), thread.as_raw_nonzero())
            });
            // Whoever does not listen any more has given up.
            let _ = to_namespace.send(entered);
            if may_start.recv().is_err() {
                return;
            }
            let ended = process::Command::new(&command[0]).args(&command[1..]).spawn();
            let ended = ended.and_then(|mut child| {
                if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    let _ = to_started.send(pid);
                }
                child.wait()
            });
            let _ = to_ended.send(ended);
            // Ends when the sender is dropped.
            let _ = held.recv();
        };
        let thread = thread::Builder::new().name("container".into()).spawn(body);
        let thread = thread.map_err(|error| Failure::new("start a thread", error.to_string()))?;
        let (namespace, started, ended) = (Some(namespace), Some(started), Some(ended));
        Ok(Self { thread, start, hold, namespace, started, ended })
    }

    /// Returns the path of the namespace.
    async fn namespace(&mut self) -> Result<String, Failure> {
        let what = "make a network namespace";
        let entered = match self.namespace.take() {
            Some(namespace) => namespace.await,
            None => return Err(Failure::new(what, "it was made already")),
        };
        match entered {
            Ok(Ok(path)) => Ok(path),
            Ok(Err(error)) if error.kind() == ErrorKind::PermissionDenied => {
                Err(Failure::new(what, "this needs the capability CAP_SYS_ADMIN; run as root"))
            }
            Ok(Err(error)) => Err(Failure::new(what, format!("{error}; run as root"))),
            Err(_) => Err(Failure::new(what, "the thread ended; try again")),
        }
    }

    /// Starts the command, passes signals on to it, and returns how it ended.
    async fn run(&mut self, signals: &mut Signals) -> io::Result<ExitStatus> {
        let gone = || io::Error::other("the thread ended");
        let (Some(started), Some(ended)) = (self.started.take(), self.ended.take()) else {
            return Err(gone());
        };
        self.start.send(()).map_err(|_| gone())?;
        // A command that does not start says why at the end.
        let pid = started.await.ok();
        tokio::pin!(ended);
        loop {
            tokio::select! {
                status = &mut ended => return status.map_err(|_| gone())?,
                signal = signals.next() => {
                    if let Some(pid) = pid.filter(|_| !signals.reaches_all(signal)) {
                        // It may have ended this moment.
                        let _ = kill_process(pid, signal);
                    }
                }
            }
        }
    }

    fn end(self) {
        let Self { thread, start, hold, .. } = self;
        drop((start, hold));
        // The thread has nothing left to fail at.
        let _ = thread.join();
    }
}

/// The signals that are for the command.
struct Signals {
    interrupt: unix::Signal,
    quit: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
    terminal: bool,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: unix::signal(SignalKind::interrupt())?,
            quit: unix::signal(SignalKind::quit())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hangup: unix::signal(SignalKind::hangup())?,
            terminal: io::stdin().is_terminal(),
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.quit.recv() => Signal::QUIT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hangup.recv() => Signal::HUP,
        }
    }

    /// Keys of a terminal reach the command without our help.
    fn reaches_all(&self, signal: Signal) -> bool {
        self.terminal && matches!(signal, Signal::INT | Signal::QUIT)
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

fn signal_code(signal: Signal) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_the_commands() {
        let check = |raw: i32, code: u8| {
            let status = ExitStatus::from_raw(raw);
            assert_eq!(format!("{:?}", exit_code(status)), format!("{:?}", ExitCode::from(code)));
        };
        check(0, 0);
        check(3 << 8, 3);
        check(9, 137);
        check(15, 143);
    }
}
