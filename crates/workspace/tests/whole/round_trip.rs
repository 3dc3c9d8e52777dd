//! In, edited by a guest, and out again.

use std::os::unix::fs::{PermissionsExt, symlink};

use crate::support::{
    applied, at, commit, export, fingerprint, git, guest_tree, prepare, put, repository, request, status,
};
use banger_protocol::api::ChangeKind;

#[test]
fn a_change_comes_back_as_a_patch_and_the_source_is_untouched() {
    // Given a repository with staged, unstaged and untracked work.
    let repo = repository();
    put(repo.path(), "a", "one\nmore\n");
    put(repo.path(), "staged", "s\n");
    git(repo.path(), &["add", "staged"]);
    put(repo.path(), "untracked", "u\n");
    put(repo.path(), "x.o", "ignored\n");
    std::fs::remove_file(repo.path().join("d/b")).unwrap();
    let before = fingerprint(repo.path());

    // When it is prepared with what is untracked, and the guest works on it.
    let mut asked = request(repo.path());
    asked.include_untracked = true;
    let guest = prepare(&asked).unwrap();
    assert_eq!(status(guest.path()), status(repo.path()));
    assert!(!guest.path().join("x.o").exists());
    put(guest.path(), "new dir/n\nl", b"\0binary");
    put(guest.path(), "y.o", "ignored");
    put(guest.path(), "build/z", "ignored");
    std::fs::set_permissions(guest.path().join("a"), PermissionsExt::from_mode(0o755)).unwrap();
    symlink("nowhere", guest.path().join("link")).unwrap();
    std::fs::remove_dir_all(guest.path().join("d/e")).unwrap();
    put(guest.path(), "d/e", "a file now\n");
    commit(guest.path(), "guest's");
    put(guest.path(), "after", "");

    // Then the patch makes the guest's tree of the base, and nothing was written to the source.
    let (_scratch, out) = export(repo.path(), &guest.captured.base_commit, guest.path()).unwrap();
    let changed: Vec<_> =
        fingerprint(repo.path()).into_iter().filter(|line| !before.contains(line)).collect();
    assert!(changed.is_empty(), "{changed:?}");
    assert_eq!(out.tree, guest_tree(guest.path()));
    assert_eq!(applied(repo.path(), out.summary.base_commit.as_str(), &out.patch), out.tree);
    let files: Vec<(String, ChangeKind)> =
        out.summary.files.iter().map(|f| (f.path.to_string_lossy().into_owned(), f.change)).collect();
    assert!(files.contains(&("d/b".into(), ChangeKind::Deleted)), "{files:?}");
    assert!(files.contains(&("link".into(), ChangeKind::Added)), "{files:?}");
    assert!(!files.iter().any(|(path, _)| path.ends_with(".o") || path.starts_with("build")), "{files:?}");
}

#[test]
fn what_the_guests_git_cannot_tell_apart_is_a_change_all_the_same() {
    let repo = repository();
    put(repo.path(), "one", "1\n");
    put(repo.path(), "two", "2\n");
    let copied = std::fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    for name in ["one", "two"] {
        std::fs::File::open(repo.path().join(name)).unwrap().set_times(copied).unwrap();
    }
    commit(repo.path(), "two of a size and a second");
    let guest = prepare(&request(repo.path())).unwrap();
    std::fs::rename(guest.path().join("two"), guest.path().join("one")).unwrap();
    let (_scratch, out) = export(repo.path(), "HEAD", guest.path()).unwrap();
    let changed: Vec<_> = out.summary.files.iter().map(|f| f.path.to_string_lossy().into_owned()).collect();
    assert_eq!(changed, ["one", "two"]);
    assert_eq!(out.tree, guest_tree(guest.path()));
}

#[test]
fn nothing_changed_is_an_empty_patch() {
    let repo = repository();
    let guest = prepare(&request(repo.path())).unwrap();
    let (_scratch, out) = export(repo.path(), "HEAD", guest.path()).unwrap();
    assert!(!out.summary.has_changes && out.summary.files.is_empty());
    assert_eq!((out.summary.patch_bytes, std::fs::metadata(&out.patch).unwrap().len()), (0, 0));
}

#[test]
fn names_of_any_bytes_go_both_ways() {
    let repo = repository();
    let long = [b"long/".repeat(30), b"n".repeat(200)].concat();
    let names: [&[u8]; 8] = [
        b"-dash",
        b"sp ace",
        b"new\nline",
        b"quote\"'",
        b"\xff\xfe",
        b"back\\slash",
        "\u{fc}".as_bytes(),
        &long,
    ];
    for name in names {
        put(repo.path(), name, name);
    }
    symlink("t".repeat(300), repo.path().join("far")).unwrap();
    commit(repo.path(), "odd");
    let guest = prepare(&request(repo.path())).unwrap();
    assert_eq!(status(guest.path()), "\n");
    for name in names {
        std::fs::write(at(guest.path(), name), "other\n").unwrap();
        put(guest.path(), [name, b"-new"].concat(), "");
    }
    let (_scratch, out) = export(repo.path(), "HEAD", guest.path()).unwrap();
    assert_eq!(out.summary.files.len(), names.len() * 2);
    assert_eq!(applied(repo.path(), "HEAD", &out.patch), guest_tree(guest.path()));
}
