//! What may be asked for, and how it is refused.

use std::io::Write;
use std::path::Path;

use crate::support::{commit, git, prepare, put, repository, request, status};
use banger_model::ErrorCode;
use banger_protocol::api::PrepareRequest;
use banger_workspace::Cancel;
use banger_workspace::capture::{Capture, Options, plan};
use banger_workspace::export::Export;

fn code(request: &PrepareRequest) -> ErrorCode {
    let scratch = tempfile::tempdir().unwrap();
    let error: banger_model::Error =
        Capture::open(request, scratch.path(), &Options::default()).unwrap_err().into();
    let planned: banger_model::Error = plan(request, &Cancel::never()).unwrap_err().into();
    assert_eq!(planned.code, error.code);
    error.code
}

#[test]
fn what_cannot_be_copied_is_refused_with_its_code() {
    let repo = repository();
    let plain = tempfile::tempdir().unwrap();
    let bare = tempfile::tempdir().unwrap();
    git(bare.path(), &["init", "-q", "--bare"]);
    assert_eq!(code(&request(Path::new("/no/such/place"))), ErrorCode::NotFound);
    assert_eq!(code(&request(plain.path())), ErrorCode::InvalidArgument);
    assert_eq!(code(&request(bare.path())), ErrorCode::InvalidArgument);
    assert_eq!(code(&request(&repo.path().join(".git/refs"))), ErrorCode::InvalidArgument);
    let from = |branch: Option<&str>, from: Option<&str>| PrepareRequest {
        branch: branch.map(str::to_owned),
        from: from.map(str::to_owned),
        ..request(repo.path())
    };
    assert_eq!(code(&from(None, Some("HEAD"))), ErrorCode::InvalidArgument);
    assert_eq!(code(&from(Some("-x"), None)), ErrorCode::InvalidArgument);
    assert_eq!(code(&from(Some("a..b"), None)), ErrorCode::InvalidArgument);
    assert_eq!(code(&from(Some("@{-1}"), None)), ErrorCode::InvalidArgument);
    assert_eq!(code(&from(Some("b"), Some("nowhere"))), ErrorCode::NotFound);
    assert_eq!(code(&from(Some("b"), Some("--all"))), ErrorCode::NotFound);
    let scratch = tempfile::tempdir().unwrap();
    let gone = Export::new(repo.path(), "nowhere", scratch.path()).unwrap_err();
    assert_eq!(banger_model::Error::from(gone).code, ErrorCode::NotFound);
}

#[test]
fn a_submodule_is_refused_by_its_path_and_works_alone() {
    let (repo, inner) = (repository(), repository());
    git(repo.path(), &["submodule", "add", "-q", inner.path().to_str().unwrap(), "sub"]);
    let scratch = tempfile::tempdir().unwrap();
    let error: banger_model::Error =
        Capture::open(&request(repo.path()), scratch.path(), &Options::default()).unwrap_err().into();
    assert_eq!(error.code, ErrorCode::Unsupported);
    assert!(error.message.contains("'sub'") && error.hint.is_some(), "{error}");
    let guest = prepare(&request(&repo.path().join("sub"))).unwrap();
    assert_eq!(status(guest.path()), "\n");
}

#[test]
fn any_path_inside_means_the_whole_repository() {
    let repo = repository();
    let top = repo.path().canonicalize().unwrap();
    for path in ["d/e", "d/e/c"] {
        let plan = plan(&request(&repo.path().join(path)), &Cancel::never()).unwrap();
        assert_eq!(Path::new(plan.source_path.as_os_str()), top);
        assert_eq!((plan.files.len(), plan.depth, plan.skipped_untracked), (5, 1, 0));
    }
}

#[test]
fn a_new_branch_takes_the_work_along_only_from_head() {
    // Given two commits, and work that is not committed.
    let repo = repository();
    git(repo.path(), &["tag", "-a", "-m", "old", "old"]);
    put(repo.path(), ".gitattributes", "*.txt eol=crlf\n");
    put(repo.path(), "t.txt", "a\r\n");
    commit(repo.path(), "second");
    put(repo.path(), "a", "dirty\n");
    put(repo.path(), "u", "");
    let branch = |from: Option<&str>| {
        let asked = PrepareRequest {
            branch: Some("feature/new".into()),
            from: from.map(str::to_owned),
            include_untracked: true,
            ..request(repo.path())
        };
        let guest = prepare(&asked).unwrap();
        assert_eq!(git(guest.path(), &["symbolic-ref", "HEAD"]), b"refs/heads/feature/new\n");
        guest
    };
    // When the branch begins at HEAD, by any name, then the work is there.
    for from in [None, Some("HEAD"), Some("main")] {
        let guest = branch(from);
        assert!(guest.captured.overlay);
        assert_eq!(status(guest.path()), status(repo.path()));
    }
    // When it begins elsewhere, then that commit is there, clean, and is the base.
    let guest = branch(Some("old"));
    assert!(!guest.captured.overlay && !guest.path().join("t.txt").exists());
    assert_eq!(status(guest.path()), "\n");
    assert_eq!(std::fs::read(guest.path().join("a")).unwrap(), b"one\n");
    assert_eq!(git(guest.path(), &["rev-parse", "HEAD"]), git(repo.path(), &["rev-parse", "old^{commit}"]));
    // And what a checkout does to line ends is done.
    git(repo.path(), &["commit", "-q", "--allow-empty", "-m", "third"]);
    let guest = branch(Some("HEAD~1"));
    assert_eq!(std::fs::read(guest.path().join("t.txt")).unwrap(), b"a\r\n");
    assert_eq!(status(guest.path()), "\n");
}

#[test]
fn identity_and_origin_go_along_without_secrets_and_programs() {
    let repo = repository();
    for (name, value) in [
        ("user.name", "A \"B\" \\ C"),
        ("user.email", "a@example.org"),
        ("remote.origin.url", "https://me:secret@example.org/x.git"),
        ("core.pager", "evil"),
        ("core.sshCommand", "evil"),
        ("credential.helper", "evil"),
        ("filter.x.clean", "evil"),
        ("http.extraHeader", "Authorization: secret"),
    ] {
        git(repo.path(), &["config", name, value]);
    }
    put(repo.path(), ".git/hooks/post-checkout", "evil");
    let guest = prepare(&request(repo.path())).unwrap();
    let config = std::fs::read_to_string(guest.path().join(".git/config")).unwrap();
    assert!(!config.contains("secret") && !config.contains("evil"), "{config}");
    assert!(!guest.path().join(".git/hooks").exists());
    let get = |name| String::from_utf8(git(guest.path(), &["config", "--local", name])).unwrap();
    assert_eq!(get("user.name"), "A \"B\" \\ C\n");
    assert_eq!(get("remote.origin.url"), "https://example.org/x.git\n");
}

#[test]
fn history_is_bounded_and_says_how_deep() {
    let repo = repository();
    for n in 0..14 {
        put(repo.path(), "a", format!("{n}\n"));
        commit(repo.path(), "n");
    }
    let guest = prepare(&request(repo.path())).unwrap();
    assert_eq!(guest.captured.plan.depth, 10);
    assert_eq!(git(guest.path(), &["rev-list", "--count", "HEAD"]), b"10\n");
    assert_eq!(git(guest.path(), &["rev-parse", "--is-shallow-repository"]), b"true\n");
}

/// A writer that changes a file once some bytes have passed.
struct Meddler<'a> {
    passed: usize,
    file: &'a Path,
}

impl Write for Meddler<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.passed += buf.len();
        if self.passed > 1 << 20 {
            let mut file = std::fs::OpenOptions::new().append(true).open(self.file)?;
            file.write_all(b"more")?;
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_changes_or_goes_away_is_an_error_by_name() {
    let repo = repository();
    put(repo.path(), "big", vec![7; 3 << 20]);
    commit(repo.path(), "big");
    let open = |cancel: Cancel| {
        let scratch = tempfile::tempdir().unwrap();
        let options = Options { cancel, ..Options::default() };
        (Capture::open(&request(repo.path()), scratch.path(), &options), scratch)
    };
    let (capture, _scratch) = open(Cancel::never());
    let meddler = Meddler { passed: 0, file: &repo.path().join("big") };
    let error: banger_model::Error = capture.unwrap().write_tar(meddler).unwrap_err().into();
    assert_eq!((error.code, error.message.contains("'big'")), (ErrorCode::Busy, true), "{error}");

    // Given one that goes away between the look and the sending.
    let (capture, _scratch) = open(Cancel::never());
    std::fs::remove_file(repo.path().join("d/b")).unwrap();
    let error: banger_model::Error = capture.unwrap().write_tar(Vec::new()).unwrap_err().into();
    assert!(error.message.contains("'d/b'"), "{error}");

    // And a caller that no longer wants it, at once or later.
    let (capture, _scratch) = open(Cancel::new(|| true));
    assert_eq!(banger_model::Error::from(capture.unwrap_err()).code, ErrorCode::Cancelled);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = stop.clone();
    let (capture, _scratch) = open(Cancel::new(move || asked.load(std::sync::atomic::Ordering::Relaxed)));
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let error: banger_model::Error = capture.unwrap().write_tar(Vec::new()).unwrap_err().into();
    assert_eq!(error.code, ErrorCode::Cancelled);
}
