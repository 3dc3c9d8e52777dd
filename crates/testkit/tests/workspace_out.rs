//! The guest's change into the host's repository: from a VM that runs, one that is off, one that crashed and one that
//! cannot boot its own init.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use banger_testkit::repo::Repo;
use banger_testkit::{Output, Sandbox, Vm};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(180);

fn prepared<'a>(sandbox: &'a Sandbox, name: &str) -> (Repo, Vm<'a>) {
    let repo = Repo::make(&sandbox.work(name));
    let vm = sandbox.vm(name, "bare", &["--network", "none"]);
    sandbox.banger(["vm", "workspace", "prepare", name]).arg(repo.dir()).within(LONG).go().ok().done();
    (repo, vm)
}

fn apply(sandbox: &Sandbox, vm: &Vm<'_>, more: &[&str]) -> Output {
    sandbox.banger(["vm", "workspace", "apply", &vm.name]).args(more).within(LONG).go()
}

/// What happened to a path, of an apply's `--json`.
fn outcome<'a>(summary: &'a Value, path: &str) -> &'a str {
    let files = summary["files"].as_array().unwrap();
    files.iter().find(|f| f["path"] == path).map_or("absent", |f| f["outcome"].as_str().unwrap())
}

fn read(repo: &Repo, path: &str) -> String {
    fs::read_to_string(repo.dir().join(path)).unwrap()
}

fn index(repo: &Repo) -> Vec<u8> {
    fs::read(repo.dir().join(".git/index")).unwrap()
}

/// The tree of the working tree's files, as `git add -A` would have it.
fn tree_of(repo: &Repo) -> String {
    let with_index = |args: &[&str]| {
        let run =
            banger_testkit::repo::git(repo.dir()).env("GIT_INDEX_FILE", repo.dir().join(".git/of-a-test"));
        run.args(args).go().ok().text().to_owned()
    };
    with_index(&["add", "-A"]);
    with_index(&["write-tree"])
}

#[test]
fn a_change_is_applied_merged_or_put_on_a_branch_and_the_host_s_own_work_is_safe() {
    let sandbox = Sandbox::bare();
    let (repo, vm) = prepared(&sandbox, "out");
    let head = repo.git(&["rev-parse", "HEAD"]).ok().text().to_owned();
    vm.sh("set -e; printf 'one\\ntwo\\nguest\\n' >'src/a b.txt'; echo new >new.txt; rm doomed.txt; chmod 755 Makefile")
        .go()
        .ok()
        .done();
    let before = (index(&repo), repo.status());

    // A dry run changes nothing.
    let dry = apply(&sandbox, &vm, &["--dry-run", "--json"]).ok().json();
    assert_eq!((&dry["dry_run"], outcome(&dry, "new.txt")), (&true.into(), "applied"), "{dry}");
    assert_eq!((index(&repo), repo.status()), before);

    // A branch gets a commit, and the working tree stays.
    let branch = apply(&sandbox, &vm, &["--branch", "from-vm", "--json"]).ok().json();
    assert_eq!(branch["commits"].as_array().unwrap().len(), 1, "{branch}");
    assert_eq!((index(&repo), repo.status()), before);
    assert_eq!(repo.git(&["rev-parse", "from-vm^"]).ok().text(), head);
    let again = apply(&sandbox, &vm, &["--branch", "from-vm", "--json"]).ends_with(1);
    assert_eq!(again.json_error()["code"], "already_exists", "{again}");

    // What changed on the host since is refused by name, and merged if that is asked for.
    repo.write("src/a b.txt", b"host\none\ntwo\nthree\n");
    let refused = apply(&sandbox, &vm, &["--json"]).ends_with(1);
    let error = refused.json_error();
    assert_eq!(error["code"], "conflict", "{refused}");
    assert!(error["message"].as_str().unwrap().contains("src/a b.txt"), "{error}");
    assert!(!repo.dir().join("new.txt").exists(), "nothing is applied when something is refused");
    let merged = apply(&sandbox, &vm, &["--3way", "--json"]).ok().json();
    assert_eq!((outcome(&merged, "src/a b.txt"), outcome(&merged, "doomed.txt")), ("merged", "applied"));
    assert_eq!(read(&repo, "src/a b.txt"), "host\none\ntwo\nguest\n");
    assert_eq!((read(&repo, "new.txt"), repo.dir().join("doomed.txt").exists()), ("new\n".into(), false));
    assert_eq!((index(&repo), repo.git(&["rev-parse", "HEAD"]).ok().text()), (before.0.clone(), &head[..]));
    // What it replaced can be had back.
    let backup = merged["backup"].as_str().unwrap();
    assert!(backup.starts_with("refs/banger/backup/"), "{backup}");
    let kept = repo.git(&["show", &format!("{backup}:src/a b.txt")]).ok();
    assert_eq!(kept.stdout, b"host\none\ntwo\nthree\n");
    assert_eq!(repo.git(&["show", &format!("{backup}:doomed.txt")]).ok().text(), "to be deleted");
    repo.git(&["fsck", "--strict"]).ok().done();

    // Limits and wrong wishes are refused; another base is possible.
    apply(&sandbox, &vm, &["--max-bytes", "5"])
        .ends_with(1)
        .says(&["limit of 5 bytes", "--max-bytes"])
        .done();
    apply(&sandbox, &vm, &["--base", "no-such"]).ends_with(1).says(&["no-such"]).done();
    apply(&sandbox, &vm, &["--commits"]).ends_with(2).done();
    let export = sandbox.banger(["vm", "workspace", "export", "out", "--base", "HEAD~1", "--names-only"]);
    let names = export.within(LONG).go().ok();
    let is_named = String::from_utf8_lossy(&names.stdout).lines().any(|l| l == "check.sh");
    assert!(is_named, "what the base did not have is in it: {names}");
    // The guest has no git, and says so.
    apply(&sandbox, &vm, &["--branch", "b", "--commits"]).ends_with(1).says(&["no git", "hint:"]).done();
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn what_the_guest_did_comes_out_of_a_vm_that_is_off_that_crashed_or_that_cannot_boot() {
    let sandbox = Sandbox::bare();
    let (repo, vm) = prepared(&sandbox, "dead");
    let state = || vm.show()["state"].as_str().unwrap().to_owned();

    // Off in good order.
    vm.sh("echo stopped >one.txt").go().ok().done();
    vm.verb("stop", &[]).ok().done();
    let log =
        fs::read(sandbox.state().join("vms").join(vm.show()["id"].as_str().unwrap()).join("console.log"));
    let done = apply(&sandbox, &vm, &["--json"]).ok().json();
    assert_eq!((outcome(&done, "one.txt"), read(&repo, "one.txt").as_str()), ("applied", "stopped\n"));
    assert_eq!(state(), "stopped", "a rescue is not a start");
    let after =
        fs::read(sandbox.state().join("vms").join(vm.show()["id"].as_str().unwrap()).join("console.log"));
    assert_eq!(log.ok(), after.ok(), "the log of the VM's own boot stays");

    // Killed, and its kernel panicked: what was on the disk is there.
    vm.verb("start", &[]).ok().done();
    vm.sh("echo killed >two.txt; sync").go().ok().done();
    vm.verb("kill", &[]).ok().done();
    assert_eq!(outcome(&apply(&sandbox, &vm, &["--json"]).ok().json(), "two.txt"), "applied");
    vm.verb("start", &[]).ok().done();
    let panic = vm.sh("echo panicked >three.txt; sync; echo c >/proc/sysrq-trigger").within(LONG).go();
    assert_ne!(panic.code(), 0, "{panic}");
    let crashed = banger_testkit::wait::until(LONG, || (state() == "error").then_some(()));
    assert!(crashed.is_some(), "{}", vm.show());
    assert_eq!(outcome(&apply(&sandbox, &vm, &["--json"]).ok().json(), "three.txt"), "applied");
    assert_eq!(state(), "error", "what happened to it is still said");
    assert!(vm.show()["last_error"]["message"].as_str().unwrap().contains("panic"), "{}", vm.show());

    // Its own init ends at once: the VM does not boot, and its work comes out all the same.
    vm.verb("start", &[]).ok().done();
    vm.sh("echo broken >four.txt; mkdir -p /sbin; printf '#!/bin/sh\\nexit 1\\n' >/sbin/init; chmod 755 /sbin/init; sync")
        .go()
        .ok()
        .done();
    vm.verb("stop", &[]).ok().done();
    let start = vm.verb("start", &[]);
    if start.code() == 0 {
        // The agent may answer before init has ended; then the kernel's panic ends the machine.
        let crashed = banger_testkit::wait::until(LONG, || (state() == "error").then_some(()));
        assert!(crashed.is_some(), "a machine without an init runs on: {}", vm.show());
    }
    assert_eq!(state(), "error");
    assert_eq!(outcome(&apply(&sandbox, &vm, &["--json"]).ok().json(), "four.txt"), "applied");
    let patch = sandbox.banger(["vm", "workspace", "export", "dead", "--names-only"]).within(LONG).go().ok();
    assert_eq!(patch.text(), "four.txt\none.txt\nthree.txt\ntwo.txt");
    assert_eq!(read(&repo, "four.txt"), "broken\n");
    vm.delete();

    // One that has never run has nothing to give.
    sandbox.banger(["vm", "create", "--no-start", "--name", "never", "--image", "bare"]).go().ok().done();
    let never = sandbox.banger(["vm", "workspace", "export", "never"]).go().ends_with(1);
    never.says(&["never", "hint:"]).done();
    sandbox.existing("never").delete();
    sandbox.no_vm_is_left();
}

/// A guest's script that makes random edits of a repository, from the seed's throws.
fn edits(seed: u64) -> String {
    let mut dice = banger_testkit::random::Dice::new(seed);
    let paths = [
        "README.md",
        "src/a b.txt",
        "new",
        "d/e/f",
        "d/g.log",
        "Makefile",
        "link",
        "odd name",
        "src/data.bin",
        "d/k",
    ];
    let mut script = String::from(
        "set -e\nclear() { rm -rf \"$1\"; mkdir -p \"$(dirname \"$1\")\" 2>/dev/null || { rm -f \"$(dirname \"$1\")\"; mkdir -p \"$(dirname \"$1\")\"; }; }\n",
    );
    for n in 0..12 {
        let (path, other) = (*dice.one(&paths), *dice.one(&paths));
        let line = match dice.below(12) {
            0..=2 => format!("clear '{path}'; printf 'text {seed} {n}\\n' >'{path}'"),
            3 => format!("clear '{path}'; head -c {} /dev/urandom >'{path}'", dice.below(200_000)),
            4 => format!("rm -rf '{path}'"),
            5 => format!(
                "[ ! -f '{path}' ] || [ -L '{path}' ] || chmod {} '{path}'",
                dice.one(&["755", "644"])
            ),
            6 => format!("clear '{path}'; ln -s 'README.md' '{path}'"),
            7 => format!(
                "[ ! -f '{path}' ] || [ '{path}' = '{other}' ] || {{ cp -P '{path}' .git/aside; rm '{path}'; clear '{other}'; mv .git/aside '{other}'; }}"
            ),
            8 => "mkdir -p d 2>/dev/null && printf '*.log\\n!g.log\\nk\\n' >d/.gitignore || true".to_owned(),
            9 => "git add -A; git commit -q --allow-empty -m some".to_owned(),
            10 => format!("git reset -q {} || true", dice.one(&["--hard", "--mixed", "--soft HEAD~1"])),
            _ => "git checkout -q -f -B another HEAD~1 || true".to_owned(),
        };
        script.push_str(&line);
        script.push('\n');
    }
    script
}

#[test]
fn whatever_a_guest_with_git_does_comes_out_as_it_is_and_its_commits_as_commits() {
    let sandbox = Sandbox::debian();
    let vm = sandbox.vm("dice", "debian", &["--network", "none", "--memory", "512M"]);
    let ids = |script: &str, dir: &str| {
        let identity =
            "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a";
        vm.sh(&format!("cd {dir} && {identity}\n{script}")).within(LONG).go().ok().text().to_owned()
    };
    for seed in 1..=10 {
        let repo = Repo::make(&sandbox.work(&format!("dice{seed}")));
        repo.write("src/a b.txt", b"uncommitted\n");
        let dir = format!("/srv/{seed}");
        let prepare = ["vm", "workspace", "prepare", "dice", "--guest-path", &dir];
        sandbox.banger(prepare).arg(repo.dir()).within(LONG).go().ok().done();
        let script = edits(seed);
        ids(&script, &dir);
        let theirs =
            ids("cp -p .git/index .git/t; export GIT_INDEX_FILE=.git/t; git add -A; git write-tree", &dir);
        apply(&sandbox, &vm, &["--json"]).ok().done();
        assert_eq!(tree_of(&repo), theirs, "seed {seed}:\n{script}");
    }

    // The commits of one come as commits, with their authors and messages.
    let repo = Repo::make(&sandbox.work("history"));
    let prepare = ["vm", "workspace", "prepare", "dice", "--guest-path", "/srv/history"];
    sandbox.banger(prepare).arg(repo.dir()).within(LONG).go().ok().done();
    let tip = ids(
        "echo 1 >n; git add n; git commit -qm first; echo 2 >n; git commit -qam second --author='A. Gent <g@example.org>'; echo 3 >n; git rev-parse HEAD",
        "/srv/history",
    );
    let done = apply(&sandbox, &vm, &["--branch", "theirs", "--commits", "--json"]).ok().json();
    assert_eq!((done["commits"].as_array().unwrap().len(), &done["uncommitted"]), (2, &1.into()), "{done}");
    assert_eq!(repo.git(&["rev-parse", "theirs"]).ok().text(), tip, "unsigned commits keep their ids");
    assert_eq!(repo.git(&["log", "-1", "--format=%an %s", "theirs"]).ok().text(), "A. Gent second");
    assert!(!Path::new(&repo.dir().join("n")).exists());
    // Also from a VM that is off: the guest's git runs in the rescue.
    vm.verb("stop", &[]).ok().done();
    apply(&sandbox, &vm, &["--branch", "again", "--commits"]).ok().done();
    assert_eq!(repo.git(&["rev-parse", "again"]).ok().text(), tip);
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn a_hostile_guest_gets_nothing_run_read_or_written_on_the_host() {
    let sandbox = Sandbox::bare();
    let (repo, vm) = prepared(&sandbox, "evil");
    let canaries = sandbox.work("canaries");
    fs::create_dir(&canaries).unwrap();
    fs::write(canaries.join("secret"), "SECRET\n").unwrap();
    let here = canaries.to_str().unwrap();
    // Everything by which git can be told to run a program or to look elsewhere, and an honest change among it.
    let armed = "set -e; C=DIR; cd /root/repo; echo changed >README.md
        { printf '[core]\\n\\tfsmonitor = touch %s/1\\n\\thooksPath = /root/repo/.hooks\\n\\tpager = touch %s/2\\n' $C $C
          printf '[diff]\\n\\texternal = touch %s/3\\n[diff \"e\"]\\n\\ttextconv = touch %s/4\\n' $C $C
          printf '[filter \"e\"]\\n\\tclean = touch %s/5\\n\\tsmudge = touch %s/6\\n\\tprocess = touch %s/7\\n' $C $C $C
          printf '[merge \"e\"]\\n\\tdriver = touch %s/8\\n[include]\\n\\tpath = %s/secret\\n' $C $C; } >>.git/config
        mkdir -p .hooks .git/hooks .git/objects/info; printf '* filter=e diff=e merge=e\\n' >.gitattributes
        for h in pre-commit post-checkout post-index-change reference-transaction; do
            printf '#!/bin/sh\\ntouch %s/9\\n' $C >.hooks/$h; chmod 755 .hooks/$h; cp .hooks/$h .git/hooks/$h; done
        echo $C >.git/objects/info/alternates"
        .replace("DIR", here);
    vm.sh(&armed).go().ok().done();
    let untouched = || {
        let left: Vec<_> = fs::read_dir(&canaries).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["secret"], "a program of the guest's ran");
    };
    apply(&sandbox, &vm, &["--branch", "armed"]).ok().done();
    apply(&sandbox, &vm, &[]).ok().done();
    apply(&sandbox, &vm, &["--3way"]).ok().done();
    assert_eq!(read(&repo, "README.md"), "changed\n");
    untouched();

    // What is refused names the path, and the working tree stays as it is.
    let (before, index) = (repo.status(), index(&repo));
    let names = [
        ("mkdir .GIT; echo x >.GIT/config", ".GIT", "rm -r .GIT"),
        ("mkdir d; echo x >d/.git.", "d/.git.", "rm -r d"),
        ("mkdir 'git~1'; echo x >'git~1/config'", "git~1/config", "rm -r 'git~1'"),
        ("ln -s ../../etc/passwd escape", "escape", "rm escape"),
        ("ln -s /etc/passwd absolute", "absolute", "rm absolute"),
        ("truncate -s 2G huge", "huge", "rm huge"),
    ];
    for (make, path, clear) in names {
        vm.sh(make).go().ok().done();
        let refused = apply(&sandbox, &vm, &["--json"]).ends_with(1);
        let error = refused.json_error();
        assert_eq!(error["code"], "guest_failed", "{refused}");
        assert!(error["message"].as_str().unwrap().contains(path), "{path}: {refused}");
        assert_eq!((repo.status(), crate::index(&repo)), (before.clone(), index.clone()), "{path}");
        vm.sh(clear).go().ok().done();
    }

    // A git directory that is a link or a file that leads to the host's path, and links swapped under the scan.
    vm.sh(&format!("mv .git .away; ln -s {here} .git")).go().ok().done();
    apply(&sandbox, &vm, &["--json"]).ok().done();
    vm.sh(&format!("rm .git; echo 'gitdir: {here}' >.git")).go().ok().done();
    apply(&sandbox, &vm, &["--json"]).ok().done();
    vm.sh("rm .git; mv .away .git; mkdir /root/out; echo SECRET >/root/out/'a b.txt'; ln -s /root/out .git/trap
        (while [ ! -e .git/stop ]; do mv src .git/aside; mv .git/trap src; mv src .git/trap; mv .git/aside src; done) >/dev/null 2>&1 &")
        .go()
        .ok()
        .done();
    for _ in 0..10 {
        let out = sandbox.banger(["vm", "workspace", "export", "evil"]).within(LONG).go();
        assert!(!String::from_utf8_lossy(&out.stdout).contains("SECRET"), "{out}");
    }
    vm.sh("touch .git/stop").go().ok().done();
    untouched();
    vm.delete();
    sandbox.no_vm_is_left();
}
