//! `cargo xtask lab`: nodes in network namespaces, and the [`Lab`] that demo and bench build on too.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, bail};
use clap::Subcommand;

use self::ledger::Ledger;
pub use self::{
    ledger::{Process, folder},
    nodes::{end_of, manager},
    topology::{Offloads, Underlay},
};
use crate::{
    process::{complain, say},
    signals, system,
    system::tool,
    userns,
    workspace::Programs,
};

mod ledger;
mod nodes;
mod topology;

/// Nodes in network namespaces on a shared underlay, to try things on.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Builds the programs and starts a cluster of nodes
    Up(Up),
    /// Ends a lab and removes all of it
    Down(Name),
    /// Lists the labs that are up, and their nodes
    Status,
    /// Runs a command in a node's (n1, n2...) or container's (c1...) namespace
    Exec {
        #[command(flatten)]
        name: Name,
        /// The node or container
        node: String,
        /// The command
        #[arg(last = true, required = true)]
        words: Vec<OsString>,
    },
}

#[derive(clap::Args)]
struct Name {
    /// The lab's name
    #[arg(long, default_value = "lab")]
    name: String,
}

#[derive(clap::Args)]
struct Up {
    #[command(flatten)]
    name: Name,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
    nodes: u8,
    /// The family of the underlay's addresses
    #[arg(long, value_enum, default_value_t = Underlay::Ipv4)]
    underlay: Underlay,
    /// Turn the underlay's segmentation offloads off: real packets of at most 1500 bytes
    #[arg(long)]
    no_offloads: bool,
}

/// Runs one verb of the lab.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Up(up) => return up.run(),
        Verb::Down(name) => Lab::open(&name.name)?.down()?,
        Verb::Status => status()?,
        Verb::Exec { name, node, words } => return Err(exec(&name.name, node, words)?),
    }
    Ok(ExitCode::SUCCESS)
}

/// Namespaces, and the daemons in them. Dropping it takes all of it down, unless it is to be kept.
#[derive(Debug)]
pub struct Lab {
    name: String,
    ledger: Ledger,
    keep: bool,
}

impl Lab {
    /// Makes nodes' namespaces on an underlay, no daemon in them yet.
    pub fn lay(
        name: &str,
        nodes: usize,
        underlay: Underlay,
        offloads: Offloads,
    ) -> anyhow::Result<Self> {
        let mut lab = Self { name: name.to_owned(), ledger: Ledger::create(name)?, keep: false };
        if userns::inside() {
            lab.ledger.add("user".to_owned())?;
        }
        lab.lay_underlay()?;
        for number in 1..=nodes {
            lab.lay_node(number, underlay, offloads)?;
        }
        Ok(lab)
    }

    /// Finds a lab that is up.
    pub fn open(name: &str) -> anyhow::Result<Self> {
        Ok(Self { name: name.to_owned(), ledger: Ledger::open(name)?, keep: true })
    }

    /// Leaves the lab up when this handle goes.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The full name of one of its namespaces.
    pub fn full(&self, short: &str) -> String {
        format!("ovl-{}-{short}", self.name)
    }

    /// Where it keeps what it writes.
    pub fn folder(&self) -> &Path {
        &self.ledger.folder
    }

    /// The nodes with their underlay addresses.
    pub fn nodes(&self) -> Vec<(String, String)> {
        let pair =
            |words: Vec<&str>| Some(((*words.first()?).to_owned(), (*words.get(1)?).to_owned()));
        self.ledger.entries("node").filter_map(pair).collect()
    }

    /// A command in one of the namespaces; its program is the first argument to add.
    pub fn inside(&self, short: &str) -> Command {
        let mut command = tool("nsenter");
        if self.ledger.entries("user").next().is_some() && !userns::inside() {
            let daemon =
                self.ledger.processes().into_iter().find(|(process, _)| process.is_running());
            if let Some((process, _)) = daemon {
                command.args(["--user", "--mount", "--preserve-credentials", "--target"]);
                command.args([&process.pid.to_string(), "nsenter"]);
            }
        }
        command.arg(format!("--net=/run/netns/{}", self.full(short))).arg("--");
        command
    }

    /// Ends the processes, removes the namespaces, forgets the lab; goes on after a failure, and
    /// keeps the ledger then so that it can be tried again.
    pub fn down(mut self) -> anyhow::Result<()> {
        self.keep = true;
        self.take_down()
    }

    fn take_down(&self) -> anyhow::Result<()> {
        let daemons: Vec<Process> =
            self.ledger.processes().into_iter().map(|(process, _)| process).collect();
        // While the daemons run: they may be all that shows the namespaces.
        let others = self.ledger.inhabitants();
        let mut left: Vec<String> = Vec::new();
        for stubborn in nodes::end(&daemons).into_iter().chain(nodes::end(&others)) {
            left.push(format!("process {}", stubborn.pid));
        }
        for words in self.ledger.entries("netns") {
            let name = words.concat();
            if let Err(error) = Self::remove_netns(&name) {
                left.push(format!("namespace {name} ({error:#})"));
            }
        }
        if !left.is_empty() {
            bail!("lab {} is not quite gone: {}; try `lab down` again", self.name, left.join(", "));
        }
        self.ledger.remove()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = self.take_down()
        {
            complain(format_args!("xtask: {error:#}"));
        }
    }
}

/// Starts this program again where a lab of these programs can be made, if that is not here.
pub fn reenter(programs: &Programs) -> anyhow::Result<Option<ExitCode>> {
    let folder = folder();
    userns::reenter(&[
        ("OVERLAY_BIN", programs.folder.as_os_str()),
        ("OVERLAY_LAB_DIR", folder.as_os_str()),
    ])
}

impl Up {
    fn run(&self) -> anyhow::Result<ExitCode> {
        system::need(system::LAB)?;
        if self.no_offloads {
            system::need(system::ETHTOOL)?;
        }
        let programs = Programs::build()?;
        if let Some(code) = reenter(&programs)? {
            return Ok(code);
        }
        let offloads = if self.no_offloads { Offloads::Off } else { Offloads::On };
        let mut lab = Lab::lay(&self.name.name, self.nodes.into(), self.underlay, offloads)?;
        for (node, address) in lab.nodes() {
            lab.start(&node, &programs)?;
            complain(format_args!("{node}: overlayd runs, underlay address {address}"));
        }
        lab.form_cluster(&programs, 1)?;
        signals::check()?;
        lab.keep();
        say(format_args!("lab {} is up:", lab.name));
        say(format_args!("  cargo xtask lab exec --name {} n1 -- overlayctl node ls", lab.name));
        say(format_args!("  cargo xtask lab down --name {}", lab.name));
        Ok(ExitCode::SUCCESS)
    }
}

fn status() -> anyhow::Result<()> {
    for name in Ledger::names()? {
        let lab = Lab::open(&name)?;
        let daemons = lab.ledger.processes();
        say(format_args!("{name}:"));
        for (node, address) in lab.nodes() {
            let process =
                daemons.iter().rev().find(|daemon| daemon.1 == node).map(|daemon| daemon.0);
            let state = match process {
                Some(process) if process.is_running() => format!("running, pid {}", process.pid),
                Some(process) => format!("ended, was pid {}", process.pid),
                None => "not started".to_owned(),
            };
            let log = lab.ledger.folder.join(&node).join("log");
            say(format_args!("  {node:<4} {address:<16} {state:<20} {}", log.display()));
        }
    }
    Ok(())
}

/// Becomes the command; returns only what went wrong.
fn exec(name: &str, node: &str, words: &[OsString]) -> anyhow::Result<anyhow::Error> {
    let lab = Lab::open(name)?;
    let full = lab.full(node);
    if !lab.ledger.entries("netns").any(|words| words.concat() == full) {
        let known: Vec<String> = lab.ledger.entries("netns").map(|words| words.concat()).collect();
        let prefix = lab.full("");
        let known: Vec<&str> = known.iter().filter_map(|name| name.strip_prefix(&prefix)).collect();
        bail!("lab {name} has no '{node}'; it has {}", known.join(", "));
    }
    // A container is not a node; what is run there speaks to the first one.
    let node = if lab.socket(node).exists() { node } else { "n1" };
    let mut path =
        Programs::built().map_or_else(|_| OsString::new(), |programs| programs.folder.into());
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = lab.inside(full.strip_prefix(&lab.full("")).unwrap_or(node));
    command.args(words).env("OVERLAY_SOCKET", lab.socket(node)).env("PATH", path);
    let error = command.exec();
    Err(error).context(format!("run {}", words[0].to_string_lossy()))
}
