//! `init`, `join`, `join-token` and `info`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    Failure, Format,
    client::{Client, answer},
    output::{self, instant, show},
};
use crate::api::{
    CERTIFICATE_LIVES, HEARTBEATS,
    proto::{
        InfoRequest, InfoResponse, InitRequest, InitResponse, JoinClusterRequest,
        JoinClusterResponse, JoinTokenRequest, JoinTokenResponse, Role,
    },
};

/// `overlayctl init`.
#[derive(Args, Debug)]
pub struct Init {
    /// Where other nodes reach this one; the node's only address unless given
    #[arg(long, value_name = "IP|IFACE[:PORT]")]
    advertise_addr: Option<String>,
    /// Where the manager listens [default: 0.0.0.0:2377]
    #[arg(long, value_name = "IP:PORT")]
    listen_addr: Option<String>,
    /// Where containers' traffic goes; the advertised address unless given
    #[arg(long, value_name = "IP|IFACE")]
    data_path_addr: Option<String>,
    /// The UDP port of containers' traffic, on every node
    #[arg(long, default_value_t = 7790, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    data_path_port: u16,
    /// Where networks' IPv4 subnets are taken from
    #[arg(long, default_value = "10.0.0.0/8", value_name = "CIDR")]
    default_addr_pool: ipnet::Ipv4Net,
    /// How long the prefixes of those subnets are
    #[arg(long, default_value_t = 24, value_name = "LENGTH")]
    default_addr_pool_mask_length: u8,
    /// How long nodes' certificates are valid before they are renewed: 1m to 90d
    #[arg(long, default_value = "30d", value_name = "DURATION", value_parser = certificate_life)]
    cert_expiry: Duration,
    /// How often nodes and managers say something to each other, which is longer above 1,000 nodes; a
    /// node is down after 3.5 times it: 500ms to 1m
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = heartbeat)]
    heartbeat: Duration,
    /// The node's name; the host's unless given
    #[arg(long)]
    name: Option<String>,
    /// Keep the cluster that this node manages, with all its data, and go on as its only manager in a
    /// new epoch: after a restore, or when the other managers are lost
    #[arg(long)]
    force_new_cluster: bool,
}

/// `overlayctl join`.
#[derive(Args, Debug)]
pub struct Join {
    /// What 'overlayctl join-token worker' or 'manager' printed on a manager
    #[arg(long)]
    token: String,
    /// A manager of the cluster
    #[arg(value_name = "HOST:PORT")]
    manager: String,
    /// Where other nodes reach this one; the address used towards the manager unless given
    #[arg(long, value_name = "IP|IFACE[:PORT]")]
    advertise_addr: Option<String>,
    /// Where this node's manager listens, if the token makes it one [default: 0.0.0.0:2377]
    #[arg(long, value_name = "IP:PORT")]
    listen_addr: Option<String>,
    /// Where containers' traffic goes; the advertised address unless given
    #[arg(long, value_name = "IP|IFACE")]
    data_path_addr: Option<String>,
    /// The node's name; the host's unless given
    #[arg(long)]
    name: Option<String>,
}

/// `overlayctl join-token`.
#[derive(Args, Debug)]
pub struct JoinToken {
    /// What the new node will be
    role: TokenRole,
    /// Make a new standing token; the one before joins no node any more, and no node is put out
    #[arg(long, conflicts_with_all = ["ttl", "uses"])]
    rotate: bool,
    /// Make a token that ends after this long, such as 1h
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    ttl: Option<Duration>,
    /// Make a token that joins this many nodes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    uses: Option<u32>,
    /// Print the token only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TokenRole {
    Worker,
    Manager,
}

impl Init {
    pub async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        if self.cert_expiry < SHORT_LIFE {
            let life = humantime::format_duration(self.cert_expiry);
            eprintln!(
                "overlayctl: warning: nodes renew their certificates every {life}; one that is cut off from the managers for longer must renew before it is heard again"
            );
        }
        let request = InitRequest {
            advertise_addr: self.advertise_addr,
            listen_addr: self.listen_addr,
            data_path_addr: self.data_path_addr,
            data_path_port: self.data_path_port.into(),
            address_pool: self.default_addr_pool.to_string(),
            address_pool_mask_length: self.default_addr_pool_mask_length.into(),
            name: self.name,
            certificate_life_s: Some(self.cert_expiry.as_secs()),
            force_new_cluster: self.force_new_cluster,
            heartbeat_ms: u64::try_from(self.heartbeat.as_millis()).ok(),
        };
        let made = answer("init", client.local().await?.init(request)).await?;
        let view = InitView::new(made)?;
        show(format, &view, || view.text())
    }
}

impl Join {
    pub async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        let what = format!("join {}", self.manager);
        let request = JoinClusterRequest {
            token: self.token,
            manager_addr: self.manager,
            advertise_addr: self.advertise_addr,
            data_path_addr: self.data_path_addr,
            name: self.name,
            listen_addr: self.listen_addr,
        };
        let joined = answer(&what, client.local().await?.join_cluster(request)).await?;
        let view = JoinView::new(joined)?;
        if let Some(why) = &view.not_reached {
            eprintln!("overlayctl: {what}: {why}");
        }
        show(format, &view, || {
            format!("This node joined the cluster as a {}, named {}.\n", view.role, view.name)
        })
    }
}

impl JoinToken {
    pub async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        let (role, name) = match self.role {
            TokenRole::Worker => (Role::Worker, "worker"),
            TokenRole::Manager => (Role::Manager, "manager"),
        };
        let request = JoinTokenRequest {
            role: role.into(),
            rotate: self.rotate,
            ttl_s: self.ttl.map(|ttl| ttl.as_secs()),
            uses: self.uses,
        };
        let token = answer("join-token", client.control().await?.join_token(request)).await?;
        let view = TokenView::new(name, token)?;
        let rotated = match self.rotate {
            true => "The token before this one joins no node any more.\n",
            false => "",
        };
        show(format, &view, || match self.quiet {
            true => format!("{}\n", view.token),
            false => format!("{rotated}{}", view.text()),
        })
    }
}

/// `overlayctl info`.
pub async fn info(client: &Client, format: Format) -> Result<(), Failure> {
    let info = answer("info", client.local().await?.info(InfoRequest {})).await?;
    let view = InfoView::new(info)?;
    show(format, &view, || view.text())
}

fn join_command(token: &str, manager: &str) -> String {
    format!("overlayctl join --token {token} {manager}")
}

#[derive(Debug, Serialize)]
struct InitView {
    cluster_id: String,
    node_id: String,
    name: String,
    manager_addr: String,
    worker_token: String,
    join_command: String,
}

impl InitView {
    fn new(made: InitResponse) -> Result<Self, Failure> {
        let node = made.node.ok_or_else(|| Failure::bent("init"))?;
        Ok(Self {
            cluster_id: output::id(&made.cluster_id)?,
            node_id: output::id(&node.id)?,
            name: node.name,
            join_command: join_command(&made.worker_token, &made.manager_addr),
            manager_addr: made.manager_addr,
            worker_token: made.worker_token,
        })
    }

    fn text(&self) -> String {
        format!(
            "Cluster made: this node ({}) is its manager.\n\n\
             To add a worker to this cluster, run on it:\n\n    {}\n\n\
             To put containers on a network, on any node:\n\n    \
             overlayctl network create blue        (on the manager)\n    \
             overlayctl attach netns:NAME --network blue\n\n",
            self.name, self.join_command
        )
    }
}

#[derive(Debug, Serialize)]
struct JoinView {
    cluster_id: String,
    node_id: String,
    name: String,
    role: &'static str,
    not_reached: Option<String>,
}

impl JoinView {
    fn new(joined: JoinClusterResponse) -> Result<Self, Failure> {
        let node = joined.node.ok_or_else(|| Failure::bent("join"))?;
        Ok(Self {
            cluster_id: output::id(&joined.cluster_id)?,
            node_id: output::id(&node.id)?,
            role: output::role_name(node.role()).ok_or_else(|| Failure::bent("join"))?,
            name: node.name,
            not_reached: joined.not_reached,
        })
    }
}

#[derive(Debug, Serialize)]
struct TokenView {
    role: &'static str,
    token: String,
    manager_addr: String,
    command: String,
    expires_at: Option<String>,
    uses: Option<u32>,
}

impl TokenView {
    fn new(role: &'static str, token: JoinTokenResponse) -> Result<Self, Failure> {
        let command = join_command(&token.token, &token.manager_addr);
        let expires_at = token.expires_at_s.map(Duration::from_secs).map(instant).transpose()?;
        let JoinTokenResponse { token, manager_addr, expires_at_s: _, uses } = token;
        Ok(Self { role, token, manager_addr, command, expires_at, uses })
    }

    fn text(&self) -> String {
        let end = match (&self.expires_at, self.uses) {
            (None, None) => String::new(),
            (Some(at), None) => format!("It ends at {at}.\n"),
            (None, Some(uses)) => format!("It joins {uses} node(s).\n"),
            (Some(at), Some(uses)) => format!("It joins {uses} node(s), and ends at {at}.\n"),
        };
        let Self { command, role, .. } = self;
        format!("To add a {role} to this cluster, run on it:\n\n    {command}\n\n{end}")
    }
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text).ok().filter(|ttl| ttl.subsec_nanos() == 0);
    let ttl = ttl.filter(|ttl| !ttl.is_zero());
    ttl.ok_or_else(|| "use whole seconds or more, such as 30s, 1h or 7d".to_owned())
}

fn certificate_life(text: &str) -> Result<Duration, String> {
    let life = humantime::parse_duration(text).ok().filter(|life| life.subsec_nanos() == 0);
    let life = life.filter(|life| CERTIFICATE_LIVES.contains(life));
    life.ok_or_else(|| "use 1m to 90d".to_owned())
}

fn heartbeat(text: &str) -> Result<Duration, String> {
    let heartbeat =
        humantime::parse_duration(text).ok().filter(|d| d.subsec_nanos() % 1_000_000 == 0);
    let heartbeat = heartbeat.filter(|heartbeat| HEARTBEATS.contains(heartbeat));
    heartbeat.ok_or_else(|| "use 500ms to 1m".to_owned())
}

/// Below this a host that is down for a while comes back without a valid certificate.
const SHORT_LIFE: Duration = Duration::from_secs(3600);

#[derive(Debug, Serialize)]
struct InfoView {
    version: String,
    state_dir: String,
    workers: u32,
    offload: String,
    offload_broken: Vec<String>,
    public_key: String,
    cluster_id: Option<String>,
    node: Option<NodeView>,
    manager: Option<ManagerView>,
}

#[derive(Debug, Serialize)]
struct NodeView {
    id: String,
    name: String,
    role: &'static str,
    address: String,
    data_address: String,
    revision: u64,
    networks: u32,
    endpoints: u32,
    peers: u32,
}

#[derive(Debug, Serialize)]
struct ManagerView {
    address: String,
    connected: bool,
}

impl InfoView {
    fn new(info: InfoResponse) -> Result<Self, Failure> {
        let mut view = Self {
            version: info.version,
            state_dir: info.state_dir,
            workers: info.workers,
            offload: info.offload,
            offload_broken: info.offload_broken,
            public_key: info.public_key,
            cluster_id: None,
            node: None,
            manager: None,
        };
        let Some(member) = info.member else { return Ok(view) };
        let node = member.node.ok_or_else(|| Failure::bent("info"))?;
        view.cluster_id = Some(output::id(&member.cluster_id)?);
        view.node = Some(NodeView {
            id: output::id(&node.id)?,
            role: output::role_name(node.role()).ok_or_else(|| Failure::bent("info"))?,
            name: node.name,
            address: node.advertise_addr,
            data_address: node.data_addr,
            revision: member.revision,
            networks: member.networks,
            endpoints: member.endpoints,
            peers: member.peers,
        });
        view.manager =
            Some(ManagerView { address: member.manager_addr, connected: member.manager_connected });
        Ok(view)
    }

    fn text(&self) -> String {
        let mut rows = vec![("Version", self.version.clone())];
        match (&self.cluster_id, &self.node, &self.manager) {
            (Some(cluster), Some(node), Some(manager)) => {
                let connected = if manager.connected { "connected" } else { "not connected" };
                rows.extend([
                    ("Cluster", cluster.clone()),
                    ("Node", format!("{} ({})", node.name, node.id)),
                    ("Role", node.role.to_owned()),
                    ("Address", node.address.clone()),
                    ("Data address", node.data_address.clone()),
                    ("Manager", format!("{} ({connected})", manager.address)),
                    ("Revision", node.revision.to_string()),
                    ("Networks", node.networks.to_string()),
                    ("Endpoints", node.endpoints.to_string()),
                    ("Peers", node.peers.to_string()),
                ]);
            }
            (_, _, _) => rows.push(("Cluster", "none; use 'overlayctl init' or 'join'".to_owned())),
        }
        rows.extend([
            ("State folder", self.state_dir.clone()),
            ("Workers", self.workers.to_string()),
            ("Offload", self.offload.clone()),
            ("Broken", self.offload_broken.join(",")),
            ("Public key", self.public_key.clone()),
        ]);
        let line = |(name, value): (&str, String)| format!("{:<14}{value}\n", format!("{name}:"));
        rows.retain(|(name, value)| *name != "Broken" || !value.is_empty());
        rows.into_iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::proto::{MemberInfo, Node},
        cli::output::golden,
    };

    fn node() -> Node {
        Node {
            id: vec![1; 16],
            name: "n1".into(),
            role: Role::Manager.into(),
            advertise_addr: "192.0.2.1:2377".into(),
            data_addr: "192.0.2.1:7790".into(),
            ..Node::default()
        }
    }

    #[test]
    fn init_join_and_token_keep_their_json() {
        let made = InitResponse {
            cluster_id: vec![9; 16],
            node: Some(node()),
            worker_token: "OVTKN-1-digest-secret".into(),
            manager_addr: "192.0.2.1:2377".into(),
        };
        let view = InitView::new(made).unwrap();
        golden("init", &view);
        let line = "\n    overlayctl join --token OVTKN-1-digest-secret 192.0.2.1:2377\n";
        assert!(view.text().contains(line), "{}", view.text());
        let (cluster_id, node) = (vec![9; 16], Some(node()));
        let joined = JoinClusterResponse { cluster_id, node, not_reached: None };
        golden("join", &JoinView::new(joined).unwrap());
        let token = JoinTokenResponse {
            token: "OVTKN-1-digest-secret".into(),
            manager_addr: "192.0.2.1:2377".into(),
            ..JoinTokenResponse::default()
        };
        let view = TokenView::new("worker", token.clone()).unwrap();
        golden("join-token", &view);
        assert!(view.text().ends_with("2377\n\n"), "{}", view.text());
        let limited =
            JoinTokenResponse { expires_at_s: Some(1_800_000_000), uses: Some(3), ..token.clone() };
        let view = TokenView::new("worker", limited).unwrap();
        golden("join-token-limited", &view);
        let end = "\n\nIt joins 3 node(s), and ends at 2027-01-15T08:00:00.000Z.\n";
        assert!(view.text().ends_with(end), "{}", view.text());
        let bent = JoinTokenResponse { expires_at_s: Some(u64::MAX), ..token };
        assert!(TokenView::new("worker", bent).is_err());
    }

    #[test]
    fn a_tokens_life_is_whole_seconds() {
        assert_eq!(ttl("1h 30m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "1", "0s", "1500ms", "-1h", "soon"] {
            let error = ttl(bad).unwrap_err();
            assert_eq!(error, "use whole seconds or more, such as 30s, 1h or 7d", "{bad}");
        }
    }

    #[test]
    fn a_certificates_life_is_bounded() {
        assert_eq!(certificate_life("1m"), Ok(Duration::from_secs(60)));
        assert_eq!(certificate_life("90d"), Ok(Duration::from_secs(90 * 24 * 3600)));
        for bad in ["59s", "91d", "0s", "60500ms", "soon"] {
            assert_eq!(certificate_life(bad), Err("use 1m to 90d".to_owned()), "{bad}");
        }
    }

    #[test]
    fn a_heartbeat_is_bounded() {
        assert_eq!(heartbeat("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(heartbeat("1m"), Ok(Duration::from_secs(60)));
        for bad in ["499ms", "61s", "0s", "1500us", "often"] {
            assert_eq!(heartbeat(bad), Err("use 500ms to 1m".to_owned()), "{bad}");
        }
    }

    #[test]
    fn info_keeps_its_json_in_and_out_of_a_cluster() {
        let outside = InfoResponse {
            version: "0.1.0".into(),
            state_dir: "/var/lib/overlay".into(),
            workers: 2,
            offload: "tun-vnet=on".into(),
            offload_broken: vec!["tun-uso6".into()],
            public_key: "00ff".into(),
            member: None,
        };
        golden("info-outside", &InfoView::new(outside.clone()).unwrap());
        let member = MemberInfo {
            cluster_id: vec![9; 16],
            node: Some(node()),
            manager_addr: "192.0.2.1:2377".into(),
            manager_connected: true,
            revision: 12,
            networks: 1,
            endpoints: 2,
            peers: 3,
        };
        let inside = InfoResponse { member: Some(member), ..outside };
        let view = InfoView::new(inside).unwrap();
        golden("info", &view);
        assert!(
            view.text().contains("Manager:      192.0.2.1:2377 (connected)\n"),
            "{}",
            view.text()
        );
    }
}
