//! What a node must not forget when its process ends, as files of the state folder: what it is a
//! member of, its certificate, the last good peer table, and a record of each endpoint. A record is
//! written before what it tells of is made, and goes after that is gone.
//!
//! ```text
//! member.json           cluster, node, manager, where it listens and takes packets
//! node.pem              certificate, trusted roots, private key
//! table.json            the last good table, with the keys of pairs
//! endpoints/ID.json     network, target, device
//! ```
//! Each JSON file starts with a line of its format's version and the SHA-256 of the rest, so that a
//! damaged one is never half believed.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context as _, anyhow, bail};
use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Identity, StateDir, address, dataplane::DefaultRoute, namespace::Target};
use crate::{
    api::{backup::Sections, tls::Credentials},
    engine::membership::Table,
    io::netns::NamespaceId,
    types::{Endpoint, EndpointId, Network, Node, Position},
};

/// The records of one node.
#[derive(Clone)]
pub struct Records {
    state: Arc<StateDir>,
}

/// What a node is a member of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The cluster's identity.
    pub cluster: [u8; 16],
    /// The node as registered.
    pub node: Node,
    /// Where the manager is that took it in, or its own.
    pub manager: SocketAddr,
    /// Where all managers are.
    #[serde(default)]
    pub managers: Vec<SocketAddr>,
    /// Where its own manager listens, if it has one.
    pub listen_addr: Option<SocketAddr>,
    /// Where a manager of this node is to listen, if the operator chose that.
    #[serde(default)]
    pub listen_choice: Option<SocketAddr>,
}

/// One endpoint of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Its network.
    pub network: Network,
    /// Where the log stood when it was made, or taken in again.
    pub position: Position,
    /// What leads to its namespace.
    pub target: Target,
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Its device.
    #[serde(rename = "interface")]
    pub device: Device,
    /// Whether it is the container's way out.
    #[serde(default)]
    pub default_route: DefaultRoute,
    /// Its place among the node's attachments, which are made again in this order.
    #[serde(default)]
    pub order: u64,
}

/// Whether an endpoint has its device. In a file it is an interface, null, or the name to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Device {
    /// It is there.
    Made(Interface),
    /// Its container is stopped, and gets it when it starts.
    Stopped {
        /// The name that it had and will have.
        made_again_as: String,
    },
    /// It is being made.
    Making,
}

/// A device in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its number there.
    pub index: u32,
    /// The name that it was given.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u16,
}

impl MemberRecord {
    /// The record of a node that has joined by way of a manager, and has none of its own.
    pub fn new(cluster: [u8; 16], node: Node, manager: SocketAddr) -> Self {
        Self {
            cluster,
            node,
            manager,
            managers: Vec::new(),
            listen_addr: None,
            listen_choice: None,
        }
    }

    /// Whether it knows of managers beside its own.
    pub fn has_others(&self) -> bool {
        let own = [self.own_manager(), Some(self.node.advertise_addr)];
        let mut known = self.managers.iter().chain([&self.manager]);
        known.any(|manager| !own.contains(&Some(*manager)))
    }

    /// Returns where a manager of this node is to listen.
    pub fn will_listen(&self) -> SocketAddr {
        let advertised = self.node.advertise_addr;
        self.listen_choice.unwrap_or_else(|| address::any(advertised, advertised.port()))
    }

    /// Returns where the manager of this process is reached from it, if there is one.
    pub fn own_manager(&self) -> Option<SocketAddr> {
        self.listen_addr.map(|listen| own_manager(listen, self.node.advertise_addr))
    }
}

/// Where a manager is reached from its own process that listens at one address and says another.
pub fn own_manager(listen: SocketAddr, advertised: SocketAddr) -> SocketAddr {
    match listen.ip() {
        ip if !ip.is_unspecified() => listen,
        IpAddr::V4(_) if advertised.is_ipv6() => (Ipv4Addr::LOCALHOST, listen.port()).into(),
        IpAddr::V4(_) | IpAddr::V6(_) => SocketAddr::new(advertised.ip(), listen.port()),
    }
}

impl Records {
    /// The records in a state folder.
    pub fn new(state: Arc<StateDir>) -> Self {
        Self { state }
    }

    /// Reads what the node is a member of, if anything, and its credentials.
    ///
    /// # Errors
    /// A file is damaged, or one of the two is missing.
    pub fn member(&self) -> anyhow::Result<Option<(MemberRecord, Credentials)>> {
        let Some(member) = self.read::<MemberRecord>(MEMBER)? else { return Ok(None) };
        let path = self.state.path().join(CREDENTIALS);
        let advice = "restore it, or remove the state folder and join the cluster anew";
        let Some(text) = self.state.read(CREDENTIALS)? else {
            bail!("{} is missing; {advice}", path.display());
        };
        let credentials =
            credentials(&text).with_context(|| format!("{}: {advice}", path.display()))?;
        Ok(Some((member, credentials)))
    }

    /// Writes both, the credentials first: what counts is the record of membership.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn put_member(
        &self,
        member: &MemberRecord,
        credentials: &Credentials,
    ) -> anyhow::Result<()> {
        self.put_credentials(credentials)?;
        self.write(MEMBER, member)
    }

    /// Writes the record of membership in the place of the one before.
    ///
    /// # Errors
    /// The file cannot be written; the one before stays.
    pub fn put_record(&self, member: &MemberRecord) -> anyhow::Result<()> {
        self.write(MEMBER, member)
    }

    /// Writes newer credentials in the place of those before.
    ///
    /// # Errors
    /// The file cannot be written; those before stay.
    pub fn put_credentials(&self, credentials: &Credentials) -> anyhow::Result<()> {
        self.state.write(CREDENTIALS, &pem_bundle(credentials))
    }

    /// Whether the state folder still has what makes this node a member, and the records of these
    /// endpoints.
    pub fn is_intact(&self, endpoints: impl Iterator<Item = EndpointId>) -> bool {
        let there = |name: &str| self.state.path().join(name).exists();
        let own = BACKED_UP.into_iter().chain([super::dataplane::START_COUNT]);
        own.into_iter().all(there) && endpoints.into_iter().all(|id| there(&endpoint_file(id)))
    }

    /// Whether there is a table.
    pub fn has_table(&self) -> bool {
        self.state.path().join(TABLE).exists()
    }

    /// Writes the record of membership and what it needs again, into a folder that lost them.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn put_again(
        &self,
        member: &MemberRecord,
        credentials: &Credentials,
        identity: &Identity,
    ) -> anyhow::Result<()> {
        self.state.folder("")?;
        identity.put(&self.state)?;
        self.put_member(member, credentials)
    }

    /// Forgets the membership, and all that belongs to it.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn forget_member(&self) -> anyhow::Result<()> {
        for name in [MEMBER, TABLE, CREDENTIALS] {
            self.state.remove(name)?;
        }
        Ok(())
    }

    /// Reads the files that make this node what it is, for a backup.
    ///
    /// # Errors
    /// One cannot be read, or is missing.
    pub fn backup_files(&self) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let read = |name: &str| {
            let missing = || anyhow!("{} is missing", self.state.path().join(name).display());
            Ok((name.to_owned(), self.state.read(name)?.ok_or_else(missing)?))
        };
        BACKED_UP.into_iter().map(read).collect()
    }

    /// Writes the files of a backup, what makes the node a member last.
    ///
    /// # Errors
    /// The backup lacks one, the folder holds a member, or the disk does not take it.
    pub fn restore(state: &StateDir, backup: &Sections) -> anyhow::Result<()> {
        if state.read(MEMBER)?.is_some() {
            bail!(
                "{} holds a member of a cluster; use another --state-dir",
                state.path().display()
            );
        }
        for name in BACKED_UP {
            let bytes = backup.get(name).with_context(|| format!("it holds no {name}"))?;
            state.write(name, bytes)?;
        }
        Ok(())
    }

    /// Reads the last good table, if there is one.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn table(&self) -> anyhow::Result<Option<Table>> {
        self.read(TABLE)
    }

    /// Writes the last good table.
    ///
    /// # Errors
    /// The file cannot be written; the one before stays.
    pub fn put_table(&self, table: &Table) -> anyhow::Result<()> {
        self.write(TABLE, table)
    }

    /// Reads the records of the endpoints. What is damaged is left out, and returned beside.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn endpoints(
        &self,
    ) -> anyhow::Result<(BTreeMap<EndpointId, EndpointRecord>, Vec<anyhow::Error>)> {
        let folder = self.state.path().join(ENDPOINTS);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Default::default()),
            Err(error) => return Err(error).with_context(|| format!("list {}", folder.display())),
        };
        let (mut records, mut damaged) = (BTreeMap::new(), Vec::new());
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            // What was being written when the process ended stands beside.
            if !name.ends_with(".json") {
                continue;
            }
            match self.read::<EndpointRecord>(&format!("{ENDPOINTS}/{name}")) {
                Ok(Some(record)) => drop(records.insert(record.endpoint.id, record)),
                Ok(None) => {}
                Err(error) => damaged.push(error),
            }
        }
        Ok((records, damaged))
    }

    /// Writes the record of an endpoint.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put_endpoint(&self, record: &EndpointRecord) -> anyhow::Result<()> {
        self.state.folder(ENDPOINTS)?;
        self.write(&endpoint_file(record.endpoint.id), record)
    }

    /// Removes the record of an endpoint.
    ///
    /// # Errors
    /// The file stays.
    pub fn remove_endpoint(&self, endpoint: EndpointId) -> anyhow::Result<()> {
        self.state.remove(&endpoint_file(endpoint))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> anyhow::Result<Option<T>> {
        let Some(bytes) = self.state.read(name)? else { return Ok(None) };
        let path = self.state.path().join(name);
        open(&bytes).map(Some).with_context(|| path.display().to_string())
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> anyhow::Result<()> {
        self.state.write(name, &seal(value)?)
    }
}

fn endpoint_file(endpoint: EndpointId) -> String {
    format!("{ENDPOINTS}/{endpoint}.json")
}

/// Writes a value behind its line of version and digest.
fn seal<T: Serialize>(value: &T) -> anyhow::Result<Vec<u8>> {
    let body = serde_json::to_vec(value).context("write a record")?;
    let mut record = format!("{VERSION} {}\n", digest_text(&body)).into_bytes();
    record.extend(body);
    Ok(record)
}

/// Reads what [`seal`] wrote.
fn open<T: DeserializeOwned>(record: &[u8]) -> anyhow::Result<T> {
    let damaged = || anyhow!("the file is damaged; restore it from a backup, or remove it");
    let end = record.iter().position(|byte| *byte == b'\n').ok_or_else(damaged)?;
    let (line, body) = (&record[..end], &record[end + 1..]);
    let line = std::str::from_utf8(line).map_err(|_| damaged())?;
    let (version, digest) = line.split_once(' ').ok_or_else(damaged)?;
    if version != VERSION {
        bail!("the file was written by another version of overlayd (format {version}); use that");
    }
    if digest != digest_text(body) {
        return Err(damaged());
    }
    serde_json::from_slice(body).context("the file does not hold what it should")
}

fn digest_text(bytes: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn pem_bundle(credentials: &Credentials) -> Vec<u8> {
    let Credentials { certificate, key, roots } = credentials;
    let certificates = [certificate].into_iter().chain(roots);
    let mut blocks: Vec<_> =
        certificates.map(|one| pem::Pem::new(CERTIFICATE, one.to_vec())).collect();
    blocks.push(pem::Pem::new(PRIVATE_KEY, key.secret_der()));
    pem::encode_many(&blocks).into_bytes()
}

fn credentials(text: &[u8]) -> anyhow::Result<Credentials> {
    let blocks = pem::parse_many(text)?;
    match &blocks[..] {
        [certificate, roots @ .., key]
            if certificate.tag() == CERTIFICATE
                && !roots.is_empty()
                && roots.iter().all(|root| root.tag() == CERTIFICATE)
                && key.tag() == PRIVATE_KEY =>
        {
            let read = |block: &pem::Pem| CertificateDer::from(block.contents().to_vec());
            Ok(Credentials {
                certificate: read(certificate),
                key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.contents().to_vec())),
                roots: roots.iter().map(read).collect(),
            })
        }
        [..] => bail!("it does not hold a certificate, the root and a key"),
    }
}

/// In the order in which they are restored.
const BACKED_UP: [&str; 3] = [super::identity::FILE, CREDENTIALS, MEMBER];
const VERSION: &str = "1";
const MEMBER: &str = "member.json";
const CREDENTIALS: &str = "node.pem";
const TABLE: &str = "table.json";
const ENDPOINTS: &str = "endpoints";
const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_manager_is_found_behind_every_listen_address() {
        let check = |listen: &str, advertised: &str, wanted: &str| {
            let manager = own_manager(listen.parse().unwrap(), advertised.parse().unwrap());
            assert_eq!(manager.to_string(), wanted);
        };
        check("0.0.0.0:2377", "192.0.2.1:2377", "192.0.2.1:2377");
        check("[::]:2377", "[2001:db8::1]:99", "[2001:db8::1]:2377");
        check("127.0.0.1:5", "192.0.2.1:5", "127.0.0.1:5");
        check("0.0.0.0:5", "[2001:db8::1]:5", "127.0.0.1:5");
    }
    use crate::types::{Encap, NetworkId, NodeId};

    fn records() -> (tempfile::TempDir, Records) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        (folder, Records::new(Arc::new(state)))
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let (_folder, records) = records();
        assert_eq!(records.table().unwrap(), None);
        let table = Table { revision: 7, ..Table::empty(NodeId::from_u128(3)) };
        records.put_table(&table).unwrap();
        assert_eq!(records.table().unwrap(), Some(table));
        records.forget_member().unwrap();
        assert_eq!(records.table().unwrap(), None);
    }

    #[test]
    fn an_endpoint_is_read_in_every_state() {
        let (_folder, records) = records();
        let id = EndpointId::from_u128(1);
        let network = NetworkId::from_u128(2);
        let made = Interface { index: 7, name: "eth0".into(), mtu: 1436 };
        let record = EndpointRecord {
            endpoint: Endpoint {
                id,
                name: "web".parse().unwrap(),
                network,
                node: NodeId::from_u128(3),
                addresses: vec!["10.9.0.2/24".parse().unwrap()],
                aliases: Vec::new(),
            },
            network: Network {
                id: network,
                name: "blue".parse().unwrap(),
                vni: 4096.try_into().unwrap(),
                subnets: vec!["10.9.0.0/24".parse().unwrap()],
                gateways: Vec::new(),
                mtu: None,
                encap: Encap::Sealed,
                internal: false,
                labels: BTreeMap::new(),
            },
            position: Position { epoch: 1, revision: 5 },
            target: Target::Container { id: "0a1b".into(), process: 42 },
            namespace: NamespaceId::of(&fs::metadata("/proc/self/ns/net").unwrap()),
            device: Device::Making,
            default_route: DefaultRoute::Replace,
            order: 3,
        };
        let stopped = Device::Stopped { made_again_as: "eth0".into() };
        for device in [Device::Making, Device::Made(made), stopped] {
            let record = EndpointRecord { device, ..record.clone() };
            records.put_endpoint(&record).unwrap();
            let (read, damaged) = records.endpoints().unwrap();
            assert_eq!((read, damaged.len()), (BTreeMap::from([(id, record)]), 0));
        }
        records.remove_endpoint(id).unwrap();
        assert_eq!(records.endpoints().unwrap().0, BTreeMap::new());
    }

    /// Files outlive the process that wrote them.
    #[test]
    fn a_device_keeps_its_form() {
        let check = |text: &str, device: Device| {
            assert_eq!(serde_json::to_string(&device).unwrap(), text);
            assert_eq!(serde_json::from_str::<Device>(text).unwrap(), device);
        };
        let made = Interface { index: 7, name: "eth0".into(), mtu: 1436 };
        check("null", Device::Making);
        check(r#"{"index":7,"name":"eth0","mtu":1436}"#, Device::Made(made));
        check(r#"{"made_again_as":"eth1"}"#, Device::Stopped { made_again_as: "eth1".into() });
        assert!(serde_json::from_str::<Device>(r#"{"index":7}"#).is_err());
    }

    #[test]
    fn credentials_are_read_as_they_were_written() {
        let made = Credentials {
            certificate: CertificateDer::from(vec![1; 300]),
            key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(vec![2; 100])),
            roots: [3, 4].map(|byte| CertificateDer::from(vec![byte; 300])).to_vec(),
        };
        let text = pem_bundle(&made);
        let read = credentials(&text).unwrap();
        assert_eq!((read.certificate, read.roots), (made.certificate, made.roots));
        assert_eq!(read.key.secret_der(), made.key.secret_der());
        assert!(credentials(&text[..text.len() / 2]).is_err());
        assert!(credentials(b"").is_err());
    }

    /// Whatever single bit of a record flips, and wherever it is cut, it is refused whole.
    #[test]
    fn a_damaged_record_is_named_and_not_half_read() {
        let (_folder, records) = records();
        let table = Table { revision: 7, ..Table::empty(NodeId::from_u128(3)) };
        let whole = seal(&table).unwrap();
        let path = records.state.path().join(TABLE);
        for place in 0..whole.len() {
            for bit in 0..8 {
                let mut bent = whole.clone();
                bent[place] ^= 1 << bit;
                fs::write(&path, &bent).unwrap();
                let error = format!("{:#}", records.table().unwrap_err());
                assert!(error.starts_with(&path.display().to_string()), "{error}");
            }
            fs::write(&path, &whole[..place]).unwrap();
            assert!(records.table().is_err(), "cut at {place}");
        }
        let error = records.table().unwrap_err();
        let sentence = "the file is damaged; restore it from a backup, or remove it";
        assert_eq!(error.root_cause().to_string(), sentence);
    }
}
