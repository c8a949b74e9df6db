//! Children, each in a process group of its own: the terminal's Ctrl-C reaches us alone, and we end
//! them in the order that cleaning up needs.

use std::{
    fmt,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

use crate::signals::{self, Interrupted};

/// How long a child's group may take to end after SIGTERM before SIGKILL: a script of netns-scripts
/// takes down what it made in that time.
const GRACE: Duration = Duration::from_secs(15);

/// Prints a line; that nobody reads it any more must not stop a cleanup.
pub fn say(line: impl fmt::Display) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Prints a line to stderr, as [`say`] does to stdout.
pub fn complain(line: impl fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// A command from its words.
pub fn command<I, S>(words: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    let mut words = words.into_iter();
    let mut command = Command::new(words.next().expect("callers name a program"));
    command.args(words);
    command
}

/// Writes the command as a user would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// What a signal does to a wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnSignal {
    /// The child is ended and the wait fails.
    End,
    /// The child gets the signal as SIGINT and is waited for: it has to clean up itself.
    Forward,
    /// Nothing: this is the cleanup.
    Ignore,
}

/// Runs a command with our stdout; a failure of it is an error.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs a command with our stdout.
pub fn status(command: &mut Command) -> anyhow::Result<ExitStatus> {
    let mut child = spawn(command)?;
    wait(&mut child, OnSignal::End)
}

/// Runs a command that cleans up after itself when it is interrupted.
pub fn status_forwarding(command: &mut Command) -> anyhow::Result<ExitStatus> {
    let mut child = spawn(command)?;
    wait(&mut child, OnSignal::Forward)
}

/// Runs a command and returns what it printed; a failure carries what it said on stderr.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    captured(command, OnSignal::End)
}

/// Runs a command of a cleanup: no signal stops it.
pub fn cleanup(command: &mut Command) -> anyhow::Result<String> {
    captured(command, OnSignal::Ignore)
}

/// Runs a command and hands over each line of its stdout as it comes.
pub fn lines(command: &mut Command, mut each: impl FnMut(&str)) -> anyhow::Result<ExitStatus> {
    let mut child = spawn(command.stdout(Stdio::piped()))?;
    let stdout = child.stdout.take().context("stdout was piped")?;
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
            line.clear();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    loop {
        match receiver.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => each(&line),
            Err(RecvTimeoutError::Timeout) if !signals::stopped() => {}
            Err(_) => return wait(&mut child, OnSignal::End),
        }
    }
}

/// Starts a command in a process group of its own, without stdin.
pub fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    command
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("start `{}`", shown(command)))
}

/// Ends a child with its group and takes its status; returns when nobody of the group is left.
pub fn end(child: &mut Child) {
    signal_group(child, Signal::TERM);
    let deadline = Instant::now() + GRACE;
    let group = Pid::from_child(child);
    loop {
        let ended = !matches!(child.try_wait(), Ok(None));
        if ended && test_kill_process_group(group).is_err() {
            return;
        }
        if Instant::now() > deadline {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    signal_group(child, Signal::KILL);
    let _ = child.wait();
}

fn captured(command: &mut Command, on_signal: OnSignal) -> anyhow::Result<String> {
    let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = wait(&mut child, on_signal)?;
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
    };
    let (stdout, stderr) = (text(stdout), text(stderr));
    if !status.success() {
        let said = if stderr.trim().is_empty() { &stdout } else { &stderr };
        bail!("`{}` ended with {status}: {}", shown(command), said.trim());
    }
    Ok(stdout)
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// Waits by looking, since both the child's end and a signal end the wait; every look costs
/// microseconds and they grow apart to 20 ms.
fn wait(child: &mut Child, on_signal: OnSignal) -> anyhow::Result<ExitStatus> {
    let mut pause = Duration::from_millis(1);
    let mut forwarded = false;
    loop {
        if let Some(status) = child.try_wait().context("wait for a child")? {
            return if forwarded { Err(Interrupted.into()) } else { Ok(status) };
        }
        if signals::stopped() {
            match on_signal {
                OnSignal::End => {
                    end(child);
                    return Err(Interrupted.into());
                }
                OnSignal::Forward if !forwarded => {
                    signal_group(child, Signal::INT);
                    forwarded = true;
                }
                OnSignal::Forward | OnSignal::Ignore => {}
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn signal_group(child: &Child, signal: Signal) {
    let _ = kill_process_group(Pid::from_child(child), signal);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_carries_stdout_and_a_failure_carries_stderr() {
        assert_eq!(output(&mut command(["sh", "-c", "echo a; echo b >&2"])).unwrap(), "a\n");
        let error = output(&mut command(["sh", "-c", "echo why >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().ends_with("exit status: 3: why"), "{error}");
    }

    #[test]
    fn lines_come_one_by_one() {
        let mut seen = Vec::new();
        let status = lines(&mut command(["sh", "-c", "echo a; echo; printf c"]), |line| {
            seen.push(line.to_owned());
        });
        assert!(status.unwrap().success());
        assert_eq!(seen, ["a", "", "c"]);
    }

    #[test]
    fn ending_a_child_ends_its_group() {
        let mut child = spawn(&mut command(["sh", "-c", "sleep 1000 & wait"])).unwrap();
        let group = Pid::from_child(&child);
        end(&mut child);
        assert!(test_kill_process_group(group).is_err(), "the group is still there");
    }
}
