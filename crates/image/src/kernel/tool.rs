//! Running one external program to its end, with what it printed. Must never leave it running.

use std::io::Read as _;
use std::process::Command;

use banger_host::programs;

use super::error::Result;
use crate::context::Context;
use crate::error::ImageError;
use crate::job::Job;

/// Nothing that is run here prints more than a package's description.
const OUTPUT_MAX: u64 = 16 << 20;

/// A program of the host's table, by its name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tool(pub(super) &'static str);

impl Tool {
    /// The program, found also where ordinary users have no path to.
    pub(super) fn command(self) -> Result<Command> {
        Ok(programs::command(self.0).map_err(ImageError::from)?)
    }

    /// Runs it to its end and returns its standard output; `line` sees its standard error as it comes.
    pub(super) fn run(
        self,
        command: &Command,
        what: &'static str,
        ctx: &Context<'_>,
        line: impl FnMut(&str),
    ) -> Result<String> {
        let mut job = Job::start_guarded(self.0, command)?;
        let reader = job.take_stdout().map(|out| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = out.take(OUTPUT_MAX).read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        let ended = job.follow(what, ctx.cancelled, line)?;
        let output = reader.and_then(|thread| thread.join().ok()).unwrap_or_default();
        if ended.status.success() {
            return Ok(output);
        }
        Err(ImageError::ToolFailed {
            tool: self.0,
            status: ended.status.to_string(),
            tail: last_words(&ended.tail).unwrap_or_default().to_owned(),
        }
        .into())
    }
}

/// apt's last error, else the last line of all.
fn last_words(tail: &[String]) -> Option<&str> {
    let error = tail.iter().rev().find(|line| line.starts_with("E: "));
    error.or_else(|| tail.iter().rev().find(|line| !line.starts_with("dlstatus:"))).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Result<String> {
        let ctx = Context { progress: &|_| {}, cancelled: &|| false, cache_dir: std::env::temp_dir() };
        let tool = Tool("sh");
        tool.run(tool.command()?.args(["-c", script]), "the test", &ctx, |_| {})
    }

    #[test]
    fn output_comes_back_and_failures_carry_the_last_error() {
        assert_eq!(sh("echo out; echo err >&2").unwrap(), "out\n");
        let failed =
            sh("echo 'E: no such thing' >&2; echo 'W: by the way' >&2; exit 100").unwrap_err().to_string();
        assert!(failed.ends_with(": E: no such thing"), "{failed}");
        assert!(sh("exit 3").unwrap_err().to_string().ends_with("it said nothing"));
        let absent = Tool("no-such-tool-here");
        assert!(absent.command().unwrap_err().to_string().contains("no-such-tool-here is not installed"));
    }
}
