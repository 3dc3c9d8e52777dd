//! Control groups (kernel: Documentation/admin-guide/cgroup-v2.rst): one for each VM, with limits, below the group that
//! this process was given to divide. Owns what is made there. Must never touch a group that was not delegated to this
//! process, nor one that others are in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_model::Mib;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Access;
use rustix::io::Errno;

use crate::{Result, VmmError};

/// The group of this process itself: one that has groups below it may have no process.
const OWN: &str = "bangerd";
/// Without these two there is no layer; without the third one processor time is shared as ever.
const NEEDED: [&str; 2] = ["memory", "pids"];
const WELCOME: &str = "cpu";
/// What the monitor and the network processes take besides the guest's memory; an emulator keeps what it translates.
const BESIDE_GUEST: u64 = (512 << 20) + EMULATOR;
const EMULATOR: u64 = 1 << 30;
/// Processes and threads: those of the monitor ([`super::inside`] limits it to fewer), and the network's.
const PROCESSES: u32 = 640;
/// The share of processor time of one vCPU; a group that says nothing has 100.
const WEIGHT: u32 = 100;
/// That of this process, which answers also when all VMs are busy.
const OWN_WEIGHT: u32 = 1000;
/// The largest there is.
const WEIGHT_MAX: u32 = 10_000;
/// How long what is in a group may take to end after it was killed.
const LIMIT: Duration = Duration::from_secs(10);

/// The group that this process divides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    top: PathBuf,
    processor: bool,
}

/// What one VM may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The guest's memory; what runs it has some more.
    pub memory: Mib,
    /// Its vCPUs: so many shares of the processor.
    pub vcpu: u32,
}

impl Groups {
    /// Takes the group that this process is in, if it was given it to divide: moves this process into one of its own
    /// below it. What an earlier one left empty goes.
    ///
    /// # Errors
    /// Why there is nothing to divide, in a few words.
    pub fn take() -> std::result::Result<Self, String> {
        let text = |path: &str| fs::read_to_string(path).map_err(|e| format!("{path} cannot be read: {e}"));
        let dir = own_directory(&text("/proc/self/cgroup")?, &text("/proc/self/mountinfo")?)?;
        Self::divide(if dir.ends_with(OWN) { dir.parent().unwrap_or(&dir) } else { &dir })
    }

    fn divide(top: &Path) -> std::result::Result<Self, String> {
        let shown = top.display();
        let read = |name: &str| {
            fs::read_to_string(top.join(name)).map_err(|e| format!("{shown}/{name} cannot be read: {e}"))
        };
        let controllers = read("cgroup.controllers")?;
        let has = |name: &str| controllers.split_ascii_whitespace().any(|c| c == name);
        if let Some(lacks) = NEEDED.iter().find(|name| !has(name)) {
            return Err(format!("the control group {shown} has no '{lacks}' controller"));
        }
        // Only the one that all others are in has none.
        if !top.join("cgroup.type").exists() {
            return Err("bangerd is in the control group that all others are below".to_owned());
        }
        let own = std::process::id().to_string();
        if let Some(other) = read("cgroup.procs")?.lines().find(|pid| *pid != own) {
            return Err(format!("bangerd shares its control group {shown} with process {other}"));
        }
        if !is_ours(top) {
            return Err(format!("the control group {shown} is not delegated to bangerd"));
        }
        let write = |name: &str, text: &str| {
            fs::write(top.join(name), text)
                .map_err(|e| format!("'{text}' cannot be written to {shown}/{name}: {e}"))
        };
        make(&top.join(OWN)).map_err(|e| format!("no group can be made below {shown}: {e}"))?;
        write(&format!("{OWN}/cgroup.procs"), &own)?;
        let processor = has(WELCOME);
        let wanted = NEEDED.iter().chain(processor.then_some(&WELCOME)).map(|name| format!("+{name}"));
        let divided = write("cgroup.subtree_control", &wanted.collect::<Vec<_>>().join(" "));
        if divided.is_err() {
            // As it was.
            let _ = write("cgroup.procs", &own).map(|()| fs::remove_dir(top.join(OWN)));
        }
        divided?;
        let groups = Self { top: top.to_owned(), processor };
        if processor {
            write(&format!("{OWN}/cpu.weight"), &OWN_WEIGHT.to_string())?;
        }
        groups.sweep();
        Ok(groups)
    }

    /// Where the group of what carries this mark is, whether or not it is there.
    #[must_use]
    pub fn of(&self, mark: &str) -> PathBuf {
        self.top.join(mark)
    }

    /// Makes it, with its limits.
    ///
    /// # Errors
    /// When the kernel refuses; then there is none.
    pub fn make(&self, mark: &str, limits: Limits) -> Result<()> {
        let group = self.of(mark);
        make(&group).map_err(VmmError::file("make", &group))?;
        let memory = limits.memory.to_bytes().saturating_add(BESIDE_GUEST);
        let weight = (WEIGHT * limits.vcpu.max(1)).min(WEIGHT_MAX);
        let mut files = vec![
            ("memory.max", memory.to_string()),
            // A VM of which a part is gone is of no use.
            ("memory.oom.group", "1".to_owned()),
            ("pids.max", PROCESSES.to_string()),
        ];
        files.extend(self.processor.then(|| ("cpu.weight", weight.to_string())));
        for (name, text) in files {
            let path = group.join(name);
            if let Err(error) = fs::write(&path, text) {
                let _ = fs::remove_dir(&group);
                return Err(VmmError::file("write", &path)(error));
            }
        }
        Ok(())
    }

    /// Removes groups that nobody is in.
    fn sweep(&self) {
        let entries = fs::read_dir(&self.top).into_iter().flatten().flatten();
        for entry in entries.filter(|e| e.file_name() != OWN && e.file_type().is_ok_and(|t| t.is_dir())) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Ends what is still in a group that [`Groups::make`] made, and removes it. One that is gone is no error. Blocks.
///
/// # Errors
/// When something in it does not end.
pub fn remove(group: &Path) -> Result<()> {
    let failed = VmmError::file("remove", group);
    match rustix::fs::statfs(group) {
        Err(Errno::NOENT) => return Ok(()),
        Ok(stat) if stat.f_type == libc::CGROUP2_SUPER_MAGIC => {}
        // Whatever it is, it is not ours.
        Ok(_) => return Err(failed(io::Error::other("it is no control group"))),
        Err(e) => return Err(failed(e.into())),
    }
    let until = Instant::now() + LIMIT;
    loop {
        match fs::remove_dir(group) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                // Before 5.14 there is no such file: then it only waits.
                let _ = fs::write(group.join("cgroup.kill"), "1");
                wait_for_change(group).map_err(VmmError::file("wait for the end of what is in", group))?;
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => return Ok(()),
        }
    }
}

/// Waits until the group's last process has ended, but not for long.
fn wait_for_change(group: &Path) -> io::Result<()> {
    let events = match fs::File::open(group.join("cgroup.events")) {
        Ok(events) => events,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    // A change is told to who has read what there was before.
    if io::read_to_string(&events)?.contains("populated 0") {
        return Ok(());
    }
    let limit = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn make(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Whether whoever manages the host has given it to us. An ordinary user is told by being able to write; root can write
/// everywhere, and systemd marks what it leaves alone.
fn is_ours(top: &Path) -> bool {
    let writable = ["", "cgroup.procs", "cgroup.subtree_control"]
        .iter()
        .all(|name| rustix::fs::access(top.join(name), Access::WRITE_OK).is_ok());
    let managed = rustix::process::geteuid().is_root() && Path::new("/run/systemd/system").is_dir();
    let marked = || {
        ["trusted.delegate", "user.delegate"].iter().any(|name| {
            let mut value = [0; 8];
            rustix::fs::getxattr(top, *name, &mut value).is_ok_and(|n| value.get(..n) == Some(b"1"))
        })
    };
    writable && (!managed || marked())
}

/// The directory of this process's group, by `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn own_directory(groups: &str, mounts: &str) -> std::result::Result<PathBuf, String> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let own = Path::new(own.ok_or("this kernel has no control groups of version 2")?);
    let mut mounted = mounts.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, at) = (place.next()?, place.next()?);
        let below = own.strip_prefix(root).ok()?;
        kind.starts_with("cgroup2 ").then(|| Path::new(at).join(below))
    });
    mounted.next_back().ok_or_else(|| "no control groups of version 2 are mounted".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        24 1 0:22 / /proc rw,relatime shared:1 - proc proc rw\n\
        40 1 0:33 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
        41 1 0:34 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn the_own_group_is_found_where_it_is_mounted() {
        let groups = "5:memory:/other\n0::/user.slice/bangerd.service\n";
        let found = own_directory(groups, MOUNTS).unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/unified/user.slice/bangerd.service"));
        // A container sees a part of the whole
        let part = "9 1 0:33 /machine/a /sys/fs/cgroup rw shared:9 - cgroup2 none rw\n";
        assert_eq!(own_directory("0::/machine/a/b", part).unwrap(), Path::new("/sys/fs/cgroup/b"));
        assert!(own_directory("0::/elsewhere", part).unwrap_err().contains("mounted"));
        assert!(own_directory("5:memory:/other\n", MOUNTS).unwrap_err().contains("version 2"));
    }

    #[test]
    fn what_cannot_be_divided_is_left_as_it_is_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |files: &[(&str, &str)], why: &str| {
            for (name, text) in files {
                fs::write(dir.path().join(name), text).unwrap();
            }
            let before = fs::read_dir(dir.path()).unwrap().count();
            let said = Groups::divide(dir.path()).unwrap_err();
            assert!(said.contains(why), "{said}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before);
        };
        refused(&[], "cgroup.controllers cannot be read");
        refused(&[("cgroup.controllers", "cpu hugetlb pids\n")], "no 'memory' controller");
        refused(&[("cgroup.controllers", "memory pids\n")], "that all others are below");
        let shared = format!("{}\n1\n", std::process::id());
        refused(&[("cgroup.type", "domain\n"), ("cgroup.procs", &shared)], "with process 1");
        assert!(remove(dir.path()).unwrap_err().to_string().contains("no control group"));
        assert!(dir.path().exists());
        remove(&dir.path().join("gone")).unwrap();
    }
}
