//! `stats`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Failure, Format,
    client::{Client, answer},
    output::{Counters, Table, short, show},
};
use crate::api::proto::{self, StatsRequest, StatsResponse};

/// `overlayctl stats`.
pub async fn execute(client: &Client, format: Format) -> Result<(), Failure> {
    let stats = answer("stats", client.local().await?.stats(StatsRequest {})).await?;
    let view = StatsView::new(stats);
    show(format, &view, || view.text())
}

#[derive(Debug, Serialize)]
struct StatsView {
    drops: BTreeMap<String, u64>,
    networks: BTreeMap<String, TrafficView>,
    endpoints: BTreeMap<String, EndpointTraffic>,
}

#[derive(Debug, Serialize)]
struct TrafficView {
    tx: Counters,
    rx: Counters,
}

#[derive(Debug, Serialize)]
struct EndpointTraffic {
    name: String,
    network: String,
    tx: Counters,
    rx: Counters,
}

impl From<Option<proto::Traffic>> for TrafficView {
    fn from(traffic: Option<proto::Traffic>) -> Self {
        let traffic = traffic.unwrap_or_default();
        Self { tx: traffic.tx.into(), rx: traffic.rx.into() }
    }
}

impl StatsView {
    fn new(stats: StatsResponse) -> Self {
        let endpoint = |endpoint: proto::EndpointTraffic| {
            let TrafficView { tx, rx } = endpoint.traffic.into();
            EndpointTraffic { name: endpoint.name, network: endpoint.network, tx, rx }
        };
        let networks = stats.networks.into_iter();
        let endpoints = stats.endpoints.into_iter();
        Self {
            drops: stats.drops,
            networks: networks.map(|(name, traffic)| (name, Some(traffic).into())).collect(),
            endpoints: endpoints.map(|(id, counted)| (id, endpoint(counted))).collect(),
        }
    }

    fn text(&self) -> String {
        let mut networks = Table::new(&["NETWORK", "TX", "TX PACKETS", "RX", "RX PACKETS"]);
        for (name, traffic) in &self.networks {
            networks.row([vec![name.clone()], cells(&traffic.tx, &traffic.rx)].concat());
        }
        let headers = ["ENDPOINT", "NAME", "NETWORK", "TX", "TX PACKETS", "RX", "RX PACKETS"];
        let mut endpoints = Table::new(&headers);
        for (id, counted) in &self.endpoints {
            let names = vec![short(id), counted.name.clone(), counted.network.clone()];
            endpoints.row([names, cells(&counted.tx, &counted.rx)].concat());
        }
        let mut drops = Table::new(&["DROP REASON", "PACKETS"]);
        for (reason, count) in self.drops.iter().filter(|(_, count)| **count > 0) {
            drops.row(vec![reason.clone(), count.to_string()]);
        }
        format!("{}\n{}\n{}", networks.text(), endpoints.text(), drops.text())
    }
}

fn cells(tx: &Counters, rx: &Counters) -> Vec<String> {
    vec![tx.human(), tx.packets.to_string(), rx.human(), rx.packets.to_string()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::output::golden,
        types::{DropCounts, DropReason},
    };

    #[test]
    fn stats_keep_their_json() {
        let traffic = proto::Traffic {
            tx: Some(proto::Counters { packets: 2, bytes: 168 }),
            rx: Some(proto::Counters { packets: 1, bytes: 84 }),
        };
        let mut drops = DropCounts::default();
        drops.add(DropReason::SpoofedSource, 7);
        let endpoint = proto::EndpointTraffic {
            name: "web".into(),
            network: "blue".into(),
            traffic: Some(traffic),
        };
        let stats = StatsResponse {
            drops: drops.iter().map(|(reason, n)| (reason.name().to_owned(), n)).collect(),
            networks: BTreeMap::from([("blue".to_owned(), traffic)]),
            endpoints: BTreeMap::from([("01qgqqd0sgcwyzvlw6h9hgg5d".to_owned(), endpoint)]),
        };
        let view = StatsView::new(stats);
        golden("stats", &view);
        assert!(view.text().ends_with("DROP REASON      PACKETS\nspoofed_source   7\n"));
    }
}
