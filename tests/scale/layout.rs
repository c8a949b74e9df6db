//! Who takes part where: networks whose sizes follow Zipf's law, spread evenly over the agents, and
//! endpoints on them.
//!
//! The largest network has `largest` agents, the k-th the k-th part of that, but at least
//! [`SMALLEST`], and there are so many that every agent takes part in [`NETWORKS_EACH`] of them. All
//! places in networks stand in a row, network by network; the agents take them in turn with a long
//! stride, so that a network's agents are any.

use std::collections::BTreeSet;

use anyhow::ensure;

/// Agents, networks and endpoints, each by number from 0.
#[derive(Clone, Debug)]
pub struct Layout {
    pub agents: usize,
    pub endpoints: usize,
    /// The first place of each network, and the end of all.
    places: Vec<usize>,
    /// What leads from a place to its agent, and back.
    stride: usize,
    back: usize,
}

impl Layout {
    pub fn new(agents: usize, endpoints: usize, largest: usize) -> anyhow::Result<Self> {
        ensure!(agents >= SMALLEST, "at least {SMALLEST} agents");
        ensure!((SMALLEST..=agents).contains(&largest), "the largest network has {largest} agents");
        let mut places = vec![0];
        while places[places.len() - 1] < NETWORKS_EACH * agents {
            let size = (largest / places.len()).max(SMALLEST);
            places.push(places[places.len() - 1] + size);
        }
        let each = places[places.len() - 1].div_ceil(agents);
        ensure!(endpoints >= each * agents, "at least {} endpoints", each * agents);
        // About the golden section of all, which keeps neighbours apart.
        let near = agents * 618 / 1000;
        let coprime = (near..).find(|stride| gcd(*stride, agents) == 1 && *stride > 0);
        let stride = coprime.unwrap_or(1) % agents.max(2);
        let back = (1..agents).find(|back| back * stride % agents == 1).unwrap_or(1);
        Ok(Self { agents, endpoints, places, stride, back })
    }

    pub fn networks(&self) -> usize {
        self.places.len() - 1
    }

    /// How many agents a network has.
    pub fn size(&self, network: usize) -> usize {
        self.places[network + 1] - self.places[network]
    }

    /// The agents of a network.
    pub fn agents_of(&self, network: usize) -> impl Iterator<Item = usize> {
        let places = self.places[network]..self.places[network + 1];
        places.map(|place| place * self.stride % self.agents)
    }

    /// The networks of an agent.
    pub fn networks_of(&self, agent: usize) -> Vec<usize> {
        let first = agent * self.back % self.agents;
        let end = self.places[self.networks()];
        let places = (first..end).step_by(self.agents);
        places.map(|place| self.places.partition_point(|begin| *begin <= place) - 1).collect()
    }

    /// The network of each endpoint of an agent.
    pub fn endpoints_of(&self, agent: usize) -> Vec<usize> {
        let networks = self.networks_of(agent);
        let more = usize::from(agent < self.endpoints % self.agents);
        let count = self.endpoints / self.agents + more;
        (0..count).map(|number| networks[number % networks.len()]).collect()
    }

    /// How many endpoints each network has.
    pub fn endpoints_on(&self) -> Vec<usize> {
        let mut counts = vec![0; self.networks()];
        for agent in 0..self.agents {
            self.endpoints_of(agent).into_iter().for_each(|network| counts[network] += 1);
        }
        counts
    }

    /// The other agents that an agent shares a network with.
    pub fn peers_of(&self, agent: usize) -> BTreeSet<usize> {
        let networks = self.networks_of(agent);
        let sharing = networks.into_iter().flat_map(|network| self.agents_of(network));
        sharing.filter(|other| *other != agent).collect()
    }
}

pub fn network_name(network: usize) -> String {
    format!("net{network}")
}

/// A network's subnet, which holds that many endpoints.
pub fn subnet(network: usize, endpoints: usize) -> String {
    match endpoints {
        0..200 => format!("100.{}.{}.0/24", 64 + network / 256, network % 256),
        200.. => format!("10.{network}.0.0/16"),
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Agents of the smallest networks: those of one service's tasks, say.
const SMALLEST: usize = 5;
const NETWORKS_EACH: usize = 2;
