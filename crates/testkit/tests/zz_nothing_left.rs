//! The last of all (cargo runs the files of `tests/` in the order of their names, and `make` this one alone when
//! the others are done): whatever any
//! scenario of this run has left on this machine, whose process is gone, is found here. What a run
//! before it left, that was cut off in its middle, is said and not held against this one.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use banger_testkit::leaks::{Kind, Scope, list};
use banger_testkit::test_run;

#[test]
fn no_scenario_has_left_anything() {
    let mut wrong = Vec::new();
    for entry in fs::read_dir("/tmp").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("bt-") {
            continue;
        }
        let owner = fs::read_to_string(entry.path().join("owner")).unwrap_or_default();
        if owner.is_empty() || Path::new(&format!("/proc/{owner}")).exists() {
            continue;
        }
        let what = format!("the sandbox {} of process {owner}, which is gone", entry.path().display());
        if fs::read_to_string(entry.path().join("run-of")).unwrap_or_default() == test_run() {
            wrong.push(what);
        } else {
            println!("not of this run: {what}");
        }
    }
    let scope = Scope { markers: vec!["/tmp/bt-".to_owned()], dirs: Vec::new() };
    let now = scope.snapshot();
    let orphan = |detail: &str| {
        // Its sandbox is gone: nobody will ever end it.
        detail
            .split(['/', ' ', ',', '='])
            .filter(|w| w.starts_with("bt-"))
            .any(|w| !Path::new("/tmp").join(w).exists())
    };
    for kind in [Kind::Process, Kind::Socket, Kind::Mount, Kind::Loop] {
        let mut left = now.of(kind);
        left.retain(|t| orphan(&t.key) || orphan(&t.detail));
        if !left.is_empty() {
            wrong.push(list(&left));
        }
    }
    for (dir, prefix) in [("/run/netns", "bth"), ("/run/netns", "bto"), ("/etc/netns", "bth")] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(owner) = name.strip_prefix(prefix).and_then(|n| n.split('-').next()) else { continue };
            let gone = !Path::new(&format!("/proc/{owner}")).exists();
            if gone && of_this_run(&entry) {
                wrong.push(format!("the namespace {}", entry.path().display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether something was made since this run began, which is what `make` names a run after, in
/// nanoseconds since 1970.
fn of_this_run(entry: &fs::DirEntry) -> bool {
    let began = Duration::from_nanos(test_run().parse().unwrap_or(0));
    entry.metadata().and_then(|m| m.modified()).is_ok_and(|made| made >= SystemTime::UNIX_EPOCH + began)
}
