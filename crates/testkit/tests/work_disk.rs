//! The work disk: homes that outlive their system disk. Sizes that change, images that change, and daemons that die in
//! between.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use banger_testkit::repo::Repo;
use banger_testkit::{Output, Run, Sandbox, Vm, bare};
use serde_json::Value;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndev:x:1000:1000:dev:/home/dev:/bin/sh\n";

/// Imports a bare image with an `/etc/passwd`, a skeleton in root's home, and the home of each of these users.
fn import(sandbox: &Sandbox, name: &str, users: &[(&str, u32)]) {
    let dir = sandbox.work(name);
    assert!(bare::lay_out(&dir));
    let write = |path: &str, text: &str| {
        fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
        fs::write(dir.join(path), text).unwrap();
    };
    let mut passwd = PASSWD.to_owned();
    write("root/.profile", &format!("of {name}\n"));
    write("root/.config/deep/file", "kept\n");
    fs::set_permissions(dir.join("root"), fs::Permissions::from_mode(0o700)).unwrap();
    for (user, uid) in users {
        let home = format!("home/{user}");
        write(&format!("{home}/.profile"), &format!("{user} of {name}\n"));
        if *user != "dev" {
            passwd += &format!("{user}:x:{uid}:{uid}:{user}:/home/{user}:/bin/sh\n");
        }
    }
    write("etc/passwd", &passwd);
    write("etc/image", &format!("{name}\n"));
    // An archive can say of a file that it is another user's; a directory can that only where root made it.
    let archive = sandbox.work(&format!("{name}.tar"));
    let tar = |owner: &str| {
        let owned = [format!("--owner={owner}"), format!("--group={owner}")];
        Run::new("tar").arg("-C").arg(&dir).args(owned).arg("-f").arg(&archive)
    };
    tar("0").args(["--exclude=./home/*", "-c", "."]).go().ok().done();
    for (user, uid) in users {
        tar(&uid.to_string()).arg("-r").arg(format!("./home/{user}")).go().ok().done();
    }
    sandbox.banger(["image", "import", name]).arg(&archive).go().ok().done();
}

fn says(vm: &Vm<'_>, script: &str) -> String {
    vm.sh(script).go().ok().text().to_owned()
}

fn as_dev(vm: &Vm<'_>, script: &str) -> String {
    vm.exec_with(&["--user", "dev", "--workdir", "/home/dev"], ["sh", "-c", script])
        .go()
        .ok()
        .text()
        .to_owned()
}

/// `banger vm VERB FLAGS… NAME --json`.
fn change(sandbox: &Sandbox, verb: &str, name: &str, flags: &[&str]) -> Output {
    let run = sandbox.banger(["vm", verb]).args(flags).args([name, "--json"]);
    run.within(Duration::from_secs(60)).go()
}

fn refused(out: &Output, code: &str) -> Value {
    let error = out.json_error();
    assert_eq!(error["code"], code, "{error}");
    assert!(error["hint"].is_string(), "{error}");
    error
}

fn dir_of(sandbox: &Sandbox, vm: &Vm<'_>) -> PathBuf {
    sandbox.state().join("vms").join(vm.show()["id"].as_str().unwrap())
}

/// The names of a VM's disks, in order.
fn disks(dir: &std::path::Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut disks: Vec<String> = names.filter(|name| name.contains(".ext4")).collect();
    disks.sort();
    disks
}

/// KiB of the file system at a path in the guest.
fn size_of(vm: &Vm<'_>, path: &str) -> u64 {
    says(vm, &format!("df -kP {path} | tail -n1 | awk '{{print $2}}'")).parse().unwrap()
}

#[test]
fn homes_survive_stops_and_rebuilds_and_disks_grow() {
    let sandbox = Sandbox::bare();
    import(&sandbox, "one", &[("dev", 1000)]);
    import(&sandbox, "two", &[("dev", 1000), ("eve", 1001)]);
    let repo = Repo::make(&sandbox.work("project"));

    // Given a VM with a work disk and a repository
    let run = ["vm", "run", "--name", "keep", "--image", "one", "--network", "none", "--work-disk", "256M"];
    let run = sandbox.banger(run).arg(repo.dir()).args(["--", "true"]);
    run.within(Duration::from_secs(180)).go().ok().done();
    let vm = sandbox.existing("keep");
    // Then the homes are on a disk of their own, with what the image has in them
    assert_eq!(says(&vm, "cat /root/.profile /root/.config/deep/file"), "of one\nkept");
    assert_eq!(says(&vm, "stat -c %a /root"), "700");
    assert_eq!(as_dev(&vm, "pwd && cat .profile && stat -c %u ."), "/home/dev\ndev of one\n1000");
    assert_eq!(says(&vm, "stat -c %d /root /home | sort -u | wc -l"), "1", "one disk for both");
    assert_ne!(says(&vm, "stat -c %d /root"), says(&vm, "stat -c %d /"));
    assert!(size_of(&vm, "/root") < 256 << 10);
    assert_eq!(vm.show()["work_disk_bytes"], 256 << 20);

    // Given work there and elsewhere
    says(
        &vm,
        "echo mine >/root/work && echo gone >/elsewhere && echo change >>/root/project/guest-made || true",
    );
    let guest_path = vm.show()["workspace"]["guest_path"].as_str().unwrap().to_owned();
    says(&vm, &format!("echo new >{guest_path}/new.txt"));
    as_dev(&vm, "echo hers >~/work && chmod 600 ~/work");
    // When it runs, it is neither changed nor rebuilt
    for (verb, flags) in [("set", &["--vcpu", "2"]), ("rebuild", &["--image", "two"])] {
        let out = change(&sandbox, verb, "keep", flags).ends_with(1);
        let error = refused(&out, "busy");
        assert!(error["hint"].as_str().unwrap().contains("banger vm stop keep"), "{error}");
    }
    // And a stop and a start change nothing
    vm.verb("stop", &[]).ok().done();
    vm.verb("start", &[]).ok().done();
    assert_eq!(says(&vm, "cat /root/work /elsewhere"), "mine\ngone");
    assert_eq!(as_dev(&vm, "cat ~/work"), "hers");
    vm.verb("stop", &[]).ok().done();

    // What cannot be is refused, and changes nothing
    let before = vm.show();
    for flags in
        [&["--work-disk", "128M"][..], &["--disk-size", "1G"], &["--memory", "900T"], &["--vcpu", "65"]]
    {
        let out = change(&sandbox, "set", "keep", flags);
        assert!(out.code() == 1 || out.code() == 2, "{out}");
        assert_eq!(out.json_error()["code"], "invalid_argument", "{out}");
    }
    change(&sandbox, "set", "keep", &[]).ends_with(2).done();
    assert_eq!(vm.show(), before);
    // What can be is there at the next start
    let flags = ["--vcpu", "2", "--memory", "300M", "--disk-size", "20G", "--work-disk-size", "1G"];
    let after = change(&sandbox, "set", "keep", &flags).ok().json();
    let sizes =
        |vm: &Value| ["vcpu", "memory_mib", "disk_bytes", "work_disk_bytes"].map(|key| vm[key].as_u64());
    assert_eq!(sizes(&after), [Some(2), Some(300), Some(20 << 30), Some(1 << 30)], "{after}");
    assert_eq!(sizes(&vm.show()), sizes(&after));
    vm.verb("start", &[]).ok().done();
    assert_eq!(says(&vm, "grep -c ^processor /proc/cpuinfo"), "2");
    assert!(says(&vm, "grep MemTotal /proc/meminfo | awk '{print $2}'").parse::<u64>().unwrap() < 300 << 10);
    assert!(size_of(&vm, "/") > 18 << 20, "the system's file system has grown: {}", size_of(&vm, "/"));
    assert!(size_of(&vm, "/root") > 800 << 10, "and the homes': {}", size_of(&vm, "/root"));
    assert_eq!(says(&vm, "cat /root/work /elsewhere"), "mine\ngone");

    // When it is put on another image
    vm.verb("stop", &[]).ok().done();
    change(&sandbox, "rebuild", "keep", &["--image", "no-such"]).ends_with(1).done();
    assert_eq!(vm.show()["image"], "one");
    let rebuilt = change(&sandbox, "rebuild", "keep", &["--image", "two"]).ok().json();
    assert_eq!((&rebuilt["image"], &rebuilt["state"]), (&"two".into(), &"stopped".into()));
    assert_eq!(rebuilt["workspace"], after["workspace"], "the workspace is in a home, and stays");
    assert_eq!(disks(&dir_of(&sandbox, &vm)), ["work.ext4"], "the old system disk is gone");
    vm.verb("start", &[]).ok().done();
    // Then system and image are new, and the homes are what they were
    assert_eq!(says(&vm, "cat /etc/image; test -e /elsewhere || echo gone"), "two\ngone");
    assert_eq!(says(&vm, "cat /root/work /root/.profile"), "mine\nof one");
    assert_eq!(as_dev(&vm, "cat ~/work && stat -c %a ~/work"), "hers\n600");
    assert_eq!(says(&vm, "cat /home/eve/.profile && stat -c %u /home/eve"), "eve of two\n1001", "a new user");
    let patch = sandbox.banger(["vm", "workspace", "export", "keep"]).go().ok();
    assert!(patch.text().contains("+++ b/new.txt"), "{patch}");
    // And it goes as a whole
    let dir = dir_of(&sandbox, &vm);
    vm.delete();
    assert!(!dir.exists());
    sandbox.no_vm_is_left();
}

#[test]
fn a_vm_gets_a_work_disk_later_and_no_crash_loses_a_home() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("late", "bare", &["--network", "none"]);
    let repo = Repo::make(&sandbox.work("project"));
    let prepare = ["vm", "workspace", "prepare", "late", "--guest-path", "/srv/project"];
    sandbox.banger(prepare).arg(repo.dir()).go().ok().done();
    says(&vm, "mkdir -p /root && echo mine >/root/work");
    vm.verb("stop", &[]).ok().done();
    // Given no work disk, nothing is thrown away by mistake
    let rebuild = |flags: &[&str]| change(&sandbox, "rebuild", "late", flags);
    let error = refused(&rebuild(&[]).ends_with(1), "invalid_argument");
    assert!(error["hint"].as_str().unwrap().contains("--work-disk"), "{error}");
    // Nor when there is one in name only
    change(&sandbox, "set", "late", &["--work-disk", "64M"]).ok().done();
    let error = refused(&rebuild(&[]).ends_with(1), "invalid_argument");
    assert!(error["hint"].as_str().unwrap().contains("banger vm start late"), "{error}");
    // Nor when the start that would have moved the home there was cut short
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    let start = sandbox.banger(["vm", "start", "late"]).env("BANGER_FAULT", "start.launch=kill-before");
    start.go().ends_with(1).done();
    assert_eq!(vm.show()["state"], "stopped");
    let dir = dir_of(&sandbox, &vm);
    assert_eq!(disks(&dir), ["system.ext4", "work.ext4"], "the disk is there, and nothing is on it");
    refused(&rebuild(&[]).ends_with(1), "invalid_argument");
    // When it has started once
    vm.verb("start", &[]).ok().done();
    assert_eq!(says(&vm, "cat /root/work"), "mine");
    vm.verb("stop", &[]).ok().done();

    // Then daemons that die at any step of a change leave the old VM or the new one, and the same command works after
    for (n, step) in ["set.record", "set.disks"].into_iter().enumerate() {
        for (m, action) in ["fail", "kill-before", "kill-after"].into_iter().enumerate() {
            let before = vm.show()["work_disk_bytes"].as_u64().unwrap();
            let wanted = (u64::try_from(n * 3 + m).unwrap() + 2) * (64 << 20);
            let size = format!("{}M", wanted >> 20);
            sandbox.banger(["daemon", "stop"]).go().ok().done();
            let set = sandbox.banger(["vm", "set", "late", "--work-disk", &size]);
            set.env("BANGER_FAULT", format!("{step}={action}")).go().ends_with(1).done();
            let shown = vm.show();
            let now = shown["work_disk_bytes"].as_u64().unwrap();
            assert!(now == before || now == wanted, "{step}={action}: {shown}");
            assert_eq!(shown["state"], "stopped", "{step}={action}: {shown}");
            change(&sandbox, "set", "late", &["--work-disk", &size]).ok().done();
            assert_eq!(fs::metadata(dir.join("work.ext4")).unwrap().len(), wanted, "{step}={action}");
        }
    }
    for step in ["rebuild.image", "rebuild.record", "rebuild.old_disk"] {
        for action in ["fail", "kill-before", "kill-after"] {
            sandbox.banger(["daemon", "stop"]).go().ok().done();
            let fault = format!("{step}={action}");
            let run = sandbox.banger(["vm", "rebuild", "late"]).env("BANGER_FAULT", &fault).go();
            // A disk that cannot be removed yet is no reason to fail.
            let fine = fault == "rebuild.old_disk=fail";
            assert_eq!(run.code(), i32::from(!fine), "{fault}: {run}");
            assert_eq!(vm.show()["state"], "stopped", "{fault}");
            assert!(disks(&dir).contains(&"work.ext4".to_owned()), "{fault}");
        }
    }
    // And the workspace, which was not in a home, went with the system disk, and is not shown any more
    assert_eq!(vm.show()["workspace"], Value::Null);
    let again = sandbox.banger(["vm", "rebuild", "late"]).go().ok();
    assert!(!again.err().contains("workspace"), "said once: {again}");
    vm.verb("start", &[]).ok().done();
    assert_eq!(says(&vm, "cat /root/work; test -e /srv/project || echo gone"), "mine\ngone");
    let left = disks(&dir);
    assert_eq!(left.len(), 2, "one system disk, one work disk: {left:?}");
    assert_eq!(fs::metadata(dir.join("work.ext4")).unwrap().mode() & 0o777, 0o600);
    vm.delete();
    sandbox.no_vm_is_left();
}
