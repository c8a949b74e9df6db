//! The stream to the manager. It keeps the node's table, hands every new one to the data plane, and
//! acknowledges it afterwards. When the stream breaks it is opened again: at once the first time,
//! then after a random while, so that the nodes of a lost manager do not come back all together.

use std::{
    collections::BTreeSet, convert::Infallible, net::SocketAddr, pin::Pin, sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use aws_lc_rs::rand;
use futures_util::stream;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{Status, Streaming, transport::Channel};
use tracing::{debug, info, warn};

use super::{
    certificate::Certificate,
    managers::{Managers, Standing},
    tasks::Reports,
};
use crate::{
    api::{
        HEARTBEAT, HEARTBEATS, LEADER, MAX_MESSAGE_BYTES, Malformed, OPENS_WITHIN, channel,
        parse_id, parse_list,
        proto::{
            self, AgentMessage, Bookmark, Delta, Hello, Looked, ManagerMessage, Ping, Resync,
            TaskReport, agent_message, dispatch_client::DispatchClient, manager_message,
        },
        read_scope_digests, read_scopes, scope_digests, scopes, silence,
    },
    engine::membership::{Change, Replica, Snapshot, Table},
    io::{clock, machine},
    types::{NodeId, NodeTask, Position, ScopeId, TaskId, TaskStatus},
};

/// Looks for another node over the data plane for a while, and tells whether it was heard.
pub type LookFor =
    Arc<dyn Fn(NodeId, Duration) -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// Keeps the stream; may be aborted.
pub struct LinkTask<P> {
    managers: Arc<Managers>,
    certificate: Arc<Certificate>,
    replica: Replica,
    publish: P,
    look_for: LookFor,
    connected: watch::Sender<Option<Channel>>,
    reports: Arc<Reports>,
}

impl<P: Fn(&Table) + Send> LinkTask<P> {
    /// Makes the task, which goes on from `table`. `publish` makes the data plane use a table; `connected` holds the channel to
    /// the manager while there is one whose first snapshot came.
    pub fn new(
        managers: Arc<Managers>,
        certificate: Arc<Certificate>,
        table: Table,
        publish: P,
        look_for: LookFor,
        connected: watch::Sender<Option<Channel>>,
    ) -> Self {
        let replica = Replica::new(table);
        let reports = Arc::default();
        Self { managers, certificate, replica, publish, look_for, connected, reports }
    }

    /// Has it tell the manager how far the node's tasks are.
    pub fn telling(self, reports: Arc<Reports>) -> Self {
        Self { reports, ..self }
    }

    /// Keeps the stream open for as long as it is polled.
    pub async fn run(mut self) {
        self.keep_open().await;
    }

    /// Returns the table as it stands.
    pub fn table(&self) -> &Table {
        self.replica.table()
    }

    /// The same as [`Self::run`] for whoever asks for the table afterwards; it may be dropped at any
    /// moment, and the stream with it.
    pub async fn keep_open(&mut self) {
        let (mut failures, mut rounds, mut sent_on) = (0, 0, 0);
        loop {
            let manager = self.managers.current();
            let Err(error) = self.session().await;
            let was_connected = self.connected.send_replace(None).is_some();
            if let Some(Elsewhere(leader)) = error.downcast_ref()
                && sent_on < MOST_SENT_ON
            {
                debug!(%manager, %leader, "another manager leads");
                self.managers.go_to(*leader);
                sent_on += 1;
                continue;
            }
            warn!(%manager, error = format!("{error:#}"), "no manager");
            self.managers.go_on();
            sent_on = 0;
            if was_connected {
                (failures, rounds) = (0, 0);
                continue;
            }
            failures += 1;
            // At once to another one; all of them are away only after the last.
            if failures >= self.managers.known().borrow().len().max(1) {
                (failures, rounds) = (0, rounds + 1);
                tokio::select! {
                    () = sleep(backoff(rounds)) => {}
                    () = self.managers.hurried() => {}
                }
            }
        }
    }

    /// Opens the stream and serves it until it breaks.
    async fn session(&mut self) -> anyhow::Result<Infallible> {
        let manager = self.managers.current();
        let opened = channel::to_manager(manager, self.certificate.config()).await;
        let channel = opened.inspect_err(|error| {
            if error.is_refusal() {
                self.certificate.doubt();
            }
        })?;
        let mut client = DispatchClient::new(channel.clone());
        client = client.max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        let Position { epoch, revision } = self.replica.position();
        let scopes = scope_digests(&self.replica.digests());
        let number = clock::now().as_nanos();
        let cpu_milli = machine::cpu_milli();
        let memory_bytes = machine::memory_bytes().unwrap_or(0);
        let hello = Hello { epoch, revision, scopes, number, cpu_milli, memory_bytes };
        outbound.send(message(agent_message::Message::Hello(hello))).await?;
        let messages = stream::unfold(messages, async |mut messages| {
            messages.recv().await.map(|message| (message, messages))
        });
        let opening = timeout(OPENS_WITHIN, client.session(messages)).await;
        let inbound = opening.context("the manager does not answer")?;
        let inbound = inbound.map_err(|status| self.not_opened(&status))?.into_inner();
        let looking = JoinSet::new();
        let stream = Stream {
            link: self,
            outbound,
            channel,
            heartbeat: HEARTBEAT,
            patience: OPENS_WITHIN,
            parts: None,
            resync: true,
            looking,
        };
        stream.serve(inbound).await
    }

    /// A manager that does not take a certificate says so by cutting the connection: of TLS 1.3's two
    /// sides the client is done first.
    fn not_opened(&self, status: &Status) -> anyhow::Error {
        let leader = status.metadata().get(LEADER).and_then(|leader| leader.to_str().ok());
        if let Some(leader) = leader.and_then(|leader| leader.parse().ok()) {
            return Elsewhere(leader).into();
        }
        match std::error::Error::source(status) {
            Some(cut) => {
                self.certificate.doubt();
                anyhow!(
                    "the manager cut the connection ({cut}), as it does where a certificate is over for it; this node's is renewed, and if that stays, check the time on both"
                )
            }
            None => anyhow!("{}", status.message()),
        }
    }
}

/// Another manager takes the stream.
#[derive(Debug, thiserror::Error)]
#[error("manager {0} leads")]
struct Elsewhere(SocketAddr);

/// One open stream.
struct Stream<'a, P> {
    link: &'a mut LinkTask<P>,
    outbound: mpsc::Sender<AgentMessage>,
    channel: Channel,
    /// How often each side says something.
    heartbeat: Duration,
    /// After how long a silence the stream is closed.
    patience: Duration,
    /// The parts of a snapshot that came so far.
    parts: Option<Snapshot>,
    /// A snapshot is on its way; what comes before it is of no use.
    resync: bool,
    /// Those that look for other nodes; they end with the stream.
    looking: JoinSet<()>,
}

impl<P: Fn(&Table) + Send> Stream<'_, P> {
    async fn serve(mut self, mut inbound: Streaming<ManagerMessage>) -> anyhow::Result<Infallible> {
        let mut next_ping = Instant::now();
        let mut heard = Instant::now();
        let mut news = self.link.reports.news();
        // A manager that is new to this node knows none of them.
        self.report(self.link.reports.all()).await?;
        loop {
            tokio::select! {
                // What came is heard before the time is looked at: a late reader is no silent manager.
                biased;
                received = inbound.message() => match received {
                    Ok(Some(received)) => {
                        heard = Instant::now();
                        self.handle_message(received).await?;
                        // Awake as it is, which an idle node should seldom be: the manager's next
                        // message comes before the timer then.
                        if next_ping < heard + self.heartbeat / 2 {
                            next_ping = heard + self.heartbeat * 5 / 4;
                            self.ping();
                        }
                        next_ping = next_ping.min(heard + self.heartbeat * 5 / 4);
                    }
                    Ok(None) => bail!("the manager closed the stream"),
                    Err(status) => bail!("{}", status.message()),
                },
                Ok(()) = news.changed() => {
                    news.mark_unchanged();
                    self.report(self.link.reports.take_news()).await?;
                }
                () = sleep_until(next_ping) => {
                    next_ping = Instant::now() + self.heartbeat;
                    self.ping();
                }
                () = sleep_until(heard + self.patience) => bail!("the manager is silent"),
            }
        }
    }

    /// Tells how far tasks are.
    async fn report(&self, reports: Vec<(TaskId, TaskStatus)>) -> anyhow::Result<()> {
        for (task, report) in reports {
            let task = task.to_bytes().to_vec();
            let report = TaskReport { task, report: serde_json::to_vec(&report)? };
            self.outbound.send(message(agent_message::Message::Task(report))).await?;
        }
        Ok(())
    }

    /// Says something: a full stream carries acknowledgements, which are heard as well.
    fn ping(&self) {
        let _ = self.outbound.try_send(message(agent_message::Message::Ping(Ping {})));
    }

    async fn handle_message(&mut self, received: ManagerMessage) -> anyhow::Result<()> {
        match received.message.context("an empty message came")? {
            manager_message::Message::Ping(_) => Ok(()),
            manager_message::Message::Snapshot(part) => self.handle_snapshot(part).await,
            manager_message::Message::Delta(delta) => self.handle_delta(delta).await,
            manager_message::Message::Bookmark(bookmark) => self.handle_bookmark(bookmark).await,
            manager_message::Message::Roots(roots) => {
                self.link.certificate.handle_roots(&roots.digests);
                Ok(())
            }
            manager_message::Message::HeartbeatMs(ms) => {
                let heartbeat = Duration::from_millis(ms);
                if !HEARTBEATS.contains(&heartbeat) {
                    bail!("the manager wants a heartbeat of {heartbeat:?}");
                }
                (self.heartbeat, self.patience) = (heartbeat, silence(heartbeat));
                Ok(())
            }
            manager_message::Message::Managers(managers) => {
                let addrs = parse_list("managers", &managers.addrs)?;
                self.link.managers.handle_known(addrs);
                Ok(())
            }
            manager_message::Message::Role(news) => {
                let (role, decides) = (news.role().try_into()?, news.decides);
                self.link.managers.handle_standing(Standing { role, decides });
                Ok(())
            }
            manager_message::Message::LookFor(node) => {
                self.look_for(parse_id("node", &node)?);
                Ok(())
            }
        }
    }

    /// Looks for another node, and tells the manager.
    fn look_for(&mut self, node: NodeId) {
        while self.looking.try_join_next().is_some() {}
        if self.looking.len() >= MAX_LOOKING {
            return;
        }
        let (look, outbound) =
            ((self.link.look_for)(node, look_time(self.heartbeat)), self.outbound.clone());
        self.looking.spawn(async move {
            let looked = Looked { node: node.to_bytes().to_vec(), heard: look.await };
            // A stream that is closed has nobody to tell.
            let _ = outbound.send(message(agent_message::Message::Looked(looked))).await;
        });
    }

    async fn handle_snapshot(&mut self, part: proto::Snapshot) -> anyhow::Result<()> {
        let last = part.last;
        let snapshot = match self.parts.take() {
            Some(mut parts) if parts.position == position(&part) => {
                extend(&mut parts, part)?;
                parts
            }
            Some(_) | None => snapshot(part)?,
        };
        if !last {
            self.parts = Some(snapshot);
            return Ok(());
        }
        if let Err(error) = self.link.replica.handle_snapshot(snapshot) {
            warn!(%error, "a snapshot does not fit; asking for a whole one");
            return self.ask_for(BTreeSet::new()).await;
        }
        debug!(position = %self.link.replica.position(), "snapshot");
        self.resync = false;
        self.publish().await?;
        if self.link.connected.borrow().is_none() {
            info!(manager = %self.link.managers.current(), "connected");
            self.link.connected.send_replace(Some(self.channel.clone()));
        }
        Ok(())
    }

    async fn handle_delta(&mut self, delta: Delta) -> anyhow::Result<()> {
        if self.resync {
            return Ok(());
        }
        let changes = delta.changes.into_iter().map(change).collect::<Result<_, Malformed>>()?;
        let at = |revision| Position { epoch: delta.epoch, revision };
        match self.link.replica.handle_delta(at(delta.from), at(delta.to), changes) {
            Ok(()) => self.publish().await,
            Err(error) => {
                warn!(%error, "a delta does not fit; asking for a snapshot");
                self.ask_for(BTreeSet::new()).await
            }
        }
    }

    async fn handle_bookmark(&mut self, bookmark: Bookmark) -> anyhow::Result<()> {
        if self.resync {
            return Ok(());
        }
        let at = Position { epoch: bookmark.epoch, revision: bookmark.revision };
        let digests = read_scope_digests(&bookmark.scopes)?;
        match self.link.replica.handle_bookmark(at, &digests) {
            Ok(differ) if differ.is_empty() => Ok(()),
            Ok(differ) => {
                warn!(
                    scopes = differ.len(),
                    "the table is not the manager's; asking for that part"
                );
                self.ask_for(differ).await
            }
            Err(error) => {
                warn!(%error, "a bookmark does not fit; asking for a snapshot");
                self.ask_for(BTreeSet::new()).await
            }
        }
    }

    /// Asks for a snapshot of some scopes, or of everything.
    async fn ask_for(&mut self, wanted: BTreeSet<ScopeId>) -> anyhow::Result<()> {
        self.resync = true;
        self.parts = None;
        let resync = Resync { scopes: scopes(&wanted) };
        Ok(self.outbound.send(message(agent_message::Message::Resync(resync))).await?)
    }

    async fn publish(&self) -> anyhow::Result<()> {
        let table = self.link.replica.table();
        let revision = table.revision;
        (self.link.publish)(table);
        let acknowledged = message(agent_message::Message::Acknowledged(revision));
        Ok(self.outbound.send(acknowledged).await?)
    }
}

fn message(message: agent_message::Message) -> AgentMessage {
    AgentMessage { message: Some(message) }
}

fn position(part: &proto::Snapshot) -> Position {
    Position { epoch: part.epoch, revision: part.revision }
}

/// Reads the first part of a snapshot.
fn snapshot(part: proto::Snapshot) -> Result<Snapshot, Malformed> {
    let mut snapshot = Snapshot {
        position: position(&part),
        scopes: part.partial.then(|| read_scopes(&part.scopes)).transpose()?,
        networks: Vec::new(),
        peers: Vec::new(),
        endpoints: Vec::new(),
        tasks: Vec::new(),
    };
    extend(&mut snapshot, part)?;
    Ok(snapshot)
}

/// Takes what another part holds.
fn extend(snapshot: &mut Snapshot, part: proto::Snapshot) -> Result<(), Malformed> {
    let proto::Snapshot { networks, peers, endpoints, tasks, .. } = part;
    for network in networks {
        snapshot.networks.push(network.try_into()?);
    }
    for peer in peers {
        snapshot.peers.push(peer.try_into()?);
    }
    for endpoint in endpoints {
        snapshot.endpoints.push(endpoint.try_into()?);
    }
    for text in tasks {
        snapshot.tasks.push(task(&text)?);
    }
    Ok(())
}

/// Reads a task.
fn task(text: &[u8]) -> Result<NodeTask, Malformed> {
    let bent = |error: serde_json::Error| Malformed { field: "task", why: error.to_string() };
    serde_json::from_slice(text).map_err(bent)
}

fn change(change: proto::Change) -> Result<Change, Malformed> {
    use proto::change::Change as Wire;
    let missing = || Malformed { field: "change", why: "missing".to_owned() };
    Ok(match change.change.ok_or_else(missing)? {
        Wire::Network(network) => Change::Network(network.try_into()?),
        Wire::NetworkGone(id) => Change::NetworkGone(parse_id("network", &id)?),
        Wire::Peer(peer) => Change::Peer(peer.try_into()?),
        Wire::PeerGone(id) => Change::PeerGone(parse_id("peer", &id)?),
        Wire::Endpoint(endpoint) => Change::Endpoint(endpoint.try_into()?),
        Wire::EndpointGone(id) => Change::EndpointGone(parse_id("endpoint", &id)?),
        Wire::Task(text) => Change::Task(Box::new(task(&text)?)),
        Wire::TaskGone(id) => Change::TaskGone(parse_id("task", &id)?),
    })
}

/// How long to look for a node. The manager decides a whole heartbeat after it asked, or sooner.
fn look_time(heartbeat: Duration) -> Duration {
    heartbeat.min(HEARTBEAT) * 4 / 5
}

/// How long to wait after so many failures in a row: a random part of a span that doubles.
pub(super) fn backoff(failures: u32) -> Duration {
    let span = SHORTEST_WAIT.saturating_mul(1 << failures.min(8)).min(LONGEST_WAIT);
    let mut byte = [128];
    // Without a random source the middle does as well.
    let _ = rand::fill(&mut byte);
    SHORTEST_WAIT + (span - SHORTEST_WAIT) * u32::from(byte[0]) / 255
}

/// Acknowledgements and pings waiting for the connection.
const OUTBOUND: usize = 16;
/// Managers that send a node on, one after the other, before it waits: they may not agree for a moment.
const MOST_SENT_ON: u32 = 4;
/// Nodes that are looked for at once.
const MAX_LOOKING: usize = 64;
const SHORTEST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_in_their_span() {
        for failures in 1..100 {
            let wait = backoff(failures);
            assert!((SHORTEST_WAIT..=LONGEST_WAIT).contains(&wait), "{failures}: {wait:?}");
        }
        assert!(backoff(1) <= Duration::from_secs(1));
    }
}
