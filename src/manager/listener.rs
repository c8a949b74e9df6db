//! Takes connections: TCP, then TLS, then whose they are. What has no certificate is counted
//! against [`Admission`] for as long as it stays, and does not stay long.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::{
    admission::{Admission, Admitted},
    certificate::ListenerTls,
};
use crate::{
    api::{
        proof::{Challenge, NotProven},
        tls,
    },
    types::NodeId,
};

/// Whose connection a request came by.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its address.
    pub addr: SocketAddr,
    /// The node in its certificate, if it showed one.
    pub node: Option<NodeId>,
    /// Whether that is a manager's certificate.
    pub manages: bool,
    /// Drawn when it is asked for; it ends with the connection.
    challenge: Arc<OnceLock<Challenge>>,
}

impl Caller {
    /// Returns the connection's challenge, drawing it first if need be.
    ///
    /// # Errors
    /// The random source of the system fails.
    pub fn draw_challenge(&self) -> Result<&Challenge, NotProven> {
        match self.challenge.get() {
            Some(drawn) => Ok(drawn),
            None => {
                let drawn = Challenge::draw()?;
                Ok(self.challenge.get_or_init(|| drawn))
            }
        }
    }

    /// Returns the connection's challenge, if one was asked for.
    pub fn challenge(&self) -> Option<&Challenge> {
        self.challenge.get()
    }
}

/// The accepting task. It ends, with all unfinished handshakes, when nobody takes connections.
pub struct ListenerTask {
    listener: TcpListener,
    tls: ListenerTls,
    admission: Arc<Admission>,
    connections: mpsc::Sender<Connection>,
}

impl ListenerTask {
    /// Makes the task; finished connections go to `connections`. Each is taken with what `tls` has
    /// then.
    pub fn new(
        listener: TcpListener,
        tls: ListenerTls,
        admission: Arc<Admission>,
        connections: mpsc::Sender<Connection>,
    ) -> Self {
        Self { listener, tls, admission, connections }
    }

    /// Accepts until nobody takes connections any more.
    pub async fn run(self) {
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                () = self.connections.closed() => return,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, addr)) => self.start(stream, addr, &mut handshakes),
                    Err(error) => {
                        warn!(%error, "accepting connections fails");
                        sleep(PAUSE).await;
                    }
                },
                Some(_) = handshakes.join_next() => {}
            }
        }
    }

    fn start(&self, stream: TcpStream, addr: SocketAddr, handshakes: &mut JoinSet<()>) {
        let Some(admitted) = self.admission.admit(addr.ip()) else {
            debug!(%addr, "too many connections without a certificate");
            return;
        };
        let acceptor = TlsAcceptor::from(self.tls.config());
        let connections = self.connections.clone();
        handshakes.spawn(async move {
            let Ok(Some(turn)) = timeout(TURN_TIMEOUT, admitted.turn()).await else {
                debug!(%addr, "too many handshakes before this one");
                return;
            };
            let handshake = timeout(HANDSHAKE_TIMEOUT, handshake(stream, addr, acceptor, admitted));
            let done = handshake.await;
            drop(turn);
            match done {
                // The receiver ends with the server, and the connection with it.
                Ok(Ok(connection)) => drop(connections.send(connection).await),
                Ok(Err(error)) => debug!(%addr, %error, "handshake failed"),
                Err(_) => debug!(%addr, "handshake took too long"),
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    addr: SocketAddr,
    acceptor: TlsAcceptor,
    admitted: Admitted,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let manages = certificate.is_some_and(tls::is_managers);
    let node = match certificate {
        None => None,
        Some(certificate) => match tls::node_of(certificate) {
            Some(node) => Some(node),
            None => return Err(io::Error::other("the certificate is no node's")),
        },
    };
    let unknown = match node {
        Some(_) => None,
        None => {
            let admitted = admitted.stay();
            let _admitted = admitted.ok_or_else(|| io::Error::other("too many that join"))?;
            Some(Unknown { _admitted, deadline: Box::pin(sleep(UNKNOWN_LIFE)) })
        }
    };
    let caller = Caller { addr, node, manages, challenge: Arc::default() };
    Ok(Connection { stream, caller, unknown })
}

/// One connection, its other end known by certificate or not at all.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    unknown: Option<Unknown>,
}

/// What a connection without a certificate lives by.
struct Unknown {
    _admitted: Admitted,
    deadline: Pin<Box<Sleep>>,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(result) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            return Poll::Ready(result);
        }
        let Some(unknown) = &mut self.unknown else { return Poll::Pending };
        ready!(unknown.deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A node waits for 15 s: one whose turn comes later is soon gone.
const TURN_TIMEOUT: Duration = Duration::from_secs(13);
/// A join is two calls; whoever has not made it by then does not mean to.
const UNKNOWN_LIFE: Duration = Duration::from_secs(15);
/// Between attempts while the system gives no more descriptors.
const PAUSE: Duration = Duration::from_millis(100);
