//! The monotonic clock.

use rustix::time::{ClockId, clock_gettime};

use crate::types::Moment;

/// Reads the clock.
pub fn now() -> Moment {
    let time = clock_gettime(ClockId::Monotonic);
    Moment::from_nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Returns the time of day, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.ok().and_then(|now| u64::try_from(now.as_millis()).ok()).unwrap_or(0)
}
