//! A small load for demo and bench, so that they need no further program: TCP streams, datagrams at a
//! rate, round trips. Both ends are this program, started in two namespaces of a lab.

use std::{
    io::{BufRead, BufReader, Lines},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdout, ExitCode, Stdio},
    str::FromStr,
    sync::mpsc::{Receiver as Channel, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, anyhow};
use clap::{Subcommand, ValueEnum};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::{
    lab::Lab,
    process::{self, say},
};

mod datagrams;
mod round_trips;
mod streams;
mod talk;

pub use self::{datagrams::Datagrams, round_trips::RoundTrips};

/// One end of a load.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

/// Receivers print `listening PORT` first, then what they found; senders print what they did.
#[derive(Subcommand)]
enum Verb {
    /// Takes the streams of one sender; prints the bits per second
    Receive {
        /// The address to listen on
        addr: IpAddr,
        /// How many streams
        #[arg(long, default_value_t = 1)]
        streams: usize,
    },
    /// Sends streams for some seconds
    Send {
        /// The receiver
        addr: SocketAddr,
        /// How many streams
        #[arg(long, default_value_t = 1)]
        streams: usize,
        /// How long
        #[arg(long, default_value_t = 3)]
        seconds: u64,
    },
    /// Counts datagrams until some time after the last; prints how many, and in how many nanoseconds
    Count {
        /// The address to listen on
        addr: IpAddr,
    },
    /// Sends datagrams of 64 bytes; prints how many
    Flood {
        /// The receiver
        addr: SocketAddr,
        /// Datagrams a second; 0 for as many as go
        #[arg(long)]
        rate: u32,
        /// How long
        #[arg(long)]
        ms: u64,
    },
    /// Sends back what comes
    Echo {
        /// The address to listen on
        addr: IpAddr,
        /// Over what
        #[arg(long, value_enum)]
        over: Transport,
    },
    /// Talks to an echo over TCP until it is ended; prints the longest exchanges in microseconds
    Talk {
        /// The echo
        addr: SocketAddr,
    },
    /// Sends 64 bytes, waits for them, and so on; prints `P50 P99` in nanoseconds
    Ping {
        /// The echo
        addr: SocketAddr,
        /// Over what
        #[arg(long, value_enum)]
        over: Transport,
    },
}

/// What carries a round trip.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Transport {
    /// One connection.
    Tcp,
    /// Datagrams.
    Udp,
}

/// Is one end.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Receive { addr, streams } => streams::receive(*addr, *streams)?,
        Verb::Send { addr, streams, seconds } => {
            streams::send(*addr, *streams, Duration::from_secs(*seconds))?
        }
        Verb::Count { addr } => datagrams::count(*addr)?,
        Verb::Flood { addr, rate, ms } => {
            datagrams::flood(*addr, *rate, Duration::from_millis(*ms))?
        }
        Verb::Echo { addr, over } => round_trips::echo(*addr, *over)?,
        Verb::Talk { addr } => talk::talk(*addr)?,
        Verb::Ping { addr, over } => round_trips::ping(*addr, *over)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// From one namespace of a lab to an address in another.
#[derive(Clone, Copy)]
pub struct Route<'a> {
    /// Where both are.
    pub lab: &'a Lab,
    /// The namespace that sends.
    pub from: &'a str,
    /// The namespace that receives.
    pub to: &'a str,
    /// An address there.
    pub addr: IpAddr,
}

impl Route<'_> {
    /// Sends so many TCP streams at once, and returns the received bits per second.
    pub fn streams(&self, streams: usize, seconds: u64) -> anyhow::Result<f64> {
        let streams = streams.to_string();
        let mut receiver = self.receiver(&["receive"], &["--streams", &streams])?;
        let seconds = seconds.to_string();
        self.send("send", &receiver, &["--streams", &streams, "--seconds", &seconds])?;
        receiver.figure()
    }

    /// Sends datagrams of 64 bytes at a rate a second.
    pub fn datagrams(&self, rate: u32, time: Duration) -> anyhow::Result<Datagrams> {
        let mut receiver = self.receiver(&["count"], &[])?;
        let (rate, ms) = (rate.to_string(), time.as_millis().to_string());
        let sent = self.send("flood", &receiver, &["--rate", &rate, "--ms", &ms])?;
        let sent = sent.trim().parse().context("what was sent")?;
        let datagrams::Counted { received, time: of_receiver } = receiver.figure()?;
        // What waits in a buffer when the sender ends was not received in the sender's time.
        Ok(Datagrams { sent, received, time: time.max(of_receiver) })
    }

    /// Returns the times of round trips one after the other.
    pub fn round_trips(&self, over: Transport) -> anyhow::Result<RoundTrips> {
        let over = match over {
            Transport::Tcp => ["--over", "tcp"],
            Transport::Udp => ["--over", "udp"],
        };
        let receiver = self.receiver(&["echo"], &over)?;
        self.send("ping", &receiver, &over)?.parse()
    }

    /// Talks over one TCP connection until what it returns is dropped.
    pub fn talk(&self) -> anyhow::Result<Talk> {
        let receiver = self.receiver(&["echo"], &["--over", "tcp"])?;
        let mut command = self.lab.inside(self.from);
        command.arg(program()?).args(["traffic", "talk", &receiver.addr.to_string()]);
        let mut child = process::spawn(command.stdout(Stdio::piped()))?;
        let stdout = child.stdout.take().context("stdout was piped")?;
        let (sender, said) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Talk { child, said, _receiver: receiver })
    }

    fn receiver(&self, verb: &[&str], flags: &[&str]) -> anyhow::Result<Receiver> {
        let mut command = self.lab.inside(self.to);
        command.arg(program()?).arg("traffic").args(verb).arg(self.addr.to_string()).args(flags);
        let mut child = process::spawn(command.stdout(Stdio::piped()))?;
        let said = BufReader::new(child.stdout.take().context("stdout was piped")?).lines();
        let mut receiver = Receiver { child, said, addr: SocketAddr::from((self.addr, 0)) };
        let port = receiver.line()?.trim_start_matches("listening ").parse();
        receiver.addr.set_port(port.context("the receiver's port")?);
        Ok(receiver)
    }

    fn send(&self, verb: &str, to: &Receiver, flags: &[&str]) -> anyhow::Result<String> {
        let mut command = self.lab.inside(self.from);
        command.arg(program()?).args(["traffic", verb, &to.addr.to_string()]).args(flags);
        process::output(&mut command)
    }
}

fn program() -> anyhow::Result<std::path::PathBuf> {
    std::env::current_exe().context("find this program")
}

/// Traffic that goes on.
pub struct Talk {
    child: Child,
    said: Channel<String>,
    _receiver: Receiver,
}

impl Talk {
    /// The longest pause since it was asked last; it waits until the traffic has gone on from there.
    pub fn longest(&self) -> anyhow::Result<Duration> {
        let mut longest = 0;
        // What is on its way may be of before.
        let mut waits = 2;
        loop {
            let line = match self.said.try_recv() {
                Ok(line) => line,
                Err(_) if waits == 0 => return Ok(Duration::from_micros(longest)),
                Err(_) => {
                    waits -= 1;
                    self.said.recv_timeout(STANDSTILL).map_err(|error| match error {
                        RecvTimeoutError::Timeout => anyhow!("traffic stands still"),
                        RecvTimeoutError::Disconnected => anyhow!("the connection broke"),
                    })?
                }
            };
            longest = longest.max(line.parse().context("how long an exchange took")?);
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}

/// A receiver that does not outlive its measurement.
struct Receiver {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
    addr: SocketAddr,
}

impl Receiver {
    fn line(&mut self) -> anyhow::Result<String> {
        self.said.next().context("the receiver ended")?.context("read the receiver")
    }

    fn figure<T: FromStr>(&mut self) -> anyhow::Result<T> {
        let line = self.line()?;
        line.parse().map_err(|_| anyhow!("the receiver said '{line}'"))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}

/// Listens for streams.
fn listen(addr: IpAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind((addr, 0)).with_context(|| format!("listen on {addr}"))?;
    without_pacing(&listener);
    Ok(listener)
}

/// Opens a stream.
fn connect(addr: SocketAddr) -> anyhow::Result<TcpStream> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None);
    let socket = socket.context("open a socket")?;
    without_pacing(&socket);
    rustix::net::connect(&socket, &addr).with_context(|| format!("connect to {addr}"))?;
    Ok(socket.into())
}

/// Cubic, before there is a connection: a machine's default may pace itself and measure that, and what
/// once paced a connection stays. Where the kernel lacks it, what it has is used.
fn without_pacing(socket: impl std::os::fd::AsFd) {
    let _ = sockopt::set_tcp_congestion(socket, "cubic");
}

/// Tells the other end where a receiver listens.
fn say_listening(addr: SocketAddr) {
    say(format_args!("listening {}", addr.port()));
}

/// The payload of a small packet, in bytes.
const SMALL: usize = 64;
/// How long a stream may stand still.
const STANDSTILL: Duration = Duration::from_secs(10);
