//! The flags that define a service's tasks. Each changes what was there; what is not named stays.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use clap::Args;

use super::super::{
    Failure,
    client::{Client, answer},
    network::label,
};
use crate::{
    api::{parse_id, proto::FindNetworkRequest},
    types::{
        Constraint, EnvVar, FailureAction, HealthCheck, Mount, MountSource, Name, RestartCondition,
        ServiceSpec, TaskNetwork, TaskSpec, UpdateOrder, UpdatePolicy,
    },
};

/// What a service is to be.
#[derive(Args, Debug)]
pub struct Definition {
    /// How many tasks a replicated service has; 1 unless given
    #[arg(long, value_name = "N")]
    pub replicas: Option<u32>,
    /// A network of the tasks
    #[arg(long = "network", visible_alias = "network-add", value_name = "NET[,alias=A]")]
    networks: Vec<String>,
    /// A network that the tasks leave
    #[arg(long = "network-rm", value_name = "NET")]
    networks_removed: Vec<String>,
    /// A variable of the environment
    #[arg(long = "env", short = 'e', visible_alias = "env-add", value_name = "K=V")]
    env: Vec<String>,
    /// A file of variables, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// A variable to take away
    #[arg(long = "env-rm", value_name = "K")]
    env_removed: Vec<String>,
    /// What the tasks see of the node's storage: type=bind|volume|tmpfs,src=,dst=[,readonly]
    #[arg(long = "mount", visible_alias = "mount-add", value_parser = mount)]
    mounts: Vec<Mount>,
    /// Where nothing is mounted any more
    #[arg(long = "mount-rm", value_name = "PATH")]
    mounts_removed: Vec<String>,
    /// On which nodes tasks may run: node.labels.disk==ssd
    #[arg(long = "constraint", visible_alias = "constraint-add", value_name = "EXPR")]
    constraints: Vec<Constraint>,
    /// A constraint to take away
    #[arg(long = "constraint-rm", value_name = "EXPR")]
    constraints_removed: Vec<Constraint>,
    /// Spread tasks evenly over the values of a label: spread=node.labels.zone
    #[arg(long = "placement-pref", visible_alias = "placement-pref-add", value_name = "spread=LABEL", value_parser = spread)]
    spread: Vec<String>,
    /// A preference to take away
    #[arg(long = "placement-pref-rm", value_name = "spread=LABEL", value_parser = spread)]
    spread_removed: Vec<String>,
    /// How many tasks a node takes at most; 0 for any number
    #[arg(long = "replicas-max-per-node", value_name = "N")]
    max_per_node: Option<u32>,
    /// Processors set aside for a task
    #[arg(long, value_name = "N", value_parser = cpus)]
    reserve_cpu: Option<u64>,
    /// Memory set aside for a task
    #[arg(long, value_name = "SIZE", value_parser = size)]
    reserve_memory: Option<u64>,
    /// Processors that a task has at most; 0 for no limit
    #[arg(long, value_name = "N", value_parser = cpus)]
    limit_cpu: Option<u64>,
    /// Memory that a task has at most; 0 for no limit
    #[arg(long, value_name = "SIZE", value_parser = size)]
    limit_memory: Option<u64>,
    /// Processes that a task has at most; 0 for no limit
    #[arg(long, value_name = "N")]
    limit_pids: Option<u32>,
    /// After which ends another task follows
    #[arg(long, value_name = "none|on-failure|any", value_parser = restart_condition)]
    restart_condition: Option<RestartCondition>,
    /// How long after; 5s unless given
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    restart_delay: Option<Duration>,
    /// How often in a slot; without end unless given, or 0
    #[arg(long, value_name = "N")]
    restart_max_attempts: Option<u32>,
    /// In what time attempts count together
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    restart_window: Option<Duration>,
    #[command(flatten)]
    rollout: Rollout,
    /// A line for /bin/sh that ends with 0 while a task is well
    #[arg(long, value_name = "CMD")]
    health_cmd: Option<String>,
    /// How long between two checks; 30s unless given
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    health_interval: Option<Duration>,
    /// How long a check may take; 30s unless given
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    health_timeout: Option<Duration>,
    /// After how many failures in a row a task is unhealthy; 3 unless given
    #[arg(long, value_name = "N")]
    health_retries: Option<u32>,
    /// How long failures do not count at first
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    health_start_period: Option<Duration>,
    /// Check nothing
    #[arg(long, conflicts_with = "health_cmd")]
    no_healthcheck: bool,
    /// How long from the stop signal to SIGKILL; 10s unless given
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    stop_grace_period: Option<Duration>,
    /// The signal that stops a task, by name or number; SIGTERM unless given
    #[arg(long, value_name = "SIG", value_parser = signal)]
    stop_signal: Option<i32>,
    /// A label of the service
    #[arg(long = "label", visible_alias = "label-add", value_name = "K=V", value_parser = label)]
    labels: Vec<(String, String)>,
    /// A label to take away
    #[arg(long = "label-rm", value_name = "K")]
    labels_removed: Vec<String>,
    /// Who the command runs as
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Where it starts
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// The host name of the tasks
    #[arg(long)]
    hostname: Option<String>,
    /// A capability that the tasks get
    #[arg(long = "cap-add", value_name = "CAP", value_parser = capability)]
    capabilities_added: Vec<String>,
    /// A capability that they do not get
    #[arg(long = "cap-drop", value_name = "CAP", value_parser = capability)]
    capabilities_dropped: Vec<String>,
}

/// How tasks are replaced, forward and back.
#[derive(Args, Debug)]
struct Rollout {
    /// How many tasks are replaced at once; 0 for all of them
    #[arg(long, value_name = "N")]
    update_parallelism: Option<u32>,
    /// How long between them
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    update_delay: Option<Duration>,
    /// Which of two tasks is first
    #[arg(long, value_name = "stop-first|start-first", value_parser = order)]
    update_order: Option<UpdateOrder>,
    /// How long a new task is looked at for failure
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    update_monitor: Option<Duration>,
    /// What to do when too many fail
    #[arg(long, value_name = "pause|continue|rollback", value_parser = failure_action)]
    update_failure_action: Option<FailureAction>,
    /// Which part of the tasks may fail
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    update_max_failure_ratio: Option<u32>,
    /// As of updates
    #[arg(long, value_name = "N")]
    rollback_parallelism: Option<u32>,
    /// As of updates
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    rollback_delay: Option<Duration>,
    /// As of updates
    #[arg(long, value_name = "stop-first|start-first", value_parser = order)]
    rollback_order: Option<UpdateOrder>,
    /// As of updates
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    rollback_monitor: Option<Duration>,
    /// As of updates
    #[arg(long, value_name = "pause|continue", value_parser = failure_action)]
    rollback_failure_action: Option<FailureAction>,
    /// As of updates
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    rollback_max_failure_ratio: Option<u32>,
}

impl Definition {
    /// Changes a definition as the flags say.
    pub async fn apply(
        &self,
        client: &Client,
        what: &str,
        spec: &mut ServiceSpec,
    ) -> Result<(), Failure> {
        self.apply_networks(client, what, &mut spec.task).await?;
        self.apply_env(what, &mut spec.task)?;
        let task = &mut spec.task;
        task.mounts.retain(|mount| !self.mounts_removed.contains(&mount.target));
        task.mounts.extend_from_slice(&self.mounts);
        let placement = &mut task.placement;
        placement.constraints.retain(|one| !self.constraints_removed.contains(one));
        placement.constraints.extend_from_slice(&self.constraints);
        placement.spread.retain(|one| !self.spread_removed.contains(one));
        placement.spread.extend_from_slice(&self.spread);
        if let Some(most) = self.max_per_node {
            placement.max_per_node = Some(most).filter(|most| *most > 0);
        }
        self.apply_resources(task);
        self.apply_restart(task);
        self.apply_health(what, task)?;
        set(&mut task.stop.grace_period, self.stop_grace_period);
        set(&mut task.stop.signal, self.stop_signal);
        task.user = self.user.clone().or(task.user.take());
        task.workdir = self.workdir.clone().or(task.workdir.take());
        task.hostname = self.hostname.clone().or(task.hostname.take());
        task.capabilities_added.extend_from_slice(&self.capabilities_added);
        task.capabilities_dropped.extend_from_slice(&self.capabilities_dropped);
        self.rollout.apply(spec);
        spec.labels.retain(|key, _| !self.labels_removed.contains(key));
        spec.labels.extend(self.labels.iter().cloned());
        Ok(())
    }

    async fn apply_networks(
        &self,
        client: &Client,
        what: &str,
        task: &mut TaskSpec,
    ) -> Result<(), Failure> {
        for reference in &self.networks_removed {
            let id = find_network(client, what, reference).await?;
            task.networks.retain(|of_task| of_task.network != id);
        }
        for text in &self.networks {
            let (reference, aliases) = network(text).map_err(|why| Failure::new(what, why))?;
            let network = find_network(client, what, &reference).await?;
            task.networks.push(TaskNetwork { network, aliases });
        }
        Ok(())
    }

    fn apply_env(&self, what: &str, task: &mut TaskSpec) -> Result<(), Failure> {
        let mut added = Vec::new();
        for path in &self.env_file {
            let text = fs::read_to_string(path).map_err(|error| {
                Failure::new(what, format!("read {}: {error}; name another file", path.display()))
            })?;
            let lines = text.lines().map(str::trim);
            let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
            added.extend(lines.map(str::to_owned));
        }
        added.extend(self.env.iter().cloned());
        task.env.retain(|var| !self.env_removed.contains(&var.name));
        for text in added {
            // As Docker has it, a name alone takes what it is here.
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => {
                    let value = std::env::var(&text).unwrap_or_default();
                    (text, value)
                }
            };
            task.env.retain(|var| var.name != name);
            task.env.push(EnvVar { name, value });
        }
        Ok(())
    }

    fn apply_resources(&self, task: &mut TaskSpec) {
        set(&mut task.reservations.cpu_milli, self.reserve_cpu);
        set(&mut task.reservations.memory_bytes, self.reserve_memory);
        let limit = |now: &mut Option<u64>, wanted: Option<u64>| {
            if let Some(wanted) = wanted {
                *now = Some(wanted).filter(|wanted| *wanted > 0);
            }
        };
        limit(&mut task.limits.cpu_milli, self.limit_cpu);
        limit(&mut task.limits.memory_bytes, self.limit_memory);
        if let Some(wanted) = self.limit_pids {
            task.limits.pids = Some(wanted).filter(|wanted| *wanted > 0);
        }
    }

    fn apply_restart(&self, task: &mut TaskSpec) {
        set(&mut task.restart.condition, self.restart_condition);
        set(&mut task.restart.delay, self.restart_delay);
        if let Some(most) = self.restart_max_attempts {
            task.restart.max_attempts = Some(most).filter(|most| *most > 0);
        }
        if let Some(window) = self.restart_window {
            task.restart.window = Some(window).filter(|window| !window.is_zero());
        }
    }

    fn apply_health(&self, what: &str, task: &mut TaskSpec) -> Result<(), Failure> {
        if self.no_healthcheck {
            task.health = None;
            return Ok(());
        }
        if let Some(command) = &self.health_cmd {
            let health = task.health.get_or_insert(HealthCheck {
                command: String::new(),
                interval: Duration::from_secs(30),
                timeout: Duration::from_secs(30),
                retries: 3,
                start_period: Duration::ZERO,
            });
            health.command.clone_from(command);
        }
        let changes = self.health_interval.is_some()
            || self.health_timeout.is_some()
            || self.health_retries.is_some()
            || self.health_start_period.is_some();
        match &mut task.health {
            Some(health) => {
                set(&mut health.interval, self.health_interval);
                set(&mut health.timeout, self.health_timeout);
                set(&mut health.retries, self.health_retries);
                set(&mut health.start_period, self.health_start_period);
            }
            None if changes => {
                return Err(Failure::new(what, "there is no health check; give --health-cmd"));
            }
            None => {}
        }
        Ok(())
    }
}

impl Rollout {
    fn apply(&self, spec: &mut ServiceSpec) {
        let Self {
            update_parallelism,
            update_delay,
            update_order,
            update_monitor,
            update_failure_action,
            update_max_failure_ratio,
            ..
        } = self;
        let all = |parallelism: Option<u32>, policy: &mut UpdatePolicy| {
            if let Some(most) = parallelism {
                policy.parallelism = Some(most).filter(|most| *most > 0);
            }
        };
        let update = &mut spec.update;
        all(*update_parallelism, update);
        set(&mut update.delay, *update_delay);
        set(&mut update.order, *update_order);
        set(&mut update.monitor, *update_monitor);
        set(&mut update.failure_action, *update_failure_action);
        set(&mut update.max_failure_ppm, *update_max_failure_ratio);
        let rollback = &mut spec.rollback;
        all(self.rollback_parallelism, rollback);
        set(&mut rollback.delay, self.rollback_delay);
        set(&mut rollback.order, self.rollback_order);
        set(&mut rollback.monitor, self.rollback_monitor);
        set(&mut rollback.failure_action, self.rollback_failure_action);
        set(&mut rollback.max_failure_ppm, self.rollback_max_failure_ratio);
    }
}

fn set<T: Copy>(now: &mut T, wanted: Option<T>) {
    *now = wanted.unwrap_or(*now);
}

async fn find_network(
    client: &Client,
    what: &str,
    reference: &str,
) -> Result<crate::types::NetworkId, Failure> {
    let find = FindNetworkRequest { reference: reference.to_owned() };
    let found = answer(what, client.control().await?.find_network(client.reading(find))).await?;
    let network = found.network.ok_or_else(|| Failure::bent(what))?;
    parse_id("network", &network.id).map_err(|_| Failure::bent(what))
}

/// Reads `NET[,alias=A]...`, also as Docker writes it: `name=NET,alias=A`.
fn network(text: &str) -> Result<(String, Vec<Name>), String> {
    let (mut reference, mut aliases) = (None, Vec::new());
    for part in text.split(',') {
        match part.split_once('=') {
            None if reference.is_none() => reference = Some(part.to_owned()),
            Some(("name", name)) if reference.is_none() => reference = Some(name.to_owned()),
            Some(("alias", alias)) => {
                aliases.push(alias.parse().map_err(|error| format!("alias '{alias}': {error}"))?);
            }
            Some(_) | None => {
                return Err(format!("'{text}' is no network; use NET or NET,alias=A"));
            }
        }
    }
    let reference = reference.filter(|reference| !reference.is_empty());
    let reference = reference.ok_or_else(|| format!("'{text}' names no network"))?;
    Ok((reference, aliases))
}

/// Reads `type=bind|volume|tmpfs,src=,dst=[,readonly]`, as Docker writes it.
fn mount(text: &str) -> Result<Mount, String> {
    let mut words: BTreeMap<&str, &str> = BTreeMap::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, "true"));
        let key = match key {
            "type" => "type",
            "src" | "source" => "src",
            "dst" | "target" | "destination" => "dst",
            "readonly" | "ro" => "readonly",
            "tmpfs-size" => "size",
            other => return Err(format!("a mount has no '{other}'; use type, src, dst, readonly")),
        };
        words.insert(key, value);
    }
    let source = words.get("src").copied();
    let missing = || "this mount needs src=".to_owned();
    let source = match words.get("type").copied().unwrap_or("volume") {
        "bind" => MountSource::Bind(source.ok_or_else(missing)?.to_owned()),
        "volume" => {
            let name = source.ok_or_else(missing)?;
            MountSource::Volume(name.parse().map_err(|error| format!("volume '{name}': {error}"))?)
        }
        "tmpfs" => MountSource::Tmpfs(words.get("size").map(|text| size(text)).transpose()?),
        other => return Err(format!("'{other}' is no type; use bind, volume or tmpfs")),
    };
    let target = words.get("dst").ok_or("a mount needs dst=")?.to_string();
    let read_only = match words.get("readonly").copied() {
        None | Some("false" | "0") => false,
        Some("true" | "1") => true,
        Some(other) => return Err(format!("readonly is true or false, not '{other}'")),
    };
    Ok(Mount { source, target, read_only })
}

fn spread(text: &str) -> Result<String, String> {
    let label = text.strip_prefix("spread=node.labels.").filter(|label| !label.is_empty());
    label.map(str::to_owned).ok_or_else(|| "use spread=node.labels.KEY".to_owned())
}

/// Reads a number of processors, in thousandths.
fn cpus(text: &str) -> Result<u64, String> {
    let parsed = text.parse::<f64>().ok().filter(|cpus| (0.0..=1e6).contains(cpus));
    parsed
        .map(|cpus| (cpus * 1000.0).round() as u64)
        .ok_or_else(|| "use a number of processors such as 0.5".to_owned())
}

/// Reads a number of bytes, with or without a unit, as Docker does.
fn size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches('b').trim_end_matches('i');
    let (number, shift) = match number.chars().last() {
        Some('k') => (&number[..number.len() - 1], 10),
        Some('m') => (&number[..number.len() - 1], 20),
        Some('g') => (&number[..number.len() - 1], 30),
        Some('t') => (&number[..number.len() - 1], 40),
        Some(_) | None => (number, 0),
    };
    let parsed = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    parsed.ok_or_else(|| "use bytes, or a unit: 512m, 2g".to_owned())
}

fn ratio(text: &str) -> Result<u32, String> {
    let parsed = text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    parsed
        .map(|ratio| (ratio * 1e6).round() as u32)
        .ok_or_else(|| "use a number from 0 to 1".to_owned())
}

fn restart_condition(text: &str) -> Result<RestartCondition, String> {
    match text {
        "none" => Ok(RestartCondition::None),
        "on-failure" => Ok(RestartCondition::OnFailure),
        "any" => Ok(RestartCondition::Any),
        _ => Err("use none, on-failure or any".to_owned()),
    }
}

fn order(text: &str) -> Result<UpdateOrder, String> {
    match text {
        "stop-first" => Ok(UpdateOrder::StopFirst),
        "start-first" => Ok(UpdateOrder::StartFirst),
        _ => Err("use stop-first or start-first".to_owned()),
    }
}

fn failure_action(text: &str) -> Result<FailureAction, String> {
    match text {
        "pause" => Ok(FailureAction::Pause),
        "continue" => Ok(FailureAction::Continue),
        "rollback" => Ok(FailureAction::Rollback),
        _ => Err("use pause, continue or rollback".to_owned()),
    }
}

fn capability(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    Ok(upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned())
}

/// Reads a signal by name or number.
fn signal(text: &str) -> Result<i32, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let number = text.parse::<i32>().ok().filter(|number| (1..=64).contains(number));
    named.or(number).ok_or_else(|| "use a signal's name or number".to_owned())
}

/// As Linux counts them on every processor that is in use.
const SIGNALS: [(&str, i32); 14] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("KILL", 9),
    ("USR1", 10),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CONT", 18),
    ("STOP", 19),
    ("URG", 23),
    ("WINCH", 28),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_users_write_is_understood() {
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("77"), Ok(77));
        assert!(size("many").is_err());
        assert_eq!(cpus("0.5"), Ok(500));
        assert_eq!(signal("sigint"), Ok(2));
        assert_eq!(signal("TERM"), Ok(15));
        assert_eq!(signal("34"), Ok(34));
        assert!(signal("65").is_err());
        assert_eq!(ratio("0.25"), Ok(250_000));
        assert_eq!(spread("spread=node.labels.zone"), Ok("zone".to_owned()));
        assert_eq!(network("name=blue,alias=db"), Ok(("blue".into(), vec!["db".parse().unwrap()])));
        assert_eq!(network("blue"), Ok(("blue".into(), Vec::new())));
        assert!(network("blue,driver=x").is_err());
        let bind =
            Mount { source: MountSource::Bind("/a".into()), target: "/b".into(), read_only: true };
        assert_eq!(mount("type=bind,source=/a,target=/b,readonly"), Ok(bind));
        let volume = Mount {
            source: MountSource::Volume("data".parse().unwrap()),
            target: "/b".into(),
            read_only: false,
        };
        assert_eq!(mount("src=data,dst=/b"), Ok(volume));
        assert!(mount("type=npipe,src=a,dst=/b").is_err());
    }
}
