//! The guest's change as commits on a new branch of the host's.

use std::path::Path;

use crate::apply::{exported, worked};
use crate::support::{
    Guest, commit, export, fingerprint, git, guest_tree, prepare, put, repository, request, status, text,
    try_git,
};
use banger_model::{Error, ErrorCode};
use banger_protocol::api::ApplySummary;
use banger_workspace::apply::{self, Arrived};

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
