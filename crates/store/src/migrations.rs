//! The schema's history: forward only, each step in a transaction of its own, so that a crash between two leaves a
//! database of the first one's version. Must never change a step that was released.

use rusqlite::Connection;
use rusqlite_migration::{M, Migrations};

use crate::StoreError;

/// The schema this build writes (`PRAGMA user_version`).
pub const SCHEMA_VERSION: i64 = 3;

/// What each step is about, for people; the first leads to version 1.
const ABOUT: &[&str] =
    &["VMs and images", "work disks, rebuilt system disks, unfinished changes", "forks, restored work disks"];

const STEPS: &[M<'static>] = &[
    M::up(
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
    ),
    M::up(
        "ALTER TABLE vms ADD COLUMN work_disk_bytes INTEGER;
        ALTER TABLE vms ADD COLUMN system_generation INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE vms ADD COLUMN unfinished TEXT;",
    ),
    M::up(
        "ALTER TABLE vms ADD COLUMN parent TEXT;
        ALTER TABLE vms ADD COLUMN work_generation INTEGER NOT NULL DEFAULT 0;",
    ),
];

/// A step that a database has not taken yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// The version it leads to.
    pub version: i64,
    /// What it is about.
    pub about: &'static str,
}

/// The steps from `version` to ours.
pub(crate) fn pending(version: i64) -> Vec<Pending> {
    (1..)
        .zip(ABOUT)
        .filter(|(v, _)| *v > version)
        .map(|(version, about)| Pending { version, about })
        .collect()
}

/// Takes the steps that are missing, one transaction each.
pub(crate) fn run(connection: &mut Connection, from: i64) -> Result<(), StoreError> {
    take(connection, STEPS, from)
}

/// The library takes all steps it is asked for in one transaction, so it is asked for one at a time.
fn take(connection: &mut Connection, steps: &[M<'static>], from: i64) -> Result<(), StoreError> {
    let migrations = Migrations::from_slice(steps);
    for version in usize::try_from(from).unwrap_or(0) + 1..=steps.len() {
        tracing::info!(version, "migrating the database");
        migrations.to_version(connection, version)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_leads_to_its_own_version_and_is_named() {
        assert_eq!(STEPS.len(), usize::try_from(SCHEMA_VERSION).unwrap());
        assert_eq!(ABOUT.len(), STEPS.len());
        Migrations::from_slice(STEPS).validate().unwrap();
        assert_eq!(pending(SCHEMA_VERSION), []);
    }

    #[test]
    fn a_step_that_fails_leaves_the_version_of_the_one_before_it() {
        // Given steps of which the third fails half-way
        let steps = [
            M::up("CREATE TABLE a (x)"),
            M::up("CREATE TABLE b (x)"),
            M::up("CREATE TABLE c (x); CREATE TABLE a (x)"),
        ];
        let mut connection = Connection::open_in_memory().unwrap();
        // When all are taken
        take(&mut connection, &steps, 0).unwrap_err();
        // Then the first two are there for good, and nothing of the third
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        assert_eq!(version, 2);
        assert!(connection.is_autocommit());
        connection.prepare("SELECT x FROM b").unwrap();
        connection.prepare("SELECT x FROM c").unwrap_err();
    }
}
