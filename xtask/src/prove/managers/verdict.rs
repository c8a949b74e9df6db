//! What a history came to: how many calls of which kind, and which of them cannot be.

use std::{collections::BTreeMap, sync::PoisonError};

use serde_json::json;

use super::{
    check::{self, Violation},
    cluster::{Cluster, node_name},
    history::{Counts, Operation, What},
};
use crate::process::say;

/// The checker's verdict, with what it is about.
pub struct Verdict {
    /// What no order of the calls explains.
    pub violations: Vec<Violation>,
    counts: Counts,
    /// How often each sentence came that was no answer.
    sentences: BTreeMap<String, usize>,
    history: Vec<Operation>,
}

impl Verdict {
    /// Judges what a cluster's clients have taken down.
    pub fn of(cluster: &Cluster) -> Self {
        let history = cluster.history().take();
        let mut sentences =
            cluster.nodes[0].sentences.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            violations: check::check(&history),
            counts: Counts::of(&history),
            sentences: std::mem::take(&mut sentences),
            history,
        }
    }

    /// Prints it, with the calls that concern the first of those that are wrong.
    pub fn tell(&self) {
        say(format_args!("  {}", self.counts));
        for (sentence, count) in &self.sentences {
            say(format_args!("  {count:>6} times: {sentence}"));
        }
        for violation in self.violations.iter().take(SHOWN) {
            say(format_args!("  WRONG: {violation}"));
            let concerned = |operation: &&Operation| concerns(operation, violation);
            for operation in self.history.iter().filter(concerned) {
                say(format_args!("    {}", told(operation)));
            }
        }
    }

    /// In a few words.
    pub fn words(&self) -> String {
        match self.violations.len() {
            0 => "nothing lost or stale".to_owned(),
            wrong => format!("{wrong} LOST OR STALE"),
        }
    }

    /// What is wrong, in a sentence, if something is.
    pub fn fault(&self) -> Option<String> {
        let first = self.violations.first()?;
        Some(format!("{} lost or stale, the first: {first}", self.violations.len()))
    }

    /// As a part of a run's figures.
    pub fn json(&self) -> serde_json::Value {
        let violations: Vec<String> = self.violations.iter().map(ToString::to_string).collect();
        json!({
            "operations": self.counts,
            "sentences": self.sentences,
            "lost_or_stale": violations,
        })
    }
}

/// Writes a call for people.
pub fn told(operation: &Operation) -> String {
    let Operation { what, manager, begun, ended } = operation;
    let (begun, ended) = (begun.as_secs_f64(), ended.as_secs_f64());
    format!("{} from {begun:.3} to {ended:.3} s: {what:?}", node_name(*manager))
}

/// Whether a call names what is wrong; lists would be too many.
fn concerns(operation: &Operation, violation: &Violation) -> bool {
    match &operation.what {
        What::Create(name, _) | What::Remove(name, _) | What::Find(name, _) => {
            *name == violation.name
        }
        What::List(_) | What::NoAnswer => false,
    }
}

/// So many that are wrong are shown with their calls.
const SHOWN: usize = 10;
