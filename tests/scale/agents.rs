//! A process of some thousand agents: does what the driver says.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, future::join_all, stream};
use overlay::{
    agent::join,
    api::{JoinToken, channel, tls},
    types::Revision,
};
use rand_of::Draw;
use tokio::{task::JoinSet, time::interval};

use super::{
    agent::{Agent, Ledger},
    layout::Layout,
    truth::Expected,
    wire::{self, Answer, Change, Order, Orders, What, now_ns, say},
};

/// The agents of this process.
struct Agents {
    layout: Layout,
    all: Vec<Agent>,
    managers: Vec<SocketAddr>,
    /// Endpoints that a change made, the oldest first: whose, on which network, and its id.
    made: Vec<(usize, usize, Vec<u8>)>,
}

/// Does what it is told; `layout` are the numbers of agents and endpoints, and the largest network.
pub async fn run(first: &str, count: &str, layout: [&str; 3]) -> anyhow::Result<()> {
    let (first, count): (usize, usize) = (first.parse()?, count.parse()?);
    let [agents, endpoints, largest] = layout.map(str::parse);
    let layout = Layout::new(agents?, endpoints?, largest?)?;
    let mut agents = Agents { layout, all: Vec::new(), managers: Vec::new(), made: Vec::new() };
    let mut orders = Orders::new();
    while let Some(order) = orders.next().await? {
        let answer = match order {
            Order::Join { managers, token } => {
                agents.join(&managers, &token, first..first + count).await?;
                agents.managers = managers;
                Answer::default()
            }
            Order::Enter => agents.enter().await?,
            Order::Connect { revision } => agents.connect(revision).await?,
            Order::Churn { a_second, for_s, seed } => agents.churn(a_second, for_s, seed).await?,
            Order::Report { changes } => agents.report(changes).await?,
            Order::Back { from } => {
                let back = agents.all.iter_mut().map(|agent| agent.back(from));
                let done_ns = join_all(back).await.into_iter().collect::<Result<_, _>>()?;
                Answer { done_ns, ..Answer::default() }
            }
            Order::Plant => {
                plant()?;
                Answer::default()
            }
            Order::Compare { truth } => agents.compare(&truth).await?,
        };
        say(&answer).await?;
    }
    Ok(())
}

impl Agents {
    async fn join(
        &mut self,
        managers: &[SocketAddr],
        token: &str,
        numbers: std::ops::Range<usize>,
    ) -> anyhow::Result<()> {
        let folders = tempfile::tempdir()?;
        let token: JoinToken = token.parse()?;
        let join = async |number: usize| {
            let identity = wire::identity(&folders.path().join(number.to_string()))?;
            let addr = "127.0.0.1:2377".parse()?;
            let introduction = wire::introduction(&identity, &format!("a{number}"), addr)?;
            let manager = managers[number % managers.len()];
            let joined = join::join(manager, &token, &introduction).await;
            let joined = joined.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
            Agent::new(&self.layout, number, joined.joined, manager)
        };
        // A manager takes only so many connections without a certificate from one address.
        self.all = stream::iter(numbers).map(join).buffered(12).try_collect().await?;
        Ok(())
    }

    async fn enter(&mut self) -> anyhow::Result<Answer> {
        let enter = async |agent: &Agent| {
            let config = Arc::new(tls::member_config(&agent.joined.credentials)?);
            let channel = channel::to_manager(agent.manager, config).await?;
            for network in self.layout.endpoints_of(agent.number) {
                agent.create(channel.clone(), network).await?;
            }
            anyhow::Ok(())
        };
        let entering = stream::iter(self.all.iter()).map(enter);
        entering.buffer_unordered(64).try_collect::<Vec<()>>().await?;
        Ok(Answer::default())
    }

    async fn connect(&mut self, revision: Revision) -> anyhow::Result<Answer> {
        let endpoints = self.layout.endpoints_on();
        for agent in &mut self.all {
            agent.expect(agent.networks.iter().map(|network| endpoints[*network]).sum());
            agent.start(&self.managers)?;
        }
        let there = self.all.iter_mut().map(|agent| agent.has(revision));
        let done_ns = join_all(there).await.into_iter().collect::<Result<_, _>>()?;
        Ok(Answer { done_ns, ..Answer::default() })
    }

    /// Makes changes at a steady pace: endpoints come, and after a while the oldest of them go.
    async fn churn(&mut self, a_second: u64, for_s: u64, seed: u64) -> anyhow::Result<Answer> {
        ensure!(!self.all.is_empty(), "join first");
        let mut pace = interval(Duration::from_nanos(1_000_000_000 / a_second));
        let (mut draw, mut under_way, mut changes) = (Draw(seed), JoinSet::new(), Vec::new());
        for number in 0..a_second * for_s {
            pace.tick().await;
            while let Some(done) = under_way.try_join_next() {
                self.note(done?, &mut changes);
            }
            let oldest = (self.made.len() >= LIVE && number % 2 == 1).then(|| self.made.remove(0));
            let (place, network, gone) = match oldest {
                Some((place, network, endpoint)) => (place, network, Some(endpoint)),
                None => {
                    // As often as a network has endpoints.
                    let place = draw.below(self.all.len());
                    let endpoints = self.layout.endpoints_of(self.all[place].number);
                    (place, endpoints[draw.below(endpoints.len())], None)
                }
            };
            let agent = self.all[place].caller();
            under_way.spawn(async move {
                let asked_ns = now_ns();
                let (what, made) = match gone {
                    Some(endpoint) => (agent.remove(endpoint).await, None),
                    None => agent.create(network).await,
                };
                let answered_ns = now_ns();
                (Change { network, what, asked_ns, answered_ns }, made.map(|made| (place, made)))
            });
        }
        while let Some(done) = under_way.join_next().await {
            self.note(done?, &mut changes);
        }
        Ok(Answer { changes, ..Answer::default() })
    }

    fn note(
        &mut self,
        (change, made): (Change, Option<(usize, Vec<u8>)>),
        changes: &mut Vec<Change>,
    ) {
        self.made.extend(made.map(|(place, endpoint)| (place, change.network, endpoint)));
        changes.push(change);
    }

    async fn report(&mut self, mut changes: Vec<Change>) -> anyhow::Result<Answer> {
        changes.sort_by_key(|change| change.what.revision());
        let ledger = Ledger::new(&changes);
        let mut answer = Answer { by_ms: vec![0; 60_000], ..Answer::default() };
        for agent in &mut self.all {
            let newest = agent.networks.iter().filter_map(|network| ledger.newest(*network)).max();
            if let Some(newest) = newest {
                agent.has(newest).await?;
            }
            agent.report(&ledger, &mut answer);
        }
        Ok(answer)
    }

    async fn compare(&mut self, truth: &Path) -> anyhow::Result<Answer> {
        let truth = std::fs::read(truth).context("read what the manager has")?;
        let expected = Expected::new(serde_json::from_slice(&truth)?)?;
        let mut answer = Answer::default();
        for agent in &mut self.all {
            let Some(table) = agent.stop().await? else { continue };
            expected.compare(&self.layout, agent.number, table, &mut answer.faults)?;
            answer.tables += 1;
        }
        Ok(answer)
    }
}

impl What {
    /// When it was, for those that were answered.
    pub fn revision(self) -> Revision {
        match self {
            Self::Created(revision) | Self::Removed(revision) => revision,
            Self::Unknown => 0,
        }
    }
}

#[cfg(feature = "plant")]
fn plant() -> anyhow::Result<()> {
    overlay::plant::set("drop");
    Ok(())
}

#[cfg(not(feature = "plant"))]
fn plant() -> anyhow::Result<()> {
    anyhow::bail!("this is built without the feature 'plant'")
}

mod rand_of {
    /// Numbers that follow from a seed (SplitMix64).
    pub struct Draw(pub u64);

    impl Draw {
        pub fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((mixed ^ (mixed >> 31)) % end as u64) as usize
        }
    }
}

/// Endpoints of a process that changes made and did not end yet.
const LIVE: usize = 50;
