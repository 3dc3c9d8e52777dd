//! What happens to databases of other versions: older ones are copied and migrated, newer and damaged ones are left
//! byte for byte as they are.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use banger_model::{
    Accel, Boot, BootKind, Bytes, DriverKind, ErrorCode, LastError, MachineShape, Mib, NetworkMode, Sha256,
    Vm, VmId, VmState, Workspace, WorkspaceMode,
};
use banger_store::{SCHEMA_VERSION, Store, StoreError, inspect};
use rusqlite::Connection;

/// A database that a released version wrote; never changed afterwards.
fn golden(version: i64) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/schema-{version}.db"))
}

fn home_with(version: i64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("banger.db");
    fs::copy(golden(version), &path).unwrap();
    (dir, path)
}

/// Every file with its bytes.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap).filter(|e| e.path().is_file());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// Leaves a database as a killed daemon does: what was committed last is in the log only.
fn killed(path: &Path, last_words: &str) {
    let dir = tempfile::tempdir().unwrap();
    let living = dir.path().join("banger.db");
    if path.exists() {
        fs::copy(path, &living).unwrap();
    }
    let connection = Connection::open(&living).unwrap();
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    connection.execute_batch(last_words).unwrap();
    for side in ["", "-wal", "-shm"] {
        let name = |base: &Path| PathBuf::from(format!("{}{side}", base.display()));
        fs::copy(name(&living), name(path)).unwrap();
    }
    assert!(fs::metadata(format!("{}-wal", path.display())).unwrap().len() > 0);
}

/// The VM that the golden databases hold, as far as their schema goes.
fn full() -> Vm {
    Vm {
        id: VmId::from_random([1; 6]),
        name: "vm-1".parse().unwrap(),
        state: VmState::Running,
        driver: DriverKind::Qemu,
        accel: Some(Accel::Tcg),
        image: "debian".parse().unwrap(),
        image_digest: Sha256::from_bytes([1; 32]),
        kernel: "debian-cloud".parse().unwrap(),
        shape: MachineShape { vcpu: 2, memory: Mib(512), disk: Bytes(4 << 30) },
        work_disk: None,
        system_generation: 0,
        work_generation: 0,
        parent: None,
        network: NetworkMode::User,
        host_access: true,
        ephemeral: false,
        unfinished: None,
        workspace: Some(Workspace {
            mode: WorkspaceMode::ShallowOverlay,
            ..serde_json::from_str(
                r#"{"guest_path":"/root/repo","source_path":{"hex":"2fff"},"base_commit":"0000000000000000000000000000000000000000",
                "branch":null,"mode":"shallow_overlay","prepared_at":"2026-11-21T03:33:00.123Z"}"#,
            )
            .unwrap()
        }),
        created_at: "2026-11-21T03:33:00Z".parse().unwrap(),
        started_at: Some("2026-11-21T03:33:01Z".parse().unwrap()),
        boot: Some(Boot { kind: BootKind::Cold, ready_ms: 1700 }),
        last_error: Some(LastError { code: ErrorCode::BootFailed, message: "it did not".into() }),
    }
}

#[test]
fn every_older_schema_is_copied_and_migrated_with_all_that_is_in_it() {
    for version in 1..SCHEMA_VERSION {
        // Given what that version wrote
        let (dir, path) = home_with(version);
        let foreseen = inspect(&path).unwrap();
        assert_eq!((foreseen.schema, foreseen.known), (Some(version), SCHEMA_VERSION));
        assert_eq!(
            foreseen.pending.iter().map(|p| p.version).collect::<Vec<_>>(),
            (version + 1..=SCHEMA_VERSION).collect::<Vec<_>>()
        );
        assert_eq!(files(dir.path()).len(), 1, "a look leaves nothing");
        // When this version opens it
        let store = Store::open(&path).unwrap();
        // Then everything is there
        let vms = store.vms().unwrap();
        assert_eq!(vms.first(), Some(&full()));
        let [_, bare] = vms.as_slice() else { panic!("{vms:?}") };
        assert_eq!((bare.name.as_str(), bare.state, &bare.workspace), ("vm-2", VmState::Created, &None));
        assert_eq!(store.images().unwrap().len(), 1);
        // And the copy is where it was said to be, of the old schema, whole
        let copy = foreseen.backup.unwrap();
        assert_eq!(copy, dir.path().join(format!("banger.db.v{version}.bak")));
        let copied = Connection::open(&copy).unwrap();
        let found: i64 = copied.query_row("PRAGMA user_version", [], |r| r.get(0)).unwrap();
        let rows: i64 = copied.query_row("SELECT count(*) FROM vms", [], |r| r.get(0)).unwrap();
        assert_eq!((found, rows), (version, 2));
        // And once is enough
        drop((store, copied));
        fs::remove_file(&copy).unwrap();
        drop(Store::open(&path).unwrap());
        assert!(!copy.exists());
    }
}

#[test]
fn what_a_killed_daemon_wrote_last_is_seen_copied_and_kept() {
    let (_dir, path) = home_with(1);
    killed(&path, "UPDATE vms SET name = 'renamed' WHERE name = 'vm-2'");
    let store = Store::open(&path).unwrap();
    assert!(store.vms().unwrap().iter().any(|vm| vm.name.as_str() == "renamed"));
    let copied = Connection::open(path.with_extension("db.v1.bak")).unwrap();
    let renamed: i64 =
        copied.query_row("SELECT count(*) FROM vms WHERE name = 'renamed'", [], |r| r.get(0)).unwrap();
    assert_eq!(renamed, 1);
}

#[test]
fn a_database_of_a_newer_banger_is_refused_and_left_as_it_is_with_its_logs() {
    let newer = format!("PRAGMA user_version = {}", SCHEMA_VERSION + 1);
    // Given one that was closed well, and one whose version is in the log only
    let closed = |path: &Path| Connection::open(path).unwrap().execute_batch(&newer).unwrap();
    let cut_off = |path: &Path| killed(path, &newer);
    for make in [&closed as &dyn Fn(&Path), &cut_off] {
        let (dir, path) = home_with(1);
        make(&path);
        let before = files(dir.path());
        // When it is opened, or looked at
        for outcome in [Store::open(&path).map(drop), inspect(&path).map(drop)] {
            // Then it is refused with what to do, and every byte of every file is as before
            let error = outcome.unwrap_err();
            assert!(
                matches!(error, StoreError::TooNew { found, .. } if found == SCHEMA_VERSION + 1),
                "{error}"
            );
            let error: banger_model::Error = error.into();
            assert_eq!(error.code, ErrorCode::Unsupported);
            assert!(error.hint.is_some());
            assert!(files(dir.path()) == before, "something was written: {:?}", files(dir.path()).keys());
        }
    }
}

#[test]
fn a_damaged_database_is_refused_and_left_as_it_is() {
    let rubbish = b"this is no database at all, but it was somebody's file".repeat(100);
    let mut torn = fs::read(golden(1)).unwrap();
    for byte in torn.iter_mut().skip(4096).take(4096) {
        *byte = 0xa5;
    }
    for content in [rubbish, torn] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        fs::write(&path, &content).unwrap();
        let before = files(dir.path());
        for outcome in [Store::open(&path).map(drop), inspect(&path).map(drop)] {
            let error = outcome.unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        }
        assert!(files(dir.path()) == before);
    }
}

#[test]
fn a_look_at_what_is_not_there_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let found = inspect(&dir.path().join("banger.db")).unwrap();
    assert_eq!((found.schema, found.pending.len(), found.backup), (None, 0, None));
    assert!(files(dir.path()).is_empty());
}

#[test]
fn a_look_works_while_a_daemon_has_it_open() {
    let (dir, path) = home_with(1);
    let store = Store::open(&path).unwrap();
    store.modify_vm(&full().id, |vm| vm.state = VmState::Stopped).unwrap();
    let before = files(dir.path());
    assert_eq!(inspect(&path).unwrap().schema, Some(SCHEMA_VERSION));
    assert!(files(dir.path()) == before);
    assert_eq!(store.vm(&full().id).unwrap().unwrap().state, VmState::Stopped);
}

#[test]
fn without_its_copy_nothing_is_migrated() {
    // Given something in the way of the copy
    let (dir, path) = home_with(1);
    fs::create_dir(dir.path().join("banger.db.v1.bak.new")).unwrap();
    // When the copy cannot be made
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    // Then it is still the old one, and opens once it can
    fs::remove_dir(dir.path().join("banger.db.v1.bak.new")).unwrap();
    assert_eq!(inspect(&path).unwrap().schema, Some(1));
    assert_eq!(Store::open(&path).unwrap().vms().unwrap().len(), 2);
}
