//! The default image: a Debian with systemd that people can work in.

use std::time::Duration;

use banger_testkit::repo::Repo;
use banger_testkit::{Sandbox, bin_dir, wait};

/// Units that may fail in a guest without the hardware they look for.
const MAY_FAIL: &[&str] = &["systemd-modules-load.service"];

#[test]
fn debian_comes_up_with_systemd_and_the_tools_to_work() {
    let sandbox = Sandbox::debian();
    let vm = sandbox.vm("deb", "debian", &["--memory", "1G"]);
    let system = || vm.exec(["systemctl", "is-system-running"]).go();
    wait::must("systemd has started everything", Duration::from_secs(120), || {
        let out = system();
        matches!(out.text(), "running" | "degraded")
    });
    let failed = vm.exec(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).go().ok();
    for line in failed.text().lines() {
        let unit = line.split_whitespace().next().unwrap_or_default();
        assert!(MAY_FAIL.contains(&unit), "a unit failed: {line}");
    }
    assert_eq!(vm.exec(["cat", "/proc/1/comm"]).go().ok().text(), "systemd");
    let tools = "for t in git curl make gcc; do command -v $t >/dev/null || echo missing $t; done; test -d /etc/ssl/certs";
    assert_eq!(vm.exec(["bash", "-c", tools]).go().ok().text(), "");
    assert_eq!(vm.exec(["hostname"]).go().ok().text(), "deb");
    assert!(vm.exec(["cat", "/etc/machine-id"]).go().ok().text().len() == 32);
    // The agent survives beside systemd, and the clock is the host's.
    let guest: u64 = vm.exec(["date", "+%s"]).go().ok().text().parse().unwrap();
    let host = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(guest.abs_diff(host) <= 5, "guest {guest}, host {host}");
    // Modules of the running kernel are there.
    vm.exec(["modprobe", "dummy"]).go().ok().done();

    // Work, stop, start: it is still there.
    vm.exec(["sh", "-c", "echo kept >/root/kept"]).go().ok().done();
    let stop = vm.verb("stop", &[]).ok();
    assert!(stop.elapsed < Duration::from_secs(30), "{stop}");
    vm.verb("start", &[]).ok().done();
    assert_eq!(vm.exec(["cat", "/root/kept"]).go().ok().text(), "kept");
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn the_main_job_make_test_in_a_repository_and_a_patch_back() {
    let sandbox = Sandbox::debian();
    let repo = Repo::make(&sandbox.work("project"));
    let head = repo.git(&["rev-parse", "HEAD"]).ok().text().to_owned();
    let run = |more: &[&str]| {
        let run = sandbox.banger(["vm", "run", "--name", "job"]).args(more).arg(".").dir(repo.dir());
        run.within(Duration::from_secs(180))
    };
    let test = run(&["--rm"]).args(["--", "make", "test"]).go().ok();
    assert!(test.text().contains("./check.sh"), "{test}");
    // A guest that commits: its commits are in the patch all the same.
    let script = "set -e; git status --porcelain; echo four >>'src/a b.txt'; git -c user.name=g -c user.email=g@x commit -qam guest; echo new >new.txt";
    let out = run(&[]).args(["--", "sh", "-c", script]).go().ok();
    assert_eq!(out.text(), "", "the guest's git sees a clean tree");
    let patch = sandbox.banger(["vm", "workspace", "export", "job"]).go().ok().stdout;
    let file = sandbox.work("job.patch");
    std::fs::write(&file, &patch).unwrap();
    let copy = repo.checkout(&sandbox.work("copy"), &head);
    copy.git(&["apply", "--check", file.to_str().unwrap()]).ok().done();
    copy.git(&["apply", file.to_str().unwrap()]).ok().done();
    let text = std::fs::read_to_string(copy.dir().join("src/a b.txt")).unwrap();
    assert_eq!(text, "one\ntwo\nthree\nfour\n");
    assert_eq!(std::fs::read_to_string(copy.dir().join("new.txt")).unwrap(), "new\n");
    sandbox.existing("job").delete();
    sandbox.no_vm_is_left();
}

#[test]
fn the_demo_shows_a_patch_that_fits() {
    let sandbox = Sandbox::debian();
    let project = Repo::of_this_project(&sandbox.work("banger"));
    let demo = sandbox.program(project.dir().join("scripts/demo")).env("BANGER_BIN_DIR", bin_dir());
    let out = demo.within(Duration::from_secs(300)).go().ok();
    assert!(out.text().contains("diff --git a/hello.sh b/hello.sh"), "{out}");
    assert_eq!(sandbox.vm_names(), Vec::<String>::new());
    sandbox.no_vm_is_left();
}
