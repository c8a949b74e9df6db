//! Services as operators define them. The words are SwarmKit's; counts of zero that it gives a meaning to
//! are `None` here.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Name, NetworkId, Node, Role, ServiceId};

/// A service as the cluster's state holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its identity.
    pub id: ServiceId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// Counts its changes by operators, so that a change that was made of an older one is refused.
    pub version: u64,
    /// Which of its definitions of a task new tasks run.
    pub task_version: u64,
    /// What is wanted.
    pub spec: ServiceSpec,
    /// What was wanted before, and a rollback goes back to.
    pub previous: Option<Previous>,
    /// How its tasks come to run another definition; `None` before the first time.
    pub update: Option<UpdateStatus>,
    /// Whether it was removed, and is there until its last task is gone.
    pub leaving: bool,
}

/// What a service's definition was before its last change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// What was wanted.
    pub spec: ServiceSpec,
    /// Its [`Service::task_version`].
    pub task_version: u64,
}

/// What is wanted of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// How many tasks, and where.
    pub mode: Mode,
    /// What each task is.
    pub task: TaskSpec,
    /// How tasks are replaced by those of a new definition.
    pub update: UpdatePolicy,
    /// How they are replaced by those of the definition before.
    pub rollback: UpdatePolicy,
    /// The operator's labels.
    pub labels: BTreeMap<String, String>,
}

/// How many tasks a service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// So many, in slots from 1.
    Replicated {
        /// How many.
        replicas: u32,
    },
    /// One on every node that takes it.
    Global,
}

/// What a task of a service is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// The program, by path or by name in the task's `PATH`, and its arguments.
    pub command: Vec<String>,
    /// Its environment; of a key that comes twice the last counts.
    pub env: Vec<EnvVar>,
    /// `USER[:GROUP]`, by name or number; root unless given.
    pub user: Option<String>,
    /// Where it starts; `/` unless given.
    pub workdir: Option<String>,
    /// Its host name; that of the task unless given.
    pub hostname: Option<String>,
    /// The networks that it is on.
    pub networks: Vec<TaskNetwork>,
    /// What it sees of the node's storage.
    pub mounts: Vec<Mount>,
    /// On which nodes it may run.
    pub placement: Placement,
    /// What is set aside for it, which the scheduler counts.
    pub reservations: Resources,
    /// What it cannot go beyond.
    pub limits: Limits,
    /// What happens when it ends.
    pub restart: RestartPolicy,
    /// How it is asked whether it is well; without one it is as soon as it runs.
    pub health: Option<HealthCheck>,
    /// How it is stopped.
    pub stop: Stop,
    /// Capabilities beside the usual ones, without `CAP_`.
    pub capabilities_added: Vec<String>,
    /// Usual capabilities that it does not get, without `CAP_`.
    pub capabilities_dropped: Vec<String>,
    /// How often `--force` asked for new tasks although nothing else changed.
    pub forced: u64,
}

/// A variable of the environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A network of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskNetwork {
    /// Which.
    pub network: NetworkId,
    /// Further names of its tasks there.
    pub aliases: Vec<Name>,
}

/// Something of the node's storage in a task's file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What it is.
    pub source: MountSource,
    /// Where the task finds it: an absolute path.
    pub target: String,
    /// Whether the task may only read it.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountSource {
    /// A file or folder of the node.
    Bind(String),
    /// A volume of the node, made on first use.
    Volume(Name),
    /// Memory, of that many bytes at most or half of the node's.
    Tmpfs(Option<u64>),
}

/// On which nodes a task may run, and how tasks spread over them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// All of them must hold.
    pub constraints: Vec<Constraint>,
    /// Labels of nodes, over whose values tasks are spread evenly, the first before the second.
    pub spread: Vec<String>,
    /// How many tasks of the service a node takes at most.
    pub max_per_node: Option<u32>,
}

/// What a node must be, or must not: `node.labels.disk==ssd`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Constraint {
    /// Of what.
    pub attribute: NodeAttribute,
    /// How it compares.
    pub comparison: Comparison,
    /// With what; letters of either case are alike.
    pub value: String,
}

/// What a constraint looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeAttribute {
    /// Its id.
    Id,
    /// Its name.
    Name,
    /// Its role.
    Role,
    /// A label of it; one that it does not have is empty.
    Label(String),
}

/// How a constraint compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    Unequal,
}

/// Says why a text is not a [`Constraint`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "constraint '{0}' is not ATTRIBUTE==VALUE or ATTRIBUTE!=VALUE with node.id, node.name, node.role or node.labels.KEY"
)]
pub struct ConstraintError(pub String);

/// What a node has, or the scheduler sets aside on it for a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a processor.
    pub cpu_milli: u64,
    /// Memory.
    pub memory_bytes: u64,
}

/// What a task cannot go beyond; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Thousandths of a processor.
    pub cpu_milli: Option<u64>,
    /// Memory.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

/// What happens when a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// After which ends another takes its place.
    pub condition: RestartCondition,
    /// How long after.
    pub delay: Duration,
    /// How often in one slot, or without end.
    pub max_attempts: Option<u32>,
    /// In what time attempts count together; in all time unless given.
    pub window: Option<Duration>,
}

/// After which ends of a task another takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    /// None.
    None,
    /// Those with an exit status other than 0, or by a signal.
    OnFailure,
    /// All.
    Any,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay: Duration::from_secs(5),
            max_attempts: None,
            window: None,
        }
    }
}

/// How a task is asked whether it is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// A line for the task's shell; it is well if that ends with 0.
    pub command: String,
    /// How long from one end to the next start.
    pub interval: Duration,
    /// How long it may take.
    pub timeout: Duration,
    /// After how many in a row that failed the task is unhealthy, and ends.
    pub retries: u32,
    /// How long from the start failures do not count.
    pub start_period: Duration,
}

/// How a task is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// By which signal first, as a number.
    pub signal: i32,
    /// How long after that by SIGKILL.
    pub grace_period: Duration,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: SIGTERM, grace_period: Duration::from_secs(10) }
    }
}

/// How tasks of one definition take the place of those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdatePolicy {
    /// How many slots at once; all of them if `None`.
    pub parallelism: Option<u32>,
    /// How long from a slot that runs to the next.
    pub delay: Duration,
    /// Which of the two tasks of a slot comes first.
    pub order: UpdateOrder,
    /// How long a new task is looked at for failure.
    pub monitor: Duration,
    /// What to do when too many fail.
    pub failure_action: FailureAction,
    /// How many may fail, in millionths of the service's tasks.
    pub max_failure_ppm: u32,
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self {
            parallelism: Some(1),
            delay: Duration::ZERO,
            order: UpdateOrder::StopFirst,
            monitor: Duration::from_secs(5),
            failure_action: FailureAction::Pause,
            max_failure_ppm: 0,
        }
    }
}

/// Which task of a slot goes before the other in an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    /// The old one has ended before the new one starts.
    StopFirst,
    /// The new one runs before the old one is stopped.
    StartFirst,
}

/// What to do about an update of which too many tasks fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureAction {
    /// Leave it half done.
    Pause,
    /// Go on.
    Continue,
    /// Go back.
    Rollback,
}

/// How far an update is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// What it does.
    pub state: UpdateState,
    /// When it began, in milliseconds since 1970.
    pub started_ms: u64,
    /// When it came to its end.
    pub ended_ms: Option<u64>,
    /// Why it is where it is.
    pub message: String,
}

/// What an update does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// It goes on.
    Updating,
    /// It stands half done until the next change.
    Paused,
    /// It is done.
    Completed,
    /// It goes back.
    RollbackStarted,
    /// It stands half gone back until the next change.
    RollbackPaused,
    /// It is back.
    RollbackCompleted,
}

impl UpdateState {
    /// Whether tasks are replaced in it.
    pub fn is_active(self) -> bool {
        match self {
            Self::Updating | Self::RollbackStarted => true,
            Self::Paused | Self::Completed | Self::RollbackPaused | Self::RollbackCompleted => {
                false
            }
        }
    }
}

impl Service {
    /// How many tasks it is to have now: one that leaves, none.
    pub fn mode(&self) -> Mode {
        match self.leaving {
            true => Mode::Replicated { replicas: 0 },
            false => self.spec.mode,
        }
    }
}

impl Constraint {
    /// Whether it holds of a node.
    pub fn holds(&self, node: &Node) -> bool {
        let id;
        let actual = match &self.attribute {
            NodeAttribute::Id => {
                id = node.id.to_string();
                id.as_str()
            }
            NodeAttribute::Name => node.name.as_str(),
            NodeAttribute::Role => match node.role {
                Role::Manager => "manager",
                Role::Worker => "worker",
            },
            NodeAttribute::Label(key) => node.labels.get(key).map_or("", String::as_str),
        };
        let equal = actual.eq_ignore_ascii_case(&self.value);
        match self.comparison {
            Comparison::Equal => equal,
            Comparison::Unequal => !equal,
        }
    }
}

impl FromStr for Constraint {
    type Err = ConstraintError;

    fn from_str(text: &str) -> Result<Self, ConstraintError> {
        let error = || ConstraintError(text.to_owned());
        let at = text.find(['=', '!']).ok_or_else(error)?;
        let (attribute, rest) = text.split_at(at);
        let (comparison, value) = match (rest.strip_prefix("=="), rest.strip_prefix("!=")) {
            (Some(value), _) => (Comparison::Equal, value),
            (None, Some(value)) => (Comparison::Unequal, value),
            (None, None) => return Err(error()),
        };
        let attribute = match attribute.trim() {
            "node.id" => NodeAttribute::Id,
            // As Docker calls it.
            "node.name" | "node.hostname" => NodeAttribute::Name,
            "node.role" => NodeAttribute::Role,
            other => match other.strip_prefix("node.labels.") {
                Some(key) if !key.is_empty() => NodeAttribute::Label(key.to_owned()),
                Some(_) | None => return Err(error()),
            },
        };
        let value = value.trim().to_owned();
        if value.is_empty() {
            return Err(error());
        }
        Ok(Self { attribute, comparison, value })
    }
}

impl TryFrom<String> for Constraint {
    type Error = ConstraintError;

    fn try_from(text: String) -> Result<Self, ConstraintError> {
        text.parse()
    }
}

impl From<Constraint> for String {
    fn from(constraint: Constraint) -> String {
        constraint.to_string()
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.attribute {
            NodeAttribute::Id => f.write_str("node.id")?,
            NodeAttribute::Name => f.write_str("node.name")?,
            NodeAttribute::Role => f.write_str("node.role")?,
            NodeAttribute::Label(key) => write!(f, "node.labels.{key}")?,
        }
        f.write_str(match self.comparison {
            Comparison::Equal => "==",
            Comparison::Unequal => "!=",
        })?;
        f.write_str(&self.value)
    }
}

/// As Linux counts it on every processor.
const SIGTERM: i32 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_are_read_and_written() {
        for (text, canonical) in [
            ("node.labels.disk==ssd", "node.labels.disk==ssd"),
            ("node.hostname != n1", "node.name!=n1"),
            ("node.role==manager", "node.role==manager"),
            ("node.id==0abc", "node.id==0abc"),
        ] {
            assert_eq!(
                text.parse::<Constraint>().map(|read| read.to_string()),
                Ok(canonical.into())
            );
        }
        for text in ["", "node.role", "node.role=manager", "node.role==", "node.labels.==x", "x==y"]
        {
            assert_eq!(text.parse::<Constraint>(), Err(ConstraintError(text.to_owned())), "{text}");
        }
    }
}
