//! `cargo xtask bench`: the measured functions of tests/bench, and, as root, TCP between containers
//! beside the kernel's VXLAN built as Docker builds it. Read ratios, never absolute figures: both
//! nodes and both ends of the load share this machine's cores.

use std::{
    fs::{self, File},
    net::IpAddr,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::Context;
use rustix::fs::FlockOperation;

use crate::{
    lab::{Lab, Offloads, Underlay},
    machine,
    process::{self, complain, say},
    signals, system, traffic, userns,
    workspace::{self, Programs},
};

/// Measures functions and, as root, TCP beside the kernel's VXLAN; takes about two minutes.
#[derive(clap::Args)]
pub struct Args {
    /// Write the figures with commit and machine to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

/// How long each stream is measured, in seconds.
const SECONDS: u64 = 3;
/// How often; the median counts, and ours and the kernel's take turns.
const ROUNDS: usize = 3;

/// Gigabits per second of one setting.
struct Row {
    offloads: Offloads,
    streams: usize,
    ours: f64,
    vxlan: f64,
}

/// Measures, prints a table, writes the JSON.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let programs = Programs::build()?;
    process::run(&mut workspace::cargo(["bench", "--bench", "bench", "--no-run"]))?;
    let _lock = lock()?;
    process::run(&mut workspace::cargo(["bench", "--quiet", "--bench", "bench"]))?;
    if !rustix::process::geteuid().is_root() || userns::inside() {
        complain("TCP beside the kernel's VXLAN needs root; not measured");
        return Ok(ExitCode::SUCCESS);
    }
    system::need(system::LAB)?;
    system::need(system::ETHTOOL)?;
    let mut rows = Vec::new();
    for offloads in [Offloads::On, Offloads::Off] {
        rows.extend(beside_vxlan(&programs, offloads)?);
    }
    say("\nTCP, Gbit/s       ours   vxlan   ratio");
    for row in &rows {
        let setting = format!("{} x{}", row.underlay(), row.streams);
        say(format_args!(
            "{setting:<14} {:>7.2} {:>7.2} {:>7.2}",
            row.ours,
            row.vxlan,
            row.ratio()
        ));
    }
    if let Some(path) = &args.json {
        fs::write(path, json(&rows)?).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Two measurements at once would measure each other.
fn lock() -> anyhow::Result<File> {
    let path = std::env::temp_dir().join("bench.lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    let mut told = false;
    while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        signals::check()?;
        if !told {
            complain(format_args!("waiting for another measurement ({})", path.display()));
            told = true;
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(file)
}

fn beside_vxlan(programs: &Programs, offloads: Offloads) -> anyhow::Result<Vec<Row>> {
    let name = format!("bench-{}", std::process::id());
    let mut lab = Lab::lay(&name, 2, Underlay::Ipv4, offloads)?;
    let vxlan = lay_vxlan(&mut lab)?;
    let ours = lay_ours(&mut lab, programs)?;
    let mut rows = Vec::new();
    for streams in [1, 4] {
        let (mut of_ours, mut of_vxlan) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            for (figures, containers, addr) in
                [(&mut of_ours, ["c1", "c2"], ours), (&mut of_vxlan, ["k1", "k2"], vxlan)]
            {
                let [from, to] = containers.map(|container| lab.inside(container));
                figures.push(traffic::measure(to, from, addr, streams, SECONDS)? / 1e9);
            }
        }
        rows.push(Row { offloads, streams, ours: median(of_ours), vxlan: median(of_vxlan) });
    }
    lab.down()?;
    Ok(rows)
}

/// Containers c1 and c2 on a sealed network; returns the address of c2.
fn lay_ours(lab: &mut Lab, programs: &Programs) -> anyhow::Result<IpAddr> {
    for (node, _) in lab.nodes() {
        lab.start(&node, programs)?;
    }
    lab.form_cluster(programs)?;
    let create = ["network", "create", "blue"];
    process::output(lab.overlayctl(programs, "n1").args(create))?;
    for (node, container) in [("n1", "c1"), ("n2", "c2")] {
        lab.netns(container)?;
        let target = format!("netns:{}", lab.full(container));
        let attach = ["attach", &target, "--network", "blue", "--name", container];
        process::output(lab.overlayctl(programs, node).args(attach))?;
    }
    lab.address("c2")
}

/// Containers k1 and k2 behind a bridge and a vxlan device in namespaces v1 and v2, with static
/// forwarding entries and neighbours; returns the address of k2.
fn lay_vxlan(lab: &mut Lab) -> anyhow::Result<IpAddr> {
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
    lab.address("k2")
}

impl Row {
    fn underlay(&self) -> &'static str {
        match self.offloads {
            Offloads::On => "default",
            Offloads::Off => "noffl",
        }
    }

    fn ratio(&self) -> f64 {
        self.ours / self.vxlan
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn json(rows: &[Row]) -> anyhow::Result<String> {
    let rows: Vec<String> = rows.iter().map(|row| format!(
        "    {{\"underlay\": \"{}\", \"streams\": {}, \"ours_gbps\": {:.3}, \"vxlan_gbps\": {:.3}, \"ratio\": {:.3}}}",
        row.underlay(), row.streams, row.ours, row.vxlan, row.ratio()
    )).collect();
    Ok(format!("{{\n{},\n  \"tcp\": [\n{}\n  ]\n}}\n", machine::json()?, rows.join(",\n")))
}
