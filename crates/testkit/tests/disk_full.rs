//! No space left: while a VM is made, while its guest writes, while the database commits. Said in
//! words, nothing half-made, and all is well once there is space.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use banger_testkit::{Output, Sandbox, Seed, is_root, skip_unless, tree, wait};

/// What takes the space away; gone when dropped.
struct Filler(PathBuf);

impl Filler {
    /// Leaves `bytes` free.
    fn leaving(sandbox: &Sandbox, bytes: u64) -> Self {
        let path = sandbox.state().join("filler");
        let mut file = File::create(&path).unwrap();
        let free = rustix::fs::fstatvfs(&file).map(|s| s.f_bavail * s.f_frsize).unwrap();
        let flags = rustix::fs::FallocateFlags::empty();
        if free > bytes {
            rustix::fs::fallocate(&file, flags, 0, free - bytes).unwrap();
        }
        if bytes == 0 {
            let _ = file.write_all(&[0]);
        }
        Self(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// An error as users see it that says what is wrong and what to do.
fn says_so(out: Output) {
    let error = out.ends_with(1).json_error();
    assert_eq!(error["code"], "unavailable", "{error}");
    let words = error["message"].as_str().unwrap().to_lowercase();
    assert!(["space", "full", "free"].iter().any(|w| words.contains(w)), "{error}");
    assert!(error["hint"].as_str().is_some_and(|h| h.contains("space")), "{error}");
}

#[test]
fn a_vm_is_made_whole_or_not_at_all() {
    skip_unless!(is_root(), "mounting a small file system needs root");
    let sandbox = Sandbox::on_small_disk(&Seed::bare(), 600);
    let create = ["vm", "create", "--name", "small", "--image", "bare", "--network", "none"];
    sandbox.banger(["vm", "list"]).go().ok().done();

    // Given little space, or none at all: nothing is made.
    for left in [64 << 20, 1 << 20, 0] {
        let full = Filler::leaving(&sandbox, left);
        says_so(sandbox.banger(create).arg("--json").go());
        assert_eq!(sandbox.vm_names(), Vec::<String>::new());
        drop(full);
        sandbox.no_vm_is_left();
    }
    // Given a VM without a disk yet, and space that ends while its disk is made.
    sandbox.banger(create).arg("--no-start").go().ok().done();
    let vm = sandbox.existing("small");
    for left in [0, 64 << 10, 1 << 20] {
        let full = Filler::leaving(&sandbox, left);
        let out = vm.verb("start", &["--json"]);
        let half: Vec<_> = tree::walk(&sandbox.state().join("vms")).into_iter().filter(|e| !e.dir).collect();
        if out.code() == 0 {
            // The first kilobytes were enough.
            drop(full);
            vm.verb("stop", &[]).ok().done();
            continue;
        }
        says_so(out);
        assert!(half.iter().all(|e| !e.path.to_string_lossy().contains("ext4")), "half a disk: {half:?}");
        assert!(["created", "error"].contains(&vm.show()["state"].as_str().unwrap()), "{}", vm.show());
        drop(full);
    }
    // Then there is space, and all is well.
    vm.verb("start", &[]).ok().done();
    vm.exec(["true"]).go().ok().done();

    // Given a moment to go back to, and no space for its disks beside the present ones: the VM is what it was.
    vm.says("dd if=/dev/urandom of=/big bs=1M count=8 2>/dev/null; sync");
    sandbox.banger(["vm", "snapshot", "create", "small", "then"]).go().ok().done();
    let full = Filler::leaving(&sandbox, 1 << 20);
    says_so(sandbox.banger(["vm", "snapshot", "restore", "small", "then", "--json"]).go());
    vm.exec(["test", "-e", "/big"]).go().ok().done();
    drop(full);
    sandbox.banger(["vm", "snapshot", "delete", "small", "then"]).go().ok().done();
    vm.sh("rm /big").go().ok().done();

    // Given a guest with more in its memory than there is space, which is enough for a VM: it is not copied by halves.
    let fill = "dd if=/dev/urandom of=/dev/shm/0 bs=1M count=16; for i in $(seq 16); do cp /dev/shm/0 /dev/shm/$i; done";
    vm.sh(fill).go().ok().done();
    let full = Filler::leaving(&sandbox, 270 << 20);
    for words in [&["fork", "small", "--name", "child"][..], &["snapshot", "create", "small", "moment"]] {
        says_so(sandbox.banger(["vm"]).args(words).arg("--json").within(Duration::from_secs(60)).go());
        assert_eq!(sandbox.vm_names(), ["small"]);
        let left = tree::walk(&sandbox.state()).into_iter().filter(|e| e.path.ends_with("memory"));
        assert_eq!(left.map(|e| e.path).collect::<Vec<_>>(), Vec::<PathBuf>::new());
        vm.exec(["true"]).go().ok().done();
    }
    drop(full);
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn a_template_for_whose_disk_there_is_no_space_costs_a_notice_and_a_boot() {
    skip_unless!(is_root(), "mounting a small file system needs root");
    let sandbox = Sandbox::on_small_disk(&Seed::bare(), 900).warm();
    let shape = ["--image", "bare", "--vcpu", "1", "--network", "none"];
    sandbox.banger(["vm", "run", "--rm"]).args(shape).args(["--", "true"]).go().ok().done();
    let template = sandbox.template_made();
    // More than a new disk needs, and less than the template's takes.
    let disk = fs::File::options().write(true).open(template.join("system.ext4")).unwrap();
    let changed = disk.metadata().unwrap().modified().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, &vec![7; 8 << 20], 64 << 20).unwrap();
    disk.set_modified(changed).unwrap();
    sandbox.banger(["vm", "create", "--no-start", "--name", "small"]).args(shape).go().ok().done();
    let vm = sandbox.existing("small");
    let full = Filler::leaving(&sandbox, 4 << 20);
    let out = vm.verb("start", &[]).ok();
    assert!(out.err().contains("template could not be used"), "{}", out.err());
    assert_eq!(vm.boot_kind(), "cold");
    drop(full);
    vm.exec(["true"]).go().ok().done();
    vm.delete();
    // Another template is being made by now.
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    sandbox.no_vm_is_left();
}

#[test]
fn a_guest_that_writes_waits_for_space_and_loses_nothing() {
    skip_unless!(is_root(), "mounting a small file system needs root");
    let sandbox = Sandbox::on_small_disk(&Seed::bare(), 500);
    let vm = sandbox.vm("writer", "bare", &["--network", "none"]);
    let full = Filler::leaving(&sandbox, 4 << 20);

    // Given a guest that writes more than there is
    let script = "dd if=/dev/urandom of=/big bs=64k count=512 conv=fsync 2>/dev/null; s=$?; \
        sha256sum </big >/sum; sync; exit $s";
    let writer = vm.sh(script).within(Duration::from_secs(120)).start();
    // Then it is said, by the list and to whoever asks something of it
    wait::must("the VM is shown as waiting", Duration::from_secs(60), || vm.show()["state"] == "paused");
    let shown = vm.show();
    assert_eq!(shown["last_error"]["code"], "unavailable", "{shown}");
    assert!(shown["last_error"]["message"].as_str().unwrap().contains("full"), "{shown}");
    let out = vm.exec(["true"]).go().ends_with(125).says(&["writer", "full", "hint:", "space"]);
    assert!(out.elapsed < Duration::from_secs(10), "{out}");
    says_so(vm.verb("stop", &["--json"]));
    // And it goes on where it was once there is space.
    drop(full);
    writer.wait().ok().done();
    let shown = vm.show();
    assert_eq!((&shown["state"], &shown["last_error"]), (&"running".into(), &serde_json::Value::Null));
    vm.sh("sha256sum </big | cmp - /sum 2>/dev/null || [ \"$(sha256sum </big)\" = \"$(cat /sum)\" ]")
        .go()
        .ok()
        .done();
    vm.verb("stop", &[]).ok().done();
    vm.verb("start", &[]).ok().done();
    vm.sh("[ \"$(sha256sum </big)\" = \"$(cat /sum)\" ]").go().ok().done();
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn a_database_that_cannot_commit_says_so_and_what_frees_space_still_works() {
    skip_unless!(is_root(), "mounting a small file system needs root");
    let sandbox = Sandbox::on_small_disk(&Seed::bare(), 500);
    for name in ["kept", "doomed"] {
        sandbox.vm(name, "bare", &["--network", "none"]).verb("stop", &[]).ok().done();
    }
    let (kept, doomed) = (sandbox.existing("kept"), sandbox.existing("doomed"));
    // A new daemon's database has no room of its own yet.
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    sandbox.banger(["vm", "list"]).go().ok().done();
    let full = Filler::leaving(&sandbox, 0);

    // Nothing can be recorded: it is said, and nothing has begun.
    says_so(kept.verb("start", &["--json"]));
    assert_eq!(kept.show()["state"], "stopped");
    let import = sandbox.work("tiny");
    fs::create_dir(&import).unwrap();
    fs::write(import.join("file"), "x").unwrap();
    says_so(sandbox.banger(["image", "import", "tiny", "--json"]).arg(&import).go());
    // Looking still works, also for a daemon that begins now.
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    assert_eq!(kept.show()["state"], "stopped");
    // And so does the way out.
    doomed.delete();
    assert_eq!(sandbox.vm_names(), ["kept"]);
    drop(full);
    kept.verb("start", &[]).ok().done();
    kept.exec(["true"]).go().ok().done();
    kept.delete();
    sandbox.no_vm_is_left();
}
