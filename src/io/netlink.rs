//! Links, addresses and routes by rtnetlink, in the calling thread's network namespace.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use anyhow::{Context as _, bail};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags, AddressScope},
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteScope},
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

/// An address of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddr {
    /// The interface's name.
    pub interface: String,
    /// The address.
    pub addr: IpAddr,
    /// The length of the prefix that is on the link.
    pub prefix_len: u8,
    /// The interface's MTU in bytes.
    pub mtu: u32,
    /// Whether the interface is the loopback.
    pub loopback: bool,
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What others find it by, if it has that.
    pub alias: Option<String>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
}

/// A netlink socket of one namespace. It serves one request at a time, because the kernel allows
/// one dump at once per socket.
pub struct Netlink {
    handle: Handle,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> anyhow::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("open netlink")?;
        Ok(Self { handle, driver: tokio::spawn(connection) })
    }

    /// Lists the links by index.
    pub async fn links(&self) -> anyhow::Result<BTreeMap<u32, Link>> {
        let messages: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.context("list links")?;
        Ok(messages.iter().map(read_link).map(|link| (link.index, link)).collect())
    }

    /// Finds a link by its name.
    pub async fn link(&self, name: &str) -> anyhow::Result<Link> {
        let links = self.links().await?;
        links.into_values().find(|l| l.name == name).with_context(|| format!("no link {name}"))
    }

    /// Lists the addresses of interfaces that are up, link-local ones and those of our own devices left
    /// out.
    pub async fn addresses(&self) -> anyhow::Result<Vec<InterfaceAddr>> {
        let links = self.links().await?;
        let messages: Vec<_> =
            self.handle.address().get().execute().try_collect().await.context("list addresses")?;
        let mut found = Vec::new();
        for message in messages {
            let theirs = |link: &&Link| {
                link.up && !link.alias.as_deref().is_some_and(|alias| alias.starts_with(ALIAS))
            };
            let Some(link) = links.get(&message.header.index).filter(theirs) else {
                continue;
            };
            // IFA_LOCAL is the own address where both are there (a point-to-point link).
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(addr) => Some(*addr),
                _ => None,
            });
            let plain = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(addr) => Some(*addr),
                _ => None,
            });
            let Some(addr) = local.or(plain) else { continue };
            if message.header.scope != AddressScope::Link {
                found.push(InterfaceAddr {
                    interface: link.name.clone(),
                    addr,
                    prefix_len: message.header.prefix_len,
                    mtu: link.mtu,
                    loopback: link.loopback,
                });
            }
        }
        found.sort_by(|a, b| (&a.interface, a.addr).cmp(&(&b.interface, b.addr)));
        Ok(found)
    }

    /// Prepares a new device before it is moved: MTU, the size of super-packets, the alias.
    pub async fn prepare(
        &self,
        index: u32,
        mtu: u16,
        gso_max_bytes: u32,
        alias: &str,
    ) -> anyhow::Result<()> {
        let message = LinkUnspec::new_with_index(index)
            .mtu(u32::from(mtu))
            .alias(alias)
            .txqueuelen(QUEUE_PACKETS)
            .append_extra_attribute(LinkAttribute::GsoMaxSize(gso_max_bytes))
            .append_extra_attribute(LinkAttribute::GsoIpv4MaxSize(gso_max_bytes))
            .build();
        self.handle.link().set(message).execute().await.context("prepare the interface")
    }

    /// Stops the kernel from giving a device addresses of its own. Only the namespace that the
    /// device stays in counts: a move makes its IPv6 side anew.
    pub async fn no_automatic_addresses(&self, index: u32) {
        let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![none]))
            .build();
        // A namespace without IPv6 has nothing to turn off.
        let _ = self.handle.link().set(message).execute().await;
    }

    /// Moves a device into another network namespace.
    pub async fn move_to(&self, index: u32, namespace: BorrowedFd<'_>) -> anyhow::Result<()> {
        let message = LinkUnspec::new_with_index(index).setns_by_fd(namespace.as_raw_fd()).build();
        let moved = self.handle.link().set(message).execute().await;
        moved.context("move the interface into the network namespace")
    }

    /// Renames a device that is down.
    pub async fn rename(&self, index: u32, name: &str) -> anyhow::Result<()> {
        let message = LinkUnspec::new_with_index(index).name(name).build();
        let renamed = self.handle.link().set(message).execute().await;
        renamed.with_context(|| format!("name the interface {name}"))
    }

    /// Takes a device away.
    pub async fn delete(&self, index: u32) -> anyhow::Result<()> {
        self.handle.link().del(index).execute().await.context("take the interface away")
    }

    /// Brings a device up.
    pub async fn up(&self, index: u32) -> anyhow::Result<()> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(message).execute().await.context("bring the interface up")
    }

    /// Gives a device an address; the kernel adds the route of its prefix. Nobody else has the
    /// address, so it is usable at once, without duplicate address detection (RFC 4862).
    pub async fn add_address(&self, index: u32, address: IpNet) -> anyhow::Result<()> {
        let mut add = self.handle.address().add(index, address.addr(), address.prefix_len());
        add.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        add.execute().await.with_context(|| format!("add address {address}"))
    }

    /// Adds a default route of a family through a device, unless there is one already.
    pub async fn add_default_route(&self, index: u32, ipv6: bool) -> anyhow::Result<()> {
        if self.default_routes(ipv6).await?.is_empty() {
            self.route_out(index, ipv6).await?;
        }
        Ok(())
    }

    /// Makes a device the only way out of a family.
    pub async fn replace_default_route(&self, index: u32, ipv6: bool) -> anyhow::Result<()> {
        for route in self.default_routes(ipv6).await? {
            let deleted = self.handle.route().del(route).execute().await;
            deleted.context("take away the default route that is there")?;
        }
        self.route_out(index, ipv6).await
    }

    async fn route_out(&self, index: u32, ipv6: bool) -> anyhow::Result<()> {
        let route = if ipv6 {
            RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index).build()
        } else {
            RouteMessageBuilder::<Ipv4Addr>::new()
                .output_interface(index)
                .scope(RouteScope::Link)
                .build()
        };
        let added = self.handle.route().add(route).execute().await;
        added.context("add the default route")
    }

    /// Lists the default routes of a family in the main table.
    async fn default_routes(&self, ipv6: bool) -> anyhow::Result<Vec<RouteMessage>> {
        let filter = if ipv6 {
            RouteMessageBuilder::<Ipv6Addr>::new().build()
        } else {
            RouteMessageBuilder::<Ipv4Addr>::new().build()
        };
        let mut routes: Vec<RouteMessage> =
            self.handle.route().get(filter).execute().try_collect().await.context("list routes")?;
        routes.retain(|route| {
            let way = |a: &RouteAttribute| {
                matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Oif(_))
            };
            u32::from(route.header.table) == MAIN_TABLE
                && route.header.destination_prefix_length == 0
                && route.attributes.iter().any(way)
        });
        Ok(routes)
    }
}

/// Lists the addresses of the interfaces that are up, link-local ones left out.
pub async fn addresses() -> anyhow::Result<Vec<InterfaceAddr>> {
    Netlink::open()?.addresses().await
}

/// Chooses the first `ethN` that no link has.
pub fn free_name(links: &BTreeMap<u32, Link>) -> anyhow::Result<String> {
    let free = (0..MAX_INTERFACES)
        .map(|n| format!("eth{n}"))
        .find(|name| links.values().all(|link| link.name != *name));
    match free {
        Some(name) => Ok(name),
        None => bail!("all names eth0 to eth{} are taken", MAX_INTERFACES - 1),
    }
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        alias: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    link
}

/// Packets that wait in the device while its worker is not on a processor: 50 ms of 80,000 a second,
/// which is longer than a busy machine's scheduler takes to come round.
const QUEUE_PACKETS: u32 = 4096;
const MAX_INTERFACES: u32 = 1000;
/// How the aliases of our own devices begin.
pub const ALIAS: &str = "overlay:";
const MAIN_TABLE: u32 = 254;
