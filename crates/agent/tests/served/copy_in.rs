//! Workspaces in through the whole channel: new, brought up to date, cut off.

use std::fs;
use std::path::Path;

use banger_channel::{ChannelError, Session};
use banger_model::{ByteString, ErrorCode};
use banger_protocol::agent::touched::{FIXED, Kind, Touched};
use banger_protocol::agent::{CompareSpec, Compared, CopyIn, Place, Reply, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fixture;

fn bytes(path: &Path) -> ByteString {
    path.as_os_str().to_owned().into()
}

/// An archive of files; a name that ends in a slash is a directory.
fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        let kind = if path.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular };
        header.set_entry_type(kind);
        header.set_mode(if path.ends_with('/') { 0o755 } else { 0o644 });
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_mtime(1_000_000_000);
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

const REPO: [(&str, &str); 5] =
    [(".git/", ""), (".git/HEAD", "ref: refs/heads/main\n"), ("a", "one"), ("d/b", "two"), ("d/c", "three")];

async fn copy(s: &Session, spec: CopyIn, given: &[u8]) -> Result<Reply, ChannelError> {
    let (sender, receiver) = s.open(&Request::CopyIn(spec)).await.unwrap();
    let mut writer = sender.writer();
    let feed = async {
        let _ = writer.write_all(given).await;
        let _ = writer.shutdown().await;
    };
    tokio::join!(feed, receiver.reader().reply()).1
}

fn anew(root: &Path, replace: bool) -> CopyIn {
    CopyIn { root: bytes(root), update: false, replace, remove_bytes: 0, readonly: false }
}

async fn update(
    s: &Session,
    root: &Path,
    remove: &[&str],
    files: &[(&str, &str)],
) -> Result<Reply, ChannelError> {
    let list: Vec<u8> = remove.iter().flat_map(|p| [p.as_bytes(), &[0]].concat()).collect();
    let spec = CopyIn { update: true, remove_bytes: list.len() as u64, ..anew(root, false) };
    copy(s, spec, &[list, tar(files)].concat()).await
}

async fn compare(s: &Session, root: &Path, paths: &[&str]) -> (Compared, Vec<(Kind, String)>) {
    let spec = CompareSpec {
        root: bytes(root),
        branch: Some("main".into()),
        needed: vec!["nothing".into()],
        indexes: vec![".git/index".into()],
    };
    let (sender, receiver) = s.open(&Request::Compare(spec)).await.unwrap();
    let mut writer = sender.writer();
    for path in paths {
        writer.write_all(&[path.as_bytes(), &[0]].concat()).await.unwrap();
    }
    writer.shutdown().await.unwrap();
    let mut reader = receiver.reader();
    let mut raw = Vec::new();
    reader.read_to_end(&mut raw).await.unwrap();
    let mut touched = Vec::new();
    let mut rest = &raw[..];
    while let Some((fixed, tail)) = rest.split_first_chunk::<FIXED>() {
        let (kind, _, len) = Touched::decode(fixed).unwrap();
        touched.push((kind, String::from_utf8(tail[..len].to_vec()).unwrap()));
        rest = &tail[len..];
    }
    touched.sort_by(|a, b| a.1.cmp(&b.1));
    match reader.reply().await.unwrap() {
        Reply::Compared(compared) => (compared, touched),
        other => unreachable!("{other:?}"),
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_new_copy_appears_whole_or_not_at_all_and_replaces_nothing_but_a_copy() {
    let s = fixture::session().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("above/repo");
    // When the archive is cut off in a file, nothing is there.
    let whole = tar(&REPO);
    let cut = copy(&s, anew(&root, false), &whole[..whole.len() - 1700]).await;
    assert!(matches!(cut, Err(ChannelError::Guest { code: ErrorCode::GuestFailed, .. })), "{cut:?}");
    assert_eq!(names(&dir.path().join("above")), Vec::<String>::new());
    // When it is whole, all of it is.
    copy(&s, anew(&root, false), &whole).await.unwrap();
    assert_eq!(names(&dir.path().join("above")), ["repo"]);
    assert_eq!(fs::read_to_string(root.join("d/c")).unwrap(), "three");
    // A second one is refused, unless it may replace a copy, of which nothing stays.
    fs::write(root.join("mine"), "x").unwrap();
    let refused = copy(&s, anew(&root, false), &whole).await;
    assert!(
        matches!(refused, Err(ChannelError::Guest { code: ErrorCode::AlreadyExists, .. })),
        "{refused:?}"
    );
    copy(&s, anew(&root, true), &whole).await.unwrap();
    assert!(!root.join("mine").exists());
    assert_eq!(names(&dir.path().join("above")), ["repo"]);
    // What is no copy is never replaced, and never brought up to date.
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("precious"), "x").unwrap();
    assert!(copy(&s, anew(&other, true), &whole).await.is_err());
    assert!(update(&s, &other, &["precious"], &[]).await.is_err());
    assert_eq!(names(&other), ["precious"]);
    assert_eq!(compare(&s, &other, &[]).await.0.place, Place::Other);
    assert_eq!(compare(&s, &dir.path().join("none"), &[]).await.0.place, Place::Empty);
}

#[tokio::test]
async fn an_update_removes_and_writes_and_knows_what_the_guest_touched() {
    let s = fixture::session().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repo");
    copy(&s, anew(&root, false), &tar(&REPO)).await.unwrap();
    let all = ["a", "d/b", "d/c", "new"];
    let (compared, touched) = compare(&s, &root, &all).await;
    assert_eq!((compared.place, compared.missing, &touched[..]), (Place::Copy, 1, &[][..]));
    assert_eq!(compared.head.unwrap().as_bytes(), b"ref: refs/heads/main\n");

    // Given a guest that edits, deletes, adds and commits.
    fs::write(root.join("a"), "edited").unwrap();
    fs::remove_file(root.join("d/b")).unwrap();
    fs::create_dir(root.join("new")).unwrap();
    fs::write(root.join("new/file"), "x").unwrap();
    fs::create_dir_all(root.join(".git/refs/heads")).unwrap();
    fs::write(root.join(".git/refs/heads/main"), "0123\n").unwrap();
    let (compared, touched) = compare(&s, &root, &all).await;
    let expected = [(Kind::File, "a"), (Kind::Gone, "d/b"), (Kind::Other, "new")];
    assert_eq!(touched, expected.map(|(kind, path)| (kind, path.to_owned())));
    assert_eq!(compared.branch_at.as_deref(), Some("0123"));

    // When it is brought up to date, a directory that became empty goes and what is in the way too.
    update(&s, &root, &["d/c", "d/b", "new", "absent/x"], &[("a", "host"), ("new", "file now")])
        .await
        .unwrap();
    assert_eq!(names(&root), [".git", "a", "new"]);
    assert_eq!(fs::read_to_string(root.join("new")).unwrap(), "file now");
    assert_eq!(compare(&s, &root, &all).await.1, [], "and all of it is known");

    // When an update is cut off, nothing has happened, and nothing is left of it.
    let list = tar(&[("a", "again"), ("big", &"x".repeat(4000))]);
    let cut = copy(&s, CopyIn { update: true, ..anew(&root, false) }, &list[..2000]).await;
    assert!(cut.is_err());
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "host");
    assert_eq!(compare(&s, &root, &["a"]).await.1, []);
    assert!(
        !names(&root.join(".git")).iter().any(|name| name == "banger-new"),
        "{:?}",
        names(&root.join(".git"))
    );
    // And a file where a directory goes is in the way, unless it goes itself.
    assert_eq!(compare(&s, &root, &["new/x"]).await.1, [(Kind::Other, "new".to_owned())]);
    assert_eq!(compare(&s, &root, &["new/x", "new"]).await.1, []);
}

#[tokio::test]
async fn a_read_only_copy_is_refused_outside_a_guest() {
    let s = fixture::session().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repo");
    let refused = copy(&s, CopyIn { readonly: true, ..anew(&root, false) }, &tar(&REPO)).await;
    assert!(matches!(refused, Err(ChannelError::Guest { code: ErrorCode::Unsupported, .. })), "{refused:?}");
    assert!(!root.exists());
}

#[tokio::test]
async fn an_update_that_was_being_put_in_place_is_ended_by_whoever_comes_next() {
    let s = fixture::session().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repo");
    let with = |more: &[(&'static str, &'static str)]| [&REPO[..], more].concat();
    copy(&s, anew(&root, false), &tar(&with(&[(".git/banger-copy", "first")]))).await.unwrap();
    let waiting = root.join(".git/banger-new");
    let wait = |files: &[(&str, &str)]| {
        for (path, text) in files {
            let path = waiting.join("tree").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    };
    // Given one of which not everything had arrived: it is nobody's business.
    wait(&[("a", "half")]);
    let (compared, _) = compare(&s, &root, &[]).await;
    assert_eq!(
        (compared.copy, fs::read_to_string(root.join("a")).unwrap()),
        (Some("first".into()), "one".into())
    );
    // And one of which everything had: it is put in place when somebody looks.
    fs::remove_file(waiting.join("tree/a")).unwrap();
    wait(&[("a/b", "new"), (".git/banger-copy", "second")]);
    fs::write(waiting.join("list"), "a\0d/b\0").unwrap();
    let (compared, touched) = compare(&s, &root, &["a/b", "d/b", "d/c"]).await;
    assert_eq!((compared.copy, touched), (Some("second".into()), vec![]));
    assert_eq!(
        (names(&root), names(&root.join("d"))),
        (vec![".git".into(), "a".into(), "d".into()], vec!["c".into()])
    );
    assert!(!waiting.exists());
    // And one that had removed and begun to put: what is in place of what was removed stays.
    wait(&[("d/c", "new"), (".git/banger-copy", "third")]);
    fs::write(waiting.join("removed"), "a\0").unwrap();
    assert_eq!(compare(&s, &root, &["d/c"]).await.0.copy, Some("third".into()));
    assert_eq!(fs::read_to_string(root.join("a/b")).unwrap(), "new");
    assert_eq!(fs::read_to_string(root.join("d/c")).unwrap(), "new");
    assert!(!waiting.exists());
    // A link in its place leads nowhere.
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("list"), "d/c\0").unwrap();
    std::os::unix::fs::symlink(&outside, &waiting).unwrap();
    compare(&s, &root, &[]).await;
    assert!(root.join("d/c").exists() && outside.join("list").exists());
}

#[tokio::test]
async fn what_is_staged_is_told_as_git_lists_it() {
    let s = fixture::session().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repo");
    copy(&s, anew(&root, false), &tar(&REPO)).await.unwrap();
    assert_eq!(compare(&s, &root, &[]).await.0.staged, [None]);
    let script =
        "git init -q . && git add -A && git update-index --index-version 4 && git ls-files -s -z | sha256sum";
    let run = std::process::Command::new("sh").current_dir(&root).args(["-c", script]).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let expected = String::from_utf8_lossy(&run.stdout)[..64].to_owned();
    assert_eq!(compare(&s, &root, &[]).await.0.staged, [Some(expected)]);
}
