//! The driver: starts the processes, makes the changes, and prints the figures.

use std::{process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use overlay::{
    agent::join,
    api::{
        JoinToken, channel,
        proto::{
            CreateEndpointRequest, CreateNetworkRequest, RemoveEndpointRequest,
            attachment_client::AttachmentClient, control_client::ControlClient,
        },
        tls,
    },
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{MissedTickBehavior, interval},
};
use tonic::{Status, transport::Channel};

use super::wire::{self, Answer, Change, Order, Serving, network_name, now_ns};

/// Agents of one process: each has a connection, and a process has a limit of descriptors.
const PER_PROCESS: usize = 500;
/// Changes a second, and for how long.
const RATES: [(u64, u64); 3] = [(1, 10), (20, 15), (100, 10)];

/// Runs all of it.
pub async fn run(agents: &str, networks: &str) -> anyhow::Result<()> {
    let (agents, networks): (usize, usize) = (agents.parse()?, networks.parse()?);
    let folder = tempfile::tempdir()?;
    let path = folder.path().display().to_string();
    let mut manager = Process::start(&["manager", &path])?;
    let serving: Serving = manager.hear().await?;
    let control = channel(&serving, &serving.credentials()).await?;
    for network in 1..=networks {
        let request = CreateNetworkRequest { name: network_name(network), ..Default::default() };
        let made = ControlClient::new(control.clone()).create_network(request).await;
        made.map_err(message)?;
    }
    let mut all = Vec::new();
    for first in (1..=agents).step_by(PER_PROCESS) {
        let count = PER_PROCESS.min(agents + 1 - first);
        let words = [first.to_string(), count.to_string(), networks.to_string()];
        all.push(Process::start(&["agents", &words[0], &words[1], &words[2]])?);
    }
    let begun = now_ns();
    let token = serving.token.clone();
    tell(&mut all, &Order::Join { addr: serving.addr, token }).await?;
    println!("{agents} agents joined in {:.1} s", since(begun));
    let begun = now_ns();
    tell(&mut all, &Order::Enter).await?;
    let endpoints: usize = (1..=networks).map(|network| agents / network).sum();
    println!("{endpoints} endpoints on {networks} networks made in {:.1} s", since(begun));

    let changer = Changer::join(&serving).await?;
    let newest = changer.change(1).await?.revision;
    let begun = now_ns();
    let done = tell(&mut all, &Order::Cold { revision: newest }).await?;
    println!("cold start of all, whole tables: {:.2} s", seconds(done - begun));

    for (rate, for_s) in RATES {
        rate_of(&changer, &manager, &mut all, networks, rate, for_s).await?;
    }

    manager.kill().await?;
    let begun = now_ns();
    let mut manager = Process::start(&["manager", &path])?;
    let _: Serving = manager.hear().await?;
    let serving_again = seconds(now_ns() - begun);
    let done = tell(&mut all, &Order::Back).await?;
    println!(
        "manager killed: serves again after {serving_again:.2} s, all agents back after {:.2} s",
        seconds(done - begun)
    );
    println!("manager: peak RSS {:.0} MB", manager.peak_mb()?);
    Ok(())
}

/// Makes so many changes a second, and prints what they cost.
async fn rate_of(
    changer: &Changer,
    manager: &Process,
    all: &mut [Process],
    networks: usize,
    rate: u64,
    for_s: u64,
) -> anyhow::Result<()> {
    let (cpu, bytes, begun) = (manager.cpu_s()?, loopback_bytes()?, now_ns());
    let mut pace = interval(Duration::from_nanos(1_000_000_000 / rate));
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut changes = Vec::new();
    for number in 0..rate * for_s {
        pace.tick().await;
        // Large networks change as often as small ones.
        let network = 1 + (number as usize * 7919) % networks;
        changes.push(changer.change(network).await?);
    }
    let (cpu, bytes, took) =
        (manager.cpu_s()? - cpu, loopback_bytes()? - bytes, seconds(now_ns() - begun));
    let mut by_ms = vec![0; 10_000];
    let mut missed = 0;
    for process in all.iter_mut() {
        let answer = process.ask(&Order::Report { changes: changes.clone() }).await?;
        by_ms.iter_mut().zip(&answer.by_ms).for_each(|(sum, more)| *sum += more);
        missed += answer.missed;
    }
    let count: u64 = by_ms.iter().sum();
    ensure!(missed == 0, "{missed} changes were not seen");
    let at = |share: f64| {
        let mut left = (count as f64 * share) as u64;
        by_ms.iter().position(|here| {
            let found = *here > left;
            left = left.saturating_sub(*here);
            found
        })
    };
    println!(
        "{rate:>3} changes/s for {took:.0} s: {count} tables; asked to in use p50 {} ms, p99 {} ms, max {} ms; {:.0} bytes a change and agent; manager {:.0} % of a core",
        at(0.5).unwrap_or(9_999),
        at(0.99).unwrap_or(9_999),
        by_ms.iter().rposition(|here| *here > 0).unwrap_or(0),
        bytes as f64 / count as f64,
        cpu / took * 100.0
    );
    Ok(())
}

/// A node whose endpoints come and go.
struct Changer {
    channel: Channel,
}

impl Changer {
    async fn join(serving: &Serving) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let identity = wire::identity(folder.path())?;
        let introduction = wire::introduction(&identity, "changer")?;
        let token: JoinToken = serving.token.parse()?;
        let joined = join::join(serving.addr, &token, &introduction).await.map_err(message)?;
        Ok(Self { channel: channel(serving, &joined.joined.credentials).await? })
    }

    /// Makes an endpoint on a network and takes it away; returns the first of both.
    async fn change(&self, network: usize) -> anyhow::Result<Change> {
        let mut client = AttachmentClient::new(self.channel.clone());
        let asked_ns = now_ns();
        let request =
            CreateEndpointRequest { network: network_name(network), ..Default::default() };
        let made = client.create_endpoint(request).await.map_err(message)?.into_inner();
        let endpoint = made.endpoint.context("an endpoint was made")?.id;
        client.remove_endpoint(RemoveEndpointRequest { endpoint }).await.map_err(message)?;
        Ok(Change { network, revision: made.revision, asked_ns })
    }
}

async fn channel(serving: &Serving, credentials: &tls::Credentials) -> anyhow::Result<Channel> {
    let config = Arc::new(tls::member_config(credentials)?);
    Ok(channel::to_manager(serving.addr, config).await?)
}

fn message(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

/// Tells all processes the same, and waits for all; returns when the last was done.
async fn tell(all: &mut [Process], order: &Order) -> anyhow::Result<u64> {
    for process in all.iter_mut() {
        process.say(order).await?;
    }
    let mut done = 0;
    for process in all {
        done = done.max(process.hear::<Answer>().await?.done_ns);
    }
    Ok(done)
}

/// One of the other processes; it ends with this value.
struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(words: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let stdin = child.stdin.take().context("it has an input")?;
        let stdout = child.stdout.take().context("it has an output")?;
        Ok(Self { child, stdin, lines: BufReader::new(stdout).lines() })
    }

    async fn say(&mut self, order: &Order) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        Ok(self.stdin.write_all(&line).await?)
    }

    async fn hear<T: serde::de::DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let line = self.lines.next_line().await?.context("a process ended")?;
        Ok(serde_json::from_str(&line)?)
    }

    async fn ask(&mut self, order: &Order) -> anyhow::Result<Answer> {
        self.say(order).await?;
        self.hear().await
    }

    async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Processor time used so far, user and system.
    fn cpu_s(&self) -> anyhow::Result<f64> {
        let pid = self.child.id().context("it runs")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> =
            stat.rsplit(") ").next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
        // Fields 14 and 15 of proc(5), in hundredths of a second.
        Ok((ticks(11).context("utime")? + ticks(12).context("stime")?) / 100.0)
    }

    fn peak_mb(&self) -> anyhow::Result<f64> {
        let pid = self.child.id().context("it runs")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kb: f64 = peak.context("VmHWM")?.trim().trim_end_matches(" kB").parse()?;
        Ok(kb / 1024.0)
    }
}

/// All bytes that crossed the loopback, with their headers.
fn loopback_bytes() -> anyhow::Result<u64> {
    let devices = std::fs::read_to_string("/proc/net/dev")?;
    let line = devices.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    let bytes = line.and_then(|line| line.split_whitespace().next());
    Ok(bytes.context("the loopback counts")?.parse()?)
}

fn since(begun: u64) -> f64 {
    seconds(now_ns() - begun)
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
