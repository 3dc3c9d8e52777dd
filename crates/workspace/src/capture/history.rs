//! The commits that go along, and the pack that holds them.
//!
//! Owns how deep a copy is. Must never write but to the scratch directory.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use super::index::Index;
use crate::source::{LISTING_CAP, Source, object_id};
use crate::{Result, WorkspaceError};

/// Generations of commits in a shallow copy.
pub(crate) const DEPTH: u32 = 10;

/// A bounded piece of history.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Where it begins: the commit checked out, then heads of a merge in progress.
    tips: Vec<String>,
    /// Commits whose parents stay behind, sorted.
    pub(crate) shallow: Vec<String>,
    /// Generations it has.
    pub(crate) depth: u32,
}

impl History {
    /// The commits up to [`DEPTH`] generations from the tips.
    pub(crate) fn walk(source: &Source, tips: Vec<String>) -> Result<Self> {
        let cut: HashSet<String> = std::fs::read_to_string(source.git_path("shallow")?)
            .map(|text| text.lines().map(str::to_owned).collect())
            .unwrap_or_default();
        let mut commits = Commits::open(source)?;
        let mut seen: HashSet<String> = tips.iter().cloned().collect();
        let (mut shallow, mut level, mut depth) = (Vec::new(), tips.clone(), 0);
        while !level.is_empty() {
            depth += 1;
            let mut next = Vec::new();
            for commit in level {
                let parents = if cut.contains(&commit) { None } else { Some(commits.parents(&commit)?) };
                match parents {
                    Some(parents) if depth < DEPTH => {
                        next.extend(parents.into_iter().filter(|p| seen.insert(p.clone())));
                    }
                    Some(parents) if parents.is_empty() => {}
                    _ => shallow.push(commit),
                }
            }
            level = next;
        }
        commits.close()?;
        shallow.sort();
        Ok(Self { tips, shallow, depth })
    }

    /// Writes a pack with its index into `dir`: the commits, their trees and files, and what the
    /// index refers to beyond them; `objects` takes git's temporary files. Returns whether there was anything to pack.
    pub(crate) fn pack(
        &self,
        source: &Source,
        index: &Index,
        staged: &[String],
        dir: &Path,
        objects: &Path,
    ) -> Result<bool> {
        let mut ids: Vec<String> = staged.to_vec();
        ids.extend(index.entries().filter(|e| e.stage() > 0 && !e.is_submodule()).map(|e| hex(e.id)));
        if self.tips.is_empty() && ids.is_empty() {
            return Ok(false);
        }
        let base = dir.join("pack");
        let Some(base) = base.to_str() else {
            return Err(WorkspaceError::io(
                "name a pack in",
                dir,
                std::io::ErrorKind::InvalidFilename.into(),
            ));
        };
        let mut args = vec!["pack-objects", "-q", "--revs", "--window=0", "--compression=1"];
        if source.is_partial()? {
            args.push("--missing=allow-any");
        }
        args.extend(["--end-of-options", base]);
        // git makes even its temporary files in the object directory.
        let git = source.writing_to(objects)?;
        git.feed(&args, 1 << 16, |pipe| {
            let mut text = String::new();
            for commit in &self.shallow {
                text.extend(["--shallow ", commit, "\n"]);
            }
            for id in self.tips.iter().chain(&ids) {
                text.extend([id, "\n"]);
            }
            pipe.write_all(text.as_bytes()).map_err(|e| WorkspaceError::io("write to git in", &source.top, e))
        })?;
        Ok(true)
    }
}

/// The contents staged in the index that `commit` (none: no commit yet) does not have.
pub(crate) fn staged(
    source: &Source,
    index_file: &Path,
    commit: Option<&str>,
    index: &Index,
) -> Result<Vec<String>> {
    let Some(commit) = commit else {
        let plain = index.entries().filter(|e| e.stage() == 0 && !e.is_intent_to_add() && !e.is_submodule());
        return Ok(plain.map(|e| hex(e.id)).collect());
    };
    let args = ["diff-index", "--cached", "--raw", "-z", "--no-renames", "--no-abbrev", commit, "--"];
    let out = source.git.clone().index(index_file).output(&args, LISTING_CAP)?;
    let fields = out.split(|b| *b == 0).filter(|f| f.starts_with(b":"));
    let mut ids = Vec::new();
    for field in fields {
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

/// Bytes as hexadecimal text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// One `git cat-file --batch` that is asked for commits.
struct Commits<'a> {
    source: &'a Source,
    run: crate::git::Running,
    out: BufReader<std::process::ChildStdout>,
}

impl<'a> Commits<'a> {
    fn open(source: &'a Source) -> Result<Self> {
        let mut run = source.git.converse(&["cat-file", "--batch"])?;
        let out = run.child.stdout.take().ok_or_else(|| odd(source))?;
        Ok(Self { source, run, out: BufReader::new(out) })
    }

    fn parents(&mut self, commit: &str) -> Result<Vec<String>> {
        let body =
            self.body(commit).map_err(|e| WorkspaceError::io("read commits in", &self.source.top, e))?;
        let header = body.ok_or_else(|| odd(self.source))?;
        let lines = header.split(|b| *b == b'\n').take_while(|line| !line.is_empty());
        Ok(lines.filter_map(|line| object_id(line.strip_prefix(b"parent ")?)).collect())
    }

    fn body(&mut self, commit: &str) -> std::io::Result<Option<Vec<u8>>> {
        let Some(pipe) = self.run.child.stdin.as_mut() else { return Ok(None) };
        pipe.write_all(format!("{commit}\n").as_bytes())?;
        let mut line = String::new();
        (&mut self.out).take(1 << 12).read_line(&mut line)?;
        let [_, "commit", size] = line.split_whitespace().collect::<Vec<_>>()[..] else { return Ok(None) };
        let Ok(size) = size.parse::<u64>() else { return Ok(None) };
        let mut body = Vec::new();
        (&mut self.out).take(size + 1).read_to_end(&mut body)?;
        Ok(Some(body))
    }

    fn close(self) -> Result<()> {
        self.run.finish()
    }
}

fn odd(source: &Source) -> WorkspaceError {
    WorkspaceError::GitAnswer { verb: "cat-file".into(), repository: source.top.clone() }
}
