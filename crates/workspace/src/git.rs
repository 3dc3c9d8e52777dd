//! The one sealed wrapper of host git: clean environment, no hooks, no pager, no monitors.
//!
//! Owns every git process this crate starts; each is waited for or killed. Must never be pointed
//! at a directory that a guest wrote, and never writes to the source repository: commands that
//! write get an index or object directory in scratch through [`Git::env`].

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use rustix::process::{Pid, Resource, Rlimit};

use crate::watch::{Watched, unpacked};
use crate::{Cancel, Result, WorkspaceError};

/// The environment git keeps: where it finds itself, its user's settings and a temporary place.
const KEPT: [&str; 7] = ["PATH", "HOME", "XDG_CONFIG_HOME", "USER", "LOGNAME", "TMPDIR", "LD_LIBRARY_PATH"];

/// Settings that keep git from running programs, writing behind our back or being clever.
const SETTINGS: [&str; 17] = [
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.splitIndex=false",
    "core.hooksPath=/dev/null",
    "core.pager=cat",
    "core.checkStat=default",
    "core.trustctime=true",
    "index.sparse=false",
    "index.skipHash=false",
    "index.threads=1",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.detachedHead=false",
    "pack.packSizeLimit=0",
    "pack.writeBitmaps=false",
    "protocol.allow=never",
    "submodule.recurse=false",
];

/// The most memory of its own for a git that reads what a guest wrote: objects can unfold to more than there is.
const PRIVATE_MEMORY: u64 = 2 << 30;

/// The most bytes kept of what git writes to stderr.
const STDERR_CAP: u64 = 16 << 10;

/// How to call git for one repository.
#[derive(Debug, Clone)]
pub(crate) struct Git {
    cwd: PathBuf,
    globals: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    /// The most memory of its own, bytes.
    memory: Option<u64>,
    cancel: Cancel,
}

impl Git {
    /// git that looks for a repository from `dir` upwards, as the user's own would.
    pub(crate) fn discover(dir: &Path) -> Self {
        Self {
            cwd: dir.to_owned(),
            globals: Vec::new(),
            env: Vec::new(),
            memory: None,
            cancel: Cancel::never(),
        }
    }

    /// git on a known repository and working tree.
    pub(crate) fn at(git_dir: &Path, work_tree: &Path) -> Self {
        let mut git = Self::discover(work_tree);
        git.globals.push(joined("--git-dir=", git_dir));
        git.work_tree(work_tree)
    }

    /// git on a bare repository of our own, with nobody's settings and nobody's attributes.
    pub(crate) fn private(git_dir: &Path) -> Self {
        let mut git = Self::discover(git_dir);
        git.memory = Some(PRIVATE_MEMORY);
        let nothing = OsStr::new("/dev/null");
        let mut git = git
            .env("GIT_CONFIG_GLOBAL", nothing)
            .env("GIT_CONFIG_NOSYSTEM", OsStr::new("1"))
            .env("GIT_ATTR_NOSYSTEM", OsStr::new("1"));
        git.globals.push(joined("--git-dir=", git_dir));
        let ours = [
            "core.attributesFile=/dev/null",
            "core.protectHFS=true",
            "core.protectNTFS=true",
            "core.fsync=none",
        ];
        ours.iter().fold(git, |git, setting| git.setting(setting))
    }

    /// The same, for files that came to as many bytes: of one it holds both sides, and what it packs each into.
    pub(crate) fn holding(mut self, bytes: u64) -> Self {
        self.memory = self.memory.map(|memory| memory.saturating_add(bytes.saturating_mul(4)));
        self
    }

    /// The same, given up when its caller no longer wants it.
    pub(crate) fn watching(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Who may no longer want an answer.
    pub(crate) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// The same with another working tree.
    pub(crate) fn work_tree(mut self, work_tree: &Path) -> Self {
        self.cwd = work_tree.to_owned();
        self.globals.retain(|g| !g.as_encoded_bytes().starts_with(b"--work-tree="));
        self.globals.push(joined("--work-tree=", work_tree));
        self
    }

    /// The same with one more variable.
    pub(crate) fn env(mut self, name: &str, value: &OsStr) -> Self {
        self.env.push((name.into(), value.to_owned()));
        self
    }

    /// The same with its index elsewhere.
    pub(crate) fn index(self, file: &Path) -> Self {
        self.env("GIT_INDEX_FILE", file.as_os_str())
    }

    /// The same with one more setting, `name=value`.
    pub(crate) fn setting(mut self, setting: &str) -> Self {
        self.globals.extend(["-c".into(), setting.into()]);
        self
    }

    /// Where it runs.
    pub(crate) fn dir(&self) -> &Path {
        &self.cwd
    }

    /// The error of an answer that is not understood.
    pub(crate) fn odd(&self, verb: &str) -> WorkspaceError {
        WorkspaceError::GitAnswer { verb: verb.to_owned(), repository: self.cwd.clone() }
    }

    fn command(&self, args: &[&OsStr]) -> Command {
        let mut command = Command::new("git");
        command.env_clear().current_dir(&self.cwd);
        command.envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs([
            ("LC_ALL", "C"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_GRAFT_FILE", "/dev/null"),
        ]);
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command.arg("--no-pager").args(&self.globals);
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        command.args(args);
        command
    }

    /// Runs git to its end and returns its output, at most `cap` bytes.
    pub(crate) fn output(&self, args: &[&str], cap: u64) -> Result<Vec<u8>> {
        self.feed(args, cap, |_| Ok(()))
    }

    /// The same, and success as an answer: `None` when git ended with another status than 0.
    pub(crate) fn query(&self, args: &[&str], cap: u64) -> Result<Option<Vec<u8>>> {
        match self.output(args, cap) {
            Ok(out) => Ok(Some(out)),
            Err(WorkspaceError::Git { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// One line of output, without its newline.
    pub(crate) fn line(&self, args: &[&str]) -> Result<Vec<u8>> {
        let mut out = self.output(args, 1 << 16)?;
        if out.last() == Some(&b'\n') {
            out.pop();
        }
        Ok(out)
    }

    /// Runs git with what `write` puts on its stdin; returns its output, at most `cap` bytes.
    pub(crate) fn feed(
        &self,
        args: &[&str],
        cap: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<()> + Send,
    ) -> Result<Vec<u8>> {
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        let mut run = Running::start(self, &args, Stdio::piped())?;
        let (stdin, stdout) = (run.child.stdin.take(), run.child.stdout.take());
        let mut out = Vec::new();
        let (written, read) = std::thread::scope(|scope| {
            let writer = scope.spawn(move || match stdin {
                Some(mut pipe) => write(&mut pipe),
                None => Ok(()),
            });
            let read = stdout.map_or(Ok(0), |pipe| run.watched(pipe).take(cap + 1).read_to_end(&mut out));
            if !matches!(read, Ok(n) if n as u64 <= cap) {
                run.kill();
            }
            (writer.join(), read)
        });
        if matches!(read, Ok(n) if n as u64 > cap) {
            return Err(WorkspaceError::GitAnswer { verb: run.verb.clone(), repository: self.cwd.clone() });
        }
        let read = match read {
            Ok(read) => Ok(read),
            Err(e) => Err(unpacked(e, |e| WorkspaceError::io("read git's output in", &self.cwd, e))),
        };
        if let Err(e @ (WorkspaceError::Cancelled | WorkspaceError::Special(_))) = read {
            return Err(e);
        }
        let written = written.unwrap_or(Ok(()));
        // git's own complaint says more than the broken pipe that it causes here.
        match (run.finish(), written) {
            (Err(e), _) => Err(e),
            (Ok(()), Err(e)) => Err(e),
            (Ok(()), Ok(())) => read.map(|_| out),
        }
    }

    /// Starts git and leaves its output to be read as it comes.
    pub(crate) fn stream(&self, args: &[&str]) -> Result<Streaming> {
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        let mut run = Running::start(self, &args, Stdio::piped())?;
        drop(run.child.stdin.take());
        let Some(out) = run.child.stdout.take() else {
            return Err(WorkspaceError::GitAnswer { verb: run.verb.clone(), repository: self.cwd.clone() });
        };
        Ok(Streaming { out, run })
    }

    /// Runs git with its output into a file.
    pub(crate) fn write_file(&self, args: &[impl AsRef<OsStr>], file: std::fs::File) -> Result<()> {
        let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
        let mut run = Running::start(self, &args, Stdio::from(file))?;
        drop(run.child.stdin.take());
        run.finish()
    }

    /// Starts git with a pipe to its stdin and its output into a file.
    pub(crate) fn converse_into(&self, args: &[&str], file: std::fs::File) -> Result<Running> {
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        Running::start(self, &args, Stdio::from(file))
    }

    /// Runs git and returns its status and output; `None` when a signal ended it or there was more
    /// than `cap` bytes.
    pub(crate) fn outcome(&self, args: &[&OsStr], cap: u64) -> Result<Option<(i32, Vec<u8>)>> {
        let mut run = Running::start(self, args, Stdio::piped())?;
        drop(run.child.stdin.take());
        let mut out = Vec::new();
        if let Some(pipe) = run.child.stdout.take() {
            let read = pipe.take(cap + 1).read_to_end(&mut out);
            read.map_err(|e| WorkspaceError::io("read git's output in", &self.cwd, e))?;
        }
        if out.len() as u64 > cap {
            return Ok(None);
        }
        run.ended = true;
        let status = run.child.wait().map_err(WorkspaceError::NoGit)?;
        Ok(status.code().map(|code| (code, out)))
    }

    /// Starts git with pipes to its stdin and from its stdout, for a conversation.
    pub(crate) fn converse(&self, args: &[&str]) -> Result<Running> {
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        Running::start(self, &args, Stdio::piped())
    }
}

fn joined(prefix: &str, path: &Path) -> OsString {
    let mut out = OsString::from(prefix);
    out.push(path);
    out
}

/// A git process; killed and reaped when dropped before its end.
#[derive(Debug)]
pub(crate) struct Running {
    /// The process, with its pipes.
    pub(crate) child: Child,
    verb: String,
    repository: PathBuf,
    stderr: Option<JoinHandle<Vec<u8>>>,
    ended: bool,
    cancel: Cancel,
}

impl Running {
    fn start(git: &Git, args: &[&OsStr], stdout: Stdio) -> Result<Self> {
        let mut command = git.command(args);
        command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| match git.cwd.is_dir() {
            true => WorkspaceError::NoGit(e),
            false => WorkspaceError::io("work in", &git.cwd, e),
        })?;
        if let (Some(memory), Some(pid)) = (git.memory, Pid::from_raw(child.id().cast_signed())) {
            let limit = Rlimit { current: Some(memory), maximum: Some(memory) };
            // It can only fail when git has ended by itself.
            let _ = rustix::process::prlimit(Some(pid), Resource::Data, limit);
        }
        let stderr = child.stderr.take().map(|pipe| std::thread::spawn(move || drain(pipe)));
        let verb = args.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
        let cancel = git.cancel.clone();
        Ok(Self { child, verb, repository: git.cwd.clone(), stderr, ended: false, cancel })
    }

    /// Its output, not waited for longer than the caller wants.
    pub(crate) fn watched<R: Read + AsFd>(&self, out: R) -> Watched<R> {
        Watched::new(out, &self.cancel, &self.repository)
    }

    fn kill(&mut self) {
        // It may have ended by itself; either way the wait that follows reaps it.
        let _ = self.child.kill();
    }

    /// Waits for the end; an error when the status is not 0.
    pub(crate) fn finish(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        self.ended = true;
        let status = self.child.wait().map_err(WorkspaceError::NoGit)?;
        let stderr = self.stderr.take().and_then(|t| t.join().ok()).unwrap_or_default();
        if status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&stderr).into_owned();
        let line = text.lines().find(|l| l.starts_with("fatal: ") || l.starts_with("error: "));
        let message = line.or(text.lines().last()).map_or_else(|| status.to_string(), str::to_owned);
        Err(WorkspaceError::Git { verb: self.verb.clone(), repository: self.repository.clone(), message })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

fn drain(mut pipe: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = (&mut pipe).take(STDERR_CAP).read_to_end(&mut kept);
    let _ = io::copy(&mut pipe, &mut io::sink());
    kept
}

/// The output of a git process as it comes; a failure of git is an error at the end of it.
#[derive(Debug)]
pub(crate) struct Streaming {
    out: ChildStdout,
    run: Running,
}

impl Read for Streaming {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.out.read(buf)?;
        if n == 0 && !buf.is_empty() && !self.run.ended {
            self.run.ended = true;
            let status = self.run.child.wait()?;
            if !status.success() {
                return Err(io::Error::other(format!("git {} failed: {status}", self.run.verb)));
            }
        }
        Ok(n)
    }
}
