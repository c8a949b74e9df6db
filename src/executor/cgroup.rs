//! A task's limits, as control groups of version 1 or 2; none where it has none.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use crate::types::{Limits, TaskId};

/// The groups of a task, one a controller or one for all.
#[derive(Debug, Default)]
pub struct Cgroup {
    groups: BTreeSet<PathBuf>,
}

impl Cgroup {
    /// Makes the groups that limits need.
    ///
    /// # Errors
    /// The sentence says what is missing; what was made is gone again.
    pub fn create(task: TaskId, limits: &Limits) -> Result<Self, String> {
        Self::create_in(Path::new(ROOT), task, limits)
    }

    fn create_in(root: &Path, task: TaskId, limits: &Limits) -> Result<Self, String> {
        let all = Self::of(root, task, limits);
        let unified = is_unified(root);
        for (controller, files) in wanted(limits, unified) {
            let base = base(root, controller);
            let (parent, group) = (base.join(PARENT), group(root, controller, task));
            let make = || {
                fs::create_dir_all(&parent)?;
                if unified {
                    let name = format!("+{controller}");
                    fs::write(base.join("cgroup.subtree_control"), &name)?;
                    fs::write(parent.join("cgroup.subtree_control"), &name)?;
                }
                fs::create_dir_all(&group)?;
                files.iter().try_for_each(|(file, value)| fs::write(group.join(file), value))
            };
            if let Err(error) = make() {
                all.remove();
                return Err(format!(
                    "limit {controller}: control group {}: {error}; mount that controller writable on this node, or leave the limit out",
                    base.display()
                ));
            }
        }
        Ok(all)
    }

    /// The groups that were made for a task with these limits.
    pub fn existing(task: TaskId, limits: &Limits) -> Self {
        Self::of(Path::new(ROOT), task, limits)
    }

    fn of(root: &Path, task: TaskId, limits: &Limits) -> Self {
        let wanted = wanted(limits, is_unified(root)).into_iter();
        let groups: BTreeSet<PathBuf> =
            wanted.map(|(controller, _)| group(root, controller, task)).collect();
        Self { groups }
    }

    /// Has the calling process, and what it starts, be in them.
    ///
    /// # Errors
    /// They are gone, or full.
    pub fn join(&self) -> io::Result<()> {
        self.groups.iter().try_for_each(|group| fs::write(group.join("cgroup.procs"), "0"))
    }

    /// Whether a process was killed because memory ran out in it.
    pub fn ran_out_of_memory(&self) -> bool {
        let counts = |file: &str, key: &str| {
            let texts =
                self.groups.iter().filter_map(|group| fs::read_to_string(group.join(file)).ok());
            let mut lines =
                texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
            lines.any(|line| line.strip_prefix(key).is_some_and(|count| count.trim() != "0"))
        };
        counts("memory.events", "oom_kill ") || counts("memory.oom_control", "oom_kill ")
    }

    /// Removes them; nothing is in them any more.
    pub fn remove(&self) {
        for group in &self.groups {
            // One that is not empty after all stays to be seen.
            let _ = fs::remove_dir(group);
        }
    }
}

/// Whether there is one hierarchy for all controllers.
fn is_unified(root: &Path) -> bool {
    root.join("cgroup.controllers").exists()
}

/// Where groups of a controller are.
fn base(root: &Path, controller: &str) -> PathBuf {
    if is_unified(root) { root.to_owned() } else { root.join(controller) }
}

/// A task's group of a controller.
fn group(root: &Path, controller: &str, task: TaskId) -> PathBuf {
    base(root, controller).join(PARENT).join(task.to_string())
}

/// The controllers that limits need, each with what is written to which of its files.
fn wanted(limits: &Limits, unified: bool) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
    let mut wanted = Vec::new();
    if let Some(milli) = limits.cpu_milli {
        let quota = milli.saturating_mul(PERIOD_US / 1000);
        let files = match unified {
            true => vec![("cpu.max", format!("{quota} {PERIOD_US}"))],
            false => vec![
                ("cpu.cfs_period_us", PERIOD_US.to_string()),
                ("cpu.cfs_quota_us", quota.to_string()),
            ],
        };
        wanted.push(("cpu", files));
    }
    if let Some(bytes) = limits.memory_bytes {
        let file = if unified { "memory.max" } else { "memory.limit_in_bytes" };
        wanted.push(("memory", vec![(file, bytes.to_string())]));
    }
    if let Some(pids) = limits.pids {
        wanted.push(("pids", vec![("pids.max", pids.to_string())]));
    }
    wanted
}

const ROOT: &str = "/sys/fs/cgroup";
const PARENT: &str = "overlay";
/// The kernel's own.
const PERIOD_US: u64 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { cpu_milli: Some(1500), memory_bytes: Some(1 << 20), pids: Some(7) }
    }

    #[test]
    fn limits_are_written_as_either_version_has_them() {
        let root = tempfile::tempdir().unwrap();
        let task = TaskId::from_u128(1);
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        Cgroup::create_in(root.path(), task, &limits()).unwrap();
        assert_eq!(read(&format!("cpu/overlay/{task}/cpu.cfs_quota_us")), "150000");
        assert_eq!(read(&format!("memory/overlay/{task}/memory.limit_in_bytes")), "1048576");
        assert_eq!(read(&format!("pids/overlay/{task}/pids.max")), "7");

        let root = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu memory pids").unwrap();
        let made = Cgroup::create_in(root.path(), task, &limits()).unwrap();
        assert_eq!(read(&format!("overlay/{task}/cpu.max")), "150000 100000");
        assert_eq!(read(&format!("overlay/{task}/memory.max")), "1048576");
        assert_eq!(made.groups.len(), 1);
    }

    #[test]
    fn a_controller_that_is_not_there_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("memory"), "no folder").unwrap();
        let only = Limits { memory_bytes: Some(1), ..Limits::default() };
        let error = Cgroup::create_in(root.path(), TaskId::from_u128(1), &only).unwrap_err();
        let path = root.path().join("memory");
        assert_eq!(
            error,
            format!(
                "limit memory: control group {}: Not a directory (os error 20); mount that controller writable on this node, or leave the limit out",
                path.display()
            )
        );
    }
}
