//! `endpoint ls` and `inspect`.

use std::collections::BTreeMap;

use clap::Subcommand;
use serde::Serialize;

use super::{
    Failure, Format,
    client::{Client, answer},
    output::{self, Table, joined, short, show},
};
use crate::api::proto::{
    ListEndpointsRequest, ListEndpointsResponse, ListLocalEndpointsRequest, LocalEndpoint,
};

/// `overlayctl endpoint`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the endpoints of this node
    Ls {
        /// Only those of one network
        #[arg(long, value_name = "NET")]
        network: Option<String>,
        /// Those of all nodes; on a manager
        #[arg(long)]
        all: bool,
    },
    /// Show one endpoint of this node, or on a manager of any node
    Inspect {
        /// Name, id, or the start of an id
        endpoint: String,
    },
}

impl Command {
    pub async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        match self {
            Self::Ls { network, all } => {
                let what = "list endpoints";
                let views = match all {
                    true => cluster(client, what, network).await?,
                    false => own(client, what, network).await?,
                };
                show(format, &views, || EndpointView::table(&views).text())
            }
            Self::Inspect { endpoint } => inspect(client, format, &endpoint).await,
        }
    }
}

async fn own(
    client: &Client,
    what: &str,
    network: Option<String>,
) -> Result<Vec<EndpointView>, Failure> {
    let request = ListLocalEndpointsRequest { network };
    let listed = answer(what, client.local().await?.list_local_endpoints(request)).await?;
    listed.endpoints.into_iter().map(EndpointView::new).collect()
}

/// All endpoints of the cluster; those of this node with what only it knows.
async fn cluster(
    client: &Client,
    what: &str,
    network: Option<String>,
) -> Result<Vec<EndpointView>, Failure> {
    let request = ListEndpointsRequest { network };
    let listed =
        answer(what, client.control().await?.list_endpoints(client.reading(request))).await?;
    let mut own: BTreeMap<String, EndpointView> =
        own(client, what, None).await?.into_iter().map(|view| (view.id.clone(), view)).collect();
    let views = EndpointView::all(listed)?.into_iter();
    Ok(views.map(|view| own.remove(&view.id).unwrap_or(view)).collect())
}

async fn inspect(client: &Client, format: Format, reference: &str) -> Result<(), Failure> {
    let what = format!("inspect endpoint {reference}");
    let mut found = matching(own(client, &what, None).await?, reference);
    if found.is_empty() {
        // A worker knows its own only.
        let all = cluster(client, &what, None).await.unwrap_or_default();
        found = matching(all, reference);
    }
    let view = match (found.pop(), found.len()) {
        (Some(view), 0) => view,
        (Some(_), more) => {
            let why = format!("'{reference}' is {} endpoints; give more of the id", more + 1);
            return Err(Failure::new(what, why));
        }
        (None, _) => {
            let why = "there is no such endpoint here; 'overlayctl endpoint ls' lists them";
            return Err(Failure::new(what, why));
        }
    };
    show(format, &view, || view.text())
}

/// Those that a name means, or else an id or its start.
fn matching(views: Vec<EndpointView>, reference: &str) -> Vec<EndpointView> {
    let (named, others): (Vec<_>, Vec<_>) =
        views.into_iter().partition(|view| view.name == reference);
    match named.is_empty() {
        true => others.into_iter().filter(|view| view.id.starts_with(reference)).collect(),
        false => named,
    }
}

/// An endpoint as tables and JSON show it.
#[derive(Debug, Serialize)]
pub struct EndpointView {
    id: String,
    name: String,
    network: String,
    pub(super) addresses: Vec<String>,
    interface: Option<String>,
    mtu: Option<u32>,
    node: String,
    aliases: Vec<String>,
}

impl EndpointView {
    /// Reads an endpoint of this node.
    pub fn new(endpoint: LocalEndpoint) -> Result<Self, Failure> {
        Ok(Self {
            id: output::id(&endpoint.id)?,
            name: endpoint.name,
            network: endpoint.network,
            addresses: endpoint.addresses,
            interface: endpoint.interface,
            mtu: endpoint.mtu,
            node: endpoint.node,
            aliases: endpoint.aliases,
        })
    }

    /// Reads endpoints of the whole cluster, sorted by network and name.
    pub fn all(listed: ListEndpointsResponse) -> Result<Vec<Self>, Failure> {
        let networks: BTreeMap<Vec<u8>, String> =
            listed.networks.into_iter().map(|network| (network.id, network.name)).collect();
        let nodes: BTreeMap<Vec<u8>, String> =
            listed.nodes.into_iter().map(|node| (node.id, node.name)).collect();
        let view = |endpoint: crate::api::proto::Endpoint| {
            Self::new(LocalEndpoint {
                id: endpoint.id,
                name: endpoint.name,
                network: networks.get(&endpoint.network).cloned().unwrap_or_default(),
                node: nodes.get(&endpoint.node).cloned().unwrap_or_default(),
                addresses: endpoint.addresses,
                aliases: endpoint.aliases,
                interface: None,
                mtu: None,
            })
        };
        let mut views =
            listed.endpoints.into_iter().map(view).collect::<Result<Vec<_>, Failure>>()?;
        views.sort_by(|a, b| (&a.network, &a.name).cmp(&(&b.network, &b.name)));
        Ok(views)
    }

    /// Lists endpoints in a table.
    pub fn table(views: &[Self]) -> Table {
        let mut table =
            Table::new(&["ID", "NAME", "NETWORK", "NODE", "ADDRESSES", "INTERFACE", "MTU"]);
        for view in views {
            table.row(vec![
                short(&view.id),
                view.name.clone(),
                view.network.clone(),
                view.node.clone(),
                joined(&view.addresses),
                view.interface.clone().unwrap_or_default(),
                view.mtu.map(|mtu| mtu.to_string()).unwrap_or_default(),
            ]);
        }
        table
    }

    fn text(&self) -> String {
        let rows = [
            ("ID", self.id.clone()),
            ("Name", self.name.clone()),
            ("Network", self.network.clone()),
            ("Node", self.node.clone()),
            ("Addresses", joined(&self.addresses)),
            ("Interface", self.interface.clone().unwrap_or_default()),
            ("MTU", self.mtu.map(|mtu| mtu.to_string()).unwrap_or_default()),
        ];
        let line = |(name, value): (&str, String)| {
            format!("{:<11}{value}", format!("{name}:")).trim_end().to_owned() + "\n"
        };
        rows.into_iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::golden;

    fn endpoint(id: u8, name: &str) -> LocalEndpoint {
        LocalEndpoint {
            id: vec![id; 16],
            name: name.into(),
            network: "blue".into(),
            node: "n1".into(),
            addresses: vec!["10.0.0.2/24".into(), "fd00::2/64".into()],
            aliases: vec!["w".into()],
            interface: Some("eth0".into()),
            mtu: Some(1436),
        }
    }

    #[test]
    fn endpoints_keep_their_json() {
        let own = EndpointView::new(endpoint(1, "web")).unwrap();
        golden("endpoint-inspect", &own);
        let elsewhere = LocalEndpoint { interface: None, mtu: None, ..endpoint(2, "db") };
        golden("endpoint-ls", &[own, EndpointView::new(elsewhere).unwrap()]);
    }

    #[test]
    fn a_name_goes_before_the_start_of_an_id() {
        let views = || {
            let views = [endpoint(1, "web"), endpoint(2, "025"), endpoint(3, "web")];
            views.into_iter().map(|e| EndpointView::new(e).unwrap()).collect::<Vec<_>>()
        };
        let names = |reference| {
            matching(views(), reference).into_iter().map(|view| view.name).collect::<Vec<_>>()
        };
        assert_eq!(names("web").len(), 2);
        assert_eq!(names("025"), ["025"]);
        assert_eq!(names("0250z"), ["web"]);
        assert_eq!(names("none").len(), 0);
    }
}
