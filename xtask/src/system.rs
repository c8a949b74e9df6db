//! Programs of the distribution that a verb needs: installed by its package manager when we are
//! root (saying so), else named with the command that installs them.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::process;

/// Programs that every lab needs.
pub const LAB: &[&str] = &["ip", "ping", "nsenter", "setsid", "unshare"];

/// What turns a device's offloads off.
pub const ETHTOOL: &[&str] = &["ethtool"];

/// Programs that the tests need besides.
pub const TESTS: &[&str] = &["ethtool", "python3", "cc"];

/// Programs that the test with Docker needs, as the real root. The second comes with the first where it
/// has no package of its own.
pub const DOCKER: [&[&str]; 2] = [&["dockerd", "busybox"], &["docker"]];

/// What the long runs need besides the tests' programs.
pub const PROVE: &[&str] = &["iperf3"];

/// A package manager: its program, how it refreshes and installs, its names of our programs' packages.
struct Manager {
    program: &'static str,
    refresh: Option<&'static str>,
    install: &'static str,
    packages: [&'static str; 10],
}

/// The programs, in the order of `Manager::packages`; those of util-linux share the last column.
const PROGRAMS: [&str; 9] =
    ["ip", "ethtool", "ping", "python3", "cc", "dockerd", "docker", "busybox", "iperf3"];

const MANAGERS: [Manager; 5] = [
    Manager {
        program: "apt-get",
        refresh: Some("apt-get update -qq"),
        install: "apt-get install -y -qq --no-install-recommends",
        packages: [
            "iproute2",
            "ethtool",
            "iputils-ping",
            "python3",
            "gcc",
            "docker.io",
            "docker-cli",
            "busybox-static",
            "iperf3",
            "util-linux",
        ],
    },
    Manager {
        program: "dnf",
        refresh: None,
        install: "dnf install -y -q",
        packages: [
            "iproute",
            "ethtool",
            "iputils",
            "python3",
            "gcc",
            "moby-engine",
            "docker-cli",
            "busybox",
            "iperf3",
            "util-linux",
        ],
    },
    Manager {
        program: "zypper",
        refresh: None,
        install: "zypper --non-interactive --quiet install",
        packages: [
            "iproute2",
            "ethtool",
            "iputils",
            "python3",
            "gcc",
            "docker",
            "docker",
            "busybox-static",
            "iperf",
            "util-linux",
        ],
    },
    Manager {
        program: "pacman",
        refresh: None,
        install: "pacman -Sy --noconfirm --needed",
        packages: [
            "iproute2",
            "ethtool",
            "iputils",
            "python",
            "gcc",
            "docker",
            "docker",
            "busybox",
            "iperf3",
            "util-linux",
        ],
    },
    Manager {
        program: "apk",
        refresh: None,
        install: "apk add --quiet --no-cache",
        packages: [
            "iproute2",
            "ethtool",
            "iputils",
            "python3",
            "gcc",
            "docker-engine",
            "docker-cli",
            "busybox-static",
            "iperf3",
            "util-linux",
        ],
    },
];

impl Manager {
    fn package(&self, program: &str) -> &'static str {
        let column = PROGRAMS.iter().position(|name| *name == program);
        self.packages[column.unwrap_or(PROGRAMS.len())]
    }
}

/// Makes sure that the programs are there.
pub fn need(programs: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<&str> = programs.iter().copied().filter(|name| find(name).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(", ");
    let Some(manager) = MANAGERS.iter().find(|manager| find(manager.program).is_some()) else {
        bail!("{names} not found, nor a package manager that this tool knows; install them");
    };
    let packages: BTreeSet<&str> = missing.iter().map(|name| manager.package(name)).collect();
    let packages: Vec<&str> = packages.into_iter().collect();
    let install = format!("{} {}", manager.install, packages.join(" "));
    if !rustix::process::geteuid().is_root() {
        bail!("{names} not found; as root: {install}");
    }
    process::complain(format_args!("{names} not found, so: {install}"));
    let _no_services = NoServices::begin()?;
    for line in manager.refresh.into_iter().chain([install.as_str()]) {
        let mut command = process::command(line.split(' '));
        process::run(command.env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    match missing.iter().find(|name| find(name).is_none()) {
        Some(name) => bail!("{name} is still not found after `{install}`"),
        None => Ok(()),
    }
}

/// While it is there a Debian's package manager starts no services: what is needed are programs.
struct NoServices;

impl NoServices {
    /// Begins that, unless somebody has said already what may be started.
    fn begin() -> anyhow::Result<Option<Self>> {
        let path = Path::new(POLICY);
        if path.exists() || find("invoke-rc.d").is_none() {
            return Ok(None);
        }
        let write = || format!("write {POLICY}");
        fs::write(path, "#!/bin/sh\nexit 101\n").with_context(write)?;
        let ours = Self;
        fs::set_permissions(path, Permissions::from_mode(0o755)).with_context(write)?;
        Ok(Some(ours))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(POLICY) {
            process::complain(format_args!(
                "remove {POLICY}: {error}; services do not start until it is gone"
            ));
        }
    }
}

/// Asked before a service is started.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// A command of the distribution, found also where an ordinary user's PATH does not lead.
pub fn tool(name: &str) -> Command {
    Command::new(find(name).unwrap_or_else(|| name.into()))
}

/// Where a program is, as [`tool`] would find it.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_needed_program_has_its_package() {
        for manager in &MANAGERS {
            for program in LAB.iter().chain(TESTS).chain(PROVE).chain(DOCKER.concat().iter()) {
                let package = manager.package(program);
                let expected_shared = !PROGRAMS.contains(program);
                assert_eq!(package == "util-linux", expected_shared, "{program}");
            }
        }
    }

    #[test]
    fn programs_are_found_as_the_shell_finds_them() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
