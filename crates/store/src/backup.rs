//! A copy of the database beside it, before its schema changes: `banger.db.v1.bak` holds schema 1. The newest
//! [`KEEP`] are kept. Must never leave a copy under its name that is not whole and on disk.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::StoreError;

/// Copies that are kept, of the newest schemas.
pub(crate) const KEEP: usize = 3;

/// Where the copy of a database with this schema goes.
pub(crate) fn path(database: &Path, version: i64) -> PathBuf {
    database.with_extension(format!("db.v{version}.bak"))
}

/// Makes the copy, writes it through to the disk, names it, and removes those that are too many.
pub(crate) fn make(connection: &Connection, database: &Path, version: i64) -> Result<PathBuf, StoreError> {
    let copy = path(database, version);
    let next = copy.with_extension("bak.new");
    let failed = |source| StoreError::Io { path: next.clone(), source };
    match fs::remove_file(&next) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    // Private from birth: SQLite keeps the mode of a file that is there and empty.
    private(&next).map_err(failed)?;
    let name = next.to_str().ok_or_else(|| failed(std::io::ErrorKind::InvalidFilename.into()))?;
    if let Err(error) = connection.execute("VACUUM INTO ?1", [name]) {
        let _ = fs::remove_file(&next);
        return Err(error.into());
    }
    File::open(&next).and_then(|file| file.sync_all()).map_err(failed)?;
    fs::rename(&next, &copy).map_err(failed)?;
    let dir = database.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
    tracing::info!(copy = %copy.display(), version, "the database was copied before its schema changes");
    prune(database);
    Ok(copy)
}

fn private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
}

/// Removes the copies of the oldest schemas; one that cannot be removed stays.
fn prune(database: &Path) {
    let (Some(dir), Some(name)) = (database.parent(), database.file_name().and_then(|n| n.to_str())) else {
        return;
    };
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut copies: Vec<(i64, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let file = entry.file_name().into_string().ok()?;
            let version = file.strip_prefix(name)?.strip_prefix(".v")?.strip_suffix(".bak")?;
            Some((version.parse().ok()?, entry.path()))
        })
        .collect();
    copies.sort_unstable_by_key(|(version, _)| std::cmp::Reverse(*version));
    for (version, path) in copies.into_iter().skip(KEEP) {
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(version, %error, "an old copy of the database stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_copy_is_whole_and_private_and_old_ones_go() {
        // Given a database with a row, older copies, and a copy that a crash cut short
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("banger.db");
        let connection = Connection::open(&database).unwrap();
        connection
            .execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (7); PRAGMA user_version = 9")
            .unwrap();
        for version in [5, 6, 7, 10] {
            fs::write(path(&database, version), "old").unwrap();
        }
        fs::write(dir.path().join("banger.db.v9.bak.new"), "half").unwrap();
        // When a copy is made
        let copy = make(&connection, &database, 9).unwrap();
        // Then it holds the row and the version, and the newest three are left
        assert_eq!(copy, dir.path().join("banger.db.v9.bak"));
        assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
        let read = Connection::open(&copy).unwrap();
        assert_eq!(read.query_row("SELECT x FROM t", [], |r| r.get::<_, i64>(0)).unwrap(), 7);
        assert_eq!(read.query_row("PRAGMA user_version", [], |r| r.get::<_, i64>(0)).unwrap(), 9);
        drop(read);
        let mut left: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n.contains(".bak"))
            .collect();
        left.sort();
        assert_eq!(left, ["banger.db.v10.bak", "banger.db.v7.bak", "banger.db.v9.bak"]);
    }
}
