//! The house's own rules, checked on the sources: which crate may use which, and what must not be
//! written anywhere.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use banger_testkit::{Run, workspace_dir};

/// Arrows point from a crate to those below it, never up.
const FROM_TOP_TO_BOTTOM: &[&str] = &[
    "cli",
    "daemon",
    "helper",
    "agent",
    "workspace",
    "image",
    "network",
    "vmm",
    "channel",
    "store",
    "host",
    "protocol",
    "model",
];

/// Crate to the workspace crates that its shipped code uses, without the `banger-`.
fn arrows() -> BTreeMap<String, Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut run = Run::new(cargo).args(["metadata", "--no-deps", "--format-version=1", "--offline"]);
    for key in ["HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"] {
        if let Some(value) = std::env::var_os(key) {
            run = run.env(key, value);
        }
    }
    let metadata = run.dir(workspace_dir()).go().ok().json();
    let short =
        |v: &serde_json::Value| v["name"].as_str().unwrap().strip_prefix("banger-").map(str::to_owned);
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let uses = package["dependencies"].as_array().unwrap();
        let uses = uses.iter().filter(|d| d["kind"].as_str() != Some("dev")).filter_map(short).collect();
        found.insert(short(package).unwrap(), uses);
    }
    found
}

fn wrong_arrows(arrows: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let level = |name: &str| FROM_TOP_TO_BOTTOM.iter().position(|n| *n == name);
    let mut wrong = Vec::new();
    for (user, used) in arrows.iter().flat_map(|(user, all)| all.iter().map(move |used| (user, used))) {
        let fine = match (user.as_str(), level(user), level(used)) {
            (_, _, None) => false,
            ("testkit", _, _) => true,
            ("cli", _, _) => matches!(used.as_str(), "protocol" | "model"),
            (_, Some(from), Some(to)) => from < to,
            _ => false,
        };
        if !fine {
            wrong.push(format!("{user} -> {used}"));
        }
    }
    wrong
}

#[test]
fn arrows_of_use_point_down_only() {
    let arrows = arrows();
    assert!(arrows.len() >= 12, "{arrows:?}");
    assert_eq!(wrong_arrows(&arrows), Vec::<String>::new());
}

#[test]
fn an_arrow_that_points_up_or_at_the_testkit_is_seen() {
    let planted =
        |user: &str, used: &str| wrong_arrows(&BTreeMap::from([(user.to_owned(), vec![used.to_owned()])]));
    assert_eq!(planted("model", "protocol"), ["model -> protocol"]);
    assert_eq!(planted("daemon", "testkit"), ["daemon -> testkit"]);
    assert_eq!(
        planted("cli", "daemon"),
        ["cli -> daemon"],
        "the command line talks to the daemon, never links it"
    );
    assert!(planted("daemon", "model").is_empty());
}

fn tracked_files() -> Vec<PathBuf> {
    let out =
        Run::new("git").args(["-c", "safe.directory=*", "ls-files", "-z"]).dir(workspace_dir()).go().ok();
    let names = out.stdout.split(|b| *b == 0).filter(|n| !n.is_empty());
    let files: Vec<_> = names.map(|n| workspace_dir().join(String::from_utf8_lossy(n).as_ref())).collect();
    assert!(files.len() > 50, "only {} tracked files", files.len());
    files
}

#[test]
fn no_file_names_a_registry_host() {
    // Written in pieces, or this file would be the first to be found.
    let hosts = [["static.crates", "io"], ["index.crates", "io"], ["deb.debian", "org"], ["docker", "io"]];
    let hosts = hosts.map(|h| h.join("."));
    let mut found = Vec::new();
    for file in tracked_files().into_iter().filter(|f| f.file_name().is_some_and(|n| n != "Cargo.lock")) {
        let text = std::fs::read(&file).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        found.extend(
            hosts.iter().filter(|h| text.contains(h.as_str())).map(|h| format!("{}: {h}", file.display())),
        );
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn modules_say_what_they_own_and_have_names_that_say_something() {
    let mut wrong = Vec::new();
    for file in tracked_files() {
        if file.extension().is_none_or(|e| e != "rs") || !file.exists() {
            continue;
        }
        let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
        if ["util", "utils", "common", "helpers", "misc"].contains(&stem.as_str()) {
            wrong.push(format!("{}: a name for anything", file.display()));
        }
        let text = std::fs::read_to_string(&file).unwrap();
        // A part of a test program is told by its name; the program says what it is about.
        let part_of_a_test = file.ancestors().skip(2).any(|dir| dir.ends_with("tests"));
        if !text.starts_with("//!") && !part_of_a_test {
            wrong.push(format!("{}: does not begin by saying what it owns", file.display()));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn documents_point_at_files_that_are_there() {
    let mut dead = Vec::new();
    for file in tracked_files().into_iter().filter(|f| f.extension().is_some_and(|e| e == "md")) {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let here = file.parent().unwrap_or(Path::new("/"));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") && !here.join(path).exists() {
                dead.push(format!("{}: {target}", file.display()));
            }
        }
    }
    assert_eq!(dead, Vec::<String>::new());
}

/// The rows of the table in a document that begins with `head`.
fn rows(document: &str, head: &str) -> Vec<String> {
    let text = std::fs::read_to_string(workspace_dir().join("docs").join(document)).unwrap();
    let table = text.lines().skip_while(|line| !line.starts_with(head));
    table.skip(2).take_while(|line| line.starts_with('|')).map(str::to_owned).collect()
}

/// The tests that a row names in its last column; there must be such tests.
fn tests_of<'a>(row: &'a str, sources: &str) -> Vec<&'a str> {
    let tests: Vec<&str> = row.rsplit('|').nth(1).unwrap().split('`').skip(1).step_by(2).collect();
    for test in &tests {
        assert!(sources.contains(&format!("fn {test}(")), "there is no test '{test}': {row}");
    }
    tests
}

fn sources() -> String {
    banger_testkit::tree::walk(&workspace_dir().join("crates"))
        .into_iter()
        .filter(|entry| entry.path.extension().is_some_and(|e| e == "rs"))
        .map(|entry| std::fs::read_to_string(entry.path).unwrap())
        .collect()
}

#[test]
fn what_runs_in_all_places_is_a_test_that_exists() {
    let makefile = std::fs::read_to_string(workspace_dir().join("Makefile")).unwrap();
    let lists = makefile.split("_PLACES := \\\n").skip(1).map(|rest| rest.split("\n\n").next().unwrap());
    let names: Vec<(&str, &str)> = lists
        .flat_map(str::lines)
        .map(|line| line.trim_end_matches('\\').trim().split_once('/').unwrap())
        .collect();
    assert!(names.len() > 8, "the list is cut: {names:?}");
    for (file, test) in names {
        let path = workspace_dir().join("crates/testkit/tests").join(file).with_extension("rs");
        let source = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(source.contains(&format!("#[test]\nfn {test}(")), "{file} has no test '{test}'");
    }
}

#[test]
fn every_threat_that_is_said_to_be_met_has_a_test_that_exists() {
    let (rows, sources) = (rows("security.md", "| threat |"), sources());
    assert!(rows.len() > 10, "the table is gone");
    for row in rows {
        assert!(!tests_of(&row, &sources).is_empty(), "no test: {row}");
    }
}

#[test]
fn every_lesson_is_held_by_a_test_or_by_the_design() {
    let (rows, sources) = (rows("lessons.md", "| | what failed"), sources());
    assert_eq!(rows.len(), 62, "the table is cut");
    for (row, number) in rows.iter().zip(1..) {
        let columns: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(columns[1], number.to_string(), "out of order: {row}");
        let held = !tests_of(row, &sources).is_empty() || !columns[3].is_empty();
        assert!(held && !columns[2].is_empty(), "neither a test nor a reason: {row}");
    }
}

/// Words with which a program that has this name is started, or looked for to be started.
const STARTS: &[&str] = &[
    "Command::new(\"",
    "Run::new(\"",
    "Tool(\"",
    "programs::command(\"",
    "programs::find(\"",
    "said_by(\"",
    "Job::start(\"",
    "Job::start_guarded(\"",
    ".program(\"",
];

/// The programs that a source starts by name. One by its path is named by what is at the path's end.
fn started_by(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in STARTS {
        for rest in source.split(start).skip(1) {
            let name = rest.split('"').next().unwrap_or_default();
            found.push(name.rsplit('/').next().unwrap_or_default().to_owned());
        }
    }
    found
}

#[test]
fn every_program_that_is_run_is_in_the_table_of_programs() {
    let table = std::fs::read_to_string(workspace_dir().join("crates/host/programs.tsv")).unwrap();
    let named: Vec<&str> = table.lines().filter_map(|line| line.split('\t').next()).collect();
    // The guest's own, which no host needs; programs of tests that are not there, on purpose; and our own.
    let elsewhere = |name: &str| name.starts_with("no-such-tool") || matches!(name, "" | "exe" | "banger");
    let mut unknown = Vec::new();
    for file in tracked_files().into_iter().filter(|f| f.extension().is_some_and(|e| e == "rs")) {
        // This file has the words without programs behind them, and the guest is no host.
        if file.ends_with("tests/house.rs") || file.starts_with(workspace_dir().join("crates/agent/src")) {
            continue;
        }
        let started = started_by(&std::fs::read_to_string(&file).unwrap_or_default());
        let missing = started.into_iter().filter(|name| !named.contains(&name.as_str()) && !elsewhere(name));
        unknown.extend(missing.map(|name| format!("{}: {name}", file.display())));
    }
    assert_eq!(unknown, Vec::<String>::new(), "add them to crates/host/programs.tsv");
}

#[test]
fn a_program_that_is_started_is_seen() {
    let source = "let a = Command::new(\"git\").arg(\"x\"); Run::new(\"/sbin/e2fsck\"); programs::find(\"cc\")?; new(\"x\")";
    assert_eq!(started_by(source), ["git", "e2fsck", "cc"]);
}
