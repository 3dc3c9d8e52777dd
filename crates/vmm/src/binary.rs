//! The program of a machine monitor: where it is, and what it says when it is asked. Must not know what the answer
//! means, nor which monitor it is.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use banger_host::programs::{self, is_program};
use tokio::process::Command;

/// How long a program has to say something about itself.
const ANSWER: Duration = Duration::from_secs(10);

/// Finds a program: `wanted` (the value of `variable`) if given, else `name` in `search_path` (the value of PATH). The
/// error is where we looked. What is wanted and not there is not replaced by another.
pub(crate) fn locate(
    name: &str,
    variable: &str,
    wanted: Option<&OsStr>,
    search_path: Option<&OsStr>,
) -> Result<PathBuf, String> {
    let usable = |file: &PathBuf| file.is_absolute() && is_program(file);
    if let Some(wanted) = wanted.filter(|w| !w.is_empty()) {
        let file = PathBuf::from(wanted);
        return if usable(&file) { Ok(file) } else { Err(format!("{variable}={}", file.display())) };
    }
    programs::find_in(name, search_path).map_err(|_| format!("'{name}' in PATH"))
}

/// What it prints, given these arguments; the error is a sentence.
pub(crate) async fn ask(program: &Path, args: &[&str]) -> Result<String, String> {
    let run = Command::new(program).args(args).stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(ANSWER, run).await {
        Ok(Ok(output)) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("'{}' gave no answer within {} s", args.join(" "), ANSWER.as_secs())),
    }
}
