//! Opening: a look before anything is written, then pragmas, a copy of what is to be migrated, and migrations.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

use crate::inspect::inspect;
use crate::{StoreError, backup, migrations};

/// How long a statement waits for another process that has the database.
const PATIENCE: Duration = Duration::from_secs(5);

/// The database. One connection, used by one caller at a time: statements are short, and one
/// writer can never meet `SQLITE_BUSY` of its own making.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
}

impl Store {
    /// Opens the database, making it when it is absent. One of an older schema is copied beside itself and migrated.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] and [`StoreError::TooNew`] leave the file and its logs byte for byte as they were.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let found = inspect(path)?;
        let mut connection = connect(path)?;
        if let (Some(version), Some(_)) = (found.schema, &found.backup) {
            backup::make(&connection, path, version)?;
        }
        migrations::run(&mut connection, found.schema.unwrap_or(0))?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    pub(crate) fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock was held cannot leave a half statement: SQLite rolls back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one way to a connection that writes.
fn connect(path: &Path) -> Result<Connection, StoreError> {
    // Private from birth; SQLite gives its side files the mode of the database.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
    let connection = Connection::open(path)?;
    configure(&connection)?;
    Ok(connection)
}

/// What every connection that writes has, whatever SQLite was built with.
fn configure(connection: &Connection) -> Result<(), StoreError> {
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SCHEMA_VERSION;

    fn pragma(connection: &Connection, name: &str) -> String {
        use rusqlite::types::Value;
        match connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).unwrap() {
            Value::Integer(number) => number.to_string(),
            Value::Text(text) => text,
            other => format!("{other:?}"),
        }
    }

    fn must_be_configured(connection: &Connection) {
        assert_eq!(pragma(connection, "journal_mode"), "wal");
        assert_eq!(pragma(connection, "synchronous"), "2", "FULL");
        assert_eq!(pragma(connection, "foreign_keys"), "1");
        assert_eq!(pragma(connection, "busy_timeout"), "5000");
    }

    #[test]
    fn every_connection_has_its_log_its_patience_and_its_foreign_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        // A database that is made, and one that is there
        for _ in 0..2 {
            let store = Store::open(&path).unwrap();
            must_be_configured(&store.connection());
            assert_eq!(pragma(&store.connection(), "user_version"), SCHEMA_VERSION.to_string());
        }
    }

    #[test]
    fn none_of_that_is_left_to_how_sqlite_was_built() {
        // Given a connection that has all of it otherwise
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection::open(dir.path().join("x.db")).unwrap();
        let otherwise = "PRAGMA journal_mode = DELETE; PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF; \
             PRAGMA busy_timeout = 0";
        connection.execute_batch(otherwise).unwrap();
        // Then it has it afterwards
        configure(&connection).unwrap();
        must_be_configured(&connection);
    }

    #[test]
    fn there_is_one_way_to_a_connection_that_writes() {
        let mut found: Vec<String> = Vec::new();
        for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let product = text.split("#[cfg(test)]").next().unwrap();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.extend(product.matches("Connection::open").map(|_| name.clone()));
        }
        found.sort();
        assert_eq!(found, ["inspect.rs", "open.rs"], "the other one only looks");
    }

    #[test]
    fn a_database_that_somebody_else_writes_to_is_waited_for() {
        // Given a program in the middle of a write
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let store = Store::open(&path).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let (started, begun) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            // When we write, we wait until it is done
            let ours = scope.spawn(|| {
                started.send(()).unwrap();
                store.delete_vm(&banger_model::VmId::from_random([1; 6]))
            });
            begun.recv().unwrap();
            other.execute_batch("COMMIT").unwrap();
            ours.join().unwrap().unwrap();
        });
        // And one that never ends is named for what it is
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        store.connection().busy_timeout(Duration::from_millis(1)).unwrap();
        let error: banger_model::Error =
            store.delete_vm(&banger_model::VmId::from_random([1; 6])).unwrap_err().into();
        assert_eq!(error.code, banger_model::ErrorCode::Busy, "{error}");
        assert!(error.hint.is_some());
    }
}
