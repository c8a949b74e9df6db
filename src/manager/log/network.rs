//! The way to the other members of the log: what one asks another, and who carries it.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::{
    AnyError, EmptyNode, OptionalSend, RPCTypes, RaftNetwork, RaftNetworkFactory, Snapshot,
    StorageIOError,
    error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
    },
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    checkpoint::StateDigest,
    raft::{Answers, Batch, SnapshotMeta, StorageError, TypeConfig, Vote},
};
use crate::types::NodeId;

/// What one member asks another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// To take entries, or only to hear who leads.
    Append(AppendEntriesRequest<TypeConfig>),
    /// For its vote.
    Vote(VoteRequest<NodeId>),
    /// To take a snapshot, as the file holds it, in the place of entries; goes in parts of its own.
    #[serde(skip)]
    Snapshot(Vote, SnapshotMeta, Bytes),
    /// As the leader, to put a batch into the log.
    Propose(Batch),
    /// As the leader, how far the log is decided, once others have confirmed that it leads.
    ReadIndex,
    /// For the digest of its state as of a checkpoint's entry.
    Digest(u64),
}

/// What the other one says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Append`].
    Append(AppendEntriesResponse<NodeId>),
    /// To [`Request::Vote`].
    Vote(VoteResponse<NodeId>),
    /// To [`Request::Snapshot`].
    Snapshot(SnapshotResponse<NodeId>),
    /// To [`Request::Propose`]: the entry's index, and what came of each command.
    Proposed(u64, Answers),
    /// To [`Request::ReadIndex`]: the index of the last entry, if there is one.
    ReadIndex(Option<u64>),
    /// To [`Request::Digest`]: nothing if it is not there yet, or no more.
    Digest(Option<StateDigest>),
    /// It does not do it: it is stopped, or does not lead.
    Refused(String),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotReached(pub String);

/// An answer on its way.
pub type Answering<'a> = Pin<Box<dyn Future<Output = Result<Response, NotReached>> + Send + 'a>>;

/// Carries requests to other members.
pub trait Transport: Send + Sync + 'static {
    /// Carries one request; dropping the future gives it up.
    fn call(&self, member: NodeId, request: Request) -> Answering<'_>;
}

/// Leads nowhere: for a log of one member, who has nobody to reach.
pub struct Alone;

impl Transport for Alone {
    fn call(&self, member: NodeId, _request: Request) -> Answering<'_> {
        Box::pin(async move { Err(NotReached(format!("there is no way to manager {member}"))) })
    }
}

/// Makes the ways to members.
pub(super) struct Network {
    pub own: NodeId,
    pub transport: Arc<dyn Transport>,
}

/// The way to one member.
pub(super) struct Peer {
    own: NodeId,
    member: NodeId,
    transport: Arc<dyn Transport>,
}

type CallError = RPCError<NodeId, EmptyNode, RaftError<NodeId>>;

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, member: NodeId, _node: &EmptyNode) -> Peer {
        Peer { own: self.own, member, transport: self.transport.clone() }
    }
}

impl Peer {
    async fn call(
        &self,
        action: RPCTypes,
        request: Request,
        limit: Duration,
    ) -> Result<Response, CallError> {
        match timeout(limit, self.transport.call(self.member, request)).await {
            Ok(Ok(Response::Refused(why))) => Err(unreachable(&NotReached(why))),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(unreachable(&error)),
            Err(_) => {
                let (id, target) = (self.own, self.member);
                Err(RPCError::Timeout(Timeout { action, id, target, timeout: limit }))
            }
        }
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, CallError> {
        let (action, request) = (RPCTypes::AppendEntries, Request::Append(request));
        match self.call(action, request, option.hard_ttl()).await? {
            Response::Append(answer) => Ok(answer),
            _ => Err(unreachable(&mixed_up())),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, CallError> {
        match self.call(RPCTypes::Vote, Request::Vote(request), option.hard_ttl()).await? {
            Response::Vote(answer) => Ok(answer),
            _ => Err(unreachable(&mixed_up())),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<TypeConfig, Fatal<NodeId>>> {
        let Snapshot { meta, snapshot } = snapshot;
        let called = async {
            let state = snapshot.read().await.map_err(|error| {
                let signature = Some(meta.signature());
                StorageError::from(StorageIOError::read_snapshot(signature, AnyError::new(&error)))
            })?;
            let request = Request::Snapshot(vote, meta, state);
            let called = self.call(RPCTypes::InstallSnapshot, request, option.hard_ttl());
            Ok::<_, StorageError>(called.await)
        };
        let called = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            called = called => called?,
        };
        match called {
            Ok(Response::Snapshot(answer)) => Ok(answer),
            Ok(_) => Err(StreamingError::Unreachable(Unreachable::new(&mixed_up()))),
            Err(RPCError::Timeout(late)) => Err(StreamingError::Timeout(late)),
            Err(error) => Err(StreamingError::Unreachable(Unreachable::new(&error))),
        }
    }

    /// As often as a heartbeat: a member that comes back is soon up to date.
    fn backoff(&self) -> openraft::network::Backoff {
        openraft::network::Backoff::new(std::iter::repeat(super::raft::HEARTBEAT))
    }
}

fn unreachable(error: &NotReached) -> CallError {
    RPCError::Unreachable(Unreachable::new(error))
}

fn mixed_up() -> NotReached {
    NotReached("the answer is to another question".to_owned())
}
