//! Round trips of 64 bytes, one after the other.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{SMALL, STANDSTILL, Transport, connect, listen, say_listening};
use crate::process::say;

/// How long round trips took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundTrips {
    /// Half took at most this, in microseconds.
    pub p50_us: f64,
    /// All but one in a hundred took at most this, in microseconds.
    pub p99_us: f64,
}

impl FromStr for RoundTrips {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let figures: Result<Vec<f64>, _> = line.split_whitespace().map(str::parse).collect();
        match figures.as_deref() {
            Ok([p50, p99]) => Ok(Self { p50_us: p50 / 1e3, p99_us: p99 / 1e3 }),
            Ok(_) | Err(_) => bail!("the sender said '{line}'"),
        }
    }
}

/// Sends back what comes, until it is ended.
pub fn echo(addr: IpAddr, over: Transport) -> anyhow::Result<()> {
    let mut packet = [0; SMALL];
    match over {
        Transport::Tcp => {
            let listener = listen(addr)?;
            say_listening(listener.local_addr()?);
            let (mut stream, _) = listener.accept().context("accept a stream")?;
            stream.set_nodelay(true).context("send at once")?;
            while stream.read_exact(&mut packet).is_ok() {
                stream.write_all(&packet).context("send back")?;
            }
        }
        Transport::Udp => {
            let socket = UdpSocket::bind((addr, 0)).with_context(|| format!("listen on {addr}"))?;
            say_listening(socket.local_addr()?);
            loop {
                let (length, from) = socket.recv_from(&mut packet).context("receive")?;
                socket.send_to(&packet[..length], from).context("send back")?;
            }
        }
    }
    Ok(())
}

/// Goes to and fro for a while; prints what half and what nearly all took.
pub fn ping(addr: SocketAddr, over: Transport) -> anyhow::Result<()> {
    let mut packet = [0; SMALL];
    let mut times = match over {
        Transport::Tcp => {
            let mut stream = connect(addr)?;
            stream.set_nodelay(true).context("send at once")?;
            stream.set_read_timeout(Some(STANDSTILL)).context("set how long to wait")?;
            round_trips(|| {
                stream.write_all(&packet)?;
                stream.read_exact(&mut packet)
            })
        }
        Transport::Udp => {
            let any: IpAddr = if addr.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
            let socket = UdpSocket::bind((any, 0)).context("open a socket")?;
            socket.connect(addr).with_context(|| format!("reach {addr}"))?;
            socket.set_read_timeout(Some(PATIENCE)).context("set how long to wait")?;
            round_trips(|| {
                socket.send(&packet)?;
                match socket.recv(&mut packet) {
                    // A lost one took as long as it was waited for.
                    Err(error)
                        if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                    {
                        Ok(())
                    }
                    received => received.map(drop),
                }
            })
        }
    }?;
    times.sort_unstable();
    let of = |hundredths: usize| times[times.len() * hundredths / 100].as_nanos();
    say(format_args!("{} {}", of(50), of(99)));
    Ok(())
}

fn round_trips(mut one: impl FnMut() -> std::io::Result<()>) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < TIME || times.is_empty() {
        let start = Instant::now();
        one().context("no answer came")?;
        times.push(start.elapsed());
    }
    // The first ones found the way.
    times.drain(..times.len() / 10);
    Ok(times)
}

const TIME: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_sender_says_is_read_in_microseconds() {
        let read: RoundTrips = "28500 91000\n".parse().unwrap();
        assert_eq!(read, RoundTrips { p50_us: 28.5, p99_us: 91.0 });
        assert!("28500".parse::<RoundTrips>().is_err());
    }
}
