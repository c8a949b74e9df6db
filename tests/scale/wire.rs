//! What the processes say to each other, a JSON value a line, and what they share.

use std::time::Duration;

use overlay::{
    agent::{Identity, StateDir, join::Introduction},
    api::tls::Credentials,
};
use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines, Stdin, stdin, stdout};

/// What the manager says when it serves.
#[derive(Serialize, Deserialize)]
pub struct Serving {
    pub addr: std::net::SocketAddr,
    pub token: String,
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
    pub root: Vec<u8>,
}

/// What the driver says to agents.
#[derive(Serialize, Deserialize)]
pub enum Order {
    /// Join.
    Join { addr: std::net::SocketAddr, token: String },
    /// Connect, and make an endpoint on every network.
    Enter,
    /// Forget everything, connect anew, and have the table of that revision.
    Cold { revision: u64 },
    /// Tell how long each change took to each agent of its network.
    Report { changes: Vec<Change> },
    /// Wait until all are connected again after `since_ns`.
    Back,
}

/// One change of a network.
#[derive(Clone, Serialize, Deserialize)]
pub struct Change {
    pub network: usize,
    pub revision: u64,
    pub asked_ns: u64,
}

/// What agents answer.
#[derive(Default, Serialize, Deserialize)]
pub struct Answer {
    /// How many agents had a change after so many milliseconds.
    pub by_ms: Vec<u64>,
    /// How often a change was not seen.
    pub missed: u64,
    /// When the last of them was done.
    pub done_ns: u64,
}

/// Nanoseconds of the clock that all processes read.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Whether an agent takes part in a network.
pub fn takes_part(agent: usize, network: usize) -> bool {
    agent.is_multiple_of(network)
}

pub fn network_name(network: usize) -> String {
    format!("net{network}")
}

pub fn identity(folder: &std::path::Path) -> anyhow::Result<Identity> {
    Identity::open(&StateDir::open(folder)?)
}

pub fn introduction<'a>(identity: &'a Identity, name: &str) -> anyhow::Result<Introduction<'a>> {
    Ok(Introduction {
        identity,
        name: name.parse()?,
        name_chosen: true,
        advertise_addr: "127.0.0.1:2377".parse()?,
        data_ip: "127.0.0.1".parse()?,
        underlay_mtu: 1500,
        underlays: Vec::new(),
    })
}

impl Serving {
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

/// Longer than anything here takes; what takes longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(300);
