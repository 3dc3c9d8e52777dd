//! The last of all (cargo runs the files of `tests/` in the order of their names): whatever any
//! scenario of any run has left on this machine, whose process is gone, is found here.

use std::fs;
use std::path::Path;

use banger_testkit::leaks::{Kind, Scope, list};

#[test]
fn no_scenario_has_left_anything() {
    let mut wrong = Vec::new();
    for entry in fs::read_dir("/tmp").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("bt-") {
            continue;
        }
        let owner = fs::read_to_string(entry.path().join("owner")).unwrap_or_default();
        if !owner.is_empty() && !Path::new(&format!("/proc/{owner}")).exists() {
            wrong.push(format!("the sandbox {} of process {owner}, which is gone", entry.path().display()));
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
            let Some(owner) = name.strip_prefix(prefix) else { continue };
            if !Path::new(&format!("/proc/{owner}")).exists() {
                wrong.push(format!("the namespace {}", entry.path().display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
