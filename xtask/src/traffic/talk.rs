//! One exchange of 64 bytes after the other, with pauses between them, until it is ended: the longest
//! that one took tells how long traffic stood still.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

use super::{SMALL, STANDSTILL, connect};
use crate::process::say;

/// Talks to an echo; says a few times a second what the longest exchange since the last time took, in
/// microseconds.
pub fn talk(addr: SocketAddr) -> anyhow::Result<()> {
    let mut stream = connect(addr)?;
    stream.set_nodelay(true).context("send at once")?;
    stream.set_read_timeout(Some(STANDSTILL)).context("set how long to wait")?;
    let mut packet = [0; SMALL];
    let (mut said, mut longest) = (Instant::now(), Duration::ZERO);
    loop {
        let begun = Instant::now();
        stream.write_all(&packet).context("send")?;
        stream.read_exact(&mut packet).context("no answer came")?;
        longest = longest.max(begun.elapsed());
        if said.elapsed() >= EVERY {
            say(longest.as_micros());
            (said, longest) = (Instant::now(), Duration::ZERO);
        }
        thread::sleep(PAUSE);
    }
}

const EVERY: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(10);
