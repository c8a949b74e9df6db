//! Which of the host's addresses a node uses: what `--advertise-addr` and `--data-path-addr` say, or
//! the one usable address where they say nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, bail};
use ipnet::IpNet;

use crate::io::netlink::InterfaceAddr;

/// A data-path address with the MTU of its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAddr {
    /// The address.
    pub ip: IpAddr,
    /// The interface's MTU in bytes.
    pub mtu: u16,
}

/// Chooses the address that other nodes reach this one's control side at.
///
/// # Errors
/// It says what is wrong, and which addresses there are.
pub fn advertise(
    chosen: Option<&str>,
    default_port: u16,
    addresses: &[InterfaceAddr],
) -> anyhow::Result<SocketAddr> {
    let Some(text) = chosen else {
        let ip = the_one(addresses.iter().filter(|addr| !addr.loopback))
            .with_context(|| several("--advertise-addr", addresses))?;
        return Ok(SocketAddr::new(ip, default_port));
    };
    let (host, port) = split_port(text)?;
    Ok(SocketAddr::new(host_ip(host, addresses)?, port.unwrap_or(default_port)))
}

/// Chooses the address that sealed datagrams are sent from and taken on; without a choice the
/// advertised one. It must be an address of this host.
///
/// # Errors
/// It says what is wrong, and which addresses there are.
pub fn data_path(
    chosen: Option<&str>,
    advertised: IpAddr,
    addresses: &[InterfaceAddr],
) -> anyhow::Result<DataAddr> {
    let ip = match chosen {
        Some(text) => match split_port(text)? {
            (host, None) => host_ip(host, addresses)?,
            (_, Some(_)) => bail!("--data-path-addr {text}: it takes an address without a port"),
        },
        None => advertised,
    };
    let Some(found) = addresses.iter().find(|addr| addr.addr == ip) else {
        bail!(
            "{ip} is not an address of this node; choose one with --data-path-addr: {}",
            list(addresses)
        );
    };
    Ok(DataAddr { ip, mtu: u16::try_from(found.mtu).unwrap_or(u16::MAX) })
}

/// Returns the networks of this host, which automatic subnets leave out.
pub fn underlays(addresses: &[InterfaceAddr]) -> Vec<IpNet> {
    let own = addresses.iter().filter(|addr| !addr.loopback);
    own.filter_map(|addr| IpNet::new(addr.addr, addr.prefix_len).ok()).map(|n| n.trunc()).collect()
}

/// Reads `HOST`, `HOST:PORT`, `[IPv6]`, `[IPv6]:PORT`, or a bare IPv6 address.
///
/// # Errors
/// The port is none.
pub fn split_port(text: &str) -> anyhow::Result<(&str, Option<u16>)> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok((text, None));
    }
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return match rest.strip_prefix(':') {
            None if rest.is_empty() => Ok((host, None)),
            None => bail!("'{text}' is no address; write [IPv6]:PORT"),
            Some(port) => Ok((host, Some(parse_port(text, port)?))),
        };
    }
    match text.rsplit_once(':') {
        Some((host, port)) => Ok((host, Some(parse_port(text, port)?))),
        None => Ok((text, None)),
    }
}

fn parse_port(text: &str, port: &str) -> anyhow::Result<u16> {
    match port.parse() {
        Ok(port) => Ok(port),
        Err(_) => bail!("'{text}': '{port}' is no port; use 1 to 65535, and [IPv6]:PORT for IPv6"),
    }
}

fn host_ip(host: &str, addresses: &[InterfaceAddr]) -> anyhow::Result<IpAddr> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        if ip.is_unspecified() || ip.is_multicast() {
            bail!("{ip} is not the address of one host; use one of {}", list(addresses));
        }
        return Ok(ip);
    }
    let on: Vec<&InterfaceAddr> = addresses.iter().filter(|addr| addr.interface == host).collect();
    if on.is_empty() {
        bail!("'{host}' is no address, and no interface with one; use one of {}", list(addresses));
    }
    the_one(on.iter().copied()).with_context(|| {
        let texts: Vec<String> = on.iter().map(|addr| addr.addr.to_string()).collect();
        format!("interface {host} has several addresses; choose one of {}", texts.join(", "))
    })
}

/// The only address; or the only IPv4 address of a dual-stack interface.
fn the_one<'a>(addresses: impl Iterator<Item = &'a InterfaceAddr>) -> Option<IpAddr> {
    let addresses: Vec<&InterfaceAddr> = addresses.collect();
    let ipv4: Vec<&&InterfaceAddr> = addresses.iter().filter(|addr| addr.addr.is_ipv4()).collect();
    match (&addresses[..], &ipv4[..]) {
        ([only], _) => Some(only.addr),
        (all, [only]) if all.iter().all(|addr| addr.interface == only.interface) => Some(only.addr),
        (_, _) => None,
    }
}

fn several(flag: &str, addresses: &[InterfaceAddr]) -> String {
    match addresses.iter().all(|addr| addr.loopback) {
        true => {
            format!("this node has no address but loopback; bring an interface up, or use {flag}")
        }
        false => {
            format!("this node has several addresses; choose one with {flag}: {}", list(addresses))
        }
    }
}

fn list(addresses: &[InterfaceAddr]) -> String {
    let usable = addresses.iter().filter(|addr| !addr.loopback);
    let texts: Vec<String> =
        usable.map(|addr| format!("{} ({})", addr.addr, addr.interface)).collect();
    if texts.is_empty() {
        "none (no interface has an address)".to_owned()
    } else {
        texts.join(", ")
    }
}

/// All addresses of a host that has this one, with a port.
pub fn any(of: SocketAddr, port: u16) -> SocketAddr {
    match of {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(addresses: &[(&str, &str)]) -> Vec<InterfaceAddr> {
        let addr = |(interface, addr): &(&str, &str)| InterfaceAddr {
            interface: (*interface).to_owned(),
            addr: addr.parse().unwrap(),
            prefix_len: if addr.contains(':') { 64 } else { 24 },
            mtu: 1500,
            loopback: *interface == "lo",
        };
        addresses.iter().map(addr).collect()
    }

    fn chosen(text: Option<&str>, addresses: &[(&str, &str)]) -> Result<String, String> {
        advertise(text, 2377, &host(addresses))
            .map(|addr| addr.to_string())
            .map_err(|error| error.to_string())
    }

    const LO: (&str, &str) = ("lo", "127.0.0.1");
    const ONE: (&str, &str) = ("eth0", "192.0.2.1");
    const SIX: (&str, &str) = ("eth0", "2001:db8::1");
    const TWO: (&str, &str) = ("eth1", "198.51.100.1");

    #[test]
    fn the_one_usable_address_is_taken() {
        assert_eq!(chosen(None, &[LO, ONE]).unwrap(), "192.0.2.1:2377");
        assert_eq!(chosen(None, &[LO, SIX]).unwrap(), "[2001:db8::1]:2377");
        assert_eq!(chosen(None, &[LO, ONE, SIX]).unwrap(), "192.0.2.1:2377");
    }

    #[test]
    fn of_several_none_is_guessed() {
        assert_eq!(
            chosen(None, &[LO, ONE, TWO]).unwrap_err(),
            "this node has several addresses; choose one with --advertise-addr: 192.0.2.1 (eth0), 198.51.100.1 (eth1)"
        );
        assert_eq!(
            chosen(None, &[LO]).unwrap_err(),
            "this node has no address but loopback; bring an interface up, or use --advertise-addr"
        );
    }

    #[test]
    fn addresses_interfaces_and_ports_are_understood() {
        let check = |text, wanted: &str| {
            assert_eq!(chosen(Some(text), &[LO, ONE, SIX, TWO]).unwrap(), wanted);
        };
        check("192.0.2.1", "192.0.2.1:2377");
        check("192.0.2.1:99", "192.0.2.1:99");
        check("eth1", "198.51.100.1:2377");
        check("eth1:99", "198.51.100.1:99");
        check("::1", "[::1]:2377");
        check("[::1]", "[::1]:2377");
        check("[::1]:99", "[::1]:99");
    }

    #[test]
    fn wrong_addresses_are_named() {
        let check = |text, wanted: &str| {
            assert_eq!(chosen(Some(text), &[ONE]).unwrap_err(), wanted);
        };
        check(
            "eth9",
            "'eth9' is no address, and no interface with one; use one of 192.0.2.1 (eth0)",
        );
        check("0.0.0.0", "0.0.0.0 is not the address of one host; use one of 192.0.2.1 (eth0)");
        check(
            "192.0.2.1:x",
            "'192.0.2.1:x': 'x' is no port; use 1 to 65535, and [IPv6]:PORT for IPv6",
        );
    }

    #[test]
    fn the_hosts_networks_are_those_of_its_links() {
        let nets: Vec<String> =
            underlays(&host(&[LO, ONE, SIX])).iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["192.0.2.0/24", "2001:db8::/64"]);
    }

    #[test]
    fn the_data_path_is_the_hosts_own() {
        let addresses = host(&[ONE, TWO]);
        let advertised = "192.0.2.1".parse().unwrap();
        let data = data_path(None, advertised, &addresses).unwrap();
        assert_eq!(data, DataAddr { ip: advertised, mtu: 1500 });
        let data = data_path(Some("eth1"), advertised, &addresses).unwrap();
        assert_eq!(data.ip.to_string(), "198.51.100.1");
        let error = data_path(None, "203.0.113.9".parse().unwrap(), &addresses).unwrap_err();
        assert_eq!(
            error.to_string(),
            "203.0.113.9 is not an address of this node; choose one with --data-path-addr: 192.0.2.1 (eth0), 198.51.100.1 (eth1)"
        );
        let error = data_path(Some("eth1:5"), advertised, &addresses).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--data-path-addr eth1:5: it takes an address without a port"
        );
    }
}
