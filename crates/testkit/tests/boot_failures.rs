//! Machines that do not come up: said clearly, with the console's last lines, and nothing left.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_testkit::{Run, Sandbox, Seed, is_root, skip_unless, tree};

/// Lays the seed's kernel out as a package would have it, to be spoilt and imported.
fn unpacked(seed: &Seed, to: &Path) -> (PathBuf, PathBuf) {
    let dir = seed.kernel();
    let files: Vec<_> = tree::walk(&dir).into_iter().filter(|e| !e.dir).map(|e| e.path).collect();
    let starts = |path: &Path, at: usize, magic: &[u8]| {
        fs::read(path).unwrap_or_default().get(at..at + magic.len()).is_some_and(|m| m == magic)
    };
    // "HdrS" at 0x202 is the boot protocol's magic; "hsqs" begins a squashfs.
    let kernel = files.iter().find(|f| starts(f, 0x202, b"HdrS")).unwrap();
    let modules = files.iter().find(|f| starts(f, 0, b"hsqs")).unwrap();
    fs::create_dir_all(to.join("boot")).unwrap();
    let image = to.join("boot/vmlinuz");
    fs::copy(kernel, &image).unwrap();
    let lib = to.join("lib/modules");
    fs::create_dir_all(lib.parent().unwrap()).unwrap();
    Run::new("unsquashfs").args(["-q", "-n", "-d"]).arg(&lib).arg(modules).go().ok().done();
    (image, lib)
}

#[test]
fn a_kernel_that_cannot_reach_its_disks_is_said_with_the_consoles_last_lines() {
    let seed = Seed::bare();
    let sandbox = Sandbox::with(&seed);
    sandbox.configure("[boot]\ntimeout = '30s'\n");
    let dir = sandbox.work("spoilt");
    let (_, lib) = unpacked(&seed, &dir);
    // Given a kernel whose block driver says that it was made for another one.
    let module = tree::walk(&lib).into_iter().find(|e| e.path.ends_with("virtio_blk.ko")).unwrap();
    let mut bytes = fs::read(&module.path).unwrap();
    let magic = b"SMP preempt mod_unload";
    let at = bytes.windows(magic.len()).position(|w| w == magic).unwrap();
    bytes[at..at + 3].copy_from_slice(b"UP ");
    fs::write(&module.path, bytes).unwrap();
    let import = sandbox.banger(["kernel", "import", "spoilt"]).arg(&dir);
    import.within(Duration::from_secs(120)).go().ok().done();

    let run =
        sandbox.banger(["run", "--rm", "--image", "bare", "--kernel", "spoilt", "--json", "--", "true"]);
    let out = run.within(Duration::from_secs(150)).go().ends_with(125);
    let error = out.json_error();
    assert_eq!(error["code"], "boot_failed", "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("virtio_blk"), "the console's lines name the module: {message}");
    assert!(error["op_id"].as_str().unwrap().starts_with("op-"), "{error}");
    assert_eq!(sandbox.vm_names(), Vec::<String>::new(), "--rm leaves none");
    sandbox.no_vm_is_left();

    // A VM that is kept says why it is in `error`, and keeps its console.
    let create = sandbox.banger([
        "vm",
        "create",
        "--name",
        "dead",
        "--image",
        "bare",
        "--kernel",
        "spoilt",
        "--no-start",
    ]);
    create.go().ok().done();
    let vm = sandbox.existing("dead");
    vm.verb("start", &[]).ends_with(1).done();
    let shown = vm.show();
    assert_eq!((&shown["state"], &shown["last_error"]["code"]), (&"error".into(), &"boot_failed".into()));
    let console = sandbox.banger(["logs", "dead", "--console"]).go().ok();
    assert!(console.text().contains("virtio_blk"), "{console}");
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn a_guest_that_never_answers_is_given_up_in_time() {
    let seed = Seed::bare();
    let sandbox = Sandbox::with(&seed);
    sandbox.configure("[boot]\ntimeout = '4s'\n");
    let dir = sandbox.work("mute");
    let (image, _) = unpacked(&seed, &dir);
    // Given a kernel that hangs in its first instructions: `jmp .` at both entry points of the
    // protected-mode part, which begins after the setup sectors counted at 0x1f1.
    let mut bytes = fs::read(&image).unwrap();
    let setup = (usize::from(bytes[0x1f1]) + 1) * 512;
    for entry in [setup, setup + 0x200] {
        bytes[entry..entry + 2].copy_from_slice(&[0xeb, 0xfe]);
    }
    fs::write(&image, bytes).unwrap();
    sandbox.banger(["kernel", "import", "mute"]).arg(&dir).within(Duration::from_secs(120)).go().ok().done();
    let run = sandbox.banger(["run", "--rm", "--image", "bare", "--kernel", "mute", "--json", "--", "true"]);
    let out = run.within(Duration::from_secs(60)).go().ends_with(125);
    assert!(out.elapsed > Duration::from_secs(8), "a silent boot is tried twice: {out}");
    let lines = out.err();
    let error: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert!(matches!(error["error"]["code"].as_str(), Some("boot_failed" | "timeout")), "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("4 s"), "{error}");
    assert_eq!(sandbox.vm_names(), Vec::<String>::new());
    sandbox.no_vm_is_left();
}

#[test]
fn what_is_no_kernel_is_not_taken_in() {
    let sandbox = Sandbox::empty();
    let dir = sandbox.work("nothing");
    fs::create_dir_all(dir.join("boot")).unwrap();
    let import = || sandbox.banger(["kernel", "import", "nothing"]).arg(&dir).go().ends_with(1);
    import().says(&["kernel", "hint:"]).done();
    fs::write(dir.join("boot/vmlinuz"), "this is no kernel").unwrap();
    import().says(&["vmlinuz"]).done();
    assert!(sandbox.banger(["kernel", "list", "--json"]).go().ok().json().as_array().unwrap().is_empty());
    assert!(tree::walk(&sandbox.state().join("kernels")).is_empty());
}

#[test]
fn too_little_disk_is_said() {
    skip_unless!(is_root(), "mounting a small file system needs root");
    let sandbox = Sandbox::empty().on_disk_of(12);
    let big = sandbox.work("big");
    fs::create_dir(&big).unwrap();
    fs::write(big.join("file"), banger_testkit::random::bytes(40 << 20, 9)).unwrap();
    let import = sandbox.banger(["image", "import", "big"]).arg(&big).go();
    let doctor = sandbox.banger(["doctor", "--json"]).go();
    let left = tree::walk(&sandbox.state().join("images"));
    import.ends_with(1).says(&["space", "hint:"]).done();
    assert!(left.is_empty(), "a failed import leaves nothing: {left:?}");
    let checks = doctor.ends_with(1).json();
    let disk = checks.as_array().unwrap().iter().find(|c| c["name"] == "disk").unwrap().clone();
    assert_eq!(disk["status"], "fail", "{disk}");
}
