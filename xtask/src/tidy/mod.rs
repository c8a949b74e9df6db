//! `cargo xtask tidy`: what clippy cannot know of this tree.

use std::{fmt, fs, path::Path, process::ExitCode};

use anyhow::Context;

use crate::{process::say, workspace};

mod imports;
mod layers;
mod shape;
mod source;
#[cfg(test)]
mod tests;

/// Checks the import table, `unsafe`, file headers and lengths over src, xtask and tests.
///
/// The table of who may import whom is in xtask/src/tidy/layers.rs.
#[derive(clap::Args)]
pub struct Args {}

/// Something that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, from the workspace's folder.
    pub path: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.text)
    }
}

/// Prints what breaks a rule; fails if something does.
pub fn run(_: &Args) -> anyhow::Result<ExitCode> {
    let findings = tree(workspace::root())?;
    for finding in &findings {
        say(finding);
    }
    if findings.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("tidy found {} things to put right", findings.len())
}

/// Checks every Rust file of a tree.
fn tree(root: &Path) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for folder in ["src", "tests", "xtask"] {
        for path in rust_files(&root.join(folder))? {
            let name = path.strip_prefix(root).context("a file lies below its root")?;
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            findings.extend(file(&name.to_string_lossy(), text)?);
        }
    }
    Ok(findings)
}

/// Checks one file.
fn file(path: &str, text: String) -> anyhow::Result<Vec<Finding>> {
    let source = source::Source::parse(path, text)?;
    let mut findings = imports::check(&source);
    findings.extend(shape::check(&source));
    Ok(findings)
}

fn rust_files(folder: &Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
            // A fuzz target folder of its own may lie below.
            if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
