//! The TARGET of an attachment: a network namespace, found, told apart from others, and held on to by
//! what keeps it alive: a path or a process.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

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
}

/// Why a target is none.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Nothing was named.
    #[error("no target is named; use netns:NAME, netns:/PATH, pid:N or host")]
    Missing,
    /// The name is no file name.
    #[error("'{0}' is no name of a network namespace; use netns:NAME, netns:/PATH, pid:N or host")]
    Name(String),
    /// Nothing is there.
    #[error("there is no network namespace {0}; 'ip netns list' lists the named ones")]
    NoNamespace(String),
    /// No such process runs.
    #[error("there is no process {0}; it may have ended")]
    NoProcess(u32),
    /// Something else is there.
    #[error("{0} is not a network namespace; use netns:NAME, netns:/PATH, pid:N or host")]
    Other(String),
    /// It cannot be looked at.
    #[error("look at {path}: {error}; run overlayd as root")]
    Unreadable {
        /// What.
        path: String,
        /// What the system says.
        error: io::Error,
    },
}

impl Target {
    /// Reads the target of a request.
    ///
    /// # Errors
    /// It is none.
    pub fn of(requested: Option<attach_request::Target>) -> Result<Self, TargetError> {
        match requested.ok_or(TargetError::Missing)? {
            attach_request::Target::Pid(pid) => Ok(Self::Pid(pid)),
            attach_request::Target::Host(_) => Ok(Self::Host),
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
            Self::Pid(pid) => format!("/proc/{pid}/ns/net").into(),
            Self::Host => OWN.into(),
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
                Self::Netns(_) | Self::Host => TargetError::NoNamespace(shown.clone()),
            }),
            Err(error) => Err(TargetError::Unreadable { path: shown.clone(), error }),
        };
        let found = look(&path)?;
        let own = look(Path::new(OWN))?;
        if found.device() != own.device() {
            return Err(TargetError::Other(shown));
        }
        Ok(found)
    }

    /// Returns a target by which the namespace is found now: this one, or a process that is still in
    /// it. `None` if it has ended, as far as can be told.
    pub fn still(&self, namespace: NamespaceId) -> Option<Self> {
        match self.find() {
            Ok(found) if found == namespace => Some(self.clone()),
            Ok(_) | Err(_) => process_in(namespace).map(Self::Pid),
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

    fn check(requested: attach_request::Target) -> Result<NamespaceId, String> {
        Target::of(Some(requested)).and_then(|t| t.find()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_process_and_its_namespace_are_one_target() {
        let pid = std::process::id();
        let by_pid = check(attach_request::Target::Pid(pid)).unwrap();
        let path = format!("/proc/{pid}/ns/net");
        assert_eq!(check(attach_request::Target::Netns(path.clone())).unwrap(), by_pid);
        let target = Target::of(Some(attach_request::Target::Netns(path))).unwrap();
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

    #[test]
    fn what_is_no_target_is_named() {
        let netns = |text: &str| attach_request::Target::Netns(text.to_owned());
        assert_eq!(
            check(netns("no-such-namespace")).unwrap_err(),
            "there is no network namespace /var/run/netns/no-such-namespace; 'ip netns list' lists the named ones"
        );
        assert_eq!(
            check(attach_request::Target::Pid(u32::MAX)).unwrap_err(),
            "there is no process 4294967295; it may have ended"
        );
        assert_eq!(
            check(netns("/dev/null")).unwrap_err(),
            "/dev/null is not a network namespace; use netns:NAME, netns:/PATH, pid:N or host"
        );
        assert_eq!(
            check(netns("../x")).unwrap_err(),
            "'../x' is no name of a network namespace; use netns:NAME, netns:/PATH, pid:N or host"
        );
        assert_eq!(
            Target::of(None).unwrap_err().to_string(),
            "no target is named; use netns:NAME, netns:/PATH, pid:N or host"
        );
    }
}
