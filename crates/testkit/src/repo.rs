//! A git repository to work on: small, real, with the shapes that break naive copies.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Output, Run, as_invoker, workspace_dir};

/// A repository on the host.
#[derive(Debug)]
pub struct Repo {
    dir: PathBuf,
}

impl Repo {
    /// Two commits: text, an executable, a link, a binary, a name with spaces, a name that is not
    /// UTF-8, and a rule to ignore `*.log`.
    #[must_use]
    pub fn make(dir: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let repo = Self { dir: dir.to_owned() };
        fs::create_dir_all(dir.join("src")).expect("a directory");
        repo.git(&["init", "--quiet", "--initial-branch=main"]).ok().done();
        repo.write("README.md", b"# a project\n");
        repo.write(".gitignore", b"*.log\n/build/\n");
        repo.commit("first");
        repo.write("src/a b.txt", b"one\ntwo\nthree\n");
        repo.write("src/data.bin", &crate::random::bytes(9000, 3));
        repo.write("doomed.txt", b"to be deleted\n");
        repo.write("check.sh", b"#!/bin/sh\ngrep -q two 'src/a b.txt'\n");
        repo.chmod("check.sh", 0o755);
        std::os::unix::fs::symlink("src/a b.txt", dir.join("link")).expect("a link");
        fs::write(dir.join(std::ffi::OsStr::from_bytes(b"odd-\xff-name")), "odd\n").expect("an odd name");
        repo.write("Makefile", b"test:\n\t./check.sh\n");
        repo.commit("second");
        repo
    }

    /// The files of this project, as they are in the checkout, in one commit. The checkout itself may be another user's, in
    /// whose repositories git does not work.
    #[must_use]
    pub fn of_this_project(dir: &Path) -> Self {
        let from = workspace_dir();
        let list =
            git(&from).args(["-c", "safe.directory=*", "ls-files", "-z"]).by_invoker().go().ok().stdout;
        for name in list.split(|b| *b == 0).filter(|name| !name.is_empty()) {
            let name = Path::new(std::str::from_utf8(name).expect("our names are text"));
            let (source, target) = (from.join(name), dir.join(name));
            let read = || Some((fs::read(&source).ok()?, fs::metadata(&source).ok()?.permissions()));
            // One that is deleted and not yet committed is still listed.
            let Some((bytes, mode)) = as_invoker(read) else { continue };
            fs::create_dir_all(target.parent().expect("a directory")).expect("a directory");
            fs::write(&target, bytes).expect("a file");
            fs::set_permissions(&target, mode).expect("its mode");
        }
        let repo = Self::at(dir);
        repo.git(&["init", "--quiet", "--initial-branch=main"]).ok().done();
        repo.commit("this project");
        repo
    }

    /// One that is there, or will be.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a file in it.
    pub fn write(&self, path: &str, bytes: &[u8]) {
        fs::write(self.dir.join(path), bytes).expect("a file can be written");
    }

    /// Changes a file's mode.
    pub fn chmod(&self, path: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(self.dir.join(path), fs::Permissions::from_mode(mode)).expect("its mode");
    }

    /// Commits everything and gives the commit's id.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "-A"]).ok().done();
        self.git(&["commit", "--quiet", "-m", message]).ok().done();
        self.git(&["rev-parse", "HEAD"]).ok().text().to_owned()
    }

    /// Runs git in it, without anybody's configuration.
    #[must_use]
    pub fn git(&self, args: &[&str]) -> Output {
        git(&self.dir).args(args).go()
    }

    /// `git status`, for proofs that nothing touched the working tree or the index.
    #[must_use]
    pub fn status(&self) -> Vec<u8> {
        self.git(&["status", "--porcelain=v2", "-z", "--untracked-files=all"]).ok().stdout
    }

    /// A clone at `commit` with nothing uncommitted, to try a patch on.
    #[must_use]
    pub fn checkout(&self, dir: &Path, commit: &str) -> Self {
        git(&self.dir).args(["clone", "--quiet", "--no-local", "."]).arg(dir).go().ok().done();
        let copy = Self { dir: dir.to_owned() };
        copy.git(&["checkout", "--quiet", "--detach", commit]).ok().done();
        copy
    }
}

/// git in a directory, with a fixed identity and nobody's configuration.
#[must_use]
pub fn git(dir: &Path) -> Run {
    let mut run = Run::new("git").dir(dir).env("HOME", "/nonexistent").env("GIT_CONFIG_NOSYSTEM", "1");
    for role in ["AUTHOR", "COMMITTER"] {
        run = run
            .env(format!("GIT_{role}_NAME"), "Test")
            .env(format!("GIT_{role}_EMAIL"), "test@example.invalid")
            .env(format!("GIT_{role}_DATE"), "2026-01-02T03:04:05Z");
    }
    run
}
