//! `banger vm workspace export`: the change as a patch. A patch that is not whole is never left in
//! a file, and never passes for a good one.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use banger_model::{ByteString, Bytes as Size, Error, GuestPath};
use banger_protocol::api::{ExportRequest, ExportSummary};
use bytes::Bytes;
use hyper::Method;

use crate::client::{self, Lines, Streamed};
use crate::commands::args::VmArg;
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::output::printable;
use crate::pump::OutputPump;

/// Write what was changed in a VM's workspace as a patch for git apply
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmArg,
    /// Write the patch to a file [default: stdout]
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    output: Option<OsString>,
    /// The revision of the host's repository to compare with [default: the one that was copied in]
    #[arg(long, value_name = "REV")]
    base: Option<String>,
    /// Where the workspace is in the guest [default: where it was copied to]
    #[arg(long, value_name = "PATH")]
    guest_path: Option<GuestPath>,
    /// The most that changed files may hold together: a number of bytes, or a size such as 64M [default: 1G]
    #[arg(long, value_name = "SIZE")]
    max_bytes: Option<ByteCount>,
    /// Only the names of the files that changed
    #[arg(long, conflicts_with = "output")]
    names_only: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let max_bytes = args.max_bytes.map(|max| max.0);
    let request = ExportRequest { base: args.base, guest_path: args.guest_path, max_bytes };
    let url = client::path("vms", &args.which.vm, "/workspace/export");
    let mut body = context.client()?.stream(Method::POST, &url, Some(&request)).await?;
    let mut lines = Lines::default();
    let line = lines.next(&mut body).await?;
    let summary: ExportSummary = serde_json::from_slice(&line).map_err(CliError::protocol)?;
    let patch = Patch { first: Some(lines.into_rest()), rest: body, left: summary.patch_bytes };

    if args.names_only && !context.output.json {
        context.output.bytes(&names(&summary))?;
    } else if let Some(path) = &args.output {
        to_file(patch, path).await?;
    } else if !context.output.json {
        to_stdout(patch).await?;
    }
    if context.output.json {
        context.output.document(&summary)?;
    } else if !summary.has_changes {
        context.output.notice("nothing was changed");
    } else if let Some(path) = &args.output {
        context.output.notice(&format!(
            "{} changed files in {}",
            summary.files.len(),
            Path::new(path).display()
        ));
    }
    if !context.output.json {
        stayed_behind(context, &summary.unfiltered, summary.skipped_repositories, &summary.skipped_paths);
    }
    Ok(0)
}

/// A size whose bare number is bytes, as the flag's name says.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteCount(pub(super) u64);

impl FromStr for ByteCount {
    type Err = Error;

    fn from_str(text: &str) -> banger_model::Result<Self> {
        let plain = text.parse().ok();
        plain.map_or_else(|| text.parse().map(|size: Size| Self(size.0)), |bytes| Ok(Self(bytes)))
    }
}

/// Tells of what is not in a change, or not as `git add` would have it.
pub(super) fn stayed_behind(
    context: &Context,
    unfiltered: &[ByteString],
    repositories: u64,
    some: &[ByteString],
) {
    let names = |paths: &[ByteString]| -> String {
        let shown = paths.iter().take(5).map(|p| printable(&p.to_string_lossy()).into_owned());
        shown.collect::<Vec<_>>().join(", ")
    };
    if !unfiltered.is_empty() {
        context.output.notice(&format!(
            "{} files go through a filter program when they are added, which was not run: {}",
            unfiltered.len(),
            names(unfiltered)
        ));
    }
    if repositories > 0 {
        context.output.notice(&format!(
            "{repositories} repositories within the workspace stay behind: {}",
            names(some)
        ));
    }
}

fn names(summary: &ExportSummary) -> Vec<u8> {
    let mut text = Vec::new();
    for file in &summary.files {
        text.extend_from_slice(file.path.as_bytes());
        text.push(b'\n');
    }
    text
}

/// The bytes of the patch; an error unless there are as many as were promised.
struct Patch {
    first: Option<Bytes>,
    rest: Streamed,
    left: u64,
}

impl Patch {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let chunk = match self.first.take().filter(|bytes| !bytes.is_empty()) {
            Some(first) => Some(first),
            None => self.rest.next().await?,
        };
        match &chunk {
            Some(bytes) => {
                self.left = self
                    .left
                    .checked_sub(bytes.len() as u64)
                    .ok_or_else(|| CliError::protocol("the patch is longer than was said"))?;
            }
            None if self.left > 0 => {
                return Err(CliError::daemon_gone(&format!("{} bytes of the patch are missing", self.left)));
            }
            None => {}
        }
        Ok(chunk)
    }
}

async fn to_stdout(mut patch: Patch) -> Result<()> {
    let mut output = OutputPump::spawn();
    while let Some(chunk) = patch.next().await? {
        output.write(chunk).await.map_err(|e| CliError::stdout(&e))?;
    }
    output.finish().await.map_err(|e| CliError::stdout(&e))
}

/// Writes beside the file and renames, so that there is a whole patch by that name or the old file.
/// What is not a regular file (a pipe, `/dev/null`) is written to directly.
async fn to_file(mut patch: Patch, path: &OsStr) -> Result<()> {
    let path = Path::new(path);
    let failed =
        |e: io::Error| CliError::from(Error::unavailable(format!("cannot write {}: {e}", path.display())));
    let special = fs::metadata(path).is_ok_and(|m| !m.is_file());
    let (mut file, scratch) = if special {
        (OpenOptions::new().write(true).open(path).map_err(failed)?, None)
    } else {
        let scratch = Scratch::beside(path);
        (File::create_new(&scratch.0).map_err(failed)?, Some(scratch))
    };
    while let Some(chunk) = patch.next().await? {
        file.write_all(&chunk).map_err(failed)?;
    }
    if let Some(scratch) = scratch {
        // Through a link, as writing to it would have gone.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        fs::rename(&scratch.0, target).map_err(failed)?;
    }
    Ok(())
}

/// A file that is removed unless it was renamed.
struct Scratch(PathBuf);

impl Scratch {
    fn beside(path: &Path) -> Self {
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut name = target.into_os_string();
        name.push(format!(".{}.part", std::process::id()));
        Self(PathBuf::from(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_limit_is_bytes_and_units_work() {
        let parsed = |text: &str| text.parse::<ByteCount>().map(|count| count.0);
        assert_eq!(parsed("1000").unwrap(), 1000);
        assert_eq!(parsed("64M").unwrap(), 64 << 20);
        assert!(parsed("-1").is_err() && parsed("many").is_err() && parsed("").is_err());
    }
}
