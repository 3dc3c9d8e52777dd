//! The README's tour, line by line, as a newcomer types it: its console blocks are the script, and what they show below a
//! command is compared with what the command prints.

#![expect(clippy::panic, reason = "a helper of a test fails it by panicking")]

use std::fs;
use std::time::Duration;

use banger_testkit::repo::Repo;
use banger_testkit::terminal::Terminal;
use banger_testkit::{Run, Sandbox, bare, bin_dir, workspace_dir};

/// The part of the README that is executed.
const FROM: &str = "## Five minutes";
const TO: &str = "## How fast";

/// A command, and the lines that it is said to print; none are compared when none are shown.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    command: String,
    shown: Vec<String>,
}

fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut console = false;
    for line in text.lines() {
        match (console, line.strip_prefix("$ ")) {
            (_, _) if line.starts_with("```") => console = line == "```console",
            (true, Some(command)) => {
                let command = command.split("  #").next().unwrap_or_default().trim_end().to_owned();
                steps.push(Step { command, shown: Vec::new() });
            }
            (true, None) => {
                let Some(step) = steps.last_mut() else { panic!("output before any command: {line}") };
                step.shown.push(line.to_owned());
            }
            (false, _) => {}
        }
    }
    steps
}

/// A newcomer's shell, in the repository.
fn shell(sandbox: &Sandbox, repo: &Repo, command: &str) -> Run {
    let path = format!("{}:{}", bin_dir().display(), std::env::var("PATH").unwrap_or_default());
    let run = sandbox.program("bash").args(["-o", "pipefail", "-c", command]).env("PATH", path);
    run.dir(repo.dir()).within(Duration::from_secs(600))
}

/// Commands that take a terminal: what is typed once the text is shown.
fn typed(command: &str) -> Option<(&'static str, &'static [u8])> {
    if command.starts_with("banger shell ") {
        Some(("repo# ", b"\x04"))
    } else if command.contains(" -t ") && command.ends_with(" top") {
        Some(("load average", b"q"))
    } else {
        None
    }
}

#[test]
fn the_tour_works_as_it_is_written() {
    let readme = fs::read_to_string(workspace_dir().join("README.md")).unwrap_or_default();
    let tour = readme.split(FROM).nth(1).and_then(|rest| rest.split(TO).next()).unwrap_or_default();
    let steps = steps(tour);
    assert!(steps.len() > 20, "the tour is gone: {steps:?}");
    let sandbox = Sandbox::debian();
    let repo = Repo::make(&sandbox.work("project"));
    // What the tour says that its reader has: an archive of another distribution.
    let alpine = sandbox.work("alpine");
    assert!(bare::lay_out(&alpine), "the archive needs busybox-static: run scripts/setup");
    fs::create_dir_all(alpine.join("etc")).unwrap_or_default();
    fs::write(alpine.join("etc/os-release"), "ID=alpine\n").unwrap_or_default();
    let pack = ["-C", &alpine.to_string_lossy(), "-czf"].map(str::to_owned);
    Run::new("tar").args(pack).arg(repo.dir().join("alpine-rootfs.tar.gz")).arg(".").go().ok().done();

    for Step { command, shown } in steps {
        println!("$ {command}");
        let run = shell(&sandbox, &repo, &command);
        if let Some((text, keys)) = typed(&command) {
            let mut terminal = Terminal::run(run, 24, 80);
            terminal.sees(text);
            terminal.types(keys);
            assert_eq!(terminal.status(), 0, "{command}\n{}", terminal.screen());
            continue;
        }
        let out = run.go().ok();
        if !shown.is_empty() {
            assert_eq!(out.text().lines().collect::<Vec<_>>(), shown, "{command}: {out}");
        }
    }
    sandbox.no_vm_is_left();
}

#[test]
fn commands_and_what_they_show_are_told_apart() {
    let text =
        "a\n```console\n$ one   # why\nout\n$ two; echo $?\n```\n$ not this\n```rust\n$ nor this\n```\n";
    let step = |command: &str, shown: &[&str]| Step {
        command: command.to_owned(),
        shown: shown.iter().map(|line| (*line).to_owned()).collect(),
    };
    assert_eq!(steps(text), [step("one", &["out"]), step("two; echo $?", &[])]);
}
