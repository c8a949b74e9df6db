//! `network create`, `ls`, `inspect` and `rm`.

use std::{collections::BTreeMap, net::IpAddr};

use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde::Serialize;

use super::{
    Failure, Format,
    client::{Client, answer},
    endpoint::EndpointView,
    output::{self, Removed, Table, joined, remove_each, short, show},
};
use crate::api::proto::{
    CreateNetworkRequest, Encap, FindNetworkRequest, ListEndpointsRequest, ListNetworksRequest,
    Network, RemoveNetworkRequest,
};

/// `overlayctl network`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a network
    Create(Create),
    /// List the networks
    Ls,
    /// Show one network and its endpoints
    Inspect {
        /// Name, id, or the start of an id
        network: String,
    },
    /// End networks that nothing uses
    Rm {
        /// Names, ids, or starts of ids
        #[arg(required = true)]
        networks: Vec<String>,
    },
}

/// `overlayctl network create`.
#[derive(Args, Debug)]
pub struct Create {
    /// The network's name
    name: String,
    /// Its subnet, at most one IPv4 and one IPv6; without any, an IPv4 one from the pool
    #[arg(long = "subnet", value_name = "CIDR")]
    subnets: Vec<IpNet>,
    /// The gateway of a subnet; its first address unless given
    #[arg(long = "gateway", value_name = "IP")]
    gateways: Vec<IpAddr>,
    /// Give it an IPv6 subnet as well
    #[arg(long)]
    ipv6: bool,
    /// The MTU of its interfaces; the largest that fits unless given
    #[arg(long)]
    mtu: Option<u32>,
    /// Give its containers no default route
    #[arg(long)]
    internal: bool,
    /// Its number on the wire; the next free one unless given
    #[arg(long)]
    vni: Option<u32>,
    /// A label
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    labels: Vec<(String, String)>,
}

impl Command {
    pub async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.execute(client, format).await,
            Self::Ls => list(client, format).await,
            Self::Inspect { network } => inspect(client, format, network).await,
            Self::Rm { networks } => remove(client, format, networks).await,
        }
    }
}

impl Create {
    async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        let what = format!("create network {}", self.name);
        let request = CreateNetworkRequest {
            name: self.name,
            subnets: self.subnets.iter().map(ToString::to_string).collect(),
            gateways: self.gateways.iter().map(ToString::to_string).collect(),
            ipv6: self.ipv6,
            mtu: self.mtu,
            internal: self.internal,
            vni: self.vni,
            labels: self.labels.into_iter().collect(),
        };
        let made = answer(&what, client.control().await?.create_network(request)).await?;
        let view = NetworkView::new(made.network.ok_or_else(|| Failure::bent(&what))?)?;
        show(format, &view, || format!("{}\n", view.id))
    }
}

async fn list(client: &Client, format: Format) -> Result<(), Failure> {
    let request = ListNetworksRequest {};
    let listed =
        answer("list networks", client.control().await?.list_networks(client.reading(request)))
            .await?;
    let views = views(listed.networks)?;
    show(format, &views, || table(&views).text())
}

async fn inspect(client: &Client, format: Format, network: String) -> Result<(), Failure> {
    let what = format!("inspect network {network}");
    let mut control = client.control().await?;
    let find = FindNetworkRequest { reference: network };
    let found = answer(&what, control.find_network(client.reading(find))).await?;
    let network = found.network.ok_or_else(|| Failure::bent(&what))?;
    let list = ListEndpointsRequest { network: Some(network.name.clone()) };
    let listed = answer(&what, control.list_endpoints(client.reading(list))).await?;
    let view =
        Inspection { network: NetworkView::new(network)?, endpoints: EndpointView::all(listed)? };
    show(format, &view, || view.text())
}

async fn remove(client: &Client, format: Format, networks: Vec<String>) -> Result<(), Failure> {
    remove_each(format, networks, async |reference| {
        let what = format!("remove network {reference}");
        let request = RemoveNetworkRequest { reference };
        let answer = answer(&what, client.control().await?.remove_network(request)).await?;
        removed(answer.network.ok_or_else(|| Failure::bent(&what))?)
    })
    .await
}

fn removed(network: Network) -> Result<Removed, Failure> {
    Ok(Removed { id: output::id(&network.id)?, name: network.name })
}

pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("a label is K=V".to_owned()),
    }
}

#[derive(Debug, Serialize)]
struct NetworkView {
    id: String,
    name: String,
    vni: u32,
    subnets: Vec<String>,
    gateways: Vec<String>,
    mtu: Option<u32>,
    encap: &'static str,
    internal: bool,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct Inspection {
    #[serde(flatten)]
    network: NetworkView,
    endpoints: Vec<EndpointView>,
}

impl NetworkView {
    fn new(network: Network) -> Result<Self, Failure> {
        let encap = match network.encap() {
            Encap::Sealed => "sealed",
            Encap::Unspecified => return Err(Failure::bent("read a network")),
        };
        Ok(Self {
            id: output::id(&network.id)?,
            name: network.name,
            vni: network.vni,
            subnets: network.subnets,
            gateways: network.gateways,
            mtu: network.mtu,
            encap,
            internal: network.internal,
            labels: network.labels,
        })
    }
}

impl Inspection {
    fn text(&self) -> String {
        let network = &self.network;
        let rows = [
            ("ID", network.id.clone()),
            ("Name", network.name.clone()),
            ("VNI", network.vni.to_string()),
            ("Subnets", joined(&network.subnets)),
            ("Gateways", joined(&network.gateways)),
            ("MTU", network.mtu.map_or_else(|| "automatic".to_owned(), |mtu| mtu.to_string())),
            ("Encap", network.encap.to_owned()),
            ("Internal", network.internal.to_string()),
        ];
        let line = |(name, value): (&str, String)| format!("{:<10}{value}\n", format!("{name}:"));
        let head: String = rows.into_iter().map(line).collect();
        format!("{head}\n{}", EndpointView::table(&self.endpoints).text())
    }
}

fn views(networks: Vec<Network>) -> Result<Vec<NetworkView>, Failure> {
    let views = networks.into_iter().map(NetworkView::new);
    let mut views = views.collect::<Result<Vec<_>, _>>()?;
    views.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(views)
}

fn table(views: &[NetworkView]) -> Table {
    let mut table = Table::new(&["ID", "NAME", "VNI", "SUBNETS", "MTU", "ENCAP", "INTERNAL"]);
    for view in views {
        table.row(vec![
            short(&view.id),
            view.name.clone(),
            view.vni.to_string(),
            joined(&view.subnets),
            view.mtu.map_or_else(|| "auto".to_owned(), |mtu| mtu.to_string()),
            view.encap.to_owned(),
            view.internal.to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::proto::{Endpoint, ListEndpointsResponse, Node},
        cli::output::golden,
    };

    fn network(id: u8, name: &str, mtu: Option<u32>) -> Network {
        Network {
            id: vec![id; 16],
            name: name.into(),
            vni: 4096 + u32::from(id),
            subnets: vec![format!("10.0.{id}.0/24"), "fd00::/64".into()],
            gateways: vec![format!("10.0.{id}.1"), "fd00::1".into()],
            mtu,
            encap: Encap::Sealed.into(),
            internal: false,
            labels: BTreeMap::from([("tier".to_owned(), "front".to_owned())]),
        }
    }

    #[test]
    fn networks_keep_their_json() {
        golden("network-create", &NetworkView::new(network(1, "blue", None)).unwrap());
        let listed = vec![network(2, "red", Some(1400)), network(1, "blue", None)];
        let views = views(listed).unwrap();
        golden("network-ls", &views);
        golden("network-rm", &[removed(network(1, "blue", None)).unwrap()]);
        assert_eq!(
            table(&views).text().lines().nth(1).unwrap(),
            "0250za67mbtg   blue   4097   10.0.1.0/24,fd00::/64   auto   sealed   false"
        );
    }

    #[test]
    fn an_inspected_network_keeps_its_json() {
        let endpoint = Endpoint {
            id: vec![5; 16],
            name: "web".into(),
            network: vec![1; 16],
            node: vec![3; 16],
            addresses: vec!["10.0.1.2/24".into()],
            aliases: Vec::new(),
        };
        let node = Node { id: vec![3; 16], name: "n3".into(), ..Node::default() };
        let listed = ListEndpointsResponse {
            endpoints: vec![endpoint],
            networks: vec![network(1, "blue", None)],
            nodes: vec![node],
        };
        let endpoints = EndpointView::all(listed).unwrap();
        let network = NetworkView::new(network(1, "blue", None)).unwrap();
        golden("network-inspect", &Inspection { network, endpoints });
    }
}
