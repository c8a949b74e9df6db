//! What runs have found, each by itself.

use std::{sync::mpsc, thread, time::Duration};

use overlay::{
    engine::cluster::Command,
    types::{NodeId, NodeStatus},
};

use super::{client::Ask, network::Illness, trust, world::World};

/// Does something with managers that have founded a cluster, in a few ways; it ends within a while.
fn case(case: fn(&mut World) -> Result<(), String>) {
    let (ended, is_ended) = mpsc::channel();
    thread::spawn(move || {
        let came = (0..20).try_for_each(|seed| {
            let mut world = World::new(seed, trust().clone());
            let came = world.set_up().and_then(|()| case(&mut world));
            let events = world.bus.shared().trace.newest().join("\n");
            came.map_err(|wrong| format!("{events}\nseed {seed}: {wrong}"))
        });
        let _ = ended.send(came);
    });
    // A moment that does not end is one in which somebody asks without a pause.
    let came = is_ended.recv_timeout(Duration::from_secs(60)).expect("time stands still");
    came.unwrap_or_else(|wrong| panic!("{wrong}"));
}

fn cut_all_power(world: &mut World) {
    for at in 0..world.managers.len() {
        world.managers[at].cut_power(&mut world.random);
    }
}

fn await_start(world: &mut World, at: usize) -> Result<(), String> {
    world.start(at)?;
    while world.managers[at].log().is_none() {
        world.step()?;
    }
    Ok(())
}

#[test]
fn one_that_knows_no_leader_waits_for_one() {
    case(|world| {
        cut_all_power(world);
        await_start(world, 0)?;
        let asked = world.now();
        world.ask(0, Ask::Read);
        world.await_answer(0)?;
        let took = world.now() - asked;
        assert_eq!(world.bus.shared().history.unknown, 1);
        assert!((3900..4100).contains(&took), "{took} ms");
        Ok(())
    });
}

#[test]
fn a_leader_that_starts_again_lets_read_what_was_acknowledged() {
    case(|world| {
        let leader = world.leader().ok_or("nobody leads")?;
        let last = vec![world.drawn.network()];
        world.ask(leader, Ask::Write(last));
        world.await_answer(leader)?;
        let (told, reads) = {
            let history = &world.bus.shared().history;
            (history.told(), history.reads)
        };
        cut_all_power(world);
        for at in 0..world.managers.len() {
            world.start(at)?;
        }
        while world.managers[leader].log().is_none() {
            world.step()?;
        }
        // Its answer is judged by what was told.
        world.ask(leader, Ask::Read);
        world.await_answer(leader)?;
        let history = &world.bus.shared().history;
        assert_eq!((history.reads, history.told()), (reads + 1, told));
        Ok(())
    });
}

#[test]
fn a_second_try_that_comes_late_is_known() {
    case(|world| {
        let leader = world.leader().ok_or("nobody leads")?;
        let late = (leader + 1) % world.managers.len();
        // It does not hear that its network was made, and asks for it again when many others have asked.
        let (from, to) = (world.managers[leader].number, world.managers[late].number);
        let until = world.now() + 2600;
        world.network.fall_ill(from, to, until, Illness::Cut);
        let network = vec![world.drawn.network()];
        world.ask(late, Ask::Write(network));
        while world.now() < until {
            for at in 0..world.managers.len() {
                if world.clients[at].call.is_none() {
                    let (node, status) = (NodeId::from_u128(101), NodeStatus::Ready);
                    let command = Command::SetNodeStatus { node, status };
                    world.ask(at, Ask::Write(vec![command]));
                }
            }
            world.step()?;
        }
        world.await_answer(late)?;
        let history = &world.bus.shared().history;
        assert!(history.writes > 100, "{} writes", history.writes);
        assert_eq!((history.unknown, history.refused), (0, 0));
        Ok(())
    });
}
