//! What was sent, path by path, as a file that is only ever streamed.
//!
//! Owns the format: rows, then what is true of each repository, then the length of that. A manifest that is cut short or of another
//! version is none.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use banger_model::WorkspaceMode;
use banger_protocol::api::PrepareRequest;
use serde::{Deserialize, Serialize};

use super::files::{Found, Kind};
use super::index::Stamp;
use crate::{Result, WorkspaceError};

const MAGIC: &[u8; 16] = b"banger sent 1\n\n\n";
/// The length of what follows the rows, and the magic again.
const TAIL: u64 = 8 + 16;
/// A row without its path.
const ROW: usize = 4 + 4 * 8 + 8 + 4 + 1 + 20;
/// The longest path in a row, bytes.
const MAX_PATH: usize = 1 << 20;
/// In a row's kind: [`Row::is_theirs`].
const THEIRS: u8 = 4;

/// What one capture sent: enough for the next one to send only what is different.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    file: PathBuf,
    pub(crate) facts: Facts,
}

/// What is true of a whole capture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) request: PrepareRequest,
    /// The outermost repository's top directory.
    pub(crate) source: banger_model::ByteString,
    pub(crate) guest_path: String,
    pub(crate) mode: WorkspaceMode,
    /// What the copy calls itself; an earlier banger's has no name.
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) base_commit: String,
    pub(crate) parts: Vec<PartFacts>,
    /// Where the rows of the last apply begin, and how many there are.
    #[serde(default)]
    pub(crate) applied: (u64, u64),
}

/// What is true of one repository of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PartFacts {
    /// Where it is below the workspace, with a slash at the end; empty for the outermost.
    pub(crate) prefix: banger_model::ByteString,
    /// Where its git directory is below the workspace.
    pub(crate) git_dir: banger_model::ByteString,
    pub(crate) object_format: String,
    /// Its `HEAD` in the guest.
    pub(crate) head: String,
    pub(crate) branch: Option<String>,
    /// The branch and the commit that the host had checked out.
    pub(crate) host_branch: Option<String>,
    pub(crate) host_commit: Option<String>,
    /// The commit checked out in the guest.
    pub(crate) commit: Option<String>,
    /// Whether the files are the host's working tree.
    pub(crate) overlay: bool,
    pub(crate) trust_modes: bool,
    /// Commits that the guest has, when its history is bounded.
    pub(crate) commits: Vec<String>,
    pub(crate) shallow: Vec<String>,
    /// Commits with everything before them, when it is not.
    pub(crate) tips: Vec<String>,
    /// Objects sent beyond the commits'.
    pub(crate) extra: Vec<String>,
    /// File names of packs.
    pub(crate) packs: Vec<String>,
    pub(crate) refs: BTreeMap<String, String>,
    /// Names below the git directory, and a digest of each content.
    pub(crate) git_files: BTreeMap<String, String>,
    /// What is staged, without the files' states.
    pub(crate) staged: String,
    /// The index file's state: modification, change, inode, size.
    pub(crate) index: [i64; 4],
    /// Rows of this repository, and where they begin.
    pub(crate) rows: u64,
    pub(crate) at: u64,
}

/// One path that was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Row {
    /// Below its repository.
    pub(crate) path: Vec<u8>,
    /// Modification and change in nanoseconds, inode, size. Zeros when the file was written so
    /// shortly before it was read that a later write could leave the same state.
    pub(crate) state: [i64; 4],
    /// Its size.
    pub(crate) size: u64,
    /// The time that it has in the guest, seconds.
    pub(crate) mtime: u32,
    /// 0 a file, 1 an executable one, 2 a link.
    pub(crate) kind: u8,
    /// Whether the guest made it, and an apply brought it here: whoever copies need not have it.
    pub(crate) is_theirs: bool,
    /// The object that git knew it to be; zeros when it was none. Of a long id the beginning.
    pub(crate) id: [u8; 20],
}

/// A digest in the place of a state.
pub(crate) fn digest_state(digest: &[u8; 32]) -> [i64; 4] {
    let mut words = digest.chunks_exact(8).map(|word| word.try_into().map_or(0, i64::from_le_bytes));
    std::array::from_fn(|_| words.next().unwrap_or(0))
}

/// A stamp as it is written.
pub(crate) fn state(stamp: &Stamp) -> [i64; 4] {
    let ns = |(s, ns): (i64, i64)| s.wrapping_mul(1_000_000_000).wrapping_add(ns);
    [ns(stamp.mtime), ns(stamp.ctime), stamp.ino.cast_signed(), stamp.size.cast_signed()]
}

/// The kind of a found file, `executable` overriding what the file system says.
pub(crate) fn kind(found: &Found, executable: Option<bool>) -> u8 {
    match found.kind {
        Kind::File { executable: now } => u8::from(executable.unwrap_or(now)),
        Kind::Link => 2,
        Kind::Directory | Kind::Special => 3,
    }
}

impl Row {
    /// Of an unsure state no later one is the same.
    pub(crate) fn is_same(&self, state: [i64; 4], kind: u8) -> bool {
        self.kind == kind && self.state == state && self.state[1] != 0
    }

    /// Whether the file was written so shortly before it was read that its state says little.
    pub(crate) fn is_unsure(&self) -> bool {
        self.state[1] == 0
    }

    /// Whether size, kind and, about, the time are the same.
    pub(crate) fn looks_like(&self, found: &Found, kind: u8) -> bool {
        self.kind == kind
            && self.size == found.stamp.size
            && ((found.mtime() & 0xffff_ffff) as u32).wrapping_sub(self.mtime) <= 2
    }

    /// The state as a stamp.
    pub(crate) fn stamp(&self) -> Stamp {
        let split = |ns: i64| (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
        let [mtime, ctime, ino, size] = self.state;
        Stamp {
            mtime: split(mtime),
            ctime: split(ctime),
            ino: ino.cast_unsigned(),
            size: size.cast_unsigned(),
        }
    }

    fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut fixed = [0; ROW];
        from.read_exact(&mut fixed)?;
        let len = u32::from_le_bytes([fixed[0], fixed[1], fixed[2], fixed[3]]) as usize;
        if len > MAX_PATH {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (kind, is_theirs) = (fixed[48] & !THEIRS, fixed[48] & THEIRS != 0);
        let mut row = Self { path: vec![0; len], kind, is_theirs, ..Self::default() };
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&fixed[at..at + 8]);
            word
        };
        for (n, slot) in row.state.iter_mut().enumerate() {
            *slot = i64::from_le_bytes(word(4 + 8 * n));
        }
        row.size = u64::from_le_bytes(word(36));
        row.mtime = u32::from_le_bytes([fixed[44], fixed[45], fixed[46], fixed[47]]);
        row.id.copy_from_slice(&fixed[49..]);
        from.read_exact(&mut row.path)?;
        Ok(row)
    }

    fn write(&self, to: &mut impl Write) -> io::Result<u64> {
        to.write_all(&u32::try_from(self.path.len()).unwrap_or(u32::MAX).to_le_bytes())?;
        for word in self.state {
            to.write_all(&word.to_le_bytes())?;
        }
        to.write_all(&self.size.to_le_bytes())?;
        to.write_all(&self.mtime.to_le_bytes())?;
        to.write_all(&[self.kind | if self.is_theirs { THEIRS } else { 0 }])?;
        to.write_all(&self.id)?;
        to.write_all(&self.path)?;
        Ok((ROW + self.path.len()) as u64)
    }
}

impl Manifest {
    /// Reads one that was kept; none when it is not whole.
    #[must_use]
    pub fn load(file: &Path) -> Option<Self> {
        let open = File::open(file).ok()?;
        let len = open.metadata().ok()?.len();
        let mut tail = [0; TAIL as usize];
        open.read_exact_at(&mut tail, len.checked_sub(TAIL)?).ok()?;
        let (size, magic) = tail.split_first_chunk::<8>()?;
        let size = u64::from_le_bytes(*size);
        let at = len.checked_sub(TAIL)?.checked_sub(size)?;
        let mut facts = vec![0; usize::try_from(size).ok().filter(|_| magic == MAGIC)?];
        open.read_exact_at(&mut facts, at).ok()?;
        Some(Self { file: file.to_owned(), facts: serde_json::from_slice(&facts).ok()? })
    }

    /// Moves it to its place, whole or not at all; it is in scratch until then.
    ///
    /// # Errors
    /// A failing disk.
    pub fn keep(self, file: &Path) -> Result<Self> {
        let failed = |e| WorkspaceError::io("write", file, e);
        let next = file.with_extension("next");
        match std::fs::rename(&self.file, &next) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                let mut from = File::open(&self.file).map_err(failed)?;
                let mut options = File::options();
                let to = options.write(true).create(true).truncate(true).mode(0o600).open(&next);
                io::copy(&mut from, &mut to.map_err(failed)?).map_err(failed)?;
            }
            Err(e) => return Err(failed(e)),
        }
        File::open(&next).and_then(|f| f.sync_data()).map_err(failed)?;
        std::fs::rename(&next, file).map_err(failed)?;
        Ok(Self { file: file.to_owned(), facts: self.facts })
    }

    /// The request that it answers.
    #[must_use]
    pub fn request(&self) -> &PrepareRequest {
        &self.facts.request
    }

    /// Where it went in the guest.
    #[must_use]
    pub fn guest_path(&self) -> &str {
        &self.facts.guest_path
    }

    /// What the copy calls itself in the guest; nothing when it has no name.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        Some(&self.facts.name[..]).filter(|name| !name.is_empty())
    }

    /// The commit that an export diffs against, and the branch checked out in the guest.
    #[must_use]
    pub fn start(&self) -> (&str, Option<&str>) {
        (&self.facts.base_commit, self.facts.parts.first().and_then(|part| part.branch.as_deref()))
    }

    /// Its mode.
    #[must_use]
    pub fn mode(&self) -> WorkspaceMode {
        self.facts.mode
    }

    /// The same with other rows of the outermost repository, in `file`: those at `paths` are replaced, added or, where there is
    /// none, left out. `paths` must be sorted, and so must what the apply was about.
    pub(crate) fn amended(
        &self,
        file: &Path,
        paths: Vec<(Vec<u8>, Option<Row>)>,
        applied: impl Iterator<Item = Row>,
    ) -> Result<Self> {
        let mut writer = Writer::create(file)?;
        let mut facts = self.facts.clone();
        let mut paths = paths.into_iter().peekable();
        for (n, part) in facts.parts.iter_mut().enumerate() {
            let mut rows = self.rows(n)?;
            (part.at, part.rows) = (writer.at(), 0);
            let mut put = |row: &Row| {
                part.rows += 1;
                writer.row(row)
            };
            while let Some(row) = rows.next()? {
                while let Some((path, new)) = paths.next_if(|(path, _)| n == 0 && *path < row.path) {
                    new.map(|new| put(&Row { path, is_theirs: true, ..new })).transpose()?;
                }
                match paths.next_if(|(path, _)| n == 0 && *path == row.path) {
                    Some((path, Some(new))) => put(&Row { path, is_theirs: row.is_theirs, ..new })?,
                    Some((_, None)) => {}
                    None => put(&row)?,
                }
            }
            while let Some((path, new)) = paths.next_if(|_| n == 0) {
                new.map(|new| put(&Row { path, is_theirs: true, ..new })).transpose()?;
            }
        }
        facts.applied = writer.applied(applied.map(Ok))?;
        writer.finish(facts)
    }

    /// What the guest had at the paths of the last apply to the working tree, sorted by path: a kind (3: nothing), an object and
    /// in place of a state a digest of the content, zeros when nobody knows it.
    pub(crate) fn applied(&self) -> Result<Rows> {
        let (at, rows) = self.facts.applied;
        self.open_rows(at, rows)
    }

    /// The rows of the nth repository, sorted by path.
    pub(crate) fn rows(&self, part: usize) -> Result<Rows> {
        let facts = self.facts.parts.get(part);
        let (at, left) = facts.map_or((0, 0), |p| (p.at, p.rows));
        self.open_rows(at, left)
    }

    fn open_rows(&self, at: u64, left: u64) -> Result<Rows> {
        let open = || {
            let mut file = File::open(&self.file)?;
            file.seek(SeekFrom::Start(at))?;
            Ok(Rows { from: BufReader::with_capacity(64 << 10, file), left, next: None })
        };
        open().map_err(|e| WorkspaceError::io("read", &self.file, e))
    }
}

/// Rows as they are read, looked up in ascending order.
#[derive(Debug)]
pub(crate) struct Rows {
    from: BufReader<File>,
    left: u64,
    next: Option<Row>,
}

impl Rows {
    /// The next row.
    pub(crate) fn next(&mut self) -> Result<Option<Row>> {
        if let Some(row) = self.next.take() {
            return Ok(Some(row));
        }
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let row = Row::read(&mut self.from).map_err(|e| WorkspaceError::io("read", "the manifest", e))?;
        Ok(Some(row))
    }

    /// The row of `path`; those before it go to `passed`.
    pub(crate) fn find(&mut self, path: &[u8], mut passed: impl FnMut(Row)) -> Result<Option<Row>> {
        while let Some(row) = self.next()? {
            match row.path.as_slice().cmp(path) {
                std::cmp::Ordering::Less => passed(row),
                std::cmp::Ordering::Equal => return Ok(Some(row)),
                std::cmp::Ordering::Greater => {
                    self.next = Some(row);
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }
}

/// A manifest being written.
#[derive(Debug)]
pub(crate) struct Writer {
    file: PathBuf,
    out: BufWriter<File>,
    at: u64,
}

impl Writer {
    pub(crate) fn create(file: &Path) -> Result<Self> {
        let failed = |e| WorkspaceError::io("write", file, e);
        let to = File::options().write(true).create_new(true).mode(0o600).open(file).map_err(failed)?;
        let mut out = BufWriter::with_capacity(64 << 10, to);
        out.write_all(MAGIC).map_err(failed)?;
        Ok(Self { file: file.to_owned(), out, at: MAGIC.len() as u64 })
    }

    /// Where the next row will be.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn row(&mut self, row: &Row) -> Result<()> {
        self.at += row.write(&mut self.out).map_err(|e| WorkspaceError::io("write", &self.file, e))?;
        Ok(())
    }

    /// Rows of an apply. Returns where they begin and their number.
    pub(crate) fn applied(&mut self, rows: impl Iterator<Item = Result<Row>>) -> Result<(u64, u64)> {
        let (at, mut count) = (self.at, 0);
        for row in rows {
            self.row(&row?)?;
            count += 1;
        }
        Ok((at, count))
    }

    pub(crate) fn finish(mut self, facts: Facts) -> Result<Manifest> {
        let write = |out: &mut BufWriter<File>| {
            let text = serde_json::to_vec(&facts)?;
            out.write_all(&text)?;
            out.write_all(&(text.len() as u64).to_le_bytes())?;
            out.write_all(MAGIC)?;
            out.flush()
        };
        write(&mut self.out).map_err(|e| WorkspaceError::io("write", &self.file, e))?;
        Ok(Manifest { file: self.file, facts })
    }
}
