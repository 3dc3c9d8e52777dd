//! Which user a thread of a test is.
//!
//! Linux keeps user and group ids per thread (setresuid(2), NOTES), and a program that a thread starts inherits them. Where
//! root runs the suite, a test's thread becomes the suite's user when it makes its first sandbox: the files that it writes,
//! the programs that it starts and the signals that it sends are that user's from then on, as if the user ran the test.
//! [`as_invoker`] is the way back, for as long as a closure runs. Must never leave a thread with a mixture of both.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Gid, Uid, getegid, geteuid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::account;

static STAYS_INVOKER: AtomicBool = AtomicBool::new(false);

/// Whether root runs the suite, so that a closure given to [`as_invoker`] may do everything.
///
/// # Panics
/// When /proc does not say.
#[must_use]
pub fn is_root() -> bool {
    // Real, effective, saved and file system id (proc_pid_status(5)). The saved id of a thread that became the suite's user
    // is still root's.
    let status = fs::read_to_string("/proc/thread-self/status").expect("/proc is mounted");
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("the ids");
    ids.split_whitespace().nth(2) == Some("0")
}

/// Keeps all threads of this test program, and its sandboxes, those of the user who runs the suite, before any of them
/// becomes another: for programs whose subject is an installation of root's.
pub fn stay_invoker() {
    STAYS_INVOKER.store(true, Ordering::Relaxed);
}

/// Whether sandboxes belong to root, who runs the suite.
pub(crate) fn stays_root() -> bool {
    is_root() && STAYS_INVOKER.load(Ordering::Relaxed)
}

/// Makes this thread the suite's user for good, where root runs the suite and did not say [`stay_invoker`].
///
/// # Panics
/// When the kernel refuses.
pub fn become_user() {
    if is_root() && !stays_root() && geteuid().is_root() {
        let user = account::of_this_thread();
        let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
        switch_to(Uid::from_raw(user.uid), Gid::from_raw(user.gid), &groups);
    }
}

/// Does something with the rights of the user who runs the suite: what only root may do, and what lies in that user's
/// directories, as the sources do.
///
/// # Panics
/// When the kernel refuses the way there or back.
pub fn as_invoker<T>(what: impl FnOnce() -> T) -> T {
    let _back = (is_root() && !geteuid().is_root()).then(|| {
        let back = Back { uid: geteuid(), gid: getegid(), groups: groups() };
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).expect("the saved id is root's");
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).expect("root may be of any group");
        set_thread_groups(&[]).expect("root may leave all groups");
        back
    });
    what()
}

/// Gives a thread its identity back when dropped, also while it panics.
struct Back {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Drop for Back {
    fn drop(&mut self) {
        switch_to(self.uid, self.gid, &self.groups);
    }
}

fn groups() -> Vec<Gid> {
    rustix::process::getgroups().expect("a process may ask for its groups")
}

/// The saved user id stays root's, which is the way back. The user id is the last to change: with it goes the right to
/// change the others.
fn switch_to(uid: Uid, gid: Gid, groups: &[Gid]) {
    set_thread_groups(groups).expect("root may join any group");
    set_thread_res_gid(gid, gid, Gid::ROOT).expect("root may be of any group");
    set_thread_res_uid(uid, uid, Uid::ROOT).expect("root may become any user");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    use crate::Run;

    #[test]
    fn files_and_programs_are_the_users_and_the_way_back_is_open() {
        crate::skip_unless!(is_root(), "becoming another user needs root");
        let dir = as_invoker(|| tempfile::tempdir_in("/var/tmp").unwrap());
        let owner = |name: &str| fs::metadata(dir.path().join(name)).unwrap().uid();
        fs::write(dir.path().join("roots"), "").unwrap();
        become_user();
        // Then the thread and its programs are an ordinary user with no right but that user's
        assert!(is_root() && !geteuid().is_root());
        let own = tempfile::tempdir().unwrap();
        assert_eq!(fs::metadata(own.path()).unwrap().uid(), geteuid().as_raw());
        assert!(fs::write(dir.path().join("refused"), "").is_err());
        let said = Run::new("sh").args(["-c", "id -u; grep -c '^Cap[PEA].*:.0*$' /proc/self/status"]).go();
        assert_eq!(said.ok().text(), format!("{}\n3", geteuid().as_raw()));
        // and so is a thread that it starts
        let there = std::thread::spawn(|| geteuid().as_raw()).join().unwrap();
        assert_eq!(there, geteuid().as_raw());
        // When something is done as the invoker, then it is root's, also where it panics
        as_invoker(|| fs::write(dir.path().join("again"), "").unwrap());
        assert_eq!((owner("roots"), owner("again")), (0, 0));
        let panicked = std::panic::catch_unwind(|| as_invoker(|| panic!("planted")));
        assert!(panicked.is_err() && !geteuid().is_root());
        as_invoker(|| drop(dir));
    }
}
