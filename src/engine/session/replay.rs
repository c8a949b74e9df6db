//! The replay window of one (session, lane), after RFC 6479: a ring of words in which whole words
//! are cleared as the window moves, so that no step depends on how far it moves.
//!
//! A counter is tested and set only after its datagram opened.

/// What the window says of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// It is new, and now marked.
    Fresh,
    /// It was marked already, or is too old to tell.
    Seen,
}

/// Remembers the newest counters.
pub struct Window {
    /// One above the greatest counter seen; 0 before the first.
    next: u64,
    words: [u64; WORDS],
}

impl Window {
    /// How far behind the greatest counter a counter may be.
    pub const SIZE: u64 = (WORDS as u64 - 1) * 64;

    /// A window that has seen nothing.
    pub const fn new() -> Self {
        Self { next: 0, words: [0; WORDS] }
    }

    /// Marks a counter.
    pub fn accept(&mut self, counter: u64) -> Replay {
        // The last number is never sent: `next` could not stand above it.
        if counter == u64::MAX || counter.saturating_add(Self::SIZE) < self.next {
            return Replay::Seen;
        }
        let block = counter / 64;
        if counter >= self.next {
            let newest = self.next.saturating_sub(1) / 64;
            let skipped = (block - newest).min(WORDS as u64);
            for step in 1..=skipped {
                self.words[(newest.wrapping_add(step) % WORDS as u64) as usize] = 0;
            }
            self.next = counter + 1;
        }
        let word = &mut self.words[(block % WORDS as u64) as usize];
        let bit = 1 << (counter % 64);
        if *word & bit != 0 {
            return Replay::Seen;
        }
        *word |= bit;
        Replay::Fresh
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

/// 8,192 counters and one word that is being refilled: 1 KiB a lane. At 1 Mpps on one lane that is
/// 8 ms of reordering, more than any path's.
const WORDS: usize = 129;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The window as its definition says it.
    #[derive(Default)]
    struct Slow(BTreeSet<u64>);

    impl Slow {
        fn accept(&mut self, counter: u64) -> Replay {
            let greatest = self.0.last().copied();
            let too_old = greatest.is_some_and(|g| counter + Window::SIZE < g + 1);
            if too_old || !self.0.insert(counter) { Replay::Seen } else { Replay::Fresh }
        }
    }

    proptest! {
        #[test]
        fn equals_the_slow_window(steps in proptest::collection::vec((0u8..4, 0u64..20_000), 1..400)) {
            let (mut fast, mut slow) = (Window::new(), Slow::default());
            let mut at: u64 = 0;
            for (kind, distance) in steps {
                let counter = match kind {
                    0 => at.saturating_sub(distance),
                    1 => at + distance % 3,
                    2 => at + distance,
                    _ => at.saturating_sub(distance % 130),
                };
                at = at.max(counter);
                prop_assert_eq!(fast.accept(counter), slow.accept(counter), "counter {}", counter);
            }
        }
    }

    #[test]
    fn the_edges_of_the_window() {
        let mut window = Window::new();
        assert_eq!(window.accept(0), Replay::Fresh);
        assert_eq!(window.accept(0), Replay::Seen);
        assert_eq!(window.accept(Window::SIZE), Replay::Fresh);
        assert_eq!(window.accept(1), Replay::Fresh);
        assert_eq!(window.accept(0), Replay::Seen);
        assert_eq!(window.accept(Window::SIZE + 2), Replay::Fresh);
        assert_eq!(window.accept(2), Replay::Seen, "older than the window");
        assert_eq!(window.accept(3), Replay::Fresh);
        assert_eq!(window.accept(u64::MAX), Replay::Seen);
        assert_eq!(window.accept(u64::MAX - 1), Replay::Fresh);
        assert_eq!(window.accept(u64::MAX - 1), Replay::Seen);
        assert_eq!(window.accept(4), Replay::Seen);
    }
}
