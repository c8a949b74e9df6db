//! What is done to managers, and undone.

use std::fmt;

use clap::ValueEnum;
use rustix::process::Signal;

use super::cluster::{Cluster, node_name};

/// What befalls the manager that leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// It is killed, and started again
    Kill,
    /// It stands still, and goes on
    Stop,
    /// It is cut off, alone or with others, or others are
    Cut,
}

/// A fault of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blow {
    /// Whom it hits: less than half of the managers.
    pub whom: Vec<usize>,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Kill,
    Stop,
    /// Their links are down, and they see that.
    Unplug,
    /// They are on another bridge: nothing arrives, and nobody sees why. They reach each other.
    Split,
}

impl Fault {
    /// What is done in a round.
    pub fn blow(self, round: usize, managers: usize, leader: usize) -> Blow {
        let next = |steps: usize| (leader + steps) % managers;
        let (whom, how) = match self {
            Self::Kill => (vec![leader], How::Kill),
            Self::Stop => (vec![leader], How::Stop),
            Self::Cut if managers < 5 => match round % 3 {
                0 => (vec![leader], How::Unplug),
                1 => (vec![leader], How::Split),
                _ => (vec![next(1 + round / 3 % 2)], How::Split),
            },
            Self::Cut => match round % 4 {
                0 => (vec![leader], How::Unplug),
                1 => (vec![leader, next(1)], How::Split),
                2 => (vec![next(1), next(2)], How::Split),
                _ => (vec![leader], How::Split),
            },
        };
        Blow { whom, how }
    }
}

impl Blow {
    /// Strikes.
    pub fn strike(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let bridge = "br1";
        for manager in &self.whom {
            let node = node_name(*manager);
            match self.how {
                How::Kill => cluster.signal(*manager, Signal::KILL)?,
                How::Stop => cluster.signal(*manager, Signal::STOP)?,
                How::Unplug => cluster.lab.ip_in(&node, "link set u0 down")?,
                How::Split => {
                    cluster.lab.ip_in("net", &format!("link set {node} master {bridge}"))?;
                }
            }
        }
        Ok(())
    }

    /// Undoes it.
    pub fn heal(&self, cluster: &mut Cluster) -> anyhow::Result<()> {
        for manager in &self.whom {
            let node = node_name(*manager);
            match self.how {
                How::Kill => cluster.start(*manager)?,
                How::Stop => cluster.signal(*manager, Signal::CONT)?,
                How::Unplug => cluster.lab.ip_in(&node, "link set u0 up")?,
                How::Split => cluster.lab.ip_in("net", &format!("link set {node} master br0"))?,
            }
        }
        Ok(())
    }

    /// Makes what the faults need beside the underlay.
    pub fn prepare(cluster: &Cluster) -> anyhow::Result<()> {
        cluster.lab.ip_in("net", "link add br1 type bridge mcast_snooping 0")?;
        cluster.lab.ip_in("net", "link set br1 mtu 1500 up")
    }

    /// Whether those it hits run on by themselves meanwhile.
    pub fn is_cut(&self) -> bool {
        match self.how {
            How::Unplug | How::Split => true,
            How::Kill | How::Stop => false,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Cut => "cut",
        })
    }
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whom: Vec<String> = self.whom.iter().map(|manager| node_name(*manager)).collect();
        let how = match self.how {
            How::Kill => "killed",
            How::Stop => "stopped",
            How::Unplug => "unplugged",
            How::Split => "split off",
        };
        write!(f, "{} {how}", whom.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blow_hits_a_minority_and_all_kinds_come() {
        for managers in [3, 5] {
            let (mut with, mut without, mut several) = (0, 0, 0);
            for round in 0..12 {
                let leader = round % managers;
                let blow = Fault::Cut.blow(round, managers, leader);
                let whom: std::collections::BTreeSet<_> = blow.whom.iter().collect();
                assert!(whom.len() == blow.whom.len() && whom.len() * 2 < managers, "{blow}");
                if whom.contains(&leader) {
                    with += 1
                } else {
                    without += 1
                }
                several += usize::from(whom.len() > 1);
                assert_eq!(Fault::Kill.blow(round, managers, leader).whom, [leader]);
            }
            assert!(with > without && without >= 3, "{managers}: {with} and {without}");
            assert_eq!(several > 0, managers == 5);
        }
    }
}
