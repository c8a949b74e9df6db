//! Tasks that are processes of the node, each in namespaces of its own under a supervisor that is the
//! first process of them. It outlives the agent, which finds it again by the task's folder:
//!
//! ```text
//! agent --Process--> tasks/ID/          supervisor (pid 1) --> command
//!   orders, reports    socket  <------->    |  mounts, cgroup, output, health
//!   what to run        task.json ------->   |
//!   how it ended       status.json <-----   |
//!   what it said       log, log.1 <------   |
//!   whether it lives   lock <------------   |
//! ```
//! The supervisor says on its socket how far the task is, to as many as listen; how it ended stands in
//! `status.json` before anybody is told.

mod cgroup;
mod command;
mod mounts;
mod output;
mod process;
mod supervisor;
mod user;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::{
    command::{Stage, exec},
    output::{Line, Stream, read_lines},
    process::{Found, Process, StartError, forget, kept},
    supervisor::supervise,
};
use crate::types::{TaskId, TaskSpec};

/// What a supervisor is to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// The task.
    pub id: TaskId,
    /// What its host is called unless the definition says otherwise.
    pub name: String,
    /// What it is.
    pub spec: TaskSpec,
    /// The folder of the node's volumes.
    pub volumes: PathBuf,
}

/// What a supervisor is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    /// Start the command.
    Start,
    /// Stop it, as its definition says.
    Stop,
}

/// The folder of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskFolder(PathBuf);

impl TaskFolder {
    /// A task's folder among those of a node's state folder.
    pub fn of(state_dir: &Path, task: TaskId) -> Self {
        Self(state_dir.join("tasks").join(task.to_string()))
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn definition(&self) -> PathBuf {
        self.0.join("task.json")
    }

    fn status(&self) -> PathBuf {
        self.0.join("status.json")
    }

    /// Locked by the supervisor for as long as it lives.
    fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    /// Returns the path of what the command said; the part before it has `.1` at its end.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }
}
