//! Networks: their name, VNI, subnets and gateways, given and freed with them.

use imbl::OrdMap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{
    Applied, Cluster, CreateNetwork, Event, Ipv6, Kind, Outcome, Refusal, State,
    limits::{MAX_NETWORKS, MIN_MTU_IPV6, MTU_RANGE, check_labels},
    subnet::{self, AddressPool},
    unknown,
};
use crate::types::{Encap, EndpointId, Name, Network, NetworkId, Vni};

/// A network with what is handed out on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetworkEntry {
    pub network: Network,
    /// One a subnet, in the subnets' order.
    pub pools: Vec<AddressPool>,
    /// The endpoints on it.
    pub names: OrdMap<Name, EndpointId>,
    /// How many services are on it.
    #[serde(default)]
    pub services: u32,
    automatic: Automatic,
}

/// Which of a network's subnets are the cluster's to take back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Automatic {
    ipv4: Option<u128>,
    ipv6: Option<u128>,
}

impl State {
    pub(super) fn create_network(&mut self, create: CreateNetwork) -> Result<Applied, Refusal> {
        self.check_new_network(&create)?;
        let (subnets, automatic) = self.choose_subnets(&create)?;
        let gateways = subnet::gateways(&subnets, &create.gateways)?;
        check_mtu(create.mtu, &subnets)?;
        let vni = self.choose_vni(create.vni)?;

        let founded = self.founded()?;
        founded.vnis.take(vni.get().into(), create.id);
        automatic.ipv4.inspect(|number| founded.subnets.take(*number, create.id));
        automatic.ipv6.inspect(|number| founded.subnets_ipv6.take(*number, create.id));
        let pools = subnets.iter().zip(&gateways);
        let pools = pools.map(|(subnet, gateway)| AddressPool::new(*subnet, *gateway)).collect();
        let network = Network {
            id: create.id,
            name: create.name,
            vni,
            subnets,
            gateways,
            mtu: create.mtu,
            encap: Encap::Sealed,
            internal: create.internal,
            labels: create.labels,
        };
        self.network_names.insert(network.name.clone(), network.id);
        let entry = NetworkEntry {
            network: network.clone(),
            pools,
            names: OrdMap::new(),
            services: 0,
            automatic,
        };
        self.networks.insert(network.id, entry);
        let events = vec![Event::NetworkChanged(network.id)];
        Ok(Applied { outcome: Outcome::Network(network), events })
    }

    pub(super) fn remove_network(&mut self, id: NetworkId) -> Result<Applied, Refusal> {
        let entry = self.networks.get(&id).ok_or_else(|| unknown(Kind::Network, id))?;
        if entry.services > 0 {
            let (name, services) = (entry.network.name.clone(), entry.services);
            return Err(Refusal::NetworkOfServices { name, services });
        }
        if !entry.names.is_empty() {
            let name = entry.network.name.clone();
            return Err(Refusal::NetworkInUse { name, endpoints: entry.names.len() });
        }
        let (vni, automatic) = (entry.network.vni, entry.automatic);
        self.network_names.remove(&entry.network.name);
        self.networks.remove(&id);
        let founded = self.founded()?;
        founded.vnis.free(vni.get().into());
        automatic.ipv4.inspect(|number| founded.subnets.free(*number));
        automatic.ipv6.inspect(|number| founded.subnets_ipv6.free(*number));
        let events = vec![Event::NetworkRemoved(id)];
        Ok(Applied { outcome: Outcome::Done, events })
    }

    fn check_new_network(&self, create: &CreateNetwork) -> Result<(), Refusal> {
        check_labels(&create.labels)?;
        if self.networks.contains_key(&create.id) {
            return Err(Refusal::IdUsed { kind: Kind::Network });
        }
        if let Some(taken) = self.network_names.get(&create.name) {
            let (name, id) = (create.name.clone(), taken.to_string());
            return Err(Refusal::NameTaken { kind: Kind::Network, name, id });
        }
        if self.networks.len() >= MAX_NETWORKS {
            return Err(Refusal::TooMany { kind: Kind::Network, limit: MAX_NETWORKS });
        }
        create.subnets.iter().try_for_each(subnet::check_subnet)?;
        subnet::check_families(&create.subnets)
    }

    /// The chosen subnets, and automatic ones for what was not chosen; IPv4 comes first.
    fn choose_subnets(&self, create: &CreateNetwork) -> Result<(Vec<IpNet>, Automatic), Refusal> {
        let founded = self.founded.as_ref().ok_or(Refusal::NoCluster)?;
        let mut subnets = create.subnets.clone();
        let mut automatic = Automatic::default();
        if subnets.is_empty() {
            let pool = IpNet::V4(founded.cluster.pool);
            let taken = |number| {
                let subnet = IpNet::V4(pool_subnet(&founded.cluster, number));
                self.underlays.values().flatten().any(|net| subnet::overlap(net, &subnet))
            };
            let number = founded.subnets.next(taken).ok_or(Refusal::SubnetsExhausted { pool })?;
            automatic.ipv4 = Some(number);
            subnets.push(IpNet::V4(pool_subnet(&founded.cluster, number)));
        }
        let chosen = subnets.iter().any(|subnet| matches!(subnet, IpNet::V6(_)));
        if create.ipv6 == Ipv6::Automatic && !chosen {
            let pool = IpNet::V6(founded.cluster.ula);
            let number = founded.subnets_ipv6.next(|_| false);
            let number = number.ok_or(Refusal::SubnetsExhausted { pool })?;
            automatic.ipv6 = Some(number);
            subnets.push(IpNet::V6(ula_subnet(&founded.cluster, number)));
        }
        subnets.sort_by_key(|subnet| subnet.addr().is_ipv6());
        Ok((subnets, automatic))
    }

    fn choose_vni(&self, chosen: Option<Vni>) -> Result<Vni, Refusal> {
        let founded = self.founded.as_ref().ok_or(Refusal::NoCluster)?;
        let Some(vni) = chosen else {
            let number = founded.vnis.next(|_| false).ok_or(Refusal::VnisExhausted)?;
            let vni = u32::try_from(number).ok().and_then(Vni::new);
            return vni.ok_or(Refusal::VnisExhausted);
        };
        if vni.get() == 0 {
            return Err(Refusal::VniZero);
        }
        let holder = founded.vnis.holder(vni.get().into()).and_then(|id| self.network(*id));
        match holder {
            Some(network) => Err(Refusal::VniTaken { vni, network: network.name.clone() }),
            None => Ok(vni),
        }
    }
}

fn check_mtu(mtu: Option<u16>, subnets: &[IpNet]) -> Result<(), Refusal> {
    let Some(mtu) = mtu else { return Ok(()) };
    let ipv6 = subnets.iter().any(|subnet| matches!(subnet, IpNet::V6(_)));
    if !MTU_RANGE.contains(&mtu) || (ipv6 && mtu < MIN_MTU_IPV6) {
        return Err(Refusal::MtuOutOfRange { mtu });
    }
    Ok(())
}

/// Returns the subnet of the pool that has this number.
fn pool_subnet(cluster: &Cluster, number: u128) -> Ipv4Net {
    let start = u32::from(cluster.pool.network());
    // The pool's range of numbers was made from its length, so the number fits and the shift stays inside it.
    let offset = (number as u32) << (32 - u32::from(cluster.mask_length));
    Ipv4Net::new_assert((start | offset).into(), cluster.mask_length)
}

/// Returns the /64 of the cluster's /48 that has this number.
fn ula_subnet(cluster: &Cluster, number: u128) -> Ipv6Net {
    let start = u128::from(cluster.ula.network());
    Ipv6Net::new_assert((start | (number << 64)).into(), 64)
}
