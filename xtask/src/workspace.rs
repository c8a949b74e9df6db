//! Where things are: the tree, its target folder, the built programs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use crate::process;

/// The folder of the workspace's `Cargo.toml`.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Cargo, in the workspace's folder.
pub fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    command
}

/// The two programs of this project.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The folder that holds both.
    pub folder: PathBuf,
}

impl Programs {
    /// Builds them in release, where they are built from this tree at all.
    pub fn build() -> anyhow::Result<Self> {
        if std::env::var_os("OVERLAY_BIN").is_none() {
            process::complain("building overlayd and overlayctl (release)");
            process::run(&mut cargo(["build", "--release", "--package", "overlay", "--bins"]))?;
        }
        Self::built()
    }

    /// Finds them where `OVERLAY_BIN` says, else where a release build puts them.
    pub fn built() -> anyhow::Result<Self> {
        let folder = match std::env::var_os("OVERLAY_BIN") {
            Some(folder) => PathBuf::from(folder),
            None => target()?.join("release"),
        };
        let folder = std::path::absolute(&folder).context("make OVERLAY_BIN absolute")?;
        for name in ["overlayd", "overlayctl"] {
            if !folder.join(name).is_file() {
                bail!(
                    "{} is not there: build it with `cargo build --release`, or name its folder in OVERLAY_BIN",
                    folder.join(name).display()
                );
            }
        }
        Ok(Self { folder })
    }

    /// The agent.
    pub fn overlayd(&self) -> PathBuf {
        self.folder.join("overlayd")
    }

    /// The command line.
    pub fn overlayctl(&self) -> PathBuf {
        self.folder.join("overlayctl")
    }
}

/// The target folder: this program lies in one of its profiles' folders.
pub fn target() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("CARGO_TARGET_DIR") {
        return Ok(root().join(folder));
    }
    let own = std::env::current_exe().context("find this program")?;
    let folder = own.parent().and_then(Path::parent).context("find the target folder")?;
    Ok(folder.to_owned())
}
