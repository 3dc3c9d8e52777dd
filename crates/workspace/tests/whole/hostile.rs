//! A guest that sends what no honest agent would.

use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::{commit, fingerprint, git, put, repository};
use banger_model::{Error, ErrorCode};
use banger_protocol::agent::scan::{RecordHeader, RecordKind, encode_header};
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
