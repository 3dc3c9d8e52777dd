//! Whether the host has moved on since a capture: its HEAD, what is staged, its files.
//!
//! Owns the cheap look: two short calls of git and the state of every file, nothing read. Must
//! never write, not even refresh an index.

use std::path::Path;

use banger_model::ByteString;
use sha2::{Digest, Sha256};

use super::files::{Kind, Tree};
use super::manifest::{self, Manifest, PartFacts, Rows};
use super::part::{head, index_state};
use crate::source::{LISTING_CAP, Source};
use crate::watch::open_regular;
use crate::{Cancel, Result, WorkspaceError};

/// How many paths are named.
const FEW: usize = 5;

/// What became of a repository since it was captured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drift {
    /// The commit that was checked out, and the one that is now; none where there is no commit.
    pub head: Option<(Option<String>, Option<String>)>,
    /// The same for the branch; none where HEAD is detached.
    pub branch: Option<(Option<String>, Option<String>)>,
    /// Whether something else is staged.
    pub index: bool,
    /// How many files are other than they were sent, new or gone.
    pub changed: u64,
    /// A few of them.
    pub examples: Vec<ByteString>,
}

impl Drift {
    /// Whether everything is as it was sent.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    fn file(&mut self, facts: &PartFacts, path: &[u8]) {
        self.changed += 1;
        if self.examples.len() < FEW {
            self.examples.push(ByteString([facts.prefix.as_bytes(), path].concat()));
        }
    }
}

impl Manifest {
    /// Compares what was sent with the host as it is. Of a capture that began elsewhere than at HEAD only that
    /// starting point is compared.
    ///
    /// # Errors
    /// A repository that is gone or cannot be read; cancellation.
    pub fn drift(&self, cancel: &Cancel) -> Result<Drift> {
        let mut drift = Drift::default();
        for (n, facts) in self.facts.parts.iter().enumerate() {
            let top = [self.facts.source.as_bytes(), b"/", facts.prefix.as_bytes()].concat();
            let top = crate::source::path_of(top);
            let source = match Source::find_watching(&top, cancel) {
                Ok(source) => source,
                // A submodule that is gone is a change like that of a file.
                Err(WorkspaceError::NoSuchPath(_) | WorkspaceError::NoRepository(_)) if n > 0 => {
                    drift.file(facts, b"");
                    continue;
                }
                Err(e) => return Err(e),
            };
            self.compare(&mut drift, n, facts, &source)?;
        }
        Ok(drift)
    }

    fn compare(&self, drift: &mut Drift, n: usize, facts: &PartFacts, source: &Source) -> Result<()> {
        if !facts.overlay {
            let from = self.facts.request.from.as_deref().unwrap_or("HEAD");
            let commit = source.resolve(from, "commit").ok();
            if commit != facts.commit {
                drift.head = Some((facts.commit.clone(), commit));
            }
            return Ok(());
        }
        let (commit, branch) = head(source)?;
        if n == 0 && commit != facts.host_commit {
            drift.head = Some((facts.host_commit.clone(), commit));
        } else if commit != facts.host_commit {
            drift.file(facts, b"");
        }
        if n == 0 && branch != facts.host_branch {
            drift.branch = Some((facts.host_branch.clone(), branch));
        }
        drift.index |= is_other_index(source, facts)?;
        if self.facts.mode == banger_model::WorkspaceMode::MetadataOnly {
            return Ok(());
        }
        let untracked = match self.facts.request.include_untracked {
            true => untracked(source)?,
            false => Vec::new(),
        };
        files(drift, facts, &source.top, self.rows(n)?, untracked, source.git.cancel())
    }
}

/// Whether other contents are staged. An index that was only refreshed is none.
fn is_other_index(source: &Source, facts: &PartFacts) -> Result<bool> {
    let path = source.git_dir.join("index");
    let reading = |e| WorkspaceError::io("read", &path, e);
    let state = match open_regular(&path).map_err(reading)? {
        Some(file) => index_state(&file.metadata().map_err(reading)?),
        None => [0; 4],
    };
    if state == facts.index {
        return Ok(false);
    }
    let staged = source.git.output(&["ls-files", "-s", "-z"], LISTING_CAP)?;
    Ok(hex::encode(Sha256::digest(&staged)) != facts.staged)
}

/// The untracked paths, sorted, without other repositories.
fn untracked(source: &Source) -> Result<Vec<Vec<u8>>> {
    let out = source.git.output(&["ls-files", "-z", "--others", "--exclude-standard"], LISTING_CAP)?;
    let all = out.split(|b| *b == 0).filter(|p| !p.is_empty() && !p.ends_with(b"/"));
    let mut paths: Vec<Vec<u8>> = all.map(<[u8]>::to_vec).collect();
    paths.sort();
    Ok(paths)
}

fn files(
    drift: &mut Drift,
    facts: &PartFacts,
    top: &Path,
    mut rows: Rows,
    untracked: Vec<Vec<u8>>,
    cancel: &Cancel,
) -> Result<()> {
    let mut tree = Tree::open(top)?;
    let mut untracked = untracked.into_iter().peekable();
    let mut seen = 0_u64;
    while let Some(row) = rows.next()? {
        seen += 1;
        if seen.is_multiple_of(256) {
            cancel.check()?;
        }
        while let Some(new) = untracked.next_if(|path| *path < row.path) {
            drift.file(facts, &new);
        }
        untracked.next_if(|path| *path == row.path);
        if row.is_theirs {
            continue;
        }
        let same = tree.look(&row.path)?.is_some_and(|found| {
            let executable = match found.kind {
                Kind::File { .. } if !facts.trust_modes => Some(row.kind == 1),
                _ => None,
            };
            let (state, kind) = (manifest::state(&found.stamp), manifest::kind(&found, executable));
            // Read so soon after it was written that this cannot be told: size and time must do.
            row.is_same(state, kind) || (row.is_unsure() && row.looks_like(&found, kind))
        });
        if !same {
            drift.file(facts, &row.path);
        }
    }
    untracked.for_each(|new| drift.file(facts, &new));
    Ok(())
}
