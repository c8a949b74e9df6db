//! From the supervisor's child to the task's command: who it is, what it may, where it starts.
//!
//! What keeps it from starting is said on its standard input, which is a pipe to the supervisor until the
//! command has it, empty.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use rustix::{
    io::fcntl_dupfd_cloexec,
    process::setsid,
    stdio,
    thread::{
        CapabilitySet, remove_capability_from_bounding_set, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid,
    },
};

use super::{Definition, TaskFolder, cgroup::Cgroup, user::User};
use crate::types::TaskSpec;

/// What a process of a task is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its command.
    Command,
    /// Its health check.
    Check,
}

/// Becomes the command of the task in a folder, or its health check; returns only if that fails.
pub fn exec(folder: &Path, stage: Stage) -> ExitCode {
    let Ok(said) = fcntl_dupfd_cloexec(stdio::stdin(), 3) else { return ExitCode::FAILURE };
    let folder = TaskFolder(folder.to_owned());
    let Err(why) = become_command(&folder, stage);
    // The supervisor sees an end without a word if this fails.
    let _ = File::from(said).write_all(why.as_bytes());
    ExitCode::FAILURE
}

fn become_command(folder: &TaskFolder, stage: Stage) -> Result<Infallible, String> {
    let text = std::fs::read(folder.definition());
    let text = text.map_err(|error| format!("read {}: {error}", folder.definition().display()))?;
    let definition: Definition =
        serde_json::from_slice(&text).map_err(|error| format!("read task.json: {error}"))?;
    let spec = &definition.spec;
    let user = User::find(spec.user.as_deref())?;
    let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");

    Cgroup::existing(definition.id, &spec.limits).join().map_err(failed("join control groups"))?;
    // A group and session of its own.
    setsid().map_err(|error| failed("make a session")(error.into()))?;
    for capability in dropped(spec)? {
        match remove_capability_from_bounding_set(capability) {
            // A kernel that does not know it gives it to nobody.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(failed("drop capabilities")(error.into())),
        }
    }
    set_no_new_privs(true).map_err(|error| failed("set no_new_privs")(error.into()))?;
    set_thread_groups(&user.groups)
        .and_then(|()| set_thread_res_gid(user.gid, user.gid, user.gid))
        .and_then(|()| set_thread_res_uid(user.uid, user.uid, user.uid))
        .map_err(|error| format!("be user {}: {error}", user.uid.as_raw()))?;

    let words = match (&spec.health, stage) {
        (Some(health), Stage::Check) => {
            vec!["/bin/sh".to_owned(), "-c".to_owned(), health.command.clone()]
        }
        (Some(_) | None, _) => spec.command.clone(),
    };
    let [program, arguments @ ..] = &words[..] else { return Err("there is no command".into()) };
    let workdir = spec.workdir.as_deref().unwrap_or("/");
    std::env::set_current_dir(workdir)
        .map_err(|error| format!("work folder {workdir}: {error}; make it on this node"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).env_clear();
    command.env("PATH", PATH).env("HOME", &user.home);
    command.env("HOSTNAME", spec.hostname.as_deref().unwrap_or(&definition.name));
    command.envs(spec.env.iter().map(|var| (&var.name, &var.value)));
    let error = command.exec();
    Err(match error.kind() {
        io::ErrorKind::NotFound => format!("command {program} is not found on this node"),
        io::ErrorKind::PermissionDenied => format!("{program} may not be executed"),
        _ => format!("execute {program}: {error}"),
    })
}

/// The capabilities that the command does not get: all but Docker's usual ones, as the definition
/// changes them.
fn dropped(spec: &TaskSpec) -> Result<Vec<CapabilitySet>, String> {
    let named = |names: &[String]| {
        names.iter().try_fold(CapabilitySet::empty(), |set, name| match name.as_str() {
            "ALL" => Ok(CapabilitySet::all()),
            name => CapabilitySet::from_name(name)
                .map(|one| set | one)
                .ok_or_else(|| format!("there is no capability {name} here")),
        })
    };
    let usual = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FSETID
        | CapabilitySet::FOWNER
        | CapabilitySet::MKNOD
        | CapabilitySet::NET_RAW
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::SETFCAP
        | CapabilitySet::SETPCAP
        | CapabilitySet::NET_BIND_SERVICE
        | CapabilitySet::SYS_CHROOT
        | CapabilitySet::KILL
        | CapabilitySet::AUDIT_WRITE;
    // What is dropped by name stays dropped; `--cap-drop ALL --cap-add X` leaves X, as Docker has it.
    let dropped = named(&spec.capabilities_dropped)?;
    let kept = (usual - dropped) | named(&spec.capabilities_added)?;
    Ok((CapabilitySet::all() - kept).iter().collect())
}

/// Docker's.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
