//! `cargo xtask fuzz`: cargo-fuzz on the targets of tests/fuzz.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, bail};

use crate::{
    process::{self, command, say},
    workspace,
};

/// Runs one fuzz target, or lists them.
///
/// Starts from the committed corpus, which it leaves as it is. Needs a nightly toolchain and
/// cargo-fuzz.
#[derive(clap::Args)]
pub struct Args {
    /// The target, a file of tests/fuzz/fuzz_targets without its ending
    target: Option<String>,
    /// How long to run
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Plant a defect and start from nothing: success is to find it in time
    #[arg(long, conflicts_with = "keep")]
    plant: bool,
    /// Instead of fuzzing, list what of the parsers in src/wire the committed corpus does not reach
    #[arg(long, conflicts_with_all = ["target", "plant", "keep"])]
    coverage: bool,
    /// Add to the committed corpus what reaches something new
    #[arg(long)]
    keep: bool,
}

/// Runs the target until its time is over or it finds something.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.coverage {
        return coverage();
    }
    let targets = targets()?;
    let Some(target) = &args.target else {
        targets.iter().for_each(say);
        return Ok(ExitCode::SUCCESS);
    };
    if !targets.contains(target) {
        bail!("there is no fuzz target '{target}'; there are: {}", targets.join(", "));
    }
    need(&["cargo", "+nightly", "--version"], "rustup toolchain install nightly")?;
    need(&["cargo", "fuzz", "--version"], "cargo install cargo-fuzz")?;
    let options = [format!("-max_total_time={}", args.seconds), MAX_LEN.to_owned()];
    let options = options.each_ref().map(String::as_str);
    let scratch = Scratch::new()?;
    if args.plant {
        return planted(target, &options, &scratch);
    }
    let committed = folder().join("corpus").join(target);
    fs::create_dir_all(&committed).with_context(|| format!("make {}", committed.display()))?;
    let found = [scratch.corpus.as_path(), &committed];
    process::run(&mut fuzz("run", target, &[], &found, &options))?;
    if args.keep {
        let into = [committed.as_path(), &scratch.corpus];
        process::run(&mut fuzz("run", target, &[], &into, &["-merge=1", MAX_LEN]))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Super-packets of a few segments fit; longer inputs only slow the search down.
const MAX_LEN: &str = "-max_len=4096";

/// Runs the target with its planted defect from an empty corpus, and wants an input that shows it.
fn planted(target: &str, options: &[&str], scratch: &Scratch) -> anyhow::Result<ExitCode> {
    let features = ["--features", "plant"];
    process::run(&mut fuzz("build", target, &features, &[], &[]))?;
    let artifacts = scratch.artifacts.join("");
    let prefix = format!("-artifact_prefix={}", artifacts.display());
    let mut search =
        fuzz("run", target, &features, &[&scratch.corpus], &[options, &[&prefix]].concat());
    // It ends badly when it finds something; what it found says more.
    process::status(&mut search)?;
    let entries = fs::read_dir(&artifacts).with_context(|| format!("list {artifacts:?}"))?;
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let crashed = names.any(|name| name.starts_with("crash-"));
    say(if crashed { "the planted defect was found" } else { "the planted defect was NOT found" });
    Ok(if crashed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the parsers, instrumented by the compiler, on the committed corpus and lists what it did not
/// reach.
fn coverage() -> anyhow::Result<ExitCode> {
    need(&["cargo", "+nightly", "--version"], "rustup toolchain install nightly")?;
    let scratch = Scratch::new()?;
    let [replayed, own] = ["replay", "report"].map(|run| scratch.root.join(run));
    let corpus = folder().join("corpus");
    process::run(&mut instrumented("replay", &corpus, &replayed))?;
    process::run(&mut instrumented("report", &replayed, &own))?;
    Ok(ExitCode::SUCCESS)
}

/// A run of the program of tests/fuzz/reach, which leaves what it went through in `profile`.
fn instrumented(verb: &str, argument: &Path, profile: &Path) -> Command {
    let manifest = folder().join("reach/Cargo.toml");
    let mut run = command(["cargo", "+nightly", "run", "--quiet", "--manifest-path"]);
    run.arg(manifest).args(["--", verb]).arg(argument).env("LLVM_PROFILE_FILE", profile);
    run.env("RUSTFLAGS", "-C instrument-coverage -Z coverage-options=branch");
    on_its_own(&mut run);
    run
}

fn need(words: &[&str], advice: &str) -> anyhow::Result<()> {
    let tried = process::output(&mut command(words));
    tried.with_context(|| format!("not found: {} ({advice})", words.join(" ")))?;
    Ok(())
}

/// The toolchain that runs us must not choose that of the child.
fn on_its_own(child: &mut Command) {
    child.current_dir(workspace::root()).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
}

/// A command of cargo-fuzz; `options` go to libFuzzer.
fn fuzz(verb: &str, target: &str, flags: &[&str], corpora: &[&Path], options: &[&str]) -> Command {
    let mut fuzz = command(["cargo", "+nightly", "fuzz", verb, "--fuzz-dir", "tests/fuzz"]);
    fuzz.args(flags).arg(target).args(corpora);
    if !options.is_empty() {
        fuzz.arg("--").args(options);
    }
    on_its_own(&mut fuzz);
    fuzz
}

/// Folders of one run, gone at its end.
struct Scratch {
    root: PathBuf,
    corpus: PathBuf,
    artifacts: PathBuf,
}

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let root = std::env::temp_dir().join(format!("overlay-fuzz-{}", std::process::id()));
        let scratch = Self { corpus: root.join("corpus"), artifacts: root.join("artifacts"), root };
        for made in [&scratch.corpus, &scratch.artifacts] {
            fs::create_dir_all(made).with_context(|| format!("make {}", made.display()))?;
        }
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn folder() -> PathBuf {
    workspace::root().join("tests/fuzz")
}

fn targets() -> anyhow::Result<Vec<String>> {
    let folder = folder().join("fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some(path.file_stem().map(OsStr::to_string_lossy)?.into_owned())
        })
        .collect();
    names.sort();
    Ok(names)
}
