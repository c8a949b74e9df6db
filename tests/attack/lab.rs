//! Network namespaces on one underlay, taken away at the end.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use overlay::io::netns::Namespace;

/// Where the victim takes sealed datagrams.
pub const VICTIM: &str = "192.0.2.1:7790";
/// Where the member's come from, as the victim's table has it.
pub const MEMBER: &str = "192.0.2.2:7790";
/// A host that is in no table.
pub const THIRD: &str = "198.51.100.2";
/// Honest peers of the flood test: one an address.
pub const HONEST: &str = "198.18.0.0/16";
/// Sources of the flood.
pub const CROWD: &str = "198.19.0.0/16";

/// Where an honest peer's datagrams come from.
pub fn honest_address(node: u16) -> SocketAddr {
    let [high, low] = node.to_be_bytes();
    SocketAddr::from(([198, 18, high, low], 7790))
}

/// The hosts of the picture; the last one is the container's.
#[derive(Clone, Copy)]
pub enum Host {
    Victim,
    Member,
    Third,
    Container,
}

const HOSTS: [Host; 4] = [Host::Victim, Host::Member, Host::Third, Host::Container];

/// The namespaces.
pub struct Lab {
    prefix: String,
}

impl Lab {
    /// Makes the picture. The member's host also answers for [`HONEST`], the third for [`CROWD`].
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let lab = Self { prefix: format!("ovt-attack-{}-{number}", std::process::id()) };
        for host in HOSTS {
            ip(&["netns", "add", &lab.name(host)]);
            ip(&["-n", &lab.name(host), "link", "set", "lo", "up"]);
        }
        lab.wire(Host::Member, "m0", "192.0.2.1/24", "192.0.2.2/24");
        lab.wire(Host::Third, "t0", "198.51.100.1/24", "198.51.100.2/24");
        let [victim, member, third] =
            [Host::Victim, Host::Member, Host::Third].map(|h| lab.name(h));
        ip(&["-n", &member, "route", "add", "local", HONEST, "dev", "lo"]);
        ip(&["-n", &third, "route", "add", "local", CROWD, "dev", "lo"]);
        ip(&["-n", &victim, "route", "add", HONEST, "via", "192.0.2.2"]);
        ip(&["-n", &victim, "route", "add", CROWD, "via", "198.51.100.2"]);
        ip(&["-n", &third, "route", "add", "default", "via", "198.51.100.1"]);
        lab
    }

    fn name(&self, host: Host) -> String {
        let name = match host {
            Host::Victim => "v",
            Host::Member => "m",
            Host::Third => "t",
            Host::Container => "c",
        };
        format!("{}-{name}", self.prefix)
    }

    fn wire(&self, host: Host, device: &str, victim_address: &str, address: &str) {
        let (victim, host) = (self.name(Host::Victim), self.name(host));
        ip(&[
            "link", "add", device, "netns", &victim, "type", "veth", "peer", "name", "u0", "netns",
            &host,
        ]);
        ip(&["-n", &victim, "addr", "add", victim_address, "dev", device]);
        ip(&["-n", &host, "addr", "add", address, "dev", "u0"]);
        ip(&["-n", &victim, "link", "set", device, "up"]);
        ip(&["-n", &host, "link", "set", "u0", "up"]);
    }

    /// The path of a host's namespace.
    pub fn path(&self, host: Host) -> PathBuf {
        format!("/run/netns/{}", self.name(host)).into()
    }

    /// Runs `work` inside a host's namespace.
    pub fn inside<T: Send>(
        &self,
        host: Host,
        work: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
    ) -> T {
        let namespace = Namespace::open(&self.path(host)).expect("the namespace was made");
        namespace.run(work).expect("work inside a namespace")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in HOSTS {
            let _ = Command::new("ip").args(["netns", "del", &self.name(host)]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("ip is installed");
    assert!(status.success(), "ip {}", arguments.join(" "));
}

/// Parses an address of this file.
pub fn socket(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

/// Parses an address of this file.
pub fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Waits until `is_so`; fails with what `seen` says if that takes far longer than it may.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool, seen: impl FnOnce() -> String) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "{what}: not so after {LIMIT:?}; {}", seen());
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Everything waited for takes milliseconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(20);
