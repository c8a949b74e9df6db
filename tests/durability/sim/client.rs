//! A client of a manager: writes and reads, one call after the other, and tells the history of it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use futures_util::future::join_all;
use overlay::{
    engine::cluster::{Command, CreateEndpoint, CreateNetwork, Ipv6, Outcome, State},
    manager::log::{Log, MembersError, ProposeError},
    types::{Endpoint, EndpointId, Network, NetworkId, NodeId, NodeStatus, Revision},
};

use super::network::Bus;
use crate::disk::Random;

type Answer = Result<(Revision, Outcome), ProposeError>;

/// What a call came to.
pub enum Came {
    Written(Vec<(Command, Answer)>),
    Read(Box<Result<State, ProposeError>>),
    Changed(Result<(), MembersError>),
}

/// A call on its way.
pub struct Call {
    pub began: u64,
    pub told: Revision,
    pub came: Arc<Mutex<Option<Came>>>,
}

impl Call {
    /// Makes one that begins now, and the place where its end is put.
    pub fn new(bus: &Bus) -> Self {
        let shared = bus.shared();
        Self { began: shared.trace.now, told: shared.history.told(), came: Arc::default() }
    }
}

/// What a client asks for.
pub enum Ask {
    /// A few things at once.
    Write(Vec<Command>),
    /// What is no older than the call.
    Read,
    /// That these decide.
    Members(BTreeSet<NodeId>),
}

/// Asks, and puts the answer where it is looked for.
pub async fn ask(log: Arc<Log>, ask: Ask, came: Arc<Mutex<Option<Came>>>) {
    let answer = match ask {
        Ask::Write(commands) => {
            let proposals = commands.iter().map(|command| log.propose(command.clone()));
            let answers = join_all(proposals).await;
            Came::Written(commands.into_iter().zip(answers).collect())
        }
        Ask::Read => Came::Read(Box::new(log.catch_up().await.map(|()| log.read(State::clone)))),
        // Whoever does not lead any more gives it up.
        Ask::Members(members) => Came::Changed(tokio::select! {
            biased;
            changed = log.set_members(members) => changed,
            _ = log.not_led() => Err(MembersError::NotLeader(None)),
        }),
    };
    *came.lock().unwrap() = Some(answer);
}

/// Takes in how a call ended.
pub fn end(bus: &Bus, who: u128, call: &Call, came: Came) -> Result<(), String> {
    let mut shared = bus.shared();
    let took = shared.trace.now - call.began;
    match came {
        Came::Written(written) => {
            for (command, answer) in written {
                let came = match answer {
                    Ok(made) => Ok(made),
                    Err(ProposeError::Refused(refusal)) => Err(refusal),
                    Err(ProposeError::NoLeader) => {
                        shared.history.unknown += 1;
                        shared.trace.note(format_args!("manager {who} knows no leader to write"));
                        continue;
                    }
                    Err(error) => return Err(format!("manager {who} does not write: {error}")),
                };
                let revision = came.as_ref().map_or(0, |made| made.0);
                shared.trace.note(format_args!("manager {who} wrote {revision} in {took} ms"));
                shared.history.handle_written(call.told, &command, came);
            }
        }
        Came::Read(read) => match *read {
            Ok(state) => {
                let revision = state.revision();
                shared.trace.note(format_args!("manager {who} read {revision} in {took} ms"));
                shared.history.handle_read(who, call.told, &state);
            }
            Err(ProposeError::NoLeader) => {
                shared.history.unknown += 1;
                shared.trace.note(format_args!("manager {who} knows no leader to read"));
            }
            Err(error) => return Err(format!("manager {who} does not read: {error}")),
        },
        Came::Changed(Ok(())) => {
            shared.trace.note(format_args!("manager {who} changed members in {took} ms"));
        }
        Came::Changed(Err(MembersError::Stopped(stopped))) => {
            return Err(format!("manager {who} does not change members: {stopped}"));
        }
        Came::Changed(Err(error)) => {
            shared.trace.note(format_args!("manager {who} does not change members: {error}"));
        }
    }
    Ok(())
}

/// Draws commands, of which each has ids of its own.
pub struct Drawn {
    made: u128,
    nodes: Vec<NodeId>,
}

impl Drawn {
    /// Draws for endpoints on these nodes.
    pub fn new(nodes: Vec<NodeId>) -> Self {
        Self { made: 1000, nodes }
    }

    /// Draws a network that nobody has.
    pub fn network(&mut self) -> Command {
        self.made += 1;
        network(self.made)
    }

    /// Draws the next command for a state that may be an old one when it comes.
    pub fn next(&mut self, state: &State, random: &mut Random) -> Command {
        self.made += 1;
        let networks: Vec<&Network> = state.networks().collect();
        let endpoints: Vec<&Endpoint> = state.endpoints().collect();
        if random.below(100) == 0 {
            return Command::StartEpoch;
        }
        let removes = random.below(100);
        if networks.len() < 2 || (networks.len() < MAX_NETWORKS && random.below(8) == 0) {
            return network(self.made);
        }
        if removes < 4 {
            return Command::RemoveNetwork(networks[random.below(networks.len())].id);
        }
        let node = self.nodes[random.below(self.nodes.len())];
        if removes < 12 {
            let status = if random.below(2) == 0 { NodeStatus::Ready } else { NodeStatus::Down };
            return Command::SetNodeStatus { node, status };
        }
        let full = endpoints.len() * 100 / MAX_ENDPOINTS;
        if !endpoints.is_empty() && random.below(100) < full {
            let endpoint = endpoints[random.below(endpoints.len())];
            // Sometimes it is another's.
            let node = if random.below(20) == 0 { node } else { endpoint.node };
            return Command::RemoveEndpoint { endpoint: endpoint.id, node };
        }
        Command::CreateEndpoint(CreateEndpoint {
            id: EndpointId::from_u128(self.made),
            name: None,
            network: networks[random.below(networks.len())].id,
            node,
            addresses: Vec::new(),
            aliases: Vec::new(),
        })
    }
}

fn network(made: u128) -> Command {
    Command::CreateNetwork(CreateNetwork {
        id: NetworkId::from_u128(made),
        name: format!("net{made}").parse().unwrap(),
        subnets: Vec::new(),
        gateways: Vec::new(),
        ipv6: if made.is_multiple_of(3) { Ipv6::Automatic } else { Ipv6::None },
        mtu: None,
        internal: false,
        vni: None,
        labels: Default::default(),
    })
}

/// A state that is small is quickly compared.
const MAX_NETWORKS: usize = 6;
const MAX_ENDPOINTS: usize = 24;
