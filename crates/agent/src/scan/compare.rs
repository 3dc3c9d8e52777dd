//! What the guest did at some paths of a workspace since they were copied in. Must never follow a symbolic link and
//! never leave the workspace's directory.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::path::Path;

use banger_model::ByteString;
use banger_protocol::agent::touched::{Kind, Touched};
use banger_protocol::agent::{CompareSpec, Compared, Place};
use rustix::fs::{FileType, Stat};
use sha2::{Digest, Sha256};

use super::seen::{self, Stamp};
use super::tracked::staged;
use super::tree::Tree;
use super::{MAX_INDEX, ScanError, read_if_there};
use crate::archive;

/// What a copy calls itself.
const COPY: &[u8] = b".git/banger-copy";
/// The longest list of paths, bytes.
const MAX_LIST: u64 = 1 << 30;
/// The largest of git's small files that is looked into, bytes.
const MAX_REFS: u64 = 64 << 20;

/// Writes a record for each of the listed paths that is not as it was copied in.
///
/// # Errors
/// A path that cannot be read, a broken stream.
pub fn compare(spec: &CompareSpec, mut list: impl Read, out: impl Write) -> Result<Compared, ScanError> {
    let root = Path::new(spec.root.as_os_str());
    let mut paths = Vec::new();
    (&mut list).take(MAX_LIST).read_to_end(&mut paths).map_err(ScanError::Stream)?;
    let _turn = archive::turn();
    archive::finish(root).map_err(ScanError::Unfinished)?;
    let place = place(root).map_err(|source| ScanError::Read { path: spec.root.clone(), source })?;
    let mut found = Compared {
        place,
        head: None,
        branch_at: None,
        missing: 0,
        touched: 0,
        staged: Vec::new(),
        copy: None,
    };
    if place != Place::Copy {
        return Ok(found);
    }
    let mut tree = Tree::open(root).map_err(|_| ScanError::NoRoot(root.to_owned()))?;
    let small =
        |tree: &mut Tree, path: &[u8]| read_if_there(tree, path, MAX_REFS).map(|f| f.map(|(text, _)| text));
    found.head = small(&mut tree, b".git/HEAD")?.map(ByteString);
    if let Some(branch) = &spec.branch {
        let loose = small(&mut tree, format!(".git/refs/heads/{branch}").as_bytes())?;
        let loose = loose.map(|text| String::from_utf8_lossy(&text).trim_end().to_owned());
        let packed = small(&mut tree, b".git/packed-refs")?.unwrap_or_default();
        found.branch_at = loose.or_else(|| packed_ref(&packed, branch));
    }
    for path in &spec.needed {
        let there = tree.look(path.as_bytes()).map_err(|e| unreadable(path.as_bytes(), e.into()))?;
        found.missing += u64::from(there.is_none());
    }
    found.copy = small(&mut tree, COPY)?.map(ByteString);
    for path in &spec.indexes {
        let raw = read_if_there(&mut tree, path.as_bytes(), MAX_INDEX)?;
        found.staged.push(raw.and_then(|(raw, _)| staged(&raw)));
    }
    let record = read_if_there(&mut tree, seen::FILE, MAX_INDEX)?.and_then(|(raw, _)| seen::parse(&raw));
    let paths: HashSet<&[u8]> = paths.split(|b| *b == 0).filter(|path| !path.is_empty()).collect();
    let mut compare = Compare {
        tree,
        record: record.unwrap_or_default(),
        paths: &paths,
        told: HashSet::new(),
        out: io::BufWriter::new(out),
    };
    for path in &paths {
        compare.path(path)?;
    }
    compare.out.flush().map_err(ScanError::Stream)?;
    found.touched = compare.told.len() as u64;
    Ok(found)
}

fn place(root: &Path) -> io::Result<Place> {
    Ok(if archive::is_copy(root) {
        Place::Copy
    } else if archive::is_vacant(root)? {
        Place::Empty
    } else {
        Place::Other
    })
}

/// gitrepository-layout(5): lines of an id and a name.
fn packed_ref(text: &[u8], branch: &str) -> Option<String> {
    let name = format!("refs/heads/{branch}");
    text.split(|b| *b == b'\n').find_map(|line| {
        let (id, found) = std::str::from_utf8(line).ok()?.split_once(' ')?;
        (found == name).then(|| id.to_owned())
    })
}

struct Compare<'a, W: Write> {
    tree: Tree,
    record: seen::Record,
    paths: &'a HashSet<&'a [u8]>,
    told: HashSet<Vec<u8>>,
    out: io::BufWriter<W>,
}

impl<W: Write> Compare<'_, W> {
    fn path(&mut self, path: &[u8]) -> Result<(), ScanError> {
        // What is in a directory's place hides what was in it.
        for at in path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at) {
            let above = &path[..at];
            match self.look(above)? {
                Some(stat) if kind_of(&stat) == FileType::Directory => {}
                None => break,
                Some(_) if self.paths.contains(above) => return Ok(()),
                Some(_) => return self.tell(Kind::Other, [0; 32], above),
            }
        }
        let known = self.record.get(path).map(|seen| seen.stamp);
        let Some(stat) = self.look(path)? else {
            return if known.is_some() { self.tell(Kind::Gone, [0; 32], path) } else { Ok(()) };
        };
        if known == Some(Stamp::of(&stat)) {
            return Ok(());
        }
        match kind_of(&stat) {
            FileType::RegularFile => {
                let file = self.tree.file(path).map_err(|e| unreadable(path, e.into()))?;
                let digest = digest(file).map_err(|e| unreadable(path, e))?;
                let kind = if stat.st_mode & 0o100 != 0 { Kind::Executable } else { Kind::File };
                self.tell(kind, digest, path)
            }
            FileType::Symlink => {
                let target = self.tree.target(path).map_err(|e| unreadable(path, e.into()))?;
                self.tell(Kind::Link, Sha256::digest(target).into(), path)
            }
            FileType::Directory => self.directory(path, known.is_some()),
            _ => self.tell(Kind::Other, [0; 32], path),
        }
    }

    /// A directory where a file goes: it may hold nothing but what goes too. The file that was there is gone.
    fn directory(&mut self, dir: &[u8], was_file: bool) -> Result<(), ScanError> {
        let mut todo = vec![dir.to_vec()];
        while let Some(at) = todo.pop() {
            for name in self.tree.names(&at).map_err(|e| unreadable(&at, e.into()))? {
                let path = [&at[..], b"/", &name.name].concat();
                if name.is_dir {
                    todo.push(path);
                } else if !self.paths.contains(&path[..]) {
                    return self.tell(Kind::Other, [0; 32], dir);
                }
            }
        }
        if was_file { self.tell(Kind::Gone, [0; 32], dir) } else { Ok(()) }
    }

    fn look(&mut self, path: &[u8]) -> Result<Option<Stat>, ScanError> {
        self.tree.look(path).map_err(|e| unreadable(path, e.into()))
    }

    fn tell(&mut self, kind: Kind, digest: [u8; 32], path: &[u8]) -> Result<(), ScanError> {
        if self.told.insert(path.to_vec()) {
            let record = Touched { kind, digest, path: path.to_vec() };
            self.out.write_all(&record.encode()).map_err(ScanError::Stream)?;
        }
        Ok(())
    }
}

fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn digest(mut file: impl Read) -> io::Result<[u8; 32]> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn unreadable(path: &[u8], source: io::Error) -> ScanError {
    ScanError::Read { path: ByteString(path.to_vec()), source }
}
