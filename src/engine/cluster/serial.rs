//! Hands out the numbers of a range in order: first those never used, from the lowest up, then
//! those given back, the one freed longest ago first, so that an address that just ended is not
//! somebody else's a moment later.

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

/// A range of numbers, each free or held by one `H`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(deserialize = "H: Clone + Deserialize<'de>"))]
pub struct Serial<H> {
    first: u128,
    last: u128,
    /// Everything below was used at least once.
    fresh: u128,
    held: OrdMap<u128, H>,
    /// What was given back, by when.
    freed: OrdMap<u64, u128>,
    freed_when: OrdMap<u128, u64>,
    frees: u64,
}

impl<H: Clone> Serial<H> {
    /// Makes the range `first..=last`. `last` is below `u128::MAX`.
    pub fn new(first: u128, last: u128) -> Self {
        Self {
            first,
            last,
            fresh: first,
            held: OrdMap::new(),
            freed: OrdMap::new(),
            freed_when: OrdMap::new(),
            frees: 0,
        }
    }

    /// Returns the number to hand out next, leaving out those that `skip` names.
    pub fn next(&self, skip: impl Fn(u128) -> bool) -> Option<u128> {
        let unused = |n: &u128| !self.held.contains_key(n) && !self.freed_when.contains_key(n);
        (self.fresh..=self.last)
            .find(|n| unused(n) && !skip(*n))
            .or_else(|| self.freed.values().copied().find(|n| !skip(*n)))
    }

    /// Gives a number to a holder. A number outside the range may be held too: it is merely never
    /// handed out by [`Self::next`].
    pub fn take(&mut self, number: u128, holder: H) {
        if let Some(when) = self.freed_when.remove(&number) {
            self.freed.remove(&when);
        }
        self.held.insert(number, holder);
        while self.fresh <= self.last
            && (self.held.contains_key(&self.fresh) || self.freed_when.contains_key(&self.fresh))
        {
            self.fresh += 1;
        }
    }

    /// Takes a number back; it is the last to be handed out again.
    pub fn free(&mut self, number: u128) {
        let held = self.held.remove(&number).is_some();
        if held && (self.first..=self.last).contains(&number) {
            self.frees += 1;
            self.freed.insert(self.frees, number);
            self.freed_when.insert(number, self.frees);
        }
    }

    /// Returns who holds a number.
    pub fn holder(&self, number: u128) -> Option<&H> {
        self.held.get(&number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn serial_then_longest_freed_first() {
        let mut numbers = Serial::new(2, 5);
        let take = |numbers: &mut Serial<()>| {
            let number = numbers.next(|_| false)?;
            numbers.take(number, ());
            Some(number)
        };
        assert_eq!([take(&mut numbers), take(&mut numbers)], [Some(2), Some(3)]);
        numbers.free(3);
        numbers.free(2);
        assert_eq!([take(&mut numbers), take(&mut numbers)], [Some(4), Some(5)]);
        assert_eq!([take(&mut numbers), take(&mut numbers)], [Some(3), Some(2)]);
        assert_eq!(take(&mut numbers), None);
    }

    #[test]
    fn a_skipped_number_comes_back_when_nothing_skips_it() {
        let mut numbers = Serial::new(0, 2);
        assert_eq!(numbers.next(|n| n == 0), Some(1));
        numbers.take(1, ());
        assert_eq!(numbers.next(|_| false), Some(0));
    }

    /// The slow version: every number of the range in a list.
    #[derive(Default)]
    struct Naive {
        fresh: BTreeSet<u128>,
        freed: VecDeque<u128>,
        held: BTreeSet<u128>,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Next,
        Take(u128),
        Free(u128),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Next),
            1 => (0..12u128).prop_map(Step::Take),
            3 => (0..12u128).prop_map(Step::Free),
        ]
    }

    proptest! {
        #[test]
        fn hands_out_as_a_list_would(steps in prop::collection::vec(step(), 0..200)) {
            let mut numbers = Serial::new(0, 11);
            let mut naive = Naive { fresh: (0..12).collect(), ..Naive::default() };
            for step in steps {
                match step {
                    Step::Next => {
                        let wanted = naive.fresh.first().or(naive.freed.front()).copied();
                        prop_assert_eq!(numbers.next(|_| false), wanted);
                        if let Some(number) = wanted {
                            prop_assert!(naive.held.insert(number), "handed out twice");
                            naive.fresh.remove(&number);
                            naive.freed.retain(|n| *n != number);
                            numbers.take(number, ());
                        }
                    }
                    Step::Take(number) => {
                        prop_assert_eq!(numbers.holder(number).is_some(), naive.held.contains(&number));
                        if naive.held.insert(number) {
                            naive.fresh.remove(&number);
                            naive.freed.retain(|n| *n != number);
                            numbers.take(number, ());
                        }
                    }
                    Step::Free(number) => {
                        if naive.held.remove(&number) {
                            naive.freed.push_back(number);
                        }
                        numbers.free(number);
                    }
                }
            }
            for number in naive.held {
                numbers.free(number);
            }
            let all = (0..12).map(|_| {
                let number = numbers.next(|_| false).unwrap();
                numbers.take(number, ());
                number
            });
            prop_assert_eq!(all.collect::<BTreeSet<_>>().len(), 12, "something did not come back");
        }
    }
}
