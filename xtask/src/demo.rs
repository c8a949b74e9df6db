//! `cargo xtask demo`: what the README promises, shown on one machine.

use std::{
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    lab::{self, Lab, Offloads, Process, Underlay, manager},
    process::{self, complain, say, shown},
    signals, system, traffic,
    workspace::Programs,
};

/// Starts three nodes on this machine, makes a network, attaches containers and sends traffic.
///
/// Runs as root, and without root inside a user namespace where the kernel allows that. Nothing is
/// left behind, also after Ctrl-C or a failure.
#[derive(clap::Args)]
pub struct Args {
    /// Leave everything up, and say how to look around and how to end it
    #[arg(long)]
    keep: bool,
    /// Use the programs in the release folder (or in the folder that OVERLAY_BIN names) as they are
    #[arg(long)]
    no_build: bool,
    /// How many of the nodes are managers; with 3, the one that leads is killed, and the others go on
    #[arg(long, default_value_t = 1, value_name = "1|3", value_parser = managers)]
    managers: usize,
}

fn managers(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("use 1 or 3".to_owned()),
    }
}

/// How long the others may take to go on.
const PATIENCE: Duration = Duration::from_secs(10);

/// Shows it; what was made goes with the lab at the end of the scope, however that is reached.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    system::need(system::LAB)?;
    let programs = if args.no_build { Programs::built() } else { Programs::build() }?;
    if let Some(code) = lab::reenter(&programs)? {
        return Ok(code);
    }
    let start = Instant::now();
    let name = format!("demo-{}", std::process::id());
    let mut demo = Demo { lab: Lab::lay(&name, 3, Underlay::Ipv4, Offloads::On)?, programs };
    let first = demo.cluster(args.managers)?;
    demo.containers()?;
    demo.traffic()?;
    demo.look()?;
    if args.managers > 1 {
        demo.go_on_without(first)?;
    }
    complain(format_args!("\nall of this took {:.1} s", start.elapsed().as_secs_f64()));
    signals::check()?;
    if args.keep {
        demo.lab.keep();
        demo.hints();
    } else {
        demo.lab.down()?;
    }
    Ok(ExitCode::SUCCESS)
}

struct Demo {
    lab: Lab,
    programs: Programs,
}

impl Demo {
    /// Makes the cluster; returns the daemon of the first node, which leads it.
    fn cluster(&mut self, managers: usize) -> anyhow::Result<Process> {
        say("# Three hosts; here each is a network namespace with one underlay address.");
        let nodes = self.lab.nodes();
        let mut daemons = Vec::new();
        for (node, address) in &nodes {
            say(format_args!("{node}$ overlayd &        # {address}"));
            daemons.push(self.lab.start(node, &self.programs)?);
        }
        say("\n# The first makes the cluster, the others join it by its token.");
        self.overlayctl("n1", &["init", "--name", "n1"])?;
        let role = if managers > 1 { "manager" } else { "worker" };
        let mut token = self.lab.overlayctl(&self.programs, "n1");
        let token = process::output(token.args(["join-token", role, "-q"]))?;
        let manager = manager(&nodes[0].1);
        for (node, _) in &nodes[1..] {
            self.overlayctl(node, &["join", "--token", token.trim(), &manager, "--name", node])?;
        }
        Ok(daemons[0])
    }

    /// Kills the daemon that leads, and shows that the others decide and forward as before.
    fn go_on_without(&self, leader: Process) -> anyhow::Result<()> {
        say("\n# All three are managers. The one that leads is killed:");
        say("n1$ kill -9 $(pidof overlayd)");
        let killed = Instant::now();
        leader.signal(Signal::KILL);
        let deadline = killed + PATIENCE;
        loop {
            let mut create = self.lab.overlayctl(&self.programs, "n2");
            match process::output(create.args(["network", "create", "red"])) {
                Ok(_) => break,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
            signals::check()?;
        }
        say("n2$ overlayctl network create red");
        say(format_args!("# done, {:.1} s after the kill", killed.elapsed().as_secs_f64()));
        self.overlayctl("n3", &["node", "ls"])?;
        let second = self.lab.address("c2", Underlay::Ipv4)?.to_string();
        self.shell("c3", &["ping", "-c", "3", "-i", "0.2", "-W", "2", &second])
    }

    fn containers(&mut self) -> anyhow::Result<()> {
        say("\n# A network, and a container on each host: any network namespace will do.");
        self.overlayctl("n1", &["network", "create", "blue"])?;
        for (node, container) in [("n1", "c1"), ("n2", "c2"), ("n3", "c3")] {
            self.lab.netns(container)?;
            let target = format!("netns:{}", self.lab.full(container));
            self.overlayctl(node, &["attach", &target, "--network", "blue", "--name", container])?;
        }
        Ok(())
    }

    fn traffic(&self) -> anyhow::Result<()> {
        let first = self.lab.address("c1", Underlay::Ipv4)?.to_string();
        let second = self.lab.address("c2", Underlay::Ipv4)?;
        say("\n# They reach each other; nothing crosses the underlay in clear.");
        self.shell("c1", &["ping", "-c", "3", "-i", "0.2", "-W", "2", &second.to_string()])?;
        say("\n# So does a command in a fresh namespace of its own.");
        let ping = ["ping", "-c", "3", "-i", "0.2", "-W", "2", &first];
        let run = ["run", "--network", "blue", "--name", "once", "--"];
        self.overlayctl("n3", &[run.as_slice(), &ping].concat())?;
        say("\n# TCP from c1 to c2, one stream for 3 s:");
        let route = traffic::Route { lab: &self.lab, from: "c1", to: "c2", addr: second };
        let bits = route.streams(1, 3)?;
        say(format_args!("{:.2} Gbit/s", bits / 1e9));
        Ok(())
    }

    fn look(&self) -> anyhow::Result<()> {
        say("\n# What the cluster looks like, and what each node knows of its peers:");
        self.overlayctl("n1", &["node", "ls"])?;
        self.overlayctl("n1", &["peers"])
    }

    fn hints(&self) {
        let name = self.lab.name();
        say("\nLook around:");
        say(format_args!(
            "  cargo xtask lab exec --name {name} n1 -- overlayctl network inspect blue"
        ));
        say(format_args!("  cargo xtask lab exec --name {name} n2 -- overlayctl stats"));
        say(format_args!("  cargo xtask lab exec --name {name} c1 -- ip address"));
        say("End it:");
        say(format_args!("  cargo xtask lab down --name {name}"));
    }

    /// Shows and runs `overlayctl` on a node.
    fn overlayctl(&self, node: &str, words: &[&str]) -> anyhow::Result<()> {
        let mut command = self.lab.overlayctl(&self.programs, node);
        say(format_args!("{node}$ overlayctl {}", words.join(" ")));
        process::run(command.args(words))
    }

    /// Shows and runs a command in a container.
    fn shell(&self, container: &str, words: &[&str]) -> anyhow::Result<()> {
        let typed: &mut Command = &mut process::command(words);
        say(format_args!("{container}$ {}", shown(typed)));
        process::run(self.lab.inside(container).args(words))
    }
}
