//! One sandbox with at most one VM, on which cells are run one after another: each begins with the
//! state that its operation needs, which the last one often has left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use banger_testkit::repo::Repo;
use banger_testkit::{Output, Run, Sandbox, Vm, bare, truth, wait};

use crate::{Cell, Found};

/// The VM of a bench.
const NAME: &str = "m";

/// What is forked from it.
const CHILD: &str = "child";
/// Runs once, and a template is made after it.
const ONCE: &str = "once";
/// A moment that a restore goes back to.
const KEPT_SNAPSHOT: &str = "kept";

/// What was saved of the VM, for others to go on from.
const SAVED: &str = "saved";

/// Made with all that a start has a step for.
const CREATE: &[&str] =
    &["vm", "create", "--name", NAME, "--image", "bare", "--vcpu", "1", "--work-disk", "64M"];

/// The same, from what was saved of it.
const RESTORE: &[&str] = &["vm", "create", "--name", NAME, "--template", SAVED];

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
    turn: usize,
    /// What was written in the VM and must still be there, with the id of the VM it is in.
    kept: Option<(String, &'static [&'static str])>,
}

/// One on the work disk, which all but a delete leaves alone, one on the system disk.
const KEPT: &[&str] = &["/root/kept", "/kept"];

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
        // Also a daemon that the next command starts after a kill must find these.
        let sandbox = sandbox.with_tools(&tools);
        // In force only where a cell lets VMs go on from templates by themselves.
        sandbox.configure("[warm]\nspares = 1\n");
        Self { sandbox, repo, turn: number, kept: None }
    }

    fn banger(&self, words: &[&str]) -> Run {
        self.sandbox.banger(words).within(Duration::from_secs(120))
    }

    fn vm(&self) -> Vm<'_> {
        self.sandbox.existing(NAME)
    }

    /// The VM's id and state, or `absent`.
    fn look(&self) -> (String, String) {
        let shown = self.banger(&["vm", "show", NAME, "--json"]).go();
        if shown.code() != 0 {
            return (String::new(), "absent".to_owned());
        }
        let shown = shown.json();
        let text = |key: &str| shown[key].as_str().unwrap_or_default().to_owned();
        (text("id"), text("state"))
    }

    fn state(&self) -> String {
        self.look().1
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
        self.prepare(cell, &mut wrong);
        if !wrong.is_empty() {
            return Found { reached: false, wrong };
        }
        let before = self.log();
        let out = self.under_fault(cell);
        let after = self.log();
        // A daemon that starts on a long log begins a new one.
        let since = after.get(before.len()..).unwrap_or(&after);
        let reached = since.contains(match cell.action {
            "kill-vmm" => "a machine monitor was killed, as asked for",
            _ => "a fault that was asked for",
        });
        if reached && cell.action == "fail" && out.code() == 0 && !is_told_as_a_notice(cell) {
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
    fn prepare(&self, cell: &Cell, wrong: &mut Vec<String>) {
        let operation = cell.operation.as_str();
        if matches!(operation, "spare" | "create_restored" | "create_spare") {
            return self.prepare_saved(operation, wrong);
        }
        let state = self.state();
        match operation {
            "create" if state != "absent" => self.must(&["vm", "delete", "-f", NAME], wrong),
            "create" => {}
            _ if operation.starts_with("image") => {}
            "template" => self.must(&["vm", "template", "prune"], wrong),
            "start" | "set" | "rebuild" => {
                if state == "absent" {
                    self.must(&[CREATE, &["--no-start"]].concat(), wrong);
                } else if state == "running" {
                    // In good order, so that the disk's latest content is there: see `kept`.
                    self.must(&["vm", "stop", NAME], wrong);
                }
            }
            _ if state == "absent" => self.make(wrong),
            "resume" if state == "paused" => {}
            _ if state == "paused" => self.must(&["vm", "resume", NAME], wrong),
            _ if state != "running" => self.must(&["vm", "start", NAME], wrong),
            _ => {}
        }
        match operation {
            "export" | "apply" => {
                let (repo, guest) = (self.repo.dir().to_string_lossy().into_owned(), self.guest_path());
                self.must(&["vm", "workspace", "prepare", NAME, &repo, "--guest-path", &guest], wrong);
                let change = format!("echo {0} > changed-{0}; sync", self.turn);
                self.must(&["vm", "exec", NAME, "--", "sh", "-c", &change], wrong);
                if cell.step == "boot" {
                    self.must(&["vm", "stop", NAME], wrong);
                }
            }
            "resume" if state != "paused" => self.must(&["vm", "pause", NAME], wrong),
            "snapshot_delete" => {
                self.must(&["vm", "snapshot", "create", NAME, "doomed", "--disk-only"], wrong);
            }
            "snapshot_restore" if !self.snapshots().iter().any(|name| name == KEPT_SNAPSHOT) => {
                let id = self.look().0;
                let write: String = KEPT.iter().map(|file| format!("echo {id} > {file}; ")).collect();
                self.must(&["vm", "exec", NAME, "--", "sh", "-c", &format!("{write} sync")], wrong);
                self.must(&["vm", "snapshot", "create", NAME, KEPT_SNAPSHOT], wrong);
            }
            _ => {}
        }
    }

    /// A VM that runs, for what is not about how it came to run: from what was saved, which costs a tenth of a boot.
    fn make(&self, wrong: &mut Vec<String>) {
        if self.is_saved() {
            return self.must(RESTORE, wrong);
        }
        self.must(CREATE, wrong);
        self.must(&["vm", "template", "save", NAME, SAVED], wrong);
    }

    fn is_saved(&self) -> bool {
        self.sandbox.templates().iter().any(|template| template["name"] == SAVED)
    }

    /// A template with all that a start has a step for; and no VM, where one is to be made.
    fn prepare_saved(&self, operation: &str, wrong: &mut Vec<String>) {
        if !self.is_saved() {
            match self.state().as_str() {
                "absent" => self.must(CREATE, wrong),
                "running" => {}
                "paused" => self.must(&["vm", "resume", NAME], wrong),
                _ => self.must(&["vm", "start", NAME], wrong),
            }
            self.must(&["vm", "template", "save", NAME, SAVED], wrong);
        }
        if operation != "spare" && self.state() != "absent" {
            self.must(&["vm", "delete", "-f", NAME], wrong);
        }
    }

    /// Where this cell's copy goes in the guest.
    fn guest_path(&self) -> String {
        format!("/srv/{}", self.turn)
    }

    /// The operation, by a daemon that is armed with the cell's fault.
    fn under_fault(&self, cell: &Cell) -> Output {
        self.banger(&["daemon", "stop"]).go().ok().done();
        let repo = self.repo.dir().to_string_lossy().into_owned();
        // A path of its own for each: what a prepare that died left in the guest is in nobody's way.
        let (guest, image) = (self.guest_path(), format!("i{}", self.turn));
        let disk = format!("{}M", 8 * 1024 + self.turn);
        let moment = format!("s{}", self.turn);
        let words: Vec<&str> = match cell.operation.as_str() {
            "create" => CREATE.to_vec(),
            "set" => vec!["vm", "set", NAME, "--disk-size", &disk],
            "rebuild" => vec!["vm", "rebuild", NAME],
            "start" => vec!["vm", "start", NAME],
            "stop" => vec!["vm", "stop", NAME],
            "kill" => vec!["vm", "kill", NAME],
            "restart" => vec!["vm", "restart", NAME],
            "delete" => vec!["vm", "delete", "-f", NAME],
            "pause" => vec!["vm", "pause", NAME],
            "resume" => vec!["vm", "resume", NAME],
            "fork" => vec!["vm", "fork", NAME, "--name", CHILD],
            "snapshot_create" => vec!["vm", "snapshot", "create", NAME, &moment],
            "snapshot_restore" => vec!["vm", "snapshot", "restore", NAME, KEPT_SNAPSHOT],
            "snapshot_delete" => vec!["vm", "snapshot", "delete", NAME, "doomed"],
            "template" => {
                let mut words = vec!["vm", "run", "--rm", "--name", ONCE, "--image", "bare", "--vcpu", "1"];
                words.extend(["--network", "none", "--", "true"]);
                words
            }
            "template_save" => vec!["vm", "template", "save", NAME, &moment],
            "create_restored" | "create_spare" => RESTORE.to_vec(),
            "spare" => vec!["vm", "list"],
            "prepare" => vec!["vm", "workspace", "prepare", NAME, &repo, "--guest-path", &guest],
            "export" => vec!["vm", "workspace", "export", NAME],
            "apply" => vec!["vm", "workspace", "apply", NAME],
            "image_build" => vec!["image", "build", "debian", "--minimal", "--name", &image],
            other => panic!("there is no cell for the operation '{other}' yet: say here how it is asked for"),
        };
        let before = self.log().len();
        let background = matches!(cell.operation.as_str(), "template" | "spare");
        let armed = |words: &[&str]| {
            let run = self.banger(words).env("BANGER_FAULT", cell.fault());
            if background || cell.operation == "create_spare" { run.env("BANGER_WARM", "on") } else { run }
        };
        if cell.operation == "create_spare" {
            armed(&["daemon", "start"]).go().ok().done();
            self.sandbox.spares_wait(1);
        }
        let out = armed(&words).go();
        if !background {
            return out;
        }
        // It is made in the background, and this is over when the fault has struck and it was unwound.
        wait::must("it is made or not", Duration::from_secs(120), || {
            let struck = self.log().get(before..).unwrap_or_default().contains("asked for");
            struck && self.banger(&["operation", "list", "--json"]).go().text().trim() == "[]"
        });
        out
    }

    fn log(&self) -> String {
        fs::read_to_string(self.sandbox.state().join("bangerd.log")).unwrap_or_default()
    }

    /// Usable, or can be deleted: both are tried, in turns.
    fn use_it(&mut self, cell: &Cell, wrong: &mut Vec<String>) {
        if cell.operation.starts_with("image") {
            let image = format!("i{}", self.turn);
            let built = self.banger(&["image", "list", "-q"]).go().ok().text().lines().any(|l| l == image);
            if !built {
                self.must(&["image", "build", "debian", "--minimal", "--name", &image], wrong);
            }
            self.must(&["image", "delete", &image], wrong);
            return;
        }
        if cell.operation.starts_with("template") {
            self.must(&["vm", "template", "prune"], wrong);
            for template in self.sandbox.templates() {
                let id = template["id"].as_str().unwrap();
                if template["name"] != SAVED {
                    self.must(&["vm", "template", "delete", id], wrong);
                }
            }
            // Who ran it was told that the daemon had gone, and that it is still there.
            if self.sandbox.vm_names().iter().any(|name| name == ONCE) {
                self.must(&["vm", "delete", "-f", ONCE], wrong);
            }
        }
        let (id, state) = self.look();
        if state == "absent" {
            return;
        }
        let made = cell.operation.starts_with("create") && self.turn.is_multiple_of(2);
        let delete = cell.operation == "delete" || made;
        if delete && state != "running" {
            return self.must(&["vm", "delete", "-f", NAME], wrong);
        }
        if cell.operation == "export" && cell.step == "boot" && state != "stopped" {
            wrong.push(format!("it was off before it was booted for an export, and is {state}"));
        }
        // Off or not, what was done in it comes back, whole and once.
        if cell.operation == "apply" && cell.action != "kill-vmm" {
            self.must(&["vm", "workspace", "apply", NAME], wrong);
            let changed = fs::read_to_string(self.repo.dir().join(format!("changed-{}", self.turn)))
                .unwrap_or_default();
            if changed.trim() != self.turn.to_string() {
                wrong.push(format!("the guest's change did not arrive: {changed:?}"));
            }
        }
        match state.as_str() {
            "running" => {}
            "paused" => self.must(&["vm", "resume", NAME], wrong),
            _ => self.must(&["vm", "start", NAME], wrong),
        }
        self.use_moments(cell, wrong);
        let kept: &[&str] = match &self.kept {
            Some((of, kept)) if *of == id && cell.operation == "rebuild" => &kept[..1],
            Some((of, kept)) if *of == id => kept,
            _ => &[],
        };
        let check: String = kept.iter().map(|file| format!("test -s {file} || exit 3; ")).collect();
        let write: String = KEPT.iter().map(|file| format!("echo {id} > {file}; sync {file}; ")).collect();
        let out = self.vm().sh(&format!("{check}{write}echo alive")).go();
        if out.code() != 0 || out.text() != "alive" {
            wrong.push(format!("it runs and is not what it was: {out}"));
        }
        self.kept = Some((id, KEPT));
        if cell.operation == "prepare" {
            let repo = self.repo.dir().to_string_lossy().into_owned();
            let guest = format!("/srv/{}-again", self.turn);
            self.must(&["vm", "workspace", "prepare", NAME, &repo, "--guest-path", &guest], wrong);
        }
        // What the next command did is true as well.
        wrong.extend(truth::untruths(&self.sandbox));
    }

    /// A child is whole or was never there, and so is a snapshot.
    fn use_moments(&self, cell: &Cell, wrong: &mut Vec<String>) {
        if self.sandbox.vm_names().iter().any(|name| name == CHILD) {
            let child = self.sandbox.existing(CHILD);
            let state = child.show()["state"].as_str().unwrap_or_default().to_owned();
            // Its own machine may have been killed.
            if state == "running" {
                self.must(&["vm", "exec", CHILD, "--", "true"], wrong);
            }
            self.must(&["vm", "delete", "-f", CHILD], wrong);
        }
        if cell.operation.starts_with("snapshot") {
            for name in self.snapshots().iter().filter(|name| *name != KEPT_SNAPSHOT) {
                self.must(&["vm", "snapshot", "delete", NAME, name], wrong);
            }
        }
    }

    fn snapshots(&self) -> Vec<String> {
        let listed = self.banger(&["-q", "vm", "snapshot", "list", NAME]).go();
        listed.ok().text().lines().map(str::to_owned).collect()
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

/// A template that comes to nothing is in nobody's way. A rebuild is done when its record is; what it could not clear
/// away the next start does. A fork is done when its children run. A restore whose memory cannot be gone on with boots
/// from the disks.
fn is_told_as_a_notice(cell: &Cell) -> bool {
    match cell.operation.as_str() {
        "rebuild" => cell.step == "old_disk",
        "fork" => cell.step == "sweep",
        "template" | "spare" => true,
        // It boots from the template's disks instead; a spare's place takes a restore.
        "create_restored" => true,
        "create_spare" => ["boot", "running"].contains(&cell.step.as_str()),
        "snapshot_restore" => ["system_disk", "launch", "boot", "running"].contains(&cell.step.as_str()),
        _ => false,
    }
}
