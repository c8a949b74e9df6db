//! TCP streams. Cubic, since a machine's default may pace itself and measure that.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};

use super::say_listening;
use crate::process::say;

/// How much one call to the kernel moves.
const BLOCK: usize = 128 * 1024;

/// Takes streams until they end; prints the bits per second.
pub fn receive(addr: IpAddr, streams: usize) -> anyhow::Result<()> {
    let listener = TcpListener::bind((addr, 0)).with_context(|| format!("listen on {addr}"))?;
    say_listening(listener.local_addr()?);
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

/// Sends streams at once.
pub fn send(addr: SocketAddr, streams: usize, time: Duration) -> anyhow::Result<()> {
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
