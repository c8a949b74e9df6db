//! `node ls`.

use std::collections::BTreeMap;

use clap::Subcommand;
use serde::Serialize;

use super::{
    Failure, Format,
    client::{Client, answer},
    output::{self, Table, print, print_json, short},
};
use crate::api::proto::{
    Availability, InfoRequest, ListNodesRequest, ListNodesResponse, Node, NodeStatus, Role,
};

/// `overlayctl node`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the nodes of the cluster
    Ls,
}

impl Command {
    pub async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        match self {
            Self::Ls => {}
        }
        let what = "list nodes";
        let listed = answer(what, client.control().await?.list_nodes(ListNodesRequest {})).await?;
        let info = answer(what, client.local().await?.info(InfoRequest {})).await?;
        let own = info.member.and_then(|member| member.node).map(|node| node.id);
        let rows = rows(listed, own.as_deref())?;
        match format {
            Format::Json => print_json(&rows)?,
            Format::Table => print(&table(&rows).text()),
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct Row {
    id: String,
    name: String,
    #[serde(rename = "self")]
    own: bool,
    status: &'static str,
    availability: &'static str,
    manager_status: Option<&'static str>,
    address: String,
    version: String,
    labels: BTreeMap<String, String>,
}

fn rows(listed: ListNodesResponse, own: Option<&[u8]>) -> Result<Vec<Row>, Failure> {
    let leader = listed.leader;
    let row = |node: Node| row(node, own, &leader);
    let mut rows = listed.nodes.into_iter().map(row).collect::<Result<Vec<_>, _>>()?;
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

fn row(node: Node, own: Option<&[u8]>, leader: &[u8]) -> Result<Row, Failure> {
    let bent = || Failure::bent("list nodes");
    let status = match node.status() {
        NodeStatus::Ready => "ready",
        NodeStatus::Down => "down",
        NodeStatus::Unspecified => return Err(bent()),
    };
    let availability = match node.availability() {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
        Availability::Unspecified => return Err(bent()),
    };
    let manager_status = match (node.role(), node.id == leader, status) {
        (Role::Worker, _, _) => None,
        (Role::Manager, true, _) => Some("leader"),
        (Role::Manager, false, "ready") => Some("reachable"),
        (Role::Manager, false, _) => Some("unreachable"),
        (Role::Unspecified, _, _) => return Err(bent()),
    };
    Ok(Row {
        id: output::id(&node.id)?,
        own: own == Some(node.id.as_slice()),
        name: node.name,
        status,
        availability,
        manager_status,
        address: node.advertise_addr,
        version: node.version,
        labels: node.labels,
    })
}

fn table(rows: &[Row]) -> Table {
    let headers = ["ID", "NAME", "STATUS", "AVAILABILITY", "MANAGER STATUS", "ADDRESS", "VERSION"];
    let mut table = Table::new(&headers);
    for row in rows {
        table.row(vec![
            short(&row.id),
            if row.own { format!("{} *", row.name) } else { row.name.clone() },
            capitalised(row.status),
            capitalised(row.availability),
            row.manager_status.map(capitalised).unwrap_or_default(),
            row.address.clone(),
            row.version.clone(),
        ]);
    }
    table
}

fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::golden;

    fn node(id: u8, name: &str, role: Role, status: NodeStatus) -> Node {
        Node {
            id: vec![id; 16],
            name: name.into(),
            role: role.into(),
            availability: Availability::Active.into(),
            status: status.into(),
            advertise_addr: format!("192.0.2.{id}:2377"),
            version: "0.1.0".into(),
            ..Node::default()
        }
    }

    #[test]
    fn node_ls_keeps_its_json_and_columns() {
        let nodes = vec![
            node(2, "n2", Role::Worker, NodeStatus::Down),
            node(1, "n1", Role::Manager, NodeStatus::Ready),
        ];
        let listed = ListNodesResponse { nodes, leader: vec![1; 16] };
        let rows = rows(listed, Some(&[1; 16])).unwrap();
        golden("node-ls", &rows);
        let text = table(&rows).text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "ID             NAME   STATUS   AVAILABILITY   MANAGER STATUS   ADDRESS          VERSION",
                "0250za67mbtg   n1 *   Ready    Active         Leader           192.0.2.1:2377   0.1.0",
                "04a1ykcf8nmw   n2     Down     Active                          192.0.2.2:2377   0.1.0",
            ]
        );
    }
}
