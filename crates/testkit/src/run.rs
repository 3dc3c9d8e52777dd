//! Running a program with an end: nothing here waits for ever, and what it wrote is kept as bytes.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::evidence::Witness;
use crate::{as_invoker, wait};

/// What a program finds on its stdin.
#[derive(Debug, Clone)]
pub enum Feed {
    /// `/dev/null`.
    Null,
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// A pipe that stays open and silent until the program ends.
    Silent,
}

/// A program about to be run.
#[derive(Debug)]
pub struct Run {
    command: Command,
    feed: Feed,
    timeout: Duration,
    by_invoker: bool,
    state: Option<PathBuf>,
}

impl Run {
    /// A program with a clean environment but for PATH; a minute is all it gets.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        Self { command, feed: Feed::Null, timeout: Duration::from_secs(60), by_invoker: false, state: None }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Takes a variable away.
    #[must_use]
    pub fn without_env(mut self, key: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(key);
        self
    }

    /// Runs it there.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs it as somebody else, which needs root; without root that is all it takes to have no capability.
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.command.uid(uid).gid(gid);
        self.by_invoker()
    }

    /// Runs it as the user who runs the suite, whatever this thread is by now: for what only root may do.
    #[must_use]
    pub fn by_invoker(mut self) -> Self {
        self.by_invoker = true;
        self
    }

    /// Says whose state directory to look at when it does not end: it is a banger.
    #[must_use]
    pub(crate) fn of_installation(mut self, state: PathBuf) -> Self {
        self.state = Some(state);
        self
    }

    /// What it finds on stdin.
    #[must_use]
    pub fn feed(mut self, feed: Feed) -> Self {
        self.feed = feed;
        self
    }

    /// How long it may take.
    #[must_use]
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The bare command, for those who want its descriptors for themselves.
    ///
    /// # Panics
    /// When it is to be run as another user, which a bare command does not know.
    #[must_use]
    pub fn into_command(self) -> Command {
        assert!(!self.by_invoker, "{} is to be run as another user", shown(&self.command));
        self.command
    }

    /// Starts it.
    #[must_use]
    pub fn start(mut self) -> Running {
        let shown = shown(&self.command);
        let witness = self.state.map(|state| Witness::of(&self.command, state));
        let stdin = if matches!(self.feed, Feed::Null) { Stdio::null() } else { Stdio::piped() };
        self.command.process_group(0).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let spawned =
            if self.by_invoker { as_invoker(|| self.command.spawn()) } else { self.command.spawn() };
        let mut child = spawned.unwrap_or_else(|e| panic!("cannot run {shown}: {e}"));
        let stdout = Pipe::drain(child.stdout.take().expect("stdout is piped"));
        let stderr = Pipe::drain(child.stderr.take().expect("stderr is piped"));
        let mut silent = None;
        match (self.feed, child.stdin.take()) {
            (Feed::Bytes(bytes), Some(mut to)) => {
                // A program may end without reading everything; that is its choice.
                std::thread::spawn(move || to.write_all(&bytes));
            }
            (Feed::Silent, to) => silent = to,
            _ => {}
        }
        let (began, timeout) = (Instant::now(), self.timeout);
        Running { child, shown, stdout, stderr, silent, began, timeout, witness }
    }

    /// Runs it to its end.
    #[must_use]
    pub fn go(self) -> Output {
        self.start().wait()
    }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted: Vec<String> = words
        .map(|w| {
            let text = w.to_string_lossy();
            let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&b));
            if plain && !text.is_empty() { text.into_owned() } else { format!("{text:?}") }
        })
        .collect();
    quoted.join(" ")
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shown: String,
    stdout: Pipe,
    stderr: Pipe,
    silent: Option<std::process::ChildStdin>,
    began: Instant,
    timeout: Duration,
    witness: Option<Witness>,
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, to it alone.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        as_invoker(|| rustix::process::kill_process(pid, signal)).expect("the program runs");
    }

    /// What it wrote to stdout so far.
    #[must_use]
    pub fn stdout_so_far(&self) -> Vec<u8> {
        self.stdout.so_far()
    }

    /// What it wrote to stderr so far.
    #[must_use]
    pub fn stderr_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stderr.so_far()).into_owned()
    }

    /// Waits until stdout holds `needle`.
    pub fn until_stdout(&mut self, needle: &str) {
        let shown = self.shown.clone();
        let (stdout, stderr) = (self.stdout.clone(), self.stderr.clone());
        let found = wait::until(self.timeout, || {
            let text = String::from_utf8_lossy(&stdout.so_far()).into_owned();
            if text.contains(needle) {
                return Some(true);
            }
            // Ended without it: what came in the last moment is still being read.
            let ended = self.child.try_wait().ok().flatten().is_some();
            (ended && stdout.finished()).then_some(false)
        });
        assert!(
            found == Some(true),
            "{shown} never said {needle:?} on stdout\n--- stdout\n{}\n--- stderr\n{}",
            String::from_utf8_lossy(&stdout.so_far()),
            String::from_utf8_lossy(&stderr.so_far()),
        );
    }

    /// Waits for its end; kills it and panics when that takes too long.
    #[must_use]
    pub fn wait(mut self) -> Output {
        let left = self.timeout.saturating_sub(self.began.elapsed());
        let status = wait::until(left, || self.child.try_wait().expect("a child can be waited for"));
        let elapsed = self.began.elapsed();
        let Some(status) = status else {
            let told = self.witness.as_ref().map(Witness::tell).unwrap_or_default();
            self.end();
            panic!(
                "{} was still running after {:?}\n--- stdout\n{}\n--- stderr\n{}\n{told}",
                self.shown,
                self.timeout,
                tail(&self.stdout.so_far()),
                tail(&self.stderr.so_far())
            );
        };
        drop(self.silent.take());
        // Somebody it left behind could hold the pipe for ever: that is a leak, and said so.
        let closed = wait::until(Duration::from_secs(10), || {
            (self.stdout.finished() && self.stderr.finished()).then_some(())
        });
        assert!(closed.is_some(), "{} ended, but somebody still holds its stdout or stderr", self.shown);
        Output {
            shown: std::mem::take(&mut self.shown),
            status,
            stdout: self.stdout.so_far(),
            stderr: self.stderr.so_far(),
            elapsed,
        }
    }

    fn end(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let group = rustix::process::Pid::from_child(&self.child);
            let _ = as_invoker(|| rustix::process::kill_process_group(group, rustix::process::Signal::KILL));
            let _ = self.child.wait();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// What came out of a program.
#[derive(Debug)]
pub struct Output {
    shown: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its stdout.
    pub stdout: Vec<u8>,
    /// Its stderr.
    pub stderr: Vec<u8>,
    /// From its start to its end.
    pub elapsed: Duration,
}

impl Output {
    /// The exit status as a shell shows it: 128+N for a signal.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Passes when it ended with this status.
    #[track_caller]
    #[must_use = "or end the line with .done()"]
    pub fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "status of {self}");
        self
    }

    /// Passes when it ended with 0.
    #[track_caller]
    #[must_use = "or end the line with .done()"]
    pub fn ok(self) -> Self {
        self.ends_with(0)
    }

    /// Nothing more to ask of it.
    pub fn done(self) {}

    /// stdout as text, without the last line's end.
    #[track_caller]
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout)
            .unwrap_or_else(|_| panic!("not text: {self}"))
            .trim_end_matches('\n')
    }

    /// stderr as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// stdout as one JSON document and nothing else.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("stdout is not one JSON document ({e}): {self}"))
    }

    /// The `error` object that `--json` puts on stderr, which must hold nothing else.
    #[track_caller]
    #[must_use]
    pub fn json_error(&self) -> serde_json::Value {
        let whole: serde_json::Value = serde_json::from_slice(&self.stderr)
            .unwrap_or_else(|e| panic!("stderr is not one JSON document ({e}): {self}"));
        whole.get("error").unwrap_or_else(|| panic!("no 'error' in {whole}: {self}")).clone()
    }

    /// Passes when stderr has all these words, whatever their case.
    #[track_caller]
    #[must_use = "or end the line with .done()"]
    pub fn says(self, words: &[&str]) -> Self {
        let text = self.err().to_lowercase();
        for word in words {
            assert!(text.contains(&word.to_lowercase()), "stderr does not say {word:?}: {self}");
        }
        self
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} (status {}, {:.1} s)\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.shown,
            self.code(),
            self.elapsed.as_secs_f64(),
            tail(&self.stdout),
            tail(&self.stderr)
        )
    }
}

/// The last part of some output, for messages.
#[must_use]
pub fn tail(bytes: &[u8]) -> String {
    const MOST: usize = 4000;
    let from = bytes.len().saturating_sub(MOST);
    let cut = if from > 0 { format!("[{from} bytes left out]\n") } else { String::new() };
    cut + &String::from_utf8_lossy(bytes.get(from..).unwrap_or_default())
}

#[derive(Debug, Clone)]
struct Pipe {
    state: Arc<Mutex<(Vec<u8>, bool)>>,
}

impl Pipe {
    fn drain(mut from: impl Read + Send + 'static) -> Self {
        let state = Arc::new(Mutex::new((Vec::new(), false)));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            let mut chunk = vec![0; 64 * 1024];
            loop {
                match from.read(&mut chunk) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => shared.lock().unwrap().0.extend_from_slice(chunk.get(..n).unwrap_or_default()),
                }
            }
            shared.lock().unwrap().1 = true;
        });
        Self { state }
    }

    fn so_far(&self) -> Vec<u8> {
        self.state.lock().unwrap().0.clone()
    }

    fn finished(&self) -> bool {
        self.state.lock().unwrap().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_vmm::process::ProcessId;

    #[test]
    fn status_stdin_stdout_and_stderr_are_kept_apart() {
        let script = "cat; echo oops >&2; exit 7";
        let out = Run::new("sh").args(["-c", script]).feed(Feed::Bytes(b"in\xff".to_vec())).go().ends_with(7);
        assert_eq!(out.stdout, b"in\xff");
        assert_eq!(out.err(), "oops\n");
    }

    #[test]
    fn a_program_that_does_not_end_is_ended_with_its_children() {
        let slow =
            Run::new("sh").args(["-c", "sleep 1000 & echo $!; wait"]).within(Duration::from_millis(300));
        let mut running = slow.start();
        running.until_stdout("\n");
        let child: u32 = String::from_utf8(running.stdout_so_far()).unwrap().trim().parse().unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| running.wait())).is_err();
        assert!(panicked);
        let ended = || ProcessId::of(child).unwrap().is_none();
        wait::must("its child is gone", Duration::from_secs(5), ended);
    }
}
