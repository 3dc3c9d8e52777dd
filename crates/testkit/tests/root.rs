//! An installation of root's, in root's own directories: where root runs banger, programs give root up by themselves
//! (passt becomes `nobody`), images are built in another way, and the cage is made without a user namespace of the
//! user's. Every other scenario is an ordinary user's.

use std::time::Duration;

use banger_testkit::outside::{OUTSIDE, World};
use banger_testkit::repo::Repo;
use banger_testkit::{Sandbox, is_root, skip_unless, stay_invoker};

const LONG: Duration = Duration::from_secs(600);

#[test]
fn root_has_vms_with_a_network_a_workspace_and_copies() {
    skip_unless!(is_root(), "it is about an installation of root's");
    stay_invoker();
    let world = World::build();
    let sandbox = Sandbox::bare().through(&world.on_host()).warm();
    let repo = Repo::make(&sandbox.work("project"));
    // Given a VM with a network
    let vm = sandbox.vm("roots", "bare", &[]);
    assert_eq!(sandbox.program("id").arg("-u").go().ok().text(), "0");
    let fetch = format!("(printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 1) | nc -w 3 {OUTSIDE} 8080");
    assert!(vm.says(&fetch).ends_with("hello from outside"));
    // Then a repository goes in and its change out, into files of the same owner
    sandbox.banger(["vm", "workspace", "prepare", "roots"]).arg(repo.dir()).within(LONG).go().ok().done();
    vm.says("echo changed >README.md");
    sandbox.banger(["vm", "workspace", "apply", "roots"]).within(LONG).go().ok().done();
    assert_eq!(std::fs::read_to_string(repo.dir().join("README.md")).unwrap(), "changed\n");
    // And a copy of it is there, and a VM that goes on from the template
    sandbox.banger(["vm", "fork", "roots", "--name", "copy"]).within(LONG).go().ok().done();
    assert!(sandbox.existing("copy").says(&fetch).ends_with("hello from outside"));
    sandbox.existing("copy").delete();
    vm.delete();
    sandbox.template_made();
    let second = sandbox.vm("second", "bare", &[]);
    assert_eq!(second.boot_kind(), "warm");
    second.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn root_builds_an_image_that_boots() {
    skip_unless!(is_root(), "it is about an installation of root's");
    stay_invoker();
    let sandbox = Sandbox::bare();
    let build = ["image", "build", "debian", "--name", "small", "--minimal"];
    sandbox.banger(build).within(LONG).go().ok().done();
    let run = sandbox.banger([
        "run",
        "--rm",
        "--image",
        "small",
        "--network",
        "none",
        "--",
        "cat",
        "/etc/os-release",
    ]);
    assert!(run.within(LONG).go().ok().text().contains("ID=debian"));
    sandbox.no_vm_is_left();
}
