//! Managers that come and go: one is taken out for good, and another, which nobody has heard of before,
//! comes in its place. The leader's client asks for it, one step at a time.

use std::collections::BTreeSet;

use overlay::types::NodeId;

use super::{
    manager::Manager,
    world::{Client, World},
};

impl World {
    /// Has another manager come in the place of one, some time.
    pub fn replace(&mut self, at: usize) {
        let gone = self.managers[at].number;
        let settled = self.managers.iter().filter(|manager| !manager.retired).count();
        if self.figures.replaced >= MOST_REPLACED || settled != self.wanted.len() {
            return;
        }
        let new = self.managers.len() as u128 + 1;
        self.harm(format_args!("manager {gone} is replaced by {new}"));
        self.figures.replaced += 1;
        self.managers.push(Manager::new(new, true, &mut self.random));
        self.clients.push(Client::default());
        self.wanted.remove(&self.managers[at].node());
        self.wanted.insert(NodeId::from_u128(new));
        self.start_soon(self.managers.len() - 1);
    }

    /// What a manager that leads is to change of the members now.
    pub fn next_members(&self, at: usize) -> Option<BTreeSet<NodeId>> {
        let settled = self.managers.iter().filter(|manager| !manager.retired).count();
        let log = self.managers[at].log().filter(|_| settled != self.wanted.len())?;
        let leads = log.standing().is_some_and(|standing| standing.leads);
        let mut members = log.members();
        if !leads || members == self.wanted || members.is_empty() {
            return None;
        }
        // In before out.
        if let Some(new) = self.wanted.difference(&members).next().copied() {
            members.insert(new);
        } else if let Some(gone) = members.difference(&self.wanted).next().copied() {
            members.remove(&gone);
        }
        Some(members)
    }

    /// Ends those that do not decide any more, as whoever leads has it.
    pub fn retire(&mut self) {
        if self.managers.iter().filter(|manager| !manager.retired).count() == self.wanted.len() {
            return;
        }
        let Some(leader) = self.leader().and_then(|at| self.managers[at].log()) else { return };
        if leader.members() != self.wanted {
            return;
        }
        for at in 0..self.managers.len() {
            let manager = &mut self.managers[at];
            if !manager.retired && !self.wanted.contains(&manager.node()) {
                manager.retired = true;
                manager.kill();
                let number = manager.number;
                self.note(format_args!("manager {number} has no say any more"));
                self.start_soon(at);
            }
        }
    }

    /// Waits until those decide that are to.
    pub fn settle_members(&mut self, end: u64) -> Result<(), String> {
        while self.managers.iter().filter(|manager| !manager.retired).count() != self.wanted.len() {
            self.call();
            self.step()?;
            if self.now() > end {
                return Err("others decide than are to although all is well".into());
            }
        }
        for at in 0..self.managers.len() {
            self.await_answer(at)?;
        }
        Ok(())
    }
}

/// In one run.
const MOST_REPLACED: u64 = 2;
