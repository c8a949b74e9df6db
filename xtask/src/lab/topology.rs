//! The namespaces of a lab.
//!
//! ```text
//!  ovl-NAME-n1      ovl-NAME-n2      ovl-NAME-n3       nodes: overlayd runs here
//!    u0 .1            u0 .2            u0 .3           192.0.2.0/24 or 2001:db8::/64, MTU 1500
//!     |                |                |
//!  +--n1---------------n2---------------n3--+
//!  |                  br0                   |          ovl-NAME-net: the underlay
//!  +----------------------------------------+
//!  ovl-NAME-c1 ...                                     containers: empty until attached
//! ```

use std::{fs, net::IpAddr, os::unix::fs::MetadataExt};

use anyhow::Context;
use clap::ValueEnum;

use super::Lab;
use crate::{
    process::{cleanup, output},
    system::tool,
};

/// The family of the underlay's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Underlay {
    /// 192.0.2.0/24
    Ipv4,
    /// 2001:db8::/64
    Ipv6,
}

/// What the underlay's devices may do for the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// As the kernel makes a veth: super-packets cross whole.
    On,
    /// Every packet on the wire has at most 1500 bytes, as on a network card's far side.
    Off,
}

const OFF: [&str; 10] =
    ["tso", "off", "gso", "off", "gro", "off", "tx-udp-segmentation", "off", "tx-gso-list", "off"];

impl Underlay {
    /// Returns the address of node `number`.
    pub fn address(self, number: usize) -> String {
        match self {
            Self::Ipv4 => format!("192.0.2.{number}"),
            Self::Ipv6 => format!("2001:db8::{number:x}"),
        }
    }

    fn prefix(self) -> u8 {
        match self {
            Self::Ipv4 => 24,
            Self::Ipv6 => 64,
        }
    }
}

impl Lab {
    /// Makes the underlay without nodes.
    pub(super) fn lay_underlay(&mut self) -> anyhow::Result<()> {
        self.netns("net")?;
        self.ip_in("net", "link add br0 type bridge mcast_snooping 0")?;
        self.ip_in("net", "link set br0 mtu 1500 up")
    }

    /// Makes the namespace of a node and its link to the underlay.
    pub(super) fn lay_node(
        &mut self,
        number: usize,
        underlay: Underlay,
        offloads: Offloads,
    ) -> anyhow::Result<()> {
        let node = format!("n{number}");
        let address = underlay.address(number);
        self.netns(&node)?;
        self.ledger.add(format!("node {node} {address}"))?;
        let (here, there) = (self.full(&node), self.full("net"));
        ip(&format!(
            "link add u0 netns {here} mtu 1500 type veth peer name {node} netns {there} mtu 1500"
        ))?;
        if offloads == Offloads::Off {
            for (namespace, device) in [(node.as_str(), "u0"), ("net", &node)] {
                output(self.inside(namespace).arg("ethtool").args(["-K", device]).args(OFF))?;
            }
        }
        self.ip_in("net", &format!("link set {node} master br0 up"))?;
        let nodad = if underlay == Underlay::Ipv6 { " nodad" } else { "" };
        self.ip_in(&node, &format!("addr add {address}/{} dev u0{nodad}", underlay.prefix()))?;
        self.ip_in(&node, "link set u0 up")
    }

    /// Makes a namespace with only its loopback up, the ledger first.
    pub fn netns(&mut self, short: &str) -> anyhow::Result<()> {
        let name = self.full(short);
        self.ledger.add(format!("netns {name}"))?;
        ip(&format!("netns add {name}"))?;
        let seen = fs::metadata(format!("/run/netns/{name}")).context("look at a new namespace")?;
        self.ledger.add(format!("inode {}", seen.ino()))?;
        self.ip_in(short, "link set lo up")
    }

    /// Runs `ip` in a namespace of the lab.
    pub fn ip_in(&self, short: &str, words: &str) -> anyhow::Result<()> {
        ip(&format!("-n {} {words}", self.full(short)))
    }

    /// The address of a family of a container's first interface beside the loopback.
    pub fn address(&self, short: &str, family: Underlay) -> anyhow::Result<IpAddr> {
        let flag = match family {
            Underlay::Ipv4 => "-4",
            Underlay::Ipv6 => "-6",
        };
        let words = ["-n", &self.full(short), flag, "-o", "address", "show", "scope", "global"];
        let shown = output(tool("ip").args(words))?;
        // "2: eth0    inet 10.0.0.2/24 ..."
        let address = shown.split_whitespace().nth(3).and_then(|cidr| cidr.split('/').next());
        address
            .and_then(|address| address.parse().ok())
            .with_context(|| format!("{short} has no address of {family:?}"))
    }

    /// Removes a namespace, if it is there.
    pub(super) fn remove_netns(name: &str) -> anyhow::Result<()> {
        if fs::exists(format!("/run/netns/{name}")).unwrap_or(true) {
            cleanup(tool("ip").args(["netns", "delete", name]))?;
        }
        Ok(())
    }
}

fn ip(words: &str) -> anyhow::Result<()> {
    output(tool("ip").args(words.split(' '))).map(drop)
}
