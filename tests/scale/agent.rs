//! One agent: the product's link, and what it publishes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use overlay::{
    agent::{
        certificate::Certificate,
        join::Joined,
        link::{LinkTask, LookFor},
        managers::Managers,
    },
    api::proto::{
        CreateEndpointRequest, RemoveEndpointRequest, attachment_client::AttachmentClient,
    },
    engine::membership::Table,
    types::{Position, Revision, Role},
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tonic::transport::Channel;

use super::{
    layout::{Layout, network_name},
    wire::{Answer, Change, PATIENCE, What, now_ns},
};

/// One agent.
pub struct Agent {
    pub number: usize,
    pub joined: Joined,
    /// The one that it joined by.
    pub manager: SocketAddr,
    pub networks: Vec<usize>,
    /// How many endpoints its table should have before what is in use next.
    endpoints: i64,
    link: Option<Link>,
}

struct Link {
    task: JoinHandle<Table>,
    stop: oneshot::Sender<()>,
    managers: Arc<Managers>,
    connected: watch::Receiver<Option<Channel>>,
    newest: watch::Receiver<Published>,
    published: Arc<Mutex<Vec<Published>>>,
}

/// A table that came into use.
#[derive(Clone, Copy, Default)]
struct Published {
    position: (u64, Revision),
    endpoints: usize,
    at_ns: u64,
}

/// The changes of each network, in order.
pub struct Ledger(BTreeMap<usize, Vec<Change>>);

/// Makes changes as an agent.
#[derive(Clone)]
pub struct Caller {
    channel: Option<Channel>,
}

impl Agent {
    pub fn new(
        layout: &Layout,
        number: usize,
        joined: Joined,
        manager: SocketAddr,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            number,
            joined,
            manager,
            networks: layout.networks_of(number),
            endpoints: 0,
            link: None,
        })
    }

    /// Makes an endpoint by a channel of its own.
    pub async fn create(&self, channel: Channel, network: usize) -> anyhow::Result<()> {
        let request =
            CreateEndpointRequest { network: network_name(network), ..Default::default() };
        let made = AttachmentClient::new(channel).create_endpoint(request).await;
        made.map(drop).map_err(|status| anyhow::anyhow!("{}", status.message()))
    }

    /// Opens the stream, with nothing to go on from but where managers are.
    pub fn start(&mut self, known: &[SocketAddr]) -> anyhow::Result<()> {
        let certificate = Arc::new(Certificate::new(self.joined.credentials.clone())?);
        let (channels, connected) = watch::channel(None);
        let (newest, newest_of) = watch::channel(Published::default());
        let published = Arc::new(Mutex::new(Vec::new()));
        let publish = {
            let published = published.clone();
            move |table: &Table| {
                let Position { epoch, revision } = table.position();
                let next = Published {
                    position: (epoch, revision),
                    endpoints: table.endpoints.len(),
                    at_ns: now_ns(),
                };
                published.lock().unwrap_or_else(PoisonError::into_inner).push(next);
                newest.send_replace(next);
            }
        };
        let look_for: LookFor = Arc::new(|_, _| Box::pin(async { true }));
        let table = Table::empty(self.joined.node.id);
        let managers = Arc::new(Managers::new(self.manager, known.to_vec(), Role::Worker));
        let mut link =
            LinkTask::new(managers.clone(), certificate, table, publish, look_for, channels);
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = link.keep_open() => {}
                _ = stopped => {}
            }
            link.table().clone()
        });
        self.link = Some(Link { task, stop, managers, connected, newest: newest_of, published });
        Ok(())
    }

    /// Ends the stream; returns what the table was.
    pub async fn stop(&mut self) -> anyhow::Result<Option<Table>> {
        let Some(link) = self.link.take() else { return Ok(None) };
        drop(link.stop);
        Ok(Some(link.task.await?))
    }

    /// Waits until a table of that revision is in use; returns since when.
    pub async fn has(&mut self, revision: Revision) -> anyhow::Result<u64> {
        let number = self.number;
        let link = self.link.as_mut().context("it was started")?;
        let there = link.newest.wait_for(|newest| newest.position.1 >= revision);
        let there = timeout(PATIENCE, there).await;
        let there = there.with_context(|| format!("agent {number} has no table of {revision}"))?;
        Ok(there?.at_ns)
    }

    /// Waits until the stream is to another manager than that; returns since when.
    pub async fn back(&mut self, from: SocketAddr) -> anyhow::Result<u64> {
        let number = self.number;
        let link = self.link.as_mut().context("it was started")?;
        let managers = link.managers.clone();
        let is_back =
            |connected: &Option<Channel>| connected.is_some() && managers.current() != from;
        let back = timeout(PATIENCE, link.connected.wait_for(is_back)).await;
        back.with_context(|| format!("agent {number} does not come back"))??;
        Ok(now_ns())
    }

    pub fn caller(&self) -> Caller {
        let connected = self.link.as_ref().map(|link| link.connected.borrow().clone());
        Caller { channel: connected.flatten() }
    }

    /// Takes what came into use of late: how long after a change, and whether each table had as many
    /// endpoints as the log had at its revision.
    pub fn report(&mut self, ledger: &Ledger, answer: &mut Answer) {
        let Some(link) = &self.link else { return };
        let published = {
            let mut all = link.published.lock().unwrap_or_else(PoisonError::into_inner);
            let newest = all.last().copied();
            std::mem::replace(&mut *all, newest.into_iter().collect())
        };
        let name = self.number;
        for pair in published.windows(2).filter(|pair| pair[1].position < pair[0].position) {
            let (before, after) = (pair[0].position, pair[1].position);
            answer.faults.add(|| format!("agent {name} went back from {before:?} to {after:?}"));
        }
        let own: Vec<&Change> =
            self.networks.iter().flat_map(|network| ledger.of(*network)).collect();
        for change in &own {
            let revision = change.what.revision();
            match published.iter().find(|table| table.position.1 >= revision) {
                _ if change.what == What::Unknown => {}
                Some(table) => {
                    let ms = table.at_ns.saturating_sub(change.asked_ns) / 1_000_000;
                    let last = answer.by_ms.len() - 1;
                    answer.by_ms[(ms as usize).min(last)] += 1;
                }
                None => answer.faults.add(|| format!("agent {name} misses revision {revision}")),
            }
        }
        let delta = |upto: Revision| -> i64 {
            let before = own.iter().filter(|change| change.what.revision() <= upto);
            before.map(|change| change.what.more()).sum()
        };
        if own.iter().all(|change| change.what != What::Unknown) {
            for table in &published {
                let (has, expected) =
                    (table.endpoints as i64, self.endpoints + delta(table.position.1));
                answer.tables += 1;
                if has != expected {
                    let at = table.position;
                    answer.faults.add(|| {
                        format!(
                            "agent {name} has {has} endpoints at {at:?}, and there were {expected}"
                        )
                    });
                }
            }
        }
        self.endpoints += delta(Revision::MAX);
    }

    /// Notes how many endpoints there are on its networks.
    pub fn expect(&mut self, endpoints: usize) {
        self.endpoints = endpoints as i64;
    }
}

impl What {
    /// How many endpoints there are more.
    fn more(self) -> i64 {
        match self {
            Self::Created(_) => 1,
            Self::Removed(_) => -1,
            Self::Unknown => 0,
        }
    }
}

impl Ledger {
    pub fn new(changes: &[Change]) -> Self {
        let mut of = BTreeMap::<usize, Vec<Change>>::new();
        for change in changes {
            of.entry(change.network).or_default().push(change.clone());
        }
        Self(of)
    }

    fn of(&self, network: usize) -> impl Iterator<Item = &Change> {
        self.0.get(&network).into_iter().flatten()
    }

    /// The revision of the newest change of a network.
    pub fn newest(&self, network: usize) -> Option<Revision> {
        self.of(network).map(|change| change.what.revision()).max()
    }
}

impl Caller {
    pub async fn create(self, network: usize) -> (What, Option<Vec<u8>>) {
        let Some(channel) = self.channel else { return (What::Unknown, None) };
        let request =
            CreateEndpointRequest { network: network_name(network), ..Default::default() };
        match AttachmentClient::new(channel).create_endpoint(request).await {
            Ok(made) => {
                let made = made.into_inner();
                (What::Created(made.revision), made.endpoint.map(|endpoint| endpoint.id))
            }
            Err(_) => (What::Unknown, None),
        }
    }

    pub async fn remove(self, endpoint: Vec<u8>) -> What {
        let Some(channel) = self.channel else { return What::Unknown };
        let request = RemoveEndpointRequest { endpoint };
        match AttachmentClient::new(channel).remove_endpoint(request).await {
            Ok(removed) => What::Removed(removed.into_inner().revision),
            Err(_) => What::Unknown,
        }
    }
}
