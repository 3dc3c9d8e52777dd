//! One sandbox with at most one VM, on which cells are run one after another: each begins with the
//! state that its operation needs, which the last one often has left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use banger_testkit::repo::Repo;
use banger_testkit::{Output, Run, Sandbox, Vm, bare, truth};

use crate::{Cell, Found};

/// The VM of a bench.
const NAME: &str = "m";

/// Stands in for mmdebstrap: says what it says at each of its stages, and gives the smallest tree. The
/// build around it (job, guard, squashfs, record) is the real one; what is left out is a minute of apt.
const TOOL: &str = r#"#!/bin/sh
for arg; do case $arg in --version) echo "mmdebstrap 1.3.5"; exit 0;; esac; done
for said in "running apt-get update..." "downloading packages with apt..." "extracting archives..." \
    "installing essential packages..." "installing remaining packages inside the chroot..." \
    "cleaning package lists and apt cache..." "creating tarball..."; do
    echo "I: $said" >&2
done
mkdir -p after
exec tar -C TREE -c .
"#;

pub(crate) struct Bench {
    sandbox: Sandbox,
    repo: Repo,
    tools: PathBuf,
    turn: usize,
}

impl Bench {
    pub(crate) fn new(number: usize) -> Self {
        let sandbox = Sandbox::bare();
        let repo = Repo::make(&sandbox.work("repo"));
        let (tools, tree) = (sandbox.work("tools"), sandbox.work("tree"));
        assert!(bare::lay_out(&tree), "the bare image needs busybox-static: run scripts/setup");
        fs::create_dir(&tools).unwrap();
        let tool = tools.join("mmdebstrap");
        fs::write(&tool, TOOL.replace("TREE", &tree.to_string_lossy())).unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        Self { sandbox, repo, tools, turn: number }
    }

    /// A daemon's command line: the fixture's tools come before the host's.
    fn banger(&self, words: &[&str]) -> Run {
        let path = format!("{}:{}", self.tools.display(), std::env::var("PATH").unwrap_or_default());
        self.sandbox.banger(words).env("PATH", path).within(Duration::from_secs(120))
    }

    fn vm(&self) -> Vm<'_> {
        self.sandbox.existing(NAME)
    }

    fn state(&self) -> String {
        let shown = self.banger(&["vm", "show", NAME, "--json"]).go();
        if shown.code() != 0 {
            return "absent".to_owned();
        }
        shown.json()["state"].as_str().unwrap_or_default().to_owned()
    }

    fn must(&self, words: &[&str], wrong: &mut Vec<String>) {
        let out = self.banger(words).go();
        if out.code() != 0 {
            wrong.push(format!("afterwards, {out}"));
        }
    }

    /// Runs one cell to its end and says what it came to. The bench is whole again after it.
    pub(crate) fn run(&mut self, cell: &Cell) -> Found {
        self.turn += 1;
        let mut wrong = Vec::new();
        self.prepare(&cell.operation, &mut wrong);
        if !wrong.is_empty() {
            return Found { reached: false, wrong };
        }
        let asked = self.asked();
        let out = self.under_fault(cell);
        let reached = self.asked() > asked;
        if reached && cell.action == "fail" && out.code() == 0 {
            wrong.push(format!("a step that failed was not said: {out}"));
        }
        // The next command, whatever it is, finds the truth or makes it.
        wrong.extend(truth::untruths(&self.sandbox));
        self.use_it(cell, &mut wrong);
        if !wrong.is_empty() {
            // What one cell broke must not be told of the next.
            wrong.push(format!("the daemon's log:\n{}", self.sandbox.log_tail()));
            self.start_over();
        }
        Found { reached, wrong }
    }

    /// The state that an operation begins with.
    fn prepare(&self, operation: &str, wrong: &mut Vec<String>) {
        let state = self.state();
        match operation {
            "start" => {
                // A new one each time: its disk is still to be made.
                if state != "absent" {
                    self.must(&["vm", "delete", "-f", NAME], wrong);
                }
                let create = ["vm", "create", "--no-start", "--name", NAME, "--image", "bare", "--vcpu", "1"];
                self.must(&create, wrong);
            }
            "create" if state != "absent" => self.must(&["vm", "delete", "-f", NAME], wrong),
            "create" => {}
            _ if operation.starts_with("image") => {}
            _ if state == "absent" => {
                self.must(&["vm", "create", "--name", NAME, "--image", "bare", "--vcpu", "1"], wrong);
            }
            _ if state != "running" => self.must(&["vm", "start", NAME], wrong),
            _ => {}
        }
    }

    /// The operation, by a daemon that is armed with the cell's fault.
    fn under_fault(&self, cell: &Cell) -> Output {
        self.banger(&["daemon", "stop"]).go().ok().done();
        let repo = self.repo.dir().to_string_lossy().into_owned();
        // A path of its own for each: what a prepare that died left in the guest is in nobody's way.
        let (guest, image) = (format!("/srv/{}", self.turn), format!("i{}", self.turn));
        let words: Vec<&str> = match cell.operation.as_str() {
            "create" => vec!["vm", "create", "--name", NAME, "--image", "bare", "--vcpu", "1"],
            "start" => vec!["vm", "start", NAME],
            "stop" => vec!["vm", "stop", NAME],
            "kill" => vec!["vm", "kill", NAME],
            "restart" => vec!["vm", "restart", NAME],
            "delete" => vec!["vm", "delete", "-f", NAME],
            "prepare" => vec!["vm", "workspace", "prepare", NAME, &repo, "--guest-path", &guest],
            "image_build" => vec!["image", "build", "debian", "--minimal", "--name", &image],
            other => panic!("there is no cell for the operation '{other}' yet: say here how it is asked for"),
        };
        self.banger(&words).env("BANGER_FAULT", cell.to_string()).go()
    }

    /// How many faults the daemons have said to have carried out.
    fn asked(&self) -> usize {
        let log = fs::read_to_string(self.sandbox.state().join("bangerd.log")).unwrap_or_default();
        log.matches("a fault that was asked for").count()
    }

    /// Usable, or can be deleted: both are tried, in turns.
    fn use_it(&self, cell: &Cell, wrong: &mut Vec<String>) {
        if cell.operation.starts_with("image") {
            let image = format!("i{}", self.turn);
            let built = self.banger(&["image", "list", "-q"]).go().ok().text().lines().any(|l| l == image);
            if !built {
                self.must(&["image", "build", "debian", "--minimal", "--name", &image], wrong);
            }
            self.must(&["image", "delete", &image], wrong);
            return;
        }
        let state = self.state();
        if state == "absent" {
            return;
        }
        let keep = state == "running" || (cell.operation == "start" && self.turn.is_multiple_of(2));
        if cell.operation == "delete" || !keep && cell.operation == "start" {
            return self.must(&["vm", "delete", "-f", NAME], wrong);
        }
        if state != "running" {
            self.must(&["vm", "start", NAME], wrong);
        }
        let out = self.vm().exec(["echo", "alive"]).go();
        if out.code() != 0 || out.text() != "alive" {
            wrong.push(format!("it runs and cannot be used: {out}"));
        }
        if cell.operation == "prepare" {
            let repo = self.repo.dir().to_string_lossy().into_owned();
            let guest = format!("/srv/{}-again", self.turn);
            self.must(&["vm", "workspace", "prepare", NAME, &repo, "--guest-path", &guest], wrong);
        }
    }

    fn start_over(&mut self) {
        let _ = self.banger(&["vm", "delete", "-f", NAME]).go();
        if !truth::untruths(&self.sandbox).is_empty() {
            std::mem::replace(self, Self::new(self.turn)).sandbox.abandon();
        }
    }

    /// Nothing at all is left when its VM is gone.
    pub(crate) fn end(self) {
        if self.state() != "absent" {
            self.banger(&["vm", "delete", "-f", NAME]).go().ok().done();
        }
        self.sandbox.no_vm_is_left();
    }
}
