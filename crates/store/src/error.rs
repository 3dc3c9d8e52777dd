//! What can go wrong with the database.

use std::path::PathBuf;

use banger_model::{Error, ErrorCode, is_disk_full};
use rusqlite::ErrorCode as FailureKind;

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file is not a database, or its pages are damaged. It was not changed.
    #[error("the database {path} is damaged: {reason}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// SQLite's sentence.
        reason: String,
    },
    /// A newer banger wrote it. It was not changed.
    #[error("the database {path} was written by a newer banger (schema {found}, this one knows {known})")]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The name is taken.
    #[error("a VM named '{0}' exists already")]
    NameTaken(String),
    /// A row holds what no version of ours writes.
    #[error("the database holds an unreadable record: {0}")]
    BadRow(String),
    /// Another program writes to it and does not stop.
    #[error("another program is using the database")]
    Locked,
    /// Anything else SQLite says, such as a full disk.
    #[error("the database failed: {0}")]
    Sqlite(rusqlite::Error),
    /// A migration failed; its transaction was rolled back.
    #[error("the database could not be migrated: {0}")]
    Migration(rusqlite_migration::Error),
    /// The file or its backup could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(FailureKind::DatabaseBusy | FailureKind::DatabaseLocked) => Self::Locked,
            _ => Self::Sqlite(error),
        }
    }
}

impl From<rusqlite_migration::Error> for StoreError {
    fn from(error: rusqlite_migration::Error) -> Self {
        match error {
            // A full disk is a full disk, whatever was being written.
            rusqlite_migration::Error::RusqliteError { err, .. } if err.sqlite_error_code().is_some() => {
                err.into()
            }
            other => Self::Migration(other),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Corrupt { path, .. } => {
                Error::new(ErrorCode::Unavailable, message).with_hint(format!(
                    "it was left as it is; restore a backup, or move {} away to begin anew",
                    path.display()
                ))
            }
            StoreError::TooNew { .. } => Error::new(ErrorCode::Unsupported, message)
                .with_hint("it was left as it is; use the newer banger, or another BANGER_STATE_DIR"),
            StoreError::NameTaken(name) => Error::new(ErrorCode::AlreadyExists, message)
                .with_hint(format!("choose another --name, or 'banger vm delete {name}' ('-f' if it runs)")),
            StoreError::Locked => Error::new(ErrorCode::Busy, message)
                .with_hint("close whatever has banger.db open, such as an sqlite3 shell or a backup, and try again"),
            StoreError::Sqlite(ref e) => match e.sqlite_error_code() {
                Some(FailureKind::DiskFull) => {
                    Error::new(ErrorCode::Unavailable, "the disk of the state directory is full")
                        .with_hint("free some space and try again; nothing was changed")
                }
                Some(FailureKind::DatabaseCorrupt | FailureKind::NotADatabase) => {
                    Error::new(ErrorCode::Unavailable, format!("the database is damaged: {e}")).with_hint(
                        "stop the daemon ('banger daemon stop') and restore banger.db from a copy; \
                         'bangerd --check-migrations' looks at it without touching it",
                    )
                }
                Some(FailureKind::SystemIoFailure | FailureKind::CannotOpen | FailureKind::ReadOnly) => {
                    Error::new(ErrorCode::Unavailable, format!("the database cannot be read or written: {e}"))
                        .with_hint("look at the disk and the permissions of the state directory; nothing was changed")
                }
                _ => Error::internal(message),
            },
            StoreError::Io { ref source, .. } if is_disk_full(source) => {
                Error::new(ErrorCode::Unavailable, message).with_hint("free some space and try again")
            }
            StoreError::Io { .. } => Error::new(ErrorCode::Unavailable, message)
                .with_hint("look at the disk and the permissions of the state directory"),
            _ => Error::internal(message),
        }
    }
}
