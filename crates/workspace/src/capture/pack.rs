//! The objects that go along, as packs made beside the sending of files.
//!
//! Must never write but to the scratch directory.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::history::History;
use super::index::Index;
use super::manifest::PartFacts;
use crate::git::Git;
use crate::source::{LISTING_CAP, Source, object_id};
use crate::{Cancel, Result, WorkspaceError};

/// What one repository's pack shall hold, and where it goes.
#[derive(Debug)]
pub(crate) struct Order {
    git: Git,
    /// What `git pack-objects --revs` is told; empty when there is nothing to pack.
    text: String,
    is_partial: bool,
    dir: PathBuf,
}

impl Order {
    /// The objects of `history` and `extra` that a guest with `base` does not have.
    pub(crate) fn new(
        source: &Source,
        history: &History,
        extra: &[String],
        base: Option<&PartFacts>,
        is_partial: bool,
        dir: PathBuf,
        objects: &std::path::Path,
    ) -> Result<Self> {
        // git makes even its temporary files in the object directory.
        let git = source.writing_to(objects)?;
        let mut text = Text::default();
        let there: HashSet<&String> = base.into_iter().flat_map(|b| b.extra.iter().chain(&b.tips)).collect();
        let new = |ids: &[String]| -> Vec<String> {
            ids.iter().filter(|id| !there.contains(id)).cloned().collect()
        };
        match base {
            None => {
                if !history.commits.is_empty() {
                    text.each("--shallow ", &history.shallow);
                }
                text.wanted("", &history.tips);
            }
            Some(_) if history.commits.is_empty() => text.wanted("", &new(&history.tips)),
            Some(base) => {
                // The guest has the others: each new commit is taken by itself.
                let there: HashSet<&String> = base.commits.iter().collect();
                let missing: Vec<String> =
                    history.commits.iter().filter(|c| !there.contains(c)).cloned().collect();
                text.each("--shallow ", &missing);
                text.wanted("", &missing);
            }
        }
        text.wanted("", &new(extra));
        if let Some(base) = base.filter(|_| text.is_wanted) {
            let trees = base.commit.iter().filter(|_| !history.commits.is_empty());
            let known: Vec<String> =
                trees.map(|c| format!("{c}^{{tree}}")).chain(base.tips.clone()).collect();
            text.each("^", &existing(&git, &known)?);
        }
        let text = if text.is_wanted { text.lines } else { String::new() };
        Ok(Self { git, text, is_partial, dir })
    }

    /// Makes the pack, if there is anything to pack, and returns its files.
    fn run(&self) -> Result<Vec<PathBuf>> {
        let mut packs = Vec::new();
        if self.text.is_empty() {
            return Ok(packs);
        }
        let base = self.dir.join("pack");
        let Some(base) = base.to_str() else {
            let odd = std::io::ErrorKind::InvalidFilename.into();
            return Err(WorkspaceError::io("name a pack in", &self.dir, odd));
        };
        let mut args = vec!["pack-objects", "-q", "--revs", "--window=0", "--compression=1"];
        if self.is_partial {
            args.push("--missing=allow-any");
        }
        args.extend(["--end-of-options", base]);
        self.git.feed(&args, 1 << 16, |pipe| {
            let failed = |e| WorkspaceError::io("write to git in", self.git.dir(), e);
            pipe.write_all(self.text.as_bytes()).map_err(failed)
        })?;
        let listing = |e| WorkspaceError::io("list", &self.dir, e);
        for entry in std::fs::read_dir(&self.dir).map_err(listing)? {
            packs.push(entry.map_err(listing)?.path());
        }
        packs.sort();
        Ok(packs)
    }
}

/// Lines for `git pack-objects --revs`.
#[derive(Default)]
struct Text {
    lines: String,
    is_wanted: bool,
}

impl Text {
    fn each(&mut self, before: &str, ids: &[String]) {
        for id in ids {
            self.lines.extend([before, id, "\n"]);
        }
    }

    fn wanted(&mut self, before: &str, ids: &[String]) {
        self.is_wanted |= !ids.is_empty();
        self.each(before, ids);
    }
}

/// Those that the repository still has: what nothing names any more may be gone.
fn existing(git: &Git, names: &[String]) -> Result<Vec<String>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let out = git.feed(&["cat-file", "--batch-check=%(objectname)"], LISTING_CAP, |pipe| {
        let text: String = names.iter().flat_map(|name| [name, "\n"]).collect();
        pipe.write_all(text.as_bytes()).map_err(|e| WorkspaceError::io("write to git in", git.dir(), e))
    })?;
    Ok(out.split(|b| *b == b'\n').filter_map(object_id).collect())
}

/// The contents staged in the index that `commit` (none: no commit yet) does not have, and those
/// of a conflict's sides.
pub(crate) fn extra(git: &Git, commit: Option<&str>, index: &Index) -> Result<Vec<String>> {
    let mut ids: Vec<String> =
        index.entries().filter(|e| e.stage() > 0 && !e.is_submodule()).map(|e| hex::encode(e.id)).collect();
    let Some(commit) = commit else {
        let plain = index.entries().filter(|e| e.stage() == 0 && !e.is_intent_to_add() && !e.is_submodule());
        ids.extend(plain.map(|e| hex::encode(e.id)));
        return Ok(ids);
    };
    let args = ["diff-index", "--cached", "--raw", "-z", "--no-renames", "--no-abbrev", commit, "--"];
    let out = git.output(&args, LISTING_CAP)?;
    for field in out.split(|b| *b == 0).filter(|f| f.starts_with(b":")) {
        let words: Vec<&[u8]> = field.split(|b| *b == b' ').collect();
        // A path may begin with a colon too; it does not have these five words.
        if let [_, mode, _, new, status] = words[..]
            && mode != b"160000"
            && matches!(status, b"A" | b"M" | b"T")
            && let Some(id) = object_id(new)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// All packs, being made. Dropped before its end, it is stopped.
#[derive(Debug)]
pub(crate) struct Packing {
    thread: Option<JoinHandle<Result<Vec<Vec<PathBuf>>>>>,
    stop: Arc<AtomicBool>,
}

impl Packing {
    pub(crate) fn start(mut orders: Vec<Order>, cancel: &Cancel) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, cancel) = (stop.clone(), cancel.clone());
        let cancel = Cancel::new(move || stopped.load(Ordering::Relaxed) || cancel.is_cancelled());
        for order in &mut orders {
            order.git = order.git.clone().watching(&cancel);
        }
        let thread = std::thread::spawn(move || orders.iter().map(Order::run).collect());
        Self { thread: Some(thread), stop }
    }

    /// The files of each repository's pack.
    pub(crate) fn finish(mut self) -> Result<Vec<Vec<PathBuf>>> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(packs)) => packs,
            _ => Err(WorkspaceError::Cancelled),
        }
    }
}

impl Drop for Packing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it says is no longer asked.
            let _ = thread.join();
        }
    }
}
