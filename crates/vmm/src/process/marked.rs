//! Finding processes by the VM that they were started for, also those that nobody has written down.
//! Must never take a process for a VM's that only names it, such as a grep.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_model::VmId;

use super::{ProcessId, stat};
use crate::{Result, VmmError};

/// How often a session leader without a command line is asked for it, a millisecond apart.
const EXEC_LOOKS: u32 = 50;
/// A mark is nowhere behind this, bytes: it is in what the program calls itself.
const COMMAND_LINE_MAX: usize = 1 << 16;

const MARK: &str = "banger-vm-";

/// The word that marks a VM's processes in their command lines.
#[must_use]
pub fn mark(id: &VmId) -> String {
    format!("{MARK}{id}")
}

/// A process's command line. In the middle of execve(2) a process has none: a session leader without one is asked again.
fn command_line(pid: u32) -> Option<Vec<u8>> {
    let path = format!("/proc/{pid}/cmdline");
    for _ in 0..EXEC_LOOKS {
        // At once: between two reads the rest may become another program's.
        let mut text = vec![0; COMMAND_LINE_MAX];
        let length = File::open(&path).and_then(|mut file| file.read(&mut text)).ok()?;
        text.truncate(length);
        let may_come = || stat(pid).is_ok_and(|s| s.is_some_and(|s| s.session == pid && !s.ended()));
        if !text.is_empty() || !may_come() {
            return Some(text);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// Running processes that carry a VM's mark: started for it, whether or not anybody wrote that
/// down. Only session leaders whose command line has the mark as a whole word are taken, so that
/// somebody's `grep` for it is not.
///
/// # Errors
/// When /proc cannot be read.
pub fn find_marked(id: &VmId) -> Result<Vec<ProcessId>> {
    let mark = mark(id);
    let proc = Path::new("/proc");
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).map_err(VmmError::file("read", proc))?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Some(command_line) = command_line(pid) else { continue };
        if !carries(&command_line, &mark) {
            continue;
        }
        let leads = stat(pid).is_ok_and(|s| s.is_some_and(|s| s.session == pid));
        if leads && let Some(process) = ProcessId::of(pid)? {
            found.push(process);
        }
    }
    Ok(found)
}

/// A running process that carries some VM's mark.
#[derive(Debug, Clone)]
pub struct Marked {
    /// The VM it was started for.
    pub vm: VmId,
    /// It.
    pub process: ProcessId,
    /// Its working directory; of one that was removed, the path it had.
    pub works_in: PathBuf,
}

/// Every running session leader of this user that carries a VM's mark and is at least so old, whichever installation
/// it belongs to.
///
/// # Errors
/// When /proc cannot be read.
pub fn all_marked(age: Duration) -> Result<Vec<Marked>> {
    let proc = Path::new("/proc");
    let ours = rustix::process::geteuid().as_raw();
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).map_err(VmmError::file("read", proc))?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if !entry.metadata().is_ok_and(|m| m.uid() == ours) {
            continue;
        }
        let Some(command_line) = command_line(pid) else { continue };
        let Some(vm) = marked_for(&command_line) else { continue };
        let leads = stat(pid).is_ok_and(|s| s.is_some_and(|s| s.session == pid));
        let Ok(works_in) = fs::read_link(entry.path().join("cwd")) else { continue };
        let text = works_in.as_os_str().as_bytes();
        let works_in = PathBuf::from(OsStr::from_bytes(text.strip_suffix(b" (deleted)").unwrap_or(text)));
        if leads
            && let Some(process) = ProcessId::of(pid)?
            && process.age()? >= age
        {
            found.push(Marked { vm, process, works_in });
        }
    }
    Ok(found)
}

/// The VM whose mark a command line carries.
fn marked_for(command_line: &[u8]) -> Option<VmId> {
    let id_of = |word: &[u8]| std::str::from_utf8(word).ok()?.strip_prefix(MARK)?.parse().ok();
    let mut words = command_line.split(|b| *b == 0);
    let first = words.next().unwrap_or_default();
    let named = first.iter().rposition(|b| *b == b':').and_then(|colon| first.get(colon + 1..));
    named.and_then(id_of).or_else(|| words.find_map(id_of))
}

/// Whether an argument is the mark itself, or the first is `PROGRAM:MARK` (for programs that have
/// no option to carry a name).
pub(super) fn carries(command_line: &[u8], mark: &str) -> bool {
    let mut words = command_line.split(|b| *b == 0);
    let first = words.next().unwrap_or_default();
    let named = first.rsplit(|b| *b == b':').next().unwrap_or_default();
    (named != first && named == mark.as_bytes()) || words.any(|word| OsStr::from_bytes(word) == mark)
}
