//! The two other ways to copy, how deep history goes, and what never blocks.

use std::path::Path;

use crate::support::{
    Guest, commit, export, files, fingerprint, git, prepare, prepare_again, put, repository, request, status,
    try_git,
};
use banger_model::{ErrorCode, WorkspaceMode};
use banger_protocol::api::PrepareRequest;
use banger_workspace::Cancel;
use banger_workspace::capture::{Options, plan};

fn full(path: &Path) -> PrepareRequest {
    PrepareRequest { mode: Some(WorkspaceMode::FullCopy), include_untracked: true, ..request(path) }
}

fn fsck(dir: &Path) {
    let fsck = try_git(dir, &["fsck", "--no-dangling", "--no-progress"]);
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stderr));
}

fn same(guest: &Guest, repo: &Path, args: &[&str]) {
    let text = |out: Vec<u8>| String::from_utf8(out).unwrap();
    assert_eq!(text(git(guest.path(), args)), text(git(repo, args)), "{args:?}");
}

/// A repository with submodules in all states, one within another.
fn with_submodules() -> Vec<tempfile::TempDir> {
    let (inner, middle, outer) = (repository(), repository(), repository());
    let url = |dir: &tempfile::TempDir| dir.path().to_str().unwrap().to_owned();
    git(middle.path(), &["submodule", "add", "-q", &url(&inner), "deep er"]);
    commit(middle.path(), "sub");
    let out = outer.path();
    for name in ["clean", "moved", "dirty", "staged", "x/gone", "empty-dir", "untracked"] {
        git(out, &["submodule", "add", "-q", "--name", &format!("n/{name}"), &url(&middle), name]);
    }
    git(out, &["submodule", "update", "-q", "--init", "--recursive"]);
    commit(out, "subs");
    commit(&out.join("moved"), "moved");
    put(out, "dirty/a", "dirty\n");
    put(out, "dirty/deep er/a", "dirty too\n");
    git(&out.join("dirty"), &["rm", "-q", "--cached", "d/b"]);
    commit(&out.join("staged"), "moved");
    git(out, &["add", "staged"]);
    std::fs::remove_dir_all(out.join("x/gone")).unwrap();
    git(out, &["submodule", "deinit", "-q", "-f", "empty-dir"]);
    put(out, "untracked/u", "");
    put(out, "untracked/x.o", "");
    vec![outer, middle, inner]
}

#[test]
fn a_full_copy_has_submodules_as_they_are() {
    // Given submodules clean, moved, dirty, staged, gone and never checked out.
    let repos = with_submodules();
    let repo = repos[0].path();
    let before = fingerprint(repo);
    let mut guest = prepare(&full(repo)).unwrap();
    assert_eq!(fingerprint(repo), before);
    // Then the outer repository says of them what it says here, and so do they.
    assert_eq!(status(guest.path()), status(repo));
    assert_eq!(
        files(guest.path()),
        files(repo).into_iter().filter(|l| !l.contains("x.o")).collect::<Vec<_>>()
    );
    same(&guest, repo, &["submodule", "status", "--recursive"]);
    for sub in ["clean", "dirty", "dirty/deep er"] {
        assert_eq!(status(&guest.path().join(sub)), status(&repo.join(sub)), "{sub}");
        fsck(&guest.path().join(sub));
    }
    fsck(guest.path());
    assert!(guest.path().join("clean/.git").is_file());
    let (_scratch, out) = export(repo, &guest.captured.base_commit, guest.path()).unwrap();
    assert!(out.summary.files.iter().all(|f| f.path.as_bytes() != b"clean"), "{:?}", out.summary);

    // When some change, then only what is other is sent.
    std::thread::sleep(std::time::Duration::from_millis(40));
    put(repo, "clean/deep er/a", "new\n");
    commit(&repo.join("dirty"), "done");
    let (changes, _) = prepare_again(&mut guest, &Options::default()).unwrap();
    assert!(changes.replaced.iter().any(|p| p.as_bytes() == b"clean/deep er/a"), "{changes:?}");
    assert_eq!(status(guest.path()), status(repo));
    fsck(&guest.path().join("dirty"));
    assert!(!guest.captured.manifest.drift(&Cancel::never()).unwrap().index);
}

#[test]
fn a_full_copy_has_all_history_and_refs() {
    let repo = repository();
    for n in 0..30 {
        put(repo.path(), "a", format!("{n}\n"));
        commit(repo.path(), "n");
    }
    git(repo.path(), &["tag", "-a", "-m", "t", "annotated", "HEAD~25"]);
    git(repo.path(), &["branch", "old/one", "HEAD~20"]);
    put(repo.path(), "a", "stashed\n");
    git(repo.path(), &["stash", "-q"]);
    let mut guest = prepare(&full(repo.path())).unwrap();
    assert_eq!(guest.captured.plan.depth, 31);
    same(&guest, repo.path(), &["log", "--oneline", "--branches", "--tags"]);
    same(&guest, repo.path(), &["for-each-ref", "refs/heads", "refs/tags"]);
    assert!(!guest.path().join(".git/shallow").exists());
    assert!(!try_git(guest.path(), &["rev-parse", "--verify", "-q", "refs/stash"]).status.success());
    fsck(guest.path());
    // And a second time brings new commits and refs, and takes away old ones.
    git(repo.path(), &["branch", "-q", "-D", "old/one"]);
    git(repo.path(), &["branch", "old", "HEAD~3"]);
    put(repo.path(), "a", "next\n");
    commit(repo.path(), "next");
    let (_, bytes) = prepare_again(&mut guest, &Options::default()).unwrap();
    assert!(bytes < 64 << 10, "{bytes}");
    same(&guest, repo.path(), &["log", "--oneline", "main", "old"]);
    fsck(guest.path());
}

#[test]
fn metadata_only_has_the_repository_and_no_files() {
    let repo = repository();
    put(repo.path(), "a", "unstaged\n");
    put(repo.path(), "staged", "s\n");
    git(repo.path(), &["add", "staged"]);
    let asked = PrepareRequest { mode: Some(WorkspaceMode::MetadataOnly), ..full(repo.path()) };
    let guest = prepare(&asked).unwrap();
    // Then there is nothing but the repository, and nothing is missing from it.
    assert_eq!(std::fs::read_dir(guest.path()).unwrap().count(), 1);
    assert_eq!((guest.captured.plan.files.len(), guest.captured.plan.bytes), (0, 0));
    assert_eq!(crate::support::text(&git(guest.path(), &["status", "--porcelain"])), "A  staged\n");
    same(&guest, repo.path(), &["rev-parse", "HEAD"]);
    fsck(guest.path());
    // And an export says that nothing changed but what was staged.
    let (_scratch, out) = export(repo.path(), &guest.captured.base_commit, guest.path()).unwrap();
    assert!(!out.summary.has_changes, "{:?}", out.summary);
    // And the files can be had.
    git(guest.path(), &["sparse-checkout", "disable"]);
    assert_eq!(std::fs::read(guest.path().join("staged")).unwrap(), b"s\n");
    assert_eq!(std::fs::read(guest.path().join("a")).unwrap(), b"one\n");
}

#[test]
fn history_is_deeper_where_a_merge_base_needs_it() {
    // Given a branch of a clone that left the origin's main branch long ago.
    let origin = repository();
    let many = |dir: &Path, count: usize| {
        for n in 0..count {
            put(dir, "n", format!("{n}\n"));
            // Two sides that commit the same in the same second would have the same commits.
            commit(dir, &dir.to_string_lossy());
        }
    };
    many(origin.path(), 20);
    let home = tempfile::tempdir().unwrap();
    let repo = home.path().join("r");
    git(home.path(), &["clone", "-q", origin.path().to_str().unwrap(), "r"]);
    git(&repo, &["checkout", "-q", "-b", "topic"]);
    many(&repo, 15);
    many(origin.path(), 12);
    git(&repo, &["fetch", "-q"]);
    git(&repo, &["branch", "-q", "-u", "origin/main"]);
    let guest = prepare(&request(&repo)).unwrap();
    // Then the guest can compare with it, as here, and says how deep that is.
    same(&guest, &repo, &["merge-base", "HEAD", "origin/main"]);
    same(&guest, &repo, &["status", "--porcelain=v2", "--branch"]);
    same(&guest, &repo, &["log", "--oneline", "origin/main..HEAD"]);
    same(&guest, &repo, &["rev-parse", "--abbrev-ref", "origin/HEAD"]);
    assert!((16..=40).contains(&guest.captured.plan.depth), "{}", guest.captured.plan.depth);
    assert_eq!(plan(&request(&repo), &Cancel::never()).unwrap().depth, guest.captured.plan.depth);
    fsck(guest.path());
    // And a merge in progress has its base.
    git(&repo, &["branch", "-q", "--unset-upstream"]);
    git(&repo, &["remote", "remove", "origin"]);
    git(&repo, &["checkout", "-q", "main"]);
    put(&repo, "n", "mine\n");
    commit(&repo, "mine");
    assert!(!try_git(&repo, &["merge", "-q", "topic"]).status.success());
    let guest = prepare(&request(&repo)).unwrap();
    same(&guest, &repo, &["merge-base", "HEAD", "MERGE_HEAD"]);
    assert_eq!(status(guest.path()), status(&repo));
}

#[test]
fn nothing_waits_for_the_other_end_of_a_pipe() {
    let pipe = |path: &Path| {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let refused = |repo: &Path, name: &str| {
        let error: banger_model::Error = prepare(&full(repo)).map(drop).unwrap_err();
        assert_eq!((error.code, error.message.contains(name)), (ErrorCode::InvalidArgument, true), "{error}");
    };
    // Given a pipe in the place of a tracked file.
    let repo = repository();
    std::fs::remove_file(repo.path().join("a")).unwrap();
    pipe(&repo.path().join("a"));
    refused(repo.path(), "'a'");
    // Given one that git itself would wait for.
    let repo = repository();
    std::fs::create_dir(repo.path().join("new")).unwrap();
    pipe(&repo.path().join("new/.gitignore"));
    refused(repo.path(), "'new/.gitignore'");
    // Given one where git keeps something.
    let repo = repository();
    pipe(&repo.path().join(".git/MERGE_MSG"));
    pipe(&repo.path().join("untracked"));
    let guest = prepare(&full(repo.path())).unwrap();
    assert_eq!(guest.captured.plan.skipped_untracked, 0);
    assert!(!guest.path().join(".git/MERGE_MSG").exists());
}
