//! The guest's change into the host's repository.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::support::{
    Guest, commit, export, fingerprint, git, guest_tree, prepare, prepare_again, put, repository, request,
    status, text, try_git,
};
use banger_model::{ByteString, Error, ErrorCode};
use banger_protocol::agent::CompareSpec;
use banger_protocol::agent::touched::{FIXED, Touched};
use banger_protocol::api::{ApplySummary, ChangeKind, Outcome};
use banger_workspace::Cancel;
use banger_workspace::apply::{self, Arrived, Copied, Wish};
use banger_workspace::capture::Options;
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

fn exported(repo: &Path, guest: &Guest) -> (TempDir, Exported) {
    export(repo, &guest.captured.base_commit, guest.path()).unwrap()
}

fn apply(repo: &Path, guest: &mut Guest, name: &str, three_way: bool) -> Result<ApplySummary, Error> {
    let (_scratch, out) = exported(repo, guest);
    let wish = Wish { name: name.into(), three_way, ..wish(guest, &out) };
    let done = apply::plan(&out, wish)?.carry_out()?;
    if let Some(manifest) = done.manifest {
        guest.captured.manifest = manifest.keep(&guest.scratch.path().join("kept"))?;
    }
    Ok(done.summary)
}

fn outcome(summary: &ApplySummary, path: &str) -> Option<Outcome> {
    summary.files.iter().find(|f| f.path.as_bytes() == path.as_bytes()).map(|f| f.outcome)
}

fn read(dir: &Path, path: &str) -> String {
    std::fs::read_to_string(dir.join(path)).unwrap()
}

/// A guest of a new repository that did a bit of everything.
fn worked() -> (TempDir, Guest) {
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
fn a_branch_gets_a_commit_and_the_working_tree_nothing() {
    let (repo, guest) = worked();
    git(repo.path(), &["config", "user.name", "The User"]);
    let before = (status(repo.path()), std::fs::read(repo.path().join(".git/index")).unwrap());
    let (_scratch, out) = exported(repo.path(), &guest);
    let dry = apply::to_branch(&out, "from/guest", "all of it", true).unwrap();
    assert!(
        dry.has_changes
            && !try_git(repo.path(), &["rev-parse", "-q", "--verify", "from/guest"]).status.success()
    );
    let done = apply::to_branch(&out, "from/guest", "all of it\n", false).unwrap();
    assert_eq!(done.branch.as_deref(), Some("from/guest"));
    let tree = text(&git(repo.path(), &["rev-parse", "from/guest^{tree}"]));
    assert_eq!(tree.trim(), guest_tree(guest.path()));
    assert_eq!(git(repo.path(), &["rev-parse", "from/guest^"]), git(repo.path(), &["rev-parse", "HEAD"]));
    assert_eq!((status(repo.path()), std::fs::read(repo.path().join(".git/index")).unwrap()), before);
    git(repo.path(), &["fsck", "--strict"]);
    for (name, code) in [
        ("from/guest", ErrorCode::AlreadyExists),
        ("a..b", ErrorCode::InvalidArgument),
        ("-x", ErrorCode::InvalidArgument),
    ] {
        let error: Error = apply::to_branch(&out, name, "again", false).unwrap_err().into();
        assert_eq!(error.code, code, "{name}");
    }
}

/// The pack of the guest's commits, as its own git makes it.
fn pack(guest: &Path, base: &str) -> (Vec<u8>, String) {
    let list = guest.join(".git/list");
    std::fs::write(&list, format!("HEAD\n^{base}\n")).unwrap();
    let out = std::process::Command::new("sh")
        .current_dir(guest)
        .args(["-c", "git pack-objects -q --revs --stdout <.git/list"])
        .output()
        .unwrap();
    assert!(out.status.success());
    (out.stdout, text(&git(guest, &["rev-parse", "HEAD"])).trim().to_owned())
}

fn bring(repo: &Path, guest: &Guest, branch: &str) -> Result<ApplySummary, Error> {
    let (_scratch, out) = export(repo, &guest.captured.base_commit, guest.path())?;
    let (pack, tip) = pack(guest.path(), &guest.captured.base_commit);
    Ok(Arrived::receive(&out, &pack[..], &tip, 1 << 20)?.to_branch(branch, false)?)
}

#[test]
fn the_guests_commits_come_as_commits() {
    // Given a guest with two commits, a merge and a signature.
    let repo = repository();
    let guest = prepare(&request(repo.path())).unwrap();
    put(guest.path(), "a", "guest\n");
    let author = ["-c", "user.name=A. Gent", "-c", "user.email=agent@example.org"];
    git(
        guest.path(),
        &[&author[..], &["commit", "-qam", "first\n\nwith a body", "--date=2020-01-02T03:04:05+0200"]]
            .concat(),
    );
    git(guest.path(), &["checkout", "-q", "-b", "side", "HEAD~1"]);
    put(guest.path(), "side", "s\n");
    commit(guest.path(), "on the side");
    git(guest.path(), &["checkout", "-q", "main"]);
    git(guest.path(), &["merge", "-q", "--no-edit", "side"]);
    let text_of = |id: &str| text(&git(guest.path(), &["cat-file", "commit", id]));
    let signed = text_of("HEAD").replacen("\n\n", "\ngpgsig -----BEGIN\n forged\n -----END\n\n", 1);
    std::fs::write(guest.path().join(".git/signed"), signed).unwrap();
    let id = git(guest.path(), &["hash-object", "-t", "commit", "-w", ".git/signed"]);
    git(guest.path(), &["reset", "-q", "--soft", text(&id).trim()]);
    put(guest.path(), "not committed", "n\n");

    // When they are brought, the host has the same commits, without the signature.
    let done = bring(repo.path(), &guest, "theirs").unwrap();
    assert_eq!((done.commits.len(), done.uncommitted), (3, 1));
    let log =
        |dir: &Path, tip: &str| git(dir, &["log", "--topo-order", "--format=%T %an %ae %aI %cI %B", tip]);
    assert_eq!(text(&log(repo.path(), "theirs")), text(&log(guest.path(), "HEAD")));
    let own = text(&git(repo.path(), &["cat-file", "commit", "theirs"]));
    assert!(!own.contains("gpgsig") && own.matches("parent ").count() == 2, "{own}");
    git(repo.path(), &["fsck", "--strict"]);
    assert_eq!(
        git(repo.path(), &["rev-parse", "theirs^1"]),
        git(guest.path(), &["rev-parse", "HEAD^1"]),
        "unsigned ones keep their ids"
    );
}

#[test]
fn commits_with_what_is_refused_bring_nothing() {
    let bad: [(&str, &[&str]); 5] = [
        ("escape", &["ln -s ../../etc/passwd escape", "git add escape", "git commit -qm x"]),
        // Gone again in the last commit: each tree is inspected.
        (
            "gone",
            &[
                "ln -s /etc/passwd gone",
                "git add gone",
                "git commit -qm x",
                "git rm -qf gone",
                "git commit -qm y",
            ],
        ),
        (
            ".git",
            &[
                "id=$(echo x | git hash-object -w --stdin)",
                "tree=$(printf '100644 blob %s\\t.gIt\\n' $id | git mktree)",
                "git reset -q --soft $(git commit-tree $tree -p HEAD -m x)",
            ],
        ),
        ("sub", &["git update-index --add --cacheinfo 160000,$(git rev-parse HEAD),sub", "git commit -qm x"]),
        (
            "commit",
            &[
                "git checkout -q --orphan new",
                "git commit -qm a",
                "git commit -q --allow-empty -m b",
                "git rev-parse HEAD >>.git/shallow",
            ],
        ),
    ];
    for (word, script) in bad {
        let repo = repository();
        let guest = prepare(&request(repo.path())).unwrap();
        let script = format!(
            "set -e\nexport GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a\n{}",
            script.join("\n")
        );
        assert!(
            std::process::Command::new("sh")
                .current_dir(guest.path())
                .args(["-c", &script])
                .status()
                .unwrap()
                .success(),
            "{word}"
        );
        let (scratch, out) = export(repo.path(), &guest.captured.base_commit, repo.path()).unwrap();
        let (pack, tip) = pack(guest.path(), &guest.captured.base_commit);
        let before = fingerprint(repo.path());
        let result =
            Arrived::receive(&out, &pack[..], &tip, 1 << 20).and_then(|a| a.to_branch("theirs", false));
        let error: Error = result.map(|s| s.commits).unwrap_err().into();
        assert!(error.message.to_lowercase().contains(word), "{word}: {error}");
        assert_eq!(fingerprint(repo.path()), before, "{word}");
        drop(scratch);
    }
    // A pack that is cut short, or too large, is none.
    let repo = repository();
    let guest = prepare(&request(repo.path())).unwrap();
    put(guest.path(), "big", (0..50_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    commit(guest.path(), "big");
    let (_scratch, out) = export(repo.path(), &guest.captured.base_commit, repo.path()).unwrap();
    let (pack, tip) = pack(guest.path(), &guest.captured.base_commit);
    assert!(Arrived::receive(&out, &pack[..pack.len() - 9], &tip, 1 << 20).is_err());
    let error: Error = Arrived::receive(&out, &pack[..], &tip, 4096).unwrap_err().into();
    assert!(error.message.contains("4096 bytes"), "{error}");
    assert!(Arrived::receive(&out, &pack[..], "--all", 1 << 20).is_err());
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
