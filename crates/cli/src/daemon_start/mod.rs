//! Brings the daemon up when it is not there, and waits until it serves.
//!
//! Two callers at once both succeed: the daemon's own lock decides, the loser just connects. Must
//! never touch the daemon's directories; making them safely is the daemon's business.

mod detach;

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use banger_model::{Error, ErrorCode};
use banger_protocol::api::ErrorBody;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{CliError, Result};
use crate::place::Place;

/// How long a start may take; it includes finding the running VMs again.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long we look for a daemon that somebody else is starting before we try to start one again.
const OTHER_LIMIT: Duration = Duration::from_secs(1);
/// The most a daemon may say about its start, bytes.
const READY_LINE_MAX: u64 = 64 * 1024;

/// What the daemon writes to its `--ready-fd`: one line.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Readiness {
    /// It serves, or another one with this pid does.
    Ready {},
    /// It cannot.
    Error(ErrorBody),
}

/// A connection to the daemon, which is started when nobody listens.
pub(crate) async fn connect_or_start(place: &Place) -> Result<UnixStream> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Some(stream) = connect(place).await? {
            return Ok(stream);
        }
        if Instant::now() >= deadline {
            return Err(Error::unavailable("the daemon did not come up in a minute")
                .with_hint("'banger daemon logs' shows what it does")
                .into());
        }
        start(place, deadline).await?;
        let patience = Instant::now() + OTHER_LIMIT;
        while Instant::now() < patience {
            if let Some(stream) = connect(place).await? {
                return Ok(stream);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A connection, or nothing when nobody listens.
pub(crate) async fn connect(place: &Place) -> Result<Option<UnixStream>> {
    let socket = place.socket();
    match UnixStream::connect(&socket).await {
        Ok(stream) => {
            // The socket's directory may be in /tmp, where others could have made it first.
            let ours = rustix::process::geteuid().as_raw();
            let peer = stream.peer_cred().map_err(|e| unreachable_socket(&socket, &e))?.uid();
            if peer != ours && peer != 0 {
                return Err(Error::unavailable(format!(
                    "the socket {} belongs to user {peer}, not to you",
                    socket.display()
                ))
                .with_hint("set BANGER_RUNTIME_DIR to a directory only you can write to")
                .into());
            }
            Ok(Some(stream))
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
        Err(e) => Err(unreachable_socket(&socket, &e)),
    }
}

fn unreachable_socket(socket: &std::path::Path, error: &io::Error) -> CliError {
    Error::unavailable(format!("cannot reach the daemon at {}: {error}", socket.display()))
        .with_hint("check who owns that directory, or set BANGER_RUNTIME_DIR")
        .into()
}

/// Starts a daemon and waits for its word. `Ok` also when another one has the lock.
async fn start(place: &Place, deadline: Instant) -> Result<()> {
    let program = program();
    let (reader, writer) = io::pipe().map_err(|e| cannot_start(&program, &e))?;
    let mut child = detach::spawn(Command::new(&program), writer).map_err(|e| cannot_start(&program, &e))?;
    let mut reader = tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into())
        .map_err(|e| cannot_start(&program, &e))?
        .take(READY_LINE_MAX);
    let mut said = Vec::new();
    match timeout(deadline - Instant::now(), reader.read_to_end(&mut said)).await {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => return Err(cannot_start(&program, &e)),
        Err(_) => return Ok(()),
    }
    match serde_json::from_slice(&said) {
        Ok(Readiness::Ready {}) => Ok(()),
        Ok(Readiness::Error(body)) if body.code == ErrorCode::Busy => Ok(()),
        Ok(Readiness::Error(body)) => Err(CliError::from_daemon(body)),
        Err(_) => Err(Error::unavailable(format!("the daemon {} before it was ready", ended(&mut child)))
            .with_hint(format!("look into {}", place.state.log().display()))
            .into()),
    }
}

fn ended(child: &mut Child) -> String {
    match child.try_wait() {
        Ok(Some(status)) => format!("ended ({status})"),
        _ => "closed its start-up pipe".to_owned(),
    }
}

/// `bangerd` beside our own executable, else the one in PATH.
pub(crate) fn program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|exe| exe.with_file_name("bangerd"));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from("bangerd"))
}

fn cannot_start(program: &std::path::Path, error: &io::Error) -> CliError {
    let error = match error.kind() {
        io::ErrorKind::NotFound => Error::unavailable("the daemon's program 'bangerd' was not found")
            .with_hint("install it beside 'banger', or add its directory to PATH"),
        _ => Error::unavailable(format!("cannot start {}: {error}", program.display())),
    };
    error.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_word_is_ready_or_an_error() {
        assert!(matches!(serde_json::from_str(r#"{"ready":{"pid":7}}"#), Ok(Readiness::Ready {})));
        let said = r#"{"error":{"code":"internal","message":"m","hint":"h","op_id":null}}"#;
        let Ok(Readiness::Error(body)) = serde_json::from_str(said) else { panic!("{said}") };
        assert_eq!((body.code, body.hint.as_deref()), (ErrorCode::Internal, Some("h")));
    }
}
