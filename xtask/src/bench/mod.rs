//! `cargo xtask bench`: the measured functions of tests/bench, and, as root, containers of ours beside the
//! kernel's VXLAN built as Docker builds it, in one table of ratios. Read ratios, never absolute figures:
//! both nodes and both ends of the load share this machine's cores.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{bail, ensure};

use self::{
    figures::{Better, Row},
    peers::Pair,
};
use crate::{
    lab::{Lab, Offloads, Process, Underlay},
    machine,
    process::{self, complain, say},
    system,
    traffic::{RoundTrips, Route, Transport},
    userns,
    workspace::{self, Programs},
};

mod daemon;
mod figures;
mod peers;

/// Measures functions and, as root, containers beside the kernel's VXLAN; takes about ten minutes.
#[derive(clap::Args)]
pub struct Args {
    /// Two containers of one node beside a Linux bridge instead
    #[arg(long)]
    same_node: bool,
    /// Write the figures with commit and machine to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Show the ratios of such a file beside these
    #[arg(long)]
    compare: Option<PathBuf>,
}

/// How long each stream is measured, in seconds.
const SECONDS: u64 = 3;
/// How often; ours and the peer's take turns.
const ROUNDS: usize = 3;
/// How long an idle node is watched.
const IDLE: Duration = Duration::from_secs(60);
/// How long evenly spaced packets come.
const EVEN: Duration = Duration::from_secs(10);
/// How long datagrams come as fast as they go.
const FLOOD: Duration = Duration::from_secs(3);

/// Measures, prints a table, writes the JSON.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let root = rustix::process::geteuid().is_root() && !userns::inside();
    if !root && args.same_node {
        bail!("what containers reach is measured as root only");
    }
    let before = args.compare.as_deref().map(figures::read).transpose()?;
    let programs = Programs::build()?;
    if !args.same_node {
        process::run(&mut workspace::cargo(["bench", "--bench", "bench", "--no-run"]))?;
    }
    if root {
        system::need(system::LAB)?;
        system::need(system::ETHTOOL)?;
    } else {
        complain("what containers reach needs root; only functions are measured");
    }
    let _alone = machine::alone()?;
    let mut rows = Vec::new();
    let measured = if args.same_node {
        beside_bridge(&programs, &mut rows)
    } else {
        functions(&mut rows)
            .and_then(|()| if root { beside_vxlan(&programs, &mut rows) } else { Ok(()) })
    };
    // What was measured before a failure took its time, too.
    if !rows.is_empty() {
        say(format_args!("\n{}", figures::table(&rows, before.as_deref())));
        if let Some(path) = &args.json {
            figures::write(path, &rows)?;
        }
    }
    measured.map(|()| ExitCode::SUCCESS)
}

/// The functions that tests/bench measures.
fn functions(rows: &mut Vec<Row>) -> anyhow::Result<()> {
    complain("functions of the packet path and the tables");
    let mut run = workspace::cargo(["bench", "--quiet", "--bench", "bench"]);
    let status = process::lines(&mut run, |line| rows.extend(function(line)))?;
    ensure!(status.success(), "tests/bench ended with {status}");
    Ok(())
}

/// Reads `NAME   FIGURE ns`.
fn function(line: &str) -> Option<Row> {
    let (name, figure) = line.strip_suffix(" ns")?.rsplit_once(' ')?;
    let name = format!("{}, ns", name.trim_end());
    Some(Row::new(name, Better::Lower, vec![figure.parse().ok()?], Vec::new()))
}

fn beside_vxlan(programs: &Programs, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    for offloads in [Offloads::On, Offloads::Off] {
        let mut lab = Lab::lay(&name(), 2, Underlay::Ipv4, offloads)?;
        let vxlan = peers::lay_vxlan(&mut lab)?;
        let (pair, daemons) = peers::lay_ours(&mut lab, programs)?;
        let (ours, vxlan) = rounds([pair.route(&lab), vxlan.route(&lab)])?;
        rows.extend(compared(offloads, &ours, &vxlan));
        if offloads == Offloads::Off {
            rows.extend(beside_wireguard(&mut lab, &pair)?);
            rows.extend(alone(&lab, &pair, &daemons)?);
        }
        lab.down()?;
    }
    rows.extend(of_ipv6(programs)?);
    Ok(())
}

/// IPv6 inside and outside, beside IPv4.
fn of_ipv6(programs: &Programs) -> anyhow::Result<Vec<Row>> {
    let mut labs = Vec::new();
    for (suffix, underlay) in [("6", Underlay::Ipv6), ("4", Underlay::Ipv4)] {
        let mut lab = Lab::lay(&format!("{}-{suffix}", name()), 2, underlay, Offloads::Off)?;
        let (pair, _) = peers::lay_ours(&mut lab, programs)?;
        labs.push((lab, pair));
    }
    let [(lab_6, pair_6), (lab_4, pair_4)] = &labs[..] else { unreachable!("two were laid") };
    let addr = lab_6.address(pair_6.to, Underlay::Ipv6)?;
    let (six, four) = rounds([Route { addr, ..pair_6.route(lab_6) }, pair_4.route(lab_4)])?;
    for (lab, _) in labs {
        lab.down()?;
    }
    let row = |name: &str, better, of: fn(&Load) -> f64| {
        row(&format!("{name}, IPv6 beside IPv4"), better, &six, &four, of)
    };
    Ok(vec![
        row("TCP, 1 stream, Gbit/s", Better::Higher, |load| load.tcp_1).asked(0.9, 1.0),
        row("UDP 64 B, 1000/s", Better::Higher, |load| load.datagrams).asked(0.9, 1.0),
        row("UDP round trip, us", Better::Lower, |load| load.udp.p50_us).asked(1.1, 1.0),
    ])
}

fn beside_bridge(programs: &Programs, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let mut lab = Lab::lay(&name(), 1, Underlay::Ipv4, Offloads::On)?;
    let bridge = peers::lay_bridge(&mut lab)?;
    let (ours, _) = peers::lay_ours(&mut lab, programs)?;
    let (ours, bridge) = rounds([ours.route(&lab), bridge.route(&lab)])?;
    lab.down()?;
    let row = |name: &str, better, of: fn(&Load) -> f64| row(name, better, &ours, &bridge, of);
    rows.extend([
        row("TCP, 1 stream, Gbit/s", Better::Higher, |load| load.tcp_1).asked(0.35, 0.5),
        row("TCP, 4 streams, Gbit/s", Better::Higher, |load| load.tcp_4),
        row("UDP 64 B, 1000/s", Better::Higher, |load| load.datagrams),
        row("UDP round trip, us", Better::Lower, |load| load.udp.p50_us).asked(1.3, 1.0),
        row("UDP round trip, p99, us", Better::Lower, |load| load.udp.p99_us),
        row("TCP round trip, us", Better::Lower, |load| load.tcp.p50_us),
    ]);
    Ok(())
}

/// What one round found of one pair.
#[derive(Clone, Copy)]
struct Load {
    tcp_1: f64,
    tcp_4: f64,
    /// Seconds of all processors for 10^9 bytes of these streams.
    seconds_a_gb: f64,
    /// Thousands a second.
    datagrams: f64,
    udp: RoundTrips,
    tcp: RoundTrips,
}

impl Load {
    fn whole(route: Route<'_>) -> anyhow::Result<Self> {
        let before = daemon::busy_seconds()?;
        let tcp_1 = route.streams(1, SECONDS)? / 1e9;
        let tcp_4 = route.streams(4, SECONDS)? / 1e9;
        let busy = daemon::busy_seconds()? - before;
        let gigabytes = (tcp_1 + tcp_4) * SECONDS as f64 / 8.0;
        Ok(Self {
            tcp_1,
            tcp_4,
            seconds_a_gb: busy / gigabytes,
            datagrams: route.most_datagrams()? / 1e3,
            udp: route.round_trips(Transport::Udp)?,
            tcp: route.round_trips(Transport::Tcp)?,
        })
    }
}

/// Measures two routes in turns.
fn rounds([ours, peer]: [Route<'_>; 2]) -> anyhow::Result<(Vec<Load>, Vec<Load>)> {
    let (mut of_ours, mut of_peer) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let [from, beside] = [ours, peer].map(|route| route.lab.full(route.from));
        complain(format_args!("round {round} of {ROUNDS}: {from} beside {beside}"));
        of_ours.push(Load::whole(ours)?);
        of_peer.push(Load::whole(peer)?);
    }
    Ok((of_ours, of_peer))
}

fn compared(offloads: Offloads, ours: &[Load], vxlan: &[Load]) -> Vec<Row> {
    let wire = match offloads {
        Offloads::On => "whole on the wire",
        Offloads::Off => "1500 on the wire",
    };
    let row = |name: &str, better, of: fn(&Load) -> f64| {
        row(&format!("{name}, {wire}"), better, ours, vxlan, of)
    };
    let one = row("TCP, 1 stream, Gbit/s", Better::Higher, |load| load.tcp_1);
    let four = row("TCP, 4 streams, Gbit/s", Better::Higher, |load| load.tcp_4);
    let seconds = row("CPU s per GB", Better::Lower, |load| load.seconds_a_gb);
    let [one, four, seconds] = match offloads {
        Offloads::On => [one.asked(0.55, 1.0), four.asked(0.35, 0.7), seconds],
        Offloads::Off => [one.asked(0.95, 1.2), four.asked(0.85, 1.1), seconds.asked(1.2, 1.0)],
    };
    vec![
        one,
        four,
        seconds,
        row("UDP 64 B, 1000/s", Better::Higher, |load| load.datagrams).asked(1.5, 3.0),
        row("UDP round trip, us", Better::Lower, |load| load.udp.p50_us).asked(0.7, 0.45),
        row("UDP round trip, p99, us", Better::Lower, |load| load.udp.p99_us),
        row("TCP round trip, us", Better::Lower, |load| load.tcp.p50_us).asked(0.7, 0.45),
        row("TCP round trip, p99, us", Better::Lower, |load| load.tcp.p99_us),
    ]
}

fn row(name: &str, better: Better, ours: &[Load], peer: &[Load], of: impl Fn(&Load) -> f64) -> Row {
    let of_all = |loads: &[Load]| loads.iter().map(&of).collect();
    Row::new(name, better, of_all(ours), of_all(peer))
}

/// The best of the user-space tunnels, if it is installed.
fn beside_wireguard(lab: &mut Lab, ours: &Pair) -> anyhow::Result<Option<Row>> {
    let Some(program) = peers::find_wireguard() else {
        complain("no wireguard-go here (or at $WIREGUARD_GO); not measured");
        return Ok(None);
    };
    let theirs = peers::lay_wireguard(lab, &program)?;
    let (mut of_ours, mut of_theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        of_ours.push(ours.route(lab).streams(1, SECONDS)? / 1e9);
        of_theirs.push(theirs.route(lab).streams(1, SECONDS)? / 1e9);
    }
    let name = "TCP, 1 stream, Gbit/s, 1500 on the wire, beside wireguard-go";
    Ok(Some(Row::new(name, Better::Higher, of_ours, of_theirs).asked(5.0, 8.0)))
}

/// What a daemon costs when nothing, little, and too much happens.
fn alone(lab: &Lab, pair: &Pair, daemons: &[Process]) -> anyhow::Result<Vec<Row>> {
    let worker = daemons[1];
    complain(format_args!("{}: an idle worker for {IDLE:?}", lab.name()));
    let idle = daemon::cost(worker, IDLE)?;
    let even = || pair.route(lab).datagrams(1000, EVEN);
    let (even, datagrams) = daemon::cost_of(worker, even)?;
    pair.route(lab).datagrams(0, FLOOD)?;
    let mut peak = 0;
    for daemon in daemons {
        peak = peak.max(daemon::peak_memory(*daemon)?);
    }
    let single = |name: &str, figure: f64| Row::new(name, Better::Lower, vec![figure], Vec::new());
    let a_second = |switches: u64| switches as f64 / IDLE.as_secs_f64();
    let of_a_core = even.ticks as f64 / EVEN.as_secs_f64();
    let lost = 1.0 - datagrams.received as f64 / datagrams.sent as f64;
    Ok(vec![
        single("idle worker: switches a thread and s", a_second(idle.switches)).asked(1.0, 1.0),
        single("idle worker: of a forwarding thread", a_second(idle.forwarding)).asked(1.0, 0.0),
        single("idle worker: CPU ticks in 60 s", idle.ticks as f64).asked(0.0, 0.0),
        single("1,000 packets/s: % of a core", of_a_core).asked(5.0, 5.0),
        single("1,000 packets/s: % lost", lost * 100.0).asked(1.0, 0.0),
        single("peak memory, MB", peak as f64 / 1e6).asked(64.0, 32.0),
    ])
}

fn name() -> String {
    format!("bench-{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measured_function_is_a_row_of_its_own() {
        let row = function("session: seal 64 B                             101.5 ns").unwrap();
        assert_eq!((row.name.as_str(), &row.ours[..]), ("session: seal 64 B, ns", &[101.5][..]));
        assert!(function("running 3 benches").is_none());
    }
}
