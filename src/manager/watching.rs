//! What managers tell the one that leads, which decides who is alive: each serves the streams of some
//! agents, and reports what becomes of them in batches; what witnesses say goes at once.
//!
//! ```text
//! agent -> session -> Streams --Report--> leader: NodeWatch
//!                                           |
//! agent <- session <- Dispatcher <-LookFor--'
//! ```
//! A new leader is told of all streams.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Request, Response, Status, transport::Channel};
use tracing::debug;

use super::{
    Shared,
    liveness::WITNESSES,
    report::{Report, Said, Stream, Told},
};
use crate::{
    api::{
        parse_id,
        proto::{
            self, AwaitAcknowledgedRequest, AwaitAcknowledgedResponse, FindStandingRequest,
            FindStandingResponse, LookForRequest, LookForResponse, StreamReport,
            StreamReportResponse, Witnesses, watching_client::WatchingClient,
        },
    },
    engine::cluster::{State, liveness::Closed},
    io::clock,
    types::{Moment, NetworkId, NodeId, Revision},
};

/// The streams of agents to this manager, and what of them the leader does not know yet.
#[derive(Default)]
pub struct Streams {
    of: BTreeMap<NodeId, Stream>,
    /// Those that ended, in the order of that; a node may have opened another.
    ended: Vec<Told>,
    /// Those of which there is something new.
    new: BTreeSet<NodeId>,
    said: Vec<Said>,
}

impl Streams {
    /// A stream opened.
    pub fn handle_opened(&mut self, node: NodeId, number: u64, now: Moment) {
        self.of.insert(node, Stream { number, heard: now, closed: None });
        self.new.insert(node);
    }

    /// Something came on a stream.
    pub fn handle_heard(&mut self, node: NodeId, number: u64, now: Moment) {
        if let Some(stream) = self.of.get_mut(&node).filter(|stream| stream.number == number) {
            stream.heard = now;
            self.new.insert(node);
        }
    }

    /// A stream ended.
    pub fn handle_closed(&mut self, node: NodeId, number: u64, closed: Closed, now: Moment) {
        let Some(mut stream) = self.of.get(&node).copied().filter(|open| open.number == number)
        else {
            return;
        };
        self.of.remove(&node);
        self.new.remove(&node);
        if closed == Closed::ByNode {
            stream.heard = now;
        }
        stream.closed = Some(closed);
        // Without a leader to tell for so long, the next one counts from its own start anyway.
        if self.ended.len() < MOST_ENDED {
            self.ended.push(Told { node, stream });
        }
    }

    /// A witness said something.
    pub fn handle_said(&mut self, said: Said) {
        if self.said.len() < MOST_SAID {
            self.said.push(said);
        }
    }

    /// Nobody is to be told of those that ended.
    pub fn forget_closed(&mut self) {
        self.ended.clear();
    }

    /// Lists those that are open: whose, their number, and the last sign of life.
    pub fn open(&self) -> impl Iterator<Item = (NodeId, u64, Moment)> {
        self.of.iter().map(|(node, stream)| (*node, stream.number, stream.heard))
    }

    /// Lists the nodes whose streams are too silent to ask them about others.
    pub fn silent(&self, now: Moment, heartbeat: Duration) -> BTreeSet<NodeId> {
        let silent = |stream: &Stream| now.since(stream.heard) >= 2 * heartbeat;
        self.of.iter().filter(|(_, stream)| silent(stream)).map(|(node, _)| *node).collect()
    }

    /// Takes what is to be told.
    pub fn take_news(&mut self, of_all: bool) -> (Vec<Told>, Vec<Said>) {
        let mut told = std::mem::take(&mut self.ended);
        let new = std::mem::take(&mut self.new);
        let streams = self.of.iter().filter(|(node, _)| of_all || new.contains(node));
        told.extend(streams.map(|(node, stream)| Told { node: *node, stream: *stream }));
        (told, std::mem::take(&mut self.said))
    }
}

/// Tells the leader; may be aborted.
pub struct ReportTask {
    shared: Arc<Shared>,
}

impl ReportTask {
    /// Makes the task.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Tells whoever leads for as long as it is polled and the log is not stopped.
    pub async fn run(self) {
        let Shared { watch, log, node, .. } = &*self.shared;
        let mut told = None;
        while let Some(leader) = log.await_leader().await {
            let next = Instant::now() + BETWEEN_REPORTS;
            if leader != *node {
                let (streams, said) = watch.take_news(told != Some(leader));
                told = Some(leader);
                let empty = streams.is_empty() && said.is_empty();
                if !empty && let Err(status) = self.tell(leader, streams, said).await {
                    // It hears of all of them then.
                    debug!(%leader, %status, "the leader is not told of streams");
                    told = None;
                }
            } else {
                told = None;
            }
            // What comes together goes together.
            sleep(COALESCED).await;
            tokio::select! {
                () = watch.has_news() => {}
                () = sleep_until(next) => {}
            }
        }
    }

    async fn tell(
        &self,
        leader: NodeId,
        streams: Vec<Told>,
        witnesses: Vec<Said>,
    ) -> Result<(), Status> {
        let acknowledged = |told: &Told| self.shared.dispatcher.acknowledged(told.node);
        let streams = streams.into_iter().map(|told| (told, acknowledged(&told))).collect();
        let report = Report { streams, said: witnesses }.write(clock::now());
        let told =
            self.shared.ways.watching(leader, async |mut client| client.report(report).await);
        within(ANSWERED_WITHIN, told).await.map(drop)
    }
}

/// The service.
pub struct Watching {
    pub(super) shared: Arc<Shared>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl proto::watching_server::Watching for Watching {
    async fn report(&self, request: Request<StreamReport>) -> Answer<StreamReportResponse> {
        let via = self.shared.check_manager(&request)?;
        let Shared { watch, dispatcher, .. } = &*self.shared;
        if !*watch.leads().borrow() {
            return Err(Status::failed_precondition("this manager does not lead"));
        }
        let Report { streams, said } = Report::read(request.into_inner(), clock::now())?;
        for (told, acknowledged) in streams {
            watch.handle_told(via, &told);
            let acknowledged = told.stream.closed.is_none().then_some(acknowledged);
            dispatcher.handle_elsewhere(told.node, via, acknowledged);
        }
        for Said { witness, node, heard } in said {
            watch.handle_witness(witness, node, heard);
        }
        Ok(Response::new(StreamReportResponse {}))
    }

    async fn look_for(&self, request: Request<LookForRequest>) -> Answer<LookForResponse> {
        self.shared.check_manager(&request)?;
        let nodes = request.into_inner().nodes;
        let nodes = nodes.iter().map(|node| parse_id("nodes", node));
        let found = self.shared.look_for(nodes.collect::<Result<_, _>>()?);
        let witnesses = |(_, witnesses): (NodeId, BTreeSet<NodeId>)| Witnesses {
            nodes: witnesses.iter().map(|witness| witness.to_bytes().to_vec()).collect(),
        };
        Ok(Response::new(LookForResponse { witnesses: found.into_iter().map(witnesses).collect() }))
    }

    async fn await_acknowledged(
        &self,
        request: Request<AwaitAcknowledgedRequest>,
    ) -> Answer<AwaitAcknowledgedResponse> {
        self.shared.check_manager(&request)?;
        let request = request.into_inner();
        let network = parse_id("network", &request.network)?;
        let lagging = self.shared.await_own_acknowledged(network, request.revision).await;
        Ok(Response::new(AwaitAcknowledgedResponse { lagging }))
    }

    async fn find_standing(
        &self,
        request: Request<FindStandingRequest>,
    ) -> Answer<FindStandingResponse> {
        self.shared.check_manager(&request)?;
        let node = parse_id("node", &request.into_inner().node)?;
        Ok(Response::new(self.shared.own_standing(node)))
    }
}

impl Shared {
    /// Has agents of this manager look for nodes; tells who does.
    fn look_for(&self, nodes: Vec<NodeId>) -> Vec<(NodeId, BTreeSet<NodeId>)> {
        // Who vanished with a suspect cannot say anything of it.
        let silent = self.watch.silent(*self.dispatcher.heartbeat().borrow());
        self.log.read(|state| {
            let look = |node| self.dispatcher.look_for(state, node, &silent, WITNESSES);
            nodes.into_iter().map(|node| (node, look(node))).collect()
        })
    }

    /// Has agents of this manager look for nodes, and those of the others where these are too few.
    pub(super) async fn find_witnesses(
        &self,
        nodes: Vec<NodeId>,
    ) -> Vec<(NodeId, BTreeSet<NodeId>)> {
        let mut found = self.look_for(nodes);
        let lacking = found.iter_mut().filter(|(_, witnesses)| witnesses.len() < WITNESSES);
        let mut lacking: Vec<&mut (NodeId, BTreeSet<NodeId>)> = lacking.collect();
        let nodes = lacking.iter().map(|(node, _)| node.to_bytes().to_vec()).collect();
        let request = LookForRequest { nodes };
        if !lacking.is_empty() {
            let asked = self.others().map(|manager| {
                let request = request.clone();
                let asked =
                    self.ways.watching(manager, async |mut client| client.look_for(request).await);
                within(WITNESSES_WITHIN, asked)
            });
            for answer in join_all(asked).await.into_iter().flatten() {
                for (place, also) in lacking.iter_mut().zip(answer.witnesses) {
                    let also = also.nodes.iter().filter_map(|node| parse_id("nodes", node).ok());
                    place.1.extend(also);
                }
            }
        }
        found
    }

    /// Waits until no connected agent of a network lags, of this manager and of the others; returns
    /// the names of those that do after all.
    pub(super) async fn await_acknowledged(
        &self,
        network: NetworkId,
        revision: Revision,
    ) -> Vec<String> {
        let request = AwaitAcknowledgedRequest { network: network.to_bytes().to_vec(), revision };
        let others = join_all(self.others().map(|manager| {
            let request = request.clone();
            let ask = async |mut client: WatchingClient<Channel>| {
                client.await_acknowledged(request).await
            };
            within(ACKNOWLEDGED_WITHIN + ANSWERED_WITHIN, self.ways.watching(manager, ask))
        }));
        let own = self.await_own_acknowledged(network, revision);
        let (mut lagging, others) = tokio::join!(own, others);
        // The agents of one that does not answer look for another manager.
        lagging.extend(others.into_iter().flatten().flat_map(|answer| answer.lagging));
        lagging.sort();
        lagging.dedup();
        lagging
    }

    async fn await_own_acknowledged(&self, network: NetworkId, revision: Revision) -> Vec<String> {
        let mut progress = self.dispatcher.progress();
        let lagging = || match self.log.read(State::revision) >= revision {
            true => self.dispatcher.lagging(network, revision),
            false => self.dispatcher.lagging(network, Revision::MAX),
        };
        let all = async {
            while self.log.read(State::revision) < revision || !lagging().is_empty() {
                if progress.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout(ACKNOWLEDGED_WITHIN, all).await.is_ok() {
            return Vec::new();
        }
        let lagging = lagging();
        let name = |state: &State, id: &NodeId| state.node(*id).map(|node| node.name.to_string());
        self.log.read(|state| lagging.iter().filter_map(|id| name(state, id)).collect())
    }

    /// Returns what whoever leads holds of a node; nothing if that is not known now.
    pub(super) async fn standing(&self, node: NodeId) -> FindStandingResponse {
        match self.log.leader() {
            Some(leader) if leader != self.node => {
                let request = FindStandingRequest { node: node.to_bytes().to_vec() };
                let ask =
                    async |mut client: WatchingClient<Channel>| client.find_standing(request).await;
                let asked = within(ANSWERED_WITHIN, self.ways.watching(leader, ask)).await;
                asked.unwrap_or_default()
            }
            Some(_) => self.own_standing(node),
            None => FindStandingResponse::default(),
        }
    }

    fn own_standing(&self, node: NodeId) -> FindStandingResponse {
        let silent = self.watch.silent_for(node);
        FindStandingResponse {
            management_lost: self.watch.is_management_lost(node),
            silent_ms: silent.map(|silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// Lists the other managers that decide.
    fn others(&self) -> impl Iterator<Item = NodeId> {
        self.log.members().into_iter().filter(|manager| *manager != self.node)
    }
}

async fn within<T>(
    time: Duration,
    asked: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded("the other manager does not answer");
    timeout(time, asked).await.map_err(late)?
}

/// So late the leader hears of signs of life, of which there is one in a heartbeat.
const BETWEEN_REPORTS: Duration = Duration::from_millis(200);
const COALESCED: Duration = Duration::from_millis(5);
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// A part of the time that witnesses have.
const WITNESSES_WITHIN: Duration = Duration::from_millis(150);
/// How long an attachment waits for the other nodes: longer than a healthy node ever takes, short
/// enough for the operator who waits.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(2);
/// More than end between a leader's end and the next one's begin, unless a manager serves many.
const MOST_ENDED: usize = 4096;
/// Witnesses speak when they are asked.
const MOST_SAID: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::from_u128(1);
    const B: NodeId = NodeId::from_u128(2);

    fn at(ms: u64) -> Moment {
        Moment::from_nanos(ms * 1_000_000)
    }

    fn told(node: NodeId, number: u64, heard_ms: u64, closed: Option<Closed>) -> Told {
        Told { node, stream: Stream { number, heard: at(heard_ms), closed } }
    }

    #[test]
    fn the_leader_is_told_what_is_new_ends_first_and_a_new_one_all() {
        let mut streams = Streams::default();
        streams.handle_opened(A, 1, at(0));
        streams.handle_opened(B, 1, at(0));
        assert_eq!(streams.take_news(false).0, [told(A, 1, 0, None), told(B, 1, 0, None)]);
        assert_eq!(streams.take_news(false).0, []);
        streams.handle_heard(B, 1, at(700));
        streams.handle_heard(B, 9, at(800));
        assert_eq!(streams.take_news(false).0, [told(B, 1, 700, None)], "9 is no stream of it");
        // A node opens another stream, and only then the end of the one before is noticed.
        streams.handle_closed(A, 1, Closed::ByManager, at(900));
        streams.handle_opened(A, 2, at(950));
        streams.handle_closed(A, 1, Closed::ByManager, at(960));
        let ended = told(A, 1, 0, Some(Closed::ByManager));
        assert_eq!(streams.take_news(false).0, [ended, told(A, 2, 950, None)]);
        assert_eq!(streams.take_news(true).0, [told(A, 2, 950, None), told(B, 1, 700, None)]);
    }

    #[test]
    fn who_is_silent_is_so_by_the_heartbeat_that_the_cluster_has() {
        let mut streams = Streams::default();
        streams.handle_opened(A, 1, at(0));
        streams.handle_opened(B, 1, at(1500));
        let silent = |seconds| streams.silent(at(2000), Duration::from_secs(seconds));
        assert_eq!(silent(1), BTreeSet::from([A]));
        assert_eq!(silent(10), BTreeSet::new(), "with many nodes each says something seldom");
    }
}
