//! Control groups (kernel: Documentation/admin-guide/cgroup-v2.rst): one for the agent's server, one for the commands it
//! runs, and the standstill of all others. Must never freeze the agent itself: nobody could thaw it.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;

/// The server's group: beside systemd's, which would else take the server into its own init.scope.
const SERVER: &str = "banger-agent";
/// The group in which commands begin. What they start is in it too, so that it can be frozen without looking.
const COMMANDS: &str = "banger";
/// The group for processes of the root group, which cannot be frozen itself, while they stand still.
const STRAYS: &str = "banger-still";
/// How long processes may take to stand still. What waits for a disk is interrupted by nothing.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often strays are looked for when they are let go.
const ROUNDS: usize = 100;
/// linux/sched.h: a thread of the kernel.
const PF_KTHREAD: u64 = 0x0020_0000;

/// The guest's control groups, through a mount that nothing in the guest can cover or take away.
#[derive(Debug)]
pub(crate) struct Groups {
    /// Holds the mount.
    root: OwnedFd,
    /// Its directory.
    path: PathBuf,
    proc: PathBuf,
    server: Option<OwnedFd>,
    commands: Option<OwnedFd>,
    /// Processes that never stand still: the agent's.
    spared: Vec<u32>,
    patience: Duration,
}

/// Tells the server which descriptor is the mount of the control groups.
pub(crate) const ROOT_FD: &str = "BANGER_CGROUP_FD";

/// The guest's groups; none outside a guest, or where the kernel has none.
pub(crate) fn of_guest() -> Option<&'static Groups> {
    GUEST.get()?.as_ref()
}

/// Takes over the mount that process 1 left to this server. Call it once.
pub(crate) fn take_over(root: Option<OwnedFd>, spare: Option<u32>) {
    let _ = GUEST.set(root.and_then(|root| Groups::new(root).ok()).map(|groups| groups.spare(spare)));
}

static GUEST: OnceLock<Option<Groups>> = OnceLock::new();

/// What stands still.
#[derive(Debug, Default)]
pub(crate) struct Frozen {
    groups: Vec<OsString>,
    /// Where the strays were.
    homes: BTreeMap<u32, PathBuf>,
}

impl Groups {
    /// The groups below what is mounted at `/sys/fs/cgroup`, made as needed.
    pub(crate) fn make() -> io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Self::new(rustix::mount::open_tree(CWD, "/sys/fs/cgroup", flags)?)
    }

    /// Those of the process that this one was left a descriptor by.
    pub(crate) fn new(root: OwnedFd) -> io::Result<Self> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
        // As a directory that is no control group would have no such file.
        fs::metadata(path.join("cgroup.procs"))?;
        let group = |name: &str| {
            let _ = fs::create_dir(path.join(name));
            rustix::fs::open(
                path.join(name),
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let (server, commands) = (Some(group(SERVER)?), Some(group(COMMANDS)?));
        Ok(Self {
            root,
            path,
            proc: "/proc".into(),
            server,
            commands,
            spared: Vec::new(),
            patience: PATIENCE,
        })
    }

    /// Spares a process besides the calling one, which is the server.
    pub(crate) fn spare(mut self, pid: Option<u32>) -> Self {
        self.spared = pid.into_iter().chain([std::process::id()]).collect();
        self
    }

    /// The mount, for a server to inherit.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The group in which a server begins.
    pub(crate) fn server(&self) -> Option<BorrowedFd<'_>> {
        self.server.as_ref().map(AsFd::as_fd)
    }

    /// The group in which a command begins.
    pub(crate) fn commands(&self) -> Option<BorrowedFd<'_>> {
        self.commands.as_ref().map(AsFd::as_fd)
    }

    /// Moves the server into its group, where it could not begin in it.
    pub(crate) fn take_server(&self, pid: u32) {
        let _ = fs::write(self.path.join(SERVER).join("cgroup.procs"), pid.to_string());
    }

    /// Lets everything but the agent stand still. What stood still before is left alone.
    ///
    /// # Errors
    /// When something does not stand still; then nothing does.
    pub(crate) fn freeze(&self) -> io::Result<Frozen> {
        let mut frozen = Frozen::default();
        match self.freeze_into(&mut frozen) {
            Ok(()) => Ok(frozen),
            Err(error) => {
                let _ = self.thaw(&frozen);
                Err(error)
            }
        }
    }

    fn freeze_into(&self, frozen: &mut Frozen) -> io::Result<()> {
        let deadline = Instant::now() + self.patience;
        loop {
            self.gather(frozen, deadline)?;
            let before = frozen.groups.len();
            for name in self.others()? {
                let switch = self.path.join(&name).join("cgroup.freeze");
                match fs::read_to_string(&switch) {
                    Ok(state) if state.trim() == "0" => {
                        // Noted first: a failure undoes what is noted.
                        frozen.groups.push(name);
                        gone_is_fine(fs::write(&switch, "1"))?;
                    }
                    Ok(_) => {}
                    Err(error) => gone_is_fine(Err(error))?,
                }
            }
            for name in &frozen.groups {
                self.wait(&self.path.join(name), deadline)?;
            }
            // Whoever could make a group, or a process beside the groups, has done so before it stood still.
            if frozen.groups.len() == before && self.strays()?.is_empty() {
                return Ok(());
            }
        }
    }

    /// Lets all of it go on, and tries everything even when something fails.
    pub(crate) fn thaw(&self, frozen: &Frozen) -> io::Result<()> {
        let mut outcome = Ok(());
        for name in &frozen.groups {
            let thawed = gone_is_fine(fs::write(self.path.join(name).join("cgroup.freeze"), "0"));
            outcome = outcome.and(thawed);
        }
        let still = self.path.join(STRAYS);
        // Those that are back may have left children behind; a few rounds find all.
        for _ in 0..ROUNDS {
            let Ok(strays) = pids(&still) else { break };
            if strays.is_empty() {
                let _ = fs::remove_dir(&still);
                break;
            }
            for pid in strays {
                let home = frozen.homes.get(&pid).unwrap_or(&self.path);
                outcome = outcome.and(gone_is_fine(fs::write(home.join("cgroup.procs"), pid.to_string())));
            }
        }
        outcome
    }

    /// What an agent left standing still that is not there any more.
    pub(crate) fn left_frozen(&self) -> Option<Frozen> {
        let is_frozen = |name: &OsString| {
            let state = fs::read_to_string(self.path.join(name).join("cgroup.freeze"));
            state.is_ok_and(|state| state.trim() == "1")
        };
        let groups: Vec<OsString> = self.others().ok()?.into_iter().filter(is_frozen).collect();
        let by_agent = groups.iter().any(|name| name == COMMANDS || name == STRAYS);
        by_agent.then(|| Frozen { groups, homes: BTreeMap::new() })
    }

    /// Moves what is in the root group, or beside the server, into a group that can be frozen.
    fn gather(&self, frozen: &mut Frozen, deadline: Instant) -> io::Result<()> {
        let still = self.path.join(STRAYS);
        loop {
            let strays = self.strays()?;
            if strays.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.late());
            }
            match fs::create_dir(&still) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            for (pid, home) in strays {
                frozen.homes.insert(pid, home);
                gone_is_fine(fs::write(still.join("cgroup.procs"), pid.to_string()))?;
            }
        }
    }

    fn strays(&self) -> io::Result<Vec<(u32, PathBuf)>> {
        let mut strays = Vec::new();
        let kernel = self.kernel_threads();
        for home in [self.path.clone(), self.path.join(SERVER)] {
            let there = match pids(&home) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                there => there?,
            };
            for pid in there {
                if !self.spared.contains(&pid) && !kernel.contains(&pid) && self.is_user_process(pid) {
                    strays.push((pid, home.clone()));
                }
            }
        }
        Ok(strays)
    }

    /// Most of what is in the root group, in one look: kthreadd and its children. Where there is no such list, each is
    /// looked at by itself.
    fn kernel_threads(&self) -> HashSet<u32> {
        const KTHREADD: u32 = 2;
        let children = fs::read_to_string(self.proc.join("2/task/2/children")).unwrap_or_default();
        children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).chain([KTHREADD]).collect()
    }

    /// Neither the kernel's nor gone.
    fn is_user_process(&self, pid: u32) -> bool {
        stat(&self.proc, pid).is_some_and(|(_, _, flags)| flags & PF_KTHREAD == 0)
    }

    /// The groups at the top but the server's.
    fn others(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() && entry.file_name() != SERVER {
                names.push(entry.file_name());
            }
        }
        Ok(names)
    }

    /// Waits until all of a group stand still.
    fn wait(&self, group: &Path, deadline: Instant) -> io::Result<()> {
        let path = group.join("cgroup.events");
        loop {
            // A new descriptor sees what is true now, and is told of the next change.
            let events = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                events => events?,
            };
            let text = io::read_to_string(&events)?;
            if text.lines().any(|line| line == "frozen 1") {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.late());
            }
            let left =
                Timespec { tv_sec: 0, tv_nsec: left.min(Duration::from_millis(500)).subsec_nanos().into() };
            let mut fds = [PollFd::new(&events, PollFlags::PRI)];
            match rustix::event::poll(&mut fds, Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Names who does not stand still, if it can be found.
    fn late(&self) -> io::Error {
        let waits = fs::read_dir(&self.proc).into_iter().flatten().flatten().find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let (name, state, flags) = stat(&self.proc, pid)?;
            (state == b'D' && flags & PF_KTHREAD == 0 && !self.spared.contains(&pid)).then_some((name, pid))
        });
        let seconds = self.patience.as_secs();
        let message = match waits {
            Some((name, pid)) => {
                format!("process {pid} ('{}') waits for a file system or a device", name.escape_debug())
            }
            None => format!("they took longer than {seconds} s"),
        };
        io::Error::new(io::ErrorKind::TimedOut, message)
    }
}

/// A process or a group that ended needs nothing any more.
fn gone_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENODEV)) =>
        {
            Ok(())
        }
        outcome => outcome,
    }
}

fn pids(group: &Path) -> io::Result<Vec<u32>> {
    Ok(fs::read_to_string(group.join("cgroup.procs"))?.lines().filter_map(|line| line.parse().ok()).collect())
}

/// A process's name, state and flags (proc(5), `/proc/PID/stat`).
fn stat(proc: &Path, pid: u32) -> Option<(String, u8, u64)> {
    let stat = fs::read(proc.join(pid.to_string()).join("stat")).ok()?;
    let (begin, end) = (stat.iter().position(|b| *b == b'(')?, stat.iter().rposition(|b| *b == b')')?);
    let name = String::from_utf8_lossy(stat.get(begin + 1..end)?).into_owned();
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((name, state, fields.nth(5)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files that look like control groups and processes, and do nothing.
    struct Fake {
        dir: tempfile::TempDir,
    }

    impl Fake {
        fn new(groups: &[(&str, &str, &str)]) -> Self {
            let fake = Self { dir: tempfile::tempdir().unwrap() };
            for (name, freeze, frozen) in groups {
                let group = fake.dir.path().join("cgroup").join(name);
                fs::create_dir_all(&group).unwrap();
                fs::write(group.join("cgroup.freeze"), freeze).unwrap();
                fs::write(group.join("cgroup.events"), format!("populated 1\nfrozen {frozen}\n")).unwrap();
            }
            fs::write(fake.dir.path().join("cgroup/cgroup.procs"), "1\n2\n77\n").unwrap();
            for (pid, stat) in [
                (1, "1 (banger-agent) S 0 1 1 0 -1 4194560 0"),
                (2, "2 (kthreadd) S 0 0 0 0 -1 2129984 0"),
                (50, "50 (cp) x) D 1 50 50 0 -1 4194560 0"),
            ] {
                fs::create_dir_all(fake.dir.path().join("proc").join(pid.to_string())).unwrap();
                fs::write(fake.dir.path().join("proc").join(pid.to_string()).join("stat"), stat).unwrap();
            }
            fake
        }

        fn groups(&self) -> Groups {
            let path = self.dir.path().join("cgroup");
            let root = File::open(&path).unwrap().into();
            let (proc, patience) = (self.dir.path().join("proc"), Duration::from_millis(30));
            Groups { root, path, proc, server: None, commands: None, spared: vec![1], patience }
        }

        fn switch(&self, group: &str) -> String {
            fs::read_to_string(self.dir.path().join("cgroup").join(group).join("cgroup.freeze")).unwrap()
        }
    }

    #[test]
    fn all_stand_still_but_the_agent_and_what_stood_still_before_stays_so() {
        // Given services, commands, a container that the user paused, and the agent
        let fake = Fake::new(&[
            ("system.slice", "0\n", "1"),
            ("banger", "0\n", "1"),
            ("paused", "1\n", "1"),
            ("banger-agent", "0\n", "0"),
        ]);
        // When all are frozen
        let groups = fake.groups();
        let frozen = groups.freeze().unwrap();
        let all = |names: [&str; 4]| names.map(|name| fake.switch(name).trim().to_owned());
        let names = ["system.slice", "banger", "paused", "banger-agent"];
        assert_eq!(all(names), ["1", "1", "1", "0"]);
        // Then another agent would find out
        assert!(groups.left_frozen().is_some());
        // And after the thaw it is as before
        groups.thaw(&frozen).unwrap();
        assert_eq!(all(names), ["0", "0", "1", "0"]);
        assert!(groups.left_frozen().is_none());
    }

    #[test]
    fn one_that_does_not_stand_still_is_named_and_all_go_on() {
        let fake = Fake::new(&[("system.slice", "0\n", "1"), ("banger", "0\n", "0")]);
        let error = fake.groups().freeze().unwrap_err();
        assert_eq!(error.to_string(), "process 50 ('cp) x') waits for a file system or a device");
        assert_eq!((fake.switch("system.slice"), fake.switch("banger")), ("0".into(), "0".into()));
    }

    #[test]
    fn a_process_beside_the_groups_must_be_movable() {
        // Given a process of the user in the root group (77), which stays there whatever is written
        let fake = Fake::new(&[("banger", "0\n", "1")]);
        fs::create_dir_all(fake.dir.path().join("proc/77")).unwrap();
        fs::write(fake.dir.path().join("proc/77/stat"), "77 (sh) S 1 77 77 0 -1 4194560 0").unwrap();
        // Then a freeze does not claim to have frozen it
        let error = fake.groups().freeze().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let moved = fs::read_to_string(fake.dir.path().join("cgroup/banger-still/cgroup.procs")).unwrap();
        assert_eq!(moved, "77");
        assert_eq!(fake.switch("banger").trim(), "0");
    }
}
