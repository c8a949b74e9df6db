//! The shell of a manager: the log, the trust, and the services on its listen address.
//!
//! ```text
//! TCP -> listener (TLS, whose connection) -> Membership | Control | Attachment | Dispatch -> log -> State
//!                                                  dispatch <- events -'
//! ```

mod admission;
mod attachment;
mod authority;
mod certificate;
mod control;
mod dispatch;
mod listener;
mod liveness;
pub mod log;
mod manager_key;
mod members;
mod membership;
mod observations;
mod orchestration;
pub mod parts;
mod random;
mod recovery;
mod replication;
pub mod report;
mod rotation;
mod services;
mod session;
#[cfg(feature = "plant")]
pub mod simulated;
mod status;
mod tokens;
mod trust;
mod watching;

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File},
    future::pending,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use futures_util::stream;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Semaphore, mpsc, oneshot, watch},
    task::{JoinError, JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tonic::{Request, Status, transport::Server};
use tracing::{info, warn};

use self::{
    admission::Admission,
    certificate::ListenerTls,
    dispatch::Dispatcher,
    listener::{Caller, Connection, ListenerTask},
    liveness::{LivenessTask, NodeWatch},
    log::{Log, LogFile, Member, OpenError, Snapshots, StartError, Transport, Watch},
    manager_key::ManagerKey,
    members::MembersTask,
    observations::{ObservationTask, Observations},
    orchestration::{Orchestration, OrchestrationTask},
    recovery::Recovery,
    replication::Ways,
    rotation::RotationTask,
    trust::Trust,
    watching::{ReportTask, Watching},
};
use crate::{
    api::{
        Ending, Founded, Founding, Joining, MAX_MESSAGE_BYTES, Opened, Reopened, Reopening,
        backup::{self, Sections, section},
        parse_id,
        proto::{
            attachment_server::AttachmentServer, control_server::ControlServer,
            dispatch_server::DispatchServer, membership_server::MembershipServer,
            replication_server::ReplicationServer, services_server::ServicesServer,
            watching_server::WatchingServer,
        },
        tls,
    },
    engine::cluster::{Cluster, Command, Event, Outcome, RegisterNode, Secrets, State, TokenUse},
    types::{Network, Node, NodeId, Revision, Role},
};

/// A running manager.
pub struct Manager {
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    stop: oneshot::Sender<()>,
}

/// What a cluster is founded with, and keeps.
struct Settings {
    cluster: [u8; 16],
    data_port: u16,
    /// How long certificates of nodes are valid.
    certificate_life: Duration,
}

/// What the services of a manager have in common.
struct Shared {
    /// The manager's part of the state folder.
    folder: PathBuf,
    settings: Settings,
    /// The node that this manager runs on.
    node: NodeId,
    advertise_addr: SocketAddr,
    trust: Arc<Trust>,
    dispatcher: Arc<Dispatcher>,
    log: Log,
    /// To the other managers.
    ways: Arc<Ways>,
    admission: Arc<Admission>,
    /// Turns to gather a table for an agent whose stream opens.
    openings: Arc<Semaphore>,
    /// Whether this manager knows what is decided.
    current: watch::Sender<bool>,
    sessions: Mutex<JoinSet<()>>,
    watch: NodeWatch,
    recovery: Recovery,
    orchestration: Arc<Orchestration>,
    observations: Observations,
    /// Those that took this manager in, whose calls are taken as managers' whatever the log tells yet.
    greeted: Mutex<BTreeSet<NodeId>>,
}

impl Manager {
    /// Founds a cluster with its first node and serves it.
    ///
    /// # Errors
    /// The address cannot be listened on, the state folder cannot be written or holds a cluster's
    /// log, or the cluster's settings are refused; nothing is left.
    pub async fn found(founding: Founding) -> anyhow::Result<(Self, Founded)> {
        let listener =
            listen(founding.listen_addr, "choose another address with --listen-addr").await?;
        let folder = make_folder(&founding.state_dir)?;
        let path = folder.join(LOG_FILE);
        let file = LogFile::create(&path)?;
        let key = match ManagerKey::create(&folder) {
            Ok(key) => key,
            Err(error) => {
                // A key that was there is somebody's.
                drop(file);
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
                return Err(error);
            }
        };
        let founded = Self::found_in(&folder, file, key, listener, founding).await;
        if founded.is_err() {
            remove(&folder);
        }
        founded
    }

    async fn found_in(
        folder: &Path,
        file: LogFile,
        key: ManagerKey,
        listener: TcpListener,
        mut founding: Founding,
    ) -> anyhow::Result<(Self, Founded)> {
        let listen_addr = listener.local_addr()?;
        let advertise: SocketAddr = founding.node.advertise_addr.parse()?;
        if advertise.port() == 0 {
            let advertise = SocketAddr::new(advertise.ip(), listen_addr.port());
            founding.node.advertise_addr = advertise.to_string();
        }
        let cluster = random::bytes()?;
        let trust = Arc::new(Trust::new(cluster, key)?);
        let secrets = trust.sealed()?;
        let first = first_node(&founding)?;
        let life = founding.certificate_life;
        let core = Core::start(file, first.node.id, false, trust.clone(), life).await?;
        let log = &core.log;
        let node = register_first(log, cluster, secrets, &founding, first).await?;
        let point = membership::proven_key(&founding.node).map_err(refused)?;
        let credentials = tls::Credentials {
            certificate: trust.authority().issue(node.id, node.role, point, life)?,
            key: founding.certificate_key,
            roots: trust.authority().roots(),
        };
        let tls = ListenerTls::new(trust.clone(), node.id, life)?;
        let generation = log.read(|state| state.token_generation(Role::Worker));
        let worker_token = trust.token(Role::Worker, generation);
        let settings = Settings { cluster, data_port: founding.data_port, certificate_life: life };
        let shared = Shared::new(folder.to_owned(), settings, &node, core, &[])?;
        info!(addr = %listen_addr, "manager listens");
        let founded = Founded { cluster, node, credentials, listen_addr, worker_token };
        Ok((Self::serve(shared, listener, tls), founded))
    }

    /// Reads a backup and puts its state into a state folder, in a new epoch; the manager is opened
    /// then. What else the backup holds is the node's.
    ///
    /// # Errors
    /// The folder holds a cluster, the backup does not hold together, or the disk does not take it.
    pub fn restore(
        state_dir: &Path,
        backup: &[u8],
        passphrase: Option<&[u8]>,
    ) -> anyhow::Result<Sections> {
        let backup = backup::read(backup, passphrase)?;
        let part = |name: &str| backup.get(name).with_context(|| format!("it holds no {name}"));
        let mut state: State =
            serde_json::from_slice(part(section::STATE)?).context("its state cannot be read")?;
        state.start_epoch();
        let (Some(cluster), Some(secrets)) = (state.cluster(), state.secrets()) else {
            bail!("its state holds no cluster");
        };
        let folder = make_folder(state_dir)?;
        let file = LogFile::create_with(&folder.join(LOG_FILE), state.clone())?;
        let restored = ManagerKey::restore(&folder, part(section::MANAGER_KEY)?)
            .and_then(|key| Trust::open(cluster.id, secrets, key).map(drop));
        drop(file);
        if restored.is_err() {
            remove(&folder);
        }
        restored.map(|()| backup)
    }

    /// Serves a cluster again that was founded in this state folder. No node is connected yet;
    /// those that were Ready have as long to come as if they were heard just now.
    ///
    /// # Errors
    /// The address cannot be listened on; the log or the manager's key is missing, damaged, or not
    /// of this node's cluster. All of it is left as it is.
    pub async fn open(reopening: Reopening) -> anyhow::Result<Opened<Self>> {
        let Reopening { state_dir, listen_addr, node, has_others, alone, credentials } = reopening;
        let listener = listen(listen_addr, "end what has it, then start overlayd again").await?;
        let listen_addr = listener.local_addr()?;
        let folder = folder(&state_dir);
        let path = folder.join(LOG_FILE);
        let file = match open_file(path.clone(), alone.then_some(node)).await? {
            Err(OpenError::Missing { .. }) if has_others && !alone => return Ok(Opened::Gone),
            opened => opened?,
        };
        if has_others && file.is_of(node) && file.state().cluster().is_none() {
            drop(file);
            remove(&folder);
            return Ok(Opened::Gone);
        }
        let path = path.display();
        let (Some(settings), Some(secrets)) = (file.state().cluster(), file.state().secrets())
        else {
            bail!("the log {path} holds no cluster; restore a backup with overlayd --restore");
        };
        let (cluster, data_port) = (settings.id, settings.data_port);
        let life = Duration::from_secs(settings.certificate_life_s);
        let trust = Arc::new(Trust::open(cluster, secrets, ManagerKey::open(&folder)?)?);
        let node = file.state().node(node).cloned();
        let known = credentials.roots.iter().any(|root| trust.authority().knows(root));
        let Some(node) = node.filter(|_| known) else {
            bail!(
                "this node is no manager of the cluster in the log {path}; restore a backup with overlayd --restore"
            );
        };
        if node.role == Role::Worker && file.is_of(node.id) && !file.decides(node.id) {
            drop(file);
            remove(&folder);
            return Ok(Opened::Gone);
        }
        let tls = ListenerTls::new(trust.clone(), node.id, life)?;
        let core = Core::start(file, node.id, false, trust, life).await?;
        if alone {
            forget_others(&core.log, node.id).await?;
        }
        let settings = Settings { cluster, data_port, certificate_life: life };
        let shared = Shared::new(folder, settings, &node, core, &[])?;
        info!(addr = %listen_addr, "manager listens again");
        let node = shared.log.read(|state| state.node(node.id).cloned()).unwrap_or(node);
        let reopened = Reopened { cluster, node, listen_addr };
        Ok(Opened::Serves(Self::serve(shared, listener, tls), Box::new(reopened)))
    }

    /// Starts the manager of a node that joined others; what they decided comes over its address.
    ///
    /// # Errors
    /// The address cannot be listened on, the state folder cannot be written or holds a cluster's
    /// log, or what the other manager gave does not hold together; nothing is left.
    pub async fn join(joining: Joining) -> anyhow::Result<(Self, SocketAddr)> {
        let listener =
            listen(joining.listen_addr, "choose another address with --listen-addr").await?;
        if joining.anew && folder(&joining.state_dir).exists() {
            remove(&folder(&joining.state_dir));
        }
        let folder = make_folder(&joining.state_dir)?;
        let file = LogFile::create(&folder.join(LOG_FILE))?;
        let joined = Self::join_in(&folder, file, listener, joining).await;
        if joined.is_err() {
            remove(&folder);
        }
        joined
    }

    async fn join_in(
        folder: &Path,
        file: LogFile,
        listener: TcpListener,
        joining: Joining,
    ) -> anyhow::Result<(Self, SocketAddr)> {
        let Joining { cluster, node, gift, .. } = joining;
        let data_port = node.data_addr.port();
        let listen_addr = listener.local_addr()?;
        let secrets = serde_json::from_slice(&gift.secrets).context("read the secrets")?;
        let trust = Trust::open(cluster, &secrets, ManagerKey::restore(folder, &gift.key)?)?;
        let trust = Arc::new(trust);
        let life = Duration::from_secs(gift.certificate_life_s);
        let tls = ListenerTls::new(trust.clone(), node.id, life)?;
        let core = Core::start(file, node.id, true, trust, life).await?;
        let settings = Settings { cluster, data_port, certificate_life: life };
        let (folder, managers) = (folder.to_owned(), &gift.managers);
        let shared = Shared::new(folder, settings, &node, core, managers)?;
        info!(addr = %listen_addr, "manager listens, and waits for the others' log");
        Ok((Self::serve(shared, listener, tls), listen_addr))
    }

    fn serve(shared: Arc<Shared>, listener: TcpListener, tls: ListenerTls) -> Self {
        shared.spawn(shared.clone().while_leading(|shared| LivenessTask::new(shared).run()));
        shared.spawn(shared.clone().while_leading(|shared| RotationTask::new(shared).run()));
        shared.spawn(shared.clone().while_leading(|shared| MembersTask::new(shared).run()));
        shared.spawn(shared.clone().while_leading(|shared| OrchestrationTask::new(shared).run()));
        shared.spawn(ObservationTask::new(shared.clone()).run());
        shared.spawn(shared.clone().while_leading(Recovery::begin_if_due));
        shared.spawn(ReportTask::new(shared.clone()).run());
        shared.spawn(shared.clone().end_stale_streams());
        let (connections, incoming) = mpsc::channel(ACCEPTED);
        let task = ListenerTask::new(listener, tls, shared.admission.clone(), connections);
        let accepting = tokio::spawn(task.run());
        let (stop, stopped) = oneshot::channel();
        let incoming =
            stream::unfold(incoming, async |mut incoming: mpsc::Receiver<Connection>| {
                incoming
                    .recv()
                    .await
                    .map(|connection| (Ok::<_, std::io::Error>(connection), incoming))
            });
        let membership = membership::Membership { shared: shared.clone() };
        let control = control::Control { shared: shared.clone() };
        let services = services::Services { shared: shared.clone() };
        let attachment = attachment::Attachment { shared: shared.clone() };
        let dispatch = session::Dispatch { shared: shared.clone() };
        let replication = replication::Replication { shared: shared.clone() };
        let watching = Watching { shared: shared.clone() };
        let server = Server::builder()
            .timeout(CALL_TIMEOUT)
            .max_concurrent_streams(MAX_STREAMS)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .add_service(
                MembershipServer::new(membership).max_decoding_message_size(MAX_JOIN_BYTES),
            )
            .add_service(ControlServer::new(control).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(ServicesServer::new(services).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(
                AttachmentServer::new(attachment).max_decoding_message_size(MAX_MESSAGE_BYTES),
            )
            .add_service(DispatchServer::new(dispatch).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(
                ReplicationServer::new(replication).max_decoding_message_size(MAX_MESSAGE_BYTES),
            )
            .add_service(
                WatchingServer::new(watching).max_decoding_message_size(MAX_MESSAGE_BYTES),
            );
        let serving = tokio::spawn(server.serve_with_incoming_shutdown(incoming, async {
            // A dropped sender is a stop too.
            let _ = stopped.await;
        }));
        Self { shared, accepting, serving, stop }
    }

    /// Ends the streams, the calls, the listening and the writing, and leaves what `ending` says.
    pub async fn end(self, ending: Ending) {
        let folder = self.shared.folder.clone();
        self.shutdown().await;
        match ending {
            Ending::Kept => {}
            Ending::Undone => remove(&folder),
        }
    }

    /// Ends the streams, the calls, the listening and the writing.
    pub async fn shutdown(self) {
        let Self { shared, accepting, mut serving, stop } = self;
        let _ = stop.send(());
        shared.dispatcher.close_all();
        if timeout(SHUTDOWN_TIMEOUT, &mut serving).await.is_err() {
            warn!("calls were cut at the manager's end");
            serving.abort();
        }
        accepting.abort();
        let _ = accepting.await;
        let mut sessions = {
            let mut held = shared.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *held)
        };
        sessions.shutdown().await;
        shared.log.close().await;
    }
}

impl Shared {
    fn new(
        folder: PathBuf,
        settings: Settings,
        node: &Node,
        core: Core,
        greeted: &[Vec<u8>],
    ) -> anyhow::Result<Arc<Self>> {
        let Core { trust, dispatcher, ways, orchestration, log } = core;
        let recovery = log.read(Recovery::new);
        let greeted = greeted.iter().map(|node| parse_id("managers", node));
        Ok(Arc::new(Self {
            folder,
            settings,
            node: node.id,
            advertise_addr: node.advertise_addr,
            trust,
            dispatcher,
            log,
            ways,
            admission: Arc::default(),
            openings: Arc::new(Semaphore::new(OPENINGS)),
            current: watch::Sender::new(false),
            sessions: Mutex::default(),
            watch: NodeWatch::new(node.id),
            recovery,
            orchestration,
            observations: Observations::default(),
            greeted: Mutex::new(greeted.collect::<Result<_, _>>()?),
        }))
    }

    /// Returns the calling node as the state has it now.
    fn member<T>(&self, request: &Request<T>) -> Result<Node, Status> {
        let caller = caller_of(request)?;
        let id = caller.node.ok_or_else(|| {
            Status::unauthenticated("this call needs a node's certificate; join the cluster first")
        })?;
        self.registered(id)
    }

    /// Returns a node as the state has it now.
    fn registered(&self, id: NodeId) -> Result<Node, Status> {
        self.log.read(|state| state.node(id).cloned()).ok_or_else(|| {
            Status::unauthenticated(format!(
                "node {id} is not a member of this cluster any more; join it anew"
            ))
        })
    }

    fn network(&self, reference: &str) -> Result<Network, Status> {
        let found = self.log.read(|state| state.find_network(reference).cloned());
        found.map_err(status::of_refusal)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        while sessions.try_join_next().is_some() {}
        sessions.spawn(task);
    }
}

/// Waits so long; for ever where nothing is due.
async fn after(wait: Option<Duration>) {
    match wait {
        Some(wait) => sleep(wait).await,
        None => pending().await,
    }
}

async fn listen(addr: SocketAddr, advice: &str) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| anyhow!("listen on {addr}: {error}; {advice}"))
}

/// Opens a manager's log, from which the others go first if this one goes on alone. Reading and
/// checking all of it keeps a thread busy for a while.
async fn open_file(
    path: PathBuf,
    alone: Option<NodeId>,
) -> Result<Result<LogFile, OpenError>, JoinError> {
    let open = move || {
        let mut file = LogFile::open(&path)?;
        if let Some(manager) = alone {
            file.force_alone(manager)?;
        }
        Ok(file)
    };
    tokio::task::spawn_blocking(open).await
}

/// What a manager decides with, and tells agents by.
struct Core {
    trust: Arc<Trust>,
    dispatcher: Arc<Dispatcher>,
    ways: Arc<Ways>,
    orchestration: Arc<Orchestration>,
    log: Log,
}

impl Core {
    async fn start(
        file: LogFile,
        node: NodeId,
        joins: bool,
        trust: Arc<Trust>,
        life: Duration,
    ) -> Result<Self, StartError> {
        let dispatcher = Arc::new(Dispatcher::new(trust.clone()));
        if file.state().cluster().is_some() {
            dispatcher.adopt(file.state());
        }
        let ways = Ways::new(node, trust.clone(), life, dispatcher.addresses().clone());
        let ways = Arc::new(ways);
        let orchestration: Arc<Orchestration> = Arc::default();
        let tell = Tell(dispatcher.clone(), orchestration.clone());
        let log = start_log(file, node, joins, tell, ways.clone()).await?;
        Ok(Self { trust, dispatcher, ways, orchestration, log })
    }
}

async fn start_log(
    file: LogFile,
    manager: NodeId,
    joins: bool,
    tell: Tell,
    transport: Arc<dyn Transport>,
) -> Result<Log, StartError> {
    let snapshots = Snapshots::default();
    let watcher = Box::new(tell);
    Log::start(file, Member { manager, joins, snapshots, transport, watcher }).await
}

/// Tells the streams, and what is to be done for services, what becomes of the state.
struct Tell(Arc<Dispatcher>, Arc<Orchestration>);

impl Watch for Tell {
    fn handle_applied(&mut self, state: &State, revision: Revision, events: &[Event]) {
        self.0.handle_events(state, revision, events);
        self.1.handle_events(state, events);
    }

    fn handle_replaced(&mut self, state: &State) {
        self.0.replace(state);
        self.1.replace(state);
    }

    fn handle_members(&mut self, managers: &BTreeSet<NodeId>) {
        self.0.handle_members(managers);
    }
}

/// The manager's part of the state folder.
fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("manager")
}

/// Makes the manager's part of the state folder, if it is not there, as durable as what comes in it.
fn make_folder(state_dir: &Path) -> anyhow::Result<PathBuf> {
    let folder = folder(state_dir);
    let make = || {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        File::open(state_dir)?.sync_all()
    };
    make().with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// Removes the manager's part of the state folder.
fn remove(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder) {
        warn!(%error, "{} is still there; remove it", folder.display());
    }
}

/// Begins a new epoch without the other managers, which are lost.
async fn forget_others(log: &Log, own: NodeId) -> anyhow::Result<()> {
    log.propose(Command::StartEpoch).await?;
    for other in log.read(members::managers).into_iter().filter(|other| *other != own) {
        log.propose(Command::RemoveNode(other)).await?;
        warn!(manager = %other, "a manager that is lost was taken out");
    }
    Ok(())
}

/// The node that founds a cluster.
fn first_node(founding: &Founding) -> anyhow::Result<RegisterNode> {
    let (role, port) = (Role::Manager, founding.data_port);
    membership::registration(founding.node.clone(), role, port, TokenUse::Founding).map_err(refused)
}

/// Puts the cluster and its first node into an empty log.
async fn register_first(
    log: &Log,
    id: [u8; 16],
    secrets: Secrets,
    founding: &Founding,
    first: RegisterNode,
) -> anyhow::Result<Node> {
    let cluster = Cluster {
        id,
        pool: founding.address_pool,
        mask_length: founding.mask_length,
        ula: random::ula()?,
        data_port: founding.data_port,
        certificate_life_s: founding.certificate_life.as_secs(),
        heartbeat_ms: u64::try_from(founding.heartbeat.as_millis())?,
    };
    log.propose(Command::CreateCluster { cluster, secrets }).await?;
    match log.propose(Command::RegisterNode(first)).await?.1 {
        Outcome::Node(node) => Ok(node),
        Outcome::Done
        | Outcome::Generation(_)
        | Outcome::Network(_)
        | Outcome::Endpoint(_)
        | Outcome::Service(_) => {
            bail!("registering gave no node")
        }
    }
}

fn refused(status: Status) -> anyhow::Error {
    anyhow!("{}", status.message())
}

fn caller_of<T>(request: &Request<T>) -> Result<&Caller, Status> {
    let caller = request.extensions().get::<Caller>();
    caller.ok_or_else(|| Status::internal("the connection does not say whose it is"))
}

const LOG_FILE: &str = "log.redb";
/// Connections that wait to be accepted, where the system lets so many: all of a manager's nodes may
/// come back at once, and who finds no room is a second late.
const BACKLOG: u32 = 4096;
/// Tables gathered at once: enough for two processors, few enough for everything else to get its turn.
const OPENINGS: usize = 2;
/// Connections between handshake and service.
const ACCEPTED: usize = 64;
/// Longer than the longest wait that a call makes, which is for acknowledgements.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls at once on one connection.
const MAX_STREAMS: u32 = 128;
/// Ends connections whose other end vanished: twice this after its last frame.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Whoever may ask this is no member yet, and has little to say.
const MAX_JOIN_BYTES: usize = 64 << 10;
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
