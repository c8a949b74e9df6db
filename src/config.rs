//! The settings of `overlayd`: flags, then `OVERLAY_*` in the environment, then the file, then the
//! defaults. Every setting is the same text in all of them, read in one place; what is wrong is
//! named with where it stands and what is allowed.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::bail;
use clap::Parser;
use tracing::Level;

use crate::types::Offloads;

/// The flags of `overlayd`.
#[derive(Debug, Default, Parser)]
#[command(
    name = "overlayd",
    version,
    about = "The agent of a node, and its manager where it founded the cluster"
)]
pub struct Flags {
    /// The file with the settings [default: /etc/overlay/overlayd.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the node keeps what is its own [default: /var/lib/overlay]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// The socket of overlayctl [default: /run/overlay/overlayd.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
    /// Worker threads, 1 to 16 [default: one a CPU, at most 4]
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// What is logged: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// Offloads to turn on or off: tun-tso=off,udp-gro=on,... [default: all on]
    #[arg(long, value_name = "LIST")]
    offload: Option<String>,
    /// After how long sessions' keys are renewed, 1s to 120s [default: 120s]
    #[arg(long, value_name = "TIME")]
    rekey_interval: Option<String>,
    /// The socket of Docker, for its containers [default: /var/run/docker.sock]
    #[arg(long, value_name = "PATH")]
    docker_socket: Option<String>,
    /// Start from a backup, in an empty state folder
    #[arg(long, value_name = "FILE")]
    restore: Option<PathBuf>,
    /// The file with the backup's passphrase
    #[arg(long, value_name = "FILE", requires = "restore")]
    passphrase_file: Option<PathBuf>,
}

/// What `overlayd` runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the node keeps what is its own.
    pub state_dir: PathBuf,
    /// The socket of `overlayctl`.
    pub socket: PathBuf,
    /// How many worker threads.
    pub workers: usize,
    /// What is logged.
    pub log: Level,
    /// Which offloads are used.
    pub offloads: Offloads,
    /// After how long sessions' keys are renewed.
    pub rekey_interval: Duration,
    /// The socket of Docker.
    pub docker_socket: PathBuf,
    /// The backup to start from, and its passphrase's file.
    pub restore: Option<(PathBuf, Option<PathBuf>)>,
}

impl Settings {
    /// Reads the settings from wherever they stand.
    ///
    /// # Errors
    /// One of them is wrong, or the named file cannot be read.
    pub fn read(flags: Flags, env: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let named = flags.config.clone().or_else(|| env("OVERLAY_CONFIG").map(PathBuf::from));
        let path = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound && named.is_none() => String::new(),
            Err(error) => {
                bail!("read {}: {error}; name one that can be read with --config", path.display())
            }
        };
        let file = read_file(&path, &text)?;
        let find = |key: &'static str, flag: &Option<String>| {
            let variable = format!("OVERLAY_{}", key.to_uppercase());
            let flag = flag.clone().map(|text| (format!("--{}", key.replace('_', "-")), text));
            flag.or_else(|| env(&variable).map(|text| (variable.clone(), text))).or_else(|| {
                file.get(key).map(|text| (format!("{key} in {}", path.display()), text.clone()))
            })
        };
        let path_of = |found: Option<(String, String)>, default: &str| {
            PathBuf::from(found.map_or_else(|| default.to_owned(), |(_, text)| text))
        };
        Ok(Self {
            state_dir: path_of(find("state_dir", &flags.state_dir), "/var/lib/overlay"),
            socket: path_of(find("socket", &flags.socket), "/run/overlay/overlayd.sock"),
            workers: setting(find("workers", &flags.workers), default_workers, |text| {
                let workers = text.parse().ok().filter(|workers| (1..=16).contains(workers));
                workers.ok_or_else(|| "use 1 to 16".to_owned())
            })?,
            log: setting(
                find("log", &flags.log),
                || Level::INFO,
                |text| match text {
                    "error" => Ok(Level::ERROR),
                    "warn" => Ok(Level::WARN),
                    "info" => Ok(Level::INFO),
                    "debug" => Ok(Level::DEBUG),
                    "trace" => Ok(Level::TRACE),
                    _ => Err("use error, warn, info, debug or trace".to_owned()),
                },
            )?,
            offloads: setting(find("offload", &flags.offload), Offloads::default, |text| {
                text.parse().map_err(|error: crate::types::OffloadError| error.to_string())
            })?,
            rekey_interval: setting(
                find("rekey_interval", &flags.rekey_interval),
                || LONGEST_REKEY,
                |text| {
                    let interval = humantime::parse_duration(text).ok();
                    let allowed = SHORTEST_REKEY..=LONGEST_REKEY;
                    let interval = interval.filter(|interval| allowed.contains(interval));
                    interval.ok_or_else(|| "use a time from 1s to 120s".to_owned())
                },
            )?,
            docker_socket: path_of(
                find("docker_socket", &flags.docker_socket),
                "/var/run/docker.sock",
            ),
            // Said once by whoever starts it, so no setting.
            restore: flags.restore.clone().map(|file| (file, flags.passphrase_file.clone())),
        })
    }
}

/// Reads one setting that stands somewhere, or takes the default.
fn setting<T>(
    found: Option<(String, String)>,
    default: impl FnOnce() -> T,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> anyhow::Result<T> {
    let Some((place, text)) = found else { return Ok(default()) };
    match parse(&text) {
        Ok(value) => Ok(value),
        Err(allowed) => bail!("setting {place}: '{text}' is not allowed; {allowed}"),
    }
}

/// Reads the file into the texts that flags would have.
fn read_file(path: &Path, text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let shown = path.display();
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        anyhow::anyhow!("read {shown}: {}; write KEY = VALUE lines", error.message())
    })?;
    let mut texts = BTreeMap::new();
    for (key, value) in table {
        if !KEYS.contains(&key.as_str()) {
            bail!("setting {key} in {shown}: there is no such setting; use {}", KEYS.join(", "));
        }
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_)
            | toml::Value::Array(_)
            | toml::Value::Table(_) => {
                bail!(
                    "setting {key} in {shown}: it is no text and no number; write {key} = \"...\""
                )
            }
        };
        texts.insert(key, text);
    }
    Ok(texts)
}

/// One worker carries several gigabits; more than four only help machines that say so.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(4))
}

const DEFAULT_FILE: &str = "/etc/overlay/overlayd.toml";
const KEYS: [&str; 7] =
    ["docker_socket", "log", "offload", "rekey_interval", "socket", "state_dir", "workers"];
const SHORTEST_REKEY: Duration = Duration::from_secs(1);
/// A key is not used beyond 180 s, and a renewal needs time to succeed.
const LONGEST_REKEY: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flags: &[&str], env: &[(&str, &str)], file: Option<&str>) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("overlayd.toml");
        let mut args = vec!["overlayd".to_owned()];
        args.extend(flags.iter().map(ToString::to_string));
        fs::write(&path, file.unwrap_or("")).unwrap();
        args.extend(["--config".to_owned(), path.display().to_string()]);
        let find = |name: &str| {
            env.iter().find(|(other, _)| *other == name).map(|(_, text)| (*text).to_owned())
        };
        Settings::read(Flags::try_parse_from(args).unwrap(), find)
            .map_err(|error| format!("{error:#}").replace(&path.display().to_string(), "FILE"))
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let file = "workers = 1\nstate_dir = \"/file\"\ndocker_socket = \"/d\"\nlog = \"debug\"\n";
        let env = [("OVERLAY_WORKERS", "2"), ("OVERLAY_STATE_DIR", "/env")];
        let settings = read(&["--workers", "3"], &env, Some(file)).unwrap();
        assert_eq!(settings.workers, 3);
        assert_eq!(settings.state_dir, PathBuf::from("/env"));
        assert_eq!(settings.log, Level::DEBUG);
        assert_eq!(settings.socket, PathBuf::from("/run/overlay/overlayd.sock"));
        assert_eq!(settings.docker_socket, PathBuf::from("/d"));
        assert_eq!(settings.rekey_interval, Duration::from_secs(120));
    }

    #[test]
    fn a_wrong_setting_is_named_with_its_place_and_what_is_allowed() {
        let check = |flags: &[&str], env: &[(&str, &str)], file: &str, sentence: &str| {
            assert_eq!(read(flags, env, Some(file)).unwrap_err(), sentence);
        };
        check(&["--workers", "0"], &[], "", "setting --workers: '0' is not allowed; use 1 to 16");
        check(
            &[],
            &[("OVERLAY_LOG", "loud")],
            "",
            "setting OVERLAY_LOG: 'loud' is not allowed; use error, warn, info, debug or trace",
        );
        check(
            &[],
            &[],
            "rekey_interval = \"5m\"",
            "setting rekey_interval in FILE: '5m' is not allowed; use a time from 1s to 120s",
        );
        check(
            &["--offload", "warp=on"],
            &[],
            "",
            "setting --offload: 'warp=on' is not allowed; 'warp' is no offload; there are tun-vnet, tun-csum, tun-tso (tun-tso4, tun-tso6), tun-uso (tun-uso4, tun-uso6), udp-gso, udp-gro",
        );
        check(
            &[],
            &[],
            "wokers = 2",
            "setting wokers in FILE: there is no such setting; use docker_socket, log, offload, rekey_interval, socket, state_dir, workers",
        );
        check(
            &[],
            &[],
            "workers = true",
            "setting workers in FILE: it is no text and no number; write workers = \"...\"",
        );
    }

    #[test]
    fn a_named_file_must_be_there() {
        let flags = Flags { config: Some("/no/such/file".into()), ..Flags::default() };
        let error = Settings::read(flags, |_| None).unwrap_err().to_string();
        assert_eq!(
            error,
            "read /no/such/file: No such file or directory (os error 2); name one that can be read with --config"
        );
    }
}
