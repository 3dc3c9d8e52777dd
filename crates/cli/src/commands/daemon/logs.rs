//! `banger daemon logs`: read from the files, so that it works when the daemon does not.

use std::fs::File;
use std::io::{self, BufRead as _, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use banger_model::{Error, StateDir};
use bytes::Bytes;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::engine::ArgValueCompleter;
use serde_json::Value;

use crate::commands::completion;
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::log_document::LogDocument;
use crate::place::Place;
use crate::pump::OutputPump;

const CHUNK: usize = 64 * 1024;
const POLL: Duration = Duration::from_millis(200);
/// How every operation's id begins.
const OP_PREFIX: &str = "op-";
/// How every line of an agent begins.
const AGENT: &str = "banger-agent: ";

/// Show the daemon's log: one JSON document a line
///
/// With --json it is an array of them; with -f besides, one a line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Go on as the log grows
    #[arg(short, long)]
    follow: bool,
    /// Only what is about this operation (the id in an error), and what the agents in guests said of it
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new(), conflicts_with = "follow",
        add = ArgValueCompleter::new(completion::operations))]
    op: Option<String>,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<u8> {
    let state = Place::from_env()?.state;
    let path = state.log();
    if let Some(op) = &args.op {
        return about(op, &state, context);
    }
    let mut file = open(&path)?;
    let mut output = OutputPump::spawn();
    let mut json = context.output.json.then(|| LogDocument::of_documents(args.follow));
    loop {
        let mut chunk = vec![0; CHUNK];
        let n = file.read(&mut chunk).map_err(|e| unreadable(&path, &e))?;
        chunk.truncate(n);
        if n > 0 {
            let chunk = match &mut json {
                Some(json) => json.feed(&chunk),
                None => chunk,
            };
            output.write(Bytes::from(chunk)).await.map_err(|e| CliError::stdout(&e))?;
        } else if !args.follow {
            if let Some(json) = json {
                output.write(json.finish().into()).await.map_err(|e| CliError::stdout(&e))?;
            }
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

/// Prints the lines about one operation: the daemon's as they are, then the agents'.
fn about(op: &str, state: &StateDir, context: &Context) -> Result<u8> {
    let log = state.log();
    let filter = Filter::new(op);
    let mut json = context.output.json.then(|| LogDocument::of_documents(false));
    let mut print = |line: &[u8]| {
        let line = [line, b"\n"].concat();
        match &mut json {
            Some(json) => context.output.bytes(&json.feed(&line)),
            None => context.output.bytes(&line),
        }
    };
    let mut found = 0;
    for path in [log.with_extension("log.1"), log.clone()] {
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && path != log => continue,
            opened => opened.map_err(|e| unreadable(&path, &e))?,
        };
        for line in io::BufReader::new(file).split(b'\n') {
            let line = line.map_err(|e| unreadable(&path, &e))?;
            if filter.takes(&line) {
                print(&line)?;
                found += 1;
            }
        }
    }
    for (vm, line) in filter.consoles(state) {
        // What a guest says is quoted: it cannot be taken for a line of the daemon's.
        let line = serde_json::json!({ "vm_id": vm, "console": line });
        print(line.to_string().as_bytes())?;
        found += 1;
    }
    if found == 0 {
        let message = format!("the log says nothing about an operation '{}'", op.escape_debug());
        return Err(Error::not_found(message)
            .with_hint(
                "ids are in errors and in 'banger operation list -a'; old lines are dropped in the end",
            )
            .into());
    }
    if let Some(json) = json {
        context.output.bytes(&json.finish())?;
    }
    Ok(0)
}

/// Tells lines about one operation from others.
struct Filter {
    /// How its id begins.
    id: String,
}

impl Filter {
    fn new(op: &str) -> Self {
        let id = if op.starts_with(OP_PREFIX) { op.to_owned() } else { format!("{OP_PREFIX}{op}") };
        Self { id }
    }

    /// Whether a line of the daemon's log is about it.
    fn takes(&self, line: &[u8]) -> bool {
        let begins = |id: &Value| id.as_str().is_some_and(|id| id.starts_with(&self.id));
        // Most lines are about something else; that is seen without parsing them.
        if !line.windows(self.id.len()).any(|part| part == self.id.as_bytes()) {
            return false;
        }
        let Ok(line) = serde_json::from_slice::<Value>(line) else { return false };
        let spans = line["spans"].as_array().into_iter().flatten();
        begins(&line["fields"]["op_id"]) || spans.into_iter().any(|span| begins(&span["op_id"]))
    }

    /// What agents have said about it on their consoles, and in which VM.
    fn consoles(&self, state: &StateDir) -> Vec<(String, String)> {
        let mark = format!("{AGENT}{}", self.id);
        let mut found = Vec::new();
        for dir in std::fs::read_dir(state.vms()).into_iter().flatten().flatten() {
            let text = std::fs::read(dir.path().join("console.log")).unwrap_or_default();
            let vm = dir.file_name().to_string_lossy().into_owned();
            let lines = String::from_utf8_lossy(&text);
            let about = lines.lines().filter(|line| line.contains(&mark));
            found.extend(about.map(|line| (vm.clone(), line.trim().to_owned())));
        }
        found
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_about_an_operation_by_its_span_or_its_field_and_not_by_its_words() {
        let filter = Filter::new("op-0123456789ab");
        for (line, about) in [
            (r#"{"fields":{"message":"x"},"spans":[{"op_id":"op-0123456789ab","name":"op"}]}"#, true),
            (r#"{"fields":{"message":"x","op_id":"op-0123456789ab"}}"#, true),
            (r#"{"fields":{"message":"op-0123456789ab"},"spans":[{"op_id":"op-ffffffffffff"}]}"#, false),
            ("op-0123456789ab, and no JSON", false),
            (r#"{"fields":{"message":"x"}}"#, false),
        ] {
            assert_eq!(filter.takes(line.as_bytes()), about, "{line}");
        }
        assert!(Filter::new("0123").takes(br#"{"fields":{"op_id":"op-0123456789ab"}}"#));
    }
}
