//! Looking at directories: what is in them, with which modes, and whether two are the same.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One entry of a directory tree.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where it is.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Whether it is a directory.
    pub dir: bool,
    /// Whether it is a symbolic link.
    pub link: bool,
    /// Whether it is a unix socket.
    pub socket: bool,
    /// How many names it has.
    pub links: u64,
}

/// Everything below `top`, not following links; what vanishes while looking is left out.
#[must_use]
pub fn walk(top: &Path) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut todo = vec![top.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() {
                todo.push(path.clone());
            }
            found.push(Entry {
                path,
                mode: meta.mode() & 0o7777,
                dir: meta.is_dir(),
                link: meta.is_symlink(),
                socket: meta.file_type().is_socket(),
                links: meta.nlink(),
            });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The tree as a git commit would see it, but for directories named `.git`: path to mode and
/// contents (a link's are its target).
#[must_use]
pub fn contents(top: &Path) -> BTreeMap<PathBuf, (String, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for entry in walk(top) {
        let inside = entry.path.strip_prefix(top).expect("walk stays inside").to_owned();
        if entry.dir || inside.components().any(|c| c.as_os_str() == ".git") {
            continue;
        }
        let (mode, bytes) = if entry.link {
            use std::os::unix::ffi::OsStrExt;
            ("120000", fs::read_link(&entry.path).expect("a link").as_os_str().as_bytes().to_vec())
        } else {
            let mode = if entry.mode & 0o100 != 0 { "100755" } else { "100644" };
            (mode, fs::read(&entry.path).expect("a file that can be read"))
        };
        all.insert(inside, (mode.to_owned(), bytes));
    }
    all
}

/// Gives `to` what `from` holds: files by hard link where they can share, directories made anew.
pub fn link(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory can be made");
    fs::set_permissions(to, fs::metadata(from).expect("the source is there").permissions())
        .expect("its mode");
    for entry in fs::read_dir(from).expect("the source is a directory").flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().expect("its type");
        if kind.is_dir() {
            link(&source, &target);
        } else if kind.is_symlink() {
            let points = fs::read_link(&source).expect("a link");
            std::os::unix::fs::symlink(points, &target).expect("a link can be made");
        } else if fs::hard_link(&source, &target).is_err() {
            fs::copy(&source, &target).expect("a copy can be made");
        }
    }
}
