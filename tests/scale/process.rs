//! The driver's side of another process.

use std::process::Stdio;

use anyhow::Context as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::wire::{Answer, Order};

/// One of the other processes; it ends with this value.
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub fn start(words: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("it has an output")?;
        Ok(Self { child, stdin, lines: BufReader::new(stdout).lines() })
    }

    pub async fn say(&mut self, order: &Order) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        Ok(self.stdin.as_mut().context("it was ended")?.write_all(&line).await?)
    }

    pub async fn hear<T: serde::de::DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let line = self.lines.next_line().await?.context("a process ended")?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Ends it with SIGKILL.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Has it end by itself.
    pub async fn end(mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        let status = self.child.wait().await?;
        anyhow::ensure!(status.success(), "a process ended with {status}");
        Ok(())
    }

    /// Processor time used so far, user and system.
    pub fn cpu_s(&self) -> anyhow::Result<f64> {
        let pid = self.child.id().context("it runs")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> =
            stat.rsplit(") ").next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
        // Fields 14 and 15 of proc(5), in hundredths of a second.
        Ok((ticks(11).context("utime")? + ticks(12).context("stime")?) / 100.0)
    }

    /// The most memory that it had.
    pub fn peak_mb(&self) -> anyhow::Result<f64> {
        let pid = self.child.id().context("it runs")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kb: f64 = peak.context("VmHWM")?.trim().trim_end_matches(" kB").parse()?;
        Ok(kb / 1024.0)
    }
}

/// Tells all processes the same, and waits for all; returns their answers together.
pub async fn tell(all: &mut [Process], order: &Order) -> anyhow::Result<Answer> {
    for process in all.iter_mut() {
        process.say(order).await?;
    }
    hear(all).await
}

/// Waits for the answers of all, and returns them together.
pub async fn hear(all: &mut [Process]) -> anyhow::Result<Answer> {
    let mut together = Answer::default();
    for process in all {
        let Answer { done_ns, changes, by_ms, tables, faults } = process.hear().await?;
        together.done_ns.extend(done_ns);
        together.changes.extend(changes);
        together.by_ms.resize(together.by_ms.len().max(by_ms.len()), 0);
        together.by_ms.iter_mut().zip(by_ms).for_each(|(sum, more)| *sum += more);
        together.tables += tables;
        together.faults.extend(faults);
    }
    Ok(together)
}
