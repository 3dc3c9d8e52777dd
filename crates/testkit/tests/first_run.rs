//! The first minutes on a machine: an empty state, and an ordinary user.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use banger_testkit::repo::Repo;
use banger_testkit::user::OrdinaryUser;
use banger_testkit::{Sandbox, bin_dir, is_root, leaks, skip_unless, tree};

const LONG: Duration = Duration::from_secs(600);

#[test]
fn two_first_runs_at_once_make_everything_once() {
    let sandbox = Sandbox::empty();
    let run = || sandbox.banger(["run", "--rm", "--", "cat", "/etc/os-release"]).within(LONG).start();
    let both = [run(), run()];
    for one in both {
        let out = one.wait().ok();
        assert!(out.text().contains("ID=debian"), "{out}");
        // Both show how far it is: the one that makes it, and the one that waits for it.
        assert!(out.err().contains("image debian: installing the packages"), "{out}");
    }
    let images = tree::walk(&sandbox.state().join("images"));
    assert_eq!(images.len(), 1, "{images:?}");
    let log = fs::read_to_string(sandbox.state().join("bangerd.log")).unwrap();
    assert_eq!(log.matches("image published").count(), 1, "the image was built once");
    // And the next run has nothing to make.
    let third = run().wait().ok();
    assert!(third.elapsed < Duration::from_secs(60), "{third}");
    sandbox.no_vm_is_left();
}

#[test]
fn a_host_that_can_make_neither_image_nor_kernel_is_told_at_once_which_way_is_open() {
    let sandbox = Sandbox::empty();
    // Given a host with all that runs VMs, and nothing that builds what they boot from
    let tools = sandbox.work("tools");
    fs::create_dir_all(&tools).unwrap();
    for name in ["qemu-system-x86_64", "passt", "git", "sh"] {
        let path = banger_host::programs::find(name).unwrap();
        std::os::unix::fs::symlink(path, tools.join(name)).unwrap();
    }
    let run = sandbox.banger(["run", "--rm", "--json", "--", "true"]).env("PATH", &tools).go().ends_with(125);
    let error = run.json_error();
    assert_eq!(error["code"], "unavailable", "{run}");
    // Then both are said in one sentence, with what to type, before anything is downloaded
    let message = error["message"].as_str().unwrap();
    for missing in ["mmdebstrap", "sqfstar", "apt-get", "dpkg-deb"] {
        assert!(message.contains(missing), "{message}");
    }
    assert!(error["hint"].as_str().unwrap().contains("mmdebstrap"), "{error}");
    assert!(run.elapsed < Duration::from_secs(30), "{run}");
    let kernels = tree::walk(&sandbox.state().join("kernels"));
    assert!(kernels.is_empty(), "{kernels:?}");
    sandbox.no_vm_is_left();
}

#[test]
fn a_kernel_and_an_image_are_made_from_nothing() {
    let sandbox = Sandbox::empty();
    let build = ["image", "build", "debian", "--name", "small", "--minimal"];
    sandbox.banger(build).within(LONG).go().ok().done();
    let run = ["run", "--rm", "--image", "small", "--network", "none", "--", "cat", "/etc/os-release"];
    let out = sandbox.banger(run).within(LONG).go().ok();
    assert!(out.text().contains("ID=debian"), "{out}");
    sandbox.no_vm_is_left();
}

#[test]
fn an_ordinary_user_without_any_capability_can_do_it_all() {
    skip_unless!(is_root(), "making a user needs root");
    let user = OrdinaryUser::make();
    // Given an installation in the user's home, and the places that are used when nothing is set and nobody logged in.
    let home = user.home();
    let bin = home.join("bin");
    fs::create_dir(&bin).unwrap();
    for entry in fs::read_dir(bin_dir()).unwrap().flatten() {
        fs::copy(entry.path(), bin.join(entry.file_name())).unwrap();
        fs::set_permissions(bin.join(entry.file_name()), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(&bin, fs::Permissions::from_mode(0o755)).unwrap();
    let banger = |args: &[&str]| user.run(bin.join("banger")).args(args).within(LONG);
    let caps = user.run("sh").args(["-c", "grep Cap /proc/self/status; id -u"]).go().ok();
    assert!(caps.text().contains("CapEff:\t0000000000000000"), "{caps}");
    assert!(caps.text().ends_with(&user.uid().to_string()), "{caps}");

    let repo_dir = home.join("project");
    let _ = Repo::make(&repo_dir);
    user.owns(&repo_dir);

    banger(&["image", "build", "debian", "--name", "small", "--minimal"]).go().ok().done();
    let run = banger(&["vm", "run", "--name", "mine", "--image", "small", "."]).dir(&repo_dir);
    run.args(["--", "sh", "-c", "id -u; echo changed >README.md"]).go().ok().done();
    let patch = banger(&["vm", "workspace", "export", "mine"]).go().ok();
    assert!(patch.text().contains("+changed"), "{patch}");
    banger(&["vm", "delete", "-f", "mine"]).go().ok().done();
    let daemon = banger(&["daemon", "status", "--json"]).go().ok().json();
    assert!(daemon["state_dir"].as_str().unwrap().starts_with(home.to_str().unwrap()), "{daemon}");
    banger(&["daemon", "stop"]).go().ok().done();
    let left = user.processes();
    assert!(left.is_empty(), "processes left: {left:?}");
    let runtime = std::path::PathBuf::from(format!("/tmp/banger-{}", user.uid()));
    let files: Vec<_> =
        tree::walk(&runtime).into_iter().filter(|e| !e.dir && !e.path.ends_with("bangerd.lock")).collect();
    assert!(files.is_empty(), "left in the runtime directory: {files:?}");
    let scope = leaks::Scope { markers: vec![user.name().to_owned()], dirs: Vec::new() };
    assert!(scope.snapshot().of(leaks::Kind::Socket).is_empty());
}
