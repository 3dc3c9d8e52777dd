//! Starts programs that outlive us: own session, no descriptor of ours but those it is given, a
//! clean environment, output to a log file. Must never tie a program's life to this process.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use banger_model::Security;

use crate::cage::{self, Cage, Inside, Policy};
use crate::process::{ProcessId, raw_pidfd, signal_pidfd, wait_pidfd, watch_fd};
use crate::{ChildExit, Result, Signal, VmmError};

/// A program to start on its own.
#[derive(Debug)]
pub struct Standalone {
    program: PathBuf,
    name: Option<OsString>,
    args: Vec<OsString>,
    fds: Vec<OwnedFd>,
    log: PathBuf,
    output: Option<PathBuf>,
    dir: PathBuf,
    small_pages: bool,
    private: bool,
    cage: Option<(Cage, Policy)>,
}

/// A started program. Dropping it kills the program, unless [`Spawned::release`] was called: so
/// whoever fails, or is cancelled, on the way leaves nothing behind.
#[derive(Debug)]
pub struct Spawned {
    process: ProcessId,
    pidfd: Option<OwnedFd>,
    security: Security,
    inside: Inside,
}

impl Standalone {
    /// `program` with its output appended to `log` (made 0600), working in `dir`.
    #[must_use]
    pub fn new(program: &Path, log: &Path, dir: &Path) -> Self {
        Self {
            program: program.to_owned(),
            name: None,
            args: Vec::new(),
            fds: Vec::new(),
            log: log.to_owned(),
            output: None,
            dir: dir.to_owned(),
            small_pages: false,
            private: false,
            cage: None,
        }
    }

    /// Appends its standard output to a file of its own (made 0600), not to the log.
    #[must_use]
    pub fn output(mut self, file: &Path) -> Self {
        self.output = Some(file.to_owned());
        self
    }

    /// Whatever files and sockets it makes are nobody else's from birth.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// Keeps huge pages from the program, whatever it asks for.
    pub fn small_pages(&mut self) {
        self.small_pages = true;
    }

    /// Sets the program's own name for itself (`argv[0]`).
    #[must_use]
    pub fn called(mut self, name: impl Into<OsString>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Puts it into a cage: it has what the policy gives, no environment, and nothing else.
    #[must_use]
    pub fn caged(mut self, cage: &Cage, policy: Policy) -> Self {
        self.cage = cage.builder().is_some().then(|| (cage.clone(), policy));
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Gives it a descriptor; returns the number it has there. Ours is closed after the start.
    pub fn give(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_raw_fd();
        self.fds.push(fd);
        number
    }

    /// Starts it. Blocks until it runs: some milliseconds for one in a cage.
    ///
    /// # Errors
    /// When the log cannot be opened, the program cannot be executed, or a required layer of its cage does not hold.
    pub fn spawn(mut self) -> Result<Spawned> {
        let log = open_log(&self.log)?;
        let Some((cage, policy)) = self.cage.take() else {
            let mut command = Command::new(&self.program);
            if let Some(name) = &self.name {
                command.arg0(name);
            }
            // A program may look for its own helpers; nothing of the user's leaks into it.
            command
                .args(&self.args)
                .env_clear()
                .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
                .env("LC_ALL", "C");
            let child = self.start(command, log).map_err(|source| self.failed(source))?;
            return self.look_at(child.id(), (Security::default(), Inside::default()));
        };
        let builder = cage.builder().map(Path::to_owned).unwrap_or_default();
        let name = self.name.clone().unwrap_or_else(|| self.program.clone().into());
        let argv = std::iter::once(name).chain(self.args.iter().cloned()).collect();
        let given: Vec<RawFd> = self.fds.iter().map(AsRawFd::as_raw_fd).collect();
        let prepared = cage::describe(&cage, &policy, &self.program, argv, &self.dir, &given)?;
        let fds = [self.give(prepared.description), self.give(prepared.answer)];
        let mut command = Command::new(&builder);
        // The builder, too, is found by the mark.
        command.arg0(format!("banger-cage:{}", policy.mark)).args(fds.map(|fd| fd.to_string())).env_clear();
        let mut child = self.start(command, log).map_err(|source| cage::missing(&builder, source))?;
        // What was given is the builder's now; as long as we held its answer's end, we would not see it close.
        self.fds.clear();
        let (pid, outcome) = cage::report(&self.program, prepared.reader);
        if pid != Some(child.id()) {
            if pid.is_none() {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
        match (pid, outcome) {
            (Some(pid), Ok(held)) => self.look_at(pid, held),
            (pid, outcome) => {
                if let Some(pid) = pid {
                    end_child(pid);
                }
                Err(outcome
                    .err()
                    .unwrap_or_else(|| self.failed(io::Error::other("its cage gave no process"))))
            }
        }
    }

    fn failed(&self, source: io::Error) -> VmmError {
        VmmError::Spawn { program: self.program.clone(), source }
    }

    /// Runs a command with our descriptors, in a session of its own.
    fn start(&self, mut command: Command, log: File) -> io::Result<Child> {
        let output = match &self.output {
            Some(path) => append_to(path)?,
            None => log.try_clone()?,
        };
        command.current_dir(&self.dir).stdin(Stdio::null()).stdout(output).stderr(log);
        let given: Vec<RawFd> = self.fds.iter().map(AsRawFd::as_raw_fd).collect();
        let (small_pages, private) = (self.small_pages, self.private);
        // SAFETY: the closure runs between fork and exec. It only makes system calls (setsid,
        // close_range, fcntl, prctl, umask), allocates nothing and touches no lock; the descriptors it names are
        // kept open by `self.fds` until after the spawn.
        #[expect(unsafe_code, reason = "pre_exec is the only hook between fork and exec")]
        unsafe {
            command.pre_exec(move || {
                if small_pages {
                    // A kernel without huge pages has nothing to disable.
                    let _ = rustix::thread::disable_transparent_huge_pages(true);
                }
                if private {
                    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
                }
                detach(&given)
            });
        }
        command.spawn()
    }

    /// The identity of a child of ours that nobody has reaped: its pid cannot be anybody else's yet.
    fn look_at(&self, pid: u32, (security, inside): (Security, Inside)) -> Result<Spawned> {
        let pidfd = raw_pidfd(pid)?;
        match (ProcessId::of(pid)?, pidfd) {
            (Some(process), Some(pidfd)) => Ok(Spawned { process, pidfd: Some(pidfd), security, inside }),
            _ => {
                // It ended between exec and here. Reap it, and let its log speak.
                let why = end_child(pid);
                let said = crate::console::tail_from(&self.log, 0, 2);
                let missed = missed(&inside, &said);
                let why = format!("it ended at once ({why}){missed}; its last words: {}", said.join("; "));
                Err(self.failed(io::Error::other(why)))
            }
        }
    }
}

/// Ends and reaps a child of ours; says how it ended.
fn end_child(pid: u32) -> String {
    use rustix::process::{WaitId, WaitIdOptions};
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else {
        return String::new();
    };
    // Nobody else reaps it, so that the pid is still its own.
    let _ = rustix::process::kill_process(pid, Signal::KILL);
    match rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (_, Some(signal)) => format!("signal {signal}"),
            _ => "status unknown".to_owned(),
        },
        _ => "status unknown".to_owned(),
    }
}

/// What a program may have missed in its cage, to follow how it ended.
fn missed(inside: &Inside, log: &[String]) -> String {
    inside.explain(log).into_iter().map(|line| format!("; {line}")).collect()
}

impl Spawned {
    /// Who it is.
    #[must_use]
    pub fn process(&self) -> &ProcessId {
        &self.process
    }

    /// What holds around it.
    #[must_use]
    pub fn security(&self) -> &Security {
        &self.security
    }

    /// How it ended, and what it may have missed in its cage by the last lines of its `log`. `None`: it runs on after
    /// `limit`, and is killed.
    pub async fn post_mortem(mut self, limit: Duration, log: impl Fn() -> Vec<String>) -> Option<String> {
        let inside = std::mem::take(&mut self.inside);
        let exit = self.ended_within(limit).await?;
        Some(format!("{exit}{}", missed(&inside, &log())))
    }

    /// Waits for its end, and reaps nothing.
    pub async fn ended(&self) {
        let pidfd = self.pidfd.as_ref().map(OwnedFd::try_clone).and_then(std::result::Result::ok);
        let Some(Ok(pidfd)) = pidfd.map(watch_fd) else { return std::future::pending().await };
        // A pidfd becomes readable when its process ends.
        let _ = pidfd.readable().await;
    }

    /// Waits for its end, but not longer than `limit`, and reaps it. `None`: it still runs.
    pub async fn ended_within(mut self, limit: Duration) -> Option<ChildExit> {
        let own = self.pidfd.as_ref()?.try_clone().ok()?;
        let ended = tokio::time::timeout(limit, wait_pidfd(own, self.process.pid)).await;
        let exit = ended.ok()?.ok()?;
        self.pidfd = None;
        Some(exit.unwrap_or(ChildExit { code: None, signal: None }))
    }

    /// Lets it live, and gives its identity and pidfd. Whoever calls this is the one to reap it
    /// ([`ProcessId::wait`]).
    #[must_use]
    pub fn release(mut self) -> (ProcessId, Option<OwnedFd>) {
        (self.process.clone(), self.pidfd.take())
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        let Some(pidfd) = self.pidfd.take() else { return };
        if let Err(error) = signal_pidfd(pidfd.as_fd(), self.process.pid, Signal::KILL) {
            tracing::warn!(%error, "a program that was started in vain could not be killed");
            return;
        }
        // SIGKILL ends a process within moments; the reaping must not wait for a runtime that may
        // be going down itself.
        let options = rustix::process::WaitIdOptions::EXITED;
        let _ = rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd.as_fd()), options);
    }
}

/// Runs in the child between fork and exec: system calls only.
fn detach(given: &[RawFd]) -> io::Result<()> {
    rustix::process::setsid()?;
    #[expect(unsafe_code, reason = "close_range and fcntl on bare numbers have no safe wrapper")]
    // SAFETY: plain system calls on descriptor numbers; nothing is closed now, only marked to be
    // closed by exec, so std's own pipe to the parent keeps working.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        for fd in given {
            if libc::fcntl(*fd, libc::F_SETFD, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Opens a log for appending; made 0600 when it is not there.
pub(crate) fn open_log(path: &Path) -> Result<File> {
    append_to(path).map_err(VmmError::file("open", path))
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn a_program_gets_a_session_its_own_descriptors_and_nothing_else() {
        // Given a descriptor that leaks (no close-on-exec) and one that is given
        let dir = tempfile::tempdir().unwrap();
        let leak =
            rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
        let (given, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let log = dir.path().join("log");
        let mut program = Standalone::new(Path::new("/bin/sh"), &log, dir.path());
        let number = program.give(given.into());
        program.small_pages();
        let script = "grep ^THP_enabled /proc/self/status; ps -o sid= -p $$; echo $$; pwd; env; ls -l /proc/$$/fd; exec sleep 600";
        let script = script.replace("ps -o sid= -p $$", "cut -d' ' -f6 /proc/$$/stat");
        // When it runs
        let spawned = program.args(["-c", &script]).spawn().unwrap();
        let text = loop {
            let text = fs::read_to_string(&log).unwrap();
            if text.contains(" 2 -> ") && text.contains(&format!(" {number} -> ")) {
                break text;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        };
        // Then it leads a session, works in its directory, and has no descriptor but its own
        // And no huge pages, where the kernel tells (6.0 and newer)
        let text = match text.split_once('\n') {
            Some((line, rest)) if line.starts_with("THP") => {
                assert_eq!(line, "THP_enabled:\t0");
                rest.to_owned()
            }
            _ => text,
        };
        let mut lines = text.lines();
        assert_eq!(lines.next(), lines.next());
        assert_eq!(lines.next(), Some(dir.path().to_str().unwrap()));
        assert!(!text.contains("CARGO"), "{text}");
        assert!(text.contains(" 0 -> /dev/null"), "{text}");
        assert!(!text.contains(&format!(" {} -> ", leak.as_raw_fd())), "{text}");
        // And dropping the guard leaves nothing
        let process = spawned.process().clone();
        assert!(process.is_alive());
        drop(spawned);
        assert!(ProcessId::of(process.pid).unwrap().is_none());
    }

    #[tokio::test]
    async fn output_can_have_a_file_of_its_own_and_what_is_made_can_be_private() {
        // Given a program that writes to both outputs and makes a file
        let dir = tempfile::tempdir().unwrap();
        let (log, output) = (dir.path().join("log"), dir.path().join("output"));
        fs::write(&output, "before\n").unwrap();
        let script = "echo says; echo complains >&2; : > made; exec sleep 600";
        let program = Standalone::new(Path::new("/bin/sh"), &log, dir.path()).output(&output).private();
        // When it has run
        let spawned = program.args(["-c", script]).spawn().unwrap();
        while !dir.path().join("made").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(spawned);
        // Then each went to its own file, appended, and the new file is nobody else's
        assert_eq!(fs::read_to_string(&output).unwrap(), "before\nsays\n");
        assert_eq!(fs::read_to_string(&log).unwrap(), "complains\n");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &dir.path().join("made").metadata().unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let program = Standalone::new(Path::new("/nowhere/qemu"), &dir.path().join("log"), dir.path());
        let error = program.spawn().unwrap_err().to_string();
        assert!(error.contains("/nowhere/qemu"), "{error}");
    }
}
