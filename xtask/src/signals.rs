//! SIGINT, SIGTERM, SIGHUP and SIGQUIT only raise a flag. Whoever waits looks at it and returns
//! [`Interrupted`], so that every guard on the way out runs; while those clean up, further signals
//! change nothing.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicBool, Ordering},
};

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// The user asked us to end.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Takes over the signals that end a program.
pub fn install() -> anyhow::Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
        signal_hook::flag::register(signal, Arc::clone(&STOP)).context("take over signals")?;
    }
    Ok(())
}

/// Returns whether a signal came.
pub fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Fails once a signal came.
pub fn check() -> anyhow::Result<()> {
    if stopped() { Err(Interrupted.into()) } else { Ok(()) }
}
