//! The TARGET of an attachment: a network namespace, found, told apart from others, and held on to by
//! what keeps it alive: a path, a process or a container.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::docker::{Docker, DockerError};
use crate::{api::proto::attach_request, io::netns::NamespaceId};

/// What keeps a namespace alive, and leads to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// `netns:NAME` or `netns:/PATH`, as a path to the namespace.
    Netns(PathBuf),
    /// `pid:N`.
    Pid(u32),
    /// `host`: the node's own namespace.
    Host,
    /// `container:NAME`: a Docker container. It goes from namespace to namespace as it is restarted.
    Container {
        /// Its whole id, which it keeps.
        id: String,
        /// Its first process, of this run or the last.
        process: u32,
    },
}

/// Why a target is none.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Nothing was named.
    #[error("no target is named; use netns:NAME, netns:/PATH, pid:N, container:NAME or host")]
    Missing,
    /// The name is no file name.
    #[error(
        "'{0}' is no name of a network namespace; use netns:NAME, netns:/PATH, pid:N, container:NAME or host"
    )]
    Name(String),
    /// Nothing is there.
    #[error("there is no network namespace {0}; 'ip netns list' lists the named ones")]
    NoNamespace(String),
    /// No such process runs.
    #[error("there is no process {0}; it may have ended")]
    NoProcess(u32),
    /// Something else is there.
    #[error(
        "{0} is not a network namespace; use netns:NAME, netns:/PATH, pid:N, container:NAME or host"
    )]
    Other(String),
    /// It cannot be looked at.
    #[error("look at {path}: {error}; run overlayd as root")]
    Unreadable {
        /// What.
        path: String,
        /// What the system says.
        error: io::Error,
    },
    /// The container is in the node's own namespace.
    #[error("container {0} shares the network of the host; use 'attach host'")]
    SharedWithHost(String),
    /// Docker does not lead there.
    #[error(transparent)]
    Docker(#[from] DockerError),
}

impl Target {
    /// Reads the target of a request; containers are asked for.
    ///
    /// # Errors
    /// It is none.
    pub async fn of(
        requested: Option<attach_request::Target>,
        docker: &Docker,
    ) -> Result<Self, TargetError> {
        match requested.ok_or(TargetError::Missing)? {
            attach_request::Target::Pid(pid) => Ok(Self::Pid(pid)),
            attach_request::Target::Host(_) => Ok(Self::Host),
            attach_request::Target::Container(name) => {
                let (id, process) = docker.find(&name).await?;
                Ok(Self::Container { id, process })
            }
            attach_request::Target::Netns(path) if path.starts_with('/') => {
                Ok(process_of(&path).map_or_else(|| Self::Netns(PathBuf::from(path)), Self::Pid))
            }
            attach_request::Target::Netns(name) => {
                if name.is_empty() || name.contains('/') || name == "." || name == ".." {
                    return Err(TargetError::Name(name));
                }
                Ok(Self::Netns(PathBuf::from("/var/run/netns").join(name)))
            }
        }
    }

    /// Returns the path of the namespace.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Netns(path) => path.clone(),
            Self::Pid(process) | Self::Container { process, .. } => {
                format!("/proc/{process}/ns/net").into()
            }
            Self::Host => OWN.into(),
        }
    }

    /// Returns the id of the container, if it is one.
    pub fn container(&self) -> Option<&str> {
        match self {
            Self::Container { id, .. } => Some(id),
            Self::Netns(_) | Self::Pid(_) | Self::Host => None,
        }
    }

    /// Finds the namespace.
    ///
    /// # Errors
    /// It is not there, or is something else.
    pub fn find(&self) -> Result<NamespaceId, TargetError> {
        let path = self.path();
        let shown = path.display().to_string();
        let look = |path: &Path| match fs::metadata(path) {
            Ok(metadata) => Ok(NamespaceId::of(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(match self {
                Self::Pid(pid) => TargetError::NoProcess(*pid),
                Self::Container { id, .. } => DockerError::NotRunning(id.clone()).into(),
                Self::Netns(_) | Self::Host => TargetError::NoNamespace(shown.clone()),
            }),
            Err(error) => Err(TargetError::Unreadable { path: shown.clone(), error }),
        };
        let found = look(&path)?;
        let own = look(Path::new(OWN))?;
        if found.device() != own.device() {
            return Err(TargetError::Other(shown));
        }
        match self {
            Self::Container { id, .. } if found == own => {
                Err(TargetError::SharedWithHost(id.clone()))
            }
            Self::Container { .. } | Self::Netns(_) | Self::Pid(_) | Self::Host => Ok(found),
        }
    }

    /// Returns a target by which the namespace is found now: this one, or a process that is still in
    /// it. `None` if it has ended, as far as can be told. A container is in its namespace while its
    /// first process is; who else may be there is not the container.
    pub fn still(&self, namespace: NamespaceId) -> Option<Self> {
        if self.find().is_ok_and(|found| found == namespace) {
            return Some(self.clone());
        }
        match self {
            Self::Container { .. } => None,
            Self::Netns(_) | Self::Pid(_) | Self::Host => process_in(namespace).map(Self::Pid),
        }
    }
}

/// The namespace of this process's first thread, which never leaves it.
const OWN: &str = "/proc/self/ns/net";

/// The process that a path of `/proc` is of: what is watched is the process.
fn process_of(path: &str) -> Option<u32> {
    path.strip_prefix("/proc/")?.strip_suffix("/ns/net")?.parse().ok()
}

/// Finds a process in a namespace. Looks at all there are, so it is only for when the one that was
/// known has ended.
fn process_in(namespace: NamespaceId) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?;
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| {
        let entry = fs::metadata(format!("/proc/{pid}/ns/net"));
        entry.is_ok_and(|metadata| NamespaceId::of(&metadata) == namespace)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn of(requested: Option<attach_request::Target>) -> Result<Target, TargetError> {
        Target::of(requested, &Docker::new("/no/such/socket".into())).await
    }

    async fn check(requested: attach_request::Target) -> Result<NamespaceId, String> {
        let target = of(Some(requested)).await.and_then(|target| target.find());
        target.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_process_and_its_namespace_are_one_target() {
        let pid = std::process::id();
        let by_pid = check(attach_request::Target::Pid(pid)).await.unwrap();
        let path = format!("/proc/{pid}/ns/net");
        assert_eq!(check(attach_request::Target::Netns(path.clone())).await.unwrap(), by_pid);
        let target = of(Some(attach_request::Target::Netns(path))).await.unwrap();
        assert_eq!(target, Target::Pid(pid));
    }

    #[test]
    fn a_namespace_is_found_by_whoever_is_in_it() {
        let own = Target::Pid(std::process::id()).find().unwrap();
        let gone = Target::Netns("/no/such/namespace".into());
        assert!(matches!(gone.still(own), Some(Target::Pid(_))));
        let ended = NamespaceId::of(&fs::metadata("/dev/null").unwrap());
        assert_eq!(gone.still(ended), None);
    }

    /// Others may be in the namespace of a container that ended: it is not the container's any more.
    #[test]
    fn a_container_is_where_its_process_is() {
        let own = Target::Pid(std::process::id()).find().unwrap();
        let container = |process| Target::Container { id: "0a1b".into(), process };
        assert_eq!(container(u32::MAX).container(), Some("0a1b"));
        assert_eq!(container(u32::MAX).still(own), None);
        assert_eq!(
            container(u32::MAX).find().unwrap_err().to_string(),
            "container 0a1b is not running; start it first"
        );
        assert_eq!(
            container(std::process::id()).find().unwrap_err().to_string(),
            "container 0a1b shares the network of the host; use 'attach host'"
        );
    }

    #[tokio::test]
    async fn what_is_no_target_is_named() {
        let netns = |text: &str| attach_request::Target::Netns(text.to_owned());
        assert_eq!(
            check(netns("no-such-namespace")).await.unwrap_err(),
            "there is no network namespace /var/run/netns/no-such-namespace; 'ip netns list' lists the named ones"
        );
        assert_eq!(
            check(attach_request::Target::Pid(u32::MAX)).await.unwrap_err(),
            "there is no process 4294967295; it may have ended"
        );
        assert_eq!(
            check(netns("/dev/null")).await.unwrap_err(),
            "/dev/null is not a network namespace; use netns:NAME, netns:/PATH, pid:N, container:NAME or host"
        );
        assert_eq!(
            check(netns("../x")).await.unwrap_err(),
            "'../x' is no name of a network namespace; use netns:NAME, netns:/PATH, pid:N, container:NAME or host"
        );
        assert_eq!(
            of(None).await.unwrap_err().to_string(),
            "no target is named; use netns:NAME, netns:/PATH, pid:N, container:NAME or host"
        );
        let container = |name: &str| attach_request::Target::Container(name.to_owned());
        assert_eq!(
            check(container("a b")).await.unwrap_err(),
            "'a b' is no name of a container; use container:NAME or container:ID as 'docker ps' lists them"
        );
        assert_eq!(
            check(container("web")).await.unwrap_err(),
            "docker is not reachable at /no/such/socket: No such file or directory (os error 2); start it, or name its socket with --docker-socket"
        );
    }
}
