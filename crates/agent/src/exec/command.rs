//! What to run, as whom, with what environment: from the request's bytes to prepared C strings.
//! Starts nothing itself but through [`super::spawn`].

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use banger_protocol::agent::{ExecSpec, ExitStatus};
use rustix::io::Errno;

use super::account::{self, Account};
use super::spawn::{Child, Failure, Plan, spawn};
use crate::standstill::Leave;

/// What is named in a sentence is cut to so many characters: the sentence has to fit in a message.
const SHOWN: usize = 200;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command, resolved.
pub(super) struct Command {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: CString,
    account: Account,
    /// What to call it in sentences.
    shown: String,
}

impl Command {
    /// Resolves a request with the account files below `etc`.
    ///
    /// # Errors
    /// How the command ended without having begun.
    pub(super) fn resolve(spec: &ExecSpec, etc: &Path) -> Result<Self, ExitStatus> {
        let user = spec.user.as_deref().unwrap_or("root");
        let account = account::find(etc, user).ok_or_else(|| {
            ExitStatus::NotExecutable(format!(
                "there is no user '{}' in the guest",
                shown(user.as_bytes()).escape_default()
            ))
        })?;
        let env = environment(spec, &account);
        let (program, argv) = match spec.argv.split_first() {
            Some((program, _)) => (program.0.clone(), spec.argv.iter().map(|a| a.0.clone()).collect()),
            None => {
                let name = account.shell.rsplit(|b| *b == b'/').next().unwrap_or_default();
                (account.shell.clone(), vec![[b"-", name].concat()])
            }
        };
        let path = env.iter().find(|(k, _)| k == b"PATH").map(|(_, v)| v.as_slice()).unwrap_or_default();
        let candidates = candidates(&program, path);
        let env = env.into_iter().map(|(k, v)| [k, v].join(&b'=')).collect();
        let cwd = match &spec.cwd {
            Some(cwd) => cwd.0.clone(),
            None if Path::new(std::ffi::OsStr::from_bytes(&account.home)).is_dir() => account.home.clone(),
            None => b"/".to_vec(),
        };
        Ok(Self {
            candidates: c_strings(candidates)?,
            argv: c_strings(argv)?,
            env: c_strings(env)?,
            cwd: c_strings(vec![cwd])?.swap_remove(0),
            account,
            shown: shown(&program),
        })
    }

    /// The user and the terminal group that own its terminal.
    pub(super) fn uid(&self) -> u32 {
        self.account.uid
    }

    /// Starts it.
    ///
    /// # Errors
    /// How the command ended without having begun.
    pub(super) fn start(
        &mut self,
        stdio: [BorrowedFd<'_>; 3],
        terminal: bool,
        leave: &Leave,
    ) -> Result<Child, ExitStatus> {
        match self.spawn(stdio, terminal, leave) {
            // A script without its first line: shells run it themselves.
            Err(Failure::Exec(Errno::NOEXEC, i)) if self.is_text(i) => {
                let script = self.candidates.swap_remove(i);
                let rest = self.argv.drain(..).skip(1);
                self.argv = [c"sh".to_owned(), script].into_iter().chain(rest).collect();
                self.candidates = vec![c"/bin/sh".to_owned()];
                self.spawn(stdio, terminal, leave)
            }
            outcome => outcome,
        }
        .map_err(|failure| self.explain(failure))
    }

    fn spawn(&self, stdio: [BorrowedFd<'_>; 3], terminal: bool, leave: &Leave) -> Result<Child, Failure> {
        let account = &self.account;
        let identity = rustix::process::geteuid().is_root().then_some((
            account.uid,
            account.gid,
            account.groups.as_slice(),
        ));
        spawn(&Plan {
            candidates: &self.candidates,
            argv: &self.argv,
            env: &self.env,
            cwd: &self.cwd,
            stdio,
            terminal,
            identity,
            group: crate::groups::of_guest().and_then(|groups| leave.group(groups)),
        })
    }

    fn file(&self, candidate: usize) -> std::path::PathBuf {
        let cwd = Path::new(std::ffi::OsStr::from_bytes(self.cwd.as_bytes()));
        let name = self.candidates.get(candidate).map(CString::as_bytes).unwrap_or_default();
        cwd.join(std::ffi::OsStr::from_bytes(name))
    }

    /// As shells decide: no zero byte in the first line of what is read first.
    fn is_text(&self, candidate: usize) -> bool {
        let mut start = Vec::new();
        let read = File::open(self.file(candidate)).and_then(|f| f.take(256).read_to_end(&mut start));
        read.is_ok() && !start.split(|b| *b == b'\n').next().unwrap_or_default().contains(&0)
    }

    fn explain(&self, failure: Failure) -> ExitStatus {
        let name = &self.shown;
        let sentence = match failure {
            Failure::Exec(Errno::NOENT | Errno::NOTDIR, _) => {
                let there = (0..self.candidates.len()).find(|i| self.file(*i).exists());
                match there {
                    Some(i) => format!(
                        "'{name}' cannot run: the interpreter of {} is not in the guest",
                        self.file(i).display()
                    ),
                    None => return ExitStatus::NotFound(format!("command '{name}' not found in the guest")),
                }
            }
            Failure::Exec(Errno::ACCESS, i) if self.file(i).is_dir() => format!("'{name}' is a directory"),
            Failure::Exec(Errno::ACCESS, _) => format!("'{name}' is not executable: permission denied"),
            Failure::Exec(Errno::NOEXEC, _) => format!("'{name}' is not a program this guest can run"),
            Failure::Exec(Errno::TOOBIG, _) => {
                format!("the arguments and environment of '{name}' are too long")
            }
            Failure::Exec(e, _) => format!("'{name}' cannot run: {e}"),
            Failure::Cwd(e) => {
                let cwd = shown(self.cwd.as_bytes());
                match e {
                    Errno::NOENT => format!("the working directory {cwd} does not exist in the guest"),
                    Errno::NOTDIR => format!("the working directory {cwd} is not a directory"),
                    e => format!("cannot enter the working directory {cwd}: {e}"),
                }
            }
            Failure::Identity(e) => {
                format!("cannot become user '{}': {e}", String::from_utf8_lossy(&self.account.name))
            }
            Failure::Stdio(e) => format!("cannot set up the streams of '{name}': {e}"),
            Failure::Clone(e) => format!("the guest cannot start another process: {e}"),
        };
        ExitStatus::NotExecutable(sentence)
    }
}

/// The base environment and the request's variables over it.
fn environment(spec: &ExecSpec, account: &Account) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = vec![
        (b"PATH".to_vec(), PATH.into()),
        (b"HOME".to_vec(), account.home.clone()),
        (b"USER".to_vec(), account.name.clone()),
        (b"LOGNAME".to_vec(), account.name.clone()),
        (b"SHELL".to_vec(), account.shell.clone()),
        (b"LANG".to_vec(), b"C.UTF-8".to_vec()),
    ];
    if spec.tty.is_some() {
        env.push((b"TERM".to_vec(), b"xterm-256color".to_vec()));
    }
    let mut places: HashMap<Vec<u8>, usize> =
        env.iter().enumerate().map(|(i, (key, _))| (key.clone(), i)).collect();
    for (key, value) in &spec.env {
        let at = *places.entry(key.0.clone()).or_insert(env.len());
        match env.get_mut(at) {
            Some((_, v)) => v.clone_from(&value.0),
            None => env.push((key.0.clone(), value.0.clone())),
        }
    }
    env
}

/// How to call something in a sentence.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut cut: String = text.chars().take(SHOWN).collect();
    if cut.len() < text.len() {
        cut.push('\u{2026}');
    }
    cut
}

/// The files that a program's name may mean.
fn candidates(program: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if program.is_empty() {
        return Vec::new();
    }
    if program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    path.split(|b| *b == b':')
        .map(|dir| if dir.is_empty() { b".".as_slice() } else { dir })
        .map(|dir| [dir, program].join(&b'/'))
        .collect()
}

fn c_strings(list: Vec<Vec<u8>>) -> Result<Vec<CString>, ExitStatus> {
    list.into_iter()
        .map(|bytes| {
            CString::new(bytes).map_err(|e| {
                let shown = shown(&e.into_vec());
                ExitStatus::NotExecutable(format!(
                    "{shown:?} holds a zero byte, which no command can be given"
                ))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_follows_path_and_slashes_end_it() {
        let found = candidates(b"ls", b"/a::b");
        assert_eq!(found, vec![b"/a/ls".to_vec(), b"./ls".to_vec(), b"b/ls".to_vec()]);
        assert_eq!(candidates(b"./ls", b"/a"), vec![b"./ls".to_vec()]);
        assert!(candidates(b"", b"/a").is_empty());
    }
}
