//! `cargo xtask dist`: what is put on hosts, in one folder: the two programs, each one file that needs
//! no library of the host, the unit file, and completions for shells.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, ensure};

use crate::{
    process::{self, command, say},
    workspace,
};

/// Builds the programs statically and puts them beside what belongs to them.
#[derive(clap::Args)]
pub struct Args {
    /// Where to; target/dist unless given
    #[arg(long)]
    into: Option<PathBuf>,
}

/// Builds, checks and copies.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = workspace::cargo(["build", "--release", "--bins", "--package", "overlay"]);
    // Naming the target keeps build scripts and macros, which must stay dynamic, out of it.
    build.args(["--target", &target]).env("RUSTFLAGS", "-C target-feature=+crt-static");
    // What a backtrace would show stays with whoever builds.
    build.env("CARGO_PROFILE_RELEASE_DEBUG", "false").env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    process::run(&mut build)?;
    let folder = workspace::target()?;
    let built = folder.join(&target).join("release");
    let into = args.into.clone().unwrap_or_else(|| folder.join("dist"));
    fs::create_dir_all(&into).with_context(|| format!("make {}", into.display()))?;
    for program in ["overlayd", "overlayctl"] {
        let (from, to) = (built.join(program), into.join(program));
        copy(&from, &to)?;
        let mut libraries = command(["ldd"]);
        libraries.arg(&to);
        // ldd fails for a program that is not dynamic, and says so.
        let said = libraries.output().context("run ldd")?;
        let said = [said.stdout, said.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        ensure!(
            said.contains("not a dynamic executable") || said.contains("statically linked"),
            "{} needs libraries of the host: {said}",
            to.display()
        );
    }
    let unit = workspace::root().join("xtask/dist/overlayd.service");
    copy(&unit, &into.join("overlayd.service"))?;
    for shell in ["bash", "zsh", "fish"] {
        let mut completion = command([into.join("overlayctl").as_os_str()]);
        completion.args(["completion", shell]);
        let text = process::output(&mut completion)?;
        let path = into.join(format!("overlayctl.{shell}"));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    say(format_args!("{}: overlayd, overlayctl, overlayd.service, completions", into.display()));
    Ok(ExitCode::SUCCESS)
}

fn copy(from: &std::path::Path, to: &std::path::Path) -> anyhow::Result<()> {
    fs::copy(from, to)
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))
        .map(drop)
}
