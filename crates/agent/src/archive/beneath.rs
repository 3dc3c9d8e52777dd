//! Walking below a directory without ever following a symbolic link.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use banger_model::ByteString;
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use super::ArchiveError;

pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A path's parts, none of them empty, `.` or `..`.
pub(super) fn parts(path: &[u8]) -> Result<Vec<&[u8]>, ArchiveError> {
    let parts: Vec<&[u8]> =
        path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&&b".."[..]) || path.contains(&0) {
        return Err(ArchiveError::Escapes(ByteString(path.to_vec())));
    }
    Ok(parts)
}

/// A directory, and the one below it that was used last: neighbouring entries share their parents.
pub(super) struct Below {
    top: OwnedFd,
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl Below {
    pub(super) fn new(top: OwnedFd) -> Self {
        Self { top, last: None }
    }

    /// The directory that these parts lead to; with `make`, absent ones are made.
    pub(super) fn directory(&mut self, parts: &[&[u8]], make: bool) -> Result<BorrowedFd<'_>, ArchiveError> {
        if parts.is_empty() {
            return Ok(self.top.as_fd());
        }
        let path = parts.join(&b'/');
        if self.last.as_ref().is_none_or(|(p, _)| *p != path) {
            self.last = None;
            let fd = self.walk(parts, make)?;
            self.last = Some((path, fd));
        }
        Ok(self.last.as_ref().map_or(self.top.as_fd(), |(_, fd)| fd.as_fd()))
    }

    fn walk(&self, parts: &[&[u8]], make: bool) -> Result<OwnedFd, ArchiveError> {
        let mut at: Option<OwnedFd> = None;
        for (i, part) in parts.iter().enumerate() {
            let dir = at.as_ref().map_or(self.top.as_fd(), |fd| fd.as_fd());
            let next = match openat(dir, *part, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) if make => mkdirat(dir, *part, Mode::from_raw_mode(0o755))
                    .and_then(|()| openat(dir, *part, DIRECTORY, Mode::empty())),
                other => other,
            };
            let path = || parts[..=i].join(&b'/');
            at = Some(next.map_err(|e| match e {
                // A link or a file stands where a directory should be.
                Errno::LOOP | Errno::NOTDIR => ArchiveError::Escapes(ByteString(path())),
                e => ArchiveError::file(&path())(e),
            })?);
        }
        at.map_or_else(|| self.top.try_clone().map_err(ArchiveError::file(b".")), Ok)
    }

    /// Forgets the cached directory: the tree changed.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }
}
