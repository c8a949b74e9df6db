//! Namespaces without root: finds out by trying whether a TUN can be made here, and otherwise starts
//! this program again inside a user namespace of its own.

use std::{
    ffi::OsStr,
    fs::OpenOptions,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, anyhow};

use crate::{process, system};

/// Set in the environment of what runs inside our user namespace.
const INSIDE: &str = "OVERLAY_XTASK_USERNS";

/// The unprivileged namespaces; `/run` is hidden by an own one so that `ip netns` can write there,
/// and the loopback is up as everywhere.
const UNSHARE: [&str; 5] = ["--user", "--map-root-user", "--net", "--mount", "--"];
const OWN_RUN: &str = "mount -t tmpfs -o mode=755 tmpfs /run && ip link set lo up && exec \"$@\"";

/// Whether this process runs inside the user namespace that [`reenter`] made.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs this program again with the same words and `environment` inside a user namespace, unless
/// that is not needed, and returns its exit code. One sentence says what is missing where neither is
/// possible.
pub fn reenter(environment: &[(&str, &OsStr)]) -> anyhow::Result<Option<ExitCode>> {
    if rustix::process::geteuid().is_root() {
        let direct = process::output(system::tool("unshare").arg("--net").args(make_tun()));
        match direct {
            Ok(_) => return Ok(None),
            Err(error) if inside() => return Err(missing(&error)),
            Err(_) => {}
        }
    }
    process::output(&mut unshare(make_tun())).map_err(|error| missing(&error))?;
    let program = std::env::current_exe().context("find this program")?;
    let words = std::iter::once(program.into_os_string()).chain(std::env::args_os().skip(1));
    let mut again = unshare(words);
    again.env(INSIDE, "1").envs(environment.iter().copied());
    let status = process::status_forwarding(&mut again)?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(Some(code.map_or(ExitCode::FAILURE, ExitCode::from)))
}

/// A command inside new user, network and mount namespaces.
fn unshare<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Command {
    let mut command = system::tool("unshare");
    command.args(UNSHARE).args(["sh", "-c", OWN_RUN, "sh"]).args(words);
    command
}

fn make_tun() -> Vec<std::ffi::OsString> {
    let ip = system::tool("ip").get_program().to_owned();
    let words = ["tuntap", "add", "dev", "probe0", "mode", "tun"];
    std::iter::once(ip).chain(words.map(Into::into)).collect()
}

fn missing(tried: &anyhow::Error) -> anyhow::Error {
    let tun = Path::new("/dev/net/tun");
    if !tun.exists() {
        return anyhow!(
            "/dev/net/tun is missing: load the module (modprobe tun), or pass the device into this container"
        );
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open(tun) {
        return anyhow!(
            "/dev/net/tun cannot be opened ({error}): as root, chmod 0666 /dev/net/tun, or run this as root"
        );
    }
    let said = tried.to_string();
    let said =
        said.lines().next().and_then(|line| line.rsplit("ended with ").next()).unwrap_or_default();
    anyhow!(
        "no network namespace with a TUN can be made ({said}): allow user namespaces (sysctl user.max_user_namespaces, \
         kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), or run this as root"
    )
}
