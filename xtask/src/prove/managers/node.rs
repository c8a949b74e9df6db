//! One manager's node as its operator has it: `overlayctl` at its socket, each call with a limit, and
//! what became of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::history::{History, Name, Operation, Outcome, Presence, What};

/// The node of a manager.
#[derive(Clone)]
pub struct Node {
    /// Which manager, from 0.
    pub manager: usize,
    /// The command line.
    pub overlayctl: PathBuf,
    /// Where the node is spoken to.
    pub socket: PathBuf,
    /// What is asked and what comes.
    pub history: Arc<History>,
    /// How often each sentence came that is no answer.
    pub sentences: Arc<Mutex<BTreeMap<String, usize>>>,
}

/// What a command came to.
pub enum Said {
    /// It printed this.
    Well(String),
    /// It failed with this sentence, without the name of what was asked for.
    Failed(String),
    /// It took too long, and was ended.
    Nothing,
}

impl Node {
    /// Makes a network.
    pub fn create(&self, name: Name, limit: Duration) -> anyhow::Result<Outcome> {
        let begun = self.history.now();
        let said = self.call(&["network", "create", &name.to_string()], limit)?;
        let outcome = match &said {
            Said::Well(_) => Outcome::Acknowledged,
            Said::Failed(why) if is_refused(why) => Outcome::Refused,
            Said::Failed(_) | Said::Nothing => Outcome::Unknown,
        };
        self.add(What::Create(name, outcome), begun);
        Ok(outcome)
    }

    /// Removes a network.
    pub fn remove(&self, name: Name, limit: Duration) -> anyhow::Result<Outcome> {
        let begun = self.history.now();
        let said = self.call(&["network", "rm", &name.to_string()], limit)?;
        let outcome = match &said {
            Said::Well(_) => Outcome::Acknowledged,
            Said::Failed(why) if is_missed(why) => {
                self.add(What::Find(name, Presence::Gone), begun);
                Outcome::Refused
            }
            Said::Failed(why) if is_refused(why) => Outcome::Refused,
            Said::Failed(_) | Said::Nothing => Outcome::Unknown,
        };
        self.add(What::Remove(name, outcome), begun);
        Ok(outcome)
    }

    /// Looks for a network.
    pub fn find(&self, name: Name, limit: Duration) -> anyhow::Result<()> {
        let begun = self.history.now();
        let what = match self.call(&["network", "inspect", &name.to_string()], limit)? {
            Said::Well(_) => What::Find(name, Presence::There),
            Said::Failed(why) if is_missed(&why) => What::Find(name, Presence::Gone),
            Said::Failed(_) | Said::Nothing => What::NoAnswer,
        };
        self.add(what, begun);
        Ok(())
    }

    /// Lists the networks that clients made, if there is an answer; `flags` go to the command.
    pub fn list(&self, flags: &[&str], limit: Duration) -> anyhow::Result<Option<BTreeSet<Name>>> {
        let begun = self.history.now();
        let words = [&["network", "ls", "--json"], flags].concat();
        let names = match self.call(&words, limit)? {
            Said::Well(json) => Some(names(&json)?),
            Said::Failed(_) | Said::Nothing => None,
        };
        let what = names.clone().map_or(What::NoAnswer, What::List);
        self.add(what, begun);
        Ok(names)
    }

    /// Runs a command.
    pub fn call(&self, words: &[&str], limit: Duration) -> anyhow::Result<Said> {
        let mut command = Command::new(&self.overlayctl);
        command.args(words).env("OVERLAY_SOCKET", &self.socket).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start overlayctl")?;
        let said = hear(&mut child, Instant::now() + limit);
        if !matches!(said, Ok(Said::Well(_))) {
            // It has ended, or took too long.
            let _ = child.kill();
        }
        child.wait().context("wait for overlayctl")?;
        if let Ok(Said::Failed(why)) = &said {
            let mut sentences = self.sentences.lock().unwrap_or_else(PoisonError::into_inner);
            let socket = self.socket.to_string_lossy();
            let why = why.replace(socket.as_ref(), "SOCKET");
            *sentences.entry(without_names(&why)).or_default() += 1;
        }
        said
    }

    fn add(&self, what: What, begun: Duration) {
        let (manager, ended) = (self.manager, self.history.now());
        self.history.add(Operation { what, manager, begun, ended });
    }
}

/// Reads all that a command says, until a time.
fn hear(child: &mut Child, deadline: Instant) -> anyhow::Result<Said> {
    let mut stdout = child.stdout.take().context("stdout was piped")?;
    let mut stderr = child.stderr.take().context("stderr was piped")?;
    let (mut text, mut part) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).context("a limit that fits")?;
        match poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(Said::Nothing),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("wait for what overlayctl says"),
        }
        match stdout.read(&mut part).context("read what overlayctl says")? {
            0 => break,
            count => text.extend_from_slice(&part[..count]),
        }
    }
    // With its stdout it closes all; a sentence fits into the pipe.
    if child.wait().context("wait for overlayctl")?.success() {
        return Ok(Said::Well(String::from_utf8_lossy(&text).into_owned()));
    }
    let mut why = String::new();
    stderr.read_to_string(&mut why).context("read why overlayctl failed")?;
    Ok(Said::Failed(why.trim().trim_start_matches("overlayctl: ").to_owned()))
}

/// Nothing was asked: nobody is there to ask, or it is a worker.
fn is_refused(why: &str) -> bool {
    why.starts_with("open ") || why.contains(" is a worker; run this on ")
}

/// There is none of that name.
fn is_missed(why: &str) -> bool {
    why.contains("there is no network '")
}

/// So that the same sentences are the same.
fn without_names(why: &str) -> String {
    let words = why.split(' ').map(|word| {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        if bare.parse::<Name>().is_ok() { word.replace(bare, "NAME") } else { word.to_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The names of clients' networks in `network ls --json`.
fn names(json: &str) -> anyhow::Result<BTreeSet<Name>> {
    #[derive(serde::Deserialize)]
    struct Network {
        name: String,
    }
    let networks: Result<Vec<Network>, _> = serde_json::from_str(json);
    match networks {
        Ok(networks) => {
            Ok(networks.iter().filter_map(|network| network.name.parse().ok()).collect())
        }
        Err(error) => bail!("'network ls --json' is not understood: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_told_apart() {
        assert!(is_refused("open /s/sock: nobody serves it; overlayd has ended, start it again"));
        assert!(is_missed("remove network f1: there is no network 'f1'; 'network ls' lists them"));
        let no_leader = "create network f1: no manager leads now, because more than half";
        assert!(!is_refused(no_leader) && !is_missed(no_leader));
        assert_eq!(
            without_names("remove network f1: there is no network 'f1'"),
            "remove network NAME: there is no network 'NAME'"
        );
    }

    #[test]
    fn only_networks_of_clients_are_listed() {
        let json = r#"[{"name": "blue", "vni": 1}, {"name": "f7"}]"#;
        assert_eq!(names(json).unwrap(), [Name(7)].into());
        assert!(names("no").is_err());
    }

    #[test]
    fn a_command_has_a_limit() {
        let node = |overlayctl: &str| Node {
            manager: 0,
            overlayctl: overlayctl.into(),
            socket: "/s/sock".into(),
            history: Arc::new(History::new()),
            sentences: Arc::default(),
        };
        let shell = node("/bin/sh");
        let limit = Duration::from_secs(10);
        let said = shell.call(&["-c", "echo here"], limit).unwrap();
        assert!(matches!(said, Said::Well(text) if text == "here\n"));
        let said = shell
            .call(&["-c", "echo overlayctl: open /s/sock: why f3 >&2; exit 1"], limit)
            .unwrap();
        assert!(matches!(said, Said::Failed(why) if why == "open /s/sock: why f3"));
        assert_eq!(
            *shell.sentences.lock().unwrap(),
            [("open SOCKET: why NAME".to_owned(), 1)].into()
        );
        let said = node("/bin/sleep").call(&["1000"], Duration::from_millis(1)).unwrap();
        assert!(matches!(said, Said::Nothing));
    }
}
