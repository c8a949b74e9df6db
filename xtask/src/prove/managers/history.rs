//! What clients asked of the managers and what came, each with its time: what the checker judges.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A network that a client made, or tried to; no other one ever has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(pub u32);

/// What is known of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Acknowledged,
    /// It is not done, and never will be.
    Refused,
    /// It may be done, at any later time, or not at all.
    Unknown,
}

/// Whether a network is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    There,
    /// It is not.
    Gone,
}

/// What was asked, with what came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A network was to be made.
    Create(Name, Outcome),
    /// A network was to be removed.
    Remove(Name, Outcome),
    /// One was looked for, or missed by whoever was to remove it.
    Find(Name, Presence),
    /// All that are there.
    List(BTreeSet<Name>),
    /// A read that had no answer, which says nothing.
    NoAnswer,
}

/// One call. The times are those since the beginning of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What it was.
    pub what: What,
    /// Whose node was asked, from 0.
    pub manager: usize,
    /// Not after it was sent.
    pub begun: Duration,
    /// Not before its answer came; of an unknown write, when it was given up.
    pub ended: Duration,
}

/// Takes down calls as they end.
pub struct History {
    start: Instant,
    operations: Mutex<Vec<Operation>>,
}

/// How many calls ended in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Writes that were done.
    pub acknowledged: usize,
    /// Writes that were not.
    pub refused: usize,
    /// Writes of which it is not known.
    pub unknown: usize,
    /// Reads with an answer.
    pub reads: usize,
    /// Reads without.
    pub unanswered: usize,
}

impl History {
    /// Begins one.
    pub fn new() -> Self {
        Self { start: Instant::now(), operations: Mutex::default() }
    }

    /// The time now.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Takes down what ended.
    pub fn add(&self, operation: Operation) {
        self.locked().push(operation);
    }

    /// Takes all of it.
    pub fn take(&self) -> Vec<Operation> {
        std::mem::take(&mut *self.locked())
    }

    /// The earliest end of a write that was begun from `begun` on at one of the managers and was done.
    pub fn first_acknowledged(&self, begun: Duration, managers: &[usize]) -> Option<Duration> {
        let operations = self.locked();
        // What ended before it was begun before it.
        let late = operations.iter().rev().take_while(|operation| operation.added_after(begun));
        let done = late.filter(|operation| {
            operation.is_acknowledged()
                && operation.begun >= begun
                && managers.contains(&operation.manager)
        });
        done.map(|operation| operation.ended).min()
    }

    /// Whether a call that was begun from `begun` on at this manager has ended.
    pub fn has_ended(&self, begun: Duration, manager: usize) -> bool {
        let operations = self.locked();
        let mut late = operations.iter().rev().take_while(|operation| operation.added_after(begun));
        late.any(|operation| operation.begun >= begun && operation.manager == manager)
    }

    /// When writes that were done ended, in order, from one time to another.
    pub fn acknowledged_between(&self, from: Duration, to: Duration) -> Vec<Duration> {
        let operations = self.locked();
        let late = operations.iter().rev().take_while(|operation| operation.added_after(from));
        let ends = late.filter(|operation| operation.is_acknowledged());
        let ends = ends.map(|operation| operation.ended);
        let mut ends: Vec<Duration> = ends.filter(|end| (from..=to).contains(end)).collect();
        ends.sort();
        ends
    }

    /// A write that was begun and done in a time, at one of the managers.
    pub fn acknowledged_at(
        &self,
        time: std::ops::Range<Duration>,
        managers: &[usize],
    ) -> Option<Operation> {
        let operations = self.locked();
        let mut late =
            operations.iter().rev().take_while(|operation| operation.added_after(time.start));
        let found = late.find(|operation| {
            operation.is_acknowledged()
                && operation.begun >= time.start
                && operation.ended < time.end
                && managers.contains(&operation.manager)
        });
        found.cloned()
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Operation>> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Operation {
    /// Whether it is a write that was done.
    pub fn is_acknowledged(&self) -> bool {
        match self.what {
            What::Create(_, outcome) | What::Remove(_, outcome) => outcome == Outcome::Acknowledged,
            What::Find(..) | What::List(_) | What::NoAnswer => false,
        }
    }

    /// Calls are taken down soon after their end, and nearly in that order.
    fn added_after(&self, time: Duration) -> bool {
        self.ended + LATE >= time
    }
}

impl Counts {
    /// Counts a history.
    pub fn of(operations: &[Operation]) -> Self {
        let mut counts = Self::default();
        for operation in operations {
            let count = match operation.what {
                What::Create(_, Outcome::Acknowledged) | What::Remove(_, Outcome::Acknowledged) => {
                    &mut counts.acknowledged
                }
                What::Create(_, Outcome::Refused) | What::Remove(_, Outcome::Refused) => {
                    &mut counts.refused
                }
                What::Create(_, Outcome::Unknown) | What::Remove(_, Outcome::Unknown) => {
                    &mut counts.unknown
                }
                What::Find(..) | What::List(_) => &mut counts.reads,
                What::NoAnswer => &mut counts.unanswered,
            };
            *count += 1;
        }
        counts
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "f{}", self.0)
    }
}

impl std::str::FromStr for Name {
    type Err = NoName;

    fn from_str(text: &str) -> Result<Self, NoName> {
        text.strip_prefix('f').and_then(|number| number.parse().ok()).map(Self).ok_or(NoName)
    }
}

/// A network that no client made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoName;

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, refused, unknown, reads, unanswered } = self;
        write!(
            f,
            "{acknowledged} writes acknowledged, {refused} refused, {unknown} unknown; {reads} reads answered, {unanswered} not"
        )
    }
}

/// Far more than passes between the end of a call and its being taken down.
const LATE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_clients_only() {
        assert_eq!("f17".parse(), Ok(Name(17)));
        assert_eq!(Name(17).to_string(), "f17");
        for other in ["blue", "f", "f-1", "17"] {
            assert_eq!(other.parse::<Name>(), Err(NoName));
        }
    }

    #[test]
    fn what_was_done_is_found_by_its_time_and_manager() {
        let history = History::new();
        let ms = Duration::from_millis;
        let add = |what, manager, begun, ended| {
            history.add(Operation { what, manager, begun: ms(begun), ended: ms(ended) });
        };
        add(What::Create(Name(1), Outcome::Acknowledged), 0, 10, 20);
        add(What::Create(Name(2), Outcome::Acknowledged), 1, 90, 120);
        add(What::Create(Name(3), Outcome::Unknown), 1, 110, 130);
        add(What::Remove(Name(1), Outcome::Acknowledged), 0, 100, 140);
        add(What::NoAnswer, 2, 100, 150);
        assert_eq!(history.first_acknowledged(ms(50), &[0, 1]), Some(ms(120)));
        assert_eq!(history.first_acknowledged(ms(100), &[0, 1]), Some(ms(140)));
        assert_eq!(history.first_acknowledged(ms(100), &[1, 2]), None);
        assert_eq!(history.acknowledged_between(ms(20), ms(120)), [ms(20), ms(120)]);
        assert!(history.has_ended(ms(100), 2) && !history.has_ended(ms(101), 2));
        assert!(history.acknowledged_at(ms(95)..ms(140), &[0]).is_none());
        assert_eq!(history.acknowledged_at(ms(95)..ms(141), &[0]).unwrap().begun, ms(100));
        let counts = Counts::of(&history.take());
        assert_eq!(
            counts,
            Counts { acknowledged: 3, refused: 0, unknown: 1, reads: 0, unanswered: 1 }
        );
    }
}
