//! More situations: unusual indexes, files, histories and repositories.

use crate::situations::{Given, bare, cloned, conflict, given, touch};
use crate::support::{commit, git, put, try_git};
use std::os::unix::fs::symlink;

#[expect(clippy::too_many_lines, reason = "a table")]
pub(crate) fn situations() -> Vec<(&'static str, Given)> {
    vec![
        (
            "split index",
            given(|r| {
                git(r, &["update-index", "--split-index"]);
                put(r, "a", "x\n");
                git(r, &["add", "a"]);
            }),
        ),
        (
            "untracked cache",
            given(|r| {
                git(r, &["update-index", "--untracked-cache"]);
                git(r, &["status"]);
                put(r, "u", "");
            }),
        ),
        (
            "index version 4",
            given(|r| {
                git(r, &["update-index", "--index-version", "4"]);
                put(r, "d/b", "x\n");
            }),
        ),
        (
            "fsmonitor set",
            given(|r| {
                git(r, &["config", "core.fsmonitor", "false; touch ran"]);
                put(r, "a", "x\n");
            }),
        ),
        ("touched only", given(|r| touch(&r.join("a"), "2001-02-03"))),
        (
            "old and future times",
            given(|r| {
                touch(&r.join("a"), "1960-01-01");
                touch(&r.join("d/b"), "2040-01-01");
                git(r, &["status"]);
            }),
        ),
        (
            "same size, same time",
            given(|r| {
                touch(&r.join("a"), "2001-02-03");
                git(r, &["add", "a"]);
                std::thread::sleep(std::time::Duration::from_millis(1100));
                put(r, "a", "eno\n");
                touch(&r.join("a"), "2001-02-03");
            }),
        ),
        (
            "line ends by attribute",
            given(|r| {
                put(r, ".gitattributes", "*.txt text eol=crlf\n");
                put(r, "t.txt", "a\r\nb\r\n");
                commit(r, "t");
                put(r, "u.txt", "c\r\n");
            }),
        ),
        (
            "line ends by setting",
            given(|r| {
                git(r, &["config", "core.autocrlf", "true"]);
                put(r, "t", "a\r\nb\r\n");
                commit(r, "t");
                touch(&r.join("t"), "2001-02-03");
                put(r, "a", "one\r\n");
            }),
        ),
        (
            "attributes at home",
            given(|r| {
                put(r, ".git/info/attributes", "t text eol=crlf\n");
                put(r, "t", "a\r\n");
                commit(r, "t");
                touch(&r.join("t"), "2001-02-03");
            }),
        ),
        (
            "clean and smudge programs",
            given(|r| {
                git(r, &["config", "filter.up.clean", "tr a-z A-Z"]);
                git(r, &["config", "filter.up.smudge", "tr A-Z a-z"]);
                put(r, ".gitattributes", "*.up filter=up\n");
                put(r, "f.up", "loud\n");
                put(r, "g.up", "loud\n");
                touch(&r.join("f.up"), "2001-02-03");
                commit(r, "filtered");
                put(r, "g.up", "other\n");
            }),
        ),
        ("linked worktree", {
            let mut g = given(|_| {});
            let d = tempfile::tempdir().unwrap();
            let w = d.path().join("w");
            git(&g.0, &["worktree", "add", "-q", "-b", "side", w.to_str().unwrap()]);
            put(&w, "a", "x\n");
            g.0 = w;
            g.1.push(d);
            g
        }),
        ("separate git directory", {
            let d = tempfile::tempdir().unwrap();
            let r = d.path().join("r");
            std::fs::create_dir(&r).unwrap();
            git(&r, &["init", "-q", "--separate-git-dir", "../g"]);
            put(&r, "a", "x");
            commit(&r, "a");
            put(&r, "b", "");
            (r, vec![d])
        }),
        ("alternates", cloned(&["--shared"])),
        ("shallow clone", cloned(&["--depth", "2"])),
        ("partial clone", cloned(&["--filter=blob:none"])),
        ("partial and sparse clone", cloned(&["--filter=blob:none", "--sparse"])),
        ("clone without a checkout", cloned(&["--no-checkout"])),
        ("sha256", {
            let g = bare(&["--object-format=sha256"]);
            put(&g.0, "a", "x\n");
            commit(&g.0, "a");
            put(&g.0, "a", "y\n");
            g
        }),
        ("reftable", {
            let g = bare(&["--ref-format=reftable"]);
            put(&g.0, "a", "x\n");
            commit(&g.0, "a");
            put(&g.0, "a", "y\n");
            g
        }),
        (
            "odd branch",
            given(|r| {
                git(r, &["checkout", "-q", "-b", "feature/x\"y"]);
                git(r, &["config", "user.name", "q\"u\\o#;te"]);
            }),
        ),
        (
            "odd names",
            given(|r| {
                for n in [&b"-n"[..], b"a\nb", b"q\"", b"\xff", b" ", b":x"] {
                    put(r, n, "1");
                }
                git(r, &["add", "-A"]);
                put(r, b"\xff", "2");
            }),
        ),
        (
            "nested repository",
            given(|r| {
                std::fs::create_dir(r.join("sub")).unwrap();
                git(&r.join("sub"), &["init", "-q"]);
                put(r, "sub/f", "");
            }),
        ),
        (
            "long history",
            given(|r| {
                for n in 0..15 {
                    put(r, "a", format!("{n}"));
                    commit(r, "n");
                }
            }),
        ),
        (
            "both deleted and both added",
            given(|r| {
                conflict(
                    r,
                    |r| {
                        std::fs::rename(r.join("a"), r.join("one way")).unwrap();
                        put(r, "d/e/c", "x\n");
                    },
                    |r| {
                        std::fs::rename(r.join("a"), r.join("other way")).unwrap();
                        put(r, "d/e/c", "y\n");
                        put(r, "one way", "other\n");
                    },
                );
            }),
        ),
        (
            "cherry-pick in progress",
            given(|r| {
                git(r, &["checkout", "-q", "-b", "other"]);
                put(r, "a", "x\n");
                commit(r, "other");
                git(r, &["checkout", "-q", "main"]);
                put(r, "a", "y\n");
                commit(r, "ours");
                assert!(!try_git(r, &["cherry-pick", "other"]).status.success());
            }),
        ),
        (
            "rebase in progress",
            given(|r| {
                git(r, &["checkout", "-q", "-b", "other"]);
                put(r, "a", "x\n");
                commit(r, "other");
                git(r, &["checkout", "-q", "main"]);
                put(r, "a", "y\n");
                commit(r, "ours");
                assert!(!try_git(r, &["rebase", "-q", "other"]).status.success());
            }),
        ),
        (
            "LFS pointer and smudged LFS file",
            given(|r| {
                put(r, ".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");
                let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
                put(r, "pointer.bin", pointer);
                put(r, "whole.bin", pointer);
                commit(r, "lfs");
                // A smudge program gives the content back, and the pointer for it.
                git(
                    r,
                    &["config", "filter.lfs.clean", &format!("printf '{}'", pointer.replace('\n', "\\n"))],
                );
                put(r, "whole.bin", "c".repeat(12345));
                git(r, &["add", "whole.bin"]);
            }),
        ),
        (
            "commit graph and packs",
            given(|r| {
                for n in 0..12 {
                    put(r, "a", format!("{n}"));
                    commit(r, "n");
                }
                git(r, &["repack", "-q", "-a", "-d", "-b"]);
                git(r, &["commit-graph", "write"]);
                put(r, "a", "x");
            }),
        ),
        (
            "attributes of the user",
            given(|r| {
                put(r, ".git/of-user", "*.t text eol=crlf\n");
                let file = r.join(".git/of-user");
                git(r, &["config", "core.attributesFile", file.to_str().unwrap()]);
                put(r, "f.t", "a\r\nb\r\n");
                commit(r, "t");
                touch(&r.join("f.t"), "2001-02-03");
            }),
        ),
        (
            "renames not looked for",
            given(|r| {
                git(r, &["config", "status.renames", "false"]);
                git(r, &["mv", "a", "z"]);
            }),
        ),
        (
            "replaced and grafted",
            given(|r| {
                put(r, "a", "2\n");
                commit(r, "second");
                git(r, &["replace", "--graft", "HEAD"]);
                put(r, "a", "3\n");
            }),
        ),
        (
            "deep paths and long names",
            given(|r| {
                put(r, format!("{}f", "deep/".repeat(60)), "x");
                put(r, "n".repeat(255), "y");
                git(r, &["add", "-A"]);
                put(r, "n".repeat(255), "z");
            }),
        ),
        (
            "only modes and links staged",
            given(|r| {
                symlink("a", r.join("link")).unwrap();
                git(r, &["add", "link"]);
                std::fs::remove_file(r.join("link")).unwrap();
                symlink("d/b", r.join("link")).unwrap();
            }),
        ),
        (
            "removed and intended again",
            given(|r| {
                put(r, "sub dir/x y", "1\n");
                commit(r, "spaces");
                git(r, &["rm", "-q", "--cached", "sub dir/x y"]);
                git(r, &["add", "-N", "sub dir/x y"]);
            }),
        ),
        (
            "stash and notes",
            given(|r| {
                put(r, "a", "x\n");
                git(r, &["stash", "-q"]);
                put(r, "a", "y\n");
            }),
        ),
    ]
}
