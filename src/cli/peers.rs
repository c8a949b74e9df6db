//! `peers`.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Duration};

use clap::Args;
use serde::Serialize;

use super::{
    Failure, Format,
    client::{Client, answer},
    output::{self, Counters, Table, joined, print, print_json_line, show, total},
};
use crate::api::proto::{ListPeersRequest, PeerStatus};

/// `overlayctl peers`.
#[derive(Args, Debug)]
pub struct Peers {
    /// Only those with containers on one network
    #[arg(long, value_name = "NET")]
    network: Option<String>,
    /// Show them again every second; with --json one object a line
    #[arg(long)]
    watch: bool,
}

impl Peers {
    pub async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        if !self.watch {
            let rows = self.rows(client).await?;
            return show(format, &rows, || table(&rows).text());
        }
        let mut ticks = tokio::time::interval(WATCH_INTERVAL);
        let clear = if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
        loop {
            ticks.tick().await;
            let rows = self.rows(client).await?;
            match format {
                Format::Json => rows.iter().try_for_each(print_json_line)?,
                Format::Table => print(&format!("{clear}{}", table(&rows).text())),
            }
        }
    }

    async fn rows(&self, client: &Client) -> Result<Vec<Row>, Failure> {
        let request = ListPeersRequest { network: self.network.clone() };
        let listed = answer("list peers", client.local().await?.list_peers(request)).await?;
        listed.peers.into_iter().map(Row::new).collect()
    }
}

#[derive(Debug, Serialize)]
struct Row {
    node: String,
    id: String,
    address: String,
    state: String,
    reason: Option<String>,
    rtt_us: Option<u64>,
    loss: Option<f64>,
    path_mtu: u32,
    inner_mtu: u32,
    cipher: Option<String>,
    key_age_s: Option<f64>,
    last_rx_s: Option<f64>,
    tx: Counters,
    rx: Counters,
    drops: BTreeMap<String, u64>,
    networks: Vec<String>,
    lanes: u32,
}

impl Row {
    fn new(peer: PeerStatus) -> Result<Self, Failure> {
        let traffic = peer.traffic.unwrap_or_default();
        Ok(Self {
            id: output::id(&peer.id)?,
            node: peer.name,
            address: peer.address,
            state: peer.state,
            reason: peer.reason,
            rtt_us: peer.rtt_us,
            loss: peer.loss,
            path_mtu: peer.path_mtu,
            inner_mtu: peer.inner_mtu,
            cipher: peer.cipher,
            key_age_s: peer.key_age_ms.map(|ms| ms as f64 / 1000.0),
            last_rx_s: peer.last_rx_ms.map(|ms| ms as f64 / 1000.0),
            tx: traffic.tx.into(),
            rx: traffic.rx.into(),
            drops: peer.drops,
            networks: peer.networks,
            lanes: peer.lanes,
        })
    }
}

fn table(rows: &[Row]) -> Table {
    let headers = [
        "NODE", "ADDRESS", "STATE", "RTT", "LOSS", "MTU", "CIPHER", "KEY AGE", "TX", "RX", "DROPS",
        "NETWORKS",
    ];
    let mut table = Table::new(&headers);
    let dash = || "-".to_owned();
    for row in rows {
        let state = match &row.reason {
            Some(reason) => format!("{} ({reason})", row.state),
            None => row.state.clone(),
        };
        table.row(vec![
            row.node.clone(),
            row.address.clone(),
            state,
            row.rtt_us.map_or_else(dash, round_trip),
            row.loss.map_or_else(dash, |loss| format!("{:.1}%", loss * 100.0)),
            row.inner_mtu.to_string(),
            row.cipher.clone().unwrap_or_else(dash),
            row.key_age_s.map_or_else(dash, |age| format!("{}s", age.floor())),
            row.tx.human(),
            row.rx.human(),
            total(&row.drops).to_string(),
            joined(&row.networks),
        ]);
    }
    table
}

fn round_trip(us: u64) -> String {
    if us < 1000 { format!("{us}us") } else { format!("{:.1}ms", us as f64 / 1000.0) }
}

const WATCH_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::proto,
        cli::output::golden,
        types::{DropCounts, DropReason},
    };

    fn peer() -> PeerStatus {
        let mut drops = DropCounts::default();
        drops.add(DropReason::Replay, 3);
        PeerStatus {
            id: vec![2; 16],
            name: "n2".into(),
            address: "192.0.2.2:7790".into(),
            state: "up".into(),
            reason: None,
            rtt_us: Some(210),
            loss: Some(0.0),
            path_mtu: 1500,
            inner_mtu: 1436,
            cipher: Some("aes-256-gcm".into()),
            key_age_ms: Some(17_900),
            last_rx_ms: Some(200),
            traffic: Some(proto::Traffic {
                tx: Some(proto::Counters { packets: 10, bytes: 14_360 }),
                rx: Some(proto::Counters { packets: 5, bytes: 300 }),
            }),
            drops: drops.iter().map(|(reason, n)| (reason.name().to_owned(), n)).collect(),
            networks: vec!["blue".into()],
            lanes: 8,
        }
    }

    #[test]
    fn peers_keep_their_json_and_columns() {
        let idle = PeerStatus {
            name: "n3".into(),
            state: "idle".into(),
            reason: Some("nothing asked".into()),
            rtt_us: None,
            loss: None,
            cipher: None,
            key_age_ms: None,
            last_rx_ms: None,
            traffic: None,
            ..peer()
        };
        let rows = [Row::new(peer()).unwrap(), Row::new(idle).unwrap()];
        golden("peers", &rows);
        assert_eq!(
            table(&rows).text().lines().collect::<Vec<_>>(),
            [
                "NODE   ADDRESS          STATE                  RTT     LOSS   MTU    CIPHER        KEY AGE   TX        RX      DROPS   NETWORKS",
                "n2     192.0.2.2:7790   up                     210us   0.0%   1436   aes-256-gcm   17s       14.4 kB   300 B   3       blue",
                "n3     192.0.2.2:7790   idle (nothing asked)   -       -      1436   -             -         0 B       0 B     3       blue",
            ]
        );
    }
}
