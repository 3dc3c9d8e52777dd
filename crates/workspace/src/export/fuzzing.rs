//! The inspection alone, without git and without a repository: what the fuzz target in `fuzz/` calls, many thousand
//! times a minute. Not part of what is shipped.

use std::io::{self, Read};

use super::base::Base;
use super::receive::{Change, Sink, read};
use super::{Limits, links};
use crate::{Result, WorkspaceError};

/// What became of a path: a file, a link with its target, or gone.
#[derive(Debug)]
pub enum Verdict {
    /// A file.
    File,
    /// A link and its target.
    Link(Vec<u8>),
    /// Deleted.
    Gone,
}

/// Takes contents and forgets them.
struct Nowhere;

impl Sink for Nowhere {
    fn put(&mut self, _path: &[u8], content: &mut impl Read, size: u64) -> Result<u64> {
        let taken =
            io::copy(&mut content.take(size), &mut io::sink()).map_err(WorkspaceError::GuestStream)?;
        if taken == size { Ok(1) } else { Err(WorkspaceError::CutShort(None)) }
    }
}

/// Inspects records against a base listing (`git ls-tree -r -z`) whose links are `before`.
///
/// # Errors
/// As `Export::receive`.
pub fn inspect(
    records: &[u8],
    listing: &[u8],
    before: &[(&[u8], &[u8])],
    limits: &Limits,
) -> Result<Vec<(Vec<u8>, Verdict)>> {
    let base = Base::parse(listing.to_vec());
    let changes = read(records, limits, &base, &mut Nowhere)?;
    let before = before.iter().map(|(path, to)| (path.to_vec(), to.to_vec())).collect();
    links::check(&before, &changes)?;
    let verdict = |change| match change {
        Change::File { .. } => Verdict::File,
        Change::Link { target, .. } => Verdict::Link(target),
        Change::Deleted => Verdict::Gone,
    };
    Ok(changes.into_iter().map(|(path, change)| (path, verdict(change))).collect())
}
