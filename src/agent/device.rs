//! Makes a container's device: a TUN in the agent's own namespace, prepared, moved into the
//! container's, named, addressed, brought up there, and then kept: it outlives the agent, which finds
//! it again by its alias and number and takes its queue. A step that fails leaves nothing.

use std::io;

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;

use super::{dataplane::DefaultRoute, records::Interface};
use crate::{
    io::{
        netlink::{self, Link, Netlink},
        netns::{Namespace, allow_ipv6},
        tun::Tun,
    },
    types::Offloads,
};

/// What the device shall be.
pub(super) struct DeviceSpec {
    /// Its name in the container; `None` for the first free `ethN`.
    pub(super) interface: Option<String>,
    /// Its MTU in bytes.
    pub(super) mtu: u16,
    /// By which others find it.
    pub(super) alias: String,
    /// Its addresses.
    pub(super) addresses: Vec<IpNet>,
    /// Whether it becomes the way out.
    pub(super) default_route: DefaultRoute,
    /// Which offloads it has.
    pub(super) offloads: Offloads,
}

/// Tries whether devices can be made at all, and says what is missing if not.
pub(super) fn check() -> anyhow::Result<()> {
    Tun::create(Offloads::ALL).map_err(explain)?;
    Ok(())
}

/// Makes the device and returns its queue. Blocks for a few milliseconds.
pub(super) fn create(namespace: &Namespace, spec: &DeviceSpec) -> anyhow::Result<(Tun, Interface)> {
    let tun = Tun::create(spec.offloads).map_err(explain)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("start a runtime for netlink")?;
    runtime.block_on(async {
        let netlink = Netlink::open()?;
        let link = netlink.link(tun.name()).await?;
        let gso_max_bytes = super_packet_limit(spec.mtu);
        netlink.prepare(link.index, spec.mtu, gso_max_bytes, &spec.alias).await?;
        // The same namespace is a valid target: the host itself, or a node inside one.
        netlink.move_to(link.index, std::os::fd::AsFd::as_fd(namespace.file())).await
    })?;
    let made_as = tun.name().to_owned();
    let interface = namespace.run(async || set_up(&made_as, spec).await)?;
    tun.keep().context("keep the interface beyond this process")?;
    Ok((tun, interface))
}

/// Takes the queue of a device that was kept. `None` if the namespace does not have it any more.
pub(super) fn take(
    namespace: &Namespace,
    interface: &Interface,
    alias: &str,
    offloads: Offloads,
) -> anyhow::Result<Option<Tun>> {
    namespace.run(async || {
        let netlink = Netlink::open()?;
        let ours = |link: &Link| is_ours(link, interface, alias);
        let Some(link) = netlink.links().await?.into_values().find(ours) else { return Ok(None) };
        let tun = Tun::open(&link.name, offloads).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => anyhow::anyhow!("another process holds interface {}", link.name),
            Some(_) | None => explain(error),
        })?;
        // The name may have passed to another device between the two.
        let taken = netlink.link(tun.name()).await?;
        ensure!(ours(&taken), "interface {} was renamed meanwhile", link.name);
        Ok(Some(tun))
    })
}

/// Tells whether a device that was kept is in the namespace.
pub(super) fn is_in(
    namespace: &Namespace,
    interface: &Interface,
    alias: &str,
) -> anyhow::Result<bool> {
    namespace.run(async || {
        let links = Netlink::open()?.links().await?;
        Ok(links.values().any(|link| is_ours(link, interface, alias)))
    })
}

/// Takes away what is left of a device that was being made when the agent ended.
pub(super) fn clear(namespace: &Namespace, alias: &str) -> anyhow::Result<()> {
    namespace.run(async || {
        let netlink = Netlink::open()?;
        for link in netlink.links().await?.values().filter(|link| is_alias(link, alias)) {
            netlink.delete(link.index).await?;
        }
        Ok(())
    })
}

fn is_ours(link: &Link, interface: &Interface, alias: &str) -> bool {
    link.index == interface.index && is_alias(link, alias)
}

fn is_alias(link: &Link, alias: &str) -> bool {
    link.alias.as_deref() == Some(alias)
}

/// Names, addresses and brings up the device inside the container's namespace.
async fn set_up(made_as: &str, spec: &DeviceSpec) -> anyhow::Result<Interface> {
    let netlink = Netlink::open()?;
    let links = netlink.links().await?;
    let link = links.values().find(|link| link.name == made_as);
    let index = link.context("the interface did not arrive in the namespace")?.index;
    let name = match &spec.interface {
        Some(name) if links.values().any(|link| link.name == *name) => {
            bail!("the namespace has an interface {name} already; choose another --ifname")
        }
        Some(name) => name.clone(),
        None => netlink::free_name(&links)?,
    };
    netlink.rename(index, &name).await?;
    netlink.no_automatic_addresses(index).await;
    if let Some(loopback) = links.values().find(|link| link.loopback && !link.up) {
        netlink.up(loopback.index).await?;
    }
    if spec.addresses.iter().any(|address| address.addr().is_ipv6()) {
        allow_ipv6(&name)?;
    }
    for address in &spec.addresses {
        netlink.add_address(index, *address).await?;
    }
    netlink.up(index).await?;
    for ipv6 in [false, true] {
        if !spec.addresses.iter().any(|address| address.addr().is_ipv6() == ipv6) {
            continue;
        }
        match spec.default_route {
            DefaultRoute::Leave => {}
            DefaultRoute::IfFree => netlink.add_default_route(index, ipv6).await?,
            DefaultRoute::Replace => netlink.replace_default_route(index, ipv6).await?,
        }
    }
    Ok(Interface { index, name, mtu: spec.mtu })
}

/// How long a super-packet may be, so that one UDP_SEGMENT message carries its segments.
fn super_packet_limit(mtu: u16) -> u32 {
    let sealed = u32::from(mtu) + crate::wire::envelope::OVERHEAD as u32;
    let segments = (MAX_MESSAGE / sealed).clamp(1, 64);
    (segments * u32::from(mtu.saturating_sub(40))).max(u32::from(mtu))
}

/// Says what to do about a device that cannot be made.
fn explain(error: io::Error) -> anyhow::Error {
    let advice = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "/dev/net/tun is missing; load the kernel's tun module, or give the device to the container that overlayd runs in"
        }
        Some(libc::EACCES) => {
            "no permission on /dev/net/tun; run overlayd as root, or chmod 666 it"
        }
        Some(libc::EPERM) => {
            "CAP_NET_ADMIN is missing; run overlayd as root or with that capability"
        }
        Some(_) | None => "the kernel refused a TUN device",
    };
    anyhow::Error::new(error).context(advice)
}

/// The most that one UDP_SEGMENT message over IPv4 carries.
const MAX_MESSAGE: u32 = 65_507;
