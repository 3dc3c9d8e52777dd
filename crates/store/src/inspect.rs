//! A look at a database that is not to be touched: not by a write, not by a side file, not by a lock.

use std::fs;
use std::path::{Path, PathBuf};

use banger_model::Image;
use rusqlite::{Connection, OpenFlags};

use crate::migrations::{Pending, SCHEMA_VERSION, pending};
use crate::{Store, StoreError, backup};

/// How often a database that changes while it is copied is copied again.
const TRIES: usize = 5;
/// What belongs to a database, beside the file itself.
const SIDES: [&str; 2] = ["-wal", "-journal"];

/// What opening a database would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The file.
    pub path: PathBuf,
    /// Its schema; `None` when there is no database yet.
    pub schema: Option<i64>,
    /// The schema this build writes.
    pub known: i64,
    /// The steps that opening would take, in order. None for a database that is to be made.
    pub pending: Vec<Pending>,
    /// Where a copy would be kept before the first of them.
    pub backup: Option<PathBuf>,
}

/// Finds out what [`crate::Store::open`] would do, and does none of it.
///
/// # Errors
/// [`StoreError::Corrupt`] and [`StoreError::TooNew`] as of opening.
pub fn inspect(path: &Path) -> Result<Inspection, StoreError> {
    let schema = version(path)?;
    if let Some(found) = schema.filter(|found| *found > SCHEMA_VERSION) {
        return Err(StoreError::TooNew { path: path.to_owned(), found, known: SCHEMA_VERSION });
    }
    let pending = schema.map(pending).unwrap_or_default();
    let backup = schema.filter(|_| !pending.is_empty()).map(|version| backup::path(path, version));
    Ok(Inspection { path: path.to_owned(), schema, known: SCHEMA_VERSION, pending, backup })
}

/// The images on record, read from a copy. `None` when the schema is older than ours: reading it would take a change.
///
/// # Errors
/// As [`inspect`], and when the copy cannot be made in the host's directory for temporary files.
pub fn peek_images(path: &Path) -> Result<Option<Vec<Image>>, StoreError> {
    let found = inspect(path)?;
    if found.schema.is_none() {
        return Ok(Some(Vec::new()));
    }
    if !found.pending.is_empty() {
        return Ok(None);
    }
    let dir = scratch_in(std::env::temp_dir())?;
    let copy = dir.path().join("copy.db");
    copy_whole(path, &copy)?;
    Store::open(&copy)?.images().map(Some)
}

/// The schema version, with all pages checked; `None` when there is nothing.
fn version(path: &Path) -> Result<Option<i64>, StoreError> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() == 0 => return Ok(None),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::Io { path: path.to_owned(), source }),
    }
    if SIDES.iter().any(|side| fs::metadata(beside(path, side)).is_ok_and(|m| m.len() > 0)) {
        // What a killed daemon committed last is in the log, and reading that writes to side files: in a copy.
        let dir = scratch(path)?;
        let copy = dir.path().join("copy.db");
        copy_whole(path, &copy)?;
        return read_version(path, &copy, false).map(Some);
    }
    read_version(path, path, true).map(Some)
}

fn read_version(named: &Path, file: &Path, immutable: bool) -> Result<i64, StoreError> {
    let corrupt = |e: rusqlite::Error| StoreError::Corrupt { path: named.to_owned(), reason: e.to_string() };
    let (name, flags) = if immutable {
        (uri(file), OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI)
    } else {
        (file.as_os_str().to_owned(), OpenFlags::SQLITE_OPEN_READ_WRITE)
    };
    let connection = Connection::open_with_flags(name, flags).map_err(corrupt)?;
    let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(corrupt)?;
    let check: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(corrupt)?;
    if check == "ok" {
        Ok(version)
    } else {
        Err(StoreError::Corrupt { path: named.to_owned(), reason: check })
    }
}

/// `immutable=1`: nothing is locked, no side file is made or read (sqlite.org/uri.html).
fn uri(file: &Path) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStrExt as _;
    let mut uri = String::from("file:");
    for byte in file.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte));
            }
            other => uri.push_str(&format!("%{other:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    uri.into()
}

/// The daemon's own scratch directory, which is emptied when one starts; else that of the host.
fn scratch(path: &Path) -> Result<tempfile::TempDir, StoreError> {
    let own = path.parent().map(|dir| dir.join("tmp")).filter(|dir| dir.is_dir());
    scratch_in(own.unwrap_or_else(std::env::temp_dir))
}

fn scratch_in(dir: PathBuf) -> Result<tempfile::TempDir, StoreError> {
    tempfile::Builder::new()
        .prefix("banger-db-")
        .tempdir_in(&dir)
        .map_err(|source| StoreError::Io { path: dir, source })
}

/// Copies a database with its logs at a moment at which nobody writes to it.
fn copy_whole(from: &Path, to: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Io { path: from.to_owned(), source };
    for _ in 0..TRIES {
        let before = stamp(from);
        fs::copy(from, to).map_err(failed)?;
        for side in SIDES {
            match fs::copy(beside(from, side), beside(to, side)) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    let _ = fs::remove_file(beside(to, side));
                }
                copied => drop(copied.map_err(failed)?),
            }
        }
        if stamp(from) == before {
            return Ok(());
        }
    }
    Err(StoreError::Locked)
}

/// Changes whenever somebody writes.
fn stamp(path: &Path) -> Vec<Option<(u64, std::time::SystemTime)>> {
    ["", "-wal", "-journal"]
        .iter()
        .map(|side| {
            let meta = fs::metadata(beside(path, side)).ok()?;
            Some((meta.len(), meta.modified().ok()?))
        })
        .collect()
}

fn beside(path: &Path, side: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(side);
    name.into()
}
