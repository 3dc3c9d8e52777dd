//! The guest's `git status` says what the host's says, in many situations.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::situations_more;
use crate::support::{
    Guest, commit, export, fingerprint, git, prepare, prepare_again, put, repository, request, status,
    try_git,
};
use banger_workspace::capture::Options;
use tempfile::TempDir;

/// A repository in some situation: the path to prepare, and what keeps it alive.
pub(crate) type Given = (PathBuf, Vec<TempDir>);

pub(crate) fn given(make: impl Fn(&Path)) -> Given {
    let repo = repository();
    make(repo.path());
    (repo.path().to_owned(), vec![repo])
}

pub(crate) fn bare(args: &[&str]) -> Given {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &[&["init", "-q"], args].concat());
    (dir.path().to_owned(), vec![dir])
}

pub(crate) fn cloned(args: &[&str]) -> Given {
    let repo = repository();
    for n in 0..3 {
        put(repo.path(), "a", format!("{n}\n"));
        commit(repo.path(), "more");
    }
    git(repo.path(), &["config", "uploadpack.allowFilter", "true"]);
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", repo.path().display());
    let to = dir.path().join("clone");
    git(dir.path(), &[&["clone", "-q"], args, &[&url, "clone"]].concat());
    put(&to, "a", "changed here\n");
    (to, vec![dir, repo])
}

pub(crate) fn conflict(repo: &Path, other: impl Fn(&Path), ours: impl Fn(&Path)) {
    git(repo, &["checkout", "-q", "-b", "other"]);
    other(repo);
    commit(repo, "other");
    git(repo, &["checkout", "-q", "main"]);
    ours(repo);
    commit(repo, "ours");
    assert!(!try_git(repo, &["merge", "-q", "other"]).status.success());
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

pub(crate) fn touch(path: &Path, when: &str) {
    assert!(Command::new("touch").args(["-h", "-d", when]).arg(path).status().unwrap().success());
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn situations() -> Vec<(&'static str, Given)> {
    vec![
        ("clean", given(|_| {})),
        ("modified", given(|r| put(r, "a", "x\n"))),
        ("same size modified", given(|r| put(r, "a", "eno\n"))),
        (
            "staged",
            given(|r| {
                put(r, "a", "x\n");
                git(r, &["add", "a"]);
            }),
        ),
        (
            "staged and modified",
            given(|r| {
                put(r, "a", "x\n");
                git(r, &["add", "a"]);
                put(r, "a", "y\n");
            }),
        ),
        (
            "staged and restored",
            given(|r| {
                put(r, "a", "x\n");
                git(r, &["add", "a"]);
                put(r, "a", "one\n");
            }),
        ),
        (
            "added",
            given(|r| {
                put(r, "n/e/w", "x\n");
                git(r, &["add", "n"]);
            }),
        ),
        (
            "added and deleted",
            given(|r| {
                put(r, "n", "x\n");
                git(r, &["add", "n"]);
                std::fs::remove_file(r.join("n")).unwrap();
            }),
        ),
        ("deleted", given(|r| std::fs::remove_file(r.join("a")).unwrap())),
        ("deleted directory", given(|r| std::fs::remove_dir_all(r.join("d")).unwrap())),
        (
            "deletion staged",
            given(|r| {
                git(r, &["rm", "-q", "a"]);
            }),
        ),
        (
            "removed from the index only",
            given(|r| {
                git(r, &["rm", "-q", "--cached", "a"]);
            }),
        ),
        (
            "renamed",
            given(|r| {
                git(r, &["mv", "a", "z"]);
            }),
        ),
        (
            "renamed and modified",
            given(|r| {
                git(r, &["mv", "d", "z"]);
                put(r, "z/b", "two\nmore\n");
            }),
        ),
        ("mode", given(|r| chmod(&r.join("a"), 0o755))),
        (
            "mode staged",
            given(|r| {
                chmod(&r.join("a"), 0o755);
                git(r, &["add", "a"]);
            }),
        ),
        (
            "mode staged and taken back",
            given(|r| {
                git(r, &["update-index", "--chmod=+x", "a"]);
            }),
        ),
        (
            "modes ignored",
            given(|r| {
                git(r, &["config", "core.fileMode", "false"]);
                chmod(&r.join("a"), 0o755);
            }),
        ),
        (
            "intent to add",
            given(|r| {
                put(r, "n", "x\n");
                git(r, &["add", "-N", "n"]);
            }),
        ),
        ("untracked", given(|r| put(r, "u/n\nv", "x\n"))),
        (
            "ignored",
            given(|r| {
                put(r, "x.o", "");
                put(r, "build/y", "");
                put(r, "d/.gitignore", "*\n!b\n");
                put(r, "d/z", "");
            }),
        ),
        (
            "tracked though ignored",
            given(|r| {
                put(r, "t.o", "");
                git(r, &["add", "-f", "t.o"]);
                put(r, "u.o", "");
            }),
        ),
        (
            "excluded at home",
            given(|r| {
                put(r, ".git/info/exclude", "/u");
                put(r, "u", "");
                put(r, "v", "");
            }),
        ),
        ("content conflict", given(|r| conflict(r, |r| put(r, "a", "x\n"), |r| put(r, "a", "y\n")))),
        (
            "modify/delete conflict",
            given(|r| conflict(r, |r| put(r, "a", "x\n"), |r| std::fs::remove_file(r.join("a")).unwrap())),
        ),
        ("add/add conflict", given(|r| conflict(r, |r| put(r, "n", "x\n"), |r| put(r, "n", "y\n")))),
        (
            "merge resolved",
            given(|r| {
                conflict(r, |r| put(r, "a", "x\n"), |r| put(r, "a", "y\n"));
                put(r, "a", "z\n");
                git(r, &["add", "a"]);
            }),
        ),
        (
            "detached",
            given(|r| {
                git(r, &["checkout", "-q", "--detach"]);
                put(r, "a", "x\n");
            }),
        ),
        ("no commit", bare(&[])),
        ("no commit, staged", {
            let g = bare(&[]);
            put(&g.0, "s", "x");
            git(&g.0, &["add", "s"]);
            put(&g.0, "s", "y");
            put(&g.0, "u", "");
            g
        }),
        (
            "file became a link",
            given(|r| {
                std::fs::remove_file(r.join("a")).unwrap();
                symlink("d/b", r.join("a")).unwrap();
            }),
        ),
        (
            "link became a file",
            given(|r| {
                symlink("a", r.join("l")).unwrap();
                commit(r, "l");
                std::fs::remove_file(r.join("l")).unwrap();
                put(r, "l", "a");
            }),
        ),
        (
            "dangling link",
            given(|r| {
                symlink("/no/where", r.join("l")).unwrap();
                commit(r, "l");
                symlink("gone", r.join("m")).unwrap();
            }),
        ),
        (
            "directory became a link",
            given(|r| {
                git(r, &["mv", "d", "real"]);
                git(r, &["reset", "-q", "--hard"]);
                std::fs::rename(r.join("d"), r.join("moved")).unwrap();
                symlink("moved", r.join("d")).unwrap();
            }),
        ),
        (
            "file became a directory",
            given(|r| {
                std::fs::remove_file(r.join("a")).unwrap();
                put(r, "a/x", "");
            }),
        ),
        (
            "directory became a file",
            given(|r| {
                std::fs::remove_dir_all(r.join("d")).unwrap();
                put(r, "d", "");
            }),
        ),
        (
            "assumed unchanged",
            given(|r| {
                git(r, &["update-index", "--assume-unchanged", "a"]);
                put(r, "a", "hidden\n");
            }),
        ),
        (
            "skipped",
            given(|r| {
                git(r, &["update-index", "--skip-worktree", "a", "d/b"]);
                std::fs::remove_file(r.join("d/b")).unwrap();
                put(r, "a", "hidden\n");
            }),
        ),
        (
            "sparse",
            given(|r| {
                git(r, &["sparse-checkout", "set", "--no-cone", "/a"]);
                put(r, "a", "x\n");
            }),
        ),
        (
            "sparse cone and index",
            given(|r| {
                git(r, &["sparse-checkout", "set", "--cone", "--sparse-index", "d/e"]);
                put(r, "d/e/c", "x\n");
            }),
        ),
    ]
}

#[test]
fn the_guest_sees_what_the_developer_sees() {
    let mut all = situations();
    all.extend(situations_more::situations());
    assert!(all.len() >= 70, "{}", all.len());
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let parts: Vec<_> = all
            .chunks(all.len().div_ceil(4))
            .map(|part| {
                scope.spawn(|| {
                    part.iter().flat_map(|(name, (path, _))| compare(name, path)).collect::<Vec<_>>()
                })
            })
            .collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is wrong with a guest's copy of a repository.
fn compare(name: &str, path: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    let before = fingerprint(path);
    let mut asked = request(path);
    asked.include_untracked = true;
    let mut guest = match prepare(&asked) {
        Ok(guest) => guest,
        Err(e) => return vec![format!("{name}: {e}")],
    };
    let changed: Vec<_> = fingerprint(path).into_iter().filter(|l| !before.contains(l)).collect();
    let (host, mine) = (status(path), status(guest.path()));
    // Given another repository within, git would not add it either.
    let host: String = host.lines().filter(|l| *l != "? sub/").map(|l| format!("{l}\n")).collect();
    if host != mine {
        wrong.push(format!("{name}: host\n{host}guest\n{mine}"));
    }
    if !changed.is_empty() {
        wrong.push(format!("{name}: source written: {changed:?}"));
    }
    let fsck = try_git(guest.path(), &["fsck", "--no-dangling", "--no-progress"]);
    if !fsck.status.success() {
        wrong.push(format!("{name}: {}", String::from_utf8_lossy(&fsck.stderr)));
    }
    if guest.path().join(".git/objects/info/alternates").exists() || !guest.path().join(".git").is_dir() {
        wrong.push(format!("{name}: leans on the host"));
    }
    if let Err(e) = export(path, &guest.captured.base_commit, guest.path()) {
        wrong.push(format!("{name}: export: {e}"));
    }
    if let Err(e) = go_on(path, &mut guest) {
        wrong.push(format!("{name}, later: {e}"));
    }
    wrong
}

/// The host goes on working, and the guest is brought up to date.
fn go_on(path: &Path, guest: &mut Guest) -> Result<(), String> {
    put(path, "later", "l\n");
    git(path, &["add", "-f", "--sparse", "later"]);
    put(path, "later", "later\n");
    if path.join("a").symlink_metadata().is_ok_and(|m| m.is_file()) {
        put(path, "a", "later\n");
    }
    // A conflict cannot be committed.
    drop(try_git(path, &["commit", "-q", "-m", "later", "later"]));
    put(path, "later", "and later\n");
    prepare_again(guest, &Options::default()).map_err(|e| e.to_string())?;
    let (host, mine) = (status(path), status(guest.path()));
    let host: String = host.lines().filter(|l| *l != "? sub/").map(|l| format!("{l}\n")).collect();
    let fsck = try_git(guest.path(), &["fsck", "--no-dangling", "--no-progress"]);
    match (host == mine, fsck.status.success()) {
        (true, true) => Ok(()),
        (false, _) => Err(format!("host\n{host}guest\n{mine}")),
        (_, false) => Err(String::from_utf8_lossy(&fsck.stderr).into_owned()),
    }
}
