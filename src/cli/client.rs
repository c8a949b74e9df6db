//! The way to the node: its unix socket.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
    time::Duration,
};

use tokio::time::timeout;
use tonic::{Request, Response, Status, metadata::MetadataValue, transport::Channel};

use super::Failure;
use crate::api::{
    MAX_ANSWER_BYTES, STALE, channel,
    proto::{
        control_client::ControlClient, local_client::LocalClient, services_client::ServicesClient,
    },
};

/// Opens channels to one node.
pub struct Client {
    socket: PathBuf,
    stale: bool,
}

impl Client {
    /// Makes a client of the node that serves the socket; `stale` is whether it may read what is old.
    pub fn new(socket: PathBuf, stale: bool) -> Self {
        Self { socket, stale }
    }

    /// Makes the request of a call that reads.
    pub fn reading<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if self.stale {
            request.metadata_mut().insert(STALE, MetadataValue::from_static("1"));
        }
        request
    }

    /// Opens the node's own service.
    pub async fn local(&self) -> Result<LocalClient<Channel>, Failure> {
        let client = LocalClient::new(self.channel().await?);
        Ok(client.max_decoding_message_size(MAX_ANSWER_BYTES))
    }

    /// Opens the cluster's control service, which the node forwards.
    pub async fn control(&self) -> Result<ControlClient<Channel>, Failure> {
        let client = ControlClient::new(self.channel().await?);
        Ok(client.max_decoding_message_size(MAX_ANSWER_BYTES))
    }

    /// Opens the service for services, which the node forwards.
    pub async fn services(&self) -> Result<ServicesClient<Channel>, Failure> {
        let client = ServicesClient::new(self.channel().await?);
        Ok(client.max_decoding_message_size(MAX_ANSWER_BYTES))
    }

    async fn channel(&self) -> Result<Channel, Failure> {
        let opening = timeout(ANSWER_TIMEOUT, channel::to_node(&self.socket)).await;
        let opened = opening.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
        opened.map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &io::Error) -> Failure {
        let what = format!("open {}", self.socket.display());
        let why = match error.kind() {
            ErrorKind::NotFound => {
                "there is no such socket; start overlayd, or name its socket with --socket".into()
            }
            ErrorKind::PermissionDenied => {
                "not permitted; run as root, or as a member of the group 'overlay'".into()
            }
            ErrorKind::ConnectionRefused => {
                "nobody serves it; overlayd has ended, start it again".into()
            }
            ErrorKind::TimedOut => "overlayd does not answer; see its log".into(),
            _ => format!("{error}; see whether overlayd runs"),
        };
        Failure::new(what, why)
    }
}

/// Awaits the answer of a call.
pub async fn answer<T>(
    what: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    match timeout(ANSWER_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Failure::of(what, &status)),
        Err(_) => Err(Failure::new(what, "overlayd does not answer; see its log")),
    }
}

/// Longer than any call that goes on to a manager takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(socket: PathBuf, why: &str) {
        let failure = Client::new(socket.clone(), false).local().await.unwrap_err();
        assert_eq!(failure.to_string(), format!("open {}: {why}", socket.display()));
    }

    #[tokio::test]
    async fn a_missing_socket_is_named() {
        let folder = tempfile::tempdir().unwrap();
        check(
            folder.path().join("none.sock"),
            "there is no such socket; start overlayd, or name its socket with --socket",
        )
        .await;
    }

    #[tokio::test]
    async fn a_dead_daemons_socket_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        check(socket, "nobody serves it; overlayd has ended, start it again").await;
    }

    #[test]
    fn a_socket_that_is_not_permitted_is_named() {
        let client = Client::new("/run/x.sock".into(), false);
        let failure = client.failure(&ErrorKind::PermissionDenied.into());
        assert_eq!(
            failure.to_string(),
            "open /run/x.sock: not permitted; run as root, or as a member of the group 'overlay'"
        );
    }
}
