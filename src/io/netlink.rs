//! Links, addresses and routes by rtnetlink, in the calling thread's network namespace.

use std::net::IpAddr;

/// An address of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddr {
    /// The interface's name.
    pub interface: String,
    /// The address.
    pub addr: IpAddr,
    /// The interface's MTU in bytes.
    pub mtu: u32,
    /// Whether the interface is the loopback.
    pub loopback: bool,
}

/// Lists the addresses of the interfaces that are up, link-local ones left out.
pub async fn addresses() -> anyhow::Result<Vec<InterfaceAddr>> {
    anyhow::bail!("to come")
}
