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
            // It is not what somebody answered.
            _ if std::error::Error::source(status).is_some() => {
                "the connection to overlayd broke, so it may be done or not; look at its log, and ask again".to_owned()
            }
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

    #[test]
    fn a_connection_that_breaks_is_no_answer() {
        let broken = Status::from_error(Box::new(std::io::Error::other("transport error")));
        assert_eq!(
            Failure::of("detach web", &broken).to_string(),
            "detach web: the connection to overlayd broke, so it may be done or not; look at its log, and ask again"
        );
        let answer = Failure::of("detach web", &Status::not_found("there is none"));
        assert_eq!(answer.to_string(), "detach web: there is none");
    }
}
