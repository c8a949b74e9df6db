//! Who is believed: the cluster's root, the standing join tokens, and the keys of pairs of nodes. The secrets behind them leave this file's type sealed only. They
//! follow the state: whoever applies a change of them has them opened anew.
//!
//! ```text
//! token key      --HKDF(role, generation)------------> secret of a standing token
//! cluster secret --HKDF(cluster id, lower, higher)---> psk of a pair, one an epoch
//! ```

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use arc_swap::ArcSwap;
use aws_lc_rs::{constant_time, hkdf};
use zeroize::Zeroizing;

use super::{
    authority::Authority,
    manager_key::{ManagerKey, Purpose},
    random,
};
use crate::{
    api::{JoinToken, tls::root_digest},
    engine::cluster::{RotateRoot, Secrets},
    types::{NodeId, Psk, Role},
};

/// The cluster's secrets, and the key that opens them.
pub struct Trust {
    cluster: [u8; 16],
    key: ManagerKey,
    opened: ArcSwap<Opened>,
}

/// The secrets, opened.
struct Opened {
    authority: Arc<Authority>,
    token_key: Secret,
    /// The cluster secrets by epoch, the newest first.
    cluster_secrets: Vec<(u32, Secret)>,
}

type Secret = Zeroizing<[u8; 32]>;

impl Trust {
    /// Makes the secrets of a new cluster.
    ///
    /// # Errors
    /// The random source or the making of the root fails.
    pub fn new(cluster: [u8; 16], key: ManagerKey) -> anyhow::Result<Self> {
        let opened = Opened {
            authority: Arc::new(Authority::new()?),
            token_key: Zeroizing::new(random::bytes()?),
            cluster_secrets: vec![(FIRST_EPOCH, Zeroizing::new(random::bytes()?))],
        };
        Ok(Self { cluster, key, opened: ArcSwap::from_pointee(opened) })
    }

    /// Opens the secrets of a cluster.
    ///
    /// # Errors
    /// They are not sealed with that key.
    pub fn open(cluster: [u8; 16], secrets: &Secrets, key: ManagerKey) -> anyhow::Result<Self> {
        let opened = ArcSwap::from_pointee(Opened::open(&cluster, secrets, &key)?);
        Ok(Self { cluster, key, opened })
    }

    /// Opens the secrets as the state has them now.
    ///
    /// # Errors
    /// They are not sealed with the manager's key; those before stay.
    pub fn follow(&self, secrets: &Secrets) -> anyhow::Result<()> {
        self.opened.store(Arc::new(Opened::open(&self.cluster, secrets, &self.key)?));
        Ok(())
    }

    /// Seals the secrets for the state of a new cluster.
    ///
    /// # Errors
    /// The random source fails.
    pub fn sealed(&self) -> anyhow::Result<Secrets> {
        let opened = self.opened.load();
        let seal = |purpose, secret: &[u8]| self.key.seal(&self.cluster, purpose, secret);
        let authority = &opened.authority;
        let (epoch, secret) = opened.cluster_secrets.first().context("no cluster secret")?;
        Ok(Secrets {
            root: authority.root().to_vec(),
            root_key: seal(Purpose::RootKey, &authority.key())?,
            token_key: seal(Purpose::TokenKey, opened.token_key.as_slice())?,
            cluster_secret: seal(Purpose::ClusterSecret, secret.as_slice())?,
            epoch: *epoch,
            older: None,
            root_rotations: 0,
            former_roots: Vec::new(),
        })
    }

    /// Returns the key that opens the secrets, for another manager.
    pub fn key_bytes(&self) -> &[u8; 32] {
        self.key.bytes()
    }

    /// Draws a cluster secret, sealed.
    ///
    /// # Errors
    /// The random source fails.
    pub fn draw_secret(&self) -> anyhow::Result<Vec<u8>> {
        let secret: Secret = Zeroizing::new(random::bytes()?);
        self.key.seal(&self.cluster, Purpose::ClusterSecret, secret.as_slice())
    }

    /// Makes a root that may follow, its key sealed.
    ///
    /// # Errors
    /// The random source or a signature fails.
    pub fn draw_root(&self) -> anyhow::Result<RotateRoot> {
        let authority = self.authority();
        let next = authority.next()?;
        Ok(RotateRoot {
            rotations: authority.rotations(),
            root: next.root.to_vec(),
            root_key: self.key.seal(&self.cluster, Purpose::RootKey, &next.key)?,
            bridge: next.bridge.to_vec(),
        })
    }

    /// Returns the root as it is now.
    pub fn authority(&self) -> Arc<Authority> {
        self.opened.load().authority.clone()
    }

    /// Returns the standing token of a role: the first, or that after so many rotations.
    pub fn token(&self, role: Role, generation: u64) -> JoinToken {
        let role = match role {
            Role::Manager => b"manager".as_slice(),
            Role::Worker => b"worker".as_slice(),
        };
        let generation = generation.to_be_bytes();
        let info = [b"overlay join token 1".as_slice(), role, &generation];
        let opened = self.opened.load();
        let secret = derive(&opened.token_key, &info);
        JoinToken { digest: root_digest(opened.authority.root()), secret: Zeroizing::new(secret) }
    }

    /// Returns whose standing token has this secret, and its generation, which is `newest` of the
    /// role or one of a few before. All are compared in constant time.
    pub fn standing(&self, secret: &[u8; 16], newest: impl Fn(Role) -> u64) -> Option<(Role, u64)> {
        let mut found = None;
        for role in [Role::Worker, Role::Manager] {
            let newest = newest(role);
            for generation in newest.saturating_sub(REMEMBERED).max(1)..=newest {
                let standing = self.token(role, generation).secret;
                if constant_time::verify_slices_are_equal(standing.as_slice(), secret).is_ok() {
                    found = Some((role, generation));
                }
            }
        }
        found
    }

    /// Returns keys of nobody in the epochs of every pair's, the newest first.
    pub fn epoch_keys(&self) -> Vec<Psk> {
        let opened = self.opened.load();
        let secrets = opened.cluster_secrets.iter();
        secrets.map(|(epoch, _)| Psk { epoch: *epoch, key: [0; 32] }).collect()
    }

    /// Returns the keys of a pair of nodes, the newest epoch first.
    pub fn pair_keys(&self, a: NodeId, b: NodeId) -> Vec<Psk> {
        let (lower, higher) = (a.min(b).to_bytes(), a.max(b).to_bytes());
        let info = [b"overlay pair 1".as_slice(), &self.cluster, &lower, &higher];
        let opened = self.opened.load();
        let key =
            |(epoch, secret): &(u32, Secret)| Psk { epoch: *epoch, key: derive(secret, &info) };
        opened.cluster_secrets.iter().map(key).collect()
    }
}

impl Opened {
    fn open(cluster: &[u8; 16], secrets: &Secrets, key: &ManagerKey) -> anyhow::Result<Self> {
        let root_key = key.unseal(cluster, Purpose::RootKey, &secrets.root_key)?;
        let fixed = |purpose, sealed: &[u8]| {
            let secret = key.unseal(cluster, purpose, sealed)?;
            let secret = <[u8; 32]>::try_from(secret.as_slice());
            secret.map(Zeroizing::new).map_err(|_| anyhow!("a secret has another length"))
        };
        let newest = (secrets.epoch, &secrets.cluster_secret);
        let older = secrets.older.as_ref().map(|older| (older.epoch, &older.secret));
        let cluster_secrets = [newest].into_iter().chain(older);
        let opened = |(epoch, sealed): (u32, &Vec<u8>)| {
            anyhow::Ok((epoch, fixed(Purpose::ClusterSecret, sealed)?))
        };
        Ok(Self {
            authority: Arc::new(Authority::open(secrets, &root_key)?),
            token_key: fixed(Purpose::TokenKey, &secrets.token_key)?,
            cluster_secrets: cluster_secrets.map(opened).collect::<Result<_, _>>()?,
        })
    }
}

/// Derives `N` bytes from a secret.
fn derive<const N: usize>(secret: &[u8; 32], info: &[&[u8]]) -> [u8; N] {
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, b"overlay").extract(secret);
    let mut bytes = [0; N];
    key.expand(info, Length(N))
        .and_then(|material| material.fill(&mut bytes))
        .expect("HKDF-SHA256 gives up to 8160 bytes, and we ask for 32 at most");
    bytes
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Older tokens than these are no more than wrong: telling them apart is a kindness.
const REMEMBERED: u64 = 16;
/// Of the cluster secret.
const FIRST_EPOCH: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cluster::OlderSecret;

    fn new(cluster: u8) -> Trust {
        let folder = tempfile::tempdir().unwrap();
        Trust::new([cluster; 16], ManagerKey::create(folder.path()).unwrap()).unwrap()
    }

    #[test]
    fn tokens_tell_roles_generations_and_clusters_apart() {
        let (one, other) = (new(1), new(1));
        let (worker, manager) = (one.token(Role::Worker, 1), one.token(Role::Manager, 1));
        assert_eq!(one.token(Role::Worker, 1), worker, "a standing token stays");
        let first = |_| 1;
        assert_eq!(one.standing(&worker.secret, first), Some((Role::Worker, 1)));
        assert_eq!(one.standing(&manager.secret, first), Some((Role::Manager, 1)));
        assert_eq!(other.standing(&worker.secret, first), None);
        assert_eq!(one.standing(&[0; 16], first), None);
        assert_ne!(worker.digest, other.token(Role::Worker, 1).digest);

        let second = one.token(Role::Worker, 2).secret;
        assert_ne!(second, worker.secret);
        assert_eq!(one.standing(&second, first), None, "it is not yet");
        assert_eq!(one.standing(&worker.secret, |_| 17), Some((Role::Worker, 1)));
        assert_eq!(one.standing(&worker.secret, |_| 18), None, "it is forgotten");
    }

    #[test]
    fn both_nodes_of_a_pair_get_the_same_key_and_no_other_pair_does() {
        let trust = new(1);
        let [a, b, c] = [1, 2, 3].map(NodeId::from_u128);
        assert!(trust.pair_keys(a, b) == trust.pair_keys(b, a));
        assert!(trust.pair_keys(a, b) != trust.pair_keys(a, c));
        assert!(trust.pair_keys(a, b) != new(1).pair_keys(a, b));
    }

    #[test]
    fn during_a_rotation_a_pair_has_the_keys_of_two_epochs() {
        let trust = new(1);
        let [a, b] = [1, 2].map(NodeId::from_u128);
        let before = trust.pair_keys(a, b);
        let first = trust.sealed().unwrap();
        let older = OlderSecret { epoch: 1, secret: first.cluster_secret.clone(), since: 7 };
        let cluster_secret = trust.draw_secret().unwrap();
        let rotated = Secrets { cluster_secret, epoch: 2, older: Some(older), ..first };
        trust.follow(&rotated).unwrap();
        let both = trust.pair_keys(a, b);
        let epochs = |keys: &[Psk]| keys.iter().map(|psk| psk.epoch).collect::<Vec<_>>();
        assert_eq!(epochs(&both), [2, 1]);
        assert_eq!(epochs(&trust.epoch_keys()), [2, 1]);
        assert!(both[1] == before[0] && both[0].key != before[0].key);
        trust.follow(&Secrets { older: None, ..rotated }).unwrap();
        assert!(trust.pair_keys(a, b) == both[..1]);
        let bent = Secrets { cluster_secret: vec![0; 60], ..trust.sealed().unwrap() };
        assert!(trust.follow(&bent).is_err());
        assert!(trust.pair_keys(a, b) == both[..1], "those before stay");
    }

    #[test]
    fn secrets_that_were_sealed_are_opened_by_the_managers_key_only() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = || ManagerKey::open(folder.path()).unwrap();
        let trust = Trust::new([1; 16], ManagerKey::create(folder.path()).unwrap()).unwrap();
        let secrets = trust.sealed().unwrap();
        let again = Trust::open([1; 16], &secrets, key()).unwrap();
        let [a, b] = [1, 2].map(NodeId::from_u128);
        assert_eq!(again.authority().root(), trust.authority().root());
        assert_eq!(again.token(Role::Worker, 3), trust.token(Role::Worker, 3));
        assert!(again.pair_keys(a, b) == trust.pair_keys(a, b));
        assert!(Trust::open([2; 16], &secrets, key()).is_err(), "of another cluster");
        let other = ManagerKey::create(other.path()).unwrap();
        assert!(Trust::open([1; 16], &secrets, other).is_err(), "with another key");
        let swapped = Secrets { token_key: secrets.cluster_secret.clone(), ..secrets };
        assert!(Trust::open([1; 16], &swapped, key()).is_err(), "one for the other");
    }
}
