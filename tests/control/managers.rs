//! Several managers: they decide together, send agents to the one that leads, and go on without it.

use overlay::api::{
    Joining,
    proto::{ReplicationRequest, replication_client::ReplicationClient},
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
        let identity = cluster.identity(name);
        // Others call it where it says that it is.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = free.local_addr().unwrap();
        drop(free);
        let introduction = Introduction { advertise_addr: addr, ..introduction(&identity, name) };
        let admitted = join::join(cluster.addr, &token, &introduction).await.unwrap();
        let joined = admitted.joined;
        let joining = Joining {
            state_dir: cluster.folders.path().join(name),
            listen_addr: addr,
            cluster: joined.cluster,
            node: joined.node.clone(),
            data_port: admitted.data_port,
            gift: admitted.manager.expect("it is to be a manager"),
        };
        let (manager, listens) = Manager::join(joining).await.unwrap();
        assert_eq!(listens, addr);
        let other = Self { manager, joined, addr };
        within(async {
            while !other.deciding().await.contains(&other.joined.node.id) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        other
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

    async fn has(&self, network: &str) -> bool {
        let request = proto::FindNetworkRequest { reference: network.into() };
        self.control().await.unwrap().find_network(request).await.is_ok()
    }
}

impl Cluster {
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
async fn an_agent_is_sent_to_the_leader_and_follows_the_next_one() {
    let cluster = Cluster::found().await;
    let n2 = Other::join(&cluster, "n2").await;
    let n3 = Other::join(&cluster, "n3").await;
    let worker = cluster.worker("w").await;
    // It asks one that does not lead.
    let (addr, follower) = (cluster.addr, Cluster { addr: n2.addr, ..cluster });
    let mut agent = Agent::start(&follower, &worker).await;
    assert_eq!(agent.managers.current(), addr);
    let known = |known: &Vec<SocketAddr>| known.len() == 3;
    within(agent.managers.known().wait_for(known)).await.unwrap();

    let Cluster { manager, .. } = follower;
    manager.shutdown().await;
    within(agent.connected.wait_for(Option::is_none)).await.unwrap();
    within(agent.connected.wait_for(Option::is_some)).await.unwrap();
    assert!([n2.addr, n3.addr].contains(&agent.managers.current()));
    n2.manager.shutdown().await;
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
