//! What a copy takes, what it refuses, and what it finds out.

use std::collections::BTreeMap;

use super::*;
use crate::types::{Desired, Encap, Name, Slot, TaskId, TaskSpec, VersionRange, Vni};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn network(id: u128) -> Network {
    Network {
        id: NetworkId::from_u128(id),
        name: name("blue"),
        vni: Vni::new(4097).unwrap(),
        subnets: vec!["10.0.0.0/24".parse().unwrap()],
        gateways: vec!["10.0.0.1".parse().unwrap()],
        mtu: None,
        encap: Encap::Sealed,
        internal: false,
        labels: BTreeMap::new(),
    }
}

fn peer(id: u128) -> Peer {
    Peer {
        id: NodeId::from_u128(id),
        name: name("n2"),
        data_addr: "192.0.2.2:7790".parse().unwrap(),
        underlay_mtu: 1500,
        public_key: [2; 32],
        versions: VersionRange { lowest: 1, highest: 1 },
        psks: Vec::new(),
    }
}

fn endpoint(id: u128, node: u128, network: u128) -> Endpoint {
    Endpoint {
        id: EndpointId::from_u128(id),
        name: name("e"),
        network: NetworkId::from_u128(network),
        node: NodeId::from_u128(node),
        addresses: vec!["10.0.0.2/24".parse().unwrap()],
        aliases: Vec::new(),
    }
}

fn at(revision: u64) -> Position {
    Position { epoch: 1, revision }
}

fn whole(position: Position) -> Snapshot {
    Snapshot {
        position,
        scopes: None,
        networks: vec![network(7)],
        peers: vec![peer(2)],
        endpoints: vec![endpoint(11, 1, 7), endpoint(12, 2, 7)],
        tasks: Vec::new(),
    }
}

/// Node 1 on network 7 with an endpoint, and node 2 with one; at revision 5.
fn entered() -> Replica {
    let mut replica = Replica::new(Table::empty(NodeId::from_u128(1)));
    replica.handle_snapshot(whole(at(5))).unwrap();
    replica
}

#[test]
fn tasks_come_go_further_and_go() {
    let task = |desired| NodeTask {
        id: TaskId::from_u128(3),
        service: "web".parse().unwrap(),
        slot: Slot::Replica(1),
        desired,
        spec: TaskSpec::default(),
        endpoints: Vec::new(),
    };
    let mut replica = entered();
    let empty = replica.digests();
    let take = |replica: &mut Replica, change| {
        let from = replica.position();
        replica.handle_delta(from, at(from.revision + 1), vec![change])
    };
    for desired in [Desired::Ready, Desired::Running] {
        take(&mut replica, Change::Task(Box::new(task(desired)))).unwrap();
        assert_eq!(replica.table().tasks[&TaskId::from_u128(3)].desired, desired);
        // It is what one has that is told all at once.
        let mut other = Replica::new(Table::empty(NodeId::from_u128(1)));
        let tasks = vec![task(desired)];
        other.handle_snapshot(Snapshot { tasks, ..whole(replica.position()) }).unwrap();
        assert_eq!(other.digests(), replica.digests());
        assert_eq!(other.table(), replica.table());
    }
    take(&mut replica, Change::TaskGone(TaskId::from_u128(3))).unwrap();
    assert_eq!(replica.digests(), empty);
    let again = take(&mut replica, Change::TaskGone(TaskId::from_u128(3)));
    assert_eq!(again, Err(TableError::UnknownTask(TaskId::from_u128(3))));
}

#[test]
fn deltas_in_order_build_the_table() {
    let mut replica = entered();
    let changes = vec![
        Change::Peer(peer(3)),
        Change::Endpoint(endpoint(13, 3, 7)),
        Change::EndpointGone(EndpointId::from_u128(12)),
        Change::PeerGone(NodeId::from_u128(2)),
    ];
    replica.handle_delta(at(5), at(9), changes).unwrap();
    let ids: Vec<u128> = replica.table().endpoints.keys().map(|id| id.as_u128()).collect();
    assert_eq!((replica.position(), ids), (at(9), vec![11, 13]));
    let fresh = Replica::new(replica.table().clone());
    assert_eq!(replica.digests(), fresh.digests(), "kept up to date is as counted anew");
    let left = vec![
        Change::EndpointGone(EndpointId::from_u128(11)),
        Change::EndpointGone(EndpointId::from_u128(13)),
        Change::PeerGone(NodeId::from_u128(3)),
        Change::NetworkGone(NetworkId::from_u128(7)),
    ];
    replica.handle_delta(at(9), at(10), left).unwrap();
    let nothing = Table { epoch: 1, revision: 10, ..Table::empty(NodeId::from_u128(1)) };
    assert_eq!(replica.table(), &nothing);
    let empty = [ScopeId::Peers, ScopeId::Tasks].map(|scope| (scope, Digest::default()));
    assert_eq!(replica.digests(), empty);
}

#[test]
fn a_delta_that_does_not_fit_is_refused_and_a_whole_snapshot_is_due() {
    let check = |from, to, changes: Vec<Change>, error| {
        let mut replica = entered();
        assert_eq!(replica.handle_delta(from, to, changes), Err(error));
        let gap = matches!(error, TableError::Gap { .. } | TableError::Older { .. });
        if !gap {
            let next = replica.handle_delta(at(5), at(6), vec![]);
            assert_eq!(next, Err(TableError::PartOfUnknown), "what is left is not gone on from");
        }
        replica.handle_snapshot(whole(at(5))).unwrap();
        assert_eq!(replica.table(), entered().table());
    };
    let held = at(5);
    check(at(4), at(6), vec![], TableError::Gap { from: at(4), held });
    check(at(6), at(7), vec![], TableError::Gap { from: at(6), held });
    check(at(5), at(4), vec![], TableError::Older { given: at(4), held });
    let other = Position { epoch: 2, revision: 6 };
    check(at(5), other, vec![], TableError::Older { given: other, held });
    let stray = TableError::StrayEndpoint(EndpointId::from_u128(13));
    check(held, at(6), vec![Change::Endpoint(endpoint(13, 3, 7))], stray);
    check(held, at(6), vec![Change::Endpoint(endpoint(13, 2, 8))], stray);
    check(held, at(6), vec![Change::EndpointGone(EndpointId::from_u128(13))], stray);
    let node = NodeId::from_u128;
    check(held, at(6), vec![Change::Peer(peer(1))], TableError::StrayPeer(node(1)));
    check(held, at(6), vec![Change::PeerGone(node(3))], TableError::StrayPeer(node(3)));
    check(held, at(6), vec![Change::PeerGone(node(2))], TableError::PeerInUse(node(2)));
    let [blue, unknown] = [7, 8].map(NetworkId::from_u128);
    check(held, at(6), vec![Change::NetworkGone(unknown)], TableError::UnknownNetwork(unknown));
    check(held, at(6), vec![Change::NetworkGone(blue)], TableError::NetworkInUse(blue));
}

#[test]
fn nothing_older_is_taken_whatever_it_is() {
    let mut replica = entered();
    let older = TableError::Older { given: at(4), held: at(5) };
    assert_eq!(replica.handle_snapshot(whole(at(4))), Err(older));
    assert_eq!(replica.handle_bookmark(at(4), &[]), Err(older));
    let epoch = Position { epoch: 0, revision: 99 };
    let older = TableError::Older { given: epoch, held: at(5) };
    assert_eq!(replica.handle_snapshot(whole(epoch)), Err(older));
    assert_eq!(replica.table(), entered().table());
    let recovered = Position { epoch: 2, revision: 1 };
    replica.handle_snapshot(whole(recovered)).unwrap();
    assert_eq!(replica.position(), recovered, "a new epoch counts anew");
}

#[test]
fn a_bookmark_finds_the_scopes_that_differ_and_a_part_puts_them_right() {
    let mut replica = entered();
    let right = replica.digests();
    assert_eq!(replica.handle_bookmark(at(5), &right), Ok(BTreeSet::new()));
    let ahead = TableError::Gap { from: at(6), held: at(5) };
    assert_eq!(replica.handle_bookmark(at(6), &right), Err(ahead), "something was lost");

    // A change was lost on the way: the address of an endpoint.
    let mut moved = endpoint(12, 2, 7);
    moved.addresses = vec!["10.0.0.9/24".parse().unwrap()];
    let mut truth = entered();
    truth.handle_delta(at(5), at(6), vec![Change::Endpoint(moved.clone())]).unwrap();
    replica.handle_delta(at(5), at(6), vec![]).unwrap();
    let blue = ScopeId::Network(NetworkId::from_u128(7));
    let differ = replica.handle_bookmark(at(6), &truth.digests()).unwrap();
    assert_eq!(differ, BTreeSet::from([blue]));
    let part = Snapshot {
        scopes: Some(differ),
        peers: Vec::new(),
        endpoints: vec![endpoint(11, 1, 7), moved],
        ..whole(at(6))
    };
    replica.handle_snapshot(part).unwrap();
    assert_eq!(replica.table(), truth.table());
    assert_eq!(replica.handle_bookmark(at(6), &truth.digests()), Ok(BTreeSet::new()));
}

#[test]
fn a_part_that_does_not_hang_together_is_refused() {
    let part = |scope| Snapshot {
        scopes: Some(BTreeSet::from([scope])),
        networks: Vec::new(),
        peers: Vec::new(),
        endpoints: Vec::new(),
        ..whole(at(5))
    };
    let mut replica = entered();
    let error = replica.handle_snapshot(part(ScopeId::Peers)).unwrap_err();
    assert_eq!(error, TableError::StrayEndpoint(EndpointId::from_u128(12)));
    assert_eq!(replica.position(), at(5), "nothing older is taken after that either");
    let unknown = replica.handle_snapshot(part(ScopeId::Network(NetworkId::from_u128(7))));
    assert_eq!(unknown, Err(TableError::PartOfUnknown));
}
