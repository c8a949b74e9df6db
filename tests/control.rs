//! The control plane in one process, over loopback and without root: a manager, and nodes that join
//! it, hear of what they must, and of nothing else.

#[path = "control/managers.rs"]
mod managers;
#[path = "control/trust.rs"]
mod trust;

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt as _, future::join_all, stream};
use overlay::{
    agent::{
        Identity, StateDir,
        certificate::Certificate,
        join::{self, Introduction, Joined},
        link::{LinkTask, LookFor},
        managers::Managers,
        renewal::RenewalTask,
    },
    api::{
        Ending, Founding, HEARTBEAT, JoinToken, Opened, Reopened, Reopening, channel,
        proto::{
            self, AdoptEndpointsRequest, AgentMessage, AwaitAcknowledgedRequest, ChallengeRequest,
            CreateEndpointRequest, CreateEndpointResponse, CreateNetworkRequest, Hello,
            JoinTokenRequest, JoinTokenResponse, LeaveRequest, ListEndpointsRequest,
            ListEndpointsResponse, ListNodesRequest, ManagerMessage, NodeStatus, Ping,
            RemoveEndpointRequest, RemoveNodeRequest, Role, Scope, ScopeDigest, agent_message,
            attachment_client::AttachmentClient, control_client::ControlClient,
            dispatch_client::DispatchClient, manager_message, membership_client::MembershipClient,
            scope,
        },
        tls::{self, Credentials},
    },
    engine::membership::Table,
    manager::Manager,
    types::{Name, Node, NodeId},
};
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tonic::{Code, Response, Status, Streaming, transport::Channel};

/// A manager on a free port, and the folders of the nodes' keys.
struct Cluster {
    manager: Manager,
    addr: SocketAddr,
    first: Joined,
    token: JoinToken,
    folders: tempfile::TempDir,
}

impl Cluster {
    async fn found() -> Self {
        Self::found_with(|founding| founding).await
    }

    async fn found_with(settings: impl FnOnce(Founding) -> Founding) -> Self {
        let folders = tempfile::tempdir().unwrap();
        let founding = settings(founding(&folders));
        let (manager, founded) = Manager::found(founding).await.unwrap();
        let first = Joined {
            cluster: founded.cluster,
            node: founded.node,
            credentials: founded.credentials,
        };
        let (addr, token) = (founded.listen_addr, founded.worker_token);
        Self { manager, addr, first, token, folders }
    }

    /// What the manager starts again with.
    fn reopening(&self) -> Reopening {
        Reopening {
            state_dir: self.folders.path().join("n1"),
            listen_addr: self.addr,
            node: self.first.node.id,
            has_others: false,
            alone: false,
            credentials: self.first.credentials.clone(),
        }
    }

    /// Ends the manager and starts it again.
    async fn restarted(self) -> Self {
        let reopening = self.reopening();
        self.manager.shutdown().await;
        let (manager, reopened) = opened(reopening).await;
        assert_eq!(reopened.listen_addr, self.addr);
        assert_eq!(reopened.cluster, self.first.cluster);
        assert_eq!(reopened.node, Node { status: reopened.node.status, ..self.first.node.clone() });
        Self { manager, ..self }
    }

    fn identity(&self, name: &str) -> Identity {
        identity(&self.folders, name)
    }

    async fn join_as(&self, name: &str, token: &JoinToken) -> Result<Joined, Status> {
        let identity = self.identity(name);
        let admitted = join::join(self.addr, token, &introduction(&identity, name)).await?;
        Ok(admitted.joined)
    }

    async fn worker(&self, name: &str) -> Joined {
        self.join_as(name, &self.token).await.unwrap()
    }

    async fn channel(&self, credentials: &Credentials) -> Channel {
        let config = Arc::new(tls::member_config(credentials).unwrap());
        channel::to_manager(self.addr, config).await.unwrap()
    }

    async fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel(&self.first.credentials).await)
    }

    async fn network(&self, name: &str) {
        let request = CreateNetworkRequest { name: name.into(), ..Default::default() };
        self.control().await.create_network(request).await.unwrap();
    }

    async fn endpoint(&self, joined: &Joined, network: &str) -> CreateEndpointResponse {
        let mut client = AttachmentClient::new(self.channel(&joined.credentials).await);
        let request = CreateEndpointRequest { network: network.into(), ..Default::default() };
        client.create_endpoint(request).await.unwrap().into_inner()
    }

    async fn remove(&self, joined: &Joined, endpoint: &CreateEndpointResponse) {
        let mut client = AttachmentClient::new(self.channel(&joined.credentials).await);
        let endpoint = endpoint.endpoint.as_ref().unwrap().id.clone();
        client.remove_endpoint(RemoveEndpointRequest { endpoint }).await.unwrap();
    }

    async fn lagging(&self, joined: &Joined, made: &CreateEndpointResponse) -> Vec<String> {
        let mut client = AttachmentClient::new(self.channel(&joined.credentials).await);
        let network = made.network.as_ref().unwrap().id.clone();
        let request = AwaitAcknowledgedRequest { network, revision: made.revision };
        client.await_acknowledged(request).await.unwrap().into_inner().lagging
    }

    /// Asks for a worker's token.
    async fn ask_token(&self, request: JoinTokenRequest) -> Result<JoinTokenResponse, Status> {
        let request = JoinTokenRequest { role: Role::Worker.into(), ..request };
        self.control().await.join_token(request).await.map(Response::into_inner)
    }

    async fn limited_token(&self, ttl_s: Option<u64>, uses: Option<u32>) -> JoinToken {
        let request = JoinTokenRequest { ttl_s, uses, ..Default::default() };
        self.ask_token(request).await.unwrap().token.parse().unwrap()
    }

    /// A channel as a host without a certificate has it.
    async fn stranger(&self) -> MembershipClient<Channel> {
        let config = Arc::new(tls::joiner_config(self.token.digest).unwrap());
        MembershipClient::new(channel::to_manager(self.addr, config).await.unwrap())
    }

    async fn node_count(&self) -> usize {
        let nodes = self.control().await.list_nodes(ListNodesRequest {}).await.unwrap();
        nodes.into_inner().nodes.len()
    }

    async fn endpoints(&self) -> ListEndpointsResponse {
        let listed = self.control().await.list_endpoints(ListEndpointsRequest::default()).await;
        listed.unwrap().into_inner()
    }

    async fn status_of(&self, node: NodeId) -> NodeStatus {
        let nodes = self.control().await.list_nodes(ListNodesRequest {}).await.unwrap();
        let nodes = nodes.into_inner().nodes;
        nodes.iter().find(|other| other.id == node.to_bytes()).unwrap().status()
    }
}

fn identity(folders: &tempfile::TempDir, name: &str) -> Identity {
    Identity::open(&StateDir::open(&folders.path().join(name)).unwrap()).unwrap()
}

/// A founding by n1, in its folder of the folders.
fn founding(folders: &tempfile::TempDir) -> Founding {
    let identity = identity(folders, "n1");
    let (node, certificate_key) = introduction(&identity, "n1").request().unwrap();
    Founding {
        state_dir: folders.path().join("n1"),
        listen_addr: "127.0.0.1:0".parse().unwrap(),
        address_pool: "10.0.0.0/8".parse().unwrap(),
        mask_length: 24,
        data_port: 7790,
        certificate_life: Duration::from_secs(3600),
        heartbeat: HEARTBEAT,
        node,
        certificate_key,
    }
}

fn introduction<'a>(identity: &'a Identity, name: &str) -> Introduction<'a> {
    Introduction {
        identity,
        name: name.parse::<Name>().unwrap(),
        name_chosen: true,
        advertise_addr: "127.0.0.1:0".parse().unwrap(),
        data_ip: "127.0.0.1".parse().unwrap(),
        underlay_mtu: 1500,
        underlays: Vec::new(),
    }
}

/// An agent's link without a data plane.
struct Agent {
    _tasks: JoinSet<()>,
    table: watch::Receiver<Arc<Table>>,
    certificate: Arc<Certificate>,
    managers: Arc<Managers>,
    connected: watch::Receiver<Option<Channel>>,
    /// Counts the certificates that it got since.
    renewed: watch::Receiver<usize>,
}

impl Agent {
    async fn start(cluster: &Cluster, joined: &Joined) -> Self {
        let certificate = Arc::new(Certificate::new(joined.credentials.clone()).unwrap());
        let (tables, table) = watch::channel(Arc::new(Table::empty(joined.node.id)));
        let (channels, mut connected) = watch::channel(None);
        let look_for: LookFor = Arc::new(|_, _| Box::pin(async { false }));
        let publish = move |table: &Table| drop(tables.send_replace(Arc::new(table.clone())));
        let managers = Arc::new(Managers::new(cluster.addr, Vec::new(), joined.node.role));
        let link = LinkTask::new(
            managers.clone(),
            certificate.clone(),
            Table::empty(joined.node.id),
            publish,
            look_for,
            channels,
        );
        let (renewals, renewed) = watch::channel(0);
        let renewal = RenewalTask::new(
            managers.clone(),
            joined.node.id,
            cluster.identity(joined.node.name.as_str()),
            certificate.clone(),
            connected.clone(),
            move |_: &Credentials| {
                renewals.send_modify(|count| *count += 1);
                Ok(())
            },
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(link.run());
        tasks.spawn(renewal.run());
        within(connected.wait_for(Option::is_some)).await.unwrap();
        Self { _tasks: tasks, table, certificate, managers, connected, renewed }
    }

    /// Waits until the table is as wanted, and returns it.
    async fn until(&mut self, wanted: impl Fn(&Table) -> bool) -> Arc<Table> {
        within(self.table.wait_for(|table| wanted(table))).await.unwrap().clone()
    }
}

/// Opens a node's stream, says hello, and then nothing but that it is there.
async fn silent_agent(cluster: &Cluster, joined: &Joined) -> Streaming<ManagerMessage> {
    let mut ticks = tokio::time::interval(HEARTBEAT);
    static STREAMS: AtomicU64 = AtomicU64::new(1);
    let hello = Hello { number: STREAMS.fetch_add(1, Ordering::Relaxed), ..Hello::default() };
    let hello = AgentMessage { message: Some(agent_message::Message::Hello(hello)) };
    let pings = stream::poll_fn(move |cx| {
        let ping = AgentMessage { message: Some(agent_message::Message::Ping(Ping {})) };
        ticks.poll_tick(cx).map(|_| Some(ping))
    });
    let mut client = DispatchClient::new(cluster.channel(&joined.credentials).await);
    client.session(stream::iter([hello]).chain(pings)).await.unwrap().into_inner()
}

/// Starts a manager again that serves.
async fn opened(reopening: Reopening) -> (Manager, Reopened) {
    match Manager::open(reopening).await.unwrap() {
        Opened::Serves(manager, reopened) => (manager, *reopened),
        Opened::Gone => panic!("it is no manager"),
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("it should not take that long")
}

async fn until_status(cluster: &Cluster, node: NodeId, status: NodeStatus) {
    within(async {
        while cluster.status_of(node).await != status {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_good_token_joins_once_a_node() {
    let cluster = Cluster::found().await;
    let worker = cluster.worker("n2").await;
    assert_eq!(worker.cluster, cluster.first.cluster);
    assert_eq!(worker.node.name.as_str(), "n2");
    let agent = Agent::start(&cluster, &worker).await;
    until_status(&cluster, worker.node.id, NodeStatus::Ready).await;
    let twice = cluster.join_as("n2", &cluster.token).await.err().unwrap();
    assert_eq!(
        twice.message(),
        "this node is a member already, as node n2; leave it so, or end that daemon first"
    );
    drop(agent);
    until_status(&cluster, worker.node.id, NodeStatus::Down).await;
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_token_of_another_cluster_is_refused_before_the_secret_is_said() {
    let (cluster, other) = (Cluster::found().await, Cluster::found().await);
    let refused = cluster.join_as("n2", &other.token).await.err().unwrap();
    assert_eq!(
        refused.message(),
        format!(
            "the token is not of the cluster at {}; take a token from that cluster with 'overlayctl join-token worker'",
            cluster.addr
        )
    );
    cluster.manager.shutdown().await;
    other.manager.shutdown().await;
}

#[tokio::test]
async fn a_wrong_secret_is_refused_and_tries_are_limited() {
    let cluster = Cluster::found().await;
    let mut wrong = cluster.token.clone();
    wrong.secret[0] ^= 1;
    for _ in 0..10 {
        let refused = cluster.join_as("n2", &wrong).await.err().unwrap();
        assert_eq!(
            refused.message(),
            "the token's secret is wrong; take a token from a manager with 'overlayctl join-token worker'"
        );
    }
    let limited = cluster.join_as("n2", &cluster.token).await.err().unwrap();
    assert_eq!(
        limited.message(),
        "too many wrong tokens or keys came from this address; wait a minute"
    );
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_taken_name_is_refused() {
    let cluster = Cluster::found().await;
    let identity = cluster.identity("another");
    let joining = join::join(cluster.addr, &cluster.token, &introduction(&identity, "n1")).await;
    let refused = joining.err().unwrap();
    assert_eq!(
        refused.message(),
        format!("the name n1 is taken by node {}; choose another", cluster.first.node.id)
    );
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_manager_that_is_not_there_is_named() {
    let cluster = Cluster::found().await;
    let (addr, token) = (cluster.addr, cluster.token.clone());
    let identity = cluster.identity("n2");
    cluster.manager.shutdown().await;
    let refused = join::join(addr, &token, &introduction(&identity, "n2")).await.err().unwrap();
    let wanted = format!("manager {addr} is not reachable: ");
    assert!(refused.message().starts_with(&wanted), "{}", refused.message());
    assert!(refused.message().contains("; check that a manager is there"), "{}", refused.message());
}

#[tokio::test]
async fn without_a_certificate_only_joining_is_possible() {
    let cluster = Cluster::found().await;
    let config = Arc::new(tls::joiner_config(cluster.token.digest).unwrap());
    let channel = channel::to_manager(cluster.addr, config).await.unwrap();
    let refused = ControlClient::new(channel.clone()).list_nodes(ListNodesRequest {}).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let refused = AttachmentClient::new(channel.clone())
        .create_endpoint(CreateEndpointRequest::default())
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let refused = MembershipClient::new(channel).leave(LeaveRequest { asks: false }).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_workers_certificate_does_not_change_the_cluster_nor_serve_as_a_manager() {
    let cluster = Cluster::found().await;
    let worker = cluster.worker("n2").await;
    let mut control = ControlClient::new(cluster.channel(&worker.credentials).await);
    let request = CreateNetworkRequest { name: "blue".into(), ..Default::default() };
    let refused = control.create_network(request).await.unwrap_err();
    assert_eq!(
        refused.message(),
        format!("node n2 is a worker; run this on the manager at {}", cluster.addr)
    );
    let refused = control
        .join_token(JoinTokenRequest { role: Role::Worker.into(), ..Default::default() })
        .await;
    assert_eq!(refused.err().unwrap().code(), Code::PermissionDenied);

    // The worker puts itself on an address where others look for a manager.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let config = Arc::new(tls::server_config(&worker.credentials, &[]).unwrap());
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        acceptor.accept(stream).await.err()
    });
    let config = Arc::new(tls::member_config(&cluster.first.credentials).unwrap());
    let refused = channel::to_manager(addr, config).await.unwrap_err().to_string();
    let wanted = format!("{addr} is not a manager of this cluster: ");
    assert!(refused.starts_with(&wanted), "{refused}");
    assert!(within(serving).await.unwrap().is_some(), "the other side goes on");
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_removed_nodes_certificate_is_refused() {
    let cluster = Cluster::found().await;
    let worker = cluster.worker("n2").await;
    let channel = cluster.channel(&worker.credentials).await;
    join::leave(channel.clone()).await.unwrap();
    let sentence =
        format!("node {} is not a member of this cluster any more; join it anew", worker.node.id);
    let request = CreateEndpointRequest { network: "blue".into(), ..Default::default() };
    for channel in [channel, cluster.channel(&worker.credentials).await] {
        let refused = AttachmentClient::new(channel).create_endpoint(request.clone()).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert_eq!(refused.message(), sentence);
    }
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_snapshot_and_deltas_tell_each_node_what_it_must_know_and_no_more() {
    let cluster = Cluster::found().await;
    let [n2, n3] = [cluster.worker("n2").await, cluster.worker("n3").await];
    cluster.network("blue").await;
    cluster.network("red").await;
    let mut a2 = Agent::start(&cluster, &n2).await;
    let red = cluster.endpoint(&n3, "red").await;

    // n2 enters blue alone, then n3 does; n3's own link starts late and gets a snapshot.
    let first = cluster.endpoint(&n2, "blue").await;
    a2.until(|table| table.endpoints.len() == 1).await;
    let second = cluster.endpoint(&n3, "blue").await;
    let t2 = a2.until(|table| table.endpoints.len() == 2).await;
    let mut a3 = Agent::start(&cluster, &n3).await;
    let t3 = a3.until(|table| table.endpoints.len() == 3).await;

    let names = |table: &Table| -> Vec<String> {
        table.networks.values().map(|network| network.name.to_string()).collect()
    };
    assert_eq!(names(&t2), ["blue"], "n2 hears nothing of red");
    assert!(t2.endpoints.values().all(|endpoint| t2.networks.contains_key(&endpoint.network)));
    assert_eq!(t3.networks.len(), 2);
    let (peer2, peer3) = (&t3.peers[&n2.node.id], &t2.peers[&n3.node.id]);
    // Beside each other both know the manager's node, which may ask whether they are alive.
    assert_eq!((t2.peers.len(), t3.peers.len()), (2, 2));
    assert!(t2.peers.contains_key(&cluster.first.node.id));
    assert_eq!(peer3.public_key, *cluster.identity("n3").public());
    assert!(!peer2.psks.is_empty() && peer2.psks == peer3.psks, "the pair has one key");
    assert_eq!(cluster.lagging(&n3, &second).await, Vec::<String>::new());

    // A third pair's key is another one.
    cluster.endpoint(&cluster.first, "blue").await;
    let t2 = a2.until(|table| table.endpoints.len() == 3).await;
    assert!(t2.peers[&cluster.first.node.id].psks != t2.peers[&n3.node.id].psks);

    cluster.remove(&n2, &first).await;
    let t2 = a2.until(|table| table.networks.is_empty()).await;
    let left: Vec<&NodeId> = t2.peers.keys().collect();
    assert_eq!(left, [&cluster.first.node.id], "leaving takes all but the manager away");
    assert!(t2.endpoints.is_empty());
    cluster.remove(&n3, &red).await;
    a3.until(|table| table.networks.len() == 1).await;
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn an_agent_that_does_not_acknowledge_is_named() {
    let cluster = Cluster::found().await;
    let [n2, n3] = [cluster.worker("n2").await, cluster.worker("n3").await];
    cluster.network("blue").await;
    cluster.endpoint(&n2, "blue").await;
    // This agent takes the table and never says so.
    let stream = silent_agent(&cluster, &n2).await;
    until_status(&cluster, n2.node.id, NodeStatus::Ready).await;
    let made = cluster.endpoint(&n3, "blue").await;
    assert_eq!(cluster.lagging(&n3, &made).await, ["n2"]);
    drop(stream);
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn agents_are_told_the_heartbeat_and_given_up_by_it() {
    let heartbeat = Duration::from_millis(500);
    let cluster = Cluster::found_with(|founding| Founding { heartbeat, ..founding }).await;
    let [n2, n3] = [cluster.worker("n2").await, cluster.worker("n3").await];
    let _n3 = Agent::start(&cluster, &n3).await;
    until_status(&cluster, n3.node.id, NodeStatus::Ready).await;
    let mut client = DispatchClient::new(cluster.channel(&n2.credentials).await);
    let hello = AgentMessage { message: Some(agent_message::Message::Hello(Hello::default())) };
    let says_no_more = stream::iter([hello]).chain(stream::pending());
    let begun = Instant::now();
    let mut told = client.session(says_no_more).await.unwrap().into_inner();
    let first = told.message().await.unwrap().unwrap().message;
    assert_eq!(first, Some(manager_message::Message::HeartbeatMs(500)));
    while let Ok(Some(_)) = told.message().await {}
    let given_up = begun.elapsed();
    assert!(given_up >= 3 * heartbeat && given_up < 5 * heartbeat, "{given_up:?}");
    until_status(&cluster, n2.node.id, NodeStatus::Down).await;
    assert_eq!(
        cluster.status_of(n3.node.id).await,
        NodeStatus::Ready,
        "it keeps to what it was told"
    );
    cluster.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_floods_its_stream_is_cut_off_when_it_is_removed() {
    let cluster = Cluster::found().await;
    let n2 = cluster.worker("n2").await;
    let mut client = DispatchClient::new(cluster.channel(&n2.credentials).await);
    let hello = AgentMessage { message: Some(agent_message::Message::Hello(Hello::default())) };
    let ping = AgentMessage { message: Some(agent_message::Message::Ping(Ping {})) };
    let flood = stream::iter([hello]).chain(stream::repeat(ping));
    let mut told = client.session(flood).await.unwrap().into_inner();
    assert!(told.message().await.unwrap().is_some());
    let remove = RemoveNodeRequest { reference: "n2".into(), force: true };
    cluster.control().await.remove_node(remove).await.unwrap();
    within(async { while let Ok(Some(_)) = told.message().await {} }).await;
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_node_with_thousands_of_endpoints_and_networks_is_heard() {
    let cluster = Cluster::found().await;
    let n2 = cluster.worker("n2").await;
    cluster.network("blue").await;
    let one = cluster.endpoint(&n2, "blue").await.endpoint.unwrap();
    let numbered = |number: u32| {
        let mut id = one.id.clone();
        id[..4].copy_from_slice(&number.to_be_bytes());
        id
    };
    let channel = cluster.channel(&n2.credentials).await;
    let endpoints = (0..5000).map(|number| proto::Endpoint { id: numbered(number), ..one.clone() });
    let adopt = AdoptEndpointsRequest { endpoints: endpoints.collect() };
    let adopted = AttachmentClient::new(channel.clone()).adopt_endpoints(adopt).await.unwrap();
    assert_eq!(adopted.into_inner().not_adopted.len(), 5000, "their address is the first one's");

    let digest = |number| ScopeDigest {
        scope: Some(Scope { scope: Some(scope::Scope::Network(numbered(number))) }),
        digest: vec![7; 16],
    };
    let hello = Hello { scopes: (0..5000).map(digest).collect(), ..Hello::default() };
    let hello = AgentMessage { message: Some(agent_message::Message::Hello(hello)) };
    let stays = stream::iter([hello]).chain(stream::pending());
    let mut told = DispatchClient::new(channel).session(stays).await.unwrap().into_inner();
    assert!(told.message().await.unwrap().is_some());
    drop(told);
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_link_comes_back_by_itself() {
    let cluster = Cluster::found().await;
    let worker = cluster.worker("n2").await;
    cluster.network("blue").await;
    let mut first = Agent::start(&cluster, &worker).await;
    // A second stream of the node takes the first one's place, which then comes back.
    let mut second = silent_agent(&cluster, &worker).await;
    within(async { while let Ok(Some(_)) = second.message().await {} }).await;
    cluster.endpoint(&worker, "blue").await;
    first.until(|table| table.endpoints.len() == 1).await;
    until_status(&cluster, worker.node.id, NodeStatus::Ready).await;
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_manager_starts_again_with_all_that_it_knew() {
    let cluster = Cluster::found().await;
    let [n2, n3] = [cluster.worker("n2").await, cluster.worker("n3").await];
    cluster.network("blue").await;
    let first = cluster.endpoint(&n2, "blue").await;
    cluster.endpoint(&n3, "blue").await;
    let mut agent = Agent::start(&cluster, &n2).await;
    let before = agent.until(|table| table.endpoints.len() == 2).await;
    until_status(&cluster, n2.node.id, NodeStatus::Ready).await;
    drop(agent);
    let listed = cluster.endpoints().await;

    let limited = cluster.limited_token(Some(3600), Some(1)).await;
    let rotated = JoinTokenRequest { rotate: true, ..Default::default() };
    let rotated: JoinToken = cluster.ask_token(rotated).await.unwrap().token.parse().unwrap();

    let cluster = cluster.restarted().await;
    let again = cluster.endpoints().await;
    assert_eq!((&again.endpoints, &again.networks), (&listed.endpoints, &listed.networks));
    assert_eq!(again.nodes.len(), 3);
    let status = |id: NodeId| {
        again.nodes.iter().find(|node| node.id == id.to_bytes()).map(|node| node.status())
    };
    assert_eq!(status(n2.node.id), Some(NodeStatus::Ready), "a start is no reason to be down");
    assert_eq!(status(n3.node.id), Some(NodeStatus::Down), "it never was heard");

    // A node comes back with what it had, to the same table under the same keys.
    let mut agent = Agent::start(&cluster, &n2).await;
    until_status(&cluster, n2.node.id, NodeStatus::Ready).await;
    let after = agent.until(|table| table.endpoints.len() == 2).await;
    assert!(after.revision > before.revision, "revisions go on");
    assert_eq!((&after.endpoints, &after.networks), (&before.endpoints, &before.networks));
    assert!(after.peers == before.peers, "the pair's key is the same");

    // Tokens are valid, names and addresses are as taken as they were.
    cluster.join_as("n4", &rotated).await.unwrap();
    cluster.join_as("n5", &limited).await.unwrap();
    let identity = cluster.identity("another");
    let taken = join::join(cluster.addr, &rotated, &introduction(&identity, "n3")).await;
    assert!(taken.err().unwrap().message().starts_with("the name n3 is taken by node "));
    let more = cluster.endpoint(&n2, "blue").await;
    assert_ne!(more.endpoint.unwrap().addresses, first.endpoint.unwrap().addresses);
    drop(agent);
    cluster.restarted().await.manager.shutdown().await;
}

#[tokio::test]
async fn a_manager_does_not_start_without_its_own_key_and_log() {
    let (cluster, other) = (Cluster::found().await, Cluster::found().await);
    let stranger = other.worker("n2").await;
    let Cluster { manager, addr, first, folders, .. } = cluster;
    let folder = folders.path().join("n1/manager");
    let reopening = || Reopening {
        has_others: false,
        alone: false,
        state_dir: folders.path().join("n1"),
        listen_addr: addr,
        node: first.node.id,
        credentials: first.credentials.clone(),
    };
    let check = async |reopening: Reopening, sentence: &str| {
        let error = Manager::open(reopening).await.err().unwrap().to_string();
        assert_eq!(error.replace(&folder.display().to_string(), "F"), sentence);
    };
    let taken = "Address already in use (os error 98); end what has it, then start overlayd again";
    check(reopening(), &format!("listen on {addr}: {taken}")).await;
    manager.shutdown().await;

    let [key, log] = ["manager.key", "log.redb"].map(|name| folder.join(name));
    let (key_bytes, log_bytes) = (fs::read(&key).unwrap(), fs::read(&log).unwrap());
    fs::remove_file(&key).unwrap();
    check(reopening(), "F/manager.key is not there, and nothing else opens the cluster's secrets; put it back, or restore a backup with overlayd --restore").await;
    let other_folder = other.folders.path().join("n1/manager");
    fs::copy(other_folder.join("manager.key"), &key).unwrap();
    check(reopening(), "F/manager.key does not open the cluster's secrets, so it is another cluster's; put the right one back, or restore a backup with overlayd --restore").await;
    fs::write(&key, &key_bytes).unwrap();
    fs::remove_file(&log).unwrap();
    check(reopening(), "the log F/log.redb is not there; restore a backup with overlayd --restore")
        .await;
    fs::write(&log, &log_bytes[..log_bytes.len() / 2]).unwrap();
    let cut = Manager::open(reopening()).await.err().unwrap().to_string();
    assert!(cut.contains("log.redb is damaged: "), "{cut}");
    fs::write(&log, &log_bytes).unwrap();
    let no_manager = "this node is no manager of the cluster in the log F/log.redb; restore a backup with overlayd --restore";
    check(Reopening { node: stranger.node.id, ..reopening() }, no_manager).await;
    check(Reopening { credentials: stranger.credentials.clone(), ..reopening() }, no_manager).await;

    let (manager, _) = opened(reopening()).await;
    manager.shutdown().await;
    other.manager.shutdown().await;
}

#[tokio::test]
async fn a_folder_holds_one_cluster_and_a_founding_that_fails_leaves_nothing() {
    let folders = tempfile::tempdir().unwrap();
    let folder = folders.path().join("n1/manager");
    let bad = Founding { mask_length: 31, ..founding(&folders) };
    let refused = Manager::found(bad).await.err().unwrap().to_string();
    assert!(refused.starts_with("address pool 10.0.0.0/8 cannot hold"), "{refused}");
    assert!(!folder.exists(), "nothing is left");
    // What was founded and then undone is as if it never was.
    let (undone, _) = Manager::found(founding(&folders)).await.unwrap();
    undone.end(Ending::Undone).await;
    assert!(!folder.exists(), "nothing is left");

    let (manager, founded) = Manager::found(founding(&folders)).await.unwrap();
    let twice = Manager::found(founding(&folders)).await.err().unwrap().to_string();
    assert_eq!(
        twice.replace(&folder.display().to_string(), "F"),
        "the log F/log.redb is there already: this state folder holds a cluster; remove F to give that cluster up"
    );
    manager.end(Ending::Kept).await;

    // A key alone is not overwritten either.
    fs::rename(folder.join("log.redb"), folders.path().join("away")).unwrap();
    let alone = Manager::found(founding(&folders)).await.err().unwrap().to_string();
    assert_eq!(
        alone.replace(&folder.display().to_string(), "F"),
        "F/manager.key is there already, of a cluster whose log is gone; move it away to make a new cluster"
    );
    assert!(!folder.join("log.redb").exists(), "nothing is left");
    fs::rename(folders.path().join("away"), folder.join("log.redb")).unwrap();
    let reopening = Reopening {
        has_others: false,
        alone: false,
        state_dir: folders.path().join("n1"),
        listen_addr: founded.listen_addr,
        node: founded.node.id,
        credentials: founded.credentials,
    };
    let (manager, reopened) = opened(reopening).await;
    assert_eq!(reopened.cluster, founded.cluster);
    manager.shutdown().await;
}

#[tokio::test]
async fn a_rotated_token_joins_no_more_and_puts_nobody_out() {
    let cluster = Cluster::found().await;
    let worker = cluster.worker("n2").await;
    let shown = cluster.ask_token(JoinTokenRequest::default()).await.unwrap();
    assert_eq!(shown.token, cluster.token.to_string(), "a standing token stays");
    let rotate = JoinTokenRequest { rotate: true, ..Default::default() };
    let rotated = cluster.ask_token(rotate).await.unwrap();
    assert_eq!((rotated.expires_at_s, rotated.uses), (None, None));
    let rotated: JoinToken = rotated.token.parse().unwrap();
    assert_eq!(rotated.digest, cluster.token.digest);
    let refused = cluster.join_as("n3", &cluster.token).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(
        refused.message(),
        "the token was rotated; take the new one from a manager with 'overlayctl join-token worker'"
    );
    cluster.join_as("n3", &rotated).await.unwrap();
    let agent = Agent::start(&cluster, &worker).await;
    until_status(&cluster, worker.node.id, NodeStatus::Ready).await;
    drop(agent);
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_limited_token_joins_as_many_nodes_as_it_says() {
    let cluster = Cluster::found().await;
    let asked = JoinTokenRequest { ttl_s: Some(3600), uses: Some(2), ..Default::default() };
    let made = cluster.ask_token(asked).await.unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let left = made.expires_at_s.unwrap() - now;
    assert!((3590..=3600).contains(&left), "{left}");
    assert_eq!(made.uses, Some(2));
    let token: JoinToken = made.token.parse().unwrap();
    assert_ne!(token, cluster.limited_token(Some(3600), Some(2)).await, "each is drawn");
    for name in ["n2", "n3"] {
        cluster.join_as(name, &token).await.unwrap();
    }
    let refused = cluster.join_as("n4", &token).await.err().unwrap();
    assert_eq!(
        refused.message(),
        "the token is used up; take another from a manager with 'overlayctl join-token worker'"
    );
    cluster.worker("n4").await;
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_join_whose_answer_was_lost_is_asked_for_again_with_the_same_token() {
    let cluster = Cluster::found().await;
    let token = cluster.limited_token(None, Some(1)).await;
    let lost = cluster.join_as("n2", &token).await.unwrap();
    let again = cluster.join_as("n2", &token).await.unwrap();
    assert_ne!(lost.node.id, again.node.id);
    assert_eq!(cluster.node_count().await, 2, "the manager and one worker");
    let other = cluster.join_as("n3", &token).await.err().unwrap();
    assert!(other.message().starts_with("the token is used up"), "{}", other.message());
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_cut_token_is_told_from_a_wrong_one() {
    let cluster = Cluster::found().await;
    let identity = cluster.identity("n2");
    let (mut request, _) = introduction(&identity, "n2").request().unwrap();
    request.token_secret = cluster.token.secret_text()[..24].to_owned();
    let refused = cluster.stranger().await.join(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        refused.message(),
        "the token is cut or bent; copy the whole line that 'overlayctl join-token worker' prints"
    );
    cluster.worker("n2").await;
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn tokens_that_make_no_sense_are_refused() {
    let cluster = Cluster::found().await;
    let check = async |request: JoinTokenRequest, sentence: &str| {
        assert_eq!(cluster.ask_token(request).await.err().unwrap().message(), sentence);
    };
    let with = |rotate, ttl_s, uses| JoinTokenRequest { rotate, ttl_s, uses, role: 0 };
    let both = "a rotated token has no end; leave out --rotate, or --ttl and --uses";
    check(with(true, Some(60), None), both).await;
    check(with(true, None, Some(1)), both).await;
    check(with(false, Some(0), None), "ttl: use 1s to 3650d").await;
    check(with(false, Some(u64::MAX), None), "ttl: use 1s to 3650d").await;
    check(with(false, None, Some(0)), "uses: use 1 or more").await;
    cluster.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_uses_at_once_of_a_one_use_token_join_one_node() {
    let cluster = Cluster::found().await;
    let token = cluster.limited_token(Some(3600), Some(1)).await;
    let mut calls = Vec::new();
    for connection in 0..10 {
        let mut client = cluster.stranger().await;
        let challenge = client.challenge(ChallengeRequest {}).await.unwrap().into_inner();
        for number in 0..100 {
            let name = format!("j{}", connection * 100 + number);
            let identity = cluster.identity(&name);
            let introduction = introduction(&identity, &name);
            let (mut request, _) = introduction.request().unwrap();
            introduction.answer(&challenge, &mut request).unwrap();
            request.token_secret = token.secret_text();
            let mut client = client.clone();
            calls.push(async move { client.join(request).await });
        }
    }
    let calls = calls.into_iter().map(tokio::spawn);
    let mut joined = 0;
    for answer in within(join_all(calls)).await {
        match answer.unwrap() {
            Ok(_) => joined += 1,
            Err(refused) => assert_eq!(
                refused.message(),
                "the token is used up; take another from a manager with 'overlayctl join-token worker'"
            ),
        }
    }
    assert_eq!(joined, 1);
    assert_eq!(cluster.node_count().await, 2, "the manager and one worker");
    cluster.manager.shutdown().await;
}
