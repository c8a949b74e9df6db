//! Who is believed, and for how long: certificates that end and are renewed, and keys that are proven.

use overlay::{
    agent::renewal,
    api::{
        BACKDATED, Validity,
        proto::{
            JoinRequest, RemoveNetworkRequest, RenewRequest, RotateRootRequest, RotateRootResponse,
        },
        tls::{MANAGER_NAME, join_statement},
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
    SigningKey as _,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::*;

/// Whether a manager takes a certificate for a call.
async fn is_taken(cluster: &Cluster, credentials: &Credentials) -> bool {
    let config = Arc::new(tls::member_config(credentials).unwrap());
    let Ok(channel) = channel::to_manager(cluster.addr, config).await else { return false };
    let request = CreateEndpointRequest { network: "none".into(), ..Default::default() };
    let answer = AttachmentClient::new(channel).create_endpoint(request).await;
    // Who is let in is told that there is no such network.
    answer.unwrap_err().code() == Code::NotFound
}

/// A channel without a certificate, of somebody who knows the root.
async fn unknown(cluster: &Cluster) -> Channel {
    let config = Arc::new(tls::unknown_config(&cluster.first.credentials.roots).unwrap());
    channel::to_manager(cluster.addr, config).await.unwrap()
}

async fn refused(cluster: &Cluster, node: NodeId, identity: &Identity) -> String {
    let asked = renewal::renew(unknown(cluster).await, node, identity).await;
    asked.err().unwrap().to_string()
}

/// With certificates of so long a life.
fn lives(certificate_life: Duration) -> impl FnOnce(Founding) -> Founding {
    move |founding| Founding { certificate_life, ..founding }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_before_its_end_and_no_stream_breaks() {
    let cluster = Cluster::found_with(lives(Duration::from_secs(3))).await;
    let worker = cluster.worker("n2").await;
    let mut agent = Agent::start(&cluster, &worker).await;
    agent.connected.mark_unchanged();
    within(agent.renewed.wait_for(|renewed| *renewed >= 2)).await.unwrap();
    let renewed = agent.certificate.credentials();
    assert_ne!(renewed.certificate, worker.credentials.certificate);
    assert_ne!(renewed.key, worker.credentials.key, "each certificate has a new key");
    assert!(is_taken(&cluster, &renewed).await);
    // The one that it joined with ends, and so does the manager's first.
    within(async { while is_taken(&cluster, &worker.credentials).await {} }).await;
    assert!(!agent.connected.has_changed().unwrap(), "the stream is the same");
    assert!(is_taken(&cluster, &agent.certificate.credentials()).await);
    drop(agent);
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn certificates_have_the_life_that_the_cluster_was_made_with() {
    let life = Duration::from_secs(1234);
    let cluster = Cluster::found_with(lives(life)).await;
    let check = |certificate: &CertificateDer<'_>| {
        let validity = Validity::of(certificate).unwrap();
        assert_eq!(validity.life(), life);
        let made = validity.not_before + BACKDATED;
        assert!(made.elapsed().unwrap() < Duration::from_secs(60), "made an hour back");
    };
    let worker = cluster.worker("n2").await;
    check(&cluster.first.credentials.certificate);
    check(&worker.credentials.certificate);
    let cluster = cluster.restarted().await;
    let (channel, identity) = (unknown(&cluster).await, cluster.identity("n2"));
    let renewed = renewal::renew(channel, worker.node.id, &identity).await.unwrap();
    check(&renewed.certificate);
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_node_whose_certificate_is_over_comes_back_without_a_token() {
    let cluster = Cluster::found_with(lives(Duration::from_secs(1))).await;
    let worker = cluster.worker("n2").await;
    within(async { while is_taken(&cluster, &worker.credentials).await {} }).await;
    let agent = Agent::start(&cluster, &worker).await;
    // Its stream is open: it is the node that it was.
    assert!(*agent.renewed.borrow() >= 1);
    drop(agent);
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_removed_node_gets_no_certificate() {
    let cluster = Cluster::found().await;
    let worker = cluster.worker("n2").await;
    join::leave(cluster.channel(&worker.credentials).await).await.unwrap();
    let said = refused(&cluster, worker.node.id, &cluster.identity("n2")).await;
    let wanted =
        format!("node {} is not a member of this cluster any more; join it anew", worker.node.id);
    assert_eq!(said, wanted);
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn another_key_gets_no_certificate_and_tries_are_limited() {
    let cluster = Cluster::found().await;
    let worker = cluster.worker("n2").await;
    let thief = cluster.identity("thief");
    for _ in 0..10 {
        assert_eq!(
            refused(&cluster, worker.node.id, &thief).await,
            "node n2 is registered with another key; use the state folder that it joined with, or remove it on a manager with 'overlayctl node rm' and join anew"
        );
    }
    assert_eq!(
        refused(&cluster, worker.node.id, &cluster.identity("n2")).await,
        "too many wrong tokens or keys came from this address; wait a minute"
    );
    cluster.manager.shutdown().await;
}

#[tokio::test]
async fn a_proof_that_was_seen_on_another_connection_is_worth_nothing() {
    let cluster = Cluster::found().await;
    let worker = cluster.worker("n2").await;
    let identity = cluster.identity("n2");
    let mut client = MembershipClient::new(unknown(&cluster).await);
    let challenge = client.challenge(ChallengeRequest {}).await.unwrap().into_inner();
    let asked = join::CertificateRequest::new(&identity).unwrap();
    let purpose = overlay::api::proof::Purpose::Renew(worker.node.id);
    let request = RenewRequest {
        node: worker.node.id.to_bytes().to_vec(),
        key_proof: asked.key_proof(&identity, purpose, &challenge).unwrap(),
        certificate_key: asked.point,
        certificate_key_proof: asked.proof,
    };
    client.renew(request.clone()).await.unwrap();

    let mut other = MembershipClient::new(unknown(&cluster).await);
    let early = other.renew(request.clone()).await.unwrap_err();
    assert_eq!(early.message(), "ask for a challenge of this connection");
    other.challenge(ChallengeRequest {}).await.unwrap();
    let seen = other.renew(request.clone()).await.unwrap_err();
    assert_eq!(seen.code(), Code::PermissionDenied);
    // Nor does it certify another key on its own connection.
    let another = join::CertificateRequest::new(&identity).unwrap();
    let bent = RenewRequest {
        certificate_key: another.point,
        certificate_key_proof: another.proof,
        ..request
    };
    assert_eq!(client.renew(bent).await.unwrap_err().code(), Code::PermissionDenied);
    cluster.manager.shutdown().await;
}

/// A join under another node's session key, its certificate key properly signed.
fn join_with_key_of(victim: &Identity, thief: &Identity, name: &str) -> JoinRequest {
    let (request, _) = introduction(thief, name).request().unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let point = key.public_key_raw().to_vec();
    JoinRequest {
        public_key: victim.public().to_vec(),
        certificate_key_proof: key.sign(&join_statement(victim.public(), &point)).unwrap(),
        certificate_key: point,
        ..request
    }
}

#[tokio::test]
async fn a_node_that_is_down_is_replaced_only_by_the_holder_of_its_key() {
    let cluster = Cluster::found().await;
    let worker = cluster.worker("n2").await;
    let (victim, thief) = (cluster.identity("n2"), cluster.identity("thief"));
    let mut client = cluster.stranger().await;
    let challenge = client.challenge(ChallengeRequest {}).await.unwrap().into_inner();
    let mut request = join_with_key_of(&victim, &thief, "n3");
    request.token_secret = cluster.token.secret_text();
    let introduction = introduction(&thief, "n3");
    introduction.answer(&challenge, &mut request).unwrap();
    let refused = client.join(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(
        refused.message(),
        "the session key is not proven to be this host's; join with the overlayd of this host"
    );
    assert_eq!(cluster.status_of(worker.node.id).await, NodeStatus::Down, "it is still there");
    let again = cluster.worker("n2").await;
    assert_ne!(again.node.id, worker.node.id, "its own host takes its place");
    assert_eq!(cluster.node_count().await, 2);
    cluster.manager.shutdown().await;
}

/// Serves a certificate that is valid in that span around now, and returns what a member says of it.
async fn said_of_validity(from: i64, to: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let at = |offset: i64| {
        let start = rcgen::date_time_ymd(1970, 1, 1);
        start + Duration::from_secs(u64::try_from(now + offset).unwrap())
    };
    let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let root = params.self_signed(&root_key).unwrap().der().clone();
    let issuer = Issuer::new(params, root_key);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new([MANAGER_NAME.to_owned()]).unwrap();
    (params.not_before, params.not_after) = (at(from), at(to));
    let certificate = params.signed_by(&key, &issuer).unwrap().der().clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let credentials = Credentials { certificate, key, roots: vec![root] };

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let config = Arc::new(tls::server_config(&credentials, &[]).unwrap());
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        drop(acceptor.accept(stream).await);
    });
    let config = Arc::new(tls::unknown_config(&credentials.roots).unwrap());
    let said = channel::to_manager(addr, config).await.unwrap_err().to_string();
    within(serving).await.unwrap();
    said.replace(&addr.to_string(), "M")
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_named() {
    assert_eq!(
        said_of_validity(1800, 7200).await,
        "the certificate of manager M is not valid yet by this host's clock; check the time on both"
    );
    assert_eq!(
        said_of_validity(-7200, -1800).await,
        "the certificate of manager M is not valid any more by this host's clock; check the time on both"
    );
}

fn epochs_of(table: &Table, peer: &Joined) -> Vec<u32> {
    let peer = table.peers.get(&peer.node.id);
    peer.map(|peer| peer.psks.iter().map(|psk| psk.epoch).collect()).unwrap_or_default()
}

#[tokio::test]
async fn when_a_node_goes_the_others_get_other_keys_and_the_former_end() {
    let cluster = Cluster::found().await;
    let [n2, n3, n4] =
        [cluster.worker("n2").await, cluster.worker("n3").await, cluster.worker("n4").await];
    cluster.network("blue").await;
    for node in [&n2, &n3, &n4] {
        cluster.endpoint(node, "blue").await;
    }
    let mut a2 = Agent::start(&cluster, &n2).await;
    let mut a3 = Agent::start(&cluster, &n3).await;
    let before = a2.until(|table| table.endpoints.len() == 3).await;
    assert_eq!(epochs_of(&before, &n3), [1]);

    join::leave(cluster.channel(&n4.credentials).await).await.unwrap();
    let after = a2.until(|table| epochs_of(table, &n3) == [2]).await;
    let other = a3.until(|table| epochs_of(table, &n2) == [2]).await;
    assert!(!after.peers.contains_key(&n4.node.id));
    let key = |table: &Table, peer: &Joined| table.peers[&peer.node.id].psks.clone();
    assert!(key(&after, &n3) == key(&other, &n2), "the pair has one key");
    assert!(key(&after, &n3)[0].key != key(&before, &n3)[0].key);

    // A manager that starts again has the same keys, and one that is not heard gets them first.
    drop((a2, a3));
    let cluster = cluster.restarted().await;
    let mut a2 = Agent::start(&cluster, &n2).await;
    let again = a2.until(|table| !table.peers.is_empty()).await;
    assert!(key(&again, &n3) == key(&after, &n3));
    drop(a2);
    cluster.manager.shutdown().await;
}

async fn rotate_root(agent: &Agent) -> RotateRootResponse {
    let mut control = ControlClient::new(agent.connected.borrow().clone().unwrap());
    within(control.rotate_root(RotateRootRequest {})).await.unwrap().into_inner()
}

/// Waits until an agent trusts the root of that digest only.
async fn until_roots(agent: &Agent, digest: &[u8]) {
    let trusts = || {
        let roots = agent.certificate.credentials().roots;
        roots.len() == 1 && tls::root_digest(&roots[0]) == digest
    };
    while !trusts() {
        tokio::task::yield_now().await;
    }
}

/// Makes and removes networks until it is told to stop; returns how many, or why one failed.
async fn write_until(stop: watch::Receiver<bool>, channel: Channel) -> Result<usize, Status> {
    let mut control = ControlClient::new(channel);
    let mut written = 0;
    while !*stop.borrow() {
        let name = format!("w{written}");
        control
            .create_network(CreateNetworkRequest { name: name.clone(), ..Default::default() })
            .await?;
        control.remove_network(RemoveNetworkRequest { reference: name }).await?;
        written += 1;
    }
    Ok(written)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_root_costs_no_stream_and_no_command() {
    let cluster = Cluster::found().await;
    let [n2, off] = [cluster.worker("n2").await, cluster.worker("off").await];
    let mut first = Agent::start(&cluster, &cluster.first).await;
    let mut agent = Agent::start(&cluster, &n2).await;
    until_status(&cluster, n2.node.id, NodeStatus::Ready).await;
    until_status(&cluster, cluster.first.node.id, NodeStatus::Ready).await;
    let (stop, stopped) = watch::channel(false);
    let writer =
        tokio::spawn(write_until(stopped, cluster.channel(&cluster.first.credentials).await));

    for rotations in 1..=2 {
        let rotated = rotate_root(&first).await;
        assert_eq!(rotated.lagging, Vec::<String>::new());
        // Agents hear that the root before is over, and have a certificate of the new one.
        for agent in [&mut first, &mut agent] {
            let renewed = within(agent.renewed.wait_for(|renewed| *renewed >= 2 * rotations));
            renewed.await.unwrap();
            within(until_roots(agent, &rotated.digest)).await;
            let credentials = agent.certificate.credentials();
            assert!(is_taken(&cluster, &credentials).await);
        }
    }
    stop.send_replace(true);
    let written = within(writer).await.unwrap().unwrap();
    assert!(written > 0, "the writer wrote nothing");
    for agent in [&first, &agent] {
        assert!(!agent.connected.has_changed().unwrap(), "the stream is the same");
    }

    // The token of the root before is of no use, and the new one is.
    let refused = cluster.join_as("n3", &cluster.token).await.err().unwrap();
    assert!(refused.message().starts_with("the token is not of the cluster at "));
    let mut control = ControlClient::new(cluster.channel(&first.certificate.credentials()).await);
    let request = JoinTokenRequest { role: Role::Worker.into(), ..Default::default() };
    let token = control.join_token(request).await.unwrap().into_inner().token;
    cluster.join_as("n3", &token.parse().unwrap()).await.unwrap();

    // A certificate under a root that was dropped is not taken. A node that was off during both
    // rotations, and trusts none but the first root, comes back all the same.
    assert!(!is_taken(&cluster, &off.credentials).await);
    let back = Agent::start(&cluster, &off).await;
    assert_eq!(back.certificate.credentials().roots, agent.certificate.credentials().roots);

    // So does a manager that starts again: it knows the root of its own node's file.
    drop((first, agent, back));
    cluster.restarted().await.manager.shutdown().await;
}

#[tokio::test]
async fn a_node_that_does_not_renew_is_named_and_holds_the_root_up() {
    let cluster = Cluster::found().await;
    let worker = cluster.worker("n2").await;
    let first = Agent::start(&cluster, &cluster.first).await;
    // A node with a stream, which takes no notice of roots.
    let stream = silent_agent(&cluster, &worker).await;
    until_status(&cluster, worker.node.id, NodeStatus::Ready).await;
    let rotated = rotate_root(&first).await;
    assert_eq!(rotated.lagging, ["n2"]);
    let mut control = ControlClient::new(first.connected.borrow().clone().unwrap());
    let refused = control.rotate_root(RotateRootRequest {}).await.unwrap_err();
    assert_eq!(
        refused.message(),
        "the root certificate is being rotated, and 1 node(s) that are ready have none under the new one yet; wait, or see 'overlayctl node ls'"
    );
    assert!(is_taken(&cluster, &worker.credentials).await, "its certificate is still good");
    // When it is gone it is not waited for.
    join::leave(cluster.channel(&worker.credentials).await).await.unwrap();
    within(until_roots(&first, &rotated.digest)).await;
    drop(stream);
    drop(first);
    cluster.manager.shutdown().await;
}
