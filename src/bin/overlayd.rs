//! The daemon of a node: reads its settings, takes its state folder and socket, and serves until it
//! is told to end.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::IsTerminal as _,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser as _;
use overlay::{
    agent::{
        Identity, Node, Options, Records, Socket, StartManager, StateDir, StopManager,
        dataplane::check, serve,
    },
    config::{Flags, Settings},
    executor::{Stage, exec, supervise},
    manager::Manager,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{Level, info, level_filters::LevelFilter, warn};
use tracing_subscriber::{
    Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

fn main() -> ExitCode {
    // What this program starts of itself for a task, and nobody else does.
    let words: Vec<OsString> = env::args_os().skip(1).collect();
    if let [first, stage, folder] = &words[..]
        && first == "task"
    {
        return run_task(stage, Path::new(folder));
    }
    let flags = Flags::parse();
    let started = Settings::read(flags, |name| env::var(name).ok()).and_then(|settings| {
        start_log(settings.log);
        raise_descriptor_limit();
        Runtime::new().context("start the runtime")?.block_on(run(settings))
    });
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overlayd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A task's supervisor, or what becomes its command.
fn run_task(stage: &OsStr, folder: &Path) -> ExitCode {
    match stage.to_str() {
        Some("run") => supervise(folder),
        Some("exec") => exec(folder, Stage::Command),
        Some("check") => exec(folder, Stage::Check),
        Some(_) | None => ExitCode::FAILURE,
    }
}

/// Every endpoint and every agent of a manager takes descriptors: shells give few of those that the
/// system permits.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    check()?;
    let state = Arc::new(StateDir::open(&settings.state_dir)?);
    if let Some((file, passphrase)) = &settings.restore {
        restore(&state, file, passphrase.as_deref())
            .with_context(|| format!("restore {}", file.display()))?;
        info!("restored from {}", file.display());
    }
    let identity = Identity::open(&state)?;
    let socket = Socket::bind(&settings.socket)?;
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let options = Options {
        state_dir: settings.state_dir,
        workers: settings.workers,
        offloads: settings.offloads,
        rekey_interval: settings.rekey_interval,
        docker_socket: settings.docker_socket,
        hostname,
    };
    let node = Arc::new(Node::new(options, identity, Records::new(state), start_manager()));
    node.resume().await?;
    let (stop, mut stopped) = watch::channel(false);
    let until_stopped = async move {
        // A dropped sender is a stop too.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let mut serving = tokio::spawn(serve(node.clone(), socket, until_stopped));
    info!("ready on {}", settings.socket.display());
    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = &mut serving => Some(ended),
    };
    info!("ending");
    node.shutdown().await;
    stop.send_replace(true);
    let ended = match ended {
        Some(ended) => Ok(ended),
        None => tokio::time::timeout(GRACE, &mut serving).await,
    };
    match ended {
        Ok(served) => served?,
        Err(_) => {
            // A call is still open: it ends here, and the socket's file with the server.
            serving.abort();
            let _ = serving.await;
            Ok(())
        }
    }
}

/// Puts a backup into an empty state folder; what makes it a member's comes last.
fn restore(state: &StateDir, file: &Path, passphrase: Option<&Path>) -> anyhow::Result<()> {
    let bytes = fs::read(file)?;
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    let passphrase = passphrase.map(read).transpose()?;
    let passphrase = passphrase.as_deref().map(|text| text.strip_suffix(b"\n").unwrap_or(text));
    let sections = Manager::restore(state.path(), &bytes, passphrase)?;
    Records::restore(state, &sections)
}

/// Gives the agent the way to a manager in this process.
fn start_manager() -> StartManager {
    fn stop(manager: Manager) -> StopManager {
        Box::new(|ending| Box::pin(manager.end(ending)))
    }
    StartManager {
        found: Box::new(|founding| {
            Box::pin(async move {
                let (manager, founded) = Manager::found(founding).await?;
                Ok((founded, stop(manager)))
            })
        }),
        join: Box::new(|joining| {
            Box::pin(async move {
                let (manager, listen_addr) = Manager::join(joining).await?;
                Ok((listen_addr, stop(manager)))
            })
        }),
        open: Box::new(|reopening| {
            Box::pin(async move { Ok(Manager::open(reopening).await?.map(stop)) })
        }),
    }
}

/// Our own events go to stderr from the chosen level up, those of libraries only as warnings.
fn start_log(level: Level) {
    let color = env::var_os("NO_COLOR").is_none() && std::io::stderr().is_terminal();
    // openraft tells of every call that fails; what matters of that is told once, by ours.
    let raft = LevelFilter::OFF;
    let ours = Targets::new().with_target("overlay", level).with_target("openraft", raft);
    let libraries = LevelFilter::from_level(level).min(LevelFilter::WARN);
    let events = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(color);
    tracing_subscriber::registry().with(events.with_filter(ours.with_default(libraries))).init();
}

/// What calls in progress are given at the end.
const GRACE: Duration = Duration::from_secs(1);
