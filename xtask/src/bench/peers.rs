//! Who is measured: containers of ours, and beside them on the same underlay the kernel's VXLAN built
//! as Docker builds it, wireguard-go, or for one node a bridge.
//!
//! ```text
//!   c1 --- n1 ===underlay=== n2 --- c2      ours
//!   k1 --- v1 (br0, vxlan0)  v2 --- k2      VXLAN; its sockets are in n1 and n2
//!   g1 --- n1 (wg..-1) (wg..-2) n2 --- g2   wireguard-go
//!   b1 ------------ br ------------ b2      a bridge
//! ```

use std::{
    env, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};

use crate::{
    lab::{Lab, Process, Underlay, end_of},
    process, signals, system,
    traffic::Route,
    workspace::Programs,
};

/// Two containers, and the address of the second.
pub struct Pair {
    /// The first.
    pub from: &'static str,
    /// The second.
    pub to: &'static str,
    /// Its address.
    pub addr: IpAddr,
}

impl Pair {
    /// From the first to the second.
    pub fn route<'a>(&self, lab: &'a Lab) -> Route<'a> {
        Route { lab, from: self.from, to: self.to, addr: self.addr }
    }
}

/// Forms a cluster and attaches a container to each node, or two to the only one; returns the daemons.
pub fn lay_ours(lab: &mut Lab, programs: &Programs) -> anyhow::Result<(Pair, Vec<Process>)> {
    let nodes: Vec<String> = lab.nodes().into_iter().map(|(node, _)| node).collect();
    let mut daemons = Vec::new();
    for node in &nodes {
        daemons.push(lab.start(node, programs)?);
    }
    lab.form_cluster(programs, 1)?;
    let create =
        ["network", "create", "blue", "--subnet", "10.196.0.0/16", "--subnet", "fd96::/64"];
    process::output(lab.overlayctl(programs, "n1").args(create))?;
    let (from, to) = ("c1", "c2");
    for (node, container) in nodes.iter().cycle().zip([from, to]) {
        lab.netns(container)?;
        let target = format!("netns:{}", lab.full(container));
        let attach = ["attach", &target, "--network", "blue", "--name", container];
        process::output(lab.overlayctl(programs, node).args(attach))?;
    }
    Ok((Pair { from, to, addr: lab.address(to, Underlay::Ipv4)? }, daemons))
}

/// Puts containers behind a bridge and a vxlan device with static forwarding entries and neighbours.
pub fn lay_vxlan(lab: &mut Lab) -> anyhow::Result<Pair> {
    let nodes = lab.nodes();
    let mac = |number: usize| format!("02:42:0a:c5:00:{number:02x}");
    for (number, other) in [(1, 2), (2, 1)] {
        let (node, local) = &nodes[number - 1];
        let remote = &nodes[other - 1].1;
        let (bridge, container) = (format!("v{number}"), format!("k{number}"));
        lab.netns(&bridge)?;
        lab.netns(&container)?;
        let (in_bridge, in_container) = (lab.full(&bridge), lab.full(&container));
        // Made in the node's namespace, so that its socket lives there, then moved.
        lab.ip_in(node, &format!(
            "link add vxlan0 type vxlan id 4097 dstport 4789 local {local} dev u0 nolearning proxy l2miss l3miss"
        ))?;
        lab.ip_in(node, &format!("link set vxlan0 netns {in_bridge}"))?;
        lab.ip_in(&bridge, "link add br0 type bridge")?;
        lab.ip_in(&bridge, &format!(
            "link add veth1 mtu 1450 type veth peer name eth0 address {} netns {in_container} mtu 1450",
            mac(number)
        ))?;
        for device in ["vxlan0", "veth1"] {
            lab.ip_in(&bridge, &format!("link set {device} mtu 1450 master br0 up"))?;
        }
        lab.ip_in(&bridge, "link set br0 mtu 1450 up")?;
        lab.ip_in(&container, &format!("addr add 10.197.0.{number}/16 dev eth0"))?;
        lab.ip_in(&container, "link set eth0 up")?;
        let fdb = format!("fdb replace {} dev vxlan0 dst {remote} self permanent", mac(other));
        process::output(system::tool("bridge").args(["-n", &in_bridge]).args(fdb.split(' ')))?;
        lab.ip_in(
            &bridge,
            &format!(
                "neigh replace 10.197.0.{other} lladdr {} dev vxlan0 nud permanent",
                mac(other)
            ),
        )?;
    }
    let (from, to) = ("k1", "k2");
    Ok(Pair { from, to, addr: lab.address(to, Underlay::Ipv4)? })
}

/// Puts two containers on one bridge.
pub fn lay_bridge(lab: &mut Lab) -> anyhow::Result<Pair> {
    lab.netns("br")?;
    lab.ip_in("br", "link add br0 type bridge")?;
    lab.ip_in("br", "link set br0 up")?;
    let (from, to) = ("b1", "b2");
    for (number, container) in [(1, from), (2, to)] {
        lab.netns(container)?;
        let inside = lab.full(container);
        let veth = format!("link add {container} type veth peer name eth0 netns {inside}");
        lab.ip_in("br", &veth)?;
        lab.ip_in("br", &format!("link set {container} master br0 up"))?;
        lab.ip_in(container, &format!("addr add 10.197.0.{number}/16 dev eth0"))?;
        lab.ip_in(container, "link set eth0 up")?;
    }
    Ok(Pair { from, to, addr: lab.address(to, Underlay::Ipv4)? })
}

/// Where wireguard-go and what configures it are, if they are.
pub fn find_wireguard() -> Option<PathBuf> {
    system::find("wg")?;
    env::var_os("WIREGUARD_GO").map(PathBuf::from).or_else(|| system::find("wireguard-go"))
}

/// Routes containers of both nodes through wireguard-go.
pub fn lay_wireguard(lab: &mut Lab, program: &Path) -> anyhow::Result<Pair> {
    let nodes = lab.nodes();
    let keys = lab.folder().join("wireguard");
    fs::create_dir(&keys).with_context(|| format!("make {}", keys.display()))?;
    let key = |number: usize| keys.join(format!("{number}.key"));
    let mut public = Vec::new();
    for number in [1, 2] {
        let generate = format!("umask 077; wg genkey | tee {} | wg pubkey", key(number).display());
        public.push(
            process::output(&mut process::command(["sh", "-c", &generate]))?.trim().to_owned(),
        );
    }
    for (number, other) in [(1, 2), (2, 1)] {
        let (node, container) = (&nodes[number - 1].0, format!("g{number}"));
        // Its socket is in a folder of the machine, so no other may have the name.
        let device = format!("wg{}-{number}", std::process::id());
        let log = keys.join(format!("{number}.log"));
        let words = [program.as_os_str(), "-f".as_ref(), device.as_ref()];
        let daemon = lab.spawn(node, &log, &words)?;
        let socket = PathBuf::from(format!("/var/run/wireguard/{device}.sock"));
        while !socket.exists() {
            signals::check()?;
            if !daemon.is_running() {
                bail!("wireguard-go ended: {}", end_of(&log));
            }
            thread::sleep(Duration::from_millis(10));
        }
        let endpoint = format!("{}:51820", nodes[other - 1].1);
        let subnet = format!("10.198.{other}.0/24");
        let set = format!(
            "set {device} listen-port 51820 private-key {} peer {} endpoint {endpoint} allowed-ips {subnet}",
            key(number).display(),
            public[other - 1]
        );
        process::output(lab.inside(node).arg("wg").args(set.split(' ')))?;
        lab.netns(&container)?;
        let inside = lab.full(&container);
        lab.ip_in(node, &format!("link set {device} mtu 1420 up"))?;
        lab.ip_in(
            node,
            &format!("link add g0 mtu 1420 type veth peer name eth0 netns {inside} mtu 1420"),
        )?;
        lab.ip_in(node, &format!("addr add 10.198.{number}.1/24 dev g0"))?;
        lab.ip_in(node, "link set g0 up")?;
        lab.ip_in(node, &format!("route add {subnet} dev {device}"))?;
        lab.ip_in(&container, &format!("addr add 10.198.{number}.2/24 dev eth0"))?;
        lab.ip_in(&container, "link set eth0 up")?;
        lab.ip_in(&container, &format!("route add default via 10.198.{number}.1"))?;
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        process::output(lab.inside(node).args(["sh", "-c", forward]))?;
    }
    let (from, to) = ("g1", "g2");
    Ok(Pair { from, to, addr: lab.address(to, Underlay::Ipv4)? })
}
