//! `node ls`, `inspect`, `update`, `promote`, `demote` and `rm`.

use std::collections::BTreeMap;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::{
    Failure, Format,
    client::{Client, answer},
    network::label,
    output::{self, Table, print, print_json, short, show},
};
use crate::api::proto::{
    Availability, InfoRequest, InspectNodeRequest, InspectNodeResponse, ListNodesRequest,
    ListNodesResponse, Node, NodeStatus, RemoveNodeRequest, Role, SetRoleRequest, SetRoleResponse,
    UpdateNodeRequest,
};

/// `overlayctl node`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the nodes of the cluster
    Ls,
    /// Show one node
    Inspect {
        /// Its name, its id, or the start of its id; 'self' is this node
        node: String,
    },
    /// Change what the cluster does with a node
    Update(Update),
    /// Make nodes managers, which decide together with the others
    Promote {
        /// Their names, ids, or the starts of ids; 'self' is this node
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Make managers workers again; one that you do not trust any more has seen the cluster's keys: run
    /// 'ca rotate' then
    Demote {
        /// Their names, ids, or the starts of ids; 'self' is this node
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Take a node out of the cluster, with its endpoints
    Rm {
        /// Its name, its id, or the start of its id
        #[arg(required = true)]
        nodes: Vec<String>,
        /// Even if it is ready; it is refused by all others at once
        #[arg(long)]
        force: bool,
    },
}

/// `overlayctl node update`.
#[derive(Args, Debug)]
pub struct Update {
    /// Its name, its id, or the start of its id; 'self' is this node
    node: String,
    /// Whether it takes tasks
    #[arg(long, value_enum)]
    availability: Option<Wanted>,
    /// A label to set
    #[arg(long, value_name = "K=V", value_parser = label)]
    label_add: Vec<(String, String)>,
    /// A label to take away
    #[arg(long, value_name = "K")]
    label_rm: Vec<String>,
}

/// Whether a node shall take tasks.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Wanted {
    /// It takes new ones
    Active,
    /// It keeps those it has
    Pause,
    /// It runs none
    Drain,
}

impl Command {
    pub async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        match self {
            Self::Ls => list(client, format).await,
            Self::Inspect { node } => inspect(client, &node, format).await,
            Self::Update(update) => update.execute(client, format).await,
            Self::Promote { nodes } => set_role(client, nodes, Role::Manager, format).await,
            Self::Demote { nodes } => set_role(client, nodes, Role::Worker, format).await,
            Self::Rm { nodes, force } => remove(client, nodes, force, format).await,
        }
    }
}

impl Update {
    async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        let what = format!("update node {}", self.node);
        let availability = match self.availability {
            None => Availability::Unspecified,
            Some(Wanted::Active) => Availability::Active,
            Some(Wanted::Pause) => Availability::Pause,
            Some(Wanted::Drain) => Availability::Drain,
        };
        let request = UpdateNodeRequest {
            reference: resolved(client, self.node).await?,
            availability: availability.into(),
            labels_added: self.label_add.into_iter().collect(),
            labels_removed: self.label_rm,
        };
        let updated = answer(&what, client.control().await?.update_node(request)).await?;
        let view = Changed::new(updated.node)?;
        show(format, &view, || format!("{}\n", view.name))
    }
}

async fn remove(
    client: &Client,
    nodes: Vec<String>,
    force: bool,
    format: Format,
) -> Result<(), Failure> {
    let mut removed = Vec::new();
    for node in nodes {
        let what = format!("remove node {node}");
        let request = RemoveNodeRequest { reference: node, force };
        let answered = answer(&what, client.control().await?.remove_node(request)).await?;
        let view = Changed::new(answered.node)?;
        if format == Format::Table {
            print(&format!("{}\n", view.name));
        }
        removed.push(view);
    }
    if format == Format::Json {
        print_json(&removed)?;
    }
    Ok(())
}

async fn set_role(
    client: &Client,
    nodes: Vec<String>,
    role: Role,
    format: Format,
) -> Result<(), Failure> {
    let mut views = Vec::new();
    for node in nodes {
        let what = match role {
            Role::Manager => format!("promote node {node}"),
            Role::Worker | Role::Unspecified => format!("demote node {node}"),
        };
        let reference = resolved(client, node).await?;
        let request = SetRoleRequest { reference, role: role.into() };
        let answered = answer(&what, client.control().await?.set_role(request)).await?;
        let view = RoleSet::new(answered)?;
        if format == Format::Table {
            print(&format!("Node {} is a {}.\n", view.name, view.role));
        }
        if !view.settled {
            eprintln!(
                "overlayctl: warning: node {} does not decide as it should yet; see 'overlayctl node ls', and the log of its overlayd",
                view.name
            );
        }
        views.push(view);
    }
    if format == Format::Json {
        print_json(&views)?;
    }
    Ok(())
}

/// What `promote` and `demote` answer.
#[derive(Debug, Serialize)]
struct RoleSet {
    id: String,
    name: String,
    role: &'static str,
    /// Whether it decides with the others, or has no say any more.
    settled: bool,
}

impl RoleSet {
    fn new(answered: SetRoleResponse) -> Result<Self, Failure> {
        let node = answered.node.ok_or_else(|| Failure::bent("node"))?;
        let role = role(node.role())?;
        Ok(Self { id: output::id(&node.id)?, name: node.name, role, settled: answered.settled })
    }
}

/// What a change of a node answers.
#[derive(Debug, Serialize)]
struct Changed {
    id: String,
    name: String,
    availability: &'static str,
    labels: BTreeMap<String, String>,
}

impl Changed {
    fn new(node: Option<Node>) -> Result<Self, Failure> {
        let node = node.ok_or_else(|| Failure::bent("node"))?;
        let availability = availability(node.availability())?;
        Ok(Self { id: output::id(&node.id)?, name: node.name, availability, labels: node.labels })
    }
}

/// What names a node to the manager: `self` is the node that is asked.
async fn resolved(client: &Client, node: String) -> Result<String, Failure> {
    if node != "self" {
        return Ok(node);
    }
    let info = answer("find this node", client.local().await?.info(InfoRequest {})).await?;
    match info.member.and_then(|member| member.node) {
        Some(node) => output::id(&node.id),
        None => Err(Failure::new("find this node", "it is not a member of a cluster")),
    }
}

async fn inspect(client: &Client, node: &str, format: Format) -> Result<(), Failure> {
    let what = format!("inspect node {node}");
    let request = InspectNodeRequest { reference: resolved(client, node.to_owned()).await? };
    let inspected =
        answer(&what, client.control().await?.inspect_node(client.reading(request))).await?;
    let view = Inspected::new(inspected)?;
    show(format, &view, || view.text())
}

#[derive(Debug, Serialize)]
struct Inspected {
    id: String,
    name: String,
    role: &'static str,
    status: &'static str,
    management_lost: bool,
    silent_s: Option<f64>,
    availability: &'static str,
    manager_status: Option<&'static str>,
    address: String,
    data_address: String,
    underlay_mtu: u32,
    public_key: String,
    version: String,
    labels: BTreeMap<String, String>,
    endpoints: Vec<InspectedEndpoint>,
}

#[derive(Debug, Serialize)]
struct InspectedEndpoint {
    id: String,
    name: String,
    network: String,
    addresses: Vec<String>,
}

impl Inspected {
    fn new(inspected: InspectNodeResponse) -> Result<Self, Failure> {
        let node = inspected.node.ok_or_else(|| Failure::bent("node"))?;
        let names: BTreeMap<Vec<u8>, String> =
            inspected.networks.into_iter().map(|network| (network.id, network.name)).collect();
        let mut endpoints = Vec::new();
        for endpoint in inspected.endpoints {
            endpoints.push(InspectedEndpoint {
                id: output::id(&endpoint.id)?,
                name: endpoint.name,
                network: names.get(&endpoint.network).cloned().unwrap_or_default(),
                addresses: endpoint.addresses,
            });
        }
        endpoints.sort_by(|a, b| (&a.network, &a.name).cmp(&(&b.network, &b.name)));
        let status = status(node.status())?;
        Ok(Self {
            id: output::id(&node.id)?,
            role: role(node.role())?,
            status,
            management_lost: inspected.management_lost,
            silent_s: inspected.silent_ms.map(|ms| ms as f64 / 1000.0),
            availability: availability(node.availability())?,
            manager_status: manager_status(node.role(), inspected.leader, status)?,
            address: node.advertise_addr,
            data_address: node.data_addr,
            underlay_mtu: node.underlay_mtu,
            public_key: node.public_key.iter().map(|byte| format!("{byte:02x}")).collect(),
            name: node.name,
            version: node.version,
            labels: node.labels,
            endpoints,
        })
    }

    fn text(&self) -> String {
        let lost = if self.management_lost { ", management lost" } else { "" };
        let silent = self.silent_s.map(|s| format!(", heard {s:.1} s ago")).unwrap_or_default();
        let labels: Vec<String> = self.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let mut rows = vec![
            ("Name", format!("{} ({})", self.name, self.id)),
            ("Role", self.role.to_owned()),
            ("Status", format!("{}{lost}{silent}", self.status)),
            ("Availability", self.availability.to_owned()),
            ("Manager", self.manager_status.unwrap_or("-").to_owned()),
            ("Address", self.address.clone()),
            ("Data address", format!("{} (MTU {})", self.data_address, self.underlay_mtu)),
            ("Version", self.version.clone()),
            ("Labels", labels.join(" ")),
            ("Public key", self.public_key.clone()),
        ];
        for endpoint in &self.endpoints {
            let addresses = endpoint.addresses.join(" ");
            rows.push(("Endpoint", format!("{} {} {addresses}", endpoint.network, endpoint.name)));
        }
        let line = |(name, value): (&str, String)| format!("{:<14}{value}\n", format!("{name}:"));
        rows.into_iter().map(line).collect()
    }
}

async fn list(client: &Client, format: Format) -> Result<(), Failure> {
    let what = "list nodes";
    let listed =
        answer(what, client.control().await?.list_nodes(client.reading(ListNodesRequest {})))
            .await?;
    let info = answer(what, client.local().await?.info(InfoRequest {})).await?;
    let own = info.member.and_then(|member| member.node).map(|node| node.id);
    let rows = rows(listed, own.as_deref())?;
    show(format, &rows, || table(&rows).text())
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
    let ListNodesResponse { nodes: _, leader, deciding } = &listed;
    let row = |node: Node| row(node, own, leader, deciding);
    let mut rows = listed.nodes.iter().cloned().map(row).collect::<Result<Vec<_>, _>>()?;
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

fn row(
    node: Node,
    own: Option<&[u8]>,
    leader: &[u8],
    deciding: &[Vec<u8>],
) -> Result<Row, Failure> {
    let status = status(node.status())?;
    let availability = availability(node.availability())?;
    let manager_status = manager_status(node.role(), node.id == leader, status)?;
    // It has not caught up with the others yet.
    let joins = manager_status == Some("reachable") && !deciding.contains(&node.id);
    let manager_status = if joins { Some("joining") } else { manager_status };
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

fn role(role: Role) -> Result<&'static str, Failure> {
    output::role_name(role).ok_or_else(|| Failure::bent("node"))
}

fn status(status: NodeStatus) -> Result<&'static str, Failure> {
    match status {
        NodeStatus::Ready => Ok("ready"),
        NodeStatus::Down => Ok("down"),
        NodeStatus::Unspecified => Err(Failure::bent("node")),
    }
}

fn availability(availability: Availability) -> Result<&'static str, Failure> {
    match availability {
        Availability::Active => Ok("active"),
        Availability::Pause => Ok("pause"),
        Availability::Drain => Ok("drain"),
        Availability::Unspecified => Err(Failure::bent("node")),
    }
}

fn manager_status(role: Role, leader: bool, status: &str) -> Result<Option<&'static str>, Failure> {
    match (role, leader, status) {
        (Role::Worker, _, _) => Ok(None),
        (Role::Manager, true, _) => Ok(Some("leader")),
        (Role::Manager, false, "ready") => Ok(Some("reachable")),
        (Role::Manager, false, _) => Ok(Some("unreachable")),
        (Role::Unspecified, _, _) => Err(Failure::bent("node")),
    }
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
    use crate::{
        api::proto::{Endpoint, Network},
        cli::output::golden,
    };

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
    fn node_inspect_update_and_rm_keep_their_json() {
        let labels = [("disk".to_owned(), "ssd".to_owned())].into();
        let node = Node {
            data_addr: "192.0.2.2:7790".into(),
            underlay_mtu: 1500,
            public_key: vec![0xab; 32],
            labels,
            ..node(2, "n2", Role::Worker, NodeStatus::Ready)
        };
        let endpoint = Endpoint {
            id: vec![3; 16],
            name: "web".into(),
            network: vec![4; 16],
            node: vec![2; 16],
            addresses: vec!["10.0.0.2/24".into()],
            ..Endpoint::default()
        };
        let network = Network { id: vec![4; 16], name: "blue".into(), ..Network::default() };
        let view = Inspected::new(InspectNodeResponse {
            node: Some(node.clone()),
            management_lost: true,
            silent_ms: Some(2500),
            leader: false,
            endpoints: vec![endpoint],
            networks: vec![network],
        })
        .unwrap();
        golden("node-inspect", &view);
        let text = view.text();
        assert!(text.contains("Status:       ready, management lost, heard 2.5 s ago\n"), "{text}");
        assert!(text.ends_with("Endpoint:     blue web 10.0.0.2/24\n"), "{text}");
        let changed = Changed::new(Some(node)).unwrap();
        golden("node-update", &changed);
        golden("node-rm", &[changed]);
        let node = Some(self::node(2, "n2", Role::Manager, NodeStatus::Ready));
        golden("node-promote", &[RoleSet::new(SetRoleResponse { node, settled: true }).unwrap()]);
    }

    #[test]
    fn node_ls_tells_what_each_manager_is() {
        let nodes = vec![
            node(1, "n1", Role::Manager, NodeStatus::Ready),
            node(2, "n2", Role::Manager, NodeStatus::Ready),
            node(3, "n3", Role::Manager, NodeStatus::Down),
            node(4, "n4", Role::Manager, NodeStatus::Ready),
            node(5, "n5", Role::Worker, NodeStatus::Ready),
        ];
        let (leader, deciding) = (vec![2; 16], vec![vec![1; 16], vec![2; 16], vec![3; 16]]);
        let rows = rows(ListNodesResponse { nodes, leader, deciding }, None).unwrap();
        let statuses: Vec<_> = rows.iter().map(|row| row.manager_status).collect();
        let wanted = ["reachable", "leader", "unreachable", "joining"].map(Some);
        assert_eq!(statuses[..4], wanted);
        assert_eq!(statuses[4], None);
    }

    #[test]
    fn node_ls_keeps_its_json_and_columns() {
        let nodes = vec![
            node(2, "n2", Role::Worker, NodeStatus::Down),
            node(1, "n1", Role::Manager, NodeStatus::Ready),
        ];
        let (leader, deciding) = (vec![1; 16], vec![vec![1; 16]]);
        let listed = ListNodesResponse { nodes, leader, deciding };
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
