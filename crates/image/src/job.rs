//! One external program at a time: its own process group, its last words, and a certain end.
//! Must never leave a process behind, also when this process is killed.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use banger_host::programs::Missing;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::error::{ImageError, Result};

/// Lines kept for the error message of a program that fails.
const TAIL_LINES: usize = 40;
/// A longer line is cut: programs that draw bars never end theirs.
const LINE_MAX: usize = 4096;
const POLL: Duration = Duration::from_millis(20);

/// Runs `"$@"` and ends the whole process group as soon as standard input closes, which the kernel
/// does for us when this process dies. dash and bash both do this.
///
/// What these programs make is for a guest and its users, not for this host: the daemon's umask would
/// end up in images.
const GUARDED: &str = r#"umask 022
exec 3<&0 </dev/null
"$@" 3<&- &
job=$!
( read -r _ <&3; kill -KILL 0 ) &
guard=$!
exec 3<&-
wait "$job"
status=$?
kill -KILL "$guard"
exit "$status""#;

/// A running program.
pub(crate) struct Job {
    tool: &'static str,
    child: Child,
    /// Of a guarded job: closing it ends the job.
    life: Option<ChildStdin>,
    stderr: Option<JoinHandle<VecDeque<String>>>,
    lines: Option<mpsc::Receiver<String>>,
}

/// How a program ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) tail: Vec<String>,
}

impl Job {
    /// Starts a program that ends by itself when its input or output closes.
    pub(crate) fn start(tool: &'static str, command: &mut Command) -> Result<Self> {
        command.process_group(0).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| spawn_error(tool, source))?;
        let (sender, lines) = mpsc::channel();
        let stderr = child.stderr.take().map(|pipe| std::thread::spawn(move || read_lines(pipe, &sender)));
        Ok(Self { tool, child, life: None, stderr, lines: Some(lines) })
    }

    /// Starts a program that would run on when this process dies: a guard ends its process group then.
    /// Its standard input is empty.
    pub(crate) fn start_guarded(tool: &'static str, command: &Command) -> Result<Self> {
        let mut guarded = Command::new("/bin/sh");
        guarded.args(["-c", GUARDED, "sh"]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => guarded.env(key, value),
                None => guarded.env_remove(key),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            guarded.current_dir(dir);
        }
        guarded.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut job = Self::start(tool, &mut guarded)?;
        job.life = job.child.stdin.take();
        Ok(job)
    }

    pub(crate) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    pub(crate) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Hands every line of standard error to `line` until the program ends, which it waits for.
    pub(crate) fn follow(
        &mut self,
        what: &'static str,
        cancelled: &dyn Fn() -> bool,
        mut line: impl FnMut(&str),
    ) -> Result<Ended> {
        while !self.has_ended()? {
            if cancelled() {
                self.end();
                return Err(ImageError::Cancelled { what });
            }
            match self.lines.as_ref().map(|lines| lines.recv_timeout(POLL)) {
                Some(Ok(text)) => line(&text),
                Some(Err(mpsc::RecvTimeoutError::Timeout)) => {}
                _ => {
                    self.lines = None;
                    std::thread::sleep(POLL);
                }
            }
        }
        let status = self.end().ok_or_else(|| self.lost())?;
        // First to the end of what it said, which is still being read when it has ended.
        let tail = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        for text in self.lines.iter().flat_map(mpsc::Receiver::try_iter) {
            line(&text);
        }
        Ok(Ended { status, tail: tail.into() })
    }

    /// Whether the program's first process ended; it is not reaped yet, so its id is still ours.
    fn has_ended(&self) -> Result<bool> {
        let Some(pid) = self.pid() else { return Err(self.lost()) };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        match waitid(WaitId::Pid(pid), options) {
            Ok(found) => Ok(found.is_some()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(_) => Err(self.lost()),
        }
    }

    /// Ends whatever is left of the process group, then reaps its first process.
    fn end(&mut self) -> Option<ExitStatus> {
        if let Some(pid) = self.pid() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        self.life = None;
        self.child.wait().ok()
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    fn lost(&self) -> ImageError {
        ImageError::ToolFailed {
            tool: self.tool,
            status: "lost".to_owned(),
            tail: "somebody else waited for it".to_owned(),
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // A job that was followed to its end has given its reader away.
        if self.stderr.is_some() {
            self.end();
        }
    }
}

fn spawn_error(tool: &'static str, source: std::io::Error) -> ImageError {
    if source.kind() == std::io::ErrorKind::NotFound {
        Missing { name: tool.to_owned() }.into()
    } else {
        ImageError::Io { action: "start", path: tool.into(), source }
    }
}

fn read_lines(pipe: impl Read, sender: &mpsc::Sender<String>) -> VecDeque<String> {
    let mut tail = VecDeque::new();
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(LINE_MAX as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return tail,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if text.is_empty() {
            continue;
        }
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(text.clone());
        // Nobody listens any more: the tail is still wanted.
        let _ = sender.send(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_guarded_program_gives_its_status_and_its_last_words() {
        let mut job = Job::start_guarded("sh", &sh("echo one >&2; echo two >&2; exit 7")).unwrap();
        let mut seen = Vec::new();
        let ended = job.follow("it", &|| false, |line| seen.push(line.to_owned())).unwrap();
        assert_eq!(ended.status.code(), Some(7));
        assert_eq!(ended.tail, ["one", "two"]);
        assert_eq!(seen, ended.tail);
    }

    #[test]
    fn cancelling_ends_grandchildren_too() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", pid_file.display());
        let mut job = Job::start_guarded("sh", &sh(&script)).unwrap();
        let error = job.follow("the test", &|| pid_file.exists(), |_| {}).err().unwrap();
        assert!(matches!(error, ImageError::Cancelled { what: "the test" }));
        std::thread::sleep(Duration::from_millis(200));
        let text = std::fs::read_to_string(&pid_file).unwrap();
        // The file may be there before its text; then the sleep never got a chance to be seen.
        if let Ok(pid) = text.trim().parse::<i32>() {
            assert_gone(pid);
        }
    }

    #[test]
    fn when_the_guard_loses_its_parent_the_program_ends() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 60", pid_file.display());
        let mut job = Job::start_guarded("sh", &sh(&script)).unwrap();
        let start = Instant::now();
        let pid: i32 = loop {
            assert!(start.elapsed() < Duration::from_secs(10));
            if let Ok(pid) = std::fs::read_to_string(&pid_file).unwrap_or_default().trim().parse() {
                break pid;
            }
            std::thread::sleep(POLL);
        };
        // What the kernel does when we die.
        drop(job.life.take());
        let ended = job.follow("it", &|| false, |_| {}).unwrap();
        assert!(!ended.status.success());
        assert_gone(pid);
    }

    fn assert_gone(pid: i32) {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let running =
            state.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.starts_with(" Z"));
        assert!(!running, "process {pid} is still there: {state}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Job::start("no-such-tool", &mut Command::new("/no-such-tool")).err().unwrap();
        assert!(matches!(error, ImageError::ToolMissing(missing) if missing.name == "no-such-tool"));
    }
}
