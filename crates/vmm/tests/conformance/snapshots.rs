//! The *machine* level of snapshots: that they are whole or not there, go on anywhere, share what they can, and never
//! cost the machine that they are of.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use banger_model::{Accel, Error, ErrorCode, Mib};
use banger_vmm::{DiskRole, Last, Machine, MachineSpec, VmmError, process};

use crate::bench::{Bench, Subject, counts_beyond, last_number, mode, nothing, read, soon};
use crate::{Scenario, guest, scenarios};

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![
        a_snapshot_goes_on_elsewhere_and_more_than_once,
        a_snapshot_of_a_machine_that_went_on_from_one_goes_on,
        what_a_clone_never_touched_is_in_its_own_snapshot,
        a_restored_machine_that_is_halted_waits,
        clones_share_the_pages_that_they_only_read,
        a_snapshot_of_something_else_is_refused,
        a_memory_file_that_was_touched_is_refused,
        a_snapshot_that_fails_leaves_nothing_and_the_machine_goes_on,
        a_full_disk_costs_the_snapshot_and_not_the_machine,
        a_snapshot_that_nobody_waits_for_leaves_the_machine_running,
        a_daemon_killed_in_the_middle_leaves_a_machine_that_another_lets_go_on,
    ]
}

/// A directory for a snapshot.
fn place(home: &Path, name: &str) -> PathBuf {
    let dir = home.join(name);
    fs::create_dir(&dir).unwrap();
    dir
}

async fn a_snapshot_goes_on_elsewhere_and_more_than_once(subject: Subject) {
    // Given a machine that has counted for a while
    let first = Bench::new(&subject);
    let machine = soon(subject.driver.launch(first.spec(&guest::count()))).await.unwrap();
    counts_beyond(&first, 20).await;
    // When it is snapshotted
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    let dir = home.path().join("snapshot");
    fs::create_dir(&dir).unwrap();
    soon(machine.snapshot(&dir, nothing())).await.unwrap();
    let then = last_number(&first);
    // Then the files are private and sparse
    for entry in fs::read_dir(&dir).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    let memory = dir.join("memory").metadata().unwrap();
    assert_eq!(memory.size(), 64 << 20);
    assert!(memory.blocks() * 512 < 8 << 20, "{} bytes are stored", memory.blocks() * 512);
    // And the machine stands still until it is told to go on, and then goes on
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(last_number(&first), then);
    soon(machine.resume()).await.unwrap();
    counts_beyond(&first, then + 5).await;
    // When others go on from there, while it still runs
    let files = |name: &str| fs::read(dir.join(name)).unwrap();
    let before = (files("memory"), files("state"));
    for _ in 0..2 {
        let other = Bench::new(&subject);
        let spec = other.spec(b"another kernel that nobody looks at");
        let clone = soon(subject.driver.restore(spec, &dir)).await.unwrap();
        counts_beyond(&other, then + 5).await;
        // Then they begin where it was, not where it is, nor at nothing
        let numbers = guest::numbers(&read(&other.console()));
        assert!((then..then + 4).contains(&numbers[0]), "{then}: {:?}", &numbers[..5]);
        assert_eq!(clone.handle().vm, other.id);
        assert_eq!(process::find_marked(&other.id).unwrap(), [clone.handle().process.clone()]);
        soon(clone.pause()).await.unwrap();
        soon(clone.resume()).await.unwrap();
        counts_beyond(&other, last_number(&other)).await;
        assert_eq!(open_for_writing(clone.handle().process.pid, &dir), Vec::<String>::new());
        soon(clone.stop()).await.unwrap();
    }
    // And none of them wrote to the snapshot
    assert!(before == (files("memory"), files("state")));
    let at = last_number(&first);
    counts_beyond(&first, at).await;
    soon(machine.stop()).await.unwrap();
}

/// The files below a directory that a process may write to by a descriptor, or by a mapping that is not its own.
fn open_for_writing(pid: u32, dir: &Path) -> Vec<String> {
    let below = |path: &Path| path.starts_with(dir);
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let fds = fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|path| below(&path)));
    let writes = |fd: &fs::DirEntry| {
        let info = read(&Path::new(&format!("/proc/{pid}/fdinfo")).join(fd.file_name()));
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim().to_owned();
        u32::from_str_radix(&flags, 8).unwrap() & 3 != 0
    };
    let open = fds.filter(writes).map(|fd| format!("{:?}", fd.file_name()));
    let maps = read(Path::new(&format!("/proc/{pid}/maps")));
    let shared = maps.lines().filter(|line| line.contains(dir.to_str().unwrap()) && line.contains("rw-s"));
    open.chain(shared.map(str::to_owned)).collect()
}

async fn a_snapshot_of_a_machine_that_went_on_from_one_goes_on(subject: Subject) {
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    let first = Bench::new(&subject);
    let mut machine = soon(subject.driver.launch(first.spec(&guest::count_in(8)))).await.unwrap();
    let mut bench = first;
    counts_beyond(&bench, 5).await;
    // Given machines of which each goes on from a snapshot of the one before
    for generation in 1..=3 {
        let dir = place(home.path(), &format!("of-{generation}"));
        soon(machine.snapshot(&dir, nothing())).await.unwrap();
        let then = last_number(&bench);
        // The parent goes on as well, with the files that it began with
        soon(machine.resume()).await.unwrap();
        counts_beyond(&bench, then + 3).await;
        let next = Bench::new(&subject);
        // Links are as good as the files, and stay when those go
        let own = place(&next.files(), "snapshot");
        for name in ["memory", "state", "snapshot.json"] {
            fs::hard_link(dir.join(name), own.join(name)).unwrap();
        }
        let child = soon(subject.driver.restore(next.spec(b"no kernel"), &own)).await.unwrap();
        fs::remove_dir_all(&dir).unwrap();
        counts_beyond(&next, then + 3).await;
        // Then each begins where its parent was
        let numbers = guest::numbers(&read(&next.console()));
        assert!((then..then + 4).contains(&numbers[0]), "{generation}: {then}: {:?}", &numbers[..3]);
        soon(machine.stop()).await.unwrap();
        (machine, bench) = (child, next);
    }
    soon(machine.stop()).await.unwrap();
}

async fn what_a_clone_never_touched_is_in_its_own_snapshot(subject: Subject) {
    const USED: usize = 8 << 20;
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    let (of_first, of_clone) = (place(home.path(), "first"), place(home.path(), "clone"));
    // Given a machine that wrote to each page of a part of its memory, and a clone that has none of them, nor has the host
    let first = Bench::new(&subject);
    let machine = first.launch(&guest::count_beside(8)).await;
    counts_beyond(&first, 5).await;
    soon(machine.snapshot(&of_first, nothing())).await.unwrap();
    soon(machine.stop()).await.unwrap();
    let memory = fs::File::open(of_first.join("memory")).unwrap();
    memory.sync_all().unwrap();
    rustix::fs::fadvise(&memory, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let other = Bench::new(&subject);
    let clone = soon(subject.driver.restore(other.spec(b"no kernel"), &of_first)).await.unwrap();
    counts_beyond(&other, last_number(&first) + 3).await;
    // When the clone is snapshotted, also a second time
    for _ in 0..2 {
        let dir = place(&of_clone, "snapshot");
        soon(clone.snapshot(&dir, nothing())).await.unwrap();
        soon(clone.resume()).await.unwrap();
        // Then all of it is there, and what nobody ever touched takes no room
        let pages = |dir: &Path| {
            let mut bytes = vec![0; USED];
            fs::File::open(dir.join("memory")).unwrap().read_exact_at(&mut bytes, 4 << 20).unwrap();
            bytes
        };
        assert!(pages(&dir) == pages(&of_first));
        assert!(pages(&dir).chunks(4096).all(|page| page.iter().any(|byte| *byte != 0)));
        let blocks = dir.join("memory").metadata().unwrap().blocks();
        assert!(blocks * 512 < 16 << 20, "{} bytes are stored", blocks * 512);
        fs::remove_dir_all(&dir).unwrap();
    }
    soon(clone.stop()).await.unwrap();
}

async fn a_restored_machine_that_is_halted_waits(subject: Subject) {
    let first = Bench::new(&subject);
    let machine = first.launch(&guest::count()).await;
    counts_beyond(&first, 5).await;
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    soon(machine.snapshot(home.path(), nothing())).await.unwrap();
    soon(machine.stop()).await.unwrap();
    let then = last_number(&first);
    let other = Bench::new(&subject);
    let clone = soon(subject.driver.restore(other.spec(b"no kernel"), home.path())).await.unwrap();
    soon(clone.pause()).await.unwrap();
    let said = read(&other.console());
    // Then it stands still, also for a daemon that takes it over, until it is resumed
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(soon(clone.is_paused()).await.unwrap());
    let handle = clone.handle().clone();
    drop(clone);
    let clone = soon(subject.driver.adopt(&handle)).await.unwrap().unwrap();
    assert!(soon(clone.is_paused()).await.unwrap());
    assert_eq!(read(&other.console()), said);
    // And can be snapshotted as it stands
    let again = place(&other.files(), "again");
    soon(clone.snapshot(&again, nothing())).await.unwrap();
    assert!(soon(clone.is_paused()).await.unwrap());
    soon(clone.resume()).await.unwrap();
    counts_beyond(&other, then + 2).await;
    soon(clone.stop()).await.unwrap();
}

/// The memory that is in proportion a process's own, KiB.
fn proportional(machine: &dyn Machine) -> u64 {
    let rollup = read(Path::new(&format!("/proc/{}/smaps_rollup", machine.handle().process.pid)));
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("a line");
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

async fn clones_share_the_pages_that_they_only_read(subject: Subject) {
    const CLONES: u64 = 8;
    // Given a machine most of whose memory is in use; an emulated KVM is slow at that, and Firecracker itself is small
    let used = if subject.accel == Accel::Tcg { 352 } else { 96 };
    let first = Bench::new(&subject);
    let large = |spec: MachineSpec| {
        let shape = banger_model::MachineShape { memory: Mib(used + 32), ..spec.shape };
        MachineSpec { shape, ..spec }
    };
    let machine = soon(subject.driver.launch(large(first.spec(&guest::count_in(used))))).await.unwrap();
    counts_beyond(&first, 1).await;
    let cold = proportional(&*machine);
    assert!(cold > u64::from(used) << 10, "{cold} KiB");
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    soon(machine.snapshot(home.path(), nothing())).await.unwrap();
    soon(machine.stop()).await.unwrap();
    let then = last_number(&first);
    // When eight clones of it read all that memory
    let mut clones = Vec::new();
    for _ in 0..CLONES {
        let other = Bench::new(&subject);
        let spec = large(other.spec(b"no kernel"));
        let clone = soon(subject.driver.restore(spec, home.path())).await.unwrap();
        counts_beyond(&other, then + 2).await;
        soon(clone.pause()).await.unwrap();
        clones.push((clone, other));
    }
    // Then each costs a part of what the first one does
    for (clone, _) in &clones {
        let warm = proportional(&**clone);
        assert!(warm <= cold / 4, "{warm} KiB, and the cold one {cold} KiB");
    }
    for (clone, _) in clones {
        soon(clone.stop()).await.unwrap();
    }
}

/// A snapshot of a counting machine that is gone.
async fn snapshot_of(subject: &Subject, dir: &Path) {
    let bench = Bench::new(subject);
    let machine = bench.launch(&guest::count()).await;
    soon(machine.snapshot(dir, nothing())).await.unwrap();
    soon(machine.stop()).await.unwrap();
}

async fn refused(subject: &Subject, spec: impl FnOnce(&Bench) -> MachineSpec, dir: &Path) -> String {
    let other = Bench::new(subject);
    let error = soon(subject.driver.restore(spec(&other), dir)).await.unwrap_err();
    assert!(matches!(error, VmmError::ForeignSnapshot { .. }), "{error:?}");
    other.assert_nothing_left("a refusal");
    let error: Error = error.into();
    assert_eq!(error.code, ErrorCode::Unsupported);
    error.message
}

async fn a_snapshot_of_something_else_is_refused(subject: Subject) {
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    let dir = home.path();
    snapshot_of(&subject, dir).await;
    let altered: [fn(&mut MachineSpec); 3] = [
        |spec| spec.shape.memory.0 = 96,
        |spec| spec.disks.clear(),
        |spec| spec.disks[0].role = DiskRole::Work,
    ];
    for alter in altered {
        let spec = |bench: &Bench| {
            let mut spec = bench.spec(&guest::idle());
            alter(&mut spec);
            spec
        };
        assert!(refused(&subject, spec, dir).await.contains("laid out"));
    }
    // And one of another version, and one that was never finished
    let idle = |bench: &Bench| bench.spec(&guest::idle());
    let about = read(&dir.join("snapshot.json"));
    let version = subject.driver.capabilities().await.unwrap().version;
    assert!(about.contains(&version), "{about}");
    fs::write(dir.join("snapshot.json"), about.replace(&version, "1.2.3")).unwrap();
    let error = refused(&subject, idle, dir).await;
    assert!(error.contains("version 1.2.3 wrote it") && error.contains(&version), "{error}");
    // And one of a machine with devices that ours have not (those of before there were balloons say nothing of them)
    let mut other: serde_json::Value = serde_json::from_str(&about).unwrap();
    let layout = other["layout"].as_object_mut().unwrap();
    match layout["devices"].as_u64().unwrap() {
        0 => drop(layout.insert("devices".into(), 7.into())),
        _ => drop(layout.remove("devices")),
    }
    fs::write(dir.join("snapshot.json"), other.to_string()).unwrap();
    let error = refused(&subject, idle, dir).await;
    assert!(error.contains("other devices"), "{error}");
    fs::remove_file(dir.join("snapshot.json")).unwrap();
    let other = Bench::new(&subject);
    assert!(soon(subject.driver.restore(other.spec(&guest::idle()), dir)).await.is_err());
    other.assert_nothing_left("half a snapshot");
}

async fn a_memory_file_that_was_touched_is_refused(subject: Subject) {
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    let dir = home.path();
    snapshot_of(&subject, dir).await;
    let memory = dir.join("memory");
    let open = || fs::File::options().write(true).open(&memory).unwrap();
    let idle = |bench: &Bench| bench.spec(&guest::idle());
    // Given a clone that went on while it was whole
    let bench = Bench::new(&subject);
    let clone = soon(subject.driver.restore(idle(&bench), dir)).await.unwrap();
    counts_beyond(&bench, last_number(&bench) + 2).await;
    // When it is written to, then nobody else begins with it
    open().write_all_at(&[0], 63 << 20).unwrap();
    assert!(refused(&subject, idle, dir).await.contains("written to"));
    let full = memory.metadata().unwrap().size();
    open().set_len(full - 4096).unwrap();
    let error = refused(&subject, idle, dir).await;
    assert!(error.contains(&format!("{} bytes, not {full}", full - 4096)), "{error}");
    fs::remove_file(&memory).unwrap();
    refused(&subject, idle, dir).await;
    soon(clone.stop()).await.unwrap();
}

async fn a_snapshot_that_fails_leaves_nothing_and_the_machine_goes_on(subject: Subject) {
    let bench = Bench::new(&subject);
    let machine = bench.launch(&guest::count()).await;
    // Given no directory, one in which something lies already, and a caller who fails in the middle
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    let (taken, empty) = (place(home.path(), "taken"), place(home.path(), "empty"));
    fs::write(taken.join("state"), "mine").unwrap();
    let fails = || -> Last<'static> {
        Box::pin(async { Err(Error::new(ErrorCode::Busy, "not now").with_hint("wait")) })
    };
    for (dir, last) in
        [(home.path().join("absent"), nothing()), (taken.clone(), nothing()), (empty.clone(), fails())]
    {
        let error: Error = soon(machine.snapshot(&dir, last)).await.unwrap_err().into();
        if dir == empty {
            assert_eq!((error.code, error.hint.as_deref()), (ErrorCode::Busy, Some("wait")));
        }
        // Then it goes on by itself
        assert!(!soon(machine.is_paused()).await.unwrap());
        counts_beyond(&bench, last_number(&bench) + 2).await;
    }
    assert_eq!(read(&taken.join("state")), "mine");
    assert_eq!(fs::read_dir(&taken).unwrap().count() + fs::read_dir(&empty).unwrap().count(), 1);
    // And one that was paused stays so
    soon(machine.pause()).await.unwrap();
    assert!(soon(machine.snapshot(&taken, nothing())).await.is_err());
    assert!(soon(machine.is_paused()).await.unwrap());
    soon(machine.stop()).await.unwrap();
}

/// A small file system, unmounted when it is dropped.
struct Small(PathBuf);

impl Small {
    fn at(dir: &Path, mib: u32) -> Self {
        let options = format!("size={mib}m,mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "small"]).arg(dir).status();
        assert!(mounted.unwrap().success());
        Self(dir.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

async fn a_full_disk_costs_the_snapshot_and_not_the_machine(subject: Subject) {
    if !rustix::process::geteuid().is_root() {
        crate::say("conformance: a full disk: skipped: mounting a small file system needs root");
        return;
    }
    let bench = Bench::new(&subject);
    // Given room for a part of the memory only, wherever the monitor or we write it
    let small = Small::at(&bench.logs(), 24);
    let machine = bench.launch(&guest::count_in(40)).await;
    counts_beyond(&bench, 2).await;
    let dir = place(&bench.logs(), "snapshot");
    let error: Error = soon(machine.snapshot(&dir, nothing())).await.unwrap_err().into();
    assert_eq!(error.code, ErrorCode::Unavailable, "{error:?}");
    assert!(error.hint.unwrap().contains("space"));
    // Then nothing of it is left, and the machine goes on
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    let left: u64 = ["room/memory", "room/state"]
        .map(|name| bench.logs().join(name).metadata().map_or(0, |m| m.size()))
        .iter()
        .sum();
    assert_eq!(left, 0);
    assert!(!soon(machine.is_paused()).await.unwrap());
    counts_beyond(&bench, last_number(&bench) + 1).await;
    soon(machine.stop()).await.unwrap();
    drop(small);
}

async fn a_snapshot_that_nobody_waits_for_leaves_the_machine_running(subject: Subject) {
    let bench = Bench::new(&subject);
    let machine = bench.launch(&guest::count_in(16)).await;
    counts_beyond(&bench, 1).await;
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    // Given snapshots that are dropped a little later each time
    for delay in [0, 1, 2, 5, 10, 20, 40] {
        let dir = place(home.path(), &delay.to_string());
        let snapshot = machine.snapshot(&dir, nothing());
        match tokio::time::timeout(Duration::from_millis(delay), snapshot).await {
            Ok(done) => {
                done.unwrap();
                soon(machine.resume()).await.unwrap();
            }
            Err(_) => assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "after {delay} ms"),
        }
        // Then it goes on
        counts_beyond(&bench, last_number(&bench) + 2).await;
    }
    soon(machine.stop()).await.unwrap();
}

/// What [`be_killed`] is to do.
pub(crate) const ORDER: &str = "BANGER_CONFORMANCE_ORDER";

/// In a process of its own: takes a machine over, snapshots it, and says when it is about to halt.
pub(crate) async fn be_killed(subject: Subject, order: &Path) {
    let handle = serde_json::from_str(&read(&order.join("handle.json"))).unwrap();
    let machine = soon(subject.driver.adopt(&handle)).await.unwrap().unwrap();
    let last = Box::pin(async {
        println!("\nhalting");
        Ok(())
    });
    soon(machine.snapshot(&order.join("snapshot"), last)).await.unwrap();
}

async fn a_daemon_killed_in_the_middle_leaves_a_machine_that_another_lets_go_on(subject: Subject) {
    let bench = Bench::new(&subject);
    let mut machine: Arc<dyn Machine> = bench.launch(&guest::count_in(24)).await;
    counts_beyond(&bench, 1).await;
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut halted = 0;
    // Given another process that dies a little later each time, at last when it is done
    for delay in [0, 1, 3, 8, 20, 20_000] {
        let order = place(home.path(), &delay.to_string());
        place(&order, "snapshot");
        let handle = machine.handle().clone();
        fs::write(order.join("handle.json"), serde_json::to_vec(&handle).unwrap()).unwrap();
        drop(machine);
        let mut other = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "one_that_is_killed", "--nocapture"])
            .env(ORDER, &order)
            .env("BANGER_CONFORMANCE_DRIVER", subject.name)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(other.stdout.take().unwrap()).lines();
        let said = tokio::task::spawn_blocking(move || {
            let mut lines = lines.map_while(Result::ok);
            lines.any(|line| line == "halting").then_some(lines)
        });
        let rest = soon(said).await.unwrap().expect("it is about to halt");
        if delay < 1000 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            other.kill().unwrap();
        }
        let _ = tokio::task::spawn_blocking(move || (rest.count(), other.wait())).await;
        // When another takes the machine over, it knows that it stands still, if so, and lets it go on
        machine = soon(subject.driver.adopt(&handle)).await.unwrap().expect("it lives");
        if soon(machine.is_paused()).await.unwrap() {
            halted += 1;
            soon(machine.resume()).await.unwrap();
        }
        counts_beyond(&bench, last_number(&bench) + 2).await;
    }
    assert!(halted > 0, "the last one was not killed before it was done");
    soon(machine.stop()).await.unwrap();
}
