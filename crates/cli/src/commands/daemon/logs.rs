//! `banger daemon logs`: read from the file, so that it works when the daemon does not.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use banger_model::Error;
use bytes::Bytes;

use crate::context::Context;
use crate::error::{CliError, Result};
use crate::place::Place;
use crate::pump::OutputPump;

const CHUNK: usize = 64 * 1024;
const POLL: Duration = Duration::from_millis(200);

/// Show the daemon's log: one JSON document a line
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Go on as the log grows
    #[arg(short, long)]
    follow: bool,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<u8> {
    let path = Place::from_env()?.state.log();
    let mut file = open(&path)?;
    let mut output = OutputPump::spawn();
    loop {
        let mut chunk = vec![0; CHUNK];
        let n = file.read(&mut chunk).map_err(|e| unreadable(&path, &e))?;
        chunk.truncate(n);
        if n > 0 {
            output.write(Bytes::from(chunk)).await.map_err(|e| CliError::stdout(&e))?;
        } else if !args.follow {
            output.finish().await.map_err(|e| CliError::stdout(&e))?;
            return Ok(0);
        } else {
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                error = output.failed() => return Err(CliError::stdout(&error)),
            }
            if let Some(newer) = replaced(&path, &mut file) {
                context.output.notice("the log was begun anew");
                file = newer;
            }
        }
    }
}

/// The file by that name now, when it is another one than ours or has become shorter.
fn replaced(path: &Path, ours: &mut File) -> Option<File> {
    let mut now = File::open(path).ok()?;
    let (a, b) = (now.metadata().ok()?, ours.metadata().ok()?);
    let shorter = a.len() < ours.stream_position().ok()?;
    let other = (a.dev(), a.ino()) != (b.dev(), b.ino());
    if other || shorter {
        now.seek(SeekFrom::Start(0)).ok()?;
        return Some(now);
    }
    None
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| unreadable(path, &e))
}

fn unreadable(path: &Path, error: &io::Error) -> CliError {
    let told = match error.kind() {
        io::ErrorKind::NotFound => Error::not_found(format!("there is no log at {}", path.display()))
            .with_hint("the daemon has not run yet: 'banger daemon start'"),
        _ => Error::unavailable(format!("cannot read {}: {error}", path.display())),
    };
    told.into()
}
