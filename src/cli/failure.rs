//! What the user reads when something is not done: `WHAT: WHY; TRY`, in one line.

use std::fmt;

use tonic::Status;

/// One failure.
#[derive(Debug)]
pub struct Failure {
    what: String,
    why: String,
}

impl Failure {
    /// Makes a failure; `why` ends with what to try.
    pub fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into() }
    }

    /// Makes the failure of a call.
    pub fn of(what: impl Into<String>, status: &Status) -> Self {
        let why = match status.message() {
            "" => format!("{}; see the log of overlayd", status.code()),
            sentence => sentence.to_owned(),
        };
        Self { what: what.into(), why }
    }

    /// An answer that lacks something.
    pub fn bent(what: impl Into<String>) -> Self {
        Self::new(what, "the answer is not whole; use the overlayctl of the same version")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, whatever came from below.
        let line = format!("{}: {}", self.what, self.why);
        f.write_str(&line.replace(['\n', '\r'], " "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::new("detach web", "it\nbroke; try again");
        assert_eq!(failure.to_string(), "detach web: it broke; try again");
    }
}
