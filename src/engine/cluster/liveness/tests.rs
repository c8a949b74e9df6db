//! Every way through the picture, with its times.

use super::*;

const A: NodeId = NodeId::from_u128(1);
const B: NodeId = NodeId::from_u128(2);
const C: NodeId = NodeId::from_u128(3);
/// The manager's own node.
const M: NodeId = NodeId::from_u128(4);
/// Another manager's.
const F: NodeId = NodeId::from_u128(5);

fn at(ms: u64) -> Moment {
    Moment::from_nanos(ms * 1_000_000)
}

/// All three heard at the start.
fn heard_at(ms: u64) -> Liveness {
    let mut liveness = Liveness::new(Duration::from_secs(1), M);
    for node in [A, B, C] {
        liveness.handle_opened(node, 1, M, at(ms));
        assert_eq!(liveness.poll_output(), Some(Verdict::Ready(node)));
    }
    liveness
}

/// Lets time pass until something is due, and returns when that is and what it is.
fn next(liveness: &mut Liveness) -> (u64, Vec<Verdict>) {
    let due = liveness.poll_timeout().expect("something is due");
    liveness.handle_timeout(due);
    (due.as_nanos() / 1_000_000, std::iter::from_fn(|| liveness.poll_output()).collect())
}

/// B and C go on being heard; A is not after this.
fn only_a_vanishes(at_ms: u64) -> Liveness {
    let mut liveness = heard_at(at_ms);
    for node in [B, C] {
        liveness.handle_heard(node, at(at_ms + 2100));
    }
    liveness
}

#[test]
fn a_silent_node_is_down_when_no_witness_hears_it() {
    let mut liveness = only_a_vanishes(1000);
    assert_eq!(next(&mut liveness), (3700, vec![Verdict::Ask(A)]));
    liveness.handle_asked(A, BTreeSet::from([B, C]), at(3701));
    liveness.handle_witness(B, A, Heard::No, at(4480));
    liveness.handle_witness(C, A, Heard::No, at(4490));
    for node in [B, C] {
        liveness.handle_heard(node, at(4000));
    }
    assert_eq!(next(&mut liveness), (4500, vec![Verdict::Down(A)]), "3.5 after it was heard");
    assert_eq!(next(&mut liveness).1, vec![Verdict::Ask(B), Verdict::Ask(C)], "A is not asked for");
}

#[test]
fn witnesses_that_do_not_answer_are_silent() {
    let mut liveness = only_a_vanishes(0);
    assert_eq!(next(&mut liveness), (2700, vec![Verdict::Ask(A)]));
    liveness.handle_asked(A, BTreeSet::from([B, C]), at(2710));
    liveness.handle_witness(B, A, Heard::No, at(3510));
    assert_eq!(next(&mut liveness), (3810, vec![Verdict::Down(A)]), "before 4.0");
}

#[test]
fn what_a_closed_stream_says() {
    // Its host closed it: that is the last sign of life.
    let mut liveness = only_a_vanishes(0);
    liveness.handle_closed(A, 1, Closed::ByNode, at(900));
    for node in [B, C] {
        liveness.handle_heard(node, at(3000));
    }
    assert_eq!(next(&mut liveness), (3600, vec![Verdict::Ask(A)]));
    // The manager gave it up: that says nothing.
    let mut liveness = only_a_vanishes(0);
    liveness.handle_closed(A, 1, Closed::ByManager, at(1900));
    assert_eq!(next(&mut liveness), (2700, vec![Verdict::Ask(A)]));
}

#[test]
fn a_node_that_a_witness_hears_stays_ready_and_is_asked_for_again() {
    let mut liveness = only_a_vanishes(0);
    assert_eq!(next(&mut liveness), (2700, vec![Verdict::Ask(A)]));
    liveness.handle_asked(A, BTreeSet::from([B]), at(2700));
    liveness.handle_witness(C, A, Heard::Yes, at(2800));
    assert!(!liveness.is_management_lost(A), "C was not asked");
    liveness.handle_witness(B, A, Heard::Yes, at(2900));
    assert!(liveness.is_management_lost(A));
    for node in [B, C] {
        liveness.handle_heard(node, at(4500));
    }
    assert_eq!(next(&mut liveness), (5600, vec![Verdict::Ask(A)]), "2.7 after it was heard");
    liveness.handle_asked(A, BTreeSet::from([B]), at(5600));
    liveness.handle_witness(B, A, Heard::No, at(6400));
    assert_eq!(next(&mut liveness), (6400, vec![Verdict::Down(A)]));
    liveness.handle_opened(A, 2, M, at(9000));
    assert_eq!(liveness.poll_output(), Some(Verdict::Ready(A)));
}

#[test]
fn a_node_that_is_heard_meanwhile_is_not_down() {
    let mut liveness = only_a_vanishes(0);
    assert_eq!(next(&mut liveness), (2700, vec![Verdict::Ask(A)]));
    liveness.handle_asked(A, BTreeSet::from([B]), at(2700));
    liveness.handle_heard(A, at(3400));
    liveness.handle_witness(B, A, Heard::No, at(3500));
    assert_eq!(next(&mut liveness), (4800, vec![Verdict::Ask(B), Verdict::Ask(C)]));
}

#[test]
fn a_gap_of_two_between_two_keepalives_takes_nobody_down() {
    // It was heard, and all was cut off just before its next keepalive: from 1.0 to 3.0.
    let mut liveness = only_a_vanishes(0);
    assert_eq!(next(&mut liveness).1, vec![Verdict::Ask(A)]);
    liveness.handle_asked(A, BTreeSet::from([B, C]), at(2700));
    assert!(liveness.poll_timeout() > Some(at(3000)), "not down before it can be heard again");
    liveness.handle_witness(B, A, Heard::Yes, at(3100));
    assert!(liveness.is_management_lost(A));
}

#[test]
fn without_witnesses_streams_decide_unless_many_vanished() {
    let mut liveness = only_a_vanishes(0);
    assert_eq!(next(&mut liveness), (2700, vec![Verdict::Ask(A)]));
    liveness.handle_asked(A, BTreeSet::new(), at(2700));
    assert_eq!(next(&mut liveness), (3500, vec![Verdict::Down(A)]));

    let mut liveness = heard_at(0);
    liveness.handle_heard(C, at(2100));
    assert_eq!(next(&mut liveness), (2700, vec![Verdict::Ask(A), Verdict::Ask(B)]));
    for node in [A, B] {
        liveness.handle_asked(node, BTreeSet::new(), at(2700));
    }
    liveness.handle_heard(C, at(3400));
    assert_eq!(next(&mut liveness), (3500, vec![]));
    for node in [A, B] {
        assert!(liveness.is_management_lost(node), "two of three: the manager is cut off");
    }
}

/// A and B vanish and C does not; each is looked for by these.
fn two_of_three_vanish(witnesses: &[NodeId]) -> Liveness {
    let mut liveness = heard_at(0);
    liveness.handle_heard(C, at(2100));
    assert_eq!(next(&mut liveness), (2700, vec![Verdict::Ask(A), Verdict::Ask(B)]));
    for node in [A, B] {
        liveness.handle_asked(node, witnesses.iter().copied().collect(), at(2700));
    }
    liveness.handle_heard(C, at(3400));
    liveness
}

#[test]
fn a_manager_that_is_cut_off_takes_nobody_down() {
    // The witnesses are cut off from it as well, and its own node hears no more than it does.
    let mut liveness = two_of_three_vanish(&[A, B, M]);
    for node in [A, B] {
        liveness.handle_witness(M, node, Heard::No, at(3450));
    }
    assert_eq!(next(&mut liveness), (3800, vec![]));
    assert!(liveness.is_management_lost(A) && liveness.is_management_lost(B));
    liveness.handle_heard(C, at(6000));
    assert_eq!(next(&mut liveness), (6500, vec![Verdict::Ask(A), Verdict::Ask(B)]), "once more");
}

#[test]
fn those_held_are_down_once_they_are_silent_for_too_long() {
    let mut liveness = two_of_three_vanish(&[]);
    let (mut downs, mut now) = (Vec::new(), at(3400));
    while now < at(70_000) {
        // C goes on being heard, and a deadline may lie behind.
        now = now.max(liveness.poll_timeout().unwrap());
        liveness.handle_heard(C, now);
        liveness.handle_timeout(now);
        while let Some(verdict) = liveness.poll_output() {
            match verdict {
                Verdict::Ask(node) => liveness.handle_asked(node, BTreeSet::new(), now),
                Verdict::Down(node) => downs.push((node, now)),
                Verdict::Ready(node) => panic!("{node} is ready"),
            }
        }
    }
    let nodes: Vec<NodeId> = downs.iter().map(|(node, _)| *node).collect();
    assert_eq!(nodes, [A, B]);
    assert!(downs.iter().all(|(_, when)| (at(60_000)..at(63_000)).contains(when)), "{downs:?}");
}

#[test]
fn an_older_stream_that_ends_late_does_not_end_the_newer() {
    let mut liveness = only_a_vanishes(0);
    liveness.handle_opened(A, 3, M, at(100));
    liveness.handle_opened(A, 2, M, at(150));
    liveness.handle_closed(A, 1, Closed::ByNode, at(200));
    assert_eq!(liveness.silent_for(A, at(200)), Some(Duration::from_millis(100)));
    liveness.handle_closed(A, 3, Closed::ByNode, at(200));
    assert_eq!(liveness.silent_for(A, at(200)), Some(Duration::ZERO));
}

#[test]
fn a_host_that_starts_anew_numbers_its_streams_anew() {
    let mut liveness = only_a_vanishes(0);
    liveness.handle_opened(A, 9, M, at(100));
    assert_eq!(liveness.poll_output(), Some(Verdict::Ready(A)));
    liveness.handle_seen(A, 2, F, at(200));
    assert_eq!(liveness.poll_output(), None, "one told of late, for all that is known");
    assert_eq!(liveness.silent_for(A, at(200)), Some(Duration::from_millis(100)));
    liveness.handle_closed(A, 9, Closed::ByManager, at(300));
    liveness.handle_seen(A, 2, F, at(400));
    assert_eq!(liveness.poll_output(), Some(Verdict::Ready(A)));
    liveness.handle_seen(A, 2, F, at(500));
    assert_eq!(liveness.poll_output(), None, "it is known");
    assert_eq!(liveness.silent_for(A, at(500)), Some(Duration::ZERO));
}

#[test]
fn what_is_told_late_takes_nothing_back() {
    let mut liveness = only_a_vanishes(0);
    liveness.handle_seen(B, 1, M, at(1000));
    assert_eq!(liveness.silent_for(B, at(3000)), Some(Duration::from_millis(900)));
}

/// Four nodes of the leader and two of another manager, the last of which are not heard after this.
fn those_of_another_manager_vanish() -> Liveness {
    let mut liveness = Liveness::new(Duration::from_secs(1), M);
    for node in 1..=6 {
        let via = if node <= 4 { M } else { F };
        liveness.handle_opened(NodeId::from_u128(10 + node), 1, via, at(0));
        liveness.poll_output();
    }
    for node in 1..=4 {
        liveness.handle_heard(NodeId::from_u128(10 + node), at(2600));
    }
    liveness
}

#[test]
fn a_managers_nodes_that_vanish_together_are_held_unless_witnesses_deny_them() {
    let [e, f] = [15, 16].map(NodeId::from_u128);
    let mut liveness = those_of_another_manager_vanish();
    assert_eq!(next(&mut liveness), (2700, vec![Verdict::Ask(e), Verdict::Ask(f)]));
    for node in [e, f] {
        liveness.handle_asked(node, BTreeSet::new(), at(2700));
    }
    assert_eq!(next(&mut liveness), (3500, vec![]), "it may be their manager that is gone");
    assert!(liveness.is_management_lost(e) && liveness.is_management_lost(f));

    let mut liveness = those_of_another_manager_vanish();
    assert_eq!(next(&mut liveness), (2700, vec![Verdict::Ask(e), Verdict::Ask(f)]));
    let witness = NodeId::from_u128(11);
    for node in [e, f] {
        liveness.handle_asked(node, BTreeSet::from([witness]), at(2700));
        liveness.handle_witness(witness, node, Heard::No, at(3400));
    }
    assert_eq!(next(&mut liveness), (3500, vec![Verdict::Down(e), Verdict::Down(f)]));
}

#[test]
fn who_is_silent_is_not_asked_about_others() {
    let mut liveness = only_a_vanishes(0);
    assert_eq!(liveness.silent(at(1999)), BTreeSet::new());
    assert_eq!(liveness.silent(at(2100)), BTreeSet::from([A]));
    assert_eq!(next(&mut liveness), (2700, vec![Verdict::Ask(A)]));
    liveness.handle_asked(A, BTreeSet::from([B]), at(2700));
    liveness.handle_witness(B, A, Heard::Yes, at(2900));
    assert_eq!(liveness.silent(at(2900)), BTreeSet::from([A]), "it lives, and its stream does not");
    liveness.handle_heard(A, at(3000));
    assert_eq!(liveness.silent(at(3000)), BTreeSet::new());
}

#[test]
fn many_are_down_when_another_host_does_not_hear_them_either() {
    let mut liveness = two_of_three_vanish(&[C, M]);
    for witness in [C, M] {
        liveness.handle_witness(witness, A, Heard::No, at(3450));
        liveness.handle_witness(witness, B, Heard::No, at(3450));
    }
    assert_eq!(next(&mut liveness), (3500, vec![Verdict::Down(A), Verdict::Down(B)]));
}

#[test]
fn one_worker_that_only_the_managers_node_can_look_for_is_down() {
    let mut liveness = only_a_vanishes(0);
    assert_eq!(next(&mut liveness), (2700, vec![Verdict::Ask(A)]));
    liveness.handle_asked(A, BTreeSet::from([M]), at(2700));
    liveness.handle_witness(M, A, Heard::No, at(3500));
    assert_eq!(next(&mut liveness), (3500, vec![Verdict::Down(A)]));
}

#[test]
fn a_manager_that_starts_counts_from_its_start() {
    let mut liveness = Liveness::new(Duration::from_secs(2), M);
    liveness.handle_known(A, at(1000));
    assert_eq!(liveness.silent_for(A, at(1500)), Some(Duration::from_millis(500)));
    assert_eq!(next(&mut liveness), (6400, vec![Verdict::Ask(A)]), "times grow with the interval");
    liveness.handle_removed(A);
    assert_eq!(liveness.poll_timeout(), None);
}

#[test]
fn a_node_whose_open_stream_was_read_late_is_ready_again() {
    let mut liveness = only_a_vanishes(0);
    assert_eq!(next(&mut liveness), (2700, vec![Verdict::Ask(A)]));
    liveness.handle_asked(A, BTreeSet::new(), at(2700));
    assert_eq!(next(&mut liveness), (3500, vec![Verdict::Down(A)]));
    liveness.handle_heard(A, at(3600));
    assert!(liveness.has_output());
    assert_eq!(liveness.poll_output(), Some(Verdict::Ready(A)));

    let mut liveness = only_a_vanishes(0);
    assert_eq!(next(&mut liveness), (2700, vec![Verdict::Ask(A)]));
    liveness.handle_closed(A, 1, Closed::ByManager, at(2700));
    liveness.handle_asked(A, BTreeSet::new(), at(2700));
    assert_eq!(next(&mut liveness), (3500, vec![Verdict::Down(A)]));
    liveness.handle_heard(A, at(3600));
    assert_eq!(liveness.poll_output(), None, "a stream that was given up");
}

#[test]
fn a_longer_interval_puts_off_what_is_due_and_a_shorter_one_waits_for_those_not_told_yet() {
    let mut liveness = only_a_vanishes(0);
    liveness.set_interval(Duration::from_secs(2), at(2000));
    assert_eq!(next(&mut liveness), (5400, vec![Verdict::Ask(A)]));
    liveness.handle_asked(A, BTreeSet::from([B]), at(5400));
    assert_eq!(next(&mut liveness).0, 7500, "B is asked for, A is due at 7.6");

    let mut liveness = only_a_vanishes(0);
    liveness.set_interval(Duration::from_millis(500), at(2600));
    assert_eq!(next(&mut liveness).0, 2600 + 1350, "not at once, though A was silent for 2.6");
    assert_eq!(liveness.silent_for(A, at(2600)), Some(Duration::ZERO));

    // One that is down stays so.
    let mut liveness = only_a_vanishes(0);
    assert_eq!(next(&mut liveness), (2700, vec![Verdict::Ask(A)]));
    liveness.handle_asked(A, BTreeSet::new(), at(2700));
    assert_eq!(next(&mut liveness), (3500, vec![Verdict::Down(A)]));
    liveness.set_interval(Duration::from_millis(500), at(3500));
    assert_eq!(liveness.silent_for(A, at(3600)), Some(Duration::from_millis(3600)));
}
