//! Several managers: they decide together, send agents to the one that leads, and go on without it.

use overlay::api::{
    Joining,
    proto::{
        GiftRequest, ManagerGift, ReplicationRequest, SetRoleRequest, SetRoleResponse,
        replication_client::ReplicationClient,
    },
};

use super::*;

/// A manager that joined others.
struct Other {
    manager: Manager,
    joined: Joined,
    addr: SocketAddr,
}

impl Other {
    /// Joins as a manager, and waits until it decides with the others.
    async fn join(cluster: &Cluster, name: &str) -> Self {
        let token = cluster.manager_token().await;
        Self::join_at(cluster.addr, cluster, &token, name).await
    }

    /// The same at a certain manager.
    async fn join_at(at: SocketAddr, cluster: &Cluster, token: &JoinToken, name: &str) -> Self {
        let identity = cluster.identity(name);
        let addr = free_addr();
        let introduction = Introduction { advertise_addr: addr, ..introduction(&identity, name) };
        let admitted = join::join(at, token, &introduction).await.unwrap();
        let gift = admitted.manager.expect("it is to be a manager");
        let other = Self::start(cluster, admitted.joined, gift, false).await;
        other.until_it_decides().await;
        other
    }

    /// Starts the manager of a node that joined or was promoted.
    async fn start(cluster: &Cluster, joined: Joined, gift: ManagerGift, anew: bool) -> Self {
        let addr = joined.node.advertise_addr;
        let joining = Joining {
            state_dir: cluster.folders.path().join(joined.node.name.as_str()),
            listen_addr: addr,
            cluster: joined.cluster,
            node: joined.node.clone(),
            gift,
            anew,
        };
        let (manager, listens) = Manager::join(joining).await.unwrap();
        assert_eq!(listens, addr);
        Self { manager, joined, addr }
    }

    async fn until_it_decides(&self) {
        within(async {
            while !self.deciding().await.contains(&self.joined.node.id) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Who decides, as this manager knows it; nobody until it has heard of itself.
    async fn deciding(&self) -> Vec<NodeId> {
        let Ok(mut control) = self.control().await else { return Vec::new() };
        let Ok(listed) = control.list_nodes(ListNodesRequest {}).await else { return Vec::new() };
        let deciding = listed.into_inner().deciding.into_iter();
        deciding.map(|id| NodeId::from_bytes(id.try_into().unwrap())).collect()
    }

    /// A client of this manager with the certificate of its node.
    async fn control(&self) -> Result<ControlClient<Channel>, String> {
        let config = Arc::new(tls::member_config(&self.joined.credentials).unwrap());
        let channel = channel::to_manager(self.addr, config).await;
        Ok(ControlClient::new(channel.map_err(|error| error.to_string())?))
    }

    async fn create(&self, network: &str) -> Result<(), Status> {
        let request = CreateNetworkRequest { name: network.into(), ..Default::default() };
        self.control().await.unwrap().create_network(request).await.map(drop)
    }

    async fn remove(&self, network: &str) -> Result<(), Status> {
        let request = proto::RemoveNetworkRequest { reference: network.into() };
        self.control().await.unwrap().remove_network(request).await.map(drop)
    }

    async fn has(&self, network: &str) -> bool {
        let request = proto::FindNetworkRequest { reference: network.into() };
        self.control().await.unwrap().find_network(request).await.is_ok()
    }
}

/// Where nobody listens now; others call a manager where it says that it is.
fn free_addr() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Cluster {
    async fn set_role(&self, node: &Joined, role: Role) -> Result<SetRoleResponse, Status> {
        let request = SetRoleRequest { reference: node.node.name.to_string(), role: role.into() };
        self.control().await.set_role(request).await.map(Response::into_inner)
    }

    async fn manager_token(&self) -> JoinToken {
        let request = JoinTokenRequest { role: Role::Manager.into(), ..Default::default() };
        let token = self.control().await.join_token(request).await.unwrap().into_inner().token;
        token.parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_that_join_decide_with_the_first_and_go_on_without_it() {
    let cluster = Cluster::found().await;
    cluster.network("before").await;
    let n2 = Other::join(&cluster, "n2").await;
    let n3 = Other::join(&cluster, "n3").await;
    assert!(n3.has("before").await, "it was told of what was there");
    n2.create("by-n2").await.unwrap();
    n3.create("by-n3").await.unwrap();
    let refused = n3.create("by-n2").await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");

    let died = Instant::now();
    cluster.manager.shutdown().await;
    within(async { while n3.create("without-n1").await.is_err() {} }).await;
    println!("written again {:?} after the leader's end began", died.elapsed());
    assert!(n2.has("without-n1").await);
    n2.manager.shutdown().await;
    n3.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_manager_acknowledged_the_others_take_away_again() {
    let cluster = Cluster::found().await;
    let n2 = Other::join(&cluster, "n2").await;
    for number in 0..10 {
        let name = format!("net{number}");
        cluster.network(&name).await;
        n2.remove(&name).await.unwrap();
        let missed = n2.remove(&name).await.unwrap_err();
        assert_eq!(missed.code(), Code::NotFound, "{missed}");
    }
    n2.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_manager_hears_all_of_a_log_that_is_older_than_who_leads() {
    let cluster = Cluster::found().await;
    // More than what is sent at once.
    let mut control = cluster.control().await;
    for number in 0..200 {
        let name = format!("net{number}");
        let create = CreateNetworkRequest { name: name.clone(), ..Default::default() };
        control.create_network(create).await.unwrap();
        control.remove_network(proto::RemoveNetworkRequest { reference: name }).await.unwrap();
    }
    let token = cluster.manager_token().await;
    let n2 = Other::join(&cluster, "n2").await;
    let demote = SetRoleRequest {
        reference: cluster.first.node.name.to_string(),
        role: Role::Worker.into(),
    };
    n2.control().await.unwrap().set_role(demote).await.unwrap();
    within(async { while n2.deciding().await != [n2.joined.node.id] {} }).await;
    let n3 = Other::join_at(n2.addr, &cluster, &token, "n3").await;
    n3.create("blue").await.unwrap();
    assert!(n2.has("blue").await);
    n3.manager.shutdown().await;
    n2.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_manager_serves_agents_and_the_leader_knows_who_is_alive() {
    let cluster = Cluster::found().await;
    let n2 = Other::join(&cluster, "n2").await;
    let n3 = Other::join(&cluster, "n3").await;
    let (w1, w2) = (cluster.worker("w1").await, cluster.worker("w2").await);
    // One of them at a manager that does not lead, and one at the leader.
    let (addr, follower) = (cluster.addr, Cluster { addr: n2.addr, ..cluster });
    let mut agent = Agent::start(&follower, &w1).await;
    let leader = Cluster { addr, ..follower };
    let other = Agent::start(&leader, &w2).await;
    assert_eq!((agent.managers.current(), other.managers.current()), (n2.addr, addr));
    for worker in [&w1, &w2] {
        until_status(&leader, worker.node.id, NodeStatus::Ready).await;
    }
    let known = |known: &Vec<SocketAddr>| known.len() == 3;
    within(agent.managers.known().wait_for(known)).await.unwrap();
    let request = proto::InspectNodeRequest { reference: "w1".into() };
    let inspected = n3.control().await.unwrap().inspect_node(request).await.unwrap().into_inner();
    assert!(inspected.silent_ms.is_some_and(|ms| ms < 2500), "{inspected:?}");

    // What is attached at one is acknowledged by the agents of all.
    leader.network("blue").await;
    let first = leader.endpoint(&w2, "blue").await;
    let second = leader.endpoint(&w1, "blue").await;
    let request =
        AwaitAcknowledgedRequest { network: first.network.unwrap().id, revision: second.revision };
    let mut at_leader = AttachmentClient::new(leader.channel(&w2.credentials).await);
    let lagging = at_leader.await_acknowledged(request).await.unwrap().into_inner().lagging;
    assert_eq!(lagging, Vec::<String>::new());
    assert_eq!(agent.table.borrow().endpoints.len(), 2);
    // So are the keys that come when a node goes, and those before end.
    let gone = leader.worker("gone").await;
    let request = RemoveNodeRequest { reference: gone.node.id.to_string(), force: true };
    leader.control().await.remove_node(request).await.unwrap();
    let only_new =
        |table: &Table| table.peers.values().all(|peer| peer.psks.iter().all(|psk| psk.epoch == 2));
    agent.until(only_new).await;

    // Its manager ends: it goes to another one at once, and is ready all the time.
    n2.manager.shutdown().await;
    let managers = agent.managers.clone();
    let moved = |to: &Option<Channel>| to.is_some() && managers.current() != n2.addr;
    within(agent.connected.wait_for(moved)).await.unwrap();
    assert!([addr, n3.addr].contains(&managers.current()));
    assert_eq!(leader.status_of(w1.node.id).await, NodeStatus::Ready);
    drop(agent);
    until_status(&leader, w1.node.id, NodeStatus::Down).await;
    n3.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_leaves_only_when_the_others_can_decide_without_it() {
    let cluster = Cluster::found().await;
    let first = cluster.channel(&cluster.first.credentials).await;
    let refused = join::ask_to_leave(first).await.unwrap_err();
    let only = "node n1 is the only manager; end the cluster with 'overlayctl leave --force' there";
    assert_eq!(refused.message(), only);

    // It counts once it is heard of.
    let n2 = Other::join(&cluster, "n2").await;
    let first = cluster.channel(&cluster.first.credentials).await;
    let refused = join::ask_to_leave(first.clone()).await.unwrap_err();
    assert_eq!(
        refused.message(),
        "without node n1 0 of 1 manager(s) would be ready, and more than half must be; bring one back first, or take out one that is down"
    );
    let agent = Agent::start(&cluster, &n2.joined).await;
    until_status(&cluster, n2.joined.node.id, NodeStatus::Ready).await;
    join::ask_to_leave(first).await.unwrap();

    let channel = agent.connected.borrow().clone().unwrap();
    join::leave(channel).await.unwrap();
    n2.manager.shutdown().await;
    // The one that is left decides alone.
    cluster.network("alone").await;
    let listed = cluster.control().await.list_nodes(ListNodesRequest {}).await.unwrap();
    assert_eq!(listed.into_inner().deciding, [cluster.first.node.id.to_bytes()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_promoted_decides_and_is_demoted_again() {
    let cluster = Cluster::found().await;
    cluster.network("before").await;
    let identity = cluster.identity("w");
    let introduction = Introduction { advertise_addr: free_addr(), ..introduction(&identity, "w") };
    let joined = join::join(cluster.addr, &cluster.token, &introduction).await.unwrap().joined;
    let agent = Agent::start(&cluster, &joined).await;
    let channel = agent.connected.borrow().clone().unwrap();
    let mut membership = MembershipClient::new(channel.clone());
    let refused = membership.gift(GiftRequest {}).await.unwrap_err();
    assert_eq!(refused.message(), "node w is a worker; promote it first");

    let mut told = agent.managers.standing();
    let promoted = async { cluster.set_role(&joined, Role::Manager).await.unwrap() };
    let started = async {
        within(told.wait_for(|told| told.role == overlay::types::Role::Manager)).await.unwrap();
        let gift = membership.gift(GiftRequest {}).await.unwrap().into_inner().manager.unwrap();
        Other::start(&cluster, joined.clone(), gift, true).await
    };
    let (promoted, w) = tokio::join!(promoted, started);
    assert!(promoted.settled, "it decides with the first");
    w.until_it_decides().await;
    w.create("by-w").await.unwrap();
    assert!(w.has("before").await);

    // It goes on for as long as the first needs it, and hears that it is one no more only then.
    let demoted = cluster.set_role(&joined, Role::Worker).await.unwrap();
    assert!(demoted.settled);
    within(told.wait_for(|told| told.role == overlay::types::Role::Worker)).await.unwrap();
    let Other { manager, .. } = w;
    manager.end(Ending::Undone).await;
    assert!(!cluster.folders.path().join("w/manager").exists(), "its log and keys are gone");
    cluster.network("alone").await;
    let refused = ControlClient::new(channel).list_nodes(ListNodesRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demotion_that_would_lose_the_quorum_is_refused() {
    let cluster = Cluster::found().await;
    let only = cluster.set_role(&cluster.first, Role::Worker).await.unwrap_err();
    assert_eq!(only.message(), "node n1 is the only manager; promote another node first");
    let n2 = Other::join(&cluster, "n2").await;
    // Nobody hears of n2's node.
    let refused = cluster.set_role(&cluster.first, Role::Worker).await.unwrap_err();
    assert_eq!(
        refused.message(),
        "without node n1 0 of 1 manager(s) would be ready, and more than half must be; bring one back first, or take out one that is down"
    );
    // One that is away may go, and the other decides alone.
    assert!(cluster.set_role(&n2.joined, Role::Worker).await.unwrap().settled);
    n2.manager.shutdown().await;
    cluster.network("alone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_manager_that_never_comes_keeps_no_other_waiting() {
    let cluster = Cluster::found().await;
    let never = cluster.worker("never").await;
    let promoted = cluster.set_role(&never, Role::Manager);
    // Its turn is first, and nobody is there.
    let (promoted, n2) = tokio::join!(promoted, Other::join(&cluster, "n2"));
    assert!(!promoted.unwrap().settled);
    assert!(!n2.deciding().await.contains(&never.node.id));
    assert!(cluster.set_role(&never, Role::Worker).await.unwrap().settled);
    n2.create("by-n2").await.unwrap();
    n2.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_was_demoted_while_it_was_away_hears_that_it_decides_no_more() {
    let cluster = Cluster::found().await;
    let Other { manager, joined, addr } = Other::join(&cluster, "n2").await;
    let state_dir = cluster.folders.path().join("n2");
    let reopening = |has_others| Reopening {
        has_others,
        alone: false,
        state_dir: state_dir.clone(),
        listen_addr: addr,
        node: joined.node.id,
        credentials: joined.credentials.clone(),
    };
    manager.shutdown().await;
    assert!(cluster.set_role(&joined, Role::Worker).await.is_err(), "one of two cannot decide");
    // It is needed to decide that it is not.
    let (manager, _) = opened(reopening(false)).await;
    within(async { while cluster.set_role(&joined, Role::Worker).await.is_err() {} }).await;
    let n2 = joined.node.id.to_bytes().to_vec();
    within(async {
        loop {
            let listed = cluster.control().await.list_nodes(ListNodesRequest {}).await;
            if listed.is_ok_and(|listed| !listed.into_inner().deciding.contains(&n2)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    manager.end(Ending::Undone).await;
    cluster.network("alone").await;
    let missing = Manager::open(reopening(false)).await.err().unwrap().to_string();
    assert!(
        missing.ends_with("is not there; restore a backup with overlayd --restore"),
        "{missing}"
    );
    let none = Manager::open(reopening(true)).await.unwrap();
    assert!(matches!(none, Opened::Gone), "others go on without its log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_was_away_for_long_hears_one_that_it_does_not_know() {
    let cluster = Cluster::found().await;
    let n2 = Other::join(&cluster, "n2").await;
    let n3 = Other::join(&cluster, "n3").await;
    let Other { manager, joined, addr } = n2;
    manager.shutdown().await;
    let n4 = Other::join(&cluster, "n4").await;
    let n5 = Other::join(&cluster, "n5").await;
    let at_n4 = Cluster { addr: n4.addr, ..cluster };
    let mut agents = Vec::new();
    for node in [&n3, &n4, &n5] {
        agents.push(Agent::start(&at_n4, &node.joined).await);
        until_status(&at_n4, node.joined.node.id, NodeStatus::Ready).await;
    }
    // Of those that decide by now it knows nobody.
    for former in ["n1", "n3"] {
        let demote = SetRoleRequest { reference: former.into(), role: Role::Worker.into() };
        let demoted = n4.control().await.unwrap().set_role(demote).await.unwrap();
        assert!(demoted.into_inner().settled, "{former}");
    }
    let Cluster { manager: first, folders, .. } = at_n4;
    first.shutdown().await;
    n3.manager.shutdown().await;
    within(async { while n5.create("while-n2-is-away").await.is_err() {} }).await;

    let reopening = Reopening {
        has_others: true,
        alone: false,
        state_dir: folders.path().join("n2"),
        listen_addr: addr,
        node: joined.node.id,
        credentials: joined.credentials.clone(),
    };
    let (manager, _) = opened(reopening).await;
    let n2 = Other { manager, joined, addr };
    within(async { while !n2.has("while-n2-is-away").await {} }).await;
    for other in [n2, n4, n5] {
        other.manager.shutdown().await;
    }
}

#[tokio::test]
async fn an_older_manager_takes_nothing_that_it_does_not_know() {
    let cluster = Cluster::found().await;
    let n1 = cluster.first.node.id;
    let revision = async || {
        let mut control = cluster.control().await;
        control.list_nodes(ListNodesRequest {}).await.unwrap();
        cluster.endpoint(&cluster.first, "blue").await.revision
    };
    cluster.network("blue").await;
    let before = revision().await;
    let entry = format!(
        r#"{{"Append":{{"vote":{{"leader_id":{{"term":99,"node_id":"{n1}"}},"committed":true}},"prev_log_id":null,"entries":[{{"log_id":{{"leader_id":{{"term":99,"node_id":"{n1}"}},"index":1}},"payload":{{"Normal":{{"id":"0000000000000000000000007","commands":[{{"Unheard":1}}]}}}}}}],"leader_commit":null}}}}"#
    );
    let mut client = ReplicationClient::new(cluster.channel(&cluster.first.credentials).await);
    let request = ReplicationRequest { to: n1.to_bytes().to_vec(), body: entry.into_bytes() };
    let refused = client.call(request).await.unwrap_err();
    let start = "not understood: unknown variant `Unheard`, expected one of ";
    assert!(refused.message().starts_with(start), "{refused}");
    assert!(refused.message().ends_with("; use the same overlayd"), "{refused}");
    assert!(revision().await > before, "it goes on as before");
}

#[tokio::test]
async fn the_log_is_shared_with_managers_only() {
    let cluster = Cluster::found().await;
    let worker = cluster.worker("w").await;
    let request = || {
        ReplicationRequest {
        to: cluster.first.node.id.to_bytes().to_vec(),
        body: br#"{"Vote":{"vote":{"leader_id":{"term":9,"node_id":"0000000000000000000000001"},"committed":false},"last_log_id":null}}"#.to_vec(),
    }
    };
    let mut client = ReplicationClient::new(cluster.channel(&worker.credentials).await);
    let refused = client.call(request()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let refused = client.install(stream::iter([request()])).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");

    let mut client = ReplicationClient::new(cluster.channel(&cluster.first.credentials).await);
    let other = ReplicationRequest { to: worker.node.id.to_bytes().to_vec(), ..request() };
    assert_eq!(client.call(other).await.unwrap_err().code(), Code::NotFound);
    let bent = ReplicationRequest { body: b"{}".to_vec(), ..request() };
    assert_eq!(client.call(bent.clone()).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(
        client.install(stream::iter([bent])).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    cluster.network("as-before").await;
}
