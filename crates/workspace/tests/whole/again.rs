//! A second time: only what is other is sent, and then the guest is as a first time would leave it.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::support::{
    Guest, commit, files, git, prepare, prepare_again, put, repository, request, settle, status, try_git,
};
use banger_model::ByteString;
use banger_workspace::Cancel;
use banger_workspace::capture::{Manifest, Options};

/// The names of some paths.
fn names(paths: &[ByteString]) -> Vec<String> {
    paths.iter().map(|p| p.to_string_lossy().into_owned()).collect()
}

fn again(guest: &mut Guest) -> (Vec<String>, Vec<String>, u64) {
    let (changes, bytes) = prepare_again(guest, &Options::default()).unwrap();
    (names(&changes.replaced), names(&changes.removed), bytes)
}

/// The guest is as a first time would leave it, and its repository whole.
fn is_like_new(guest: &Guest) {
    let fresh = prepare(guest.captured.manifest.request()).unwrap();
    assert_eq!(files(guest.path()), files(fresh.path()));
    assert_eq!(status(guest.path()), status(fresh.path()));
    for what in [&["log", "-1", "--format=%H %D"][..], &["ls-files", "-s"]] {
        assert_eq!(try_git(guest.path(), what).stdout, try_git(fresh.path(), what).stdout, "{what:?}");
    }
    let fsck = try_git(guest.path(), &["fsck", "--no-dangling", "--no-progress"]);
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stderr));
}

#[test]
fn only_what_is_other_is_sent() {
    // Given a guest with a copy of many files.
    let repo = repository();
    for n in 0..300 {
        put(repo.path(), format!("many/{n}"), format!("{n}\n").repeat(200));
    }
    commit(repo.path(), "many");
    put(repo.path(), "untracked", "u\n");
    settle();
    let mut asked = request(repo.path());
    asked.include_untracked = true;
    let mut guest = prepare(&asked).unwrap();

    // When nothing happened, then no file is sent, and no pack.
    let (replaced, removed, bytes) = again(&mut guest);
    assert_eq!((replaced, removed), (vec![], vec![]));
    assert!(bytes < 64 << 10, "{bytes}");
    is_like_new(&guest);

    // When files were edited, made, removed, changed in kind and mode.
    put(repo.path(), "many/7", "other\n");
    put(repo.path(), "many/8", "8\n".repeat(200).to_uppercase() + "x");
    put(repo.path(), "new/file", "n\n");
    git(repo.path(), &["add", "many/8", "new"]);
    std::fs::remove_file(repo.path().join("d/e/c")).unwrap();
    std::fs::remove_file(repo.path().join("a")).unwrap();
    put(repo.path(), "a/inside", "");
    std::fs::remove_file(repo.path().join("empty")).unwrap();
    symlink("a", repo.path().join("empty")).unwrap();
    std::fs::set_permissions(repo.path().join("many/9"), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::remove_file(repo.path().join("untracked")).unwrap();
    settle();
    let (replaced, removed, bytes) = again(&mut guest);
    // Then just these.
    assert_eq!(replaced, ["a/inside", "empty", "many/7", "many/8", "many/9", "new/file"]);
    assert_eq!(removed, ["a", "d/e/c", "untracked"]);
    assert!(bytes < 80 << 10, "{bytes}");
    is_like_new(&guest);

    // When it is committed, then only objects and refs are sent.
    commit(repo.path(), "third");
    let (replaced, removed, bytes) = again(&mut guest);
    assert_eq!((replaced, removed), (vec![], vec![]));
    assert!(bytes < 80 << 10, "{bytes}");
    is_like_new(&guest);

    // When a file was only touched, then what git knows it to be is enough.
    let touched = std::process::Command::new("touch").arg(repo.path().join("many/20")).status().unwrap();
    assert!(touched.success());
    settle();
    git(repo.path(), &["status"]);
    let (replaced, ..) = again(&mut guest);
    assert_eq!(replaced, Vec::<String>::new());
    is_like_new(&guest);
}

#[test]
fn the_host_may_go_anywhere_in_its_history() {
    // Given a guest with the last of many commits.
    let repo = repository();
    for n in 0..25 {
        put(repo.path(), "a", format!("{n}\n"));
        commit(repo.path(), "n");
    }
    let mut guest = prepare(&request(repo.path())).unwrap();
    let mut go = |args: &[&str]| {
        git(repo.path(), args);
        settle();
        again(&mut guest);
        is_like_new(&guest);
        assert!(guest.captured.plan.depth <= 40);
    };
    // When the host goes back beyond what the guest has, to a branch elsewhere, to none, and forward.
    go(&["checkout", "-q", "-b", "old", "HEAD~20"]);
    go(&["checkout", "-q", "--orphan", "alone"]);
    git(repo.path(), &["commit", "-q", "-m", "root"]);
    for args in [
        &["checkout", "-q", "alone"][..],
        &["checkout", "-q", "--detach", "main~3"],
        &["checkout", "-q", "main"],
    ] {
        git(repo.path(), args);
        settle();
        again(&mut guest);
        is_like_new(&guest);
    }
    // Then all that was there is there still.
    assert_eq!(git(guest.path(), &["rev-parse", "old"]), git(repo.path(), &["rev-parse", "old"]));
}

#[test]
fn a_merge_that_ends_takes_its_traces_along() {
    let repo = repository();
    git(repo.path(), &["checkout", "-q", "-b", "other"]);
    put(repo.path(), "a", "theirs\n");
    commit(repo.path(), "other");
    git(repo.path(), &["checkout", "-q", "main"]);
    put(repo.path(), "a", "ours\n");
    commit(repo.path(), "ours");
    let mut guest = prepare(&request(repo.path())).unwrap();
    assert!(!try_git(repo.path(), &["merge", "-q", "other"]).status.success());
    settle();
    again(&mut guest);
    assert!(guest.path().join(".git/MERGE_HEAD").exists());
    is_like_new(&guest);
    git(repo.path(), &["merge", "--abort"]);
    settle();
    let (changes, _) = prepare_again(&mut guest, &Options::default()).unwrap();
    assert!(names(&changes.git_removed).contains(&".git/MERGE_HEAD".to_owned()), "{changes:?}");
    assert!(!guest.path().join(".git/MERGE_HEAD").exists());
    is_like_new(&guest);
}

#[test]
fn a_branch_that_the_guest_moved_is_where_the_host_has_it() {
    let repo = repository();
    let mut guest = prepare(&request(repo.path())).unwrap();
    commit(guest.path(), "the guest's");
    git(guest.path(), &["branch", "mine"]);
    git(guest.path(), &["pack-refs", "--all"]);
    let (changes, _) = prepare_again(&mut guest, &Options::default()).unwrap();
    assert_eq!(changes.head.as_bytes(), b"ref: refs/heads/main\n");
    let there = crate::support::text(&git(repo.path(), &["rev-parse", "HEAD"]));
    assert_eq!(changes.branch, Some(("main".into(), there.trim().into())));
    // Then the commit is not lost where the guest gave it a name.
    assert_eq!(crate::support::text(&git(guest.path(), &["rev-list", "--count", "main..mine"])), "1\n");
    is_like_new(&guest);
}

#[test]
fn a_guest_that_lost_its_packs_gets_all_history() {
    let repo = repository();
    let mut guest = prepare(&request(repo.path())).unwrap();
    git(guest.path(), &["repack", "-q", "-a", "-d"]);
    let manifest = guest.captured.manifest.clone();
    let scratch = tempfile::tempdir().unwrap();
    let options = Options { base: Some(&manifest), ..Options::default() };
    let capture =
        banger_workspace::capture::Capture::open(manifest.request(), scratch.path(), &options).unwrap();
    let packs = &capture.changes().unwrap().packs;
    assert!(packs.len() == 1 && !crate::support::at(guest.path(), packs[0].as_bytes()).exists());
    drop(capture);
    std::fs::remove_dir_all(guest.path().join(".git/objects/pack")).unwrap();
    put(repo.path(), "a", "x\n");
    settle();
    prepare_again(&mut guest, &Options { resend_history: true, ..Options::default() }).unwrap();
    is_like_new(&guest);
}

#[test]
fn a_manifest_is_kept_and_says_when_the_host_moves_on() {
    // Given a kept manifest.
    let repo = repository();
    put(repo.path(), "u", "");
    settle();
    let mut asked = request(repo.path());
    asked.include_untracked = true;
    let mut guest = prepare(&asked).unwrap();
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("manifest");
    let manifest = guest.captured.manifest.clone().keep(&file).unwrap();
    assert_eq!(Manifest::load(&file), Some(manifest.clone()));
    guest.captured.manifest = manifest.clone();
    let drift = || manifest.drift(&Cancel::never()).unwrap();
    assert!(drift().is_none(), "{:?}", drift());

    // When only the index was refreshed, or something ignored was made, then nothing moved.
    git(repo.path(), &["update-index", "-q", "--refresh", "--force-write-index"]);
    put(repo.path(), "x.o", "");
    assert!(drift().is_none(), "{:?}", drift());

    // When files change, each is counted.
    put(repo.path(), "a", "other\n");
    put(repo.path(), "v", "");
    std::fs::remove_file(repo.path().join("d/b")).unwrap();
    assert_eq!((drift().changed, names(&drift().examples)), (3, vec!["a".into(), "d/b".into(), "v".into()]));
    assert!(drift().head.is_none() && !drift().index);
    git(repo.path(), &["add", "a"]);
    assert!(drift().index);
    let before = git(repo.path(), &["rev-parse", "HEAD"]);
    commit(repo.path(), "moved");
    git(repo.path(), &["checkout", "-q", "-b", "side"]);
    let moved = drift();
    assert_eq!(moved.head.unwrap().0.unwrap().as_bytes(), before.trim_ascii());
    assert_eq!(moved.branch, Some((Some("main".into()), Some("side".into()))));

    // And what is cut short or of another kind is no manifest.
    let whole = std::fs::read(&file).unwrap();
    for cut in [0, 10, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..cut]).unwrap();
        assert_eq!(Manifest::load(&file), None);
    }
    assert!(Manifest::load(Path::new("/no/such")).is_none());
}

#[test]
fn a_copy_of_another_starting_point_follows_that() {
    let repo = repository();
    commit(repo.path(), "second");
    let mut asked = request(repo.path());
    asked.branch = Some("b".into());
    asked.from = Some("main~1".into());
    let mut guest = prepare(&asked).unwrap();
    // Given work on the host, which such a copy has nothing of.
    put(repo.path(), "a", "dirty\n");
    assert!(guest.captured.manifest.drift(&Cancel::never()).unwrap().is_none());
    assert_eq!(again(&mut guest).0, Vec::<String>::new());
    // When the starting point moves.
    put(repo.path(), "d/b", "new\n");
    git(repo.path(), &["commit", "-q", "-m", "third", "d/b"]);
    git(repo.path(), &["commit", "-q", "--allow-empty", "-m", "fourth"]);
    assert!(guest.captured.manifest.drift(&Cancel::never()).unwrap().head.is_some());
    assert_eq!(again(&mut guest).0, ["d/b"]);
    is_like_new(&guest);
}

#[test]
fn another_workspace_is_no_base() {
    let (repo, other) = (repository(), repository());
    let guest = prepare(&request(repo.path())).unwrap();
    let manifest = &guest.captured.manifest;
    let open = |request| {
        let scratch = tempfile::tempdir().unwrap();
        let options = Options { base: Some(manifest), ..Options::default() };
        let capture = banger_workspace::capture::Capture::open(&request, scratch.path(), &options).unwrap();
        capture.changes().is_some()
    };
    assert!(open(request(repo.path())) && !open(request(other.path())));
    let mut elsewhere = request(repo.path());
    elsewhere.guest_path = Some("/srv/x".parse().unwrap());
    assert!(!open(elsewhere));
}
