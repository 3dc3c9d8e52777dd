//! An ordinary user, made for one test and removed after it: a home, subordinate ids, and not one
//! capability.

use std::fs;
use std::path::PathBuf;

use crate::{Run, wait};
use std::time::Duration;

/// A user of this machine, gone when dropped.
#[derive(Debug)]
pub struct OrdinaryUser {
    /// Its name.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
    /// Its home.
    pub home: PathBuf,
}

impl OrdinaryUser {
    /// Makes one; needs root.
    #[must_use]
    pub fn make() -> Self {
        let name = format!("bt{}", std::process::id());
        let home = PathBuf::from(format!("/tmp/{name}-home"));
        Run::new("useradd")
            .args(["--create-home", "--user-group", "--shell", "/bin/sh", "--home-dir"])
            .arg(&home)
            .arg(&name)
            .go()
            .ok()
            .done();
        let id = |flag: &str| Run::new("id").args([flag, &name]).go().ok().text().parse().expect("a number");
        let user = Self { uid: id("-u"), gid: id("-g"), home, name };
        let ranges = fs::read_to_string("/etc/subuid").unwrap_or_default();
        if !ranges.lines().any(|l| l.starts_with(&format!("{}:", user.name))) {
            let range = "700000-765535";
            Run::new("usermod")
                .args(["--add-subuids", range, "--add-subgids", range, &user.name])
                .go()
                .ok()
                .done();
        }
        user
    }

    /// A program run by this user, at home, with a login's environment.
    #[must_use]
    pub fn run(&self, program: impl AsRef<std::ffi::OsStr>) -> Run {
        Run::new(program)
            .user(self.uid, self.gid)
            .dir(&self.home)
            .env("HOME", &self.home)
            .env("USER", &self.name)
            .env("LOGNAME", &self.name)
    }

    /// Everything that this user runs: pids and command lines.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, String)> {
        use std::os::unix::fs::MetadataExt;
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // What has ended is for its parent to clear away.
            if !stat.contains(") Z ") && entry.metadata().is_ok_and(|m| m.uid() == self.uid) {
                let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push((pid, String::from_utf8_lossy(&command).replace('\0', " ")));
            }
        }
        found
    }
}

impl Drop for OrdinaryUser {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = wait::until(Duration::from_secs(5), || self.processes().is_empty().then_some(()));
        // Where banger's sockets were: without a login there is no /run/user.
        let _ = fs::remove_dir_all(format!("/tmp/banger-{}", self.uid));
        let out = Run::new("userdel").args(["--force", "--remove", &self.name]).go();
        if out.code() != 0 {
            eprintln!("the user {} could not be removed: {out}", self.name);
        }
    }
}
