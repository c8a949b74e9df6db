//! The managers' processes, and what operators ask of them.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use overlay::api::{
    STALE, channel,
    proto::{
        CreateNetworkRequest, JoinTokenRequest, ListEndpointsRequest, ListNetworksRequest,
        ListNodesRequest, ListNodesResponse, NodeStatus, Role, control_client::ControlClient,
    },
    tls,
};
use tokio::time::{Instant, sleep};
use tonic::{Request, Status, metadata::MetadataValue, transport::Channel};

use super::{
    layout::{Layout, network_name, subnet},
    process::Process,
    wire::{PATIENCE, Serving, Truth, now_ns},
};

/// All managers, by number from 0.
pub struct Cluster {
    managers: Vec<Manager>,
}

struct Manager {
    folder: String,
    serving: Serving,
    process: Option<Process>,
    /// Of its processes that are gone.
    peak_mb: f64,
}

impl Cluster {
    /// Founds a cluster, and has more managers join.
    pub async fn found(folder: &Path, managers: usize) -> anyhow::Result<Self> {
        let mut cluster = Self { managers: Vec::new() };
        for number in 0..managers {
            let folder = folder.join(format!("m{number}"));
            std::fs::create_dir(&folder)?;
            let folder = folder.display().to_string();
            let mut process = match cluster.managers.first() {
                None => Process::start(&["manager", &folder])?,
                Some(first) => {
                    let addr = first.serving.addr.to_string();
                    let token = cluster.token(Role::Manager).await?;
                    let name = format!("m{number}");
                    Process::start(&["manager", &folder, &addr, &token, &name])?
                }
            };
            let serving = process.hear().await?;
            let process = Some(process);
            cluster.managers.push(Manager { folder, serving, process, peak_mb: 0.0 });
            cluster.await_leader(&[]).await?;
        }
        Ok(cluster)
    }

    /// Ends all processes in order.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        for manager in &mut self.managers {
            manager.note_peak()?;
            manager.process.take().context("it runs")?.end().await?;
        }
        Ok(())
    }

    /// Starts all of them again, and waits until they decide.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        for manager in &mut self.managers {
            manager.process = Some(Process::start(&["manager", &manager.folder])?);
        }
        for manager in &mut self.managers {
            let process = manager.process.as_mut().context("it was started")?;
            let _: Serving = process.hear().await?;
        }
        self.await_leader(&[]).await.map(drop)
    }

    /// Ends one with SIGKILL; returns its address.
    pub async fn kill(&mut self, manager: usize) -> anyhow::Result<std::net::SocketAddr> {
        let manager = &mut self.managers[manager];
        manager.note_peak()?;
        manager.process.take().context("it runs")?.kill().await?;
        Ok(manager.serving.addr)
    }

    pub fn addrs(&self) -> Vec<std::net::SocketAddr> {
        self.managers.iter().map(|manager| manager.serving.addr).collect()
    }

    /// Processor time of each so far.
    pub fn cpu_s(&self) -> anyhow::Result<Vec<f64>> {
        let running = self.managers.iter().filter_map(|manager| manager.process.as_ref());
        running.map(Process::cpu_s).collect()
    }

    /// The most memory that each ever had, dead or alive.
    pub fn peaks_mb(&mut self) -> anyhow::Result<Vec<f64>> {
        self.managers.iter_mut().try_for_each(Manager::note_peak)?;
        Ok(self.managers.iter().map(|manager| manager.peak_mb).collect())
    }

    /// Those that run.
    pub fn alive(&self) -> Vec<usize> {
        let alive = |number: &usize| self.managers[*number].process.is_some();
        (0..self.managers.len()).filter(alive).collect()
    }

    /// Waits until all that run say that the same one leads, none of those `but`, and all decide;
    /// returns who.
    pub async fn await_leader(&self, but: &[usize]) -> anyhow::Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let mut leaders = Vec::new();
            for manager in self.alive() {
                leaders.push(self.leader_of(manager).await.ok().flatten());
            }
            if let Some(Some(leader)) = leaders.first()
                && leaders.iter().all(|other| *other == Some(*leader))
                && !but.contains(leader)
            {
                return Ok(*leader);
            }
            sleep(Duration::from_millis(20)).await;
        }
        bail!("nobody leads");
    }

    /// Who leads, as one of them says once it has asked the others.
    async fn leader_of(&self, manager: usize) -> anyhow::Result<Option<usize>> {
        let ListNodesResponse { nodes: _, leader, deciding } = self.nodes(manager, false).await?;
        let number = |id: &Vec<u8>| {
            self.managers.iter().position(|one| one.serving.node.to_bytes() == id[..])
        };
        Ok(number(&leader).filter(|_| deciding.len() == self.managers.len()))
    }

    async fn nodes(&self, manager: usize, stale: bool) -> anyhow::Result<ListNodesResponse> {
        let mut client = self.control(manager).await?;
        let nodes = client.list_nodes(asked(ListNodesRequest {}, stale)).await;
        Ok(nodes.map_err(message)?.into_inner())
    }

    /// How many nodes are ready, as a manager has it.
    pub async fn ready(&self, manager: usize) -> anyhow::Result<usize> {
        let nodes = self.nodes(manager, true).await?.nodes;
        Ok(nodes.iter().filter(|node| node.status() == NodeStatus::Ready).count())
    }

    /// The standing token of a role.
    pub async fn token(&self, role: Role) -> anyhow::Result<String> {
        let request = JoinTokenRequest { role: role.into(), ..Default::default() };
        let token = self.control(0).await?.join_token(request).await;
        Ok(token.map_err(message)?.into_inner().token)
    }

    /// Makes the networks.
    pub async fn create_networks(&self, layout: &Layout) -> anyhow::Result<()> {
        let client = self.control(0).await?;
        let endpoints = layout.endpoints_on();
        let create = async |network: usize| {
            let request = CreateNetworkRequest {
                name: network_name(network),
                subnets: vec![subnet(network, endpoints[network])],
                ..Default::default()
            };
            client.clone().create_network(request).await.map(drop).map_err(message)
        };
        let all = stream::iter(0..layout.networks()).map(create);
        all.buffer_unordered(64).try_collect().await
    }

    /// All that one of them has.
    pub async fn truth(&self, manager: usize) -> anyhow::Result<Truth> {
        let nodes = self.nodes(manager, false).await?.nodes;
        let mut client = self.control(manager).await?;
        let networks = client.list_networks(ListNetworksRequest {}).await.map_err(message)?;
        let endpoints = client.list_endpoints(ListEndpointsRequest { network: None }).await;
        let endpoints = endpoints.map_err(message)?.into_inner().endpoints;
        let nodes: Result<_, _> = nodes.into_iter().map(TryInto::try_into).collect();
        let networks = networks.into_inner().networks.into_iter().map(TryInto::try_into);
        let endpoints: Result<_, _> = endpoints.into_iter().map(TryInto::try_into).collect();
        Ok(Truth::new(nodes?, networks.collect::<Result<_, _>>()?, endpoints?))
    }

    async fn control(&self, manager: usize) -> anyhow::Result<ControlClient<Channel>> {
        let serving = &self.managers[manager].serving;
        let config = Arc::new(tls::member_config(&serving.credentials())?);
        let channel = channel::to_manager(serving.addr, config).await?;
        Ok(ControlClient::new(channel).max_decoding_message_size(LARGEST_LIST))
    }

    /// Waits until so many nodes are ready.
    pub async fn await_ready(&self, manager: usize, nodes: usize) -> anyhow::Result<f64> {
        let begun = now_ns();
        let deadline = Instant::now() + PATIENCE;
        while self.ready(manager).await? < nodes {
            ensure!(Instant::now() < deadline, "the nodes do not come to be ready");
            sleep(Duration::from_millis(500)).await;
        }
        Ok((now_ns() - begun) as f64 / 1e9)
    }
}

impl Manager {
    fn note_peak(&mut self) -> anyhow::Result<()> {
        if let Some(process) = &self.process {
            self.peak_mb = self.peak_mb.max(process.peak_mb()?);
        }
        Ok(())
    }
}

fn asked<T>(request: T, stale: bool) -> Request<T> {
    let mut request = Request::new(request);
    if stale {
        request.metadata_mut().insert(STALE, MetadataValue::from_static("1"));
    }
    request
}

fn message(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

/// Every endpoint of a large cluster, in one answer.
const LARGEST_LIST: usize = 256 << 20;
