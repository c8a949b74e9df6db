//! Opens channels: to a manager over TLS, and to a node's own unix socket.
//!
//! A channel is one connection. When it breaks, its owner opens another: only the owner knows
//! whether to, when, and to whom.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{CertificateError, ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

use super::tls::{MANAGER_NAME, OtherRoot};

/// Why a manager was not reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing answers there.
    #[error("manager {addr} is not reachable: {error}; check that a manager is there, not a worker, and that a firewall lets TCP port {} through", addr.port())]
    Unreachable {
        /// Where it should be.
        addr: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// It has another root than the token names.
    #[error(
        "the token is not of the cluster at {addr}; take a token from that cluster with 'overlayctl join-token worker'"
    )]
    OtherCluster {
        /// Who was asked.
        addr: SocketAddr,
    },
    /// Its certificate is not valid at this time.
    #[error(
        "the certificate of manager {addr} is {problem} by this host's clock; check the time on both"
    )]
    OtherTime {
        /// Who was asked.
        addr: SocketAddr,
        /// What it is not.
        problem: &'static str,
    },
    /// Both ends do not trust each other.
    #[error("{addr} is not a manager of this cluster: {error}; check the address")]
    NotTrusted {
        /// Who was asked.
        addr: SocketAddr,
        /// What TLS says.
        error: io::Error,
    },
    /// The connection does not carry calls.
    #[error("talk to manager {addr}: {error}; check that both run the same version")]
    Transport {
        /// Who was asked.
        addr: SocketAddr,
        /// What went wrong.
        error: tonic::transport::Error,
    },
}

impl ConnectError {
    /// Whether the manager was there, so that it may be the caller's certificate that is wrong.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Unreachable { .. } => false,
            Self::OtherCluster { .. }
            | Self::OtherTime { .. }
            | Self::NotTrusted { .. }
            | Self::Transport { .. } => true,
        }
    }
}

/// Opens a channel to a manager.
///
/// # Errors
/// It is not reachable, or not to be trusted.
pub async fn to_manager(
    addr: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<Channel, ConnectError> {
    let late = |limit: Duration| {
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"))
    };
    let unreachable = |error| ConnectError::Unreachable { addr, error };
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(addr)).await;
    let stream = connected.map_err(|_| unreachable(late(CONNECT_TIMEOUT)))?.map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    let name = ServerName::try_from(MANAGER_NAME)
        .map_err(|error| ConnectError::NotTrusted { addr, error: io::Error::other(error) })?;
    let handshake = TlsConnector::from(config).connect(name, stream);
    let stream = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Err(_) => return Err(unreachable(late(HANDSHAKE_TIMEOUT))),
        Ok(Err(error)) => return Err(distrust(addr, error)),
        Ok(Ok(stream)) => stream,
    };
    over(stream).await.map_err(|error| ConnectError::Transport { addr, error })
}

/// Awaits a manager's answer, no longer than one that works may take for any.
///
/// # Errors
/// The manager refuses, or does not answer.
pub async fn answer<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    let late = |_| {
        Status::deadline_exceeded(
            "the manager does not answer; see whether it runs, then try again",
        )
    };
    Ok(timeout(ANSWER_TIMEOUT, call).await.map_err(late)??.into_inner())
}

/// Opens a channel to the node that serves a unix socket.
///
/// # Errors
/// There is no socket, it is not permitted, or nobody answers.
pub async fn to_node(socket: &Path) -> io::Result<Channel> {
    let stream = UnixStream::connect(socket).await?;
    over(stream).await.map_err(io::Error::other)
}

fn distrust(addr: SocketAddr, error: io::Error) -> ConnectError {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(tls) if OtherRoot::is_in(tls) => ConnectError::OtherCluster { addr },
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => ConnectError::OtherTime { addr, problem: "not valid yet" },
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => ConnectError::OtherTime { addr, problem: "not valid any more" },
        Some(_) | None => ConnectError::NotTrusted { addr, error },
    }
}

/// Speaks HTTP/2 over a stream that is open already; there is no second one.
async fn over<S>(stream: S) -> Result<Channel, tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take();
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    // The name goes into every request's authority and into nothing else.
    Endpoint::from_static("http://overlay.internal").connect_with_connector(connector).await
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than a manager to which all its nodes come back at once has one of them wait for its turn:
/// who gives up before has cost it a handshake for nothing, and stands at the end again.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// A manager ends a call after 10 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(11);
