//! What was copied in, held against a guest's change: which of the host's files may be replaced, and which of the
//! user's uncommitted changes the guest undid. Of what the manifest does not say, nothing was copied.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use banger_model::{ByteString, WorkspaceMode};
use banger_protocol::agent::touched::{Kind, Touched};
use rustix::fs::Stat;

use super::worktree::Here;
use crate::capture::{Found, Manifest, Row, state};
use crate::export::{Base, BaseEntry, Exported, GITLINK, TreeChange};
use crate::source::LISTING_CAP;
use crate::{Result, WorkspaceError};

/// The state in which each file was read that the change may be about, and what the guest may have undone.
#[derive(Debug, Clone, Default)]
pub struct Copied {
    states: BTreeMap<Vec<u8>, [i64; 4]>,
    maybe: Vec<Undone>,
    manifest: Option<Manifest>,
}

/// A path that is as in the base now, and was copied in otherwise.
#[derive(Debug, Clone)]
struct Undone {
    /// Both sides are the base's.
    change: TreeChange,
    /// Whether something else is in its place, so that it must be gone.
    is_gone: bool,
    /// Whether the guest made it once: it has no record of that, and tells of it as long as it is there.
    is_theirs: bool,
}

impl Copied {
    /// Nothing was copied, or nobody knows.
    #[must_use]
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Holds what was copied against a change. A capture with another starting point than HEAD copied nothing of the
    /// working tree.
    ///
    /// # Errors
    /// git's own failure, a manifest that cannot be read.
    pub fn of(manifest: Manifest, exported: &Exported) -> Result<Self> {
        if !manifest.facts.parts.first().is_some_and(|facts| facts.overlay) {
            return Ok(Self::nothing());
        }
        let has_files = manifest.facts.mode != WorkspaceMode::MetadataOnly;
        let changes = exported.changes()?;
        let base = Base::list(&exported.source.git, &exported.summary.base_commit)?;
        let changed: BTreeSet<&[u8]> = changes.iter().map(|c| &c.path[..]).collect();
        let is_there = |path: &[u8]| {
            let start = [path, b"/"].concat();
            let new = changes.iter().any(|c| c.new.is_some() && c.path.starts_with(&start));
            new || base.below(path).any(|entry| !changed.contains(entry.path))
        };
        let (mut states, mut maybe) = (BTreeMap::new(), Vec::new());
        let mut rows = manifest.rows(0)?;
        let mut entries = base.entries().peekable();
        let restored = |entry: BaseEntry<'_>, maybe: &mut Vec<Undone>| {
            if has_files && entry.mode != GITLINK && !changed.contains(entry.path) {
                maybe.push(Undone { change: kept(entry), is_gone: false, is_theirs: false });
            }
        };
        while let Some(row) = rows.next()? {
            while let Some(entry) = entries.next_if(|entry| entry.path < &row.path[..]) {
                restored(entry, &mut maybe);
            }
            let entry = entries.next_if(|entry| entry.path == row.path);
            let is_changed = changed.contains(&row.path[..]);
            if !is_changed && entry.is_some_and(|entry| is_as_base(&row, &entry)) {
                continue;
            }
            states.insert(row.path.clone(), row.state);
            if !is_changed {
                let gone = || TreeChange { path: row.path.clone(), old: None, new: None };
                let change = entry.map_or_else(gone, kept);
                let is_gone = entry.is_none() && is_there(&row.path);
                maybe.push(Undone { change, is_gone, is_theirs: row.is_theirs });
            }
        }
        entries.for_each(|entry| restored(entry, &mut maybe));
        drop(changed);
        let mut copied = Self { states, maybe, manifest: Some(manifest) };
        copied.leave_out(exported)?;
        Ok(copied)
    }

    /// Leaves out what is absent on purpose (a sparse checkout), and what only a filter program could bring back.
    fn leave_out(&mut self, exported: &Exported) -> Result<()> {
        if self.maybe.iter().all(|undone| undone.change.new.is_none()) {
            return Ok(());
        }
        let git = &exported.source.git;
        let listing = git.output(&["ls-files", "-t", "-z"], LISTING_CAP)?;
        let skipped: BTreeSet<&[u8]> =
            listing.split(|b| *b == 0).filter_map(|line| line.strip_prefix(b"S ")).collect();
        let restored = self.maybe.iter().filter(|undone| undone.change.new.is_some());
        let list: Vec<u8> = restored.flat_map(|undone| [&undone.change.path[..], b"\0"].concat()).collect();
        let told = git.feed(&["check-attr", "-z", "--stdin", "filter"], LISTING_CAP, |pipe| {
            pipe.write_all(&list).map_err(|e| WorkspaceError::io("write to git in", &exported.source.top, e))
        })?;
        let fields: Vec<&[u8]> = told.split(|b| *b == 0).collect();
        let filtered: BTreeSet<&[u8]> = fields
            .chunks_exact(3)
            .filter(|triple| !matches!(triple[2], b"unspecified" | b"unset"))
            .map(|triple| triple[0])
            .collect();
        self.maybe.retain(|undone| {
            let path = &undone.change.path[..];
            undone.change.new.is_none() || !(skipped.contains(path) || filtered.contains(path))
        });
        Ok(())
    }

    /// Paths of which only the guest can say whether it touched them; to be asked right after the scan.
    #[must_use]
    pub fn unsure(&self) -> Vec<ByteString> {
        self.maybe.iter().map(|undone| ByteString(undone.change.path.clone())).collect()
    }

    /// Takes what the guest said of them: what it did not touch it did not undo.
    #[must_use]
    pub fn told(mut self, touched: &[Touched]) -> Self {
        let told: HashMap<&[u8], Kind> = touched.iter().map(|t| (&t.path[..], t.kind)).collect();
        self.maybe.retain(|undone| {
            let path = &undone.change.path;
            let mut above = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at]);
            let is_hidden = above.any(|above| told.contains_key(above));
            match (&undone.change.new, told.get(&path[..])) {
                (Some(_), at) => matches!(at, Some(Kind::File | Kind::Executable | Kind::Link)),
                (None, at) => {
                    let is_absent =
                        matches!(at, Some(Kind::Gone | Kind::Other)) || (undone.is_theirs && at.is_none());
                    undone.is_gone || is_hidden || is_absent
                }
            }
        });
        self
    }

    /// What the guest undid, once it was asked.
    pub(super) fn undone(&self) -> impl Iterator<Item = &TreeChange> {
        self.maybe.iter().map(|undone| &undone.change)
    }

    /// Whether what is here has been copied in and not changed since; for nothing, whether nothing was copied.
    pub(super) fn is_untouched(&self, path: &[u8], here: &Here) -> bool {
        match here {
            Here::File(stat) | Here::Link(stat) => {
                self.states.get(path).is_some_and(|then| then[1] != 0 && *then == now(stat))
            }
            // What is in the directory is looked at for itself.
            Here::Absent | Here::Blocked(_) | Here::Directory => {
                self.manifest.is_some() && !self.states.contains_key(path)
            }
            Here::Special => false,
        }
    }

    /// The manifest with what was applied: paths and what is there now, which is what the guest has. Sorted.
    pub(super) fn amended(
        &self,
        file: &std::path::Path,
        applied: &[(Vec<u8>, Here)],
    ) -> Result<Option<Manifest>> {
        let Some(manifest) = &self.manifest else { return Ok(None) };
        let row = |here: &Here| match here {
            Here::File(stat) | Here::Link(stat) => {
                let kind = match here {
                    Here::Link(_) => 2,
                    _ => u8::from(stat.st_mode & 0o100 != 0),
                };
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                // Nobody vouches for it, and its time in the guest is not known.
                Some(Row { state: now(stat), size, kind, ..Row::default() })
            }
            _ => None,
        };
        let rows = applied.iter().map(|(path, here)| (path.clone(), row(here))).collect();
        manifest.amended(file, rows).map(Some)
    }
}

fn now(stat: &Stat) -> [i64; 4] {
    state(&Found::of(stat).stamp)
}

/// A path that stays as it is in the base.
fn kept(entry: BaseEntry<'_>) -> TreeChange {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let same = Some((text(entry.mode), text(entry.id)));
    TreeChange { path: entry.path.to_vec(), old: same.clone(), new: same }
}

/// Whether a file was copied as the base has it, as far as git vouched for it.
fn is_as_base(row: &Row, entry: &BaseEntry<'_>) -> bool {
    let kind = match entry.mode {
        b"120000" => 2,
        b"100755" => 1,
        _ => 0,
    };
    row.kind == kind && row.id != [0; 20] && entry.id.get(..40) == Some(hex::encode(row.id).as_bytes())
}
