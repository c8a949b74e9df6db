//! A small TCP sender and receiver, so that demo and bench need no further program. Cubic, since a
//! machine's default may pace itself and measure that.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use clap::Subcommand;

use crate::process::{self, say};

/// How much one call to the kernel moves.
const BLOCK: usize = 128 * 1024;

/// Sends or receives TCP.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Takes the streams of one sender; prints `listening PORT`, then the bits per second
    Receive {
        /// The address to listen on
        addr: IpAddr,
        /// How many streams
        #[arg(long, default_value_t = 1)]
        streams: usize,
    },
    /// Sends for some seconds
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
}

/// Sends or receives.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Receive { addr, streams } => receive(*addr, *streams)?,
        Verb::Send { addr, streams, seconds } => {
            send(*addr, *streams, Duration::from_secs(*seconds))?
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures TCP between two places, each given by a command that runs another there; returns the
/// received bits per second.
pub fn measure(
    mut receiver: Command,
    mut sender: Command,
    addr: IpAddr,
    streams: usize,
    seconds: u64,
) -> anyhow::Result<f64> {
    let program = std::env::current_exe().context("find this program")?;
    let streams = streams.to_string();
    receiver.arg(&program).args(["traffic", "receive", &addr.to_string(), "--streams", &streams]);
    let mut receiver = Receiver(process::spawn(receiver.stdout(Stdio::piped()))?);
    let mut said = BufReader::new(receiver.0.stdout.take().context("stdout was piped")?).lines();
    let mut line = || said.next().context("the receiver ended")?.context("read the receiver");
    let port: u16 =
        line()?.trim_start_matches("listening ").parse().context("the receiver's port")?;
    let to = SocketAddr::from((addr, port)).to_string();
    let seconds = seconds.to_string();
    sender.arg(&program).args([
        "traffic",
        "send",
        &to,
        "--streams",
        &streams,
        "--seconds",
        &seconds,
    ]);
    process::output(&mut sender)?;
    line()?.parse().context("the receiver's figure")
}

/// A receiver that does not outlive its measurement.
struct Receiver(Child);

impl Drop for Receiver {
    fn drop(&mut self) {
        process::end(&mut self.0);
    }
}

fn receive(addr: IpAddr, streams: usize) -> anyhow::Result<()> {
    let listener = TcpListener::bind((addr, 0)).with_context(|| format!("listen on {addr}"))?;
    say(format_args!("listening {}", listener.local_addr()?.port()));
    let mut threads = Vec::new();
    for _ in 0..streams {
        let (stream, _) = listener.accept().context("accept a stream")?;
        threads.push(thread::spawn(move || count(stream)));
    }
    let start = Instant::now();
    let mut bytes = 0;
    for thread in threads {
        bytes += thread.join().map_err(|_| anyhow!("a receiving thread panicked"))??;
    }
    let bits_per_second = bytes as f64 * 8.0 / start.elapsed().as_secs_f64();
    say(format_args!("{bits_per_second:.0}"));
    Ok(())
}

fn count(mut stream: TcpStream) -> std::io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut bytes = 0;
    loop {
        match stream.read(&mut block)? {
            0 => return Ok(bytes),
            read => bytes += read as u64,
        }
    }
}

fn send(addr: SocketAddr, streams: usize, time: Duration) -> anyhow::Result<()> {
    let mut threads = Vec::new();
    for _ in 0..streams {
        let mut stream = TcpStream::connect(addr).with_context(|| format!("connect to {addr}"))?;
        // Where the kernel lacks it, what it has is used.
        let _ = rustix::net::sockopt::set_tcp_congestion(&stream, "cubic");
        threads.push(thread::spawn(move || {
            let block = vec![0; BLOCK];
            let end = Instant::now() + time;
            while Instant::now() < end {
                stream.write_all(&block)?;
            }
            std::io::Result::Ok(())
        }));
    }
    for thread in threads {
        thread.join().map_err(|_| anyhow!("a sending thread panicked"))??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_sent_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let sender =
            thread::spawn(move || TcpStream::connect(addr).unwrap().write_all(&[7; 300_000]));
        let (stream, _) = listener.accept().unwrap();
        assert_eq!(count(stream).unwrap(), 300_000);
        sender.join().unwrap().unwrap();
    }
}
