//! What runs have found, each by itself.

use std::{sync::mpsc, thread, time::Duration};

use super::{client::Ask, trust, world::World};

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
