//! Applies after others, and on a host that has moved on.

use crate::apply::{apply, outcome, read};
use crate::support::{commit, git, guest_tree, prepare, prepare_again, put, repository, request};
use banger_model::ErrorCode;
use banger_protocol::api::{ChangeKind, Outcome};
use banger_workspace::Cancel;
use banger_workspace::capture::Options;
use sha2::{Digest, Sha256};

#[test]
fn what_the_guest_undid_of_the_users_work_is_undone() {
    // Given every kind of uncommitted work, some of it in places that change their kind.
    let repo = repository();
    put(repo.path(), ".gitattributes", "crlf text eol=crlf\nlfs filter=big\n");
    put(repo.path(), "crlf", "x\ny\n");
    put(repo.path(), "lfs", "pointer\n");
    commit(repo.path(), "second");
    git(repo.path(), &["update-index", "--skip-worktree", "d/e/c"]);
    std::fs::remove_file(repo.path().join("d/e/c")).unwrap();
    let base = guest_tree(repo.path());
    put(repo.path(), "a", "one\nmine\n");
    put(repo.path(), "crlf", "x\r\ny\r\nmine\r\n");
    put(repo.path(), "lfs", "mine\n");
    put(repo.path(), "staged/new", "mine\n");
    git(repo.path(), &["add", "staged"]);
    put(repo.path(), "loose", "mine\n");
    put(repo.path(), "kept.o", "ignored\n");
    std::fs::remove_file(repo.path().join("d/b")).unwrap();
    std::fs::remove_file(repo.path().join("empty")).unwrap();
    put(repo.path(), "empty/in", "mine\n");
    let mut asked = request(repo.path());
    asked.include_untracked = true;
    let mut guest = prepare(&asked).unwrap();
    // When the guest touches none of it, then nothing is done.
    let done = apply(repo.path(), &mut guest, "op-0", false).unwrap();
    assert!(done.files.iter().all(|file| file.outcome == Outcome::Unchanged), "{done:?}");
    // When it undoes all of it.
    git(guest.path(), &["stash", "-q", "-u"]);
    assert_eq!(guest_tree(guest.path()), base);
    put(repo.path(), "d/e/of no concern.o", "");
    let done = apply(repo.path(), &mut guest, "op-1", false).unwrap();
    // Then so it is here, but for what only a filter program could bring back, and what is absent on purpose.
    assert_eq!(read(repo.path(), "lfs"), "mine\n");
    put(repo.path(), "lfs", "pointer\n");
    assert_eq!(guest_tree(repo.path()), base, "{done:?}");
    assert_eq!(read(repo.path(), "crlf"), "x\r\ny\r\n");
    assert_eq!(
        (read(repo.path(), "kept.o"), repo.path().join("d/e/c").exists()),
        ("ignored\n".into(), false)
    );
    let kinds = ["a", "staged/new", "loose", "d/b", "empty/in"]
        .map(|path| done.files.iter().find(|f| f.path.as_bytes() == path.as_bytes()).map(|f| f.change));
    let [added, modified, deleted] = [ChangeKind::Added, ChangeKind::Modified, ChangeKind::Deleted];
    assert_eq!(kinds, [modified, deleted, deleted, added, deleted].map(Some), "{done:?}");
    // And it can be had back.
    let backup = done.backup.unwrap();
    assert_eq!(git(repo.path(), &["show", &format!("{backup}:loose")]), b"mine\n");
    // What changed here since is not taken away: it is refused by name, or stays with --3way.
    put(repo.path(), "a", "one\nmine\n");
    let mut guest = prepare(&asked).unwrap();
    git(guest.path(), &["checkout", "-q", "."]);
    put(guest.path(), "new", "n\n");
    put(repo.path(), "a", "one\nmine\nlater\n");
    let error = apply(repo.path(), &mut guest, "op-2", false).unwrap_err();
    assert!(error.code == ErrorCode::Conflict && error.message.contains("'a'"), "{error}");
    apply(repo.path(), &mut guest, "op-3", true).unwrap();
    assert_eq!(
        (read(repo.path(), "a"), read(repo.path(), "new")),
        ("one\nmine\nlater\n".into(), "n\n".into())
    );
}

#[test]
fn an_untracked_file_that_the_guest_ignores_now_stays() {
    let repo = repository();
    put(repo.path(), "loose", "mine\n");
    let mut asked = request(repo.path());
    asked.include_untracked = true;
    let mut guest = prepare(&asked).unwrap();
    put(guest.path(), ".gitignore", "*.o\n/build/\nloose\n");
    apply(repo.path(), &mut guest, "op-1", false).unwrap();
    assert_eq!(read(repo.path(), "loose"), "mine\n");
    assert_eq!(guest_tree(repo.path()), guest_tree(guest.path()));
}

#[test]
fn one_apply_after_another_is_no_change_of_the_hosts() {
    // Given a change that was applied: a file that was there, a new one, one that is gone.
    let repo = repository();
    put(repo.path(), "a", "one\nmine\n");
    let mut guest = prepare(&request(repo.path())).unwrap();
    put(guest.path(), "a", "1\n");
    put(guest.path(), "new", "1\n");
    std::fs::remove_file(guest.path().join("d/b")).unwrap();
    apply(repo.path(), &mut guest, "op-1", false).unwrap();
    let drift = guest.captured.manifest.drift(&Cancel::never()).unwrap();
    assert!(drift.is_none(), "{drift:?}");
    // When a second copy is made, then nothing of it is sent or taken away.
    let (changes, _) = prepare_again(&mut guest, &Options::default()).unwrap();
    assert_eq!((changes.replaced, changes.removed), (vec![], vec![]));
    // When the guest goes on, then the next apply follows.
    put(guest.path(), "a", "2\n");
    put(guest.path(), "new", "2\n");
    put(guest.path(), "d/b", "2\n");
    apply(repo.path(), &mut guest, "op-2", false).unwrap();
    assert_eq!(guest_tree(repo.path()), guest_tree(guest.path()));
    std::fs::remove_file(guest.path().join("new")).unwrap();
    git(guest.path(), &["checkout", "-q", "HEAD", "a", "d/b"]);
    apply(repo.path(), &mut guest, "op-3", false).unwrap();
    assert_eq!(guest_tree(repo.path()), guest_tree(guest.path()));
    assert_eq!(read(repo.path(), "a"), "one\n");
    // What the user made of it since is the user's.
    put(guest.path(), "a", "4\n");
    put(repo.path(), "a", "the user's\n");
    let error = apply(repo.path(), &mut guest, "op-4", false).unwrap_err();
    assert!(error.message.contains("'a'"), "{error}");
}

#[test]
fn a_host_that_moved_on_elsewhere_is_no_hindrance() {
    let repo = repository();
    let mut guest = prepare(&request(repo.path())).unwrap();
    put(guest.path(), "a", "guest\n");
    put(repo.path(), "d/b", "host\n");
    commit(repo.path(), "elsewhere");
    let head = git(repo.path(), &["rev-parse", "HEAD"]);
    apply(repo.path(), &mut guest, "op-1", false).unwrap();
    assert_eq!((read(repo.path(), "a"), read(repo.path(), "d/b")), ("guest\n".into(), "host\n".into()));
    assert_eq!(git(repo.path(), &["rev-parse", "HEAD"]), head);
    // A commit of a touched file is a change of it.
    put(guest.path(), "d/e/c", "guest\n");
    put(repo.path(), "d/e/c", "host\n");
    commit(repo.path(), "there");
    let error = apply(repo.path(), &mut guest, "op-2", false).unwrap_err();
    assert!(error.message.contains("'d/e/c'"), "{error}");
}

#[test]
fn what_only_the_host_changed_since_an_apply_stands_against_nothing() {
    // Given a change that was applied, and a user who went on from there at once.
    let repo = repository();
    let mut guest = prepare(&request(repo.path())).unwrap();
    put(guest.path(), "a", "guest\n");
    put(guest.path(), "new", "guest\n");
    put(guest.path(), "same", "guest\n");
    std::fs::remove_file(guest.path().join("d/b")).unwrap();
    apply(repo.path(), &mut guest, "op-1", false).unwrap();
    put(repo.path(), "a", "guest\nand the user\n");
    put(repo.path(), "d/b", "back again\n");
    std::fs::remove_file(repo.path().join("new")).unwrap();
    put(repo.path(), "same", "guest\n");
    // When the guest does something else, then that is applied, and what it did not change since stays the user's.
    put(guest.path(), "d/e/c", "guest\n");
    put(guest.path(), "same", "guest, later\n");
    let done = apply(repo.path(), &mut guest, "op-2", false).unwrap();
    for (path, content) in [
        ("a", "guest\nand the user\n"),
        ("d/b", "back again\n"),
        ("d/e/c", "guest\n"),
        ("same", "guest, later\n"),
    ] {
        assert_eq!(read(repo.path(), path), content, "{path}");
    }
    // What the user took back altogether is applied again.
    assert_eq!(read(repo.path(), "new"), "guest\n");
    assert_eq!(outcome(&done, "a"), Some(Outcome::Unchanged));
    assert_eq!(outcome(&done, "same"), Some(Outcome::Applied));
    // And a second copy knows what the guest has of it.
    let (changes, _) = prepare_again(&mut guest, &Options::default()).unwrap();
    assert_eq!(changes.applied.get(&b"a"[..]), Some(&(0, Sha256::digest(b"guest\n").into())));
    assert_eq!(changes.applied.get(&b"d/b"[..]).map(|(kind, _)| *kind), Some(3));
    // What both changed is refused, also after that copy.
    put(guest.path(), "same", "guest, at last\n");
    put(guest.path(), "a", "guest, at last\n");
    put(repo.path(), "same", "the user\n");
    put(repo.path(), "a", "the user\n");
    let error = apply(repo.path(), &mut guest, "op-3", false).unwrap_err();
    assert!(error.code == ErrorCode::Conflict && error.message.contains("'a', 'same'"), "{error}");
    // And merged once is merged.
    put(guest.path(), "a", "the user\nguest\n");
    std::fs::remove_file(guest.path().join("same")).unwrap();
    put(repo.path(), "same", "guest, later\n");
    apply(repo.path(), &mut guest, "op-4", true).unwrap();
    assert!(!repo.path().join("same").exists());
    put(repo.path(), "a", "the user's last word\n");
    apply(repo.path(), &mut guest, "op-5", false).unwrap();
    assert_eq!(read(repo.path(), "a"), "the user's last word\n");
}

#[test]
fn uncommitted_work_that_the_guest_left_alone_stays_the_users() {
    // Given uncommitted work that was copied in, and that the user went on with.
    let repo = repository();
    put(repo.path(), "a", "one\nmine\n");
    put(repo.path(), "d/e/c", "mine\n");
    std::fs::remove_file(repo.path().join("d/b")).unwrap();
    let mut guest = prepare(&request(repo.path())).unwrap();
    put(repo.path(), "a", "one\nmine\nlater\n");
    git(repo.path(), &["checkout", "-q", "d/b", "d/e/c"]);
    // When the guest changes something else.
    put(guest.path(), "empty", "guest\n");
    apply(repo.path(), &mut guest, "op-1", false).unwrap();
    let now = ["a", "d/b", "d/e/c", "empty"].map(|path| read(repo.path(), path));
    assert_eq!(now, ["one\nmine\nlater\n", "two\n", "three\n", "guest\n"]);
    // When it changes that too, then it is refused, or brought where the user has the base's again.
    put(guest.path(), "d/e/c", "guest\n");
    apply(repo.path(), &mut guest, "op-2", false).unwrap();
    assert_eq!(read(repo.path(), "d/e/c"), "guest\n");
    put(guest.path(), "a", "guest\n");
    let error = apply(repo.path(), &mut guest, "op-3", false).unwrap_err();
    assert!(error.code == ErrorCode::Conflict && error.message.contains("'a'"), "{error}");
}

#[test]
fn a_user_who_is_quicker_than_the_record_loses_nothing() {
    // Given somebody who overwrites a file, with as many bytes, as soon as it is there, while others still come.
    let repo = repository();
    let mut guest = prepare(&request(repo.path())).unwrap();
    put(guest.path(), "a", "guest\n");
    for n in 0..300 {
        put(guest.path(), format!("others/{n}"), "");
    }
    let file = repo.path().join("a");
    let user = std::thread::spawn(move || {
        while std::fs::read(&file).unwrap() != b"guest\n" {
            std::hint::spin_loop();
        }
        std::fs::write(&file, "users\n").unwrap();
    });
    apply(repo.path(), &mut guest, "op-1", false).unwrap();
    user.join().unwrap();
    // Then it is not taken for the guest's.
    put(guest.path(), "a", "later\n");
    let error = apply(repo.path(), &mut guest, "op-2", false).unwrap_err();
    assert!(error.code == ErrorCode::Conflict && error.message.contains("'a'"), "{error}");
    assert_eq!(read(repo.path(), "a"), "users\n");
}
