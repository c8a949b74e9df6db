//! The victim in a process of its own, so that its memory can be told apart.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
};

use overlay::{
    agent::{
        Target,
        dataplane::{Dataplane, DefaultRoute},
    },
    engine::membership::Table,
    io::netns::Namespace,
    types::{Encap, Endpoint, EndpointId, Network, NetworkId, Vni},
};

use crate::{
    lab::{Host, Lab, honest_address},
    victim::{self, VICTIM_NODE, node_id, peer},
};

/// Makes this program the victim, in the namespace that it names.
pub const VICTIM: &str = "OVERLAY_ATTACK_VICTIM";
/// The namespace of its containers.
const CONTAINERS: &str = "OVERLAY_ATTACK_CONTAINERS";

/// The process, as the test sees it. Closing its standard input ends it.
pub struct VictimProcess {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl VictimProcess {
    /// Starts it, without peers and endpoints.
    pub fn start(lab: &Lab) -> Self {
        let me = std::env::current_exe().expect("the path of this program");
        let mut command = Command::new(me);
        command.env(VICTIM, lab.path(Host::Victim)).env(CONTAINERS, lab.path(Host::Container));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start the victim");
        let said = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut process = Self { child, said };
        assert_eq!(process.line(), "ready");
        process
    }

    /// Has it do one of these, and returns what it says: `drops`, `peers FIRST COUNT`,
    /// `endpoints COUNT`.
    pub fn ask(&mut self, what: &str) -> String {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "{what}").expect("the victim listens");
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("the victim speaks");
        line.trim_end().to_owned()
    }

    /// Reads a line of the process's memory.
    pub fn memory_kib(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("the victim runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let words = line.expect("a field").split_whitespace().next().expect("a number");
        words.parse().expect("a number")
    }
}

impl Drop for VictimProcess {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The work of the victim's process.
pub fn victim() {
    let path = std::env::var_os(VICTIM).expect("the caller looked");
    let namespace = Namespace::open(path.as_ref()).expect("the namespace was made");
    let containers = std::env::var_os(CONTAINERS).expect("it comes with the other");
    let containers = Target::Netns(containers.into());
    let mut table = Table::empty(node_id(VICTIM_NODE));
    let start = async || victim::start(&Arc::new(table.clone()));
    let dataplane = namespace.run(start).expect("a data plane");
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line.expect("the test speaks");
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u16>().expect("a number");
        match words[0] {
            "drops" => println!("{}", drops(&dataplane)),
            "peers" => {
                for node in number(1)..number(1) + number(2) {
                    let peer = peer(node, &honest_address(node).to_string());
                    table.peers.insert(peer.id, peer);
                }
                dataplane.publish(Arc::new(table.clone()));
                println!("known");
            }
            "endpoints" => {
                let made: Vec<_> = (1..=number(1)).map(|number| add(&mut table, number)).collect();
                dataplane.publish(Arc::new(table.clone()));
                let attach = async || {
                    for (network, endpoint) in &made {
                        let leave = DefaultRoute::Leave;
                        dataplane.attach(network, endpoint, &containers, None, leave).await?;
                    }
                    Ok(())
                };
                namespace.run(attach).expect("devices");
                println!("attached");
            }
            other => panic!("the test asked for '{other}'"),
        }
    }
}

fn drops(dataplane: &Dataplane) -> String {
    let drops = dataplane.stats().drops;
    let counted: Vec<String> = drops
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| format!("{} {count}", reason.name()))
        .collect();
    counted.join(", ")
}

/// An endpoint of the victim on a network of its own.
fn add(table: &mut Table, number: u16) -> (Network, Endpoint) {
    let id = NetworkId::from_u128(u128::from(number));
    let [high, low] = number.to_be_bytes();
    let network = Network {
        id,
        name: format!("net{number}").parse().expect("a name"),
        vni: Vni::new(5000 + u32::from(number)).expect("24 bits"),
        subnets: vec![format!("10.{high}.{low}.0/24").parse().expect("a subnet")],
        gateways: vec![format!("10.{high}.{low}.1").parse().expect("an address")],
        mtu: None,
        encap: Encap::Sealed,
        internal: false,
        labels: Default::default(),
    };
    let endpoint = Endpoint {
        id: EndpointId::from_u128(u128::from(number)),
        name: format!("c{number}").parse().expect("a name"),
        network: id,
        node: node_id(VICTIM_NODE),
        addresses: vec![format!("10.{high}.{low}.2/24").parse().expect("an address")],
        aliases: Vec::new(),
    };
    table.networks.insert(id, network.clone());
    table.endpoints.insert(endpoint.id, endpoint.clone());
    (network, endpoint)
}
