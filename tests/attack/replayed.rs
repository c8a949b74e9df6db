//! What was delivered once is never delivered again, wherever the copy comes from; and a recorded
//! handshake changes nothing.

use overlay::{io::udp::DataSocket, types::DropReason};

use crate::{
    forged::{Attack, BATCH, COUNT, MINE, blue, packet, send, sender},
    lab::{self, Host, Lab, wait_until},
    member::{LANES, seal},
    victim::Victim,
};

/// Genuine datagrams that are recorded: on lane 1 more than the replay window holds, so that copies
/// are too old to tell as well as seen.
const RECORDED: u64 = 20_000;
/// Ports that copies come from.
const PORTS: usize = 64;

/// The test.
pub fn replayed_datagrams_are_dropped_and_counted() {
    let lab = Lab::new();
    let victim = Victim::new(&lab);
    let attack = Attack::new(&lab, &victim);
    let recorded: Vec<Vec<u8>> = (0..RECORDED)
        .map(|i| seal(&attack.key, recorded_lane(i), blue(), &packet(MINE, i)))
        .collect();
    let before = victim.counters(&lab);
    attack.deliver(&recorded);
    let after = victim.counters(&lab);
    assert_eq!(before.drops, after.drops, "each is taken once");

    let member = lab::socket(lab::MEMBER).ip().to_string();
    let ports: Vec<_> = (0..PORTS).map(|_| sender(&lab, Host::Member, &member)).collect();
    let third = vec![sender(&lab, Host::Third, lab::THIRD)];
    let mut wrong = Vec::new();
    for (name, senders) in [
        ("from the same port", std::slice::from_ref(&attack.sender)),
        ("from 64 other ports", &ports),
        ("from a third host", &third),
    ] {
        wrong.extend(replay(&lab, &victim, name, senders, &recorded));
    }
    wrong.extend(replay_handshake(&lab, &victim, &attack));
    attack.genuine_is_delivered(&lab, &victim);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The first half goes by lane 1, the rest by every lane.
fn recorded_lane(i: u64) -> u8 {
    if i < RECORDED / 2 { 1 } else { (i / 50 % u64::from(LANES)) as u8 }
}

/// Sends copies of all that is recorded, each batch from the next sender.
fn replay(
    lab: &Lab,
    victim: &Victim,
    name: &'static str,
    senders: &[DataSocket],
    recorded: &[Vec<u8>],
) -> Vec<String> {
    let before = victim.counters(lab);
    let dropped = victim.dropped();
    let mut sent = 0;
    let mut turn = (0..senders.len()).cycle();
    for _ in 0..COUNT / RECORDED {
        for batch in recorded.chunks(BATCH as usize) {
            for part in batch.chunks(BATCH as usize / PORTS) {
                send(&senders[turn.next().expect("a sender")], part);
            }
            sent += batch.len() as u64;
            wait_until(
                name,
                || victim.dropped() - dropped >= sent,
                || format!("sent {sent}, counted {:?}", victim.counters(lab).drops),
            );
        }
    }
    assert_eq!(sent, COUNT);
    let expected = before.with_drops(DropReason::Replay, COUNT, true);
    let found = victim.counters(lab).difference(&expected);
    println!("{COUNT} x replay {name}: {}", if found.is_empty() { "dropped" } else { "WRONG" });
    found.into_iter().map(|difference| format!("{name}: {difference}")).collect()
}

/// A recorded initiation is refused; whether as old or as beyond what load allows depends on time,
/// so the two together are exact.
fn replay_handshake(lab: &Lab, victim: &Victim, attack: &Attack) -> Vec<String> {
    let before = victim.counters(lab);
    let dropped = victim.dropped();
    let copies = vec![attack.member.initiation.clone(); 512];
    let mut sent = 0;
    while sent < COUNT {
        let batch = &copies[..(COUNT - sent).min(512) as usize];
        send(&attack.sender, batch);
        sent += batch.len() as u64;
        wait_until(
            "recorded initiations",
            || victim.dropped() - dropped >= sent,
            || format!("sent {sent}, counted {:?}", victim.counters(lab).drops),
        );
    }
    let after = victim.counters(lab);
    let rose = |reason| after.drops.count(reason) - before.drops.count(reason);
    let invalid = rose(DropReason::HandshakeInvalid);
    let expected = before.with_drops(DropReason::HandshakeInvalid, invalid, false).with_drops(
        DropReason::HandshakeOverload,
        COUNT - invalid,
        false,
    );
    println!("{COUNT} x recorded initiation: {invalid} as old, the rest beyond the load");
    let mut found = after.difference(&expected);
    if invalid == 0 {
        found.push("no recorded initiation was looked at".to_owned());
    }
    found
}
