//! What the processes say to each other, a JSON value a line, and what they share.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use overlay::{
    agent::{Identity, StateDir, join::Introduction},
    api::tls::Credentials,
    types::{Endpoint, Network, Node, NodeId, Revision},
};
use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines, Stdin, stdin, stdout};

/// What a manager says when it serves.
#[derive(Clone, Serialize, Deserialize)]
pub struct Serving {
    pub node: NodeId,
    pub addr: SocketAddr,
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
    pub root: Vec<u8>,
}

/// What the driver says to agents.
#[derive(Serialize, Deserialize)]
pub enum Order {
    /// Join, each by one of the managers in turn.
    Join { managers: Vec<SocketAddr>, token: String },
    /// Make the endpoints, without streams.
    Enter,
    /// Open the streams, all at once, and have tables of that revision.
    Connect { revision: Revision },
    /// Make changes.
    Churn { a_second: u64, for_s: u64, seed: u64 },
    /// Tell how these changes, of which the agents have heard nothing yet, came to each agent.
    Report { changes: Vec<Change> },
    /// Wait until all have a stream to another manager.
    Back { from: SocketAddr },
    /// Have one agent lose one change.
    Plant,
    /// End the streams and compare what is left with what a manager has.
    Compare { truth: PathBuf },
}

/// One change of a network.
#[derive(Clone, Serialize, Deserialize)]
pub struct Change {
    pub network: usize,
    pub what: What,
    pub asked_ns: u64,
    pub answered_ns: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    Created(Revision),
    Removed(Revision),
    /// There was no answer.
    Unknown,
}

/// What agents answer.
#[derive(Default, Serialize, Deserialize)]
pub struct Answer {
    /// When each agent was done.
    pub done_ns: Vec<u64>,
    /// The changes that were made.
    pub changes: Vec<Change>,
    /// How many agents had a change after so many milliseconds.
    pub by_ms: Vec<u64>,
    /// How many tables were looked at.
    pub tables: u64,
    /// What must not be.
    pub faults: Faults,
}

/// What must not be: how often it was, and of some what it was.
#[derive(Default, Serialize, Deserialize)]
pub struct Faults {
    pub count: u64,
    pub sentences: Vec<String>,
}

impl Faults {
    pub fn add(&mut self, sentence: impl FnOnce() -> String) {
        self.count += 1;
        if self.sentences.len() < SHOWN {
            self.sentences.push(sentence());
        }
    }

    pub fn extend(&mut self, other: Self) {
        self.count += other.count;
        let room = SHOWN.saturating_sub(self.sentences.len());
        self.sentences.extend(other.sentences.into_iter().take(room));
    }
}

/// All that a manager has.
#[derive(Serialize, Deserialize)]
pub struct Truth {
    pub nodes: Vec<Node>,
    pub networks: BTreeMap<String, Network>,
    pub endpoints: Vec<Endpoint>,
}

impl Truth {
    pub fn new(nodes: Vec<Node>, networks: Vec<Network>, endpoints: Vec<Endpoint>) -> Self {
        let networks = networks.into_iter().map(|network| (network.name.to_string(), network));
        Self { nodes, networks: networks.collect(), endpoints }
    }
}

/// Nanoseconds of the clock that all processes read.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

pub fn identity(folder: &std::path::Path) -> anyhow::Result<Identity> {
    Identity::open(&StateDir::open(folder)?)
}

/// Who a node is whose manager, if it had one, would listen at `addr`.
pub fn introduction<'a>(
    identity: &'a Identity,
    name: &str,
    addr: SocketAddr,
) -> anyhow::Result<Introduction<'a>> {
    Ok(Introduction {
        identity,
        name: name.parse()?,
        name_chosen: true,
        advertise_addr: addr,
        data_ip: addr.ip(),
        underlay_mtu: 1500,
        underlays: Vec::new(),
    })
}

impl Serving {
    pub fn new(node: NodeId, addr: SocketAddr, credentials: &Credentials) -> Self {
        let Credentials { certificate, key, roots } = credentials;
        let root = roots.first().map(|root| root.to_vec()).unwrap_or_default();
        let (certificate, key) = (certificate.to_vec(), key.secret_der().to_vec());
        Self { node, addr, certificate, key, root }
    }

    pub fn credentials(&self) -> Credentials {
        Credentials {
            certificate: CertificateDer::from(self.certificate.clone()),
            key: PrivatePkcs8KeyDer::from(self.key.clone()).into(),
            roots: vec![CertificateDer::from(self.root.clone())],
        }
    }
}

/// The orders on standard input.
pub struct Orders(Lines<BufReader<Stdin>>);

impl Orders {
    pub fn new() -> Self {
        Self(BufReader::new(stdin()).lines())
    }

    pub async fn next(&mut self) -> anyhow::Result<Option<Order>> {
        let line = self.0.next_line().await?;
        line.map(|line| Ok(serde_json::from_str(&line)?)).transpose()
    }
}

/// Says something to whoever started this process.
pub async fn say(value: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut out = stdout();
    out.write_all(&line).await?;
    Ok(out.flush().await?)
}

const SHOWN: usize = 5;
/// Longer than anything here takes; what takes longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(300);
