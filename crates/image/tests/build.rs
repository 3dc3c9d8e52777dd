//! What a Debian build refuses, and that a build that is stopped leaves nothing. Whole builds are the scenarios'.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test's helpers fail the test")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use banger_image::{BuildSpec, Context, ImageFiles};
use banger_model::{Error, ErrorCode};

fn has_tools() -> bool {
    for (tool, flag) in [("mmdebstrap", "--version"), ("sqfstar", "-version")] {
        if Command::new(tool).arg(flag).output().is_err() {
            eprintln!("skipped: {tool} is not installed");
            return false;
        }
    }
    true
}

fn build(dir: &Path, spec: &BuildSpec, cancelled: &dyn Fn() -> bool) -> Error {
    let files = ImageFiles::new(dir.join("images"), dir.join("tmp"));
    let ctx = Context { progress: &|_| {}, cancelled, cache_dir: dir.join("cache") };
    files.build(spec, &ctx).unwrap_err().into()
}

fn entries(dir: &Path) -> Vec<String> {
    let all = fs::read_dir(dir).into_iter().flatten().flatten();
    all.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Command lines of processes that work below `dir`.
fn processes(dir: &Path) -> Vec<String> {
    let wanted = dir.to_str().unwrap();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(wanted))
        .collect()
}

#[test]
fn names_are_checked_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    for (release, include) in [(Some("../x"), None), (Some("--help"), None), (None, Some("--mode=root"))] {
        let spec = BuildSpec {
            release: release.map(str::to_owned),
            include: include.map(str::to_owned).into_iter().collect(),
            minimal: true,
        };
        let error = build(dir.path(), &spec, &|| false);
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.contains(release.or(include).unwrap()) && error.hint.is_some(), "{error}");
    }
    assert!(entries(&dir.path().join("tmp")).is_empty());
}

#[test]
fn a_build_that_is_stopped_leaves_no_process_and_no_file() {
    if !has_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let stop_after = Duration::from_millis(1500);

    let error = build(dir.path(), &BuildSpec { minimal: true, ..BuildSpec::default() }, &|| {
        start.elapsed() > stop_after
    });

    // A host without subordinate ids or network fails before it can be stopped, which must leave nothing either.
    assert!(matches!(error.code, ErrorCode::Cancelled | ErrorCode::Unavailable), "{error}");
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(entries(&dir.path().join("tmp")).is_empty());
    assert!(entries(&dir.path().join("images")).is_empty());
    assert!(entries(&dir.path().join("cache/apt/bookworm")).is_empty());
    let left = processes(dir.path());
    assert!(left.is_empty(), "{left:?}");
}
