//! What a node must not forget when its process ends, as files of the state folder: what it is a
//! member of, its certificate, the last good peer table, and a record of each endpoint. A record is
//! written before what it tells of is made, and goes after that is gone.
//!
//! ```text
//! member.json           cluster, node, manager, where it listens and takes packets
//! node.pem              certificate, trusted roots, private key
//! table.json            the last good table, with the keys of pairs
//! endpoints/ID.json     network, target, interface
//! ```
//! Each JSON file starts with a line of its format's version and the SHA-256 of the rest, so that a
//! damaged one is never half believed.

use std::{collections::BTreeMap, fmt::Write as _, fs, io::ErrorKind, net::SocketAddr, sync::Arc};

use anyhow::{Context as _, anyhow, bail};
use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{StateDir, namespace::Target};
use crate::{
    api::tls::Credentials,
    engine::membership::Table,
    io::netns::NamespaceId,
    types::{Endpoint, EndpointId, Network, Node, Revision},
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
    /// Where its manager is.
    pub manager: SocketAddr,
    /// Where its own manager listens, if it has one.
    pub listen_addr: Option<SocketAddr>,
}

/// One endpoint of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Its network.
    pub network: Network,
    /// The revision at which it was made.
    pub revision: Revision,
    /// What leads to its namespace.
    pub target: Target,
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Its device; none while it is being made.
    pub interface: Option<Interface>,
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

    /// Writes newer credentials in the place of those before.
    ///
    /// # Errors
    /// The file cannot be written; those before stay.
    pub fn put_credentials(&self, credentials: &Credentials) -> anyhow::Result<()> {
        self.state.write(CREDENTIALS, &pem_bundle(credentials))
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
    use crate::types::NodeId;

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
