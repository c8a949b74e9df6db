//! The hash of every object of a table, of which a [`Digest`] is the sum.

use aws_lc_rs::digest::{SHA256, digest};
use serde::Serialize;

use crate::types::{Digest, Endpoint, Name, Network, NodeId, NodeTask, Peer, VersionRange};

/// Hashes a network.
pub fn of_network(network: &Network) -> Digest {
    of(b'n', network)
}

/// Hashes an endpoint.
pub fn of_endpoint(endpoint: &Endpoint) -> Digest {
    of(b'e', endpoint)
}

/// Hashes a task.
pub fn of_task(task: &NodeTask) -> Digest {
    of(b't', task)
}

/// Hashes a peer, of its keys only the epochs.
pub fn of_peer(peer: &Peer) -> Digest {
    let epochs = peer.psks.iter().map(|psk| psk.epoch).collect();
    let Peer { id, name, data_addr, underlay_mtu, public_key, versions, psks: _ } = peer;
    of(b'p', &PublicPeer { id, name, data_addr, underlay_mtu, public_key, versions, epochs })
}

fn of(kind: u8, object: &impl Serialize) -> Digest {
    let mut bytes = vec![kind];
    // What fails to be written is hashed as far as it was: it can only be found to differ.
    let _ = serde_json::to_writer(&mut bytes, object);
    let hash = digest(&SHA256, &bytes);
    hash.as_ref().first_chunk().map_or_else(Digest::default, |half| Digest::from_bytes(*half))
}

#[derive(Serialize)]
struct PublicPeer<'a> {
    id: &'a NodeId,
    name: &'a Name,
    data_addr: &'a std::net::SocketAddr,
    underlay_mtu: &'a u16,
    public_key: &'a [u8; 32],
    versions: &'a VersionRange,
    epochs: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EndpointId, NetworkId};

    fn endpoint(id: u128, address: &str) -> Endpoint {
        Endpoint {
            id: EndpointId::from_u128(id),
            name: "e".parse().unwrap(),
            network: NetworkId::from_u128(1),
            node: NodeId::from_u128(1),
            addresses: vec![address.parse().unwrap()],
            aliases: Vec::new(),
        }
    }

    #[test]
    fn a_sum_forgets_order_and_nothing_else() {
        let [a, b] = [endpoint(1, "10.0.0.2/24"), endpoint(2, "10.0.0.3/24")];
        let [da, db] = [of_endpoint(&a), of_endpoint(&b)];
        let sum: Digest = [da, db].into_iter().collect();
        assert_eq!(sum, [db, da].into_iter().collect());
        let mut less = sum;
        less.remove(db);
        assert_eq!(less, da);
        assert_eq!(Digest::from_bytes(sum.to_bytes()), sum);
        assert_ne!(of_endpoint(&endpoint(1, "10.0.0.9/24")), da, "an address changed");
    }
}
