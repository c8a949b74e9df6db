//! The data plane of one node: worker threads, the session thread and the containers' devices
//! behind one handle.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
        mpsc as std_mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;
use dashmap::DashMap;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    device::{self, DeviceSpec},
    namespace::Target,
    records::Interface,
    selftest,
    session_thread::SessionThread,
    shared::{MAX_EVENTS, MAX_STRANGERS, Port, SessionEvent, Shared, Snapshot},
    worker::{Lane, Worker},
};
use crate::{
    engine::{
        datapath::{MIN_INNER_MTU, PortId, Tables, inner_mtu},
        membership::Table,
        session::{Directory, Identity, Link, Sessions, Settings, public_key},
    },
    io::{clock, netlink::ALIAS, netns::Namespace, tun::Tun, udp},
    types::{
        DropCounts, Endpoint, EndpointId, Network, NetworkId, NodeId, Offloads, PeerStatus, Traffic,
    },
    wire::{
        envelope::{LANE_OFFSET, MAX_LANES},
        handshake::Ciphers,
    },
};

/// What a data plane needs to start.
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// The cluster's identity, mixed into every handshake.
    pub cluster: [u8; 16],
    /// The X25519 private key of this node's sessions.
    pub private_key: [u8; 32],
    /// Where sealed datagrams are taken; also the address that they are sent from.
    pub data_addr: SocketAddr,
    /// The MTU of the interface that holds `data_addr`, in bytes.
    pub underlay_mtu: u16,
    /// How many worker threads.
    pub workers: usize,
    /// Which offloads to use.
    pub offloads: Offloads,
    /// After how long a session's keys are renewed.
    pub rekey_interval: Duration,
    /// Where the start count is kept.
    pub state_dir: PathBuf,
}

/// Whether an attachment becomes the container's way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DefaultRoute {
    /// It does not.
    Leave,
    /// It does where the container has none.
    #[default]
    IfFree,
    /// It does, and what was there goes.
    Replace,
}

/// The node's own counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// What was dropped, both directions and all peers together.
    pub drops: DropCounts,
    /// Traffic of this node's containers per network.
    pub networks: BTreeMap<NetworkId, Traffic>,
    /// Traffic per endpoint of this node.
    pub endpoints: BTreeMap<EndpointId, Traffic>,
}

/// A running data plane. Dropping it ends the threads and takes the devices away.
pub struct Dataplane {
    node: NodeId,
    data_addr: SocketAddr,
    underlay_mtu: u16,
    offloads: Offloads,
    broken_offloads: Vec<&'static str>,
    start_count: u64,
    lanes: u8,
    shared: Arc<Shared>,
    links: DashMap<NodeId, Arc<Link>>,
    ports: DashMap<EndpointId, Arc<Port>>,
    next_port: AtomicU32,
    /// The table in force; held while a snapshot is built, so that snapshots follow each other.
    current: Mutex<Current>,
    threads: Vec<JoinHandle<()>>,
    _data_port_lock: udp::PortLock,
}

/// What snapshots are built from, and what counted before and is gone.
struct Current {
    table: Arc<Table>,
    generation: u64,
    retired_drops: DropCounts,
    retired_networks: BTreeMap<NetworkId, Traffic>,
}

impl Dataplane {
    /// Takes the data port and starts the threads. Endpoints whose namespace ended are sent to `ended`.
    pub fn start(config: Config, ended: mpsc::Sender<EndpointId>) -> anyhow::Result<Self> {
        let workers = config.workers.clamp(1, usize::from(MAX_LANES));
        let found = selftest::run(config.offloads.normalised());
        let offloads = found.offloads;
        let port = udp::take_data_port(config.data_addr, workers, offloads.udp_gro, LANE_OFFSET)?;
        let start_count = count_start(&config.state_dir)?;
        let lanes = (workers * LANES_PER_WORKER).min(usize::from(MAX_LANES)) as u8;
        let (events, session_events) = std_mpsc::sync_channel(MAX_EVENTS);
        let (strangers, from_strangers) = std_mpsc::sync_channel(MAX_STRANGERS);
        let directory = Arc::new(Directory::new());
        let shared = Shared::new(workers, directory.clone(), events, strangers)
            .context("start the workers")?;
        let shared = Arc::new(shared);
        let settings = Settings {
            node: config.node,
            cluster: config.cluster,
            start_count,
            lanes,
            ciphers: ciphers(),
            rekey_interval: config.rekey_interval,
        };
        let public = public_key(&config.private_key).context("the node's key is not usable")?;
        let identity = Identity { private: config.private_key.into(), public };
        let sessions = Sessions::new(settings, identity, directory, Box::new(fill_random));
        let control = port.sockets[0].try_clone().context("share the data port")?;
        let mut dataplane = Self {
            node: config.node,
            data_addr: config.data_addr,
            underlay_mtu: config.underlay_mtu,
            offloads,
            broken_offloads: found.broken,
            start_count,
            lanes,
            shared: shared.clone(),
            links: DashMap::new(),
            ports: DashMap::new(),
            next_port: AtomicU32::new(0),
            current: Mutex::new(Current {
                table: Arc::new(Table::empty(config.node)),
                generation: 0,
                retired_drops: DropCounts::default(),
                retired_networks: BTreeMap::new(),
            }),
            threads: Vec::new(),
            _data_port_lock: port.lock,
        };
        // Of this process: its affinity and its cgroup's quota count.
        let may_spin = std::thread::available_parallelism().is_ok_and(|cpus| workers <= cpus.get());
        for (index, socket) in port.sockets.into_iter().enumerate() {
            let own = lanes_of(index, workers, lanes, config.data_addr, &socket)?;
            let worker = Worker::new(
                index,
                shared.clone(),
                socket,
                own,
                found.max_datagrams,
                may_spin,
                ended.clone(),
            );
            let worker = worker.context("prepare a worker")?;
            dataplane.spawn(&format!("overlay-w{index}"), move || worker.run())?;
        }
        let thread = SessionThread::new(sessions, control, shared, session_events, from_strangers);
        dataplane.spawn("overlay-session", move || thread.run())?;
        Ok(dataplane)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        self.threads.push(thread.with_context(|| format!("start thread {name}"))?);
        Ok(())
    }

    /// Makes the workers and the session thread use a new table.
    pub fn publish(&self, table: Arc<Table>) {
        let mut current = self.lock();
        current.table = table;
        self.retire_links(&mut current);
        let peers = current.table.peers.values().map(|peer| (peer.clone(), self.link(peer)));
        let peers = SessionEvent::Peers(peers.collect());
        self.rebuild(&mut current);
        // The session thread ends only with this data plane.
        let _ = self.shared.events.send(peers);
    }

    fn link(&self, peer: &crate::types::Peer) -> Arc<Link> {
        let make = || Arc::new(Link::new(peer.id, peer.data_addr, self.shared.workers()));
        self.links.entry(peer.id).or_insert_with(make).clone()
    }

    /// Forgets the links of peers that are gone, but not what they counted.
    fn retire_links(&self, current: &mut Current) {
        let Current { table, retired_drops, .. } = current;
        self.links.retain(|id, link| {
            let stays = table.peers.contains_key(id);
            if !stays {
                retired_drops.merge(&link.drops());
            }
            stays
        });
    }

    /// Builds and publishes a snapshot of the table, links and ports as they are now.
    fn rebuild(&self, current: &mut Current) {
        let links = self.links.iter().map(|entry| (*entry.key(), entry.value().clone())).collect();
        let numbers = self.ports.iter().map(|entry| (*entry.key(), entry.value().id)).collect();
        let tables = Tables::build(&current.table, &links, &numbers, self.underlay_mtu);
        let ports =
            self.ports.iter().map(|entry| (entry.value().id, entry.value().clone())).collect();
        current.generation += 1;
        let generation = current.generation;
        self.shared.snapshot.store(Arc::new(Snapshot { generation, tables, ports }));
        self.shared.wake_all();
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the device of an endpoint in the target's namespace. On failure nothing is left. The
    /// device outlives this process, unless it is detached.
    pub async fn attach(
        &self,
        network: &Network,
        endpoint: &Endpoint,
        target: &Target,
        interface: Option<&str>,
        default_route: DefaultRoute,
    ) -> anyhow::Result<Interface> {
        let widest = inner_mtu(self.underlay_mtu, self.data_addr).max(MIN_INNER_MTU);
        let mtu = network.mtu.unwrap_or(widest);
        let spec = DeviceSpec {
            interface: interface.map(str::to_owned),
            mtu,
            alias: self.alias(endpoint.id),
            addresses: endpoint.addresses.clone(),
            default_route,
            offloads: self.offloads,
        };
        let made = inside(target, move |namespace| device::create(namespace, &spec));
        let (tun, interface) = made.await.context("make the device")?;
        self.add_port(network.id, endpoint.id, tun);
        Ok(interface)
    }

    /// Takes the device of an endpoint that was made before this process started. `None` if the
    /// namespace does not have it any more. The namespace lives as long as the device is held.
    pub async fn take(
        &self,
        network: NetworkId,
        endpoint: EndpointId,
        target: &Target,
        interface: Interface,
    ) -> anyhow::Result<Option<()>> {
        let (alias, offloads) = (self.alias(endpoint), self.offloads);
        let take =
            move |namespace: &Namespace| device::take(namespace, &interface, &alias, offloads);
        let taken = inside(target, take).await.context("take the device")?;
        Ok(taken.map(|tun| self.add_port(network, endpoint, tun)))
    }

    /// Tells whether the device of an endpoint is in the target's namespace.
    pub async fn has(
        &self,
        endpoint: EndpointId,
        target: &Target,
        interface: Interface,
    ) -> anyhow::Result<bool> {
        let alias = self.alias(endpoint);
        inside(target, move |namespace| device::is_in(namespace, &interface, &alias)).await
    }

    /// Takes away what is left of the device of an endpoint that was being made.
    pub async fn clear(&self, endpoint: EndpointId, target: &Target) -> anyhow::Result<()> {
        let alias = self.alias(endpoint);
        inside(target, move |namespace| device::clear(namespace, &alias)).await
    }

    /// What others find a device by.
    fn alias(&self, endpoint: EndpointId) -> String {
        format!("{ALIAS}{}:{endpoint}", self.node)
    }

    fn add_port(&self, network: NetworkId, endpoint: EndpointId, tun: Tun) {
        let number = self.next_port.fetch_add(1, Relaxed);
        let worker = number as usize % self.shared.workers();
        let port = Port::new(
            PortId(number),
            endpoint,
            network,
            tun,
            worker,
            self.offloads,
            self.shared.workers(),
        );
        self.ports.insert(endpoint, Arc::new(port));
        self.rebuild(&mut self.lock());
    }

    /// Asks for a session with every peer of the table, without waiting for packets: after a
    /// restart they still seal for the keys of the process before.
    pub async fn greet_peers(&self) {
        let peers: Vec<NodeId> = self.lock().table.peers.keys().copied().collect();
        let mut pace = tokio::time::interval(GREETING_PACE);
        for peer in peers {
            pace.tick().await;
            // A full queue has demands enough; this peer's comes with its first packet.
            let _ = self.shared.events.try_send(SessionEvent::Demand(peer));
        }
    }

    /// Takes an endpoint's device away; it is gone from the container when this returns.
    pub async fn detach(&self, endpoint: EndpointId) -> anyhow::Result<()> {
        let Some((_, port)) = self.ports.remove(&endpoint) else {
            anyhow::bail!("endpoint {endpoint} has no device on this node");
        };
        let generation = {
            let mut current = self.lock();
            let total = current.retired_networks.entry(port.network).or_default();
            *total = add_traffic(*total, port.traffic());
            self.rebuild(&mut current);
            current.generation
        };
        // The device is gone when the last holder of its queue is: this one, once no worker uses a
        // snapshot with it.
        self.shared.adopted_by_all(generation).await;
        if let Err(error) = port.tun.release() {
            // With its namespace the device is gone already.
            tracing::debug!(%error, %endpoint, "the device is not there");
        }
        drop(port);
        Ok(())
    }

    /// Writes again what the state folder must have of this start, should it have lost it: peers take
    /// no handshake of a lower count.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn keep_start_count(&self, state_dir: &Path) -> anyhow::Result<()> {
        let path = state_dir.join(START_COUNT);
        crate::io::disk::replace(&path, self.start_count.to_string().as_bytes())
            .with_context(|| format!("write {}", path.display()))
    }

    /// Returns the offloads in use.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Lists the wanted offloads that did not keep the bytes when they were tried.
    pub fn broken_offloads(&self) -> &[&'static str] {
        &self.broken_offloads
    }

    /// Looks whether a peer is there: asks it by sealed echoes for so long, and tells whether anything
    /// authentic came from it meanwhile.
    pub async fn look_for(&self, peer: NodeId, within: Duration) -> bool {
        let since = clock::now();
        // The table that has it may be on its way.
        let heard = || self.links.get(&peer).is_some_and(|link| link.last_rx() > Some(since));
        let mut pace = tokio::time::interval(within / LOOKS);
        for _ in 0..LOOKS {
            // The first tick is now.
            pace.tick().await;
            if heard() {
                return true;
            }
            let _ = self.shared.events.try_send(SessionEvent::Echo(peer));
        }
        pace.tick().await;
        heard()
    }

    /// Lists the peers with which a network is shared, sorted by name.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let table = self.lock().table.clone();
        let now = clock::now();
        let mut rows: Vec<PeerStatus> = table
            .peers
            .values()
            .filter_map(|peer| {
                let networks = shared_networks(&table, peer.id);
                if networks.is_empty() {
                    return None;
                }
                let link = self.links.get(&peer.id)?.clone();
                let status = link.status();
                let key = link.send_key().clone();
                let path_mtu = self.underlay_mtu.min(peer.underlay_mtu);
                Some(PeerStatus {
                    id: peer.id,
                    name: peer.name.clone(),
                    address: link.address(),
                    state: status.state,
                    reason: status.reason,
                    rtt: status.rtt,
                    loss: status.loss,
                    path_mtu,
                    inner_mtu: inner_mtu(path_mtu, peer.data_addr).max(MIN_INNER_MTU),
                    cipher: key.as_ref().map(|key| key.cipher().name()),
                    key_age: key.as_ref().map(|key| now.since(key.created())),
                    last_rx: link.last_rx().map(|at| now.since(at)),
                    traffic: link.traffic(),
                    drops: link.drops(),
                    networks,
                    lanes: self.lanes,
                })
            })
            .collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    }

    /// Returns this node's counters.
    pub fn stats(&self) -> Stats {
        let current = self.lock();
        let mut stats = Stats {
            drops: self.shared.drop_counts(),
            networks: current.retired_networks.clone(),
            endpoints: BTreeMap::new(),
        };
        stats.drops.merge(&current.retired_drops);
        for link in &self.links {
            stats.drops.merge(&link.drops());
        }
        for port in &self.ports {
            let traffic = port.traffic();
            let total = stats.networks.entry(port.network).or_default();
            *total = add_traffic(*total, traffic);
            stats.endpoints.insert(port.endpoint, traffic);
        }
        stats
    }
}

/// Tries whether this process can make devices at all; the error says what is missing.
pub fn check() -> anyhow::Result<()> {
    device::check()
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.shared.wake_all();
        let _ = self.shared.events.send(SessionEvent::Stop);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the data plane panicked");
            }
        }
    }
}

/// Does what blocks on a device's namespace, away from the runtime.
async fn inside<T: Send + 'static>(
    target: &Target,
    work: impl FnOnce(&Namespace) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let path = target.path();
    let done = tokio::task::spawn_blocking(move || work(&Namespace::open(&path)?));
    done.await.context("work in the container's namespace")?
}

/// The lanes of a worker: those whose number is its own, modulo the workers, so that sender and
/// receiver agree on who owns a lane. Lane 0 is the data port itself.
fn lanes_of(
    worker: usize,
    workers: usize,
    lanes: u8,
    data_addr: SocketAddr,
    data_socket: &udp::DataSocket,
) -> anyhow::Result<Vec<Lane>> {
    (0..lanes)
        .filter(|lane| usize::from(*lane) % workers == worker)
        .map(|number| {
            let socket = match number {
                0 => data_socket.try_clone().context("share the data port")?,
                _ => udp::open_sender(data_addr.ip())?,
            };
            Ok(Lane { number, socket })
        })
        .collect()
}

/// Counts this start in the state folder, on disk before it is used: a handshake's order depends
/// on it.
fn count_start(state_dir: &Path) -> anyhow::Result<u64> {
    let path = state_dir.join(START_COUNT);
    let before = match std::fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse::<u64>()
            .with_context(|| format!("{} does not hold a number", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let count = before + 1;
    crate::io::disk::replace(&path, count.to_string().as_bytes())
        .with_context(|| format!("write {}", path.display()))?;
    Ok(count)
}

fn shared_networks(table: &Table, peer: NodeId) -> Vec<crate::types::Name> {
    let mut names: Vec<_> = table
        .endpoints
        .values()
        .filter(|endpoint| endpoint.node == peer)
        .filter_map(|endpoint| table.networks.get(&endpoint.network))
        .map(|network| network.name.clone())
        .collect();
    names.sort();
    names.dedup();
    names
}

fn add_traffic(a: Traffic, b: Traffic) -> Traffic {
    let add = |x: crate::types::PacketsBytes, y: crate::types::PacketsBytes| {
        crate::types::PacketsBytes { packets: x.packets + y.packets, bytes: x.bytes + y.bytes }
    };
    Traffic { tx: add(a.tx, b.tx), rx: add(a.rx, b.rx) }
}

/// AES-256-GCM only where the processor has instructions for it: in software it is slow, and slow
/// in ways that depend on the key.
fn ciphers() -> Ciphers {
    #[cfg(target_arch = "x86_64")]
    let aes_256_gcm = std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let aes_256_gcm = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let aes_256_gcm = false;
    Ciphers { aes_256_gcm, chacha20_poly1305: true }
}

fn fill_random(bytes: &mut [u8]) {
    // Without randomness there are no sessions, and going on would be worse.
    aws_lc_rs::rand::fill(bytes).expect("the kernel's random source works");
}

/// Between the handshakes after a start: a thousand peers take a second, and no storm of theirs
/// meets ours.
const GREETING_PACE: Duration = Duration::from_millis(1);
/// The file that counts starts.
pub(super) const START_COUNT: &str = "start-count";
/// How often a peer is asked while it is looked for.
const LOOKS: u32 = 4;
/// Source ports a worker: enough for the paths of an ECMP group to be used by one container pair.
const LANES_PER_WORKER: usize = 4;
