//! The machine id of a restored guest (machine-id(5)): the file, D-Bus's copy of it, and the journal's directories, which are
//! named by it. Must never give an id to an image that knows none.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::boot;

/// Where systemd's journal is, in memory and on disk.
const JOURNALS: &[&str] = &["run/log/journal", "var/log/journal"];

/// 32 lower-case hexadecimal digits that are not all zero.
pub(super) fn is_one(id: &str) -> bool {
    let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    id.len() == 32 && id.bytes().all(hexadecimal) && id.bytes().any(|b| b != b'0')
}

/// Replaces the id below `root`; the one before.
pub(super) fn replace(root: &Path, id: &str) -> Option<String> {
    let old = boot::machine_id(root);
    boot::write_machine_id(root, id);
    // Elsewhere it is a link to the file above.
    let bus = root.join("var/lib/dbus/machine-id");
    if bus.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
        let _ = fs::remove_file(&bus);
        let _ = fs::write(&bus, format!("{id}\n"));
    }
    old.filter(|old| is_one(old) && old != id)
}

/// Lets the journal be found by the new id.
pub(super) fn rename_journal(root: &Path, old: &str, id: &str) {
    for journals in JOURNALS {
        let dir = root.join(journals);
        // journalctl reads the directory of the present id; journald, which runs on, keeps to the one it began with.
        if fs::rename(dir.join(old), dir.join(id)).is_ok() {
            let _ = symlink(id, dir.join(old));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_replaced_wherever_it_is_kept() {
        // Given a guest with systemd, D-Bus and a journal
        let root = tempfile::tempdir().unwrap();
        let (old, new) = ("1".repeat(32), "2".repeat(32));
        for dir in ["etc", "var/lib/dbus", &format!("run/log/journal/{old}")] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        fs::write(root.path().join("etc/machine-id"), format!("{old}\n")).unwrap();
        fs::write(root.path().join("var/lib/dbus/machine-id"), format!("{old}\n")).unwrap();
        fs::write(root.path().join(format!("run/log/journal/{old}/system.journal")), "entries").unwrap();
        // When it becomes another machine
        let before = replace(root.path(), &new).unwrap();
        assert_eq!(before, old);
        rename_journal(root.path(), &before, &new);
        // Then all say so, and the journal is found by either name
        assert_eq!(read("etc/machine-id").trim(), new);
        assert_eq!(read("var/lib/dbus/machine-id").trim(), new);
        assert_eq!(read(&format!("run/log/journal/{new}/system.journal")), "entries");
        fs::write(root.path().join(format!("run/log/journal/{old}/system.journal")), "more").unwrap();
        assert_eq!(read(&format!("run/log/journal/{new}/system.journal")), "more");
        // And a copy of the copy too
        let before = replace(root.path(), &"3".repeat(32)).unwrap();
        rename_journal(root.path(), &before, &"3".repeat(32));
        assert_eq!(read(&format!("run/log/journal/{}/system.journal", "3".repeat(32))), "more");
        assert_eq!(read(&format!("run/log/journal/{old}/system.journal")), "more");
    }

    #[test]
    fn an_image_that_knows_no_id_gets_none() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        assert_eq!(replace(root.path(), &"2".repeat(32)), None);
        assert!(!root.path().join("etc/machine-id").exists());
    }
}
