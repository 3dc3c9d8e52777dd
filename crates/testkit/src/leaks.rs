//! What is left behind: processes, unix sockets, mounts, loop devices, network interfaces,
//! firewall tables and files that belong to one sandbox.
//!
//! Owns the question "whose is it?": a thing is ours when it carries the sandbox's *marker*, its
//! directory's unique name, in its command line, environment, path or backing file. Things that
//! cannot carry a marker (taps, firewall tables) count when their name is one banger gives and
//! they were not there before. Must never touch what it finds.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{as_invoker, tree};

/// What kind of thing was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A process.
    Process,
    /// A bound unix socket.
    Socket,
    /// A mount.
    Mount,
    /// A loop device.
    Loop,
    /// A network interface.
    Interface,
    /// A firewall table.
    Table,
    /// A file or directory.
    File,
}

/// One thing that is there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Thing {
    /// What it is.
    pub kind: Kind,
    /// What tells it from others of its kind: pid, path, device.
    pub key: String,
    /// What it says about itself: command line, mount source.
    pub detail: String,
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.key)?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

/// Whose things are looked for.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Unique names of which ours carry at least one.
    pub markers: Vec<String>,
    /// Directories in which every entry is ours.
    pub dirs: Vec<PathBuf>,
}

/// What was there at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot(BTreeMap<(Kind, String), Thing>);

impl Scope {
    /// Everything marked by the name of `dir`, and every file in it.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        let marker = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned();
        Self { markers: vec![marker], dirs: vec![dir.to_owned()] }
    }

    fn marks(&self, bytes: &[u8]) -> bool {
        self.markers.iter().any(|m| !m.is_empty() && bytes.windows(m.len()).any(|w| w == m.as_bytes()))
    }

    /// Looks around, with the rights of who runs the suite.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut all = self.processes();
        as_invoker(|| {
            all.extend(self.sockets());
            all.extend(self.mounts());
            all.extend(self.loops());
            all.extend(interfaces());
            all.extend(tables());
            all.extend(self.files());
        });
        Snapshot(all.into_iter().map(|t| ((t.kind, t.key.clone()), t)).collect())
    }

    /// The processes that carry a marker, but for this one; and those that ended as the child of
    /// such a one and were never waited for.
    #[must_use]
    pub fn processes(&self) -> Vec<Thing> {
        as_invoker(|| self.all_processes())
    }

    fn all_processes(&self) -> Vec<Thing> {
        let own = std::process::id();
        let (mut found, mut ended) = (Vec::new(), Vec::new());
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let dir = entry.path();
            // "pid (name) state parent …"; the name may hold anything, also ") ".
            let stat = fs::read_to_string(dir.join("stat")).unwrap_or_default();
            let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
            let (state, parent) = (fields.next().unwrap_or("X"), fields.next().unwrap_or_default());
            if pid == own || state == "X" {
                continue;
            }
            if state == "Z" {
                ended.push((pid, parent.to_owned()));
                continue;
            }
            let command = fs::read(dir.join("cmdline")).unwrap_or_default();
            // The environment is that of its start, which is what marks it.
            let environ = fs::read(dir.join("environ")).unwrap_or_default();
            let cwd = fs::read_link(dir.join("cwd")).unwrap_or_default();
            if self.marks(&command) || self.marks(&environ) || self.marks(cwd.as_os_str().as_bytes()) {
                let words: Vec<_> = command.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
                let detail = words.join(" ").trim().to_owned();
                found.push(Thing { kind: Kind::Process, key: pid.to_string(), detail });
            }
        }
        for (pid, parent) in ended {
            if found.iter().any(|p| p.key == parent) {
                let detail = format!("ended, and {parent} does not wait for it");
                found.push(Thing { kind: Kind::Process, key: pid.to_string(), detail });
            }
        }
        found
    }

    fn sockets(&self) -> Vec<Thing> {
        let table = fs::read("/proc/net/unix").unwrap_or_default();
        table
            .split(|b| *b == b'\n')
            .filter(|line| self.marks(line))
            .filter_map(|line| {
                let line = String::from_utf8_lossy(line).into_owned();
                let path = line.split_whitespace().nth(7)?.to_owned();
                Some(Thing { kind: Kind::Socket, key: path, detail: String::new() })
            })
            .collect()
    }

    fn mounts(&self) -> Vec<Thing> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        table
            .lines()
            .filter(|line| self.marks(line.as_bytes()))
            .map(|line| {
                let mut fields = line.split(' ');
                let point = fields.nth(4).unwrap_or_default().to_owned();
                let detail = line.split_once(" - ").map_or("", |(_, fs)| fs).to_owned();
                Thing { kind: Kind::Mount, key: point, detail }
            })
            .collect()
    }

    fn loops(&self) -> Vec<Thing> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let backing = fs::read(entry.path().join("loop/backing_file")).unwrap_or_default();
            if self.marks(&backing) {
                let detail = String::from_utf8_lossy(&backing).trim().to_owned();
                let key = entry.file_name().to_string_lossy().into_owned();
                found.push(Thing { kind: Kind::Loop, key, detail });
            }
        }
        found
    }

    fn files(&self) -> Vec<Thing> {
        self.dirs
            .iter()
            .flat_map(|dir| tree::walk(dir))
            .map(|e| Thing {
                kind: Kind::File,
                key: e.path.to_string_lossy().into_owned(),
                detail: String::new(),
            })
            .collect()
    }
}

/// Taps, and interfaces with a name that banger gives. Veth pairs and bridges of others are none
/// of our business.
fn interfaces() -> Vec<Thing> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let tap = entry.path().join("tun_flags").exists();
        if tap || name.starts_with("banger") || name.starts_with("bgr") {
            let detail = if tap { "tap".to_owned() } else { String::new() };
            found.push(Thing { kind: Kind::Interface, key: name, detail });
        }
    }
    found
}

fn tables() -> Vec<Thing> {
    let Ok(out) = Command::new("nft").args(["list", "tables"]).output() else { return Vec::new() };
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter(|line| line.contains("banger"))
        .map(|line| Thing { kind: Kind::Table, key: line.to_owned(), detail: String::new() })
        .collect()
}

impl Snapshot {
    /// What is there now and was not there `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<Thing> {
        self.0.iter().filter(|(key, _)| !before.0.contains_key(key)).map(|(_, thing)| thing.clone()).collect()
    }

    /// The things of one kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> Vec<Thing> {
        self.0.values().filter(|t| t.kind == kind).cloned().collect()
    }
}

/// One line a thing.
#[must_use]
pub fn list(things: &[Thing]) -> String {
    things.iter().map(|t| format!("  {t}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::process::Stdio;
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::time::Duration;

    /// Interfaces carry no sandbox's name, so that what one test plants the others would find.
    static ALONE: Mutex<()> = Mutex::new(());

    fn place() -> (MutexGuard<'static, ()>, tempfile::TempDir, Scope) {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::Builder::new().prefix("bt-leak-").tempdir_in("/tmp").unwrap();
        let scope = Scope::of(dir.path());
        (alone, dir, scope)
    }

    fn planted(scope: &Scope, before: &Snapshot) -> Vec<(Kind, String)> {
        scope.snapshot().since(before).into_iter().map(|t| (t.kind, t.key)).collect()
    }

    #[test]
    fn a_process_is_found_by_its_command_line_and_by_its_environment() {
        let (_alone, dir, scope) = place();
        let before = scope.snapshot();
        let mut by_argument = Command::new("sh")
            .args(["-c", "read x", "sh"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut by_environment =
            Command::new("cat").env("BANGER_STATE_DIR", dir.path()).stdin(Stdio::piped()).spawn().unwrap();
        let mut expected = vec![
            (Kind::Process, by_argument.id().to_string()),
            (Kind::Process, by_environment.id().to_string()),
        ];
        expected.sort();
        crate::wait::must("both are seen", Duration::from_secs(5), || planted(&scope, &before) == expected);
        drop((by_argument.stdin.take(), by_environment.stdin.take()));
        by_argument.wait().unwrap();
        by_environment.wait().unwrap();
        assert_eq!(planted(&scope, &before), []);
    }

    #[test]
    fn a_child_that_nobody_waits_for_is_found_when_its_parent_is_ours() {
        let (_alone, dir, scope) = place();
        // The shell becomes `cat`, which never waits for the child that the shell had.
        let mut parent = Command::new("sh")
            .args(["-c", "true & exec cat"])
            .env("BANGER_STATE_DIR", dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        crate::wait::must("the dead child is seen", Duration::from_secs(5), || {
            scope.processes().iter().any(|p| p.detail.contains("does not wait"))
        });
        drop(parent.stdin.take());
        parent.wait().unwrap();
    }

    #[test]
    fn a_file_and_a_bound_socket_are_found() {
        let (_alone, dir, scope) = place();
        let before = scope.snapshot();
        fs::write(dir.path().join("left"), "x").unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let path = |p: &Path| p.to_string_lossy().into_owned();
        assert_eq!(
            planted(&scope, &before),
            [
                (Kind::Socket, path(&socket)),
                (Kind::File, path(&dir.path().join("left"))),
                (Kind::File, path(&socket)),
            ]
        );
        drop(listener);
        assert!(!planted(&scope, &before).iter().any(|(kind, _)| *kind == Kind::Socket));
    }

    #[test]
    fn a_mount_and_a_loop_device_are_found() {
        crate::skip_unless!(crate::is_root(), "mounting needs root");
        let (_alone, dir, scope) = place();
        let point = dir.path().join("m");
        fs::create_dir(&point).unwrap();
        let disk = dir.path().join("disk");
        fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
        let before = scope.snapshot();
        let run = |words: &[&str]| {
            let out = Command::new(words[0]).args(&words[1..]).output().unwrap();
            assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap().trim().to_owned()
        };
        let point_text = point.to_str().unwrap();
        run(&["mount", "-t", "tmpfs", "planted", point_text]);
        let mounted = planted(&scope, &before);
        run(&["umount", point_text]);
        assert_eq!(mounted, [(Kind::Mount, point_text.to_owned())]);

        let device = run(&["losetup", "--find", "--show", disk.to_str().unwrap()]);
        let looped = planted(&scope, &before);
        run(&["losetup", "--detach", &device]);
        assert_eq!(looped, [(Kind::Loop, device.trim_start_matches("/dev/").to_owned())]);
        assert_eq!(planted(&scope, &before), []);
    }

    #[test]
    fn a_tap_is_found_and_a_stranger_is_not_ours() {
        crate::skip_unless!(crate::is_root(), "a tap needs root");
        let (_alone, _dir, scope) = place();
        let before = scope.snapshot();
        let name = format!("bt{}", std::process::id());
        let tap =
            |verb: &str| Command::new("ip").args(["tuntap", verb, &name, "mode", "tap"]).status().unwrap();
        crate::skip_unless!(tap("add").success(), "this kernel makes no taps");
        let found = planted(&scope, &before);
        tap("del");
        assert!(found.contains(&(Kind::Interface, name.clone())), "{found:?}");

        let mut stranger = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = stranger.id().to_string();
        let seen = planted(&scope, &before).iter().any(|(_, key)| *key == pid);
        drop(stranger.stdin.take());
        stranger.wait().unwrap();
        assert!(!seen, "a process without a marker is not ours");
    }
}
