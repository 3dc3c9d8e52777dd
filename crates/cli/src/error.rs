//! The one error of the command line: what is said and which status the process ends with.
//!
//! Every failure becomes a [`CliError`] here; nothing else decides an exit status. Must never print.

use std::io;

use banger_model::{Error, ErrorCode};
use banger_protocol::api::{ErrorBody, ErrorEnvelope};
use rustix::io::Errno;

/// The status of a process that `SIGPIPE` would have ended: 128 + 13.
pub(crate) const BROKEN_PIPE: u8 = 141;

/// The status of wrong usage.
pub(crate) const WRONG_USAGE: u8 = 2;

/// What a command ends with.
pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

/// A failure on its way to the user.
#[derive(Debug)]
pub(crate) struct CliError {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// What is shown; nothing when the reader of our output went away.
    bodies: Vec<ErrorBody>,
    /// The status, when it is not the command's usual one for a failure.
    status: Option<u8>,
}

impl CliError {
    fn with(bodies: Vec<ErrorBody>, status: Option<u8>) -> Self {
        Self { inner: Box::new(Inner { bodies, status }) }
    }

    /// An error the daemon reported.
    pub(crate) fn from_daemon(body: ErrorBody) -> Self {
        Self::with(vec![body], None)
    }

    /// A signal ended us: status 128 + its number.
    pub(crate) fn interrupted(signal: i32) -> Self {
        let error = Error::new(ErrorCode::Cancelled, "cancelled before it was done");
        let status = u8::try_from(128 + signal).unwrap_or(1);
        Self::with(vec![ErrorBody::new(error, None)], Some(status))
    }

    /// Whoever read our standard output left: say nothing.
    pub(crate) fn broken_pipe() -> Self {
        Self::with(Vec::new(), Some(BROKEN_PIPE))
    }

    /// Standard output could not be written.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe
            || error.raw_os_error() == Some(Errno::PIPE.raw_os_error())
        {
            return Self::broken_pipe();
        }
        Error::internal(format!("cannot write to standard output: {error}")).into()
    }

    /// The daemon went away in the middle of an answer.
    pub(crate) fn daemon_gone(detail: &str) -> Self {
        Error::unavailable(format!("the daemon went away before it was done ({detail})"))
            .with_hint("'banger daemon logs' shows why; the next command starts it again")
            .into()
    }

    /// The daemon said something that is not in the protocol.
    pub(crate) fn protocol(detail: impl std::fmt::Display) -> Self {
        Error::internal(format!("the daemon's answer makes no sense: {detail}"))
            .with_hint(
                "banger and bangerd may be of different versions: 'banger daemon stop' ends the old one",
            )
            .into()
    }

    /// Several failures of one command, each naming its subject; at least one.
    pub(crate) fn several(errors: Vec<Self>) -> Self {
        let status = errors.iter().find_map(|e| e.inner.status);
        Self::with(errors.into_iter().flat_map(|e| e.inner.bodies).collect(), status)
    }

    /// The same failure with a status of its own.
    #[must_use]
    pub(crate) fn with_status(mut self, status: u8) -> Self {
        self.inner.status = Some(status);
        self
    }

    /// The code, when there is one failure to name.
    pub(crate) fn code(&self) -> Option<ErrorCode> {
        self.inner.bodies.first().map(|b| b.code)
    }

    /// What to show, in order.
    pub(crate) fn bodies(&self) -> &[ErrorBody] {
        &self.inner.bodies
    }

    /// The exit status, where `usual` is the command's for its own failures.
    pub(crate) fn status(&self, usual: u8) -> u8 {
        self.inner.status.unwrap_or(usual)
    }

    /// The one JSON object of `--json`: with several failures, the first one's code, a sentence
    /// that holds them all, and each by itself in `errors`.
    pub(crate) fn to_json(&self) -> Option<serde_json::Value> {
        let (first, rest) = self.inner.bodies.split_first()?;
        if rest.is_empty() {
            return serde_json::to_value(ErrorEnvelope { error: first.clone() }).ok();
        }
        let all: Vec<&str> = self.inner.bodies.iter().map(|b| b.message.as_str()).collect();
        let error = ErrorBody { message: all.join("; "), ..first.clone() };
        Some(serde_json::json!({ "error": error, "errors": self.inner.bodies }))
    }
}

impl From<Error> for CliError {
    fn from(error: Error) -> Self {
        Self::with(vec![ErrorBody::new(error, None)], None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_is_the_envelope_of_the_contract() {
        let error = CliError::from(Error::not_found("no VM 'x'").with_hint("try 'banger ps -a'"));
        assert_eq!(
            error.to_json().unwrap(),
            serde_json::json!({"error": {
                "code": "not_found", "message": "no VM 'x'", "hint": "try 'banger ps -a'", "op_id": null,
            }})
        );
        assert_eq!((error.status(1), error.status(125)), (1, 125));
    }

    #[test]
    fn several_failures_stay_one_object() {
        let error = CliError::several(vec![
            Error::not_found("no VM 'a'").into(),
            Error::new(ErrorCode::Busy, "'b' is busy").into(),
        ]);
        let json = error.to_json().unwrap();
        assert_eq!(json["error"]["code"], "not_found");
        assert_eq!(json["error"]["message"], "no VM 'a'; 'b' is busy");
        assert_eq!(json["errors"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn statuses_of_signals_and_broken_pipes_win_over_the_usual_one() {
        assert_eq!(CliError::interrupted(2).status(125), 130);
        assert_eq!(CliError::interrupted(15).status(1), 143);
        let gone = CliError::stdout(&io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(gone.status(1), BROKEN_PIPE);
        assert!(gone.to_json().is_none(), "nothing is said to nobody");
        assert_eq!(CliError::stdout(&io::Error::from_raw_os_error(28)).status(1), 1);
    }
}
