//! One file that changed on both sides.
//!
//! Owns the three-way merge: git's own, on three files in scratch, without attributes and drivers.

use std::path::PathBuf;

use crate::Result;
use crate::WorkspaceError;
use crate::export::{Batch, Exported};

/// Contents up to this are merged, bytes.
const MAX: u64 = 16 << 20;

/// What came of it.
#[derive(Debug)]
pub(crate) struct Merged {
    pub(crate) content: Vec<u8>,
    pub(crate) executable: bool,
    pub(crate) has_conflict: bool,
}

/// Merges `theirs` into `ours`; `raw` is the working tree's file, whose line ends the result gets.
/// `None` where lines cannot be merged.
pub(crate) fn merge(
    exported: &Exported,
    base: Option<&(String, String)>,
    ours: &(String, String),
    theirs: &(String, String),
    raw: &[u8],
    vm: &str,
) -> Result<Option<Merged>> {
    let git = super::objects::scratch_git(exported)?;
    let mut batch = Batch::open(&git)?;
    let mut file = |name: &str, id: Option<&str>| -> Result<Option<PathBuf>> {
        let path = exported.scratch.join(name);
        let content = match id {
            None => Some(Vec::new()),
            Some(id) => batch.read(id, |content, size| {
                let mut all = Vec::new();
                Ok(Ok(if size <= MAX { content.read_to_end(&mut all).map(|_| Some(all))? } else { None }))
            })?,
        };
        let Some(content) = content else { return Ok(None) };
        std::fs::write(&path, content).map_err(|e| WorkspaceError::io("write", &path, e))?;
        Ok(Some(path))
    };
    let files = (
        file("merge-ours", Some(&ours.1))?,
        file("merge-base", base.map(|(_, id)| &id[..]))?,
        file("merge-theirs", Some(&theirs.1))?,
    );
    batch.close()?;
    let (Some(a), Some(o), Some(b)) = files else { return Ok(None) };
    let label = format!("guest ({vm})");
    let [a, o, b] = [&a, &o, &b].map(|path| path.as_os_str());
    let mut args: Vec<&std::ffi::OsStr> =
        ["merge-file", "-p", "-q", "-L", "host", "-L", "base", "-L"].map(AsRef::as_ref).to_vec();
    args.extend([label.as_ref(), a, o, b]);
    // A status below 128 is the number of conflicts; git will not merge a binary.
    let Some((status, mut content)) = exported.git.outcome(&args, 8 * MAX)? else { return Ok(None) };
    if status > 127 {
        return Ok(None);
    }
    if has_crlf_only(raw) {
        content = content.split(|b| *b == b'\n').collect::<Vec<_>>().join(&b"\r\n"[..]);
    }
    // A mode that one side changed is changed.
    let was = base.is_some_and(|(mode, _)| mode == "100755");
    let (mine, guests) = (ours.0 == "100755", theirs.0 == "100755");
    let executable = if mine == was { guests } else { mine };
    Ok(Some(Merged { content, executable, has_conflict: status > 0 }))
}

/// Whether every line ends in CRLF in the working tree while git's own form has LF.
fn has_crlf_only(raw: &[u8]) -> bool {
    let mut ends = raw.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at).peekable();
    ends.peek().is_some() && ends.all(|at| at > 0 && raw[at - 1] == b'\r')
}
