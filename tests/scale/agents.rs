//! A process of some hundred agents.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use overlay::{
    agent::{
        certificate::Certificate,
        join::{self, Joined},
        link::{LinkTask, LookFor},
        managers::Managers,
    },
    api::{
        JoinToken,
        proto::{CreateEndpointRequest, attachment_client::AttachmentClient},
    },
    engine::membership::Table,
    types::Role,
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tonic::transport::Channel;

use super::wire::{
    self, Answer, Change, Order, Orders, PATIENCE, network_name, now_ns, say, takes_part,
};

/// When a table of which revision was in use.
type Published = Arc<Mutex<Vec<(u64, u64)>>>;

struct Agent {
    number: usize,
    joined: Joined,
    link: Option<Link>,
}

struct Link {
    task: JoinHandle<()>,
    connected: watch::Receiver<Option<Channel>>,
    revision: watch::Receiver<u64>,
    published: Published,
}

/// Does what it is told.
pub async fn run(first: &str, count: &str, networks: &str) -> anyhow::Result<()> {
    let (first, count, networks): (usize, usize, usize) =
        (first.parse()?, count.parse()?, networks.parse()?);
    let (mut orders, mut agents, mut manager) = (Orders::new(), Vec::new(), None);
    while let Some(order) = orders.next().await? {
        let answer = match order {
            Order::Join { addr, token } => {
                manager = Some(addr);
                agents = join_all(addr, &token, first, count).await?;
                Answer::default()
            }
            Order::Enter => {
                let manager = manager.context("join first")?;
                enter_all(&mut agents, manager, networks).await?;
                Answer::default()
            }
            Order::Cold { revision } => {
                let manager = manager.context("join first")?;
                agents.iter_mut().for_each(|agent| agent.link = None);
                for agent in &mut agents {
                    agent.link = Some(Link::start(manager, &agent.joined)?);
                }
                for agent in &mut agents {
                    let link = agent.link.as_mut().context("it was just started")?;
                    let there = link.revision.wait_for(|there| *there >= revision);
                    timeout(PATIENCE, there).await.context("a table does not come")??;
                }
                Answer::default()
            }
            Order::Report { changes } => {
                for agent in &mut agents {
                    agent.has_all(&changes).await?;
                }
                report(&agents, &changes)
            }
            Order::Back => {
                for agent in &mut agents {
                    let link = agent.link.as_mut().context("it was started")?;
                    let back = link.connected.wait_for(Option::is_some);
                    timeout(PATIENCE, back).await.context("an agent does not come back")??;
                }
                Answer::default()
            }
        };
        say(&Answer { done_ns: now_ns(), ..answer }).await?;
    }
    Ok(())
}

async fn join_all(
    addr: SocketAddr,
    token: &str,
    first: usize,
    count: usize,
) -> anyhow::Result<Vec<Agent>> {
    let folders = tempfile::tempdir()?;
    let token: JoinToken = token.parse()?;
    let join = async |number: usize| {
        let identity = wire::identity(&folders.path().join(number.to_string()))?;
        let introduction = wire::introduction(&identity, &format!("a{number}"))?;
        let joined = join::join(addr, &token, &introduction).await;
        let joined = joined.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
        anyhow::Ok(Agent { number, joined: joined.joined, link: None })
    };
    // A manager takes only so many connections without a certificate from one address.
    stream::iter(first..first + count).map(join).buffered(8).try_collect().await
}

async fn enter_all(
    agents: &mut [Agent],
    manager: SocketAddr,
    networks: usize,
) -> anyhow::Result<()> {
    for agent in agents.iter_mut() {
        let mut link = Link::start(manager, &agent.joined)?;
        let connected = link.connected.wait_for(Option::is_some);
        timeout(PATIENCE, connected).await.context("an agent does not connect")??;
        agent.link = Some(link);
    }
    let enter = async |agent: &Agent| {
        let channel = agent.link.as_ref().and_then(|link| link.connected.borrow().clone());
        let mut client = AttachmentClient::new(channel.context("it is connected")?);
        for network in (1..=networks).filter(|network| takes_part(agent.number, *network)) {
            let network = network_name(network);
            let request = CreateEndpointRequest { network, ..Default::default() };
            let made = client.create_endpoint(request).await;
            made.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
        }
        anyhow::Ok(())
    };
    stream::iter(agents.iter()).map(enter).buffer_unordered(32).try_collect::<Vec<()>>().await?;
    Ok(())
}

impl Agent {
    /// Waits until the newest change of its networks is in use.
    async fn has_all(&mut self, changes: &[Change]) -> anyhow::Result<()> {
        let own = changes.iter().filter(|change| takes_part(self.number, change.network));
        let newest = own.map(|change| change.revision).max().unwrap_or(0);
        let link = self.link.as_mut().context("it was started")?;
        let there = link.revision.wait_for(|there| *there >= newest);
        timeout(PATIENCE, there).await.context("a change does not come")??;
        Ok(())
    }
}

impl Link {
    fn start(manager: SocketAddr, joined: &Joined) -> anyhow::Result<Self> {
        let certificate = Arc::new(Certificate::new(joined.credentials.clone())?);
        let (channels, connected) = watch::channel(None);
        let (revisions, revision) = watch::channel(0);
        let published = Published::default();
        let publish = {
            let published = published.clone();
            move |table: &Table| {
                let mut published = published.lock().unwrap_or_else(PoisonError::into_inner);
                published.push((table.revision, now_ns()));
                revisions.send_replace(table.revision);
            }
        };
        let look_for: LookFor = Arc::new(|_, _| Box::pin(async { true }));
        let table = Table::empty(joined.node.id);
        let managers = Arc::new(Managers::new(manager, Vec::new(), Role::Worker));
        let link = LinkTask::new(managers, certificate, table, publish, look_for, channels);
        Ok(Self { task: tokio::spawn(link.run()), connected, revision, published })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Counts how long after it was asked for a change was in use at each agent of its network.
fn report(agents: &[Agent], changes: &[Change]) -> Answer {
    let mut answer = Answer { by_ms: vec![0; 10_000], ..Answer::default() };
    for agent in agents {
        let Some(link) = &agent.link else { continue };
        let published = link.published.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes.iter().filter(|change| takes_part(agent.number, change.network)) {
            match published.iter().find(|(revision, _)| *revision >= change.revision) {
                Some((_, at)) => {
                    let ms = at.saturating_sub(change.asked_ns) / 1_000_000;
                    answer.by_ms[(ms as usize).min(9_999)] += 1;
                }
                None => answer.missed += 1,
            }
        }
    }
    answer
}
