//! What a program needs to be loaded: its interpreter and its shared libraries, as the loader itself lists them.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The loader looks here first.
const LOADER_CACHE: &str = "/etc/ld.so.cache";

type Key = (PathBuf, u64, i64, i64);

/// Everything that must be readable for a program to start: itself, what interprets it, its libraries. Remembered until
/// the program's file changes. A program that is not there needs nothing: starting it says so.
pub(super) fn of(program: &Path) -> Vec<PathBuf> {
    static KNOWN: OnceLock<Mutex<HashMap<Key, Vec<PathBuf>>>> = OnceLock::new();
    let Ok(meta) = fs::metadata(program) else { return Vec::new() };
    let key = (program.to_owned(), meta.ino(), meta.mtime(), meta.mtime_nsec());
    let known = KNOWN.get_or_init(Mutex::default);
    if let Some(found) = known.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
        return found.clone();
    }
    let mut found = BTreeSet::new();
    collect(program, &mut found, 4);
    let found: Vec<PathBuf> = found.into_iter().collect();
    known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, found.clone());
    found
}

fn collect(program: &Path, found: &mut BTreeSet<PathBuf>, depth: u8) {
    let Some(depth) = depth.checked_sub(1) else { return };
    found.extend(hops(program));
    match interpreter(program) {
        Some(Interpreter::Script(interpreter)) => collect(&interpreter, found, depth),
        Some(Interpreter::Loader(loader)) => {
            found.extend(hops(&loader));
            found.insert(LOADER_CACHE.into());
            for library in listed(&loader, program) {
                found.extend(hops(&library));
                // Its neighbours too: what a program loads later (modules, character sets) lies there, and so does
                // what those need. Only where none but root writes.
                // Both under the name the loader uses and under the real one (/lib, /usr/lib), which modules use.
                let dir = library.parent().filter(|dir| is_system(dir));
                found.extend(
                    dir.into_iter().flat_map(|dir| [Some(dir.to_owned()), dir.canonicalize().ok()]).flatten(),
                );
            }
        }
        None => {}
    }
}

enum Interpreter {
    Script(PathBuf),
    Loader(PathBuf),
}

/// The `#!` line's program, or the loader that an ELF file names.
fn interpreter(program: &Path) -> Option<Interpreter> {
    let mut head = Vec::new();
    fs::File::open(program).ok()?.take(4096).read_to_end(&mut head).ok()?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next()?.trim_ascii();
        let path = line.split(u8::is_ascii_whitespace).next()?;
        return Some(Interpreter::Script(std::ffi::OsStr::from_bytes(path).into()));
    }
    // ELF64, little endian: program headers at e_phoff, e_phnum of e_phentsize bytes each; PT_INTERP is 3 (elf(5)).
    let number = |at: usize, len: usize| {
        let bytes = head.get(at..at + len)?;
        Some(bytes.iter().rev().fold(0_usize, |n, b| n << 8 | usize::from(*b)))
    };
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let at = offset.checked_add(index.checked_mul(size)?)?;
        if number(at, 4)? == 3 {
            let (start, len) = (number(at + 8, 8)?, number(at + 32, 8)?);
            let path = head.get(start..start.checked_add(len)?)?.split(|b| *b == 0).next()?;
            return Some(Interpreter::Loader(std::ffi::OsStr::from_bytes(path).into()));
        }
    }
    None
}

/// The libraries that the loader would load. It runs no code of the program.
fn listed(loader: &Path, program: &Path) -> Vec<PathBuf> {
    let run = Command::new(loader).arg("--list").arg(program).env_clear().stdin(Stdio::null()).output();
    let Ok(output) = run else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)"
    let path = |line: &str| Some(line.split_once(" => ")?.1.rsplit_once(" (")?.0.to_owned());
    text.lines().filter_map(path).map(PathBuf::from).filter(|p| p.is_absolute()).collect()
}

/// A path, and every path that its links lead over, each without `..`.
fn hops(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![tidy(path)];
    let mut at = path.to_owned();
    for _ in 0..8 {
        let Ok(target) = fs::read_link(&at) else { break };
        at = at.parent().unwrap_or(Path::new("/")).join(target);
        all.push(tidy(&at));
    }
    all
}

/// Without `.` and `..`, as far as words go.
pub(super) fn tidy(path: &Path) -> PathBuf {
    let mut tidied = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(tidied.pop()),
            Component::CurDir => {}
            part => tidied.push(part),
        }
    }
    tidied
}

/// A directory of libraries that belongs to the system: below /usr or /lib, root's alone to write.
fn is_system(dir: &Path) -> bool {
    let below = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store"];
    let named = below.iter().any(|top| dir.starts_with(top)) && dir != Path::new("/usr/local/lib");
    // In a user namespace without a mapping for root, root's files look like nobody's.
    let safe = |m: fs::Metadata| m.is_dir() && m.mode() & 0o022 == 0 && matches!(m.uid(), 0 | 65534);
    named && fs::metadata(dir).is_ok_and(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_needs_its_loader_and_libraries_and_a_script_its_shell() {
        let shell = of(Path::new("/bin/sh"));
        assert!(shell.iter().any(|p| p.to_string_lossy().contains("ld-linux")), "{shell:?}");
        assert!(shell.iter().any(|p| p.starts_with("/lib") && p.is_dir()), "{shell:?}");
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        fs::write(&script, "#! /bin/sh -e\n").unwrap();
        let needed = of(&script);
        assert!(needed.contains(&script) && needed.contains(&PathBuf::from("/bin/sh")), "{needed:?}");
        assert!(of(Path::new("/nowhere")).is_empty());
    }

    #[test]
    fn links_are_followed_step_by_step() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("real"), "").unwrap();
        std::os::unix::fs::symlink("../real", at("d/second")).unwrap();
        std::os::unix::fs::symlink("d/second", at("first")).unwrap();
        assert_eq!(hops(&at("first")), [at("first"), at("d/second"), at("real")]);
    }
}
