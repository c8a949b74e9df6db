//! What a task sees of the node's storage, in its own mount namespace.

use std::{fs, io, path::Path};

use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change, mount_remount,
};

use super::Definition;
use crate::types::{Mount, MountSource};

/// Mounts all of it, and the files of the task's own processes.
///
/// # Errors
/// The sentence says what is missing.
pub fn prepare(definition: &Definition) -> Result<(), String> {
    let own = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", own).map_err(|error| format!("make the task's mounts its own: {error}"))?;
    for each in &definition.spec.mounts {
        attach(each, &definition.volumes)?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None).map_err(|error| format!("mount /proc: {error}"))
}

fn attach(wanted: &Mount, volumes: &Path) -> Result<(), String> {
    let target = Path::new(&wanted.target);
    let failed = |error: io::Error| format!("mount at {}: {error}", wanted.target);
    match &wanted.source {
        MountSource::Bind(source) => {
            let source = Path::new(source);
            let is_folder = match fs::metadata(source) {
                Ok(found) => found.is_dir(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(format!(
                        "mount source {} is not there; make it on this node",
                        source.display()
                    ));
                }
                Err(error) => return Err(format!("mount source {}: {error}", source.display())),
            };
            make_target(target, is_folder).map_err(failed)?;
            bind(source, target, wanted.read_only).map_err(failed)
        }
        MountSource::Volume(name) => {
            let source = volumes.join(name.as_str());
            let made = fs::create_dir_all(&source);
            made.map_err(|error| format!("make volume {name}: {error}"))?;
            make_target(target, true).map_err(failed)?;
            bind(&source, target, wanted.read_only).map_err(failed)
        }
        MountSource::Tmpfs(bytes) => {
            make_target(target, true).map_err(failed)?;
            let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
            if wanted.read_only {
                flags |= MountFlags::RDONLY;
            }
            let size = bytes.map(|bytes| format!("size={bytes}"));
            let size = size.and_then(|size| std::ffi::CString::new(size).ok());
            mount("tmpfs", target, "tmpfs", flags, size.as_deref())
                .map_err(|error| failed(error.into()))
        }
    }
}

fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    mount_bind_recursive(source, target)?;
    if read_only {
        mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, "")?;
    }
    Ok(())
}

/// What is mounted at has to be there.
fn make_target(target: &Path, is_folder: bool) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    if is_folder {
        return fs::create_dir_all(target);
    }
    target.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::File::create(target).map(drop)
}
