//! What goes wrong in a run: drawn from its seed, one after the other, at the leader as often as at all
//! the others together.

use std::fmt;

use super::{network::Illness, world::World};
use crate::disk::Fault as DiskFault;

impl World {
    /// Has something go wrong.
    pub fn fault(&mut self) {
        let at = self.victim();
        let number = self.managers[at].number;
        let until = self.now() + 200 + self.random.below(3500) as u64;
        if self.managers[at].running.is_none() {
            return;
        }
        match self.random.below(31) {
            0 | 1 => self.kill(at),
            2 | 3 => self.cut_power(at),
            4..=6 => self.cut_power_soon(at),
            7 | 8 => {
                self.harm(format_args!("{number} is cut off until {until}"));
                self.both_ways(at, until, Illness::Cut);
            }
            9 => {
                self.harm(format_args!("{number} is not heard until {until}"));
                self.ways_from(at, until, Illness::Cut);
            }
            10 => {
                self.harm(format_args!("{number} hears nothing until {until}"));
                self.ways_to(at, until, Illness::Cut);
            }
            11 | 12 => self.split(until),
            13 | 14 => self.pause(at, until),
            15 | 16 => {
                let (ms, lost) = (20 + self.random.below(300) as u64, self.random.below(30));
                self.harm(format_args!(
                    "{number} is reached in up to {ms} ms, {lost} % are lost, until {until}"
                ));
                self.both_ways(at, until, Illness::Slow(ms, lost));
            }
            17 | 18 => self.jump(at),
            19 | 20 => {
                let ms = 20 + self.random.below(180) as u64;
                self.harm(format_args!("{number} writes in up to {ms} ms until {until}"));
                self.slow_disk(at, ms, until);
            }
            21 => self.fail_disk(at),
            22 => self.replace(at),
            23..=27 => self.fault_of_agent(until),
            _ => {
                let faults = self.figures.faults;
                for at in 0..self.managers.len() {
                    if !self.managers[at].retired {
                        self.cut_power(at);
                    }
                }
                // It is one that befalls them all.
                self.figures.faults = faults + 1;
            }
        }
    }

    /// Notes that something goes wrong.
    pub fn harm(&mut self, what: fmt::Arguments<'_>) {
        self.figures.faults += 1;
        self.note(format_args!("FAULT {what}"));
    }

    fn victim(&mut self) -> usize {
        let leader = self.leader();
        match leader {
            Some(leader) if self.random.below(2) == 0 => leader,
            Some(_) | None => self.random.below(self.managers.len()),
        }
    }

    fn kill(&mut self, at: usize) {
        let number = self.managers[at].number;
        self.harm(format_args!("{number} is killed"));
        self.managers[at].kill();
        self.start_soon(at);
    }

    fn cut_power(&mut self, at: usize) {
        let number = self.managers[at].number;
        self.harm(format_args!("{number} loses power"));
        self.managers[at].cut_power(&mut self.random);
        self.start_soon(at);
    }

    /// In the middle of a transaction.
    fn cut_power_soon(&mut self, at: usize) {
        let (number, after) = (self.managers[at].number, self.random.below(40) as u64);
        self.harm(format_args!("{number} loses power {after} disk operations later"));
        self.managers[at].disk.plan(after, DiskFault::PowerCut);
    }

    fn fail_disk(&mut self, at: usize) {
        let (number, after) = (self.managers[at].number, self.random.below(20) as u64);
        self.harm(format_args!("{number}'s disk fails {after} operations later"));
        self.managers[at].disk_fails = true;
        self.managers[at].disk.plan(after, DiskFault::Error(EIO));
    }

    fn pause(&mut self, at: usize, until: u64) {
        let now = self.now();
        let number = self.managers[at].number;
        if let Some(running) = &mut self.managers[at].running {
            running.paused.get_or_insert((now, until));
            self.harm(format_args!("{number} is stopped until {until}"));
        }
    }

    fn jump(&mut self, at: usize) {
        let (number, ms) = (self.managers[at].number, 100 + self.random.below(2500) as u64);
        if let Some(running) = &mut self.managers[at].running
            && running.paused.is_none()
        {
            running.jump(ms);
            self.harm(format_args!("{number}'s clock jumps by {ms} ms"));
        }
    }

    fn slow_disk(&mut self, at: usize, ms: u64, until: u64) {
        let mut pace = self.managers[at].pace.lock().unwrap();
        (pace.most_ms, pace.until) = (ms, until);
    }

    /// One that starts anew or forgets something, or whose streams are slow or cut.
    fn fault_of_agent(&mut self, until: u64) {
        let at = self.random.below(self.agents.len());
        let number = self.agents[at].number;
        let illness = match self.random.below(6) {
            0 => {
                self.harm(format_args!("agent {number} starts anew"));
                self.hang_up(at);
                return self.agents[at].restart();
            }
            1 | 2 => {
                self.harm(format_args!("agent {number} forgets the newest step"));
                return self.agents[at].fall_back();
            }
            3 => Illness::Cut,
            _ => Illness::Slow(self.random.below(100) as u64, 10 + self.random.below(40)),
        };
        self.harm(format_args!("agent {number}'s ways: {illness:?} until {until}"));
        for manager in 0..self.managers.len() {
            let manager = self.managers[manager].number;
            self.network.fall_ill(number, manager, until, illness);
            self.network.fall_ill(manager, number, until, illness);
        }
    }

    fn others(&self, at: usize) -> Vec<u128> {
        let own = self.managers[at].number;
        self.managers.iter().map(|manager| manager.number).filter(|other| *other != own).collect()
    }

    fn ways_from(&mut self, at: usize, until: u64, illness: Illness) {
        for other in self.others(at) {
            self.network.fall_ill(self.managers[at].number, other, until, illness);
        }
    }

    fn ways_to(&mut self, at: usize, until: u64, illness: Illness) {
        for other in self.others(at) {
            self.network.fall_ill(other, self.managers[at].number, until, illness);
        }
    }

    fn both_ways(&mut self, at: usize, until: u64, illness: Illness) {
        self.ways_from(at, until, illness);
        self.ways_to(at, until, illness);
    }

    /// Two halves that do not reach each other.
    fn split(&mut self, until: u64) {
        let sides: Vec<bool> = self.managers.iter().map(|_| self.random.below(2) == 0).collect();
        let numbers: Vec<u128> = self.managers.iter().map(|manager| manager.number).collect();
        self.harm(format_args!("{numbers:?} are split as {sides:?} until {until}"));
        for (from, side) in numbers.iter().zip(&sides) {
            for (to, _) in numbers.iter().zip(&sides).filter(|(_, other)| *other != side) {
                self.network.fall_ill(*from, *to, until, Illness::Cut);
            }
        }
    }
}

const EIO: i32 = 5;
