//! A node's life.
//!
//! ```text
//!            init, join           the daemon ends
//! outside ----------------> member ---------------> member (on disk)
//!    ^   (one at a time)      | ^                        |
//!    '--------- leave --------' '---- it starts again ---'
//! ```
//!
//! What fails on the way in is undone: no data port stays taken, no manager runs, and no node stays
//! registered.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use ipnet::Ipv4Net;
use tokio::{
    net::{UdpSocket, lookup_host},
    sync::{Mutex, mpsc},
};
use tonic::{Code, Status};
use tracing::{info, warn};

use super::{
    Identity,
    address::{self, DataAddr},
    dataplane::{Config, Dataplane},
    docker::Docker,
    join::{self, Admitted, Introduction, Joined},
    member::{Member, Parts},
    records::{MemberRecord, Records, own_manager},
};
use crate::{
    api::{
        CERTIFICATE_LIFE, CERTIFICATE_LIVES, DEFAULT_PORT, Ending, Founded, Founding, HEARTBEAT,
        HEARTBEATS, JoinToken, Joining, Opened, Reopening, channel,
        proto::{
            self, CheckReachRequest, InitRequest, InitResponse, JoinClusterRequest,
            JoinClusterResponse, JoinTokenRequest, LeaveClusterRequest, LeaveClusterResponse,
            StartEpochRequest, attachment_client::AttachmentClient, control_client::ControlClient,
        },
        tls,
    },
    io::netlink::{self, InterfaceAddr},
    types::{EndpointId, Name, Offloads, Role},
};

/// A future of a function that the agent is given.
type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// A manager that a function starts, or why it does not.
type Starting<T> = Boxed<anyhow::Result<(T, StopManager)>>;
/// Starts a manager in this process. The agent does not know how one is made.
pub struct StartManager {
    /// Founds a cluster.
    pub found: Box<dyn Fn(Founding) -> Starting<Founded> + Send + Sync>,
    /// Joins the managers of a cluster.
    pub join: Box<dyn Fn(Joining) -> Starting<SocketAddr> + Send + Sync>,
    /// Serves the cluster of the state folder again, if the node still has a manager.
    pub open: Box<dyn Fn(Reopening) -> Boxed<anyhow::Result<Opened<StopManager>>> + Send + Sync>,
}
/// Ends that manager.
pub type StopManager = Box<dyn FnOnce(Ending) -> Boxed<()> + Send>;

/// How a node is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its state folder.
    pub state_dir: PathBuf,
    /// How many worker threads its data plane has.
    pub workers: usize,
    /// Which offloads it uses.
    pub offloads: Offloads,
    /// After how long sessions' keys are renewed.
    pub rekey_interval: Duration,
    /// The socket of its host's Docker Engine.
    pub docker_socket: PathBuf,
    /// The host's name, which the node takes unless told otherwise.
    pub hostname: String,
}

/// A node.
pub struct Node {
    /// How it is run.
    pub options: Options,
    /// Its session key.
    pub identity: Identity,
    pub(super) records: Records,
    pub(super) start_manager: StartManager,
    pub(super) life: Mutex<Life>,
}

/// What becomes of a node; a member with a manager has the way to end that.
pub(super) enum Life {
    Outside,
    Member(Arc<Member>, Option<StopManager>),
    Over,
}

impl Node {
    /// Makes a node that is no member.
    pub fn new(
        options: Options,
        identity: Identity,
        records: Records,
        start_manager: StartManager,
    ) -> Self {
        Self { options, identity, records, start_manager, life: Mutex::new(Life::Outside) }
    }

    /// Goes on as the member that the process before was, if it was one.
    ///
    /// # Errors
    /// What was kept cannot be read, or the data plane does not start.
    pub async fn resume(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut life = self.life.lock().await;
        let Some((mut record, credentials)) = self.records.member()? else { return Ok(()) };
        let stop = self.open_manager(&mut record, &credentials, false).await?;
        let (node, manager) = (record.node.clone(), record.manager);
        let data_addr = node.data_addr;
        let addresses = netlink::addresses().await?;
        let data =
            address::data_path(Some(&data_addr.ip().to_string()), data_addr.ip(), &addresses)
                .with_context(|| {
                    format!("this host no longer has {}; leave and join anew", data_addr.ip())
                })?;
        let joined = Joined { cluster: record.cluster, node, credentials };
        let parts = self.parts(joined, record, data_addr, data.mtu).await?;
        let member = Member::resume(parts).await?;
        info!(node = %member.node.name, %manager, "member as before");
        self.follow_role(&member);
        *life = Life::Member(member, stop);
        Ok(())
    }

    /// Returns the membership.
    ///
    /// # Errors
    /// The node is no member.
    pub async fn member(&self) -> Result<Arc<Member>, Status> {
        self.member_if_any().await.ok_or_else(|| {
            Status::failed_precondition(
                "this node is not a member of a cluster; make one with 'overlayctl init', or join one with 'overlayctl join'",
            )
        })
    }

    /// Returns the membership, if there is one.
    pub async fn member_if_any(&self) -> Option<Arc<Member>> {
        match &*self.life.lock().await {
            Life::Member(member, _) => Some(member.clone()),
            Life::Outside | Life::Over => None,
        }
    }

    /// Founds a cluster. Once begun it is ended, done or undone, even if nobody waits for it.
    ///
    /// # Errors
    /// It says why not; the node is as it was.
    pub async fn init(self: Arc<Self>, request: InitRequest) -> Result<InitResponse, Status> {
        let task = tokio::spawn(async move { self.init_now(request).await });
        task.await.map_err(|error| Status::internal(format!("init broke off: {error}")))?
    }

    async fn init_now(self: &Arc<Self>, request: InitRequest) -> Result<InitResponse, Status> {
        if request.force_new_cluster {
            return self.start_epoch().await;
        }
        let mut life = self.life.lock().await;
        check_outside(&life)?;
        let (founding, data) = self.founding(&request).await?;
        let data_addr = SocketAddr::new(data.ip, founding.data_port);
        let (founded, stop) = (self.start_manager.found)(founding).await.map_err(refused)?;
        let manager = own_manager(founded.listen_addr, founded.node.advertise_addr);
        let (cluster, node) = (founded.cluster, founded.node);
        let joined = Joined { cluster, node, credentials: founded.credentials };
        let response = InitResponse {
            cluster_id: cluster.to_vec(),
            node: Some((&joined.node).into()),
            worker_token: founded.worker_token.to_string(),
            manager_addr: joined.node.advertise_addr.to_string(),
        };
        let mut record = MemberRecord::new(cluster, joined.node.clone(), manager);
        record.listen_addr = Some(founded.listen_addr);
        match self.start_member(joined, record, data_addr, data.mtu).await {
            Ok(member) => {
                info!(node = %member.node.name, "cluster founded");
                self.follow_role(&member);
                *life = Life::Member(member, Some(stop));
                Ok(response)
            }
            Err(error) => {
                stop(Ending::Undone).await;
                Err(refused(error))
            }
        }
    }

    /// Goes on with the cluster that this node manages, in a new epoch: as its only manager, or as the
    /// only one that is left.
    async fn start_epoch(&self) -> Result<InitResponse, Status> {
        let member = self.manager().await?;
        let started = match member.manager.channel() {
            Ok(channel) => {
                let start = StartEpochRequest {};
                channel::answer(ControlClient::new(channel).start_epoch(start)).await.map(drop)
            }
            Err(status) => Err(status),
        };
        match started {
            // Nobody leads, or not enough hear whoever does.
            Err(status) if status.code() == Code::Unavailable => self.go_on_alone(&member).await?,
            started => started?,
        }
        let mut control = ControlClient::new(member.manager.connected().await?);
        let token = JoinTokenRequest { role: proto::Role::Worker.into(), ..Default::default() };
        let token = channel::answer(control.join_token(token)).await?;
        Ok(InitResponse {
            cluster_id: member.cluster.to_vec(),
            node: Some((&member.node).into()),
            worker_token: token.token,
            manager_addr: token.manager_addr,
        })
    }

    /// Joins a cluster. Once begun it is ended, done or undone, even if nobody waits for it.
    ///
    /// # Errors
    /// It says why not; the node is as it was.
    pub async fn join(
        self: Arc<Self>,
        request: JoinClusterRequest,
    ) -> Result<JoinClusterResponse, Status> {
        let task = tokio::spawn(async move { self.join_now(request).await });
        task.await.map_err(|error| Status::internal(format!("join broke off: {error}")))?
    }

    async fn join_now(
        self: &Arc<Self>,
        request: JoinClusterRequest,
    ) -> Result<JoinClusterResponse, Status> {
        let mut life = self.life.lock().await;
        check_outside(&life)?;
        let token: JoinToken = request
            .token
            .parse()
            .map_err(|error: crate::api::TokenError| Status::invalid_argument(error.to_string()))?;
        let manager = manager_addr(&request.manager_addr).await.map_err(bad_input)?;
        let addresses = netlink::addresses().await.map_err(refused)?;
        let listen = request.listen_addr.as_deref().map(listen_addr).transpose();
        let listen = listen.map_err(bad_input)?;
        let port = listen.map_or(DEFAULT_PORT, |listen| listen.port());
        let advertised = match &request.advertise_addr {
            Some(text) => address::advertise(Some(text), port, &addresses),
            None => towards(manager).await.map(|ip| SocketAddr::new(ip, port)),
        };
        let advertised = advertised.map_err(bad_input)?;
        let chosen = request.data_path_addr.as_deref();
        let data = address::data_path(chosen, advertised.ip(), &addresses).map_err(bad_input)?;
        let name = request.name.as_deref();
        let introduction = self.introduction(name, advertised, data, &addresses)?;
        let admitted = join::join(manager, &token, &introduction).await?;
        let credentials = admitted.joined.credentials.clone();
        let started = self.start_joined(manager, admitted, listen, data.mtu).await;
        match started {
            Ok((member, stop)) => {
                info!(node = %member.node.name, %manager, "joined");
                let not_reached = not_reached(&member).await;
                let (cluster_id, node) = (member.cluster.to_vec(), (&member.node).into());
                self.follow_role(&member);
                *life = Life::Member(member, stop);
                Ok(JoinClusterResponse { cluster_id, node: Some(node), not_reached })
            }
            Err(error) => {
                if let Err(error) = undo_join(manager, &credentials).await {
                    warn!(
                        error = format!("{error:#}"),
                        "the manager still lists this node as down"
                    );
                }
                Err(refused(error))
            }
        }
    }

    /// Starts what a node that was let in needs: its manager, if it is to have one, and the rest.
    async fn start_joined(
        &self,
        manager: SocketAddr,
        admitted: Admitted,
        listen: Option<SocketAddr>,
        underlay_mtu: u16,
    ) -> anyhow::Result<(Arc<Member>, Option<StopManager>)> {
        let Admitted { joined, manager: gift } = admitted;
        let data_addr = joined.node.data_addr;
        let mut record = MemberRecord::new(joined.cluster, joined.node.clone(), manager);
        record.listen_choice = listen;
        let stop = match gift {
            None => None,
            Some(gift) => Some(self.join_managers(&mut record, gift, false).await?),
        };
        // Its own manager may have nothing to say yet, and sends it on otherwise.
        record.managers = record.own_manager().into_iter().collect();
        match self.start_member(joined, record, data_addr, underlay_mtu).await {
            Ok(member) => Ok((member, stop)),
            Err(error) => {
                if let Some(stop) = stop {
                    stop(Ending::Undone).await;
                }
                Err(error)
            }
        }
    }

    /// Reads the files that make this node what it is, for a backup.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn backup_files(&self) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        self.records.backup_files()
    }

    /// Leaves the cluster: its containers lose their interfaces, and nothing of the membership is
    /// kept. Once begun it is ended even if nobody waits for it.
    ///
    /// # Errors
    /// It says why not; the node is as it was, or has fewer endpoints.
    pub async fn leave(
        self: Arc<Self>,
        request: LeaveClusterRequest,
    ) -> Result<LeaveClusterResponse, Status> {
        let task = tokio::spawn(async move { self.leave_now(request).await });
        task.await.map_err(|error| Status::internal(format!("leaving broke off: {error}")))?
    }

    async fn leave_now(
        &self,
        request: LeaveClusterRequest,
    ) -> Result<LeaveClusterResponse, Status> {
        let mut life = self.life.lock().await;
        let Life::Member(member, stop) = &mut *life else {
            return Err(Status::failed_precondition(
                "this node is not a member of a cluster; there is nothing to leave",
            ));
        };
        let is_manager = stop.is_some();
        if is_manager && !request.force {
            // Another one may only just have begun to lead.
            member.manager.ask(join::ask_to_leave).await?;
        }
        member.stop_tasks().await;
        member.attachments.end_all().await.map_err(refused)?;
        let told = match member.manager.channel() {
            Ok(_) => member.manager.ask(join::leave).await,
            Err(status) => Err(status),
        };
        // The last one has nobody to tell, and one that must go goes.
        let told = if is_manager && request.force { Ok(()) } else { told };
        let node = (&member.node).into();
        member.shutdown().await;
        if let Some(stop) = stop.take() {
            stop(Ending::Undone).await;
        }
        *life = Life::Outside;
        self.records.forget_member().map_err(refused)?;
        info!("left the cluster");
        Ok(LeaveClusterResponse {
            node: Some(node),
            not_told: told.err().map(|status| status.message().to_owned()),
        })
    }

    /// Ends the membership, the manager, and with them the node.
    pub async fn shutdown(&self) {
        let life = std::mem::replace(&mut *self.life.lock().await, Life::Over);
        match life {
            Life::Outside | Life::Over => {}
            Life::Member(member, stop) => {
                member.shutdown().await;
                if let Some(stop) = stop {
                    stop(Ending::Kept).await;
                }
            }
        }
    }

    async fn founding(&self, request: &InitRequest) -> Result<(Founding, DataAddr), Status> {
        let bad = |what: &str, why: String| Status::invalid_argument(format!("{what}: {why}"));
        let addresses = netlink::addresses().await.map_err(refused)?;
        let listen_port = match &request.listen_addr {
            Some(text) => listen_addr(text).map_err(bad_input)?.port(),
            None => DEFAULT_PORT,
        };
        let chosen = request.advertise_addr.as_deref();
        let advertised = address::advertise(chosen, listen_port, &addresses).map_err(bad_input)?;
        let listen_addr = match &request.listen_addr {
            Some(text) => listen_addr(text).map_err(bad_input)?,
            None => address::any(advertised, listen_port),
        };
        let chosen = request.data_path_addr.as_deref();
        let data = address::data_path(chosen, advertised.ip(), &addresses).map_err(bad_input)?;
        let data_port = u16::try_from(request.data_path_port).ok().filter(|port| *port != 0);
        let data_port = data_port.ok_or_else(|| {
            bad(
                "--data-path-port",
                format!("{} is no port; use 1 to 65535", request.data_path_port),
            )
        })?;
        let pool = &request.address_pool;
        let address_pool: Ipv4Net = pool.parse().map_err(|_| {
            bad(
                "--default-addr-pool",
                format!("'{pool}' is no IPv4 subnet; use one such as 10.0.0.0/8"),
            )
        })?;
        let length = request.address_pool_mask_length;
        let mask_length = u8::try_from(length).map_err(|_| {
            bad("--default-addr-pool-mask-length", format!("{length} is no prefix length; use 24"))
        })?;
        let certificate_life =
            request.certificate_life_s.map_or(CERTIFICATE_LIFE, Duration::from_secs);
        if !CERTIFICATE_LIVES.contains(&certificate_life) {
            return Err(bad("--cert-expiry", "use 1m to 90d".to_owned()));
        }
        let heartbeat = request.heartbeat_ms.map_or(HEARTBEAT, Duration::from_millis);
        if !HEARTBEATS.contains(&heartbeat) {
            return Err(bad("--heartbeat", "use 500ms to 1m".to_owned()));
        }
        let name = request.name.as_deref();
        let introduction = self.introduction(name, advertised, data, &addresses)?;
        let (node, certificate_key) = introduction.request().map_err(refused)?;
        let founding = Founding {
            state_dir: self.options.state_dir.clone(),
            listen_addr,
            address_pool,
            mask_length,
            data_port,
            certificate_life,
            heartbeat,
            node,
            certificate_key,
        };
        Ok((founding, data))
    }

    fn introduction(
        &self,
        name: Option<&str>,
        advertise_addr: SocketAddr,
        data: DataAddr,
        addresses: &[InterfaceAddr],
    ) -> Result<Introduction<'_>, Status> {
        let name_chosen = name.is_some();
        let text = name.unwrap_or(&self.options.hostname);
        let name: Name = text.parse().map_err(|error| {
            Status::invalid_argument(format!("'{text}' is no name for a node: {error}; use --name"))
        })?;
        Ok(Introduction {
            identity: &self.identity,
            name,
            name_chosen,
            advertise_addr,
            data_ip: data.ip,
            underlay_mtu: data.mtu,
            underlays: address::underlays(addresses),
        })
    }

    async fn start_member(
        &self,
        joined: Joined,
        record: MemberRecord,
        data_addr: SocketAddr,
        underlay_mtu: u16,
    ) -> anyhow::Result<Arc<Member>> {
        // The cluster has the node already; if this process ends now the next one goes on.
        self.records.put_member(&record, &joined.credentials)?;
        let started = match self.parts(joined, record, data_addr, underlay_mtu).await {
            Ok(parts) => Member::start(parts).await,
            Err(error) => Err(error),
        };
        if started.is_err()
            && let Err(error) = self.records.forget_member()
        {
            warn!(error = format!("{error:#}"), "the record of a membership that failed stays");
        }
        started
    }

    /// Starts the data plane of a member, and puts what belongs to it beside.
    async fn parts(
        &self,
        joined: Joined,
        record: MemberRecord,
        data_addr: SocketAddr,
        underlay_mtu: u16,
    ) -> anyhow::Result<Parts> {
        let (ended_sender, ended) = mpsc::channel::<EndpointId>(ENDED);
        let config = Config {
            node: joined.node.id,
            cluster: joined.cluster,
            private_key: *self.identity.private(),
            data_addr,
            underlay_mtu,
            workers: self.options.workers,
            offloads: self.options.offloads,
            rekey_interval: self.options.rekey_interval,
            state_dir: self.options.state_dir.clone(),
        };
        // Opens sockets and starts threads.
        let sender = ended_sender.clone();
        let dataplane =
            tokio::task::spawn_blocking(move || Dataplane::start(config, sender)).await?;
        let dataplane =
            dataplane.with_context(|| format!("start the data plane on {data_addr}"))?;
        let (ended, records) = ((ended_sender, ended), self.records.clone());
        let docker = Docker::new(self.options.docker_socket.clone());
        Ok(Parts {
            joined,
            dataplane,
            ended,
            records,
            record,
            identity: self.identity.clone(),
            state_dir: self.options.state_dir.clone(),
            docker,
        })
    }
}

impl Node {
    /// Returns the membership for a change of the cluster, which only managers' nodes take.
    ///
    /// # Errors
    /// The node is no member, or a worker.
    pub async fn manager(&self) -> Result<Arc<Member>, Status> {
        let member = self.member().await?;
        match member.manager.role() {
            Role::Manager => Ok(member),
            Role::Worker => Err(Status::permission_denied(format!(
                "this node is a worker; run this on the manager at {}",
                member.manager.addr()
            ))),
        }
    }
}

fn check_outside(life: &Life) -> Result<(), Status> {
    match life {
        Life::Outside => Ok(()),
        Life::Over => Err(Status::unavailable("this overlayd is ending; start it again")),
        Life::Member(member, _) => Err(Status::already_exists(format!(
            "this node is a member of a cluster already, as {}; use 'overlayctl leave' first",
            member.node.name
        ))),
    }
}

fn listen_addr(text: &str) -> anyhow::Result<SocketAddr> {
    let (host, port) = address::split_port(text)?;
    let ip: IpAddr = host.parse().ok().with_context(|| {
        format!("--listen-addr '{text}' is no address; use one such as 0.0.0.0:{DEFAULT_PORT}")
    })?;
    Ok(SocketAddr::new(ip, port.unwrap_or(DEFAULT_PORT)))
}

async fn manager_addr(text: &str) -> anyhow::Result<SocketAddr> {
    let (host, port) = address::split_port(text)?;
    let found = lookup_host((host, port.unwrap_or(DEFAULT_PORT))).await;
    let found = found.ok().and_then(|mut found| found.next());
    found.with_context(|| {
        format!("manager '{text}' is no address and no known name; write HOST:{DEFAULT_PORT}")
    })
}

/// The address that this host uses towards the manager. Nothing is sent.
async fn towards(manager: SocketAddr) -> anyhow::Result<IpAddr> {
    let any: SocketAddr = match manager {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let source = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(manager).await?;
        socket.local_addr()
    };
    match source.await {
        Ok(source) => Ok(source.ip()),
        Err::<SocketAddr, std::io::Error>(error) => {
            bail!("manager {manager} is not reachable: {error}; check it and this node's routes")
        }
    }
}

async fn undo_join(manager: SocketAddr, credentials: &tls::Credentials) -> anyhow::Result<()> {
    let config = Arc::new(tls::member_config(credentials)?);
    let channel = channel::to_manager(manager, config).await?;
    join::leave(channel).await.map_err(|status| anyhow::anyhow!("{}", status.message()))
}

/// Has others look for this node, and says what is to be done if none of them reaches it.
async fn not_reached(member: &Member) -> Option<String> {
    let mut client = AttachmentClient::new(member.manager.channel().ok()?);
    let checked = channel::answer(client.check_reach(CheckReachRequest {})).await.ok()?;
    (checked.witnesses > 0 && !checked.reached).then(|| {
        let addr = member.node.data_addr;
        format!(
            "no other node reaches {addr}; check --data-path-addr, and that firewalls let UDP port {} through",
            addr.port()
        )
    })
}

fn bad_input(error: anyhow::Error) -> Status {
    Status::invalid_argument(format!("{error:#}"))
}

pub(super) fn refused(error: anyhow::Error) -> Status {
    Status::failed_precondition(format!("{error:#}"))
}

/// Ends of containers not handled yet; the data plane's watcher waits when there are more.
const ENDED: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn outside_a_cluster_everything_names_the_way_in() {
        let folder = tempfile::tempdir().unwrap();
        let state = Arc::new(super::super::StateDir::open(folder.path()).unwrap());
        let identity = Identity::open(&state);
        let options = Options {
            state_dir: folder.path().to_owned(),
            workers: 1,
            offloads: Offloads::ALL,
            rekey_interval: Duration::from_secs(120),
            docker_socket: "/no/such/socket".into(),
            hostname: "n1".into(),
        };
        let start = StartManager {
            found: Box::new(|_| Box::pin(async { bail!("not asked for") })),
            join: Box::new(|_| Box::pin(async { bail!("not asked for") })),
            open: Box::new(|_| Box::pin(async { bail!("not asked for") })),
        };
        let node = Arc::new(Node::new(options, identity.unwrap(), Records::new(state), start));
        let sentence = "this node is not a member of a cluster; make one with 'overlayctl init', or join one with 'overlayctl join'";
        assert_eq!(node.member().await.err().unwrap().message(), sentence);
        assert_eq!(node.manager().await.err().unwrap().message(), sentence);
        let cut = JoinClusterRequest { token: "OVTKN-1-cut".into(), ..Default::default() };
        assert_eq!(
            node.clone().join(cut).await.err().unwrap().message(),
            "the token is cut or bent; copy the whole line that 'overlayctl join-token worker' prints"
        );
        node.shutdown().await;
        let late = node.join(JoinClusterRequest::default()).await.err().unwrap();
        assert_eq!(late.message(), "this overlayd is ending; start it again");
    }

    #[tokio::test]
    async fn wrong_manager_and_listen_addresses_are_named() {
        let error = manager_addr("no such host").await.unwrap_err().to_string();
        assert_eq!(
            error,
            "manager 'no such host' is no address and no known name; write HOST:2377"
        );
        assert_eq!(manager_addr("[::1]:5").await.unwrap().to_string(), "[::1]:5");
        assert_eq!(manager_addr("127.0.0.1").await.unwrap().to_string(), "127.0.0.1:2377");
        let error = listen_addr("eth0").unwrap_err().to_string();
        assert_eq!(error, "--listen-addr 'eth0' is no address; use one such as 0.0.0.0:2377");
        assert_eq!(towards("127.0.0.1:9".parse().unwrap()).await.unwrap(), Ipv4Addr::LOCALHOST);
    }
}
