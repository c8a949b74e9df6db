//! What a service's definition must keep to. It is checked whole: every mistake is named at once.

use std::{collections::BTreeSet, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Refusal, State,
    limits::{
        MAX_ALIASES, MAX_DEFINITION_BYTES, MAX_MOUNTS, MAX_SPREAD, MAX_TASK_NETWORKS, MAX_TASKS,
        MAX_TIME, check_labels,
    },
};
use crate::types::{
    FailureAction, HealthCheck, Mode, Mount, MountSource, Name, ServiceSpec, TaskSpec, UpdatePolicy,
};

/// One thing that is wrong with a definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's sentence says what it is")]
pub enum Mistake {
    #[error(
        "the name {name} is no label of DNS; use letters, digits, '-' and '_', a letter or digit first and last"
    )]
    NameNoLabel { name: Name },
    #[error("there is no command; give one after '--'")]
    NoCommand,
    #[error(
        "command, environment and mounts take {bytes} bytes; at most {MAX_DEFINITION_BYTES} do"
    )]
    TooLarge { bytes: usize },
    #[error("{what} has a byte 0 in it")]
    ZeroByte { what: Field },
    #[error("environment variable '{name}' has no name or one with '='; use NAME=VALUE")]
    EnvName { name: String },
    #[error("{replicas} replicas are too many; the cluster takes {MAX_TASKS} tasks")]
    TooManyReplicas { replicas: u32 },
    #[error("there is no network '{network}'; 'overlayctl network ls' lists them")]
    UnknownNetwork { network: String },
    #[error("network {network} is named twice")]
    NetworkTwice { network: Name },
    #[error("a task takes at most {MAX_TASK_NETWORKS} networks")]
    TooManyNetworks,
    #[error("a task takes at most {MAX_ALIASES} aliases on a network")]
    TooManyAliases,
    #[error("a task takes at most {MAX_MOUNTS} mounts")]
    TooManyMounts,
    #[error("'{path}' is no path to mount at; use an absolute one below '/' without '..'")]
    MountTarget { path: String },
    #[error("two mounts are at {path}")]
    MountTwice { path: String },
    #[error("bind source '{path}' is no absolute path")]
    MountSource { path: String },
    #[error("a tmpfs of 0 bytes holds nothing; leave the size out, or give a larger one")]
    TmpfsEmpty,
    #[error("tasks spread over at most {MAX_SPREAD} labels")]
    TooManySpreads,
    #[error("a global service has one task a node; leave the most replicas a node out")]
    MaxPerNodeOfGlobal,
    #[error("at most 0 replicas a node leave no place; give 1 or more, or leave it out")]
    MaxPerNodeZero,
    #[error("{what} is more reserved than the limit allows; raise the limit")]
    ReservedAboveLimit { what: Field },
    #[error("a limit of 0 for {what} lets nothing run; leave it out for no limit")]
    LimitZero { what: Field },
    #[error("{what} is longer than {} days", MAX_TIME.as_secs() / 86_400)]
    TooLong { what: Field },
    #[error("the health command is empty; give one, or leave it out")]
    HealthCommandEmpty,
    #[error("{what} of 0 is none; give a larger one")]
    Zero { what: Field },
    #[error("signal {signal} is none; use 1 to 64")]
    NoSignal { signal: i32 },
    #[error("there is no capability '{name}'; see capabilities(7)")]
    UnknownCapability { name: String },
    #[error("user '{user}' is not USER or USER:GROUP, by name or number")]
    User { user: String },
    #[error("work folder '{path}' is no absolute path")]
    Workdir { path: String },
    #[error("'{hostname}' is no host name; use 1 to 63 letters, digits, '-' and '.'")]
    Hostname { hostname: String },
    #[error("a failure ratio is 0 to 1")]
    FailureRatio,
    #[error("a rollback that fails cannot roll back; use pause or continue")]
    RollbackRollsBack,
    #[error(transparent)]
    Labels(Box<Refusal>),
}

/// A part of a definition, as sentences call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is named by its words")]
pub enum Field {
    Command,
    Environment,
    Mount,
    Cpu,
    Memory,
    Pids,
    RestartDelay,
    RestartWindow,
    HealthInterval,
    HealthTimeout,
    HealthRetries,
    HealthStartPeriod,
    StopGracePeriod,
    UpdateDelay,
    UpdateMonitor,
    UpdateParallelism,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Command => "the command",
            Self::Environment => "the environment",
            Self::Mount => "a mount",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::RestartDelay => "the restart delay",
            Self::RestartWindow => "the restart window",
            Self::HealthInterval => "the health interval",
            Self::HealthTimeout => "the health timeout",
            Self::HealthRetries => "the number of health retries",
            Self::HealthStartPeriod => "the health start period",
            Self::StopGracePeriod => "the stop grace period",
            Self::UpdateDelay => "the delay of updates or rollbacks",
            Self::UpdateMonitor => "the monitor time of updates or rollbacks",
            Self::UpdateParallelism => "the parallelism of updates or rollbacks",
        })
    }
}

/// Several mistakes in one sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let between = if index == 0 { "" } else { "; " };
            write!(f, "{between}{mistake}")?;
        }
        Ok(())
    }
}

impl State {
    /// Checks a definition of a service of that name.
    pub(super) fn check_definition(&self, name: &Name, spec: &ServiceSpec) -> Result<(), Refusal> {
        let mut found = Vec::new();
        if !is_dns_label(name.as_str()) {
            found.push(Mistake::NameNoLabel { name: name.clone() });
        }
        if let Err(refusal) = check_labels(&spec.labels) {
            found.push(Mistake::Labels(Box::new(refusal)));
        }
        check_mode(spec, &mut found);
        check_command(&spec.task, &mut found);
        self.check_networks(&spec.task, &mut found);
        check_mounts(&spec.task.mounts, &mut found);
        check_resources(&spec.task, &mut found);
        check_process(&spec.task, &mut found);
        check_times(spec, &mut found);
        spec.task.health.iter().for_each(|health| check_health(health, &mut found));
        check_update(&spec.update, &mut found);
        check_update(&spec.rollback, &mut found);
        if spec.rollback.failure_action == FailureAction::Rollback {
            found.push(Mistake::RollbackRollsBack);
        }
        if found.is_empty() { Ok(()) } else { Err(Refusal::Definition(Mistakes(found))) }
    }

    fn check_networks(&self, task: &TaskSpec, found: &mut Vec<Mistake>) {
        if task.networks.len() > MAX_TASK_NETWORKS {
            found.push(Mistake::TooManyNetworks);
        }
        let mut seen = BTreeSet::new();
        for of_task in &task.networks {
            match self.network(of_task.network) {
                None => {
                    let network = of_task.network.to_string();
                    found.push(Mistake::UnknownNetwork { network });
                }
                Some(network) if !seen.insert(network.id) => {
                    found.push(Mistake::NetworkTwice { network: network.name.clone() });
                }
                Some(_) => {}
            }
            if of_task.aliases.len() > MAX_ALIASES {
                found.push(Mistake::TooManyAliases);
            }
        }
    }
}

/// Whether a name can be one label of DNS; `_` is taken too, as Docker does.
fn is_dns_label(name: &str) -> bool {
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let ends = [name.bytes().next(), name.bytes().next_back()];
    name.len() <= 63
        && name.bytes().all(inside)
        && ends.iter().all(|end| end.is_some_and(|b| b.is_ascii_alphanumeric()))
}

fn check_mode(spec: &ServiceSpec, found: &mut Vec<Mistake>) {
    let placement = &spec.task.placement;
    match spec.mode {
        Mode::Replicated { replicas } if replicas as usize > MAX_TASKS => {
            found.push(Mistake::TooManyReplicas { replicas });
        }
        Mode::Global if placement.max_per_node.is_some() => {
            found.push(Mistake::MaxPerNodeOfGlobal);
        }
        Mode::Replicated { .. } | Mode::Global => {}
    }
    if placement.max_per_node == Some(0) {
        found.push(Mistake::MaxPerNodeZero);
    }
    if placement.spread.len() > MAX_SPREAD {
        found.push(Mistake::TooManySpreads);
    }
}

fn check_command(task: &TaskSpec, found: &mut Vec<Mistake>) {
    if task.command.first().is_none_or(String::is_empty) {
        found.push(Mistake::NoCommand);
    }
    let words = task.command.iter().map(String::len);
    let env = task.env.iter().map(|var| var.name.len() + var.value.len());
    let mounts = task.mounts.iter().map(|mount| {
        let source = match &mount.source {
            MountSource::Bind(path) => path.len(),
            MountSource::Volume(name) => name.as_str().len(),
            MountSource::Tmpfs(_) => 0,
        };
        mount.target.len() + source
    });
    let constraints = &task.placement.constraints;
    let placement = constraints.iter().map(|constraint| constraint.value.len());
    let spread = task.placement.spread.iter().map(String::len);
    let bytes = words.chain(env).chain(mounts).chain(placement).chain(spread).sum();
    if bytes > MAX_DEFINITION_BYTES {
        found.push(Mistake::TooLarge { bytes });
    }
    let has_zero = |text: &String| text.contains('\0');
    if task.command.iter().any(has_zero) {
        found.push(Mistake::ZeroByte { what: Field::Command });
    }
    if task.env.iter().any(|var| has_zero(&var.name) || has_zero(&var.value)) {
        found.push(Mistake::ZeroByte { what: Field::Environment });
    }
    let unnamed = task.env.iter().filter(|var| var.name.is_empty() || var.name.contains('='));
    found.extend(unnamed.map(|var| Mistake::EnvName { name: var.name.clone() }));
}

fn check_mounts(mounts: &[Mount], found: &mut Vec<Mistake>) {
    if mounts.len() > MAX_MOUNTS {
        found.push(Mistake::TooManyMounts);
    }
    let mut seen = BTreeSet::new();
    for Mount { source, target, .. } in mounts {
        if !is_absolute(target) || target.split('/').all(str::is_empty) {
            found.push(Mistake::MountTarget { path: target.clone() });
        }
        if !seen.insert(target.trim_end_matches('/')) {
            found.push(Mistake::MountTwice { path: target.clone() });
        }
        match source {
            MountSource::Bind(path) if !is_absolute(path) => {
                found.push(Mistake::MountSource { path: path.clone() });
            }
            MountSource::Tmpfs(Some(0)) => found.push(Mistake::TmpfsEmpty),
            MountSource::Bind(_) | MountSource::Volume(_) | MountSource::Tmpfs(_) => {}
        }
        let has_zero = match source {
            MountSource::Bind(path) => path.contains('\0'),
            MountSource::Volume(_) | MountSource::Tmpfs(_) => false,
        };
        if has_zero || target.contains('\0') {
            found.push(Mistake::ZeroByte { what: Field::Mount });
        }
    }
}

fn check_resources(task: &TaskSpec, found: &mut Vec<Mistake>) {
    let (reserved, limits) = (&task.reservations, &task.limits);
    for (what, reserved, limit) in [
        (Field::Cpu, reserved.cpu_milli, limits.cpu_milli),
        (Field::Memory, reserved.memory_bytes, limits.memory_bytes),
        (Field::Pids, 0, limits.pids.map(u64::from)),
    ] {
        match limit {
            Some(0) => found.push(Mistake::LimitZero { what }),
            Some(limit) if reserved > limit => found.push(Mistake::ReservedAboveLimit { what }),
            Some(_) | None => {}
        }
    }
}

/// Who the process is and where it starts.
fn check_process(task: &TaskSpec, found: &mut Vec<Mistake>) {
    let is_user = |user: &str| {
        let is_part = |part: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            !part.is_empty() && part.len() <= 32 && part.bytes().all(allowed)
        };
        user.splitn(2, ':').all(is_part)
    };
    if let Some(user) = task.user.as_ref().filter(|user| !is_user(user)) {
        found.push(Mistake::User { user: user.clone() });
    }
    if let Some(path) = task.workdir.as_ref().filter(|path| !is_absolute(path)) {
        found.push(Mistake::Workdir { path: path.clone() });
    }
    let is_hostname = |name: &str| {
        let is_label = |label: &str| is_dns_label(label) && !label.contains('_');
        name.len() <= 63 && name.split('.').all(is_label)
    };
    if let Some(hostname) = task.hostname.as_ref().filter(|name| !is_hostname(name)) {
        found.push(Mistake::Hostname { hostname: hostname.clone() });
    }
    if !(1..=64).contains(&task.stop.signal) {
        found.push(Mistake::NoSignal { signal: task.stop.signal });
    }
    let named = task.capabilities_added.iter().chain(&task.capabilities_dropped);
    let unknown = named.filter(|name| *name != "ALL" && !CAPABILITIES.contains(&name.as_str()));
    found.extend(unknown.map(|name| Mistake::UnknownCapability { name: name.clone() }));
}

fn check_health(health: &HealthCheck, found: &mut Vec<Mistake>) {
    if health.command.trim().is_empty() {
        found.push(Mistake::HealthCommandEmpty);
    }
    for (what, is_zero) in [
        (Field::HealthInterval, health.interval.is_zero()),
        (Field::HealthTimeout, health.timeout.is_zero()),
        (Field::HealthRetries, health.retries == 0),
    ] {
        if is_zero {
            found.push(Mistake::Zero { what });
        }
    }
}

fn check_times(spec: &ServiceSpec, found: &mut Vec<Mistake>) {
    let health = |time: fn(&HealthCheck) -> Duration| spec.task.health.as_ref().map(time);
    let mut too_long = [
        (Field::RestartDelay, Some(spec.task.restart.delay)),
        (Field::RestartWindow, spec.task.restart.window),
        (Field::HealthInterval, health(|health| health.interval)),
        (Field::HealthTimeout, health(|health| health.timeout)),
        (Field::HealthStartPeriod, health(|health| health.start_period)),
        (Field::StopGracePeriod, Some(spec.task.stop.grace_period)),
        (Field::UpdateDelay, Some(spec.update.delay.max(spec.rollback.delay))),
        (Field::UpdateMonitor, Some(spec.update.monitor.max(spec.rollback.monitor))),
    ]
    .into_iter()
    .filter(|(_, time)| time.is_some_and(|time| time > MAX_TIME))
    .map(|(what, _)| Mistake::TooLong { what })
    .collect();
    found.append(&mut too_long);
}

fn check_update(policy: &UpdatePolicy, found: &mut Vec<Mistake>) {
    if policy.parallelism == Some(0) {
        found.push(Mistake::Zero { what: Field::UpdateParallelism });
    }
    if policy.max_failure_ppm > 1_000_000 {
        found.push(Mistake::FailureRatio);
    }
}

/// Whether a path is absolute and stays where it says.
fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && !path.split('/').any(|part| part == "..")
}

/// See capabilities(7).
const CAPABILITIES: &[&str] = &[
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];
