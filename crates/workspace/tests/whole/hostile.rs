//! A guest that sends what no honest agent would.

use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{commit, fingerprint, git, prepare, put, repository, request};
use banger_model::{ByteString, Error, ErrorCode};
use banger_protocol::agent::ScanSpec;
use banger_protocol::agent::scan::{RecordHeader, RecordKind, encode_header};
use banger_workspace::apply::{self, Copied, Wish};
use banger_workspace::export::{Export, Exported, Limits};
use tempfile::TempDir;

fn record(kind: RecordKind, mode: u32, path: &[u8], content: &[u8]) -> Vec<u8> {
    let header = RecordHeader { kind, mode, path_len: path.len(), size: content.len() as u64 };
    [&encode_header(header)[..], path, content].concat()
}

fn file(path: &str) -> Vec<u8> {
    record(RecordKind::Present, 0o100_644, path.as_bytes(), b"content")
}

fn link(path: &str, target: &str) -> Vec<u8> {
    record(RecordKind::Present, 0o120_000, path.as_bytes(), target.as_bytes())
}

fn gone(path: &str) -> Vec<u8> {
    record(RecordKind::Deleted, 0, path.as_bytes(), b"")
}

fn end() -> Vec<u8> {
    record(RecordKind::End, 0, b"", b"")
}

fn receive(repo: &Path, records: &[Vec<u8>], limits: &Limits) -> Result<(TempDir, Exported), Error> {
    let scratch = tempfile::tempdir().unwrap();
    let export = Export::new(repo, "HEAD", scratch.path())?;
    let bytes = records.concat();
    let exported = export.receive(&bytes[..], limits)?;
    Ok((scratch, exported))
}

#[test]
fn what_is_refused_names_the_path() {
    let repo = repository();
    symlink("/etc", repo.path().join("out")).unwrap();
    symlink("d/..", repo.path().join("top")).unwrap();
    commit(repo.path(), "links");
    let before = fingerprint(repo.path());
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        (".git/config", vec![file(".git/config")]),
        (".GIT", vec![file(".GIT/hooks/post-checkout")]),
        (".git.", vec![link(".git.", "a")]),
        ("git~1", vec![file("d/git~1/config")]),
        (".g\u{200c}it", vec![file(".g\u{200c}it/x")]),
        ("../up", vec![file("../up")]),
        ("/abs", vec![file("/abs")]),
        ("d//b", vec![file("d//b")]),
        ("d/", vec![file("d/")]),
        ("./a", vec![file("./a")]),
        ("nul", vec![file("nul\0x")]),
        ("twice", vec![file("twice"), file("twice")]),
        ("twice", vec![file("twice"), gone("twice")]),
        ("a/x", vec![file("a/x")]),
        ("'d'", vec![file("d")]),
        ("n", vec![file("n"), file("n/m")]),
        ("not there", vec![gone("not there")]),
        ("escape", vec![link("escape", "../secret")]),
        ("escape", vec![link("escape", "/etc/passwd")]),
        ("d/deep", vec![link("d/deep", "../../x")]),
        ("through", vec![link("here", "."), link("through", "here/../x")]),
        ("past", vec![link("past", "out/passwd")]),
        ("'top'", vec![gone("d/b"), gone("d/e/c"), link("d", ".")]),
        ("empty target", vec![link("empty target", "")]),
        ("nul target", vec![link("nul target", "a\0b")]),
        ("long target", vec![link("long target", &"x".repeat(4096))]),
        (".gitmodules", vec![link(".gitmodules", "a")]),
    ];
    for (path, mut records) in cases {
        records.push(end());
        let error = receive(repo.path(), &records, &Limits::default()).map(|(_, e)| e.summary).unwrap_err();
        assert_eq!(error.code, ErrorCode::GuestFailed, "{error}");
        assert!(error.message.contains(path.trim_matches('\u{200c}')) || !path.is_ascii(), "{path}: {error}");
    }
    let changed: Vec<_> = fingerprint(repo.path()).into_iter().filter(|l| !before.contains(l)).collect();
    assert!(changed.is_empty(), "{changed:?}");
}

#[test]
fn links_that_were_there_and_links_that_stay_inside_are_fine() {
    // Given a base with a link that leaves.
    let repo = repository();
    symlink("/etc", repo.path().join("out")).unwrap();
    commit(repo.path(), "links");
    // When the guest adds links that stay, sends the old one again, and makes a directory a file.
    let records =
        [link("out", "/etc"), link("in", "d/../a"), link("d2/l", "../a"), gone("d/e/c"), file("d/e"), end()];
    let (_scratch, out) = receive(repo.path(), &records, &Limits::default()).unwrap();
    // Then that is the change, without the link that is the same.
    let paths: Vec<_> = out.summary.files.iter().map(|f| f.path.to_string_lossy().into_owned()).collect();
    assert_eq!(paths, ["d/e", "d/e/c", "d2/l", "in"]);
}

#[test]
fn streams_that_lie_or_end_early_are_errors() {
    let repo = repository();
    let mut lying = record(RecordKind::Present, 0o100_644, b"big", b"");
    lying[9..17].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let mut long = record(RecordKind::Present, 0o100_644, b"x", b"");
    long[5..9].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut submodule = file("sub");
    submodule[1..5].copy_from_slice(&0o160_000u32.to_le_bytes());
    for records in [
        vec![],
        vec![file("x")],
        vec![file("x")[..20].to_vec()],
        vec![lying, end()],
        vec![long, end()],
        vec![submodule, end()],
        vec![vec![0xff; 64]],
    ] {
        let error = receive(repo.path(), &records, &Limits::default()).map(|(_, e)| e.summary).unwrap_err();
        assert_eq!(error.code, ErrorCode::GuestFailed, "{error}");
    }
    // A size that nothing comes up to names the path, as does one that is beyond every limit.
    let mut short = record(RecordKind::Present, 0o100_644, b"d/liar", b"");
    short[9..17].copy_from_slice(&4096u64.to_le_bytes());
    for size in [4096u64, u64::MAX] {
        short[9..17].copy_from_slice(&size.to_le_bytes());
        let error = receive(repo.path(), &[short.clone()], &Limits::default()).map(|(_, e)| e.summary);
        assert!(error.unwrap_err().message.contains("'d/liar'"));
    }
}

/// A tree without end: as many records as anybody reads.
struct Endless {
    n: u64,
    record: std::io::Cursor<Vec<u8>>,
}

impl Read for Endless {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.record.read(buf)?;
        if n > 0 || buf.is_empty() {
            return Ok(n);
        }
        self.n += 1;
        let path = format!("t/{}/{}", self.n / 1000, self.n);
        self.record = std::io::Cursor::new(record(RecordKind::Present, 0o100_644, path.as_bytes(), b""));
        self.record.read(buf)
    }
}

#[test]
fn a_tree_without_end_is_refused_where_the_limit_is() {
    let repo = repository();
    let scratch = tempfile::tempdir().unwrap();
    let export = Export::new(repo.path(), "HEAD", scratch.path()).unwrap();
    let mut endless = Endless { n: 0, record: std::io::Cursor::default() };
    let limits = Limits { max_records: 100_000, ..Limits::default() };
    let error: Error = export.receive(&mut endless, &limits).map(|e| e.summary).unwrap_err().into();
    assert!(error.message.contains("100000 paths") && error.message.contains("'t/100/100001'"), "{error}");
    assert_eq!(endless.n, 100_001, "not one more is read");
    assert!(Limits::default().max_records < 10_000_000);
}

#[test]
fn a_commit_whose_few_objects_are_a_tree_without_end_is_refused() {
    // Given ten trees, each ten times in the next: 10^10 files.
    let repo = repository();
    let guest = prepare(&request(repo.path())).unwrap();
    let script = "id=$(echo x | git hash-object -w --stdin); tree=$(printf '100644 blob %s\\tf\\n' $id | git mktree)
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            tree=$(for n in 0 1 2 3 4 5 6 7 8 9; do printf '040000 tree %s\\t%s\\n' $tree $n; done | git mktree)
        done
        commit=$(GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a git commit-tree $tree -p HEAD -m bomb)
        git update-ref --no-deref HEAD $commit; printf 'HEAD\\n^HEAD~1\\n' | git pack-objects -q --revs --stdout >.git/bomb";
    let made = std::process::Command::new("sh").current_dir(guest.path()).args(["-ec", script]).status();
    assert!(made.unwrap().success());
    let pack = std::fs::read(guest.path().join(".git/bomb")).unwrap();
    assert!(pack.len() < 10_000);
    let tip = String::from_utf8(git(guest.path(), &["rev-parse", "HEAD"])).unwrap();
    let (_scratch, out) = crate::support::export(repo.path(), "HEAD", repo.path()).unwrap();
    let before = fingerprint(repo.path());
    let arrived = apply::Arrived::receive(&out, &pack[..], tip.trim(), 1 << 20).unwrap();
    let error: Error = arrived.to_branch("bomb", false).unwrap_err().into();
    assert!(error.message.contains("200000 paths") && error.message.contains("'9/9/"), "{error}");
    assert_eq!(fingerprint(repo.path()), before);
}

#[test]
fn limits_hold() {
    let repo = repository();
    let few = Limits { max_bytes: 10, max_records: 100 };
    assert!(receive(repo.path(), &[file("x"), end()], &few).is_ok());
    let error =
        receive(repo.path(), &[file("x"), file("y"), end()], &few).map(|(_, e)| e.summary).unwrap_err();
    assert!(error.message.contains("10 bytes"), "{error}");
    let few = Limits { max_bytes: 1000, max_records: 1 };
    assert!(receive(repo.path(), &[file("x"), file("y"), end()], &few).is_err());
}

#[test]
fn a_submodule_of_the_base_is_neither_changed_nor_entered() {
    let repo = repository();
    let head = String::from_utf8(git(repo.path(), &["rev-parse", "HEAD"])).unwrap();
    let entry = format!("160000,{},sub", head.trim());
    git(repo.path(), &["update-index", "--add", "--cacheinfo", &entry]);
    git(repo.path(), &["commit", "-q", "-m", "a submodule"]);
    for records in [vec![file("sub")], vec![file("sub/x")], vec![gone("sub")]] {
        let error = receive(repo.path(), &[records, vec![end()]].concat(), &Limits::default()).unwrap_err();
        assert!(error.message.contains("submodule"), "{error}");
    }
    // Given a guest without it, then nothing is said of it.
    let guest = tempfile::tempdir().unwrap();
    for (path, content) in [("a", "one\n"), ("d/b", "two\n"), ("d/e/c", "three\n"), ("empty", "")] {
        put(guest.path(), path, content);
    }
    put(guest.path(), ".gitignore", "*.o\n/build/\n");
    let (_scratch, out) = crate::support::export(repo.path(), "HEAD", guest.path()).unwrap();
    assert!(!out.summary.has_changes);
}

/// Everything by which git can be told to run a program or read elsewhere, in a guest's repository.
fn armed(guest: &Path, outside: &Path) {
    let canary = |name: &str| format!("touch {}", outside.join(name).display());
    let run = |name: &str, value: &str| drop(git(guest, &["config", name, value]));
    for (name, what) in [
        ("core.fsmonitor", "fsmonitor"),
        ("diff.external", "diff-external"),
        ("diff.evil.textconv", "textconv"),
        ("diff.evil.command", "diff-command"),
        ("filter.evil.clean", "clean"),
        ("filter.evil.smudge", "smudge"),
        ("filter.evil.process", "process"),
        ("merge.evil.driver", "merge"),
        ("core.sshCommand", "ssh"),
        ("core.pager", "pager"),
        ("core.editor", "editor"),
        ("gpg.program", "gpg"),
        ("credential.helper", "credential"),
        ("core.alternateRefsCommand", "alternate-refs"),
        ("uploadpack.packObjectsHook", "pack-objects"),
    ] {
        run(name, &canary(what));
    }
    run("core.hooksPath", ".hooks");
    run("commit.gpgSign", "true");
    for hook in ["pre-commit", "post-index-change", "post-checkout", "reference-transaction", "pre-auto-gc"] {
        for dir in [".git/hooks", ".hooks"] {
            let path = format!("{dir}/{hook}");
            put(guest, &path, format!("#!/bin/sh\n{}\n", canary(&format!("hook-{hook}"))));
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(guest.join(&path), mode).unwrap();
        }
    }
    put(outside, "included", format!("[core]\n\tfsmonitor = {}\n", canary("included-ran")));
    run("include.path", outside.join("included").to_str().unwrap());
    put(guest, ".git/objects/info/alternates", format!("{}\n", outside.join("objects").display()));
    put(guest, ".gitattributes", "* filter=evil diff=evil merge=evil\n*.x text=auto ident eol=crlf\n");
    put(guest, ".gitconfig", format!("[core]\n\tfsmonitor = {}\n", canary("home")));
    put(guest, ".lfsconfig", "[lfs]\n\turl = https://example.invalid\n");
    put(
        guest,
        ".gitmodules",
        format!("[submodule \"s\"]\n\tpath = s\n\turl = u\n\tupdate = !{}\n", canary("update")),
    );
}

#[test]
fn no_program_that_a_guest_names_runs_and_nothing_outside_is_read_or_written() {
    // Given a guest whose repository is armed in every way git knows.
    let (repo, outside) = (repository(), tempfile::tempdir().unwrap());
    let guest = prepare(&request(repo.path())).unwrap();
    put(guest.path(), "a", "one\nguest\n");
    put(guest.path(), "u.x", "text\n");
    armed(guest.path(), outside.path());
    let before = fingerprint(outside.path());
    // When it is exported, merged into a touched working tree, and made a branch of.
    put(repo.path(), "a", "host\none\n");
    let base = &guest.captured.base_commit;
    let (_scratch, out) = crate::support::export(repo.path(), base, guest.path()).unwrap();
    let wish = || Wish { copied: Copied::nothing(), three_way: true, name: "n".into(), vm: "v".into() };
    apply::plan(&out, wish()).unwrap().carry_out().unwrap();
    apply::to_branch(&out, "guests", "all", false).unwrap();
    // And again, now that the guest's attributes are in the host's working tree.
    put(guest.path(), "a", "two\nguest\n");
    let (_scratch, out) = crate::support::export(repo.path(), base, guest.path()).unwrap();
    let again = Wish { name: "m".into(), ..wish() };
    apply::plan(&out, again).unwrap().carry_out().unwrap();
    // Then what is outside is as it was, and so is the host's own configuration.
    assert_eq!(fingerprint(outside.path()), before);
    assert!(
        !String::from_utf8(git(repo.path(), &["config", "--list", "--local"])).unwrap().contains("touch")
    );
    assert!(
        !repo.path().join(".hooks/pre-commit").exists()
            || !repo.path().join(".git/hooks/pre-commit").exists()
    );
}

#[test]
fn a_git_directory_that_points_elsewhere_is_not_followed() {
    // Given a guest whose `.git` is a file, or a link, that leads to another repository.
    for kind in ["gitdir file", "link", "commondir"] {
        let (repo, outside) = (repository(), repository());
        put(outside.path(), "secret", "s\n");
        commit(outside.path(), "secret");
        put(outside.path(), ".git/info/exclude", "new\n");
        let guest = prepare(&request(repo.path())).unwrap();
        put(guest.path(), "new", "n\n");
        let (dot, there) = (guest.path().join(".git"), outside.path().join(".git"));
        match kind {
            "commondir" => put(guest.path(), ".git/commondir", there.as_os_str().as_encoded_bytes()),
            _ => std::fs::remove_dir_all(&dot).unwrap(),
        }
        match kind {
            "gitdir file" => std::fs::write(&dot, format!("gitdir: {}\n", there.display())).unwrap(),
            "link" => symlink(&there, &dot).unwrap(),
            _ => {}
        }
        let before = fingerprint(outside.path());
        // Then the other's index and rules have no say.
        let (_scratch, out) = crate::support::export(repo.path(), "HEAD", guest.path()).unwrap();
        let paths: Vec<_> = out.summary.files.iter().map(|f| f.path.to_string_lossy().into_owned()).collect();
        assert_eq!(paths, ["new"], "{kind}");
        assert_eq!(fingerprint(outside.path()), before, "{kind}");
    }
}

#[test]
fn links_that_are_swapped_in_during_a_scan_lead_nowhere() {
    // Given a guest that keeps swapping a directory, and a file, for links to a secret.
    let (repo, outside) = (repository(), tempfile::tempdir().unwrap());
    put(outside.path(), "b", "SECRET");
    put(outside.path(), "e/c", "SECRET");
    let guest = prepare(&request(repo.path())).unwrap();
    put(guest.path(), "d/b", "changed\n");
    let (dir, aside, trap) =
        (guest.path().join("d"), guest.path().join(".git/aside"), guest.path().join(".git/trap"));
    symlink(outside.path(), &trap).unwrap();
    let stop = AtomicBool::new(false);
    let scans = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = std::fs::rename(&dir, &aside);
                let _ = std::fs::rename(&trap, &dir);
                let _ = std::fs::rename(&dir, &trap);
                let _ = std::fs::rename(&aside, &dir);
            }
        });
        let scratch = tempfile::tempdir().unwrap();
        let export = Export::new(repo.path(), "HEAD", scratch.path()).unwrap();
        let mut done = (0, 0);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(2);
        while std::time::Instant::now() < end {
            let spec = ScanSpec {
                root: ByteString::from(guest.path().as_os_str().to_owned()),
                object_format: "sha1".into(),
                max_bytes: 1 << 20,
                ticks: true,
            };
            let mut records = Vec::new();
            let listing = export.base_listing().unwrap();
            // Whether it was whole or changed under way: nothing from outside is in it.
            match banger_agent::scan::scan(guest.path(), &spec, listing, &mut records) {
                Ok(_) => done.0 += 1,
                Err(_) => done.1 += 1,
            }
            assert!(!records.windows(6).any(|w| w == b"SECRET"));
        }
        stop.store(true, Ordering::Relaxed);
        done
    });
    assert!(scans.0 + scans.1 > 20, "{scans:?}");
}
