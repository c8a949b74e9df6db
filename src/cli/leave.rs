//! `overlayctl leave`.

use clap::Args;
use serde::Serialize;

use super::{
    Failure, Format,
    client::{Client, answer},
    output::{self, show},
};
use crate::api::proto::{LeaveClusterRequest, LeaveClusterResponse};

/// `overlayctl leave`.
#[derive(Debug, Args)]
pub struct Leave {
    /// Leave as a manager too; the cluster ends with its last
    #[arg(long)]
    force: bool,
}

impl Leave {
    pub async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        let request = LeaveClusterRequest { force: self.force };
        let left = answer("leave", client.local().await?.leave_cluster(request)).await?;
        let view = LeaveView::new(left)?;
        if let Some(why) = &view.not_told {
            let name = &view.name;
            eprintln!("overlayctl: leave: {why}; run 'overlayctl node rm {name}' on a manager");
        }
        show(format, &view, || "This node left its cluster.\n")
    }
}

#[derive(Debug, Serialize)]
struct LeaveView {
    node_id: String,
    name: String,
    not_told: Option<String>,
}

impl LeaveView {
    fn new(left: LeaveClusterResponse) -> Result<Self, Failure> {
        let node = left.node.ok_or_else(|| Failure::bent("leave"))?;
        Ok(Self { node_id: output::id(&node.id)?, name: node.name, not_told: left.not_told })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::proto::Node, cli::output::golden};

    #[test]
    fn leave_keeps_its_json() {
        let node = Node { id: vec![1; 16], name: "n2".into(), ..Node::default() };
        let left = LeaveClusterResponse { node: Some(node), not_told: None };
        golden("leave", &LeaveView::new(left).unwrap());
    }
}
