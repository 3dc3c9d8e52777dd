//! What was copied in, held against a guest's change: which of the host's files may be replaced, and which of the
//! user's uncommitted changes the guest undid. Of what the manifest does not say, nothing was copied.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use banger_model::{ByteString, WorkspaceMode};
use banger_protocol::agent::touched::{Kind, Touched};
use rustix::fs::{FileType, Stat};

use super::worktree::{Here, WorkTree};
use crate::capture::{Found, Manifest, Row, digest_state, state};
use crate::export::{Base, BaseEntry, Exported, GITLINK, TreeChange};
use crate::source::LISTING_CAP;
use crate::{Result, WorkspaceError};

/// The state in which each file was read that the change may be about, and what the guest may have undone.
#[derive(Debug, Clone, Default)]
pub struct Copied {
    states: BTreeMap<Vec<u8>, [i64; 4]>,
    maybe: Vec<Undone>,
    manifest: Option<Manifest>,
    /// Paths of the change that moved on here; once the guest was asked, those that it left as they were copied.
    left: BTreeSet<Vec<u8>>,
    /// What the guest had when its change was last applied here.
    applied: BTreeMap<Vec<u8>, Guests>,
}

/// What the guest had at a path: a kind, an object, and its digest in a state's place.
type Guests = (u8, [u8; 20], [i64; 4]);

/// What is known of a path besides both sides of its change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    /// The guest has it as it was copied in.
    pub(super) is_left: bool,
    /// What is here was copied in and has not changed since; of nothing, that nothing was copied.
    pub(super) is_untouched: bool,
    /// What the guest had there at the last apply.
    applied: Option<(u8, [u8; 20])>,
}

impl Known {
    /// Whether that is what the guest had at the last apply.
    pub(super) fn was_applied(&self, entry: Option<&(String, String)>) -> bool {
        self.applied.is_some() && self.applied == Some(short(entry))
    }
}

/// A kind and the beginning of an object's id; 3 and zeros for nothing.
fn short(entry: Option<&(String, String)>) -> (u8, [u8; 20]) {
    let Some((mode, id)) = entry else { return (3, [0; 20]) };
    let mut short = [0; 20];
    // What is no number stays zeros, which no object has.
    let _ = id.get(..40).map(|text| hex::decode_to_slice(text, &mut short));
    (kind_of(mode.as_bytes()), short)
}

/// The kind that a row has for git's mode of a file.
fn kind_of(mode: &[u8]) -> u8 {
    match mode {
        b"120000" => 2,
        b"100755" => 1,
        _ => 0,
    }
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
        let changed: BTreeMap<&[u8], &TreeChange> = changes.iter().map(|c| (&c.path[..], c)).collect();
        let tree = WorkTree::open(&exported.source.top)?;
        // Against another base the change has more in it than the guest's doing.
        let is_guests = exported.summary.base_commit == manifest.start().0;
        let (mut left, mut applied) = (BTreeSet::new(), BTreeMap::new());
        let mut last = manifest.applied()?;
        while let Some(row) = last.next()? {
            applied.insert(row.path, (row.kind, row.id, row.state));
        }
        let is_there = |path: &[u8]| {
            let start = [path, b"/"].concat();
            let mut below = changed.range(&start[..]..).take_while(|(path, _)| path.starts_with(&start));
            below.any(|(_, change)| change.new.is_some())
                || base.below(path).any(|entry| !changed.contains_key(entry.path))
        };
        let (mut states, mut maybe) = (BTreeMap::new(), Vec::new());
        let mut rows = manifest.rows(0)?;
        let mut entries = base.entries().peekable();
        let restored = |entry: BaseEntry<'_>, maybe: &mut Vec<Undone>, left: &mut BTreeSet<Vec<u8>>| {
            if !has_files || entry.mode == GITLINK {
                return;
            }
            match changed.get(entry.path) {
                None => maybe.push(Undone { change: kept(entry), is_gone: false, is_theirs: false }),
                // It was not there when all else was copied.
                Some(change) if change.new.is_none() && is_guests && !applied.contains_key(entry.path) => {
                    left.insert(entry.path.to_vec());
                }
                Some(_) => {}
            }
        };
        while let Some(row) = rows.next()? {
            while let Some(entry) = entries.next_if(|entry| entry.path < &row.path[..]) {
                restored(entry, &mut maybe, &mut left);
            }
            let entry = entries.next_if(|entry| entry.path == row.path);
            let change = changed.get(&row.path[..]);
            let is_changed = change.is_some();
            if !is_changed && entry.is_some_and(|entry| is_as_base(&row, &entry)) {
                continue;
            }
            states.insert(row.path.clone(), row.state);
            if change.is_some_and(|change| change.new.is_some())
                && is_guests
                && !row.is_theirs
                && !is_state(&row.state, &tree.look(&row.path)?)
            {
                left.insert(row.path.clone());
            }
            if !is_changed {
                let gone = || TreeChange { path: row.path.clone(), old: None, new: None };
                let change = entry.map_or_else(gone, kept);
                let is_gone = entry.is_none() && is_there(&row.path);
                maybe.push(Undone { change, is_gone, is_theirs: row.is_theirs });
            }
        }
        entries.for_each(|entry| restored(entry, &mut maybe, &mut left));
        drop(changed);
        let mut copied = Self { states, maybe, manifest: Some(manifest), left, applied };
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
        let undone = self.maybe.iter().map(|undone| &undone.change.path);
        undone.chain(&self.left).map(|path| ByteString(path.clone())).collect()
    }

    /// Takes what the guest said of them: what it did not touch it neither did nor undid.
    #[must_use]
    pub fn told(mut self, touched: &[Touched]) -> Self {
        let told: HashMap<&[u8], Kind> = touched.iter().map(|t| (&t.path[..], t.kind)).collect();
        let is_hidden = |path: &[u8]| {
            let mut above = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at]);
            above.any(|above| told.contains_key(above))
        };
        self.left.retain(|path| !told.contains_key(&path[..]) && !is_hidden(path));
        self.maybe.retain(|undone| {
            let path = &undone.change.path;
            let is_hidden = is_hidden(path);
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

    /// What is known of a path at which this is.
    pub(super) fn of_path(&self, path: &[u8], here: &Here) -> Known {
        let (is_left, is_untouched) = (self.left.contains(path), self.is_untouched(path, here));
        Known { is_left, is_untouched, applied: self.applied.get(path).map(|(kind, id, _)| (*kind, *id)) }
    }

    /// Whether the manifest may become another one.
    pub(super) fn has_record(&self) -> bool {
        self.manifest.is_some()
    }

    fn is_untouched(&self, path: &[u8], here: &Here) -> bool {
        match here {
            Here::File(_) | Here::Link(_) => self.states.get(path).is_some_and(|then| is_state(then, here)),
            // What is in the directory is looked at for itself.
            Here::Absent | Here::Blocked(_) | Here::Directory => {
                self.manifest.is_some() && !self.states.contains_key(path)
            }
            Here::Special => false,
        }
    }

    /// The manifest after an apply: what was put at some paths, and what the guest had at all of the change's. Both sorted.
    pub(super) fn amended<'a>(
        &self,
        file: &std::path::Path,
        put: &[(Vec<u8>, Put)],
        guests: impl Iterator<Item = (&'a TreeChange, [u8; 32])>,
    ) -> Result<Option<Manifest>> {
        let Some(manifest) = &self.manifest else { return Ok(None) };
        let row = |put: &Put| match put {
            Put::Gone => None,
            // Nobody vouches for it, and its time in the guest is not known.
            Put::There(Here::File(stat) | Here::Link(stat)) => {
                let kind = match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Symlink => 2,
                    _ => u8::from(stat.st_mode & 0o100 != 0),
                };
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                Some(Row { state: now(stat), size, kind, ..Row::default() })
            }
            // Of no state that it can have: another file than the guest's.
            Put::There(_) => Some(Row::default()),
        };
        let rows = put.iter().map(|(path, put)| (path.clone(), row(put))).collect();
        let guests = guests.map(|(change, digest)| {
            let (kind, id) = short(change.new.as_ref());
            // What was not written this time is known from the last.
            let last = self.applied.get(&change.path).filter(|last| (last.0, last.1) == (kind, id));
            let state =
                last.filter(|_| digest == [0; 32]).map_or_else(|| digest_state(&digest), |last| last.2);
            Row { path: change.path.clone(), kind, id, state, ..Row::default() }
        });
        manifest.amended(file, rows, guests).map(Some)
    }
}

/// What an apply left at a path.
#[derive(Debug)]
pub(super) enum Put {
    /// Nothing, or what was there by then was not its doing.
    Gone,
    /// What it wrote, if that is what is there; anything else when somebody was quicker than this look.
    There(Here),
}

/// Whether what is here is in a state; nothing is in one that says nothing.
fn is_state(then: &[i64; 4], here: &Here) -> bool {
    matches!(here, Here::File(stat) | Here::Link(stat) if then[1] != 0 && *then == now(stat))
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
    row.kind == kind_of(entry.mode)
        && row.id != [0; 20]
        && entry.id.get(..40) == Some(hex::encode(row.id).as_bytes())
}
