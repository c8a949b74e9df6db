//! What one manager reports to the one that leads: read whole before any of it counts.

use std::time::Duration;

use tonic::Status;

use crate::{
    api::{
        parse_id,
        proto::{StreamEnd, StreamReport, StreamSeen, WitnessSaid},
    },
    engine::cluster::liveness::{Closed, Heard},
    types::{Moment, NodeId, Revision},
};

/// One stream, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// As the agent gave it.
    pub number: u64,
    /// The last sign of life.
    pub heard: Moment,
    /// How it ended, if it did.
    pub closed: Option<Closed>,
}

/// What is told of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whose it is.
    pub node: NodeId,
    /// How it stands.
    pub stream: Stream,
}

/// What a witness said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// Who looked.
    pub witness: NodeId,
    /// For whom.
    pub node: NodeId,
    /// What came of it.
    pub heard: Heard,
}

/// All that is told at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of streams, ends first, and up to where each agent has what it should.
    pub streams: Vec<(Told, Revision)>,
    /// Of witnesses.
    pub said: Vec<Said>,
}

impl Report {
    /// Reads one that came now.
    ///
    /// # Errors
    /// It names something that is no node.
    pub fn read(report: StreamReport, now: Moment) -> Result<Self, Status> {
        let told = |seen: StreamSeen| {
            let closed = match seen.end() {
                StreamEnd::Unspecified => None,
                StreamEnd::ByNode => Some(Closed::ByNode),
                StreamEnd::ByManager => Some(Closed::ByManager),
            };
            let heard = now.before(Duration::from_millis(seen.silent_ms));
            let stream = Stream { number: seen.number, heard, closed };
            let told = Told { node: parse_id("node", &seen.node)?, stream };
            Ok((told, seen.acknowledged))
        };
        let said = |said: WitnessSaid| {
            let heard = if said.heard { Heard::Yes } else { Heard::No };
            let witness = parse_id("witness", &said.witness)?;
            Ok(Said { witness, node: parse_id("node", &said.node)?, heard })
        };
        Ok(Self {
            streams: report.streams.into_iter().map(told).collect::<Result<_, Status>>()?,
            said: report.said.into_iter().map(said).collect::<Result<_, Status>>()?,
        })
    }

    /// Writes it as it goes now.
    pub fn write(self, now: Moment) -> StreamReport {
        let seen = |(told, acknowledged): (Told, Revision)| StreamSeen {
            node: told.node.to_bytes().to_vec(),
            number: told.stream.number,
            silent_ms: u64::try_from(now.since(told.stream.heard).as_millis()).unwrap_or(u64::MAX),
            end: match told.stream.closed {
                None => StreamEnd::Unspecified,
                Some(Closed::ByNode) => StreamEnd::ByNode,
                Some(Closed::ByManager) => StreamEnd::ByManager,
            }
            .into(),
            acknowledged,
        };
        let said = |said: Said| WitnessSaid {
            witness: said.witness.to_bytes().to_vec(),
            node: said.node.to_bytes().to_vec(),
            heard: said.heard == Heard::Yes,
        };
        StreamReport {
            streams: self.streams.into_iter().map(seen).collect(),
            said: self.said.into_iter().map(said).collect(),
        }
    }
}
