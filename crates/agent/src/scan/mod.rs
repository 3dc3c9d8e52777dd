//! What differs in a workspace from a base listing, found without git.
//!
//! Owns the walk, git's ignore rules and the index reader. Must never follow a symbolic link and
//! never leave the workspace's directory.

mod compare;
mod ignore;
pub(crate) mod seen;
mod send;
mod submodule;
mod tracked;
mod tree;

use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use banger_model::{ByteString, Error, ErrorCode};
use banger_protocol::agent::{ScanSpec, ScanSummary};
use rustix::fs::FileType;
use rustix::io::Errno;

pub use self::compare::compare;
use self::ignore::Rules;
use self::send::Sender;
use self::tracked::{GITLINK, Tracked};
use self::tree::{Name, Tree};
use crate::archive;

/// Why a scan failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The workspace is not there.
    #[error("there is no directory {}", .0.display())]
    NoRoot(PathBuf),
    /// A path could not be read.
    #[error("cannot read '{}' in the workspace: {source}", .path.to_string_lossy())]
    Read {
        /// The path, relative to the workspace.
        path: ByteString,
        /// Why not.
        source: io::Error,
    },
    /// A file changed while it was sent.
    #[error("'{}' changed while it was read", .0.to_string_lossy())]
    Changed(ByteString),
    /// A path is longer than a record can say.
    #[error("a path of {0} bytes is too long to export")]
    LongPath(usize),
    /// The changed contents exceed the limit.
    #[error("the changed files hold more than {0} bytes")]
    TooMuch(u64),
    /// The base listing or the hash's name is not understood.
    #[error("the base listing is malformed: {0}")]
    Base(&'static str),
    /// What came for the workspace cannot be put in place.
    #[error("an update of the workspace cannot be ended: {0}")]
    Unfinished(archive::ArchiveError),
    /// The stream to or from the host broke.
    #[error("the stream broke: {0}")]
    Stream(io::Error),
}

impl From<ScanError> for Error {
    fn from(e: ScanError) -> Self {
        let code = match &e {
            ScanError::NoRoot(_) => ErrorCode::NotFound,
            ScanError::Changed(_) => ErrorCode::Busy,
            ScanError::Base(_) => ErrorCode::InvalidArgument,
            _ => ErrorCode::GuestFailed,
        };
        Self::new(code, e.to_string())
    }
}

/// The largest ignore file that is read, as git has it (`PATTERN_MAX_FILE_SIZE`).
const MAX_RULES: u64 = 100 << 20;
/// The largest index or record that is read, bytes.
const MAX_INDEX: u64 = 1 << 30;

/// Compares the tree at `root` with `base` (`git ls-tree -r -z --full-tree`) and writes a record
/// for everything that differs, then the end record. Untracked files that git would ignore stay
/// behind, as do untracked repositories within, sockets, pipes and devices. Contents are streamed.
///
/// # Errors
/// Anything that would make the answer incomplete; then no end record was written.
pub fn scan(
    root: &Path,
    spec: &ScanSpec,
    base: impl Read,
    out: impl Write,
) -> Result<ScanSummary, ScanError> {
    let id_len = match spec.object_format.as_str() {
        "sha1" => 20,
        "sha256" => 32,
        _ => return Err(ScanError::Base("the hash is neither sha1 nor sha256")),
    };
    archive::finish(root).map_err(ScanError::Unfinished)?;
    let mut tracked = Tracked::from_base(base)?;
    let mut tree = Tree::open(root).map_err(|_| ScanError::NoRoot(root.to_owned()))?;
    if let Some((raw, _)) = read_if_there(&mut tree, b".git/index", MAX_INDEX)? {
        tracked.add_index(&raw, id_len);
    }
    let seen = read_if_there(&mut tree, seen::FILE, MAX_INDEX)?.and_then(|(raw, _)| seen::parse(&raw));
    let sender = Sender::new(BufWriter::with_capacity(64 << 10, out), spec, id_len);
    let mut scan = Scan { tree, tracked, rules: Rules::default(), seen, id_len, sender };
    if let Some((text, _)) = read_if_there(&mut scan.tree, b".git/info/exclude", MAX_RULES)? {
        scan.rules.push(b"", &text);
    }
    scan.walk()?;
    scan.rest()?;
    scan.sender.finish()
}

/// A scan under way.
struct Scan<W: Write> {
    tree: Tree,
    tracked: Tracked,
    rules: Rules,
    /// What was copied in.
    seen: Option<seen::Record>,
    id_len: usize,
    sender: Sender<W>,
}

/// A directory whose names are being gone through.
struct Frame {
    path: Vec<u8>,
    names: std::vec::IntoIter<Name>,
    /// The rules in force outside it.
    rules: usize,
}

impl<W: Write> Scan<W> {
    /// Goes through all directories that git would look into for untracked files.
    fn walk(&mut self) -> Result<(), ScanError> {
        let mut frames: Vec<Frame> = self.enter(Vec::new())?.into_iter().collect();
        while let Some(frame) = frames.last_mut() {
            let Some(Name { name, is_dir }) = frame.names.next() else {
                self.rules.pop_to(frame.rules);
                frames.pop();
                continue;
            };
            if name == b".git" {
                continue;
            }
            self.sender.tick()?;
            let path = if frame.path.is_empty() { name } else { [&frame.path[..], b"/", &name].concat() };
            if is_dir {
                if let Some(commit) = self.tracked.submodule(&path) {
                    if self.submodule_changed(&path, &commit)? {
                        self.sender.submodule(&path)?;
                    }
                } else if !self.rules.ignores(&path, true) {
                    frames.extend(self.enter(path)?);
                }
            } else if self.tracked.has(&path) || !self.rules.ignores(&path, false) {
                self.visit(&path)?;
            }
        }
        Ok(())
    }

    /// Begins a directory; none when it went away or is another repository.
    fn enter(&mut self, path: Vec<u8>) -> Result<Option<Frame>, ScanError> {
        let names = match self.tree.names(&path) {
            Ok(names) => names,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !path.is_empty() => return Ok(None),
            Err(e) => return Err(unreadable(&path, e.into())),
        };
        let has = |name: &[u8]| names.iter().any(|n| n.name == name);
        if !path.is_empty() && has(b".git") && !self.tracked.is_above(&path) && self.is_repository(&path)? {
            self.sender.repository(&path);
            return Ok(None);
        }
        let rules = self.rules.depth();
        if has(b".gitignore") {
            let file =
                if path.is_empty() { b".gitignore".to_vec() } else { [&path[..], b"/.gitignore"].concat() };
            if let Some((text, _)) = read_if_there(&mut self.tree, &file, MAX_RULES)? {
                self.rules.push(&path, &text);
            }
        }
        Ok(Some(Frame { path, names: names.into_iter(), rules }))
    }

    /// Whether what is called `.git` in a directory makes it a repository in git's eyes.
    fn is_repository(&mut self, dir: &[u8]) -> Result<bool, ScanError> {
        let mut kind = |rest: &[u8]| {
            let path = [dir, b"/.git", rest].concat();
            let stat = self.tree.look(&path).map_err(|e| unreadable(&path, e.into()))?;
            Ok(stat.map(|s| FileType::from_raw_mode(s.st_mode)))
        };
        Ok(match kind(b"")? {
            Some(FileType::Directory) => {
                let dir = Some(FileType::Directory);
                kind(b"/HEAD")?.is_some() && kind(b"/objects")? == dir && kind(b"/refs")? == dir
            }
            Some(FileType::RegularFile) => true,
            _ => false,
        })
    }

    /// A path that is there, tracked or not ignored.
    fn visit(&mut self, path: &[u8]) -> Result<(), ScanError> {
        let known = self.tracked.paths.get(path).copied().unwrap_or_default();
        if known.base.is_some_and(|(mode, _)| mode == GITLINK) {
            return Ok(());
        }
        let seen = self.seen.as_ref().and_then(|seen| seen.get(path)).copied();
        let was_there = self.sender.present(&mut self.tree, path, &known, seen.as_ref())?;
        if was_there && let Some(known) = self.tracked.paths.get_mut(path) {
            known.seen = true;
        }
        Ok(())
    }

    /// Tracked paths that the walk has not met: in ignored directories, or gone.
    fn rest(&mut self) -> Result<(), ScanError> {
        let unseen = self.tracked.paths.iter().filter(|(_, known)| !known.seen);
        let mut unseen: Vec<Vec<u8>> = unseen.map(|(path, _)| path.clone()).collect();
        unseen.sort();
        for path in unseen {
            if self.tracked.has(&path) {
                self.visit(&path)?;
            }
            let Some(known) = self.tracked.paths.get(&path) else { continue };
            let is_kept = known.base.is_none_or(|(mode, _)| mode == GITLINK)
                || known.index.is_some_and(|entry| entry.is_skipped);
            if !known.seen && !is_kept {
                self.sender.deleted(&path)?;
            }
        }
        Ok(())
    }
}

/// A small regular file's content, and its state.
fn read_if_there(
    tree: &mut Tree,
    path: &[u8],
    cap: u64,
) -> Result<Option<(Vec<u8>, rustix::fs::Stat)>, ScanError> {
    let file = match tree.file(path) {
        Ok(file) => file,
        // A link, a socket, or not there: git would not read it either.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Ok(None),
        Err(e) => return Err(unreadable(path, e.into())),
    };
    let stat = rustix::fs::fstat(&file).map_err(|e| unreadable(path, e.into()))?;
    let is_fine = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && u64::try_from(stat.st_size).is_ok_and(|size| size <= cap);
    if !is_fine {
        return Ok(None);
    }
    let mut content = Vec::new();
    file.take(cap).read_to_end(&mut content).map_err(|e| unreadable(path, e))?;
    Ok(Some((content, stat)))
}

fn unreadable(path: &[u8], source: io::Error) -> ScanError {
    ScanError::Read { path: ByteString(path.to_vec()), source }
}
