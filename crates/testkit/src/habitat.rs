//! Everything outside the source tree that a test installs, sets or relies on. What is not named here, no test may touch.
//!
//! **Relied on**: the programs of `crates/host/programs.tsv`; `/dev/kvm`, `/dev/net/tun` and user namespaces as far as the
//! host has them; subordinate ids for accounts; the host's apt, for Debian's packages. Where root runs the suite: mounting,
//! network namespaces, cgroups and making accounts.
//!
//! **Variables of the suite**: `BANGER_BIN_DIR` (the programs under test), `BANGER_TEST_PLACE` ([`crate::place`]),
//! `BANGER_TEST_RUN` (the name of a run, which `make` gives), `BANGER_TEST_KEEP` (keeps a failed test's sandbox),
//! `BANGER_TEST_CACHE` (in place of the caches below), `BANGER_FIRECRACKER` (a Firecracker to test with). No other variable
//! of the environment reaches a command of a test but `PATH`.
//!
//! **Installed and made**: [`PLACES`]. The last test of a run, `zz_nothing_left`, looks through all of them with
//! [`left_behind`].

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::account::{self, Account};
use crate::leaks::{Kind, Scope, list};
use crate::test_run;

/// The user whose sandboxes are used where root runs the suite. `make clean-user` removes it.
pub const USER: &str = "banger-test";
/// Its user id, which should be the same each time: the user's cache outlives it. The next free one if it is taken.
pub const USER_ID: u32 = 59123;
/// What the account of every user of the tests says of itself (passwd(5)); none without it is touched.
pub const USER_COMMENT: &str = "made by banger's tests";
/// Where homes are.
pub const HOMES: &str = "/home";
/// Where a login has its runtime directory.
pub const RUNTIMES: &str = "/run/user";
/// Locks of the suite, and the cache of each user whose sandboxes root's suite uses.
pub const SHARED: &str = "/var/cache/banger-tests";
/// What gpg makes in a runtime directory when mmdebstrap asks it about keys, and leaves there.
const GPG_SOCKETS: &str = "gnupg";
/// How every sandbox's name begins.
pub const SANDBOX_PREFIX: &str = "bt-";

/// A place outside the tree.
#[derive(Debug)]
pub struct Outside {
    /// Where it is; a word in angle brackets stands for what differs.
    pub place: &'static str,
    /// What it is, and who makes it.
    pub what: &'static str,
    /// What removes it.
    pub until: &'static str,
}

/// All of them.
pub const PLACES: &[Outside] = &[
    Outside {
        place: "/etc/passwd, /etc/group, /etc/subuid: banger-test",
        what: "the user whose sandboxes root's suite uses, made by the first test",
        until: "`make test` when it ends, `make clean-user`",
    },
    Outside {
        place: "/home/banger-test",
        what: "that user's home, with a copy of the programs under test",
        until: "the removal of the user",
    },
    Outside {
        place: "/run/user/<uid>",
        what: "that user's runtime directory, as a login would have made it; image builds let gpg leave empty directories \
               in gnupg",
        until: "the removal of the user",
    },
    Outside {
        place: "<home>/bt-<letters>, /run/user/<uid>/bt-<letters>",
        what: "a sandbox; below /tmp, too, where BANGER_TEST_PLACE=tmp, for an ordinary user without /run/user/<uid>, and \
               for tests of the leak checker; in /run for root's runtime directory",
        until: "its test, also when that fails",
    },
    Outside {
        place: "/etc/passwd, /home, /tmp/banger-<uid>: bt<pid>",
        what: "a user who has never logged in, for one test of first_run",
        until: "that test",
    },
    Outside {
        place: "/var/cache/banger-tests",
        what: "kernels and images for sandboxes, by user id, and the locks of the suite; for an ordinary user \
               $XDG_CACHE_HOME/banger-tests or ~/.cache/banger-tests; BANGER_TEST_CACHE in place of both",
        until: "somebody removes it, at any time; of each kind the three seeds that were used last are kept",
    },
    Outside {
        place: "/run/netns/bth<pid>-<n>, /run/netns/bto<pid>-<n>, /etc/netns/bth<pid>-<n>",
        what: "two network namespaces: one plays the host and one the outside",
        until: "its test",
    },
    Outside {
        place: "/sys/fs/cgroup/memory/bt-<letters>",
        what: "a memory limit for one VM of the test of that",
        until: "its test",
    },
    Outside {
        place: "/var/tmp",
        what: "directories of crates' own tests: not in /tmp, which the cage has of its own",
        until: "its test",
    },
];

/// The directories of an account, all of which go with it.
pub(crate) fn directories_of(account: &Account) -> [PathBuf; 3] {
    let fallback = Path::new("/tmp").join(format!("banger-{}", account.uid));
    [account.runtime.clone(), fallback, account.home.clone()]
}

/// What any test of this run has left in any of these places, and whose process is gone; a line each. What a run before it
/// left, that was cut off in its middle, is printed and not held against this one.
#[must_use]
pub fn left_behind() -> Vec<String> {
    let (owner, invoker) = (account::of_this_thread(), account::invoker());
    let parents = [Path::new("/tmp"), &owner.home, &owner.runtime, &invoker.home, &invoker.runtime];
    let mut wrong: Vec<String> = parents.into_iter().flat_map(sandboxes).collect();
    wrong.extend(orphans(&parents));
    wrong.extend(of_pids("/run/netns", "bth"));
    wrong.extend(of_pids("/run/netns", "bto"));
    wrong.extend(of_pids("/etc/netns", "bth"));
    wrong.extend(of_pids(HOMES, "bt"));
    wrong.extend(cgroups(&parents));
    if owner.name == USER {
        wrong.extend(strays(owner));
    }
    wrong
}

fn entries(dir: &Path) -> Vec<(String, fs::DirEntry)> {
    let all = fs::read_dir(dir).into_iter().flatten().flatten();
    all.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry)).collect()
}

fn is_gone(pid: &str) -> bool {
    !Path::new("/proc").join(pid).exists()
}

/// Directories of sandboxes whose process is gone.
fn sandboxes(parent: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for (_, entry) in entries(parent).into_iter().filter(|(name, _)| name.starts_with(SANDBOX_PREFIX)) {
        let owner = fs::read_to_string(entry.path().join("owner")).unwrap_or_default();
        if owner.is_empty() || !is_gone(&owner) {
            continue;
        }
        let what = format!("the sandbox {} of process {owner}, which is gone", entry.path().display());
        if fs::read_to_string(entry.path().join("run-of")).unwrap_or_default() == test_run() {
            wrong.push(what);
        } else {
            eprintln!("not of this run: {what}");
        }
    }
    wrong
}

/// Processes, sockets, mounts and loop devices whose sandbox is gone: nobody will ever end them.
fn orphans(parents: &[&Path]) -> Vec<String> {
    let markers = parents.iter().map(|dir| format!("{}/{SANDBOX_PREFIX}", dir.display())).collect();
    let now = Scope { markers, dirs: Vec::new() }.snapshot();
    let gone = |text: &str| {
        let mut names = text.split(['/', ' ', ',', '=']).filter(|word| word.starts_with(SANDBOX_PREFIX));
        names.any(|name| !parents.iter().any(|dir| dir.join(name).join("owner").exists()))
    };
    let mut wrong = Vec::new();
    for kind in [Kind::Process, Kind::Socket, Kind::Mount, Kind::Loop] {
        let mut left = now.of(kind);
        left.retain(|thing| gone(&thing.key) || gone(&thing.detail));
        wrong.extend((!left.is_empty()).then(|| list(&left)));
    }
    wrong
}

/// Things that are named after a process, which is gone.
fn of_pids(dir: &str, prefix: &str) -> Vec<String> {
    let left = entries(Path::new(dir)).into_iter().filter(|(name, entry)| {
        let owner = name.strip_prefix(prefix).and_then(|name| name.split('-').next()).unwrap_or_default();
        owner.bytes().all(|b| b.is_ascii_digit()) && !owner.is_empty() && is_gone(owner) && of_this_run(entry)
    });
    left.map(|(_, entry)| entry.path().display().to_string()).collect()
}

fn cgroups(parents: &[&Path]) -> Vec<String> {
    let all = entries(Path::new("/sys/fs/cgroup/memory")).into_iter();
    let left = all.filter(|(name, _)| {
        name.starts_with(SANDBOX_PREFIX) && !parents.iter().any(|p| p.join(name).exists())
    });
    left.map(|(_, entry)| entry.path().display().to_string()).collect()
}

/// Files and processes of the suite's user outside its sandboxes. Another run's cannot be told from them, so that nothing is
/// said while there are sandboxes.
fn strays(owner: &Account) -> Vec<String> {
    let mut wrong: Vec<String> =
        account::processes(owner).iter().map(|(pid, command)| format!("process {pid}: {command}")).collect();
    for dir in
        ["/tmp", "/var/tmp", "/dev/shm", "/run/lock"].map(Path::new).into_iter().chain([&*owner.runtime])
    {
        let all = entries(dir).into_iter();
        let own = all.filter(|(name, entry)| {
            name != GPG_SOCKETS && entry.metadata().is_ok_and(|meta| meta.uid() == owner.uid)
        });
        wrong.extend(own.map(|(_, entry)| format!("{} is {}'s", entry.path().display(), owner.name)));
    }
    let others = entries(&owner.home).iter().any(|(name, _)| name.starts_with(SANDBOX_PREFIX));
    if others { Vec::new() } else { wrong }
}

/// Whether something was made since this run began, which is what `make` names a run after, in nanoseconds since 1970.
fn of_this_run(entry: &fs::DirEntry) -> bool {
    let began = Duration::from_nanos(test_run().parse().unwrap_or(0));
    entry.metadata().and_then(|m| m.modified()).is_ok_and(|made| made >= SystemTime::UNIX_EPOCH + began)
}
