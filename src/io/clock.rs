//! The monotonic clock.

use rustix::time::{ClockId, clock_gettime};

use crate::types::Moment;

/// Reads the clock.
pub fn now() -> Moment {
    let time = clock_gettime(ClockId::Monotonic);
    Moment::from_nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
