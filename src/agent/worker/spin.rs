//! Whether a worker looks for packets again instead of sleeping: being woken costs more than most
//! packets do. Only while small packets come close upon each other, for a short time, and letting whoever
//! else can run go first. What is idle, or evenly slow, costs nothing; bulk has queues that hide its
//! wake-ups, and better uses for the processor.

use std::time::Duration;

use crate::types::Moment;

/// A worker's patience.
pub(super) struct Spin {
    allowed: bool,
    spinning: bool,
    /// When packets came last.
    last: Moment,
    last_small: bool,
    /// Since when there is nothing, if that was seen.
    empty_since: Option<Moment>,
}

impl Spin {
    /// Not spinning yet; never, unless that is allowed.
    pub(super) fn new(allowed: bool) -> Self {
        Self {
            allowed,
            spinning: false,
            last: Moment::default(),
            last_small: false,
            empty_since: None,
        }
    }

    /// Whether to look again at once.
    pub(super) fn is_on(&self) -> bool {
        self.spinning
    }

    /// Packets of so many bytes together were there at `now`.
    pub(super) fn handle_ready(&mut self, now: Moment, bytes: usize) {
        let small = bytes < BULK;
        // Acknowledgements of bulk are small too, and come between.
        let exchange = small && self.last_small && now.since(self.last) < CLOSE;
        self.spinning = self.allowed && exchange;
        (self.last, self.last_small) = (now, small);
        self.empty_since = None;
    }

    /// Nothing was there.
    pub(super) fn handle_empty(&mut self, now: Moment) {
        let since = *self.empty_since.get_or_insert(now);
        self.spinning &= now.since(since) < LONGEST;
    }
}

/// Packets that come closer than this are part of one exchange.
const CLOSE: Duration = Duration::from_micros(100);
/// What a wake-up brings, in bytes, when it is no exchange of small packets.
const BULK: usize = 4096;
/// About what a sleep and a wake-up cost.
const LONGEST: Duration = Duration::from_micros(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(us: u64) -> Moment {
        Moment::from_nanos(us * 1000)
    }

    #[test]
    fn only_what_comes_close_is_waited_for_and_not_for_long() {
        let mut spin = Spin::new(true);
        spin.handle_ready(at(5000), 64);
        assert!(!spin.is_on(), "the first");
        spin.handle_ready(at(5099), 64);
        assert!(spin.is_on(), "99 us later");
        for (now, on) in [(5120, true), (5149, true), (5150, false), (5151, false)] {
            spin.handle_empty(at(now));
            assert_eq!(spin.is_on(), on, "empty from 5120 to {now}");
        }
        spin.handle_ready(at(5198), BULK - 1);
        assert!(spin.is_on(), "another one close to the last");
        spin.handle_ready(at(5298), 64);
        assert!(!spin.is_on(), "100 us later");
        spin.handle_ready(at(5299), BULK);
        assert!(!spin.is_on(), "too much for an exchange of small packets");
        spin.handle_ready(at(5300), 64);
        assert!(!spin.is_on(), "close to bulk");
        spin.handle_ready(at(5301), 64);
        assert!(spin.is_on());
    }

    #[test]
    fn it_is_never_on_where_it_is_not_allowed() {
        let mut spin = Spin::new(false);
        spin.handle_ready(at(5000), 64);
        spin.handle_ready(at(5001), 64);
        assert!(!spin.is_on());
    }
}
