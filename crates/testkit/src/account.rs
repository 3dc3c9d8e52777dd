//! Accounts of this machine: the user whose sandboxes a test uses, and how accounts are made and removed.
//!
//! Where an ordinary user runs the suite, sandboxes are that user's. Where root runs it, they belong to
//! [`habitat::USER`], which the first test that needs it makes. Must never touch an account that is not the suite's own.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::habitat::{self, HOMES, RUNTIMES, USER, USER_COMMENT, USER_ID};
use crate::identity::{as_invoker, is_root, stays_root};
use crate::{Run, wait};

/// Ids in /etc/subuid and /etc/subgid where the distribution gives none: above those that systemd gives to containers
/// (its UIDS-GIDS document).
const SUBORDINATE_IDS: &str = "1900000000-1900065535";

/// Who owns sandboxes.
#[derive(Debug, Clone)]
pub struct Account {
    /// The login name.
    pub name: String,
    /// The user id.
    pub uid: u32,
    /// The id of the user's own group.
    pub gid: u32,
    /// All groups that a login gives the user.
    pub groups: Vec<u32>,
    /// The home directory.
    pub home: PathBuf,
    /// The parent of runtime directories: what a login sets as `XDG_RUNTIME_DIR`, or a replacement that is as short.
    pub runtime: PathBuf,
}

/// The owner of this thread's sandboxes.
pub(crate) fn of_this_thread() -> &'static Account {
    static SUITE: OnceLock<(Account, File)> = OnceLock::new();
    if is_root() && !stays_root() { &SUITE.get_or_init(|| as_invoker(make_of_suite)).0 } else { invoker() }
}

/// The user who runs the suite.
pub(crate) fn invoker() -> &'static Account {
    static INVOKER: OnceLock<Account> = OnceLock::new();
    INVOKER.get_or_init(|| as_invoker(look_at_invoker))
}

fn look_at_invoker() -> Account {
    let uid = geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let variable = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
    let home = variable("HOME").map(PathBuf::from).expect("HOME is set");
    let name = variable("USER").unwrap_or_else(|| Run::new("id").arg("-un").go().ok().text().to_owned());
    let login = Path::new(RUNTIMES).join(uid.to_string());
    let runtime = match login.metadata() {
        Ok(meta) if meta.uid() == uid => login,
        _ if uid == 0 => "/run".into(),
        _ => "/tmp".into(),
    };
    Account { name, uid, gid, groups: Vec::new(), home, runtime }
}

/// Gives a tree that was made by [`as_invoker`] to this thread's user.
///
/// # Panics
/// When that is refused.
pub fn give(tree: &Path) {
    let owner = of_this_thread();
    give_to(owner, tree);
}

pub(crate) fn give_to(owner: &Account, tree: &Path) {
    let ids = format!("{}:{}", owner.uid, owner.gid);
    Run::new("chown").args(["-R", "-h", &ids]).arg(tree).by_invoker().go().ok().done();
}

/// Makes sure of the suite's user, and keeps it from being removed as long as the file is open.
fn make_of_suite() -> (Account, File) {
    let _making = lock("user.making", FlockOperation::LockExclusive).expect("the lock");
    let used = lock("user.used", FlockOperation::LockShared).expect("the lock");
    let account = find(USER).unwrap_or_else(|| {
        let uid = (USER_ID..).find(|uid| !is_taken(*uid)).expect("a free user id");
        make(USER, USER_COMMENT, &Path::new(HOMES).join(USER), Some(uid))
    });
    for dir in [&account.home, &account.runtime] {
        let made = fs::DirBuilder::new().mode(0o700).create(dir);
        assert!(made.is_ok() || dir.is_dir(), "{} cannot be made: {made:?}", dir.display());
        chown(dir, Some(account.uid), Some(account.gid)).expect("root may give it away");
    }
    (account, used)
}

/// Removes the suite's user and everything of it, but for a user that another run of the suite uses. Says what it did.
///
/// # Errors
/// A sentence that says what could not be removed.
pub fn remove_of_suite() -> Result<String, String> {
    let none = format!("there is no user {USER}");
    if !is_root() {
        return Ok(none);
    }
    let _making = lock("user.making", FlockOperation::LockExclusive).ok_or("the lock cannot be had")?;
    let Some(_used) = lock("user.used", FlockOperation::NonBlockingLockExclusive) else {
        return Ok(format!("the user {USER} stays: another run of the tests uses it"));
    };
    let Some(account) = find(USER) else { return Ok(none) };
    remove(&account).map(|()| format!("removed the user {USER} and all that it had"))
}

/// Opens and locks a file that all runs of the suite on this machine share; `None` when others have the lock.
fn lock(name: &str, how: FlockOperation) -> Option<File> {
    fs::create_dir_all(habitat::SHARED).expect("root may make a cache");
    let path = Path::new(habitat::SHARED).join(name);
    let file = File::options().write(true).create(true).truncate(false).open(path).expect("a lock file");
    flock(&file, how).ok().map(|()| file)
}

fn is_taken(uid: u32) -> bool {
    Run::new("getent").args(["passwd", &uid.to_string()]).go().code() == 0
}

/// An account that the suite made.
///
/// # Panics
/// When there is one of that name that it did not make.
fn find(name: &str) -> Option<Account> {
    let entry = Run::new("getent").args(["passwd", name]).go();
    if entry.code() != 0 {
        return None;
    }
    // passwd(5): name, password, user id, group id, comment, home, shell.
    let fields: Vec<&str> = entry.text().split(':').collect();
    let field = |n: usize| *fields.get(n).unwrap_or_else(|| panic!("no entry of passwd: {entry}"));
    assert_eq!(field(4), USER_COMMENT, "the account {name} was not made by banger's tests");
    let number = |text: &str| text.parse::<u32>().expect("a number");
    let groups = Run::new("id").args(["-G", name]).go().ok();
    let uid = number(field(2));
    Some(Account {
        name: name.to_owned(),
        uid,
        gid: number(field(3)),
        groups: groups.text().split(' ').map(number).collect(),
        home: field(5).into(),
        runtime: Path::new(RUNTIMES).join(uid.to_string()),
    })
}

/// Makes an account with subordinate ids, and with the group that may use KVM on a machine that is set up for it. Its
/// directories are not made.
pub(crate) fn make(name: &str, comment: &str, home: &Path, uid: Option<u32>) -> Account {
    let mut useradd = Run::new("useradd")
        .args(["--user-group", "--no-create-home", "--shell", "/bin/sh", "--comment", comment, "--home-dir"])
        .arg(home);
    if let Some(uid) = uid {
        useradd = useradd.args(["--uid", &uid.to_string()]);
    }
    let kvm = fs::metadata("/dev/kvm").ok().filter(|meta| meta.gid() != 0 && meta.mode() & 0o060 == 0o060);
    if let Some(kvm) = kvm {
        useradd = useradd.args(["--groups", &kvm.gid().to_string()]);
    }
    useradd.arg(name).go().ok().done();
    let ranges = fs::read_to_string("/etc/subuid").unwrap_or_default();
    if !ranges.lines().any(|line| line.starts_with(&format!("{name}:"))) {
        let ranges = ["--add-subuids", SUBORDINATE_IDS, "--add-subgids", SUBORDINATE_IDS, name];
        Run::new("usermod").args(ranges).go().ok().done();
    }
    find(name).expect("it was made just now")
}

/// Ends an account's processes and removes it with its home, its runtime directory and banger's directory for users
/// without one.
pub(crate) fn remove(account: &Account) -> Result<(), String> {
    end_all(account);
    for dir in habitat::directories_of(account) {
        for mount in mounts_below(&dir) {
            let _ = Run::new("umount").args(["-l", &mount]).go();
        }
        if let Err(error) = fs::remove_dir_all(&dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(format!("{} cannot be removed: {error}", dir.display()));
        }
    }
    let out = Run::new("userdel").args(["--force", &account.name]).go();
    if out.code() == 0 { Ok(()) } else { Err(format!("the user {} stays: {out}", account.name)) }
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut points: Vec<String> =
        points.filter(|point| Path::new(point).starts_with(dir)).map(str::to_owned).collect();
    points.reverse();
    points
}

fn end_all(account: &Account) {
    for (pid, _) in processes(account) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = wait::until(Duration::from_secs(5), || processes(account).is_empty().then_some(()));
}

/// Everything that an account runs: pids and command lines. Not what has one of its subordinate ids: a user of a container
/// may have the same, and the first process of each of our user namespaces has the account's own id.
pub(crate) fn processes(account: &Account) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let uid = field("Uid:").split_whitespace().next().and_then(|uid| uid.parse::<u32>().ok());
        // What has ended is for its parent to clear away.
        let ended = field("State:").trim_start().starts_with('Z');
        if !ended && uid == Some(account.uid) {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push((pid, String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    found
}
