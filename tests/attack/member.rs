//! A node without a data plane: the session machine and a socket. It holds a real key, shakes hands
//! as any node does, and can seal whatever it likes.

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use overlay::{
    engine::session::{Directory, Identity, Link, Output, SendKey, Sessions, Settings, public_key},
    io::clock,
    wire::{
        envelope::{DataHeader, Kind, OVERHEAD, PREFIX_LEN},
        handshake::Ciphers,
    },
};

use crate::{
    lab::{self, Host, Lab},
    victim::{CLUSTER, VICTIM_NODE, node_id, peer, private_key},
};

/// How many lanes a member states.
pub const LANES: u8 = 4;

/// The node.
pub struct Member {
    sessions: Sessions,
    directory: Arc<Directory>,
    link: Arc<Link>,
    socket: UdpSocket,
    /// The newest initiation that it sent.
    pub initiation: Vec<u8>,
}

impl Member {
    /// A node of the victim's table that sends from `address`, on the member's host.
    pub fn new(lab: &Lab, node: u16, address: SocketAddr) -> Self {
        let socket = lab.inside(Host::Member, async || Ok(UdpSocket::bind(address)?));
        socket.set_nonblocking(true).expect("a socket");
        let private = private_key(node);
        let identity =
            Identity { public: public_key(&private).expect("a key"), private: private.into() };
        let settings = Settings {
            node: node_id(node),
            cluster: CLUSTER,
            start_count: 1,
            lanes: LANES,
            // What every machine has, so that the tests can seal by hand as the session does.
            ciphers: Ciphers { aes_256_gcm: false, chacha20_poly1305: true },
            rekey_interval: std::time::Duration::from_secs(120),
        };
        let directory = Arc::new(Directory::new());
        let random = Box::new(|out: &mut [u8]| aws_lc_rs::rand::fill(out).expect("randomness"));
        let mut sessions = Sessions::new(settings, identity, directory.clone(), random);
        let victim = peer(VICTIM_NODE, lab::VICTIM);
        let link = Arc::new(Link::new(victim.id, victim.data_addr, 1));
        sessions.handle_table(vec![(victim, link.clone())], clock::now());
        Self { sessions, directory, link, socket, initiation: Vec::new() }
    }

    /// Wants a session with the victim.
    pub fn demand(&mut self) {
        self.sessions.handle_demand(node_id(VICTIM_NODE), clock::now());
        self.drive();
    }

    /// Sends what is to be sent and takes what has come.
    pub fn drive(&mut self) {
        self.sessions.handle_timeout(clock::now());
        self.transmit();
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = self.socket.recv_from(&mut buffer) {
            self.receive(&mut buffer[..len], from);
            self.transmit();
        }
    }

    fn receive(&mut self, datagram: &mut [u8], from: SocketAddr) {
        let now = clock::now();
        if Kind::of(datagram) != Ok(Kind::Data) {
            // What does not fit any more (a second answer, say) is what the machine refuses.
            let _ = self.sessions.handle_datagram(datagram, from, now);
            return;
        }
        let Ok(header) = DataHeader::parse(datagram) else { return };
        let Some(key) = self.directory.find(header.receiver) else { return };
        if key.open(header, datagram, now).is_ok() {
            self.sessions.handle_confirmed(key.peer(), key.index(), now);
        }
    }

    fn transmit(&mut self) {
        while let Some(output) = self.sessions.poll_output() {
            match output {
                Output::Transmit { to, datagram } => {
                    self.socket.send_to(&datagram, to).expect("send to the victim");
                    if Kind::of(&datagram) == Ok(Kind::Initiation) {
                        self.initiation = datagram;
                    }
                }
                Output::Ready { .. } => {}
            }
        }
    }

    /// Whether the handshake is done.
    pub fn is_up(&self) -> bool {
        self.link.send_key().is_some()
    }

    /// The key that seals for the victim.
    pub fn key(&self) -> Arc<SendKey> {
        self.link.send_key().clone().expect("the handshake is done")
    }
}

impl AsFd for Member {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Seals `inner` behind a prefix, which may be anything, under the next counter of a lane.
pub fn seal(key: &SendKey, lane: u8, prefix: [u8; PREFIX_LEN], inner: &[u8]) -> Vec<u8> {
    let now = clock::now();
    let plain = [&prefix[..], inner].concat();
    let mut datagram = vec![0; inner.len() + OVERHEAD];
    let counter = key.reserve(lane, 1, now).expect("a young key");
    key.seal(lane, counter, &plain, &mut datagram).expect("room for the seal");
    datagram
}
