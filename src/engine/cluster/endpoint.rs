//! Endpoints: their name and addresses, given and freed with them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Applied, CreateEndpoint, Event, Kind, Outcome, Refusal, State,
    limits::{MAX_ALIASES, MAX_ENDPOINTS},
    network::NetworkEntry,
    subnet::{self, AddressPool, Holder},
    unknown,
};
use crate::types::{Endpoint, EndpointId, Name, NodeId};

impl State {
    pub(super) fn create_endpoint(&mut self, create: CreateEndpoint) -> Result<Applied, Refusal> {
        if self.endpoints.contains_key(&create.id) {
            return Err(Refusal::IdUsed { kind: Kind::Endpoint });
        }
        if self.endpoints.len() >= MAX_ENDPOINTS {
            return Err(Refusal::TooMany { kind: Kind::Endpoint, limit: MAX_ENDPOINTS });
        }
        if create.aliases.len() > MAX_ALIASES {
            return Err(Refusal::TooManyAliases);
        }
        if !self.nodes.contains_key(&create.node) {
            return Err(unknown(Kind::Node, create.node));
        }
        let entry = self.networks.get(&create.network);
        let entry = entry.ok_or_else(|| unknown(Kind::Network, create.network))?;
        let name = choose_name(entry, &create)?;
        let addresses = self.choose_addresses(entry, &create.addresses)?;

        let endpoint = Endpoint {
            id: create.id,
            name,
            network: create.network,
            node: create.node,
            addresses,
            aliases: create.aliases,
        };
        let entry = self.networks.get_mut(&create.network);
        let entry = entry.ok_or_else(|| unknown(Kind::Network, create.network))?;
        for address in &endpoint.addresses {
            if let Some(pool) = pool_of(entry, address.addr()) {
                pool.numbers.take(subnet::number(address.addr()), Holder::Endpoint(endpoint.id));
            }
        }
        entry.names.insert(endpoint.name.clone(), endpoint.id);
        self.node_endpoints.entry(endpoint.node).or_default().insert(endpoint.id);
        self.endpoints.insert(endpoint.id, endpoint.clone());
        let events = vec![Event::EndpointCreated(endpoint.clone())];
        Ok(Applied { outcome: Outcome::Endpoint(endpoint), events })
    }

    /// One that is there already is taken in.
    pub(super) fn adopt_endpoint(&mut self, endpoint: Endpoint) -> Result<Applied, Refusal> {
        match self.endpoints.get(&endpoint.id) {
            Some(there) if there.node == endpoint.node => {
                Ok(Applied { outcome: Outcome::Endpoint(there.clone()), events: Vec::new() })
            }
            Some(there) => Err(Refusal::NotYours { endpoint: there.name.clone() }),
            None => self.create_endpoint(CreateEndpoint {
                id: endpoint.id,
                name: Some(endpoint.name),
                network: endpoint.network,
                node: endpoint.node,
                addresses: endpoint.addresses.iter().map(IpNet::addr).collect(),
                aliases: endpoint.aliases,
            }),
        }
    }

    pub(super) fn remove_endpoint(
        &mut self,
        id: EndpointId,
        node: NodeId,
    ) -> Result<Applied, Refusal> {
        let endpoint = self.endpoints.get(&id).ok_or_else(|| unknown(Kind::Endpoint, id))?;
        if endpoint.node != node {
            return Err(Refusal::NotYours { endpoint: endpoint.name.clone() });
        }
        if self.endpoint_tasks.contains_key(&id) {
            return Err(Refusal::OfTask { endpoint: endpoint.name.clone() });
        }
        let events = self.free_endpoint(id).map(Event::EndpointRemoved).into_iter().collect();
        Ok(Applied { outcome: Outcome::Done, events })
    }

    /// Takes an endpoint out and frees what it held.
    pub(super) fn free_endpoint(&mut self, id: EndpointId) -> Option<Endpoint> {
        let endpoint = self.endpoints.remove(&id)?;
        if let Some(of_node) = self.node_endpoints.get_mut(&endpoint.node) {
            of_node.remove(&id);
            if of_node.is_empty() {
                self.node_endpoints.remove(&endpoint.node);
            }
        }
        let entry = self.networks.get_mut(&endpoint.network)?;
        entry.names.remove(&endpoint.name);
        for address in &endpoint.addresses {
            if let Some(pool) = pool_of(entry, address.addr()) {
                pool.numbers.free(subnet::number(address.addr()));
            }
        }
        Some(endpoint)
    }

    /// One address a subnet: the chosen one, or the next.
    fn choose_addresses(
        &self,
        entry: &NetworkEntry,
        chosen: &[IpAddr],
    ) -> Result<Vec<IpNet>, Refusal> {
        let network = || entry.network.name.clone();
        let subnets = &entry.network.subnets;
        if let Some(addr) = chosen.iter().find(|addr| !subnets.iter().any(|s| s.contains(*addr))) {
            let (addr, subnets) = (*addr, subnet::list(subnets));
            return Err(Refusal::AddressOutside { addr, network: network(), subnets });
        }
        let choose = |pool: &AddressPool| {
            let mut inside = chosen.iter().filter(|addr| pool.subnet.contains(*addr));
            let addr = match (inside.next(), inside.next()) {
                (Some(first), Some(second)) => {
                    let (first, second) = (*first, *second);
                    return Err(Refusal::AddressFamilyTwice { first, second });
                }
                (Some(addr), None) => self.check_chosen(entry, pool, *addr)?,
                (None, _) => {
                    let subnet = pool.subnet;
                    let exhausted = Refusal::AddressesExhausted { subnet, network: network() };
                    pool.next().ok_or(exhausted)?
                }
            };
            Ok(IpNet::new_assert(addr, pool.subnet.prefix_len()))
        };
        entry.pools.iter().map(choose).collect()
    }

    fn check_chosen(
        &self,
        entry: &NetworkEntry,
        pool: &AddressPool,
        addr: IpAddr,
    ) -> Result<IpAddr, Refusal> {
        if !subnet::is_host(&pool.subnet, addr) {
            return Err(Refusal::AddressReserved { addr, subnet: pool.subnet });
        }
        match pool.numbers.holder(subnet::number(addr)) {
            None => Ok(addr),
            Some(Holder::Gateway) => {
                Err(Refusal::AddressIsGateway { addr, network: entry.network.name.clone() })
            }
            Some(Holder::Endpoint(id)) => {
                let endpoint = self.endpoints.get(id).map(|endpoint| endpoint.name.clone());
                let endpoint = endpoint.ok_or_else(|| unknown(Kind::Endpoint, id))?;
                Err(Refusal::AddressInUse { addr, endpoint })
            }
        }
    }
}

fn choose_name(entry: &NetworkEntry, create: &CreateEndpoint) -> Result<Name, Refusal> {
    let name = match &create.name {
        Some(name) => name.clone(),
        None => {
            // Twelve characters are what tables show of an id; the whole one is nobody else's.
            let id = create.id.to_string();
            let names = [&id[..12], id.as_str()].into_iter().filter_map(|text| text.parse().ok());
            let mut free = names.filter(|name: &Name| !entry.names.contains_key(name));
            free.next().ok_or(Refusal::IdUsed { kind: Kind::Endpoint })?
        }
    };
    match entry.names.get(&name) {
        Some(taken) => {
            Err(Refusal::NameTaken { kind: Kind::Endpoint, name, id: taken.to_string() })
        }
        None => Ok(name),
    }
}

fn pool_of(entry: &mut NetworkEntry, addr: IpAddr) -> Option<&mut AddressPool> {
    entry.pools.iter_mut().find(|pool| pool.subnet.contains(&addr))
}
