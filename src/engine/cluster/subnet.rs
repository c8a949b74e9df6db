//! What makes a subnet, a gateway and an address usable, and the addresses of one subnet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use super::{Refusal, serial::Serial};
use crate::types::EndpointId;

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Holder {
    Gateway,
    Endpoint(EndpointId),
}

/// The addresses of one subnet of one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AddressPool {
    pub subnet: IpNet,
    pub numbers: Serial<Holder>,
}

impl AddressPool {
    /// Makes the pool of a checked subnet; its gateway is held from the start.
    pub fn new(subnet: IpNet, gateway: IpAddr) -> Self {
        let (first, last) = hosts(&subnet);
        let mut numbers = Serial::new(first, last);
        numbers.take(number(gateway), Holder::Gateway);
        Self { subnet, numbers }
    }

    /// Returns the address to hand out next.
    pub fn next(&self) -> Option<IpAddr> {
        self.numbers.next(|_| skips()).map(|number| address(&self.subnet, number))
    }
}

/// Whether a number is left out for a reason that the state does not hold, as a planted defect.
fn skips() -> bool {
    #[cfg(feature = "plant")]
    return crate::plant::skips_a_number();
    #[cfg(not(feature = "plant"))]
    false
}

/// Checks a subnet that an operator chose.
pub(super) fn check_subnet(subnet: &IpNet) -> Result<(), Refusal> {
    let (smallest, largest, small_advice, large_advice) = match subnet {
        IpNet::V4(_) => (30, 8, "/30 or shorter", "/8 or longer"),
        IpNet::V6(_) => (126, 16, "/126 or shorter", "/16 or longer"),
    };
    if subnet.prefix_len() > smallest {
        return Err(Refusal::SubnetTooSmall { subnet: *subnet, use_instead: small_advice.into() });
    }
    if subnet.prefix_len() < largest {
        return Err(Refusal::SubnetTooLarge { subnet: *subnet, use_instead: large_advice.into() });
    }
    if subnet.trunc() != *subnet {
        return Err(Refusal::NotNetworkAddress { given: *subnet, network: subnet.trunc() });
    }
    let reserved = [
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "::/16",
        "fe80::/10",
        "ff00::/8",
    ];
    let overlaps = |text: &&str| text.parse::<IpNet>().is_ok_and(|net| overlap(&net, subnet));
    if reserved.iter().any(overlaps) {
        return Err(Refusal::SubnetReserved { subnet: *subnet });
    }
    Ok(())
}

/// Checks the chosen subnets of one network against each other: at most one a family.
pub(super) fn check_families(subnets: &[IpNet]) -> Result<(), Refusal> {
    for (i, first) in subnets.iter().enumerate() {
        for second in &subnets[i + 1..] {
            let (first, second) = (*first, *second);
            if overlap(&first, &second) {
                return Err(Refusal::SubnetsOverlap { first, second });
            }
            if first.addr().is_ipv4() == second.addr().is_ipv4() {
                return Err(Refusal::SubnetFamilyTwice { first, second });
            }
        }
    }
    Ok(())
}

/// Checks the pool that automatic subnets come from.
pub(super) fn check_pool(pool: &Ipv4Net, mask_length: u8) -> Result<(), Refusal> {
    let subnet = IpNet::V4(*pool);
    if subnet.trunc() != subnet {
        return Err(Refusal::NotNetworkAddress { given: subnet, network: subnet.trunc() });
    }
    if !(pool.prefix_len()..=30).contains(&mask_length) {
        let advice = "the length must be that of the pool or longer, and at most 30".into();
        return Err(Refusal::PoolUnusable { pool: subnet, mask_length, advice });
    }
    check_subnet(&subnet)
}

/// Finds the gateway of every subnet: the chosen one, or the first address.
pub(super) fn gateways(subnets: &[IpNet], chosen: &[IpAddr]) -> Result<Vec<IpAddr>, Refusal> {
    for gateway in chosen {
        let Some(subnet) = subnets.iter().find(|subnet| subnet.contains(gateway)) else {
            return Err(Refusal::GatewayOutside { gateway: *gateway, subnets: list(subnets) });
        };
        if !is_host(subnet, *gateway) {
            return Err(Refusal::GatewayReserved { gateway: *gateway, subnet: *subnet });
        }
    }
    let gateway = |subnet: &IpNet| {
        let mut inside = chosen.iter().filter(|addr| subnet.contains(*addr));
        match (inside.next(), inside.next()) {
            (Some(first), Some(second)) => {
                Err(Refusal::GatewayTwice { first: *first, second: *second })
            }
            (Some(only), None) => Ok(*only),
            (None, _) => Ok(address(subnet, hosts(subnet).0)),
        }
    };
    subnets.iter().map(gateway).collect()
}

/// Tells whether an address of the subnet may belong to a host.
pub(super) fn is_host(subnet: &IpNet, addr: IpAddr) -> bool {
    let (first, last) = hosts(subnet);
    subnet.contains(&addr) && (first..=last).contains(&number(addr))
}

/// Tells whether two subnets have an address in common.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Writes subnets as sentences name them.
pub(super) fn list(subnets: &[IpNet]) -> String {
    let texts: Vec<String> = subnets.iter().map(ToString::to_string).collect();
    texts.join(" or ")
}

/// Returns an address as a number of its family.
pub(super) fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u32::from(addr).into(),
        IpAddr::V6(addr) => addr.into(),
    }
}

/// Returns the address of a number in the family of `subnet`.
pub(super) fn address(subnet: &IpNet, number: u128) -> IpAddr {
    match subnet {
        // Numbers of an IPv4 subnet come from its own 32-bit addresses.
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

/// Returns the first and last address that hosts may have. In IPv6 there is no broadcast address,
/// but the lowest is the routers' anycast address (RFC 4291, section 2.6.1).
fn hosts(subnet: &IpNet) -> (u128, u128) {
    let (lowest, highest) = (number(subnet.network()), number(subnet.broadcast()));
    match subnet {
        IpNet::V4(_) => (lowest + 1, highest - 1),
        IpNet::V6(_) => (lowest + 1, highest),
    }
}
