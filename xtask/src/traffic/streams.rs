//! TCP streams, all of them from one thread to one.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{STANDSTILL, connect, listen, say_listening};
use crate::process::say;

/// How much one call to the kernel moves.
const BLOCK: usize = 128 * 1024;

/// Takes streams until they end; prints the bits per second.
pub fn receive(addr: IpAddr, streams: usize) -> anyhow::Result<()> {
    let listener = listen(addr)?;
    say_listening(listener.local_addr()?);
    let accept = |_| Ok(listener.accept().context("accept a stream")?.0);
    let streams = (0..streams).map(accept).collect::<anyhow::Result<_>>()?;
    let start = Instant::now();
    let bytes = count(streams)?;
    let bits_per_second = bytes as f64 * 8.0 / start.elapsed().as_secs_f64();
    say(format_args!("{bits_per_second:.0}"));
    Ok(())
}

fn count(mut streams: Vec<TcpStream>) -> anyhow::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut bytes = 0;
    while !streams.is_empty() {
        let ready = ready(&streams, PollFlags::IN)?;
        let mut ready = ready.into_iter();
        let mut failed = None;
        streams.retain_mut(|stream| {
            if ready.next() != Some(true) {
                return true;
            }
            let read = stream.read(&mut block);
            bytes += *read.as_ref().unwrap_or(&0) as u64;
            let goes_on = matches!(read, Ok(1..));
            failed = failed.take().or(read.err());
            goes_on
        });
        if let Some(error) = failed {
            return Err(error).context("receive a stream");
        }
    }
    Ok(bytes)
}

/// Sends streams at once, from one thread, as iperf3 does: what is measured is the way between, not
/// how many processors the ends have.
pub fn send(addr: SocketAddr, streams: usize, time: Duration) -> anyhow::Result<()> {
    let connect = |_| -> anyhow::Result<TcpStream> {
        let stream = connect(addr)?;
        stream.set_nonblocking(true).context("send without waiting")?;
        Ok(stream)
    };
    let mut streams = (0..streams).map(connect).collect::<anyhow::Result<Vec<TcpStream>>>()?;
    // Of memory that was written: what never was is one page of zeros, which is always in the cache.
    let block = vec![1; BLOCK];
    let end = Instant::now() + time;
    while Instant::now() < end {
        let ready = ready(&streams, PollFlags::OUT)?;
        for (stream, _) in streams.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            match stream.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("send a stream"),
            }
        }
    }
    Ok(())
}

/// Waits until one of the streams is ready; tells which are.
fn ready(streams: &[TcpStream], what: PollFlags) -> anyhow::Result<Vec<bool>> {
    let mut fds: Vec<PollFd<'_>> = streams.iter().map(|stream| PollFd::new(stream, what)).collect();
    let patience = Timespec { tv_sec: STANDSTILL.as_secs().cast_signed(), tv_nsec: 0 };
    match poll(&mut fds, Some(&patience)) {
        Ok(0) => bail!("no stream went on for {STANDSTILL:?}"),
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error).context("wait for a stream"),
    }
    Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn all_bytes_of_all_streams_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let send = |bytes: usize| {
            std::thread::spawn(move || {
                TcpStream::connect(addr).unwrap().write_all(&vec![7; bytes]).unwrap();
            })
        };
        let senders = [300_000, 1, 500_000].map(send);
        let streams = (0..3).map(|_| listener.accept().unwrap().0).collect();
        assert_eq!(count(streams).unwrap(), 800_001);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    }
}
