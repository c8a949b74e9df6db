//! The TARGET of an attachment: a network namespace, found and told apart from others.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::PathBuf};

use super::dataplane::Target;
use crate::api::proto::attach_request;

/// What tells one namespace from another while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

/// Why a target is none.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Nothing was named.
    #[error("no target is named; use netns:NAME, netns:/PATH or pid:N")]
    Missing,
    /// The name is no file name.
    #[error("'{0}' is no name of a network namespace; use netns:NAME, netns:/PATH or pid:N")]
    Name(String),
    /// Nothing is there.
    #[error("there is no network namespace {0}; 'ip netns list' lists the named ones")]
    NoNamespace(String),
    /// No such process runs.
    #[error("there is no process {0}; it may have ended")]
    NoProcess(u32),
    /// Something else is there.
    #[error("{0} is not a network namespace; use netns:NAME, netns:/PATH or pid:N")]
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

/// Reads the target of a request.
///
/// # Errors
/// It is none.
pub fn target(requested: Option<attach_request::Target>) -> Result<Target, TargetError> {
    match requested.ok_or(TargetError::Missing)? {
        attach_request::Target::Pid(pid) => Ok(Target::Pid(pid)),
        attach_request::Target::Netns(path) if path.starts_with('/') => {
            Ok(Target::Netns(PathBuf::from(path)))
        }
        attach_request::Target::Netns(name) => {
            if name.is_empty() || name.contains('/') || name == "." || name == ".." {
                return Err(TargetError::Name(name));
            }
            Ok(Target::Netns(PathBuf::from("/var/run/netns").join(name)))
        }
    }
}

/// Finds a target's namespace.
///
/// # Errors
/// It is not there, or is something else.
pub fn find(target: &Target) -> Result<NamespaceId, TargetError> {
    let path = match target {
        Target::Netns(path) => path.clone(),
        Target::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
    };
    let shown = path.display().to_string();
    let look = |path: &PathBuf| match fs::metadata(path) {
        Ok(metadata) => Ok(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(match target {
            Target::Pid(pid) => TargetError::NoProcess(*pid),
            Target::Netns(_) => TargetError::NoNamespace(shown.clone()),
        }),
        Err(error) => Err(TargetError::Unreadable { path: shown.clone(), error }),
    };
    let metadata = look(&path)?;
    // All namespaces are files of one filesystem that holds nothing else.
    let own = look(&PathBuf::from("/proc/self/ns/net"))?;
    if metadata.dev() != own.dev() {
        return Err(TargetError::Other(shown));
    }
    Ok(NamespaceId { device: metadata.dev(), inode: metadata.ino() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(requested: attach_request::Target) -> Result<NamespaceId, String> {
        target(Some(requested)).and_then(|t| find(&t)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_process_and_its_namespace_are_one_target() {
        let pid = std::process::id();
        let by_pid = check(attach_request::Target::Pid(pid)).unwrap();
        let path = format!("/proc/{pid}/ns/net");
        assert_eq!(check(attach_request::Target::Netns(path)).unwrap(), by_pid);
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
            "/dev/null is not a network namespace; use netns:NAME, netns:/PATH or pid:N"
        );
        assert_eq!(
            check(netns("../x")).unwrap_err(),
            "'../x' is no name of a network namespace; use netns:NAME, netns:/PATH or pid:N"
        );
        assert_eq!(
            target(None).unwrap_err().to_string(),
            "no target is named; use netns:NAME, netns:/PATH or pid:N"
        );
    }
}
