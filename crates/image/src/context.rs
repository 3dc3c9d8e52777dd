//! What a long job of this crate gets from its caller: where to report, when to stop, where to cache.
//! Must never hold state of its own.

use std::path::PathBuf;

/// Where a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// A stable word for the stage, such as `download`.
    pub stage: &'static str,
    /// What it does, for people.
    pub message: String,
    /// How far the stage is, 0–100, when that is known.
    pub percent: Option<u8>,
}

/// The caller's side of a long job. Both functions are called on the calling thread only.
pub struct Context<'a> {
    /// Told whenever a stage begins or moves on.
    pub progress: &'a dyn Fn(Progress),
    /// Asked several times a second; once it says true the job ends with a `cancelled` error and leaves nothing.
    pub cancelled: &'a dyn Fn() -> bool,
    /// Downloads that a later job may use again, such as `$XDG_CACHE_HOME/banger`. Created (0700) when needed.
    pub cache_dir: PathBuf,
}

impl Context<'_> {
    /// Reports a stage.
    pub fn report(&self, stage: &'static str, message: impl Into<String>, percent: Option<u8>) {
        (self.progress)(Progress { stage, message: message.into(), percent });
    }

    /// Whether the caller asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        (self.cancelled)()
    }
}
