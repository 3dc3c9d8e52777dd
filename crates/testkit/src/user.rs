//! A user who has never logged in: an account with a home and subordinate ids, without `/run/user/<uid>` and without one
//! capability. Made for one test and removed after it. The user of all other sandboxes is in [`crate::account`].

use std::fs;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use crate::account::{self, Account};
use crate::habitat::{HOMES, USER_COMMENT};
use crate::{Run, as_invoker};

/// A user of this machine, gone when dropped.
#[derive(Debug)]
pub struct OrdinaryUser {
    account: Account,
}

impl OrdinaryUser {
    /// Makes one; needs root.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn make() -> Self {
        let name = format!("bt{}", std::process::id());
        as_invoker(|| {
            let account = account::make(&name, USER_COMMENT, &Path::new(HOMES).join(&name), None);
            fs::DirBuilder::new().mode(0o700).create(&account.home).expect("a home");
            chown(&account.home, Some(account.uid), Some(account.gid)).expect("root may give it away");
            Self { account }
        })
    }

    /// The login name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.account.name
    }

    /// The user id.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.account.uid
    }

    /// The home.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.account.home.clone()
    }

    /// Gives the user a tree that root made.
    pub fn owns(&self, dir: &Path) {
        account::give_to(&self.account, dir);
    }

    /// A program run by this user, at home, with a login's environment.
    #[must_use]
    pub fn run(&self, program: impl AsRef<std::ffi::OsStr>) -> Run {
        Run::new(program)
            .user(self.account.uid, self.account.gid)
            .dir(&self.account.home)
            .env("HOME", &self.account.home)
            .env("USER", &self.account.name)
            .env("LOGNAME", &self.account.name)
    }

    /// Everything that this user runs: pids and command lines.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, String)> {
        account::processes(&self.account)
    }
}

impl Drop for OrdinaryUser {
    fn drop(&mut self) {
        if let Err(why) = as_invoker(|| account::remove(&self.account)) {
            eprintln!("{why}");
        }
    }
}
