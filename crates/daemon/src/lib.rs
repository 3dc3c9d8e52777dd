//! The daemon: composition root, HTTP API and the services behind it.
//!
//! Owns the life of every VM, image and workspace of one user. Must never need root, and never end
//! a VM by ending itself.

mod api;
mod artifacts;
mod config;
mod daemon;
mod doctor;
pub mod embedded;
mod exec;
mod fault;
mod flight;
mod migrations;
mod op;
mod operations;
mod startup;
mod steps;
mod vm;
mod workspace;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;

use banger_model::{Error, ErrorCode, Result};
use banger_protocol::api::ErrorBody;

pub use crate::migrations::check_migrations;
pub use crate::steps::steps;

use crate::daemon::Daemon;
use crate::startup::{Dirs, Lock, start_log};

/// A file would exceed RLIMIT_FSIZE (signal(7)).
const SIGXFSZ: i32 = 25;

/// Runs the daemon until it is told to end. `ready` gets one line of JSON: `{"ready":{"pid":…}}`
/// once the socket answers, or `{"error":{…}}`.
///
/// # Errors
/// What kept it from starting, or ended it.
pub fn run(mut ready: Option<File>) -> Result<()> {
    // Every file, directory and socket from here on belongs to us alone from birth.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let outcome = start(&mut ready);
    if let Err(error) = &outcome {
        tracing::error!(code = %error.code, %error, "the daemon could not start");
        let body = ErrorBody::new(error.clone(), None);
        say(&mut ready, &serde_json::json!({ "error": body }));
    }
    outcome
}

/// The checks of `banger doctor` as a line of JSON, for the installation that these variables name. Needs no daemon and
/// touches nothing. An installation that cannot be looked at is a check that failed.
///
/// # Errors
/// When there is no memory or thread to be had.
pub fn doctor_report(env: impl Fn(&str) -> Option<OsString> + Copy) -> Result<String> {
    let internal = |e: &dyn std::fmt::Display| Error::new(ErrorCode::Internal, e.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let checks = runtime.map_err(|e| internal(&e))?.block_on(doctor::of_installation(env));
    let checks = checks.unwrap_or_else(|error| vec![doctor::fail("daemon", error)]);
    Ok(serde_json::to_string(&checks).map_err(|e| internal(&e))? + "\n")
}

fn start(ready: &mut Option<File>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Error::new(ErrorCode::Internal, format!("no runtime: {e}")))?;
    outlive_file_limits(&runtime);
    let dirs = Dirs::open(|key| std::env::var_os(key))?;
    let _lock = Lock::take(&dirs)?;
    start_log(&dirs.state)?;
    runtime.block_on(async {
        let daemon = Daemon::open(dirs).await?;
        let listener = daemon.bind()?;
        daemon.obey_signals();
        tracing::info!(pid = std::process::id(), version = env!("CARGO_PKG_VERSION"), "daemon ready");
        say(ready, &serde_json::json!({ "ready": { "pid": std::process::id() } }));
        daemon.serve(listener).await
    })
}

/// A file that may not become longer (`ulimit -f`) is an error of whoever writes it, not our end. A handler does that, and
/// unlike an ignored signal it is not passed on to programs that we start.
fn outlive_file_limits(runtime: &tokio::runtime::Runtime) {
    use tokio::signal::unix::{SignalKind, signal};
    let _entered = runtime.enter();
    // It stays when what is returned is dropped.
    if let Err(e) = signal(SignalKind::from_raw(SIGXFSZ)) {
        tracing::warn!("SIGXFSZ would end the daemon: {e}");
    }
}

/// One line to whoever started us, once.
fn say(ready: &mut Option<File>, line: &serde_json::Value) {
    if let Some(mut file) = ready.take() {
        let _ = writeln!(file, "{line}");
    }
}
