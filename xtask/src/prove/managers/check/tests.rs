//! Planted histories, and random ones beside a search through all orders.

use std::collections::BTreeSet;

use super::*;
use Outcome::{Acknowledged, Refused, Unknown};
use Presence::{Gone, There};

const NAME: Name = Name(1);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn call(what: What, begun: u64, ended: u64) -> Operation {
    Operation { what, manager: 0, begun: ms(begun), ended: ms(ended) }
}

fn create(outcome: Outcome, begun: u64, ended: u64) -> Operation {
    call(What::Create(NAME, outcome), begun, ended)
}

fn remove(outcome: Outcome, begun: u64, ended: u64) -> Operation {
    call(What::Remove(NAME, outcome), begun, ended)
}

fn find(presence: Presence, begun: u64, ended: u64) -> Operation {
    call(What::Find(NAME, presence), begun, ended)
}

fn list(presence: Presence, begun: u64, ended: u64) -> Operation {
    let names = match presence {
        There => [NAME].into(),
        Gone => BTreeSet::new(),
    };
    call(What::List(names), begun, ended)
}

fn wrong(history: &[Operation]) -> Option<Wrong> {
    let found = check(history);
    assert!(found.len() <= 1, "{found:?}");
    found.first().map(|violation| violation.why)
}

fn missed(begun: u64, ended: u64) -> Option<Wrong> {
    Some(Wrong::Missed { manager: 0, begun: ms(begun), ended: ms(ended) })
}

#[test]
fn a_lost_acknowledged_write_is_found() {
    let history = [create(Acknowledged, 0, 10), list(Gone, 20, 30)];
    assert_eq!(wrong(&history), missed(20, 30));
    assert_eq!(
        check(&history)[0].to_string(),
        "f1 is missed by n1 from 0.020 to 0.030 s, though it was there and not removed"
    );
    assert_eq!(wrong(&[create(Acknowledged, 0, 10), find(Gone, 20, 30)]), missed(20, 30));
    // Both lie beside each other.
    assert_eq!(wrong(&[create(Acknowledged, 0, 10), list(Gone, 5, 30)]), None);
}

#[test]
fn a_lost_acknowledged_removal_is_found() {
    let mut history =
        vec![create(Acknowledged, 0, 10), remove(Acknowledged, 20, 30), list(There, 25, 50)];
    assert_eq!(wrong(&history), None);
    history.push(list(There, 40, 50));
    assert_eq!(wrong(&history), Some(Wrong::Back { begun: ms(40) }));
}

#[test]
fn a_stale_read_is_found() {
    let history =
        [create(Acknowledged, 0, 10), list(Gone, 20, 30), list(There, 20, 40), list(There, 50, 60)];
    assert_eq!(wrong(&history), missed(20, 30));
    let history = [
        create(Acknowledged, 0, 10),
        list(There, 20, 30),
        list(Gone, 40, 50),
        remove(Acknowledged, 60, 70),
    ];
    assert_eq!(wrong(&history), missed(40, 50));
}

#[test]
fn a_read_that_goes_back_is_found() {
    // The write has no answer yet, and one has seen it already.
    let mut history = vec![create(Acknowledged, 0, 100), list(There, 10, 20)];
    assert_eq!(wrong(&history), None);
    history.push(find(Gone, 30, 40));
    assert_eq!(wrong(&history), missed(30, 40));
    // The same of a removal: it was missed before it is seen.
    let history = [
        create(Acknowledged, 0, 10),
        remove(Acknowledged, 20, 100),
        list(Gone, 30, 40),
        list(There, 50, 60),
    ];
    assert_eq!(wrong(&history), missed(30, 40));
}

#[test]
fn an_unknown_write_may_appear_late_or_never() {
    let mut history = vec![create(Unknown, 0, 10), list(Gone, 20, 30), find(Gone, 1000, 1010)];
    assert_eq!(wrong(&history), None);
    history.push(list(There, 2000, 2010));
    assert_eq!(wrong(&history), None);
    history.push(list(There, 3000, 3010));
    assert_eq!(wrong(&history), None);
}

#[test]
fn an_unknown_write_that_appears_and_vanishes_is_found() {
    let mut history = vec![create(Unknown, 0, 10), list(There, 20, 30), list(Gone, 40, 50)];
    assert_eq!(wrong(&history), missed(40, 50));
    history.push(remove(Unknown, 35, 1000));
    assert_eq!(wrong(&history), None);
    history.push(list(There, 60, 70));
    assert_eq!(wrong(&history), missed(40, 50));
}

#[test]
fn an_unknown_removal_may_be_done_at_any_time() {
    let history = [
        create(Acknowledged, 0, 10),
        remove(Unknown, 20, 30),
        list(There, 500, 510),
        remove(Acknowledged, 600, 610),
        list(Gone, 620, 630),
    ];
    assert_eq!(wrong(&history), None);
    assert_eq!(wrong(&[remove(Unknown, 20, 30), list(Gone, 40, 50)]), None);
}

#[test]
fn what_was_refused_is_never_done() {
    let mut history = vec![create(Refused, 0, 10), list(Gone, 20, 30)];
    assert_eq!(wrong(&history), None);
    history.push(list(There, 40, 50));
    assert_eq!(wrong(&history), Some(Wrong::NeverMade));
    let history = [create(Acknowledged, 0, 10), remove(Refused, 20, 30), list(Gone, 40, 50)];
    assert_eq!(wrong(&history), missed(40, 50));
    assert_eq!(wrong(&[list(There, 40, 50)]), Some(Wrong::NeverMade));
}

#[test]
fn what_comes_too_early_or_twice_is_found() {
    assert_eq!(wrong(&[create(Acknowledged, 20, 30), list(There, 0, 10)]), Some(Wrong::TooEarly));
    assert_eq!(
        wrong(&[create(Unknown, 20, 30), remove(Acknowledged, 0, 10)]),
        Some(Wrong::TooEarly)
    );
    let history =
        [create(Acknowledged, 0, 10), remove(Acknowledged, 20, 30), remove(Acknowledged, 40, 50)];
    assert_eq!(wrong(&history), Some(Wrong::RemovedTwice));
}

#[test]
fn names_are_judged_each_by_itself() {
    let other = Name(2);
    let history = [
        create(Acknowledged, 0, 10),
        call(What::Create(other, Acknowledged), 0, 10),
        call(What::List([NAME].into()), 20, 30),
    ];
    let found = check(&history);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].name, other);
}

#[test]
fn it_agrees_with_a_search_through_all_orders() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let (mut right, mut bad) = (0, 0);
    for round in 0..20_000 {
        let mut history = Vec::new();
        for number in 0..1 + draw(6) {
            // No two times are the same, which is what clocks give.
            let begun = 100 * draw(16) + 10 * number;
            let ended = begun + 100 * draw(8) + 5;
            let outcome = [Acknowledged, Acknowledged, Unknown, Refused][draw(4) as usize];
            let presence = [There, Gone][draw(2) as usize];
            let made = history
                .iter()
                .any(|operation: &Operation| matches!(operation.what, What::Create(..)));
            history.push(match draw(6) {
                0 | 1 if !made => create(outcome, begun, ended),
                0..=2 => remove(outcome, begun, ended),
                3 => list(presence, begun, ended),
                _ => find(presence, begun, ended),
            });
        }
        let explained = is_explained(&history);
        assert_eq!(check(&history).is_empty(), explained, "round {round}: {history:#?}");
        if explained { right += 1 } else { bad += 1 }
    }
    assert!(right > 2_000 && bad > 2_000, "{right} right, {bad} wrong");
}

/// Tries all orders that the times allow (Wing and Gong).
fn is_explained(history: &[Operation]) -> bool {
    let refused = |operation: &&Operation| {
        matches!(operation.what, What::Create(_, Refused) | What::Remove(_, Refused))
    };
    let mut left: Vec<&Operation> =
        history.iter().filter(|operation| !refused(operation)).collect();
    has_order(&mut left, false)
}

fn has_order(left: &mut Vec<&Operation>, there: bool) -> bool {
    let unknown = |operation: &Operation| {
        matches!(operation.what, What::Create(_, Unknown) | What::Remove(_, Unknown))
    };
    // An unknown one need not be.
    if left.iter().all(|operation| unknown(operation)) {
        return true;
    }
    for at in 0..left.len() {
        let next = left[at];
        let is_late = left.iter().any(|other| !unknown(other) && other.ended < next.begun);
        let after = match &next.what {
            What::Create(..) => Some(true),
            // Whoever is told that it is removed has removed it; nobody was told of an unknown one.
            What::Remove(_, Acknowledged) => there.then_some(false),
            What::Remove(..) => Some(false),
            What::Find(_, presence) => (there == (*presence == There)).then_some(there),
            What::List(names) => (there != names.is_empty()).then_some(there),
            What::NoAnswer => Some(there),
        };
        if let (false, Some(after)) = (is_late, after) {
            left.remove(at);
            let found = has_order(left, after);
            left.insert(at, next);
            if found {
                return true;
            }
        }
    }
    false
}
