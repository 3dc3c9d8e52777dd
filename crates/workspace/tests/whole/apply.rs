//! The guest's change into the host's repository.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::support::{
    Guest, commit, export, fingerprint, git, guest_tree, prepare, put, repository, request, text,
};
use banger_model::{ByteString, Error, ErrorCode};
use banger_protocol::agent::CompareSpec;
use banger_protocol::agent::touched::{FIXED, Touched};
use banger_protocol::api::{ApplySummary, Outcome};
use banger_workspace::apply::{self, Copied, Wish};
use banger_workspace::export::Exported;
use tempfile::TempDir;

/// What the daemon would ask for, and the guest answer.
pub(crate) fn wish(guest: &Guest, out: &Exported) -> Wish {
    let copied = Copied::of(guest.captured.manifest.clone(), out).unwrap();
    let list: Vec<u8> = copied.unsure().iter().flat_map(|path| [path.as_bytes(), b"\0"].concat()).collect();
    let copied = copied.told(&touched(guest.path(), &list));
    Wish { copied, three_way: false, name: "op-1".into(), vm: "calm-otter".into() }
}

/// Which of some paths the guest touched, as its agent says it.
fn touched(guest: &Path, list: &[u8]) -> Vec<Touched> {
    let root = ByteString::from(guest.as_os_str().to_owned());
    let mut out = Vec::new();
    let spec = CompareSpec { root, branch: None, needed: Vec::new(), indexes: Vec::new() };
    banger_agent::scan::compare(&spec, list, &mut out).unwrap();
    let (mut rest, mut all) = (&out[..], Vec::new());
    while let Some((fixed, after)) = rest.split_first_chunk::<FIXED>() {
        let (kind, digest, len) = Touched::decode(fixed).unwrap();
        all.push(Touched { kind, digest, path: after[..len].to_vec() });
        rest = &after[len..];
    }
    all
}

pub(crate) fn exported(repo: &Path, guest: &Guest) -> (TempDir, Exported) {
    export(repo, &guest.captured.base_commit, guest.path()).unwrap()
}

pub(crate) fn apply(
    repo: &Path,
    guest: &mut Guest,
    name: &str,
    three_way: bool,
) -> Result<ApplySummary, Error> {
    let (_scratch, out) = exported(repo, guest);
    let wish = Wish { name: name.into(), three_way, ..wish(guest, &out) };
    let done = apply::plan(&out, wish)?.carry_out()?;
    if let Some(manifest) = done.manifest {
        guest.captured.manifest = manifest.keep(&guest.scratch.path().join("kept"))?;
    }
    Ok(done.summary)
}

pub(crate) fn outcome(summary: &ApplySummary, path: &str) -> Option<Outcome> {
    summary.files.iter().find(|f| f.path.as_bytes() == path.as_bytes()).map(|f| f.outcome)
}

pub(crate) fn read(dir: &Path, path: &str) -> String {
    std::fs::read_to_string(dir.join(path)).unwrap()
}

/// A guest of a new repository that did a bit of everything.
pub(crate) fn worked() -> (TempDir, Guest) {
    let repo = repository();
    put(repo.path(), "a", "one\ndirty\n");
    let guest = prepare(&request(repo.path())).unwrap();
    put(guest.path(), "a", "one\ndirty\nguest\n");
    put(guest.path(), "new/x", "n");
    std::fs::remove_file(guest.path().join("d/b")).unwrap();
    std::fs::remove_dir_all(guest.path().join("d/e")).unwrap();
    put(guest.path(), "d/e", "a file now\n");
    std::fs::remove_file(guest.path().join("empty")).unwrap();
    put(guest.path(), "empty/x", "a directory now\n");
    symlink("a", guest.path().join("link")).unwrap();
    std::fs::set_permissions(guest.path().join(".gitignore"), PermissionsExt::from_mode(0o755)).unwrap();
    (repo, guest)
}

#[test]
fn the_working_tree_becomes_the_guests_and_nothing_else_changes() {
    let (repo, mut guest) = worked();
    put(repo.path(), "x.o", "ignored");
    let index = std::fs::read(repo.path().join(".git/index")).unwrap();
    let head = git(repo.path(), &["rev-parse", "HEAD"]);
    // When it is only planned, nothing happens.
    let before = fingerprint(repo.path());
    {
        let (_scratch, out) = exported(repo.path(), &guest);
        let summary = apply::plan(&out, wish(&guest, &out)).unwrap().summary();
        assert_eq!(outcome(&summary, "a"), Some(Outcome::Applied));
    }
    assert_eq!(fingerprint(repo.path()), before);
    // When it is carried out, the files are the guest's.
    let done = apply(repo.path(), &mut guest, "op-1", false).unwrap();
    assert_eq!(guest_tree(repo.path()), guest_tree(guest.path()));
    assert_eq!(read(repo.path(), "x.o"), "ignored");
    let mode = std::fs::metadata(repo.path().join("new/x")).unwrap().permissions().mode();
    let top = std::fs::metadata(repo.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, top & 0o666, "a new file is as open as its directory");
    // And index and HEAD are as they were.
    assert_eq!(std::fs::read(repo.path().join(".git/index")).unwrap(), index);
    assert_eq!(git(repo.path(), &["rev-parse", "HEAD"]), head);
    assert!(!repo.path().join(".git/banger-apply").exists());
    // And what was replaced, the host's own uncommitted work among it, can be had back.
    let backup = done.backup.unwrap();
    assert_eq!(backup, "refs/banger/backup/op-1");
    assert_eq!(git(repo.path(), &["show", &format!("{backup}:a")]), b"one\ndirty\n");
    let restore = git(repo.path(), &["log", "-1", "--format=%b", &backup]);
    let restore = text(&restore).lines().find(|l| l.contains("git restore")).unwrap().trim().to_owned();
    std::fs::remove_dir_all(repo.path().join("empty")).unwrap();
    std::fs::remove_file(repo.path().join("d/e")).unwrap();
    let words: Vec<&str> = restore.split(' ').skip(1).collect();
    git(repo.path(), &words);
    assert_eq!(read(repo.path(), "a"), "one\ndirty\n");
    assert_eq!(read(repo.path(), "d/e/c"), "three\n");
    assert!(repo.path().join("new/x").exists());
}

#[test]
fn applying_twice_changes_nothing_the_second_time() {
    let (repo, mut guest) = worked();
    apply(repo.path(), &mut guest, "op-1", false).unwrap();
    let before = fingerprint(repo.path());
    let again = apply(repo.path(), &mut guest, "op-2", false).unwrap();
    assert!(again.files.iter().all(|f| f.outcome == Outcome::Unchanged) && again.backup.is_none());
    assert_eq!(fingerprint(repo.path()), before);
}

#[test]
fn what_changed_on_the_host_since_is_refused_by_name_or_merged() {
    let repo = repository();
    put(repo.path(), "a", "1\n2\n3\n4\n5\n6\n7\n");
    put(repo.path(), "bin", b"\0\x01");
    put(repo.path(), "crlf", "x\ny\nz\n");
    put(repo.path(), ".gitattributes", "crlf text eol=crlf\n");
    commit(repo.path(), "more");
    std::fs::remove_file(repo.path().join("crlf")).unwrap();
    git(repo.path(), &["checkout", "-q", "crlf"]);
    let mut guest = prepare(&request(repo.path())).unwrap();
    put(guest.path(), "a", "1\n2\n3\n4\n5\n6\nguest\n");
    put(guest.path(), "d/b", "guest\n");
    put(guest.path(), "crlf", "guest\r\nx\r\ny\r\nz\r\n");
    // Given other lines, the same lines and another file changed on the host.
    put(repo.path(), "a", "host\n2\n3\n4\n5\n6\n7\n");
    put(repo.path(), "d/b", "host\n");
    put(repo.path(), "crlf", "x\r\ny\r\nz\r\nhost\r\n");
    put(repo.path(), "d/e/c", "of no concern\n");
    let before = fingerprint(repo.path());
    let error = apply(repo.path(), &mut guest, "op-1", false).unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict);
    assert!(error.message.contains("'a', 'crlf', 'd/b'") && error.hint.unwrap().contains("--3way"));
    assert_eq!(fingerprint(repo.path()), before);
    // When they are merged, then each side's lines are there, with markers where they meet.
    let done = apply(repo.path(), &mut guest, "op-1", true).unwrap();
    assert_eq!(read(repo.path(), "a"), "host\n2\n3\n4\n5\n6\nguest\n");
    assert_eq!(read(repo.path(), "crlf"), "guest\r\nx\r\ny\r\nz\r\nhost\r\n");
    assert_eq!(outcome(&done, "a"), Some(Outcome::Merged));
    assert_eq!((outcome(&done, "d/b"), done.conflicts), (Some(Outcome::Conflict), 1));
    let marked = read(repo.path(), "d/b");
    assert!(
        marked.starts_with("<<<<<<< host\nhost\n") && marked.ends_with(">>>>>>> guest (calm-otter)\n"),
        "{marked}"
    );
    assert_eq!(git(repo.path(), &["show", "refs/banger/backup/op-1:d/b"]), b"host\n");
    // What has no lines is refused.
    put(guest.path(), "bin", b"\0guest");
    put(repo.path(), "bin", b"\0host");
    put(guest.path(), "a", "the guest goes on\n");
    std::fs::remove_file(repo.path().join("a")).unwrap();
    let error = apply(repo.path(), &mut guest, "op-3", true).unwrap_err();
    assert!(error.message.contains("'a', 'bin'"), "{error}");
}

#[test]
fn a_file_that_was_never_copied_is_not_overwritten() {
    // Given a file that is not in git, and stayed behind.
    let repo = repository();
    put(repo.path(), "notes", "the user's\n");
    put(repo.path(), "x.o", "the user's\n");
    let mut guest = prepare(&request(repo.path())).unwrap();
    put(guest.path(), "notes", "the guest's\n");
    let error = apply(repo.path(), &mut guest, "op-1", false).unwrap_err();
    assert!(error.message.contains("'notes'"), "{error}");
    // Nor is a directory with such files in it.
    std::fs::remove_file(guest.path().join("notes")).unwrap();
    std::fs::remove_dir_all(guest.path().join("d")).unwrap();
    put(guest.path(), "d", "a file\n");
    put(repo.path(), "d/mine.o", "ignored\n");
    let error = apply(repo.path(), &mut guest, "op-1", false).unwrap_err();
    assert!(error.message.contains("'d'"), "{error}");
    assert_eq!(read(repo.path(), "d/b"), "two\n");
    // But one that was copied is the guest's to change.
    std::fs::remove_file(repo.path().join("d/mine.o")).unwrap();
    let mut asked = request(repo.path());
    asked.include_untracked = true;
    let mut guest = prepare(&asked).unwrap();
    put(guest.path(), "notes", "the guest's\n");
    apply(repo.path(), &mut guest, "op-1", false).unwrap();
    assert_eq!(read(repo.path(), "notes"), "the guest's\n");
}

#[test]
fn links_on_the_host_are_never_written_through() {
    // Given a host whose directory became a link to somewhere else since.
    let (repo, outside) = (repository(), tempfile::tempdir().unwrap());
    let mut guest = prepare(&request(repo.path())).unwrap();
    put(guest.path(), "d/b", "guest\n");
    put(guest.path(), "d/new", "guest\n");
    std::fs::rename(repo.path().join("d"), outside.path().join("d")).unwrap();
    symlink(outside.path().join("d"), repo.path().join("d")).unwrap();
    let before = fingerprint(outside.path());
    let error = apply(repo.path(), &mut guest, "op-1", false).unwrap_err();
    assert!(error.message.contains("'d'"), "{error}");
    // Given one that becomes a link between the look and the change.
    std::fs::remove_file(repo.path().join("d")).unwrap();
    std::fs::create_dir_all(repo.path().join("d/e")).unwrap();
    for (path, content) in [("d/b", "two\n"), ("d/e/c", "three\n")] {
        put(repo.path(), path, content);
    }
    let (_scratch, out) = exported(repo.path(), &guest);
    let plan = apply::plan(&out, wish(&guest, &out)).unwrap();
    std::fs::remove_dir_all(repo.path().join("d")).unwrap();
    symlink(outside.path().join("d"), repo.path().join("d")).unwrap();
    let error: Error = plan.carry_out().unwrap_err().into();
    assert!(error.message.contains("stopped after 0 of 2"), "{error}");
    assert_eq!(fingerprint(outside.path()), before);
}

#[test]
fn an_apply_that_stops_says_how_to_go_back() {
    let repo = repository();
    let guest = prepare(&request(repo.path())).unwrap();
    put(guest.path(), "a", "guest\n");
    put(guest.path(), "d/b", "guest\n");
    let (_scratch, out) = exported(repo.path(), &guest);
    let plan = apply::plan(&out, wish(&guest, &out)).unwrap();
    // Given a file that changes after it was inspected, and what a killed apply has left.
    put(repo.path(), "d/b", "the user is quick\n");
    put(repo.path(), ".git/banger-apply/0", "left");
    let error: Error = plan.carry_out().unwrap_err().into();
    assert!(error.message.contains("1 of 2") && error.message.contains("refs/banger/backup/op-1"), "{error}");
    assert!(error.hint.as_deref().unwrap().contains("git restore"), "{error}");
    assert_eq!(
        (read(repo.path(), "a"), read(repo.path(), "d/b")),
        ("guest\n".into(), "the user is quick\n".into())
    );
    assert_eq!(git(repo.path(), &["show", "refs/banger/backup/op-1:a"]), b"one\n");
    assert!(!repo.path().join(".git/banger-apply").exists());
}

#[test]
fn files_under_a_filter_go_to_the_working_tree_only_and_no_filter_runs() {
    // Given a repository whose user has a filter program, and a guest that changed such a file.
    let repo = repository();
    let canary = repo.path().join(".git/canary");
    put(repo.path(), ".gitattributes", "*.big filter=big\n");
    put(repo.path(), "x.big", "pointer\n");
    commit(repo.path(), "big");
    let guest = prepare(&request(repo.path())).unwrap();
    put(guest.path(), "x.big", "large\n");
    put(guest.path(), "y.big", "new\n");
    git(repo.path(), &["config", "filter.big.clean", &format!("touch {}; cat", canary.display())]);
    git(repo.path(), &["config", "filter.big.smudge", &format!("touch {}; cat", canary.display())]);
    let (_scratch, out) = exported(repo.path(), &guest);
    assert!(!canary.exists(), "an export runs no filter");
    assert_eq!(out.summary.unfiltered.len(), 2);
    let error: Error = apply::to_branch(&out, "b", "m", false).unwrap_err().into();
    assert!(error.code == ErrorCode::Unsupported && error.message.contains("'x.big'"), "{error}");
    apply::plan(&out, wish(&guest, &out)).unwrap().carry_out().unwrap();
    assert_eq!(read(repo.path(), "x.big"), "large\n");
}
