//! What a lab made, on disk before it is made, so that whoever comes later can end it: one line an
//! entry, only ever added to.
//!
//! ```text
//! user                      it lives inside a user namespace
//! netns ovl-lab-n1          a network namespace, its full name
//! inode 4026532201          the kernel's number of the namespace named last
//! node n1 192.0.2.1         a node and its underlay address
//! process 4711 8412345 n1   a daemon: its pid, its start time, its node
//! ```

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// The ledger of one lab.
#[derive(Debug)]
pub struct Ledger {
    /// The lab's folder: the ledger, and a folder a node.
    pub folder: PathBuf,
    lines: Vec<String>,
}

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    start: u64,
}

impl Ledger {
    /// Starts the ledger of a new lab; refuses a name that is taken.
    pub fn create(name: &str) -> anyhow::Result<Self> {
        let folder = folder_of(name)?;
        base()?;
        if let Err(error) = fs::create_dir(&folder) {
            if error.kind() == ErrorKind::AlreadyExists {
                bail!("a lab '{name}' is up; `cargo xtask lab down --name {name}` ends it");
            }
            return Err(error).with_context(|| format!("make {}", folder.display()));
        }
        Ok(Self { folder, lines: Vec::new() })
    }

    /// Reads the ledger of a lab that is up.
    pub fn open(name: &str) -> anyhow::Result<Self> {
        let folder = folder_of(name)?;
        if !folder.is_dir() {
            bail!("no lab '{name}' is up; `cargo xtask lab status` lists those that are");
        }
        owned(&folder)?;
        let path = folder.join("ledger");
        let text = match fs::read_to_string(&path) {
            // It ended before its first entry.
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text.with_context(|| format!("read {}", path.display()))?,
        };
        Ok(Self { folder, lines: text.lines().map(str::to_owned).collect() })
    }

    /// Lists the labs that are up.
    pub fn names() -> anyhow::Result<Vec<String>> {
        let Ok(entries) = fs::read_dir(folder()) else { return Ok(Vec::new()) };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        Ok(names)
    }

    /// Adds an entry.
    pub fn add(&mut self, entry: String) -> anyhow::Result<()> {
        let path = self.folder.join("ledger");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| writeln!(file, "{entry}"))
            .with_context(|| format!("write {}", path.display()))?;
        self.lines.push(entry);
        Ok(())
    }

    /// Lists the words after each entry of one kind.
    pub fn entries<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = Vec<&'a str>> + 'a {
        self.lines.iter().filter_map(move |line| {
            let mut words = line.split(' ');
            (words.next() == Some(kind)).then(|| words.collect())
        })
    }

    /// Lists the daemons with their nodes.
    pub fn processes(&self) -> Vec<(Process, String)> {
        let parse = |words: Vec<&str>| {
            let [pid, start, node] = words[..] else { return None };
            let process = Process { pid: pid.parse().ok()?, start: start.parse().ok()? };
            Some((process, node.to_owned()))
        };
        self.entries("process").filter_map(parse).collect()
    }

    /// Lists whatever else runs in the lab's namespaces: what a user left there, say.
    pub fn inhabitants(&self) -> Vec<Process> {
        let inodes = self.inodes();
        let daemons: Vec<Process> = self.processes().into_iter().map(|daemon| daemon.0).collect();
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let lives_here = |pid: &i32| {
            fs::read_link(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|link| inodes.iter().any(|inode| link.as_os_str() == inode.as_str()))
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(lives_here)
            .filter_map(Process::running)
            .filter(|process| u32::try_from(process.pid) != Ok(std::process::id()))
            .filter(|process| !daemons.contains(process))
            .collect()
    }

    /// The namespaces that are there still, as the links of their processes name them: the number of
    /// one that is gone is the next one's. Those of a user namespace are seen by its daemons alone.
    fn inodes(&self) -> Vec<String> {
        let inside = self.entries("user").next().is_some()
            && self.processes().iter().any(|daemon| daemon.0.is_running());
        let mut inodes = Vec::new();
        let mut path = PathBuf::new();
        for line in &self.lines {
            if let Some(name) = line.strip_prefix("netns ") {
                path = Path::new("/run/netns").join(name);
            } else if let Some(inode) = line.strip_prefix("inode ")
                && (inside || fs::metadata(&path).is_ok_and(|at| at.ino().to_string() == inode))
            {
                inodes.push(format!("net:[{inode}]"));
            }
        }
        inodes
    }

    /// Forgets the lab.
    pub fn remove(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.folder)
            .with_context(|| format!("remove {}", self.folder.display()))?;
        // The last lab takes the common folder with it; while another is up it is not empty.
        let _ = fs::remove_dir(folder());
        Ok(())
    }
}

impl Process {
    /// Looks a pid up.
    pub fn running(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name is in brackets and may hold anything; the fields follow the last one.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let (state, start) = (fields.first()?, fields.get(19)?);
        if matches!(*state, "Z" | "X") {
            return None;
        }
        Some(Self { pid, start: start.parse().ok()? })
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        Self::running(self.pid) == Some(*self)
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        if let (true, Some(pid)) = (self.is_running(), Pid::from_raw(self.pid)) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Its entry, for a node.
    pub fn entry(&self, node: &str) -> String {
        format!("process {} {} {node}", self.pid, self.start)
    }
}

/// Where labs are kept: short, since a socket's path has at most 107 bytes, and in view from inside
/// a user namespace that has its own `/run`.
pub fn folder() -> PathBuf {
    let own = || {
        std::env::temp_dir().join(format!("overlay-lab-{}", rustix::process::geteuid().as_raw()))
    };
    std::env::var_os("OVERLAY_LAB_DIR").map_or_else(own, PathBuf::from)
}

/// The folder of the lab of a name, which cannot lead anywhere else.
fn folder_of(name: &str) -> anyhow::Result<PathBuf> {
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        || !(1..=20).contains(&name.len())
    {
        bail!("'{name}' is no name for a lab: 1 to 20 letters, digits and '-'");
    }
    Ok(folder().join(name))
}

/// Makes the folder of all labs, and refuses one that somebody else put there.
fn base() -> anyhow::Result<()> {
    let folder = folder();
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.with_context(|| format!("make {}", folder.display()))?;
    owned(&folder)
}

fn owned(folder: &Path) -> anyhow::Result<()> {
    let seen =
        fs::symlink_metadata(folder).with_context(|| format!("look at {}", folder.display()))?;
    if !seen.is_dir() || seen.uid() != rustix::process::geteuid().as_raw() {
        bail!(
            "{} belongs to somebody else; name another folder in OVERLAY_LAB_DIR",
            folder.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_its_successor() {
        let own = Process::running(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.is_running());
        assert!(!Process { start: own.start + 1, ..own }.is_running());
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        for name in ["", ".", "..", "/tmp", "a/b", "a.b", "123456789012345678901"] {
            let error = Ledger::open(name).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("'{name}' is no name for a lab: 1 to 20 letters, digits and '-'")
            );
        }
    }

    #[test]
    fn a_namespace_that_is_gone_has_no_inhabitants() {
        let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
        let lines = ["netns ovl-gone-n1".to_owned(), format!("inode {own}")].into();
        let ledger = Ledger { folder: PathBuf::new(), lines };
        assert_eq!(ledger.inhabitants(), []);
    }

    #[test]
    fn entries_are_found_by_their_kind() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger { folder: folder.path().to_owned(), lines: Vec::new() };
        for entry in ["netns a", "node n1 192.0.2.1", "netns b", "process 1 2 n1", "process 1 x n2"]
        {
            ledger.add(entry.to_owned()).unwrap();
        }
        assert_eq!(ledger.entries("netns").collect::<Vec<_>>(), [["a"], ["b"]]);
        assert_eq!(ledger.processes(), [(Process { pid: 1, start: 2 }, "n1".to_owned())]);
        let written = fs::read_to_string(folder.path().join("ledger")).unwrap();
        assert_eq!(written.lines().count(), 5);
    }
}
