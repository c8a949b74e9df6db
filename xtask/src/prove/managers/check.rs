//! Judges a history: whether there is an order of all calls, each at one moment between its begin and
//! its end, in which every answer is right (linearizability).
//!
//! Names are independent of each other, so each is judged by itself. One is made at most once and
//! removed at most once, so an order is two moments: it is there between them. Everything bounds these
//! two: the creation itself and whoever sees the network the first, the removal and whoever sees it the
//! second. A read that misses it lies before the first or after the second, so the first is taken as
//! late and the second as early as they may be. Where they meet, the network was there for an instant
//! which no read falls into; else a read that misses it and lies between them all is impossible.
//!
//! ```text
//!   create |-----|                        a write that was acknowledged: some moment of it
//!               |--| there   there |--|   so: made before the end of the first,
//!                 gone |--|   remove |... and removed after the begin of the last; between them
//!                                         `gone` is impossible
//! ```

use std::{collections::BTreeMap, fmt, time::Duration};

use super::history::{Name, Operation, Outcome, Presence, What};

/// A name for which no order of the calls explains the answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The name.
    pub name: Name,
    /// What is wrong.
    pub why: Wrong,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is seen, and nobody made it, or who was to make it was refused.
    NeverMade,
    /// It is seen, or removed, before it was to be made.
    TooEarly,
    /// It is seen by a call that was begun at this time, after its removal was acknowledged.
    Back {
        /// When.
        begun: Duration,
    },
    /// Two removals were acknowledged.
    RemovedTwice,
    /// It was acknowledged or seen, not removed or seen later, and is missed by a call of this time at
    /// this manager.
    Missed {
        /// Whose node answered.
        manager: usize,
        /// When the call was begun.
        begun: Duration,
        /// When it ended.
        ended: Duration,
    },
}

/// Lists what no order of the calls explains.
pub fn check(history: &[Operation]) -> Vec<Violation> {
    let mut lists: Vec<&Operation> =
        history.iter().filter(|operation| matches!(operation.what, What::List(_))).collect();
    lists.sort_by_key(|list| list.begun);
    let mut registers: BTreeMap<Name, Register> = BTreeMap::new();
    for operation in history {
        match &operation.what {
            What::Create(name, outcome) => {
                registers.entry(*name).or_default().create(operation, *outcome);
            }
            What::Remove(name, outcome) => {
                registers.entry(*name).or_default().remove(operation, *outcome);
            }
            What::Find(name, Presence::There) => {
                registers.entry(*name).or_default().seen(operation);
            }
            What::Find(name, Presence::Gone) => {
                registers.entry(*name).or_default().missed.push(operation);
            }
            What::List(names) => {
                for name in names {
                    registers.entry(*name).or_default().seen(operation);
                }
            }
            What::NoAnswer => {}
        }
    }
    let wrong = |(name, register): (Name, Register)| {
        let why = register.check(name, &lists).err()?;
        Some(Violation { name, why })
    };
    registers.into_iter().filter_map(wrong).collect()
}

/// The calls that concern a name, as bounds of the two moments.
#[derive(Default)]
struct Register<'a> {
    /// When it was made, unless it cannot have been.
    created: Option<Span>,
    /// Whether it was made for certain.
    is_created: bool,
    /// When it was removed by the one that was acknowledged.
    removed: Option<Span>,
    removed_twice: bool,
    /// From when on it may have been removed by one that had no answer.
    perhaps_removed: Option<Duration>,
    /// The earliest end and the latest begin of those that saw it.
    seen: Option<(Duration, Duration)>,
    /// Those that looked for this one only, and missed it.
    missed: Vec<&'a Operation>,
}

/// From when to when.
#[derive(Clone, Copy)]
struct Span {
    from: Duration,
    to: Duration,
}

impl<'a> Register<'a> {
    fn create(&mut self, operation: &Operation, outcome: Outcome) {
        let (from, to) = match outcome {
            Outcome::Acknowledged => (operation.begun, operation.ended),
            Outcome::Unknown => (operation.begun, NEVER),
            Outcome::Refused => return,
        };
        self.created = Some(Span { from, to });
        self.is_created = outcome == Outcome::Acknowledged;
    }

    fn remove(&mut self, operation: &Operation, outcome: Outcome) {
        match outcome {
            Outcome::Acknowledged => {
                self.removed_twice = self.removed.is_some();
                self.removed = Some(Span { from: operation.begun, to: operation.ended });
            }
            Outcome::Unknown => {
                let from = self.perhaps_removed.unwrap_or(NEVER).min(operation.begun);
                self.perhaps_removed = Some(from);
            }
            Outcome::Refused => {}
        }
    }

    fn seen(&mut self, operation: &Operation) {
        let (end, begin) = self.seen.unwrap_or((NEVER, Duration::ZERO));
        self.seen = Some((end.min(operation.ended), begin.max(operation.begun)));
    }

    fn check(&self, name: Name, lists: &[&'a Operation]) -> Result<(), Wrong> {
        if self.removed_twice {
            return Err(Wrong::RemovedTwice);
        }
        let was_there = self.is_created || self.seen.is_some() || self.removed.is_some();
        let mut made = match self.created {
            Some(span) if was_there => span,
            None if was_there => return Err(Wrong::NeverMade),
            Some(_) | None => return Ok(()),
        };
        let mut removed = match (self.removed, self.perhaps_removed) {
            (Some(span), _) => span,
            (None, Some(from)) => Span { from, to: NEVER },
            (None, None) => Span { from: NEVER, to: NEVER },
        };
        if let Some((first_end, last_begin)) = self.seen {
            made.to = made.to.min(first_end);
            removed.from = removed.from.max(last_begin);
        }
        if made.from > made.to || made.from > removed.to {
            return Err(Wrong::TooEarly);
        }
        if removed.from > removed.to {
            return Err(Wrong::Back { begun: removed.from });
        }
        if made.to >= removed.from {
            return Ok(());
        }
        self.missed_between(name, made.to, removed.from, lists)
    }

    /// Whether a read misses it while it must be there.
    fn missed_between(
        &self,
        name: Name,
        made: Duration,
        removed: Duration,
        lists: &[&'a Operation],
    ) -> Result<(), Wrong> {
        let first = lists.partition_point(|list| list.begun <= made);
        let within = lists[first..].iter().take_while(|list| list.begun < removed);
        let lacking = within.filter(|list| match &list.what {
            What::List(names) => !names.contains(&name),
            What::Create(..) | What::Remove(..) | What::Find(..) | What::NoAnswer => false,
        });
        let mut missing = lacking.chain(&self.missed);
        let wrong = missing.find(|read| read.begun > made && read.ended < removed);
        match wrong {
            Some(Operation { manager, begun, ended, .. }) => {
                Err(Wrong::Missed { manager: *manager, begun: *begun, ended: *ended })
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match self.why {
            Wrong::NeverMade => write!(f, "{name} is seen, but was never made"),
            Wrong::TooEarly => write!(f, "{name} is seen or removed before it was to be made"),
            Wrong::Back { begun } => {
                write!(
                    f,
                    "{name} is seen from {:.3} s on, after it was removed",
                    begun.as_secs_f64()
                )
            }
            Wrong::RemovedTwice => write!(f, "{name} was removed twice"),
            Wrong::Missed { manager, begun, ended } => write!(
                f,
                "{name} is missed by n{} from {:.3} to {:.3} s, though it was there and not removed",
                manager + 1,
                begun.as_secs_f64(),
                ended.as_secs_f64()
            ),
        }
    }
}

const NEVER: Duration = Duration::MAX;

#[cfg(test)]
mod tests;
