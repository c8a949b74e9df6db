//! The Docker Engine of this host: which process a container has, and when that changes.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use bollard::{
    API_DEFAULT_VERSION, Docker as Client,
    errors::Error,
    models::ContainerInspectResponse,
    query_parameters::{EventsOptions, InspectContainerOptions},
};
use futures_util::{Stream, StreamExt as _};
use tokio::net::UnixStream;

/// The engine behind a socket. Every question connects anew, so that it may come and go.
#[derive(Clone, Debug)]
pub struct Docker {
    socket: PathBuf,
}

/// What a container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerStatus {
    /// It runs; its first process.
    Running(u32),
    /// It does not run now.
    Stopped,
    /// It was removed.
    Gone,
}

/// Why the engine does not help.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// It does not answer.
    #[error(
        "docker is not reachable at {socket}: {error}; start it, or name its socket with --docker-socket"
    )]
    Unreachable {
        /// Where.
        socket: String,
        /// What the system says.
        error: io::Error,
    },
    /// It answers something else.
    #[error("docker at {socket}: {error}; see its log")]
    Failed {
        /// Where.
        socket: String,
        /// What it says.
        error: Error,
    },
    /// It tells nothing any more.
    #[error("docker at {0} ended")]
    Ended(String),
    /// The text is no name.
    #[error(
        "'{0}' is no name of a container; use container:NAME or container:ID as 'docker ps' lists them"
    )]
    Name(String),
    /// There is none.
    #[error("there is no container {0}; 'docker ps' lists those that run")]
    Missing(String),
    /// It has no namespace now.
    #[error("container {0} is not running; start it first")]
    NotRunning(String),
    /// It has no namespace of its own.
    #[error(
        "container {0} uses the network of the host and has none of its own; use 'attach host'"
    )]
    HostNetwork(String),
}

impl Docker {
    /// The engine at a socket, there or not.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Finds a container that can be attached: its id, and its first process.
    ///
    /// # Errors
    /// There is no such container that runs in a network namespace of its own, or no engine.
    pub async fn find(&self, name: &str) -> Result<(String, u32), DockerError> {
        check_name(name)?;
        let name = name.to_owned();
        let Some(found) = self.inspect(&name).await? else {
            return Err(DockerError::Missing(name));
        };
        let network_mode = found.host_config.as_ref().and_then(|host| host.network_mode.as_deref());
        if network_mode == Some("host") {
            return Err(DockerError::HostNetwork(name));
        }
        match (status(&found), found.id) {
            (ContainerStatus::Running(process), Some(id)) => Ok((id, process)),
            (ContainerStatus::Running(_), None) => Err(DockerError::Missing(name)),
            (ContainerStatus::Stopped | ContainerStatus::Gone, _) => {
                Err(DockerError::NotRunning(name))
            }
        }
    }

    /// Tells what the container of an id is doing.
    ///
    /// # Errors
    /// There is no engine, or it does not say.
    pub async fn status(&self, id: &str) -> Result<ContainerStatus, DockerError> {
        Ok(self.inspect(id).await?.map_or(ContainerStatus::Gone, |found| status(&found)))
    }

    /// Follows the containers: the id of each that starts, ends or is removed from now on.
    ///
    /// # Errors
    /// There is no engine.
    pub async fn changes(
        &self,
    ) -> Result<impl Stream<Item = Result<String, DockerError>> + Send + use<>, DockerError> {
        let client = self.client().await?;
        // From an instant, not from when the engine gets to it: what happens in between counts.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let options = EventsOptions {
            since: Some(format!("{}.{:09}", now.as_secs(), now.subsec_nanos())),
            until: None,
            filters: Some(HashMap::from([
                ("type".to_owned(), words(&["container"])),
                ("event".to_owned(), words(&["start", "die", "destroy"])),
            ])),
        };
        let docker = self.clone();
        let events = client.events(Some(options));
        Ok(events.filter_map(move |event| {
            let id = match event {
                Ok(event) => event.actor.and_then(|actor| actor.id).map(Ok),
                Err(error) => Some(Err(docker.failed(error))),
            };
            std::future::ready(id)
        }))
    }

    /// Returns what to say when it tells nothing any more.
    pub fn ended(&self) -> DockerError {
        DockerError::Ended(self.shown())
    }

    async fn inspect(&self, name: &str) -> Result<Option<ContainerInspectResponse>, DockerError> {
        let client = self.client().await?;
        match client.inspect_container(name, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(Some(found)),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    async fn client(&self) -> Result<Client, DockerError> {
        // The system says plainly what is wrong with a socket.
        if let Err(error) = UnixStream::connect(&self.socket).await {
            return Err(DockerError::Unreachable { socket: self.shown(), error });
        }
        let client = Client::connect_with_unix(&self.shown(), TIMEOUT_S, API_DEFAULT_VERSION);
        client.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: Error) -> DockerError {
        DockerError::Failed { socket: self.shown(), error }
    }

    fn shown(&self) -> String {
        self.socket.display().to_string()
    }
}

/// Checks a name as the engine does; ids are names too.
fn check_name(name: &str) -> Result<(), DockerError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    match name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.bytes().all(allowed) {
        true => Ok(()),
        false => Err(DockerError::Name(name.to_owned())),
    }
}

/// A container between two runs has no process, whatever else is said of it.
fn status(found: &ContainerInspectResponse) -> ContainerStatus {
    let state = found.state.as_ref();
    let running = state.and_then(|state| state.running).unwrap_or(false);
    let process = state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok());
    match process {
        Some(process) if running && process != 0 => ContainerStatus::Running(process),
        Some(_) | None => ContainerStatus::Stopped,
    }
}

/// An engine that takes longer than this for a question is as good as none.
const TIMEOUT_S: u64 = 10;

#[cfg(test)]
mod tests {
    use bollard::models::ContainerState;

    use super::*;

    #[test]
    fn names_are_checked_before_the_engine_is_asked() {
        for good in ["web", "a", "web-1.x_y", "0a1b2c"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "../version", "-web", ".", "wéb", "a/b", "a?x", "a%2f"] {
            let sentence = format!(
                "'{bad}' is no name of a container; use container:NAME or container:ID as 'docker ps' lists them"
            );
            assert_eq!(check_name(bad).unwrap_err().to_string(), sentence);
        }
    }

    #[test]
    fn only_a_container_with_a_process_runs() {
        let check = |running: Option<bool>, pid: Option<i64>, expected: ContainerStatus| {
            let state = ContainerState { running, pid, ..Default::default() };
            let found = ContainerInspectResponse { state: Some(state), ..Default::default() };
            assert_eq!(status(&found), expected);
        };
        check(Some(true), Some(42), ContainerStatus::Running(42));
        // Its restart policy lets it wait.
        check(Some(true), Some(0), ContainerStatus::Stopped);
        check(Some(false), Some(42), ContainerStatus::Stopped);
        check(None, None, ContainerStatus::Stopped);
        check(Some(true), Some(-1), ContainerStatus::Stopped);
    }

    #[tokio::test]
    async fn a_missing_engine_is_named_with_its_socket() {
        let docker = Docker::new("/no/such/socket".into());
        let sentence = "docker is not reachable at /no/such/socket: No such file or directory (os error 2); start it, or name its socket with --docker-socket";
        assert_eq!(docker.find("web").await.unwrap_err().to_string(), sentence);
        assert_eq!(docker.status("web").await.unwrap_err().to_string(), sentence);
        assert_eq!(docker.changes().await.err().unwrap().to_string(), sentence);
    }
}
