//! Opening: checks before anything is written, then pragmas, backup and migrations.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use rusqlite_migration::{M, Migrations};

use crate::StoreError;

/// The schema this build writes (`PRAGMA user_version`).
pub const SCHEMA_VERSION: i64 = 1;

/// Forward only; each runs in its own transaction. Never edit one that was released.
const MIGRATIONS: &[M<'static>] = &[M::up(
    "CREATE TABLE images (
        name        TEXT PRIMARY KEY NOT NULL,
        digest      TEXT NOT NULL,
        fs          TEXT NOT NULL,
        size_bytes  INTEGER NOT NULL,
        source      TEXT NOT NULL,
        description TEXT NOT NULL,
        created_at  TEXT NOT NULL
    ) STRICT;
    CREATE TABLE vms (
        id           TEXT PRIMARY KEY NOT NULL,
        name         TEXT NOT NULL UNIQUE,
        state        TEXT NOT NULL,
        driver       TEXT NOT NULL,
        accel        TEXT,
        image        TEXT NOT NULL,
        image_digest TEXT NOT NULL,
        kernel       TEXT NOT NULL,
        vcpu         INTEGER NOT NULL,
        memory_mib   INTEGER NOT NULL,
        disk_bytes   INTEGER NOT NULL,
        network      TEXT NOT NULL,
        host_access  INTEGER NOT NULL,
        ephemeral    INTEGER NOT NULL,
        workspace    TEXT,
        created_at   TEXT NOT NULL,
        started_at   TEXT,
        boot         TEXT,
        last_error   TEXT
    ) STRICT;",
)];

/// The database. One connection, used by one caller at a time: statements are short, and one
/// writer can never meet `SQLITE_BUSY` of its own making.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
}

impl Store {
    /// Opens the database, making it when it is absent.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] and [`StoreError::TooNew`] leave the file byte for byte as it was.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(found) = inspect(path)? {
            if found > SCHEMA_VERSION {
                return Err(StoreError::TooNew { path: path.to_owned(), found, known: SCHEMA_VERSION });
            }
            if (1..SCHEMA_VERSION).contains(&found) {
                back_up(path, found)?;
            }
        }
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        Migrations::from_slice(MIGRATIONS).to_latest(&mut connection)?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    pub(crate) fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock was held cannot leave a half statement: SQLite rolls back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the schema version and checks the pages without writing; `None` when there is no file.
fn inspect(path: &Path) -> Result<Option<i64>, StoreError> {
    let length = match std::fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::Io { path: path.to_owned(), source }),
    };
    if length == 0 {
        return Ok(None);
    }
    let corrupt = |e: rusqlite::Error| StoreError::Corrupt { path: path.to_owned(), reason: e.to_string() };
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(corrupt)?;
    let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(corrupt)?;
    let check: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(corrupt)?;
    if check != "ok" {
        return Err(StoreError::Corrupt { path: path.to_owned(), reason: check });
    }
    Ok(Some(version))
}

/// Copies the database beside itself before its schema changes.
fn back_up(path: &Path, version: i64) -> Result<(), StoreError> {
    let copy = path.with_extension(format!("db.v{version}.bak"));
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.backup("main", &copy, None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_match_the_declared_version() {
        assert_eq!(MIGRATIONS.len(), usize::try_from(SCHEMA_VERSION).unwrap());
        Migrations::from_slice(MIGRATIONS).validate().unwrap();
    }

    #[test]
    fn opening_twice_keeps_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        drop(Store::open(&path).unwrap());
        let store = Store::open(&path).unwrap();
        let mode: String = store.connection().query_row("PRAGMA journal_mode", [], |r| r.get(0)).unwrap();
        assert_eq!(mode, "wal");
    }

    #[test]
    fn a_damaged_database_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let rubbish = b"this is no database at all, but it was somebody's file".repeat(100);
        std::fs::write(&path, &rubbish).unwrap();
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), rubbish);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no side files");
    }

    #[test]
    fn a_database_from_a_newer_banger_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let newer = Connection::open(&path).unwrap();
        newer.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
        drop(newer);
        let before = std::fs::read(&path).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::TooNew { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
