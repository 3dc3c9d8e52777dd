//! The files that go along, and which of them the guest does not have as they are.

use banger_model::{ByteString, WorkspaceMode};

use super::files::{Found, Kind, Tree};
use super::index::Stamp;
use super::manifest::{self, Row, Rows};
use super::part::Part;
use crate::source::LISTING_CAP;
use crate::{Result, WorkspaceError};

/// One repository's files.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Their paths below the workspace, sorted.
    pub(crate) files: Vec<ByteString>,
    pub(crate) bytes: u64,
    pub(crate) skipped_untracked: u64,
    /// With a base: which of `files` are sent.
    pub(crate) send: Option<Vec<usize>>,
    /// The bytes of those.
    pub(crate) send_bytes: u64,
    /// Paths below the workspace that were sent earlier and are not there any more.
    pub(crate) gone: Vec<ByteString>,
}

impl Listing {
    /// Looks at every file. `base` are the rows of what was sent earlier.
    pub(crate) fn make(part: &Part, include_untracked: bool, base: Option<Rows>) -> Result<Self> {
        let mut listing = Self { send: base.is_some().then(Vec::new), ..Self::default() };
        if part.mode == WorkspaceMode::MetadataOnly {
            listing.skipped_untracked = listing.untracked(part, false)?.1;
            return Ok(listing);
        }
        let (untracked, skipped) = listing.untracked(part, include_untracked)?;
        listing.skipped_untracked = skipped;
        let mut tree = Tree::open(&part.tree)?;
        let mut base = base;
        let mut untracked = untracked.iter().peekable();
        let (mut at, index) = (0, &part.index);
        while at < index.len() || untracked.peek().is_some() {
            if at % 64 == 0 {
                part.source.git.cancel().check()?;
            }
            let tracked = (at < index.len()).then(|| index.entry(at).path);
            let other = untracked.peek().map(|p| p.as_slice());
            let is_tracked = tracked.is_some_and(|t| other.is_none_or(|o| t <= o));
            let path = if is_tracked { tracked } else { other }.unwrap_or_default();
            let found = look(part, &mut tree, path, is_tracked)?;
            let entry = is_tracked.then_some(at);
            if let Some(found) = found {
                listing.add(part, path, entry, &found, base.as_mut())?;
            } else if !is_tracked {
                listing.skipped_untracked += 1;
            }
            while at < index.len() && index.entry(at).path == path {
                at += 1;
            }
            while untracked.peek().is_some_and(|o| o.as_slice() == path) {
                untracked.next();
            }
        }
        if let Some(rows) = &mut base {
            while let Some(row) = rows.next()? {
                listing.gone.extend((!row.is_theirs).then(|| ByteString(part.full(&row.path))));
            }
        }
        Ok(listing)
    }

    fn add(
        &mut self,
        part: &Part,
        path: &[u8],
        entry: Option<usize>,
        found: &Found,
        base: Option<&mut Rows>,
    ) -> Result<()> {
        self.bytes += found.stamp.size;
        let gone = &mut self.gone;
        if let (Some(rows), Some(send)) = (base, &mut self.send) {
            let passed = |row: Row| gone.extend((!row.is_theirs).then(|| ByteString(part.full(&row.path))));
            let row = rows.find(path, passed)?;
            if !row.is_some_and(|row| is_there(part, entry, found, &row)) {
                send.push(self.files.len());
                self.send_bytes += found.stamp.size;
            }
        }
        self.files.push(ByteString(part.full(path)));
        Ok(())
    }

    /// The untracked paths that go along, sorted, and how many do not.
    fn untracked(&self, part: &Part, include: bool) -> Result<(Vec<Vec<u8>>, u64)> {
        if !part.start.overlay {
            return Ok((Vec::new(), 0));
        }
        let out = part.git().output(&["ls-files", "-z", "--others", "--exclude-standard"], LISTING_CAP)?;
        let all = || out.split(|b| *b == 0).filter(|p| !p.is_empty());
        if !include {
            return Ok((Vec::new(), all().count() as u64));
        }
        // A path that ends in a slash is another repository, which git would not add either.
        let mut paths: Vec<Vec<u8>> = all().filter(|p| !p.ends_with(b"/")).map(<[u8]>::to_vec).collect();
        paths.sort();
        let skipped = all().count() - paths.len();
        Ok((paths, skipped as u64))
    }
}

/// Whether the guest has a file already, as git sees it.
pub(crate) fn is_there(part: &Part, entry: Option<usize>, found: &Found, row: &Row) -> bool {
    let kind = manifest::kind(found, executable(part, entry));
    let state = manifest::state(&found.stamp);
    row.is_same(state, kind)
        || (row.kind == kind
            && row.size == found.stamp.size
            && row.id != [0; 20]
            && row.id == known(part, entry, &found.stamp))
}

/// The object that git knows a file to be; zeros when it does not.
pub(crate) fn known(part: &Part, entry: Option<usize>, stamp: &Stamp) -> [u8; 20] {
    let mut id = [0; 20];
    if let Some(entry) = entry.map(|n| part.index.entry(n))
        && entry.stage() == 0
        && entry.records(stamp)
        && let Some(first) = entry.id.get(..20)
    {
        id.copy_from_slice(first);
    }
    id
}

/// What the index says of a tracked file where the file system cannot.
pub(crate) fn executable(part: &Part, entry: Option<usize>) -> Option<bool> {
    entry.filter(|_| !part.trust_modes()).map(|n| part.index.entry(n).executable())
}

/// What is at `path`, when it goes along.
fn look(part: &Part, tree: &mut Tree, path: &[u8], is_tracked: bool) -> Result<Option<Found>> {
    let Some(found) = tree.look(path)? else { return Ok(None) };
    match found.kind {
        Kind::File { .. } | Kind::Link => Ok(Some(found)),
        // A directory in a file's place: for git the file is deleted.
        Kind::Special if is_tracked => Err(WorkspaceError::Special(ByteString(part.full(path)))),
        Kind::Directory | Kind::Special => Ok(None),
    }
}
