//! Waiting for a git process: stopped when the caller no longer wants it, and when git hangs on a
//! file that nobody will ever write to.
//!
//! Owns opening files of a repository without waiting for anybody. Must never follow what it finds
//! out of the directories it looks into.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_model::ByteString;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};

use crate::{Cancel, Result, WorkspaceError};

/// How often the caller is asked while git says nothing.
const ASK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// After this long without a word, somebody looks for what git may be hanging on.
const QUIET: Duration = Duration::from_secs(3);
/// What git opens in every directory without asking what it is.
const OPENED: [&str; 2] = [".gitignore", ".gitattributes"];
/// The same in `.git`.
const OPENED_WITHIN: [&str; 10] = [
    "HEAD",
    "config",
    "config.worktree",
    "index",
    "packed-refs",
    "shallow",
    "info/exclude",
    "info/attributes",
    "info/sparse-checkout",
    "objects/info/alternates",
];

/// The output of a git process, read without waiting for longer than its caller wants.
#[derive(Debug)]
pub(crate) struct Watched<R> {
    from: R,
    cancel: Cancel,
    /// Where git works.
    top: PathBuf,
    quiet: Option<Instant>,
    looked: bool,
}

impl<R: Read + AsFd> Watched<R> {
    pub(crate) fn new(from: R, cancel: &Cancel, top: &Path) -> Self {
        Self { from, cancel: cancel.clone(), top: top.to_owned(), quiet: None, looked: false }
    }

    fn wait(&mut self) -> io::Result<()> {
        let quiet = *self.quiet.get_or_insert_with(Instant::now);
        loop {
            self.cancel.check().map_err(io::Error::other)?;
            match rustix::event::poll(&mut [PollFd::new(&self.from, PollFlags::IN)], Some(&ASK)) {
                Ok(0) => {}
                Ok(_) => {
                    self.quiet = None;
                    return Ok(());
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            if !self.looked && quiet.elapsed() > QUIET {
                self.looked = true;
                if let Some(path) = blocker(&self.top, &self.cancel) {
                    let path = path.strip_prefix(&self.top).unwrap_or(&path);
                    let path = ByteString(path.as_os_str().as_bytes().to_vec());
                    return Err(io::Error::other(WorkspaceError::Special(path)));
                }
            }
        }
    }
}

impl<R: Read + AsFd> Read for Watched<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.wait()?;
        self.from.read(buf)
    }
}

/// The error that a failed read stands for.
pub(crate) fn unpacked(e: io::Error, otherwise: impl FnOnce(io::Error) -> WorkspaceError) -> WorkspaceError {
    match e.downcast::<WorkspaceError>() {
        Ok(ours) => ours,
        Err(e) => otherwise(e),
    }
}

/// A pipe, socket or device in the place of a file that git reads.
fn blocker(top: &Path, cancel: &Cancel) -> Option<PathBuf> {
    let is_special = |path: &Path| std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir());
    let git = top.join(".git");
    if let Some(found) = OPENED_WITHIN.iter().map(|name| git.join(name)).find(|path| is_special(path)) {
        return Some(found);
    }
    let mut ahead = vec![top.to_owned()];
    while let Some(dir) = ahead.pop() {
        if cancel.is_cancelled() {
            return None;
        }
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            let name = entry.file_name();
            if kind.is_dir() && name != ".git" {
                ahead.push(entry.path());
            } else if !kind.is_file() && !kind.is_symlink() && OPENED.iter().any(|n| name == *n) {
                return Some(entry.path());
            }
        }
    }
    None
}

/// A regular file, opened without waiting for whoever may hold the other end of what is there
/// instead; nothing when it is not there or no regular file.
pub(crate) fn open_regular(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => {
            let file = File::from(fd);
            Ok(file.metadata()?.is_file().then_some(file))
        }
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// A small regular file's content; nothing when it is not there, is no regular file or holds more
/// than `cap` bytes.
pub(crate) fn read_regular(path: &Path, cap: u64) -> Result<Option<Vec<u8>>> {
    let read = || {
        let Some(file) = open_regular(path)? else { return Ok(None) };
        let mut text = Vec::new();
        file.take(cap + 1).read_to_end(&mut text)?;
        Ok((text.len() as u64 <= cap).then_some(text))
    };
    read().map_err(|e| WorkspaceError::io("read", path, e))
}
