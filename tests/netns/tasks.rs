//! Tasks as processes: supervisors and commands in real namespaces, found again, stopped, killed.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Child,
    time::Duration,
};

use overlay::{
    executor::{Definition, Found, Process, StartError, TaskFolder, forget, kept, read_lines},
    types::{
        EnvVar, Exit, HealthCheck, Limits, Mount, MountSource, Stop, TaskId, TaskSpec, TaskState,
        TaskStatus,
    },
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;

/// A node's state folder with one task.
struct Bed {
    state: tempfile::TempDir,
    folder: TaskFolder,
    id: TaskId,
}

impl Bed {
    fn new(id: u128) -> Self {
        let (state, id) = (tempfile::tempdir().unwrap(), TaskId::from_u128(id));
        let folder = TaskFolder::of(state.path(), id);
        Self { state, folder, id }
    }

    fn volumes(&self) -> PathBuf {
        self.state.path().join("volumes")
    }

    async fn prepare(&self, spec: TaskSpec) -> Result<(Process, Child), StartError> {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_overlayd"));
        let (id, name, volumes) = (self.id, "web.1".to_owned(), self.volumes());
        let definition = Definition { id, name, spec, volumes };
        Process::start(program, &self.folder, &definition).await
    }

    /// Prepares and starts it; it must come to run.
    async fn run(&self, spec: TaskSpec) -> (Process, Child) {
        let (mut process, child) = self.prepare(spec).await.unwrap();
        assert_eq!(next(&mut process).await.state, TaskState::Ready);
        process.start_command().await.unwrap();
        (process, child)
    }

    /// Runs it to its end; returns how that was and what was said.
    async fn to_its_end(&self, spec: TaskSpec) -> (TaskStatus, Vec<String>) {
        let (mut process, mut child) = self.run(spec).await;
        let ended = end(&mut process).await;
        child.wait().unwrap();
        (ended, self.said())
    }

    fn said(&self) -> Vec<String> {
        let lines = read_lines(&self.folder.log(), None).unwrap();
        lines.iter().map(|line| String::from_utf8_lossy(&line.text).into_owned()).collect()
    }

    /// Why it is rejected.
    async fn rejected(&self, spec: TaskSpec) -> String {
        match self.prepare(spec).await {
            Err(StartError::Rejected(why)) => why,
            Err(other) => panic!("{other}"),
            Ok((mut process, mut child)) => {
                process.start_command().await.unwrap();
                let ended = end(&mut process).await;
                child.wait().unwrap();
                assert_eq!((ended.state, ended.exit), (TaskState::Rejected, None));
                ended.message.unwrap()
            }
        }
    }
}

impl Drop for Bed {
    /// A test that fails leaves no supervisor.
    fn drop(&mut self) {
        let folder = self.folder.path().display().to_string();
        for process in processes() {
            let command = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
            let of_task: [&[u8]; 3] = [b"task", b"run", folder.as_bytes()];
            if words.len() > 3 && words[1..4] == of_task {
                kill(process);
            }
        }
    }
}

async fn next(process: &mut Process) -> TaskStatus {
    timeout(Duration::from_secs(20), process.next()).await.expect("a report")
}

async fn state(process: &mut Process, state: TaskState) {
    while next(process).await.state != state {}
}

async fn end(process: &mut Process) -> TaskStatus {
    loop {
        let report = next(process).await;
        if report.state.has_ended() {
            return report;
        }
    }
}

fn sh(script: &str) -> TaskSpec {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    TaskSpec { command, ..TaskSpec::default() }
}

#[tokio::test]
async fn a_command_has_namespaces_of_its_own_and_its_end_is_kept() {
    let bed = Bed::new(1);
    let mut spec = sh("echo $$; hostname; echo \"$A $PATH $HOME\"; pwd; echo oops >&2; exit 3");
    spec.env = vec![EnvVar { name: "A".into(), value: "b c".into() }];
    spec.workdir = Some("/tmp".into());
    let (ended, mut said) = bed.to_its_end(spec).await;
    assert_eq!((ended.state, ended.exit), (TaskState::Failed, Some(Exit::Status(3))));
    said.sort();
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let env = format!("b c {path} /root");
    assert_eq!(said, ["/tmp", "2", &env, "oops", "web.1"]);
    // It is known afterwards too, until it is forgotten.
    let Found::Ended(again) = Process::find(&bed.folder).await else { panic!("it runs") };
    assert_eq!(again, ended);
    assert_eq!(kept(bed.state.path()).unwrap(), [bed.id]);
    forget(&bed.folder).unwrap();
    assert_eq!(kept(bed.state.path()).unwrap(), []);
}

#[tokio::test]
async fn a_command_that_ends_well_is_complete() {
    let (ended, said) = Bed::new(2).to_its_end(sh("hostname")).await;
    assert_eq!((ended.state, ended.exit), (TaskState::Complete, Some(Exit::Status(0))));
    assert_eq!(said, ["web.1"]);
}

#[tokio::test]
async fn what_cannot_run_here_is_rejected_with_a_sentence() {
    let command = |word: &str| TaskSpec { command: vec![word.to_owned()], ..TaskSpec::default() };
    let bed = Bed::new(3);
    let script = bed.state.path().join("script");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
    let script = script.display().to_string();
    let not_executable = format!("{script} may not be executed");
    let source = |path: &str| {
        let source = MountSource::Bind(path.to_owned());
        let mount = Mount { source, target: "/mnt".into(), read_only: false };
        TaskSpec { mounts: vec![mount], ..sh("true") }
    };
    let cpus = std::thread::available_parallelism().unwrap();
    let limits = |cpu_milli, memory_bytes| TaskSpec {
        limits: Limits { cpu_milli, memory_bytes, pids: None },
        ..sh("true")
    };
    for (spec, sentence) in [
        (command("no-such-program"), "command no-such-program is not found on this node"),
        (command(&script), not_executable.as_str()),
        (
            TaskSpec { user: Some("nobody-knows".into()), ..sh("true") },
            "there is no user 'nobody-knows' on this node",
        ),
        (
            TaskSpec { workdir: Some("/no/such".into()), ..sh("true") },
            "work folder /no/such: No such file or directory (os error 2); make it on this node",
        ),
        (source("/no/such"), "mount source /no/such is not there; make it on this node"),
        (
            limits(Some(1_000_000), None),
            &format!("a limit of 1000 cpus is above the {cpus} of this node"),
        ),
    ] {
        let bed = Bed::new(4);
        assert_eq!(bed.rejected(spec).await, sentence);
    }
    // Their supervisors were waited for; those of other tests are at once.
    let none_waits = async {
        while processes().any(is_ended_child) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), none_waits).await.expect("somebody waits for supervisors");
    let why = Bed::new(5).rejected(limits(None, Some(1 << 60))).await;
    assert!(why.starts_with("a memory limit of 1152921504606846976 bytes is above the "), "{why}");
}

#[tokio::test]
async fn it_is_stopped_by_its_signal_and_killed_after_the_grace_period() {
    let stop = |signal, grace_ms| Stop { signal, grace_period: Duration::from_millis(grace_ms) };
    let bed = Bed::new(6);
    let spec = TaskSpec {
        stop: stop(2, 20_000),
        ..sh("trap 'echo bye; exit 7' INT; echo up; while :; do sleep 0.05; done")
    };
    let (mut process, mut child) = bed.run(spec).await;
    await_said(&bed, "up").await;
    process.stop().await.unwrap();
    let ended = end(&mut process).await;
    assert_eq!((ended.state, ended.exit), (TaskState::Shutdown, Some(Exit::Status(7))));
    assert_eq!(bed.said(), ["up", "bye"]);
    child.wait().unwrap();

    let bed = Bed::new(7);
    let deaf = TaskSpec { stop: stop(15, 300), ..sh("trap '' TERM; echo up; sleep 1000") };
    let (mut process, mut child) = bed.run(deaf).await;
    await_said(&bed, "up").await;
    process.stop().await.unwrap();
    let ended = end(&mut process).await;
    assert_eq!((ended.state, ended.exit), (TaskState::Shutdown, Some(Exit::Signal(9))));
    child.wait().unwrap();

    // One that has not started has nothing to stop.
    let bed = Bed::new(8);
    let (mut process, mut child) = bed.prepare(sh("true")).await.unwrap();
    process.stop().await.unwrap();
    let ended = end(&mut process).await;
    assert_eq!((ended.state, ended.exit), (TaskState::Shutdown, None));
    child.wait().unwrap();
}

#[tokio::test]
async fn all_that_a_command_started_ends_with_it() {
    let bed = Bed::new(9);
    let spec = sh("setsid sleep 1000 & (sleep 1000 &) ; echo up; exec sleep 1000");
    let (mut process, mut child) = bed.run(spec).await;
    await_said(&bed, "up").await;
    let namespace = pid_namespace(child.id());
    assert!(inside(&namespace).len() >= 4, "the supervisor, the command and two more");
    process.stop().await.unwrap();
    end(&mut process).await;
    child.wait().unwrap();
    assert_eq!(inside(&namespace), [0; 0]);
}

#[tokio::test]
async fn it_outlives_who_started_it_and_is_found_again() {
    let bed = Bed::new(10);
    let (process, mut child) = bed.run(sh("echo up; exec sleep 1000")).await;
    await_said(&bed, "up").await;
    drop(process);
    let Found::Runs(mut process) = Process::find(&bed.folder).await else { panic!("it ended") };
    assert_eq!(next(&mut process).await.state, TaskState::Running);
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(fs::read_link(format!("/proc/{}/ns/net", process.supervisor())).unwrap(), own);

    // Its supervisor is killed, and the command with it.
    let namespace = pid_namespace(child.id());
    kill(child.id());
    child.wait().unwrap();
    let ended = end(&mut process).await;
    assert_eq!(ended.state, TaskState::Failed);
    assert_eq!(
        ended.message.as_deref(),
        Some("its supervisor was killed, and the command with it")
    );
    assert_eq!(inside(&namespace), [0; 0]);
}

#[tokio::test]
async fn it_runs_when_it_is_well_and_ends_when_it_is_not() {
    let bed = Bed::new(11);
    let flag = bed.state.path().join("well");
    let health = HealthCheck {
        command: format!("test -e {}", flag.display()),
        interval: Duration::from_millis(50),
        timeout: Duration::from_secs(5),
        retries: 2,
        start_period: Duration::from_secs(60),
    };
    let spec = TaskSpec { health: Some(health), ..sh("echo up; exec sleep 1000") };
    let (mut process, mut child) = bed.run(spec).await;
    state(&mut process, TaskState::Starting).await;
    await_said(&bed, "up").await;
    fs::write(&flag, "").unwrap();
    state(&mut process, TaskState::Running).await;
    fs::remove_file(&flag).unwrap();
    let ended = end(&mut process).await;
    assert_eq!(ended.state, TaskState::Failed);
    let message = "unhealthy: its check failed 2 times in a row";
    assert_eq!(ended.message.as_deref(), Some(message));
    child.wait().unwrap();
}

#[tokio::test]
async fn it_sees_what_is_mounted_and_may_only_what_it_may() {
    let bed = Bed::new(12);
    let [shared, target] = ["shared", "target"].map(|name| bed.state.path().join(name));
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("a"), "from the node\n").unwrap();
    let at = |name: &str| target.join(name).display().to_string();
    let mount = |source, name: &str, read_only| Mount { source, target: at(name), read_only };
    let mut spec = sh(&format!(
        "cat {0}/a; touch {0}/b 2>/dev/null || echo read-only; echo kept >{1}/c; stat -f -c %T {2}; grep -E 'CapBnd|NoNewPrivs' /proc/self/status; id -u",
        at("bind"),
        at("volume"),
        at("memory"),
    ));
    spec.mounts = vec![
        mount(MountSource::Bind(shared.display().to_string()), "bind", true),
        mount(MountSource::Volume("data".parse().unwrap()), "volume", false),
        mount(MountSource::Tmpfs(Some(1 << 20)), "memory", false),
    ];
    let (ended, said) = bed.to_its_end(spec.clone()).await;
    assert_eq!(ended.exit, Some(Exit::Status(0)));
    // The capabilities that Docker gives.
    let usual = ["CapBnd:\t00000000a80425fb", "NoNewPrivs:\t1", "0"];
    assert_eq!(said[..3], ["from the node", "read-only", "tmpfs"]);
    assert_eq!(said[3..], usual);
    assert_eq!(fs::read_to_string(bed.volumes().join("data/c")).unwrap(), "kept\n");
    assert_eq!(fs::read_dir(target.join("volume")).unwrap().count(), 0, "not the node's mount");

    let bed = Bed::new(13);
    let mut spec = sh("grep CapBnd /proc/self/status; grep CapEff /proc/self/status; id -u; id -g");
    spec.user = Some("12345:54321".into());
    spec.capabilities_dropped = vec!["ALL".into()];
    spec.capabilities_added = vec!["NET_ADMIN".into()];
    let (_, said) = bed.to_its_end(spec).await;
    let [bounding, effective] = ["CapBnd:\t0000000000001000", "CapEff:\t0000000000000000"];
    assert_eq!(said, [bounding, effective, "12345", "54321"]);
}

#[tokio::test]
async fn it_cannot_go_beyond_its_limits() {
    let bed = Bed::new(14);
    let limits = Limits { cpu_milli: Some(500), memory_bytes: Some(32 << 20), pids: Some(50) };
    let spec =
        TaskSpec { limits, ..sh("head -c 200m /dev/zero | tail -c 150m | wc -c; kill -9 $$") };
    let (ended, _) = bed.to_its_end(spec).await;
    assert_eq!(ended.state, TaskState::Failed);
    let message = "killed because its memory limit was reached";
    assert_eq!(ended.message.as_deref(), Some(message));
    for controller in ["cpu", "memory", "pids"] {
        let group = format!("/sys/fs/cgroup/{controller}/overlay/{}", bed.id);
        assert!(!Path::new(&group).exists(), "{group} is left");
    }
}

/// Waits until the command has said a line.
async fn await_said(bed: &Bed, line: &str) {
    let said = async {
        while !bed.said().iter().any(|said| said == line) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), said).await.expect("it speaks");
}

/// The process namespace of a supervisor.
fn pid_namespace(supervisor: u32) -> PathBuf {
    fs::read_link(format!("/proc/{supervisor}/ns/pid")).unwrap()
}

/// The processes in a process namespace.
fn inside(namespace: &Path) -> Vec<u32> {
    let is_inside = |process: &u32| {
        let of_process = fs::read_link(format!("/proc/{process}/ns/pid"));
        of_process.is_ok_and(|of_process| of_process == namespace)
    };
    processes().filter(is_inside).collect()
}

/// Whether a process is a child of this one that has ended and that nobody has waited for.
fn is_ended_child(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let mut after_name = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let (state, parent) = (after_name.next(), after_name.next());
    state == Some("Z") && parent == Some(&std::process::id().to_string())
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| {
        entry.unwrap().file_name().to_str().and_then(|name| name.parse::<u32>().ok())
    })
}

fn kill(process: u32) {
    let pid = Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    // It may have ended this moment.
    let _ = kill_process(pid, Signal::KILL);
}
