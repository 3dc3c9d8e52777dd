//! What can go wrong with the database.

use std::path::PathBuf;

use banger_model::{Error, ErrorCode};

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
    /// Anything else SQLite says, such as a full disk.
    #[error("the database failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A migration failed; its transaction was rolled back.
    #[error("the database could not be migrated: {0}")]
    Migration(#[from] rusqlite_migration::Error),
    /// The file or its backup could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
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
                .with_hint(format!("choose another --name, or 'banger vm delete {name}'")),
            StoreError::Sqlite(ref e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) => {
                Error::new(ErrorCode::Unavailable, "the disk of the state directory is full")
                    .with_hint("free some space and try again; nothing was changed")
            }
            _ => Error::internal(message),
        }
    }
}
