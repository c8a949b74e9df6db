//! Datagrams at a rate, and the highest rate that loses at most one in a hundred.

use std::{
    io::{ErrorKind, IoSlice},
    net::{IpAddr, SocketAddr, UdpSocket},
    num::NonZeroU64,
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustix::{
    io::Errno,
    net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg},
};

use super::{Route, SMALL, say_listening};
use crate::process::{complain, say};

/// What came of one load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Datagrams {
    /// How many the kernel took of the sender.
    pub sent: u64,
    /// How many the receiver read.
    pub received: u64,
    /// How long they were sent, or received if that took longer.
    pub time: Duration,
}

/// What a receiver found.
pub struct Counted {
    /// How many it read.
    pub received: u64,
    /// From the first of them to the last.
    pub time: Duration,
}

impl FromStr for Counted {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let figures: Result<Vec<u64>, _> = line.split_whitespace().map(str::parse).collect();
        match figures.as_deref() {
            Ok([received, ns]) => Ok(Self { received: *received, time: Duration::from_nanos(*ns) }),
            Ok(_) | Err(_) => bail!("the receiver said '{line}'"),
        }
    }
}

impl Datagrams {
    /// Datagrams received a second.
    pub fn rate(&self) -> f64 {
        self.received as f64 / self.time.as_secs_f64()
    }

    /// Whether at most one in a hundred was lost.
    pub fn arrived(&self) -> bool {
        self.received > 0 && self.received * 100 >= self.sent * 99
    }
}

impl Route<'_> {
    /// Finds how many datagrams a second arrive when at most one in a hundred is lost: the rate doubles
    /// until too many are, and is narrowed down then. A rate that fails is tried once more, since any
    /// other work on the machine costs datagrams too.
    pub fn most_datagrams(&self) -> anyhow::Result<f64> {
        let most = most(|rate| {
            let probe = self.datagrams(rate, PROBE)?;
            if probe.arrived() { Ok(probe) } else { self.datagrams(rate, PROBE) }
        })?;
        ensure!(most > 0.0, "not even {LOWEST} datagrams a second arrive in {}", self.to);
        Ok(most)
    }
}

fn most(probe: impl Fn(u32) -> anyhow::Result<Datagrams>) -> anyhow::Result<f64> {
    let (mut low, mut high, mut best) = (0, LOWEST, 0.0_f64);
    loop {
        let found = probe(high)?;
        if !found.arrived() {
            break;
        }
        best = best.max(found.rate());
        if found.rate() < f64::from(high) * 0.95 || high >= HIGHEST {
            complain("one sender does no more: the way may carry more datagrams than are told");
            return Ok(best);
        }
        (low, high) = (high, high * 2);
    }
    for _ in 0..STEPS {
        let middle = low.midpoint(high);
        let found = probe(middle)?;
        if found.arrived() {
            best = best.max(found.rate());
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(best)
}

/// Counts what comes, until nothing does for a while after the first; prints how many, and how long
/// they took.
pub fn count(addr: IpAddr) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((addr, 0)).with_context(|| format!("listen on {addr}"))?;
    // Where we may not, what the kernel gives is used.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER);
    say_listening(socket.local_addr()?);
    let mut packet = [0; 2048];
    let wait = |time| socket.set_read_timeout(Some(time)).context("set how long to wait");
    wait(FIRST)?;
    let mut received = 0_u64;
    let mut first = Instant::now();
    let mut last = first;
    loop {
        match socket.recv(&mut packet) {
            Ok(_) => {
                last = Instant::now();
                if received == 0 {
                    first = last;
                    wait(QUIET)?;
                }
                received += 1;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                break;
            }
            Err(error) => return Err(error).context("receive a datagram"),
        }
    }
    say(format_args!("{received} {}", (last - first).as_nanos()));
    Ok(())
}

/// Sends at a rate, or as many as go; prints how many.
pub fn flood(addr: SocketAddr, rate: u32, time: Duration) -> anyhow::Result<()> {
    let any: IpAddr = if addr.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).context("open a socket")?;
    socket.connect(addr).with_context(|| format!("send to {addr}"))?;
    // A pause is meant as short as it is.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).context("ask for exact pauses")?;
    let pause = Duration::from_secs(1) / rate.max(1);
    let parts = [IoSlice::new(&[0; SMALL])];
    let mut controls: Vec<SendAncillaryBuffer<'_, '_, '_>> =
        (0..BURST).map(|_| SendAncillaryBuffer::default()).collect();
    let mut messages: Vec<MMsgHdr<'_>> =
        controls.iter_mut().map(|control| MMsgHdr::new(&parts, control)).collect();
    let start = Instant::now();
    let mut sent = 0_u64;
    loop {
        let elapsed = start.elapsed();
        if elapsed >= time {
            break;
        }
        let due = if rate == 0 { sent + BURST } else { due(rate, elapsed) };
        if due <= sent {
            thread::sleep(pause.max(SHORTEST_PAUSE));
            continue;
        }
        let burst = BURST.min(due - sent) as usize;
        match sendmmsg(&socket, &mut messages[..burst], SendFlags::empty()) {
            Ok(taken) => sent += taken as u64,
            // What the kernel does not take was not sent; neither is what nobody listens for any more.
            Err(Errno::NOBUFS | Errno::CONNREFUSED | Errno::INTR) => {}
            Err(error) => return Err(error).context("send datagrams"),
        }
    }
    say(sent);
    Ok(())
}

fn due(rate: u32, elapsed: Duration) -> u64 {
    (f64::from(rate) * elapsed.as_secs_f64()) as u64
}

/// How long each rate is tried.
const PROBE: Duration = Duration::from_secs(1);
/// For the first datagram.
const FIRST: Duration = Duration::from_secs(5);
/// After the last datagram.
const QUIET: Duration = Duration::from_millis(200);
const LOWEST: u32 = 25_000;
const HIGHEST: u32 = 3_200_000;
/// Each halves what is not known: to one in 32 of a doubling.
const STEPS: u32 = 5;
/// Datagrams between two looks at the clock.
const BURST: u64 = 64;
const SHORTEST_PAUSE: Duration = Duration::from_micros(100);
/// Bytes of the receiver's socket: a pause of the receiver is not the path's loss.
const BUFFER: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn path(limit: u32, sender: u32) -> impl Fn(u32) -> anyhow::Result<Datagrams> {
        move |rate| {
            let sent = rate.min(sender);
            let (sent, received) = (u64::from(sent), u64::from(sent.min(limit)));
            Ok(Datagrams { sent, received, time: Duration::from_secs(1) })
        }
    }

    #[test]
    fn the_highest_rate_is_found_to_a_few_in_a_hundred() {
        for limit in [30_000, 99_000, 250_000, 1_000_000] {
            let found = most(path(limit, u32::MAX)).unwrap();
            assert!(
                (f64::from(limit) * 0.96..=f64::from(limit)).contains(&found),
                "{limit}: {found}"
            );
        }
        assert_eq!(most(path(10, u32::MAX)).unwrap(), 0.0, "below the lowest");
        assert_eq!(most(path(u32::MAX, 70_000)).unwrap(), 70_000.0, "the sender is the limit");
    }

    #[test]
    fn one_lost_in_a_hundred_is_the_most() {
        let datagrams = |sent, received| Datagrams { sent, received, time: Duration::from_secs(1) };
        assert!(datagrams(1000, 990).arrived());
        assert!(!datagrams(1000, 989).arrived());
        assert!(!datagrams(0, 0).arrived());
    }
}
