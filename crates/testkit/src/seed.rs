//! What is slow to make and the same for every test: a state directory with a kernel and images,
//! made once by the real commands and kept outside the tree.
//!
//! Owns the cache of [`crate::habitat`], in which each owner of sandboxes has a directory. A seed is named by a digest of
//! the sources that decide what is in it, so that a change there makes a new one. A sandbox gets
//! its files by hard link (images and kernels are never modified) and its database by copy. Of those that sources of other days
//! made, the ones that were used last are kept; one that somebody is just taking from is never removed.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::sandbox::{Sandbox, workspace_dir};
use crate::{account, apt, as_invoker, bare, become_user, habitat, is_root, tree};

/// How many seeds of a kind are kept.
const KEPT: usize = 3;
/// How long a command that makes a part of a seed may take.
const FILLED: Duration = Duration::from_secs(900);

/// A filled state directory. Never run a daemon in it.
#[derive(Debug)]
pub struct Seed {
    state: PathBuf,
    /// Locked, shared, as long as this lives.
    _used: File,
}

impl Seed {
    /// The kernel `debian-cloud` and the image `bare`.
    #[must_use]
    pub fn bare() -> Self {
        Self::get("bare", None, |sandbox| {
            make(sandbox, &["kernel", "pull", "debian-cloud"]);
            let dir = sandbox.work("bare");
            assert!(bare::lay_out(&dir), "the bare image needs busybox-static: run scripts/setup");
            sandbox.banger(["image", "import", "bare"]).arg(&dir).go().ok().done();
        })
    }

    /// Besides, the default image `debian`.
    #[must_use]
    pub fn debian() -> Self {
        let build = ["image", "build", "debian"];
        Self::get("debian", Some(Self::bare()), |sandbox| make(sandbox, &build))
    }

    /// Besides, `sshd`: a small Debian with an OpenSSH server, for the benchmark's comparison.
    #[must_use]
    pub fn sshd() -> Self {
        let build =
            ["image", "build", "debian", "--minimal", "--name", "sshd", "--include", "openssh-server"];
        Self::get("sshd", Some(Self::bare()), |sandbox| make(sandbox, &build))
    }

    /// Besides, the kernel `stock`: Debian's for all machines. Needs [`apt`].
    #[must_use]
    pub fn stock_kernel() -> Self {
        Self::get("stock", Some(Self::bare()), |sandbox| {
            let tree = apt::kernel_package("linux-image-amd64", &sandbox.work("package"));
            let import = sandbox.banger(["kernel", "import", "stock"]).arg(tree);
            import.within(FILLED).go().ok().done();
        })
    }

    /// The state directory to take from.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The kernel's own files in it.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.state.join("kernels/debian-cloud")
    }

    /// Gives a fresh state directory what this one holds.
    pub(crate) fn fill(&self, state: &Path) {
        for entry in fs::read_dir(&self.state).expect("a seed").flatten() {
            let to = state.join(entry.file_name());
            if entry.path().is_dir() {
                tree::link(&entry.path(), &to);
            } else {
                // The database is written to: a link would lead back into the seed.
                fs::copy(entry.path(), &to).expect("a copy of the database");
            }
        }
    }

    fn get(name: &str, base: Option<Self>, fill: impl FnOnce(&Sandbox)) -> Self {
        become_user();
        let cache = cache_dir();
        let dir = cache.join(format!("{name}-{}", key()));
        // One process fills it; the others wait at the lock and find it filled.
        let lock = File::create(cache.join(format!("{name}.lock"))).expect("a lock file");
        flock(&lock, FlockOperation::LockExclusive).expect("the lock");
        let seed = Self { _used: using(&dir), state: dir };
        if seed.state.exists() {
            return seed;
        }
        eprintln!("filling the test cache: {} (kept in {})", name, cache.display());
        let sandbox = base.map_or_else(Sandbox::empty, |base| Sandbox::with(&base));
        fill(&sandbox);
        sandbox.banger(["daemon", "stop"]).go().ok().done();
        publish(&sandbox.state(), &seed.state);
        prune(&cache, name);
        drop(lock);
        seed
    }
}

fn make(sandbox: &Sandbox, command: &[&str]) {
    sandbox.banger(command).within(FILLED).go().ok().done();
}

/// Copies what lasts (not the log, not scratch) and shows it under its name all at once.
fn publish(state: &Path, target: &Path) {
    let parent = target.parent().expect("the cache");
    let fresh = tempfile::Builder::new().prefix(".fresh-").tempdir_in(parent).expect("a directory").keep();
    for entry in fs::read_dir(state).expect("a state directory").flatten() {
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text == "images" || text == "kernels" {
            tree::link(&entry.path(), &fresh.join(&name));
        } else if text.starts_with("banger.db") {
            fs::copy(entry.path(), fresh.join(&name)).expect("a copy of the database");
        }
    }
    fs::rename(&fresh, target).expect("the seed can be published");
}

/// Notes that a seed is used, and keeps it from being removed until the file is dropped.
fn using(seed: &Path) -> File {
    let used = open_used(seed);
    flock(&used, FlockOperation::LockShared).expect("the lock");
    used.set_modified(SystemTime::now()).expect("its time");
    used
}

fn open_used(seed: &Path) -> File {
    let mut options = File::options();
    options.write(true).create(true).truncate(false).open(used_file(seed)).expect("a file")
}

fn used_file(seed: &Path) -> PathBuf {
    seed.with_extension("used")
}

/// Removes seeds of a kind whose lock the caller has, but for those that were used last or are being taken from.
fn prune(cache: &Path, name: &str) {
    let is_one = |path: &PathBuf| {
        let key = path.file_name().and_then(|n| n.to_str()?.strip_prefix(name)?.strip_prefix('-'));
        path.is_dir() && key.is_some_and(|key| key.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let used_at = |path: &PathBuf| {
        let of = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified());
        of(&used_file(path)).or_else(|_| of(path)).unwrap_or(SystemTime::UNIX_EPOCH)
    };
    let entries = fs::read_dir(cache).expect("the test cache").flatten();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_one).collect();
    all.sort_by_key(|path| std::cmp::Reverse(used_at(path)));
    for old in all.iter().skip(KEPT) {
        let used = open_used(old);
        if flock(&used, FlockOperation::NonBlockingLockExclusive).is_ok() {
            fs::remove_dir_all(old).expect("an old seed can be removed");
            fs::remove_file(used_file(old)).expect("its file as well");
        }
    }
}

/// The cache of this thread's user. Its files keep that user's id when the user is gone: the next has it again.
fn cache_dir() -> PathBuf {
    let owner = account::of_this_thread();
    let var = |key: &str| std::env::var_os(key).filter(|v| !v.is_empty()).map(PathBuf::from);
    let all = var("BANGER_TEST_CACHE").unwrap_or_else(|| {
        if is_root() {
            return habitat::SHARED.into();
        }
        var("XDG_CACHE_HOME").unwrap_or_else(|| owner.home.join(".cache")).join("banger-tests")
    });
    let dir = all.join(owner.uid.to_string());
    as_invoker(|| {
        fs::create_dir_all(&all).expect("the test cache can be made");
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) if is_root() => {
                chown(&dir, Some(owner.uid), Some(owner.gid)).expect("root may give it away");
            }
            _ => {}
        }
    });
    assert!(fs::read_dir(&dir).is_ok(), "{} cannot look into {}", owner.name, dir.display());
    dir
}

/// A digest of everything that decides what a seed holds: the sources of the rooms that make
/// images and kernels, and that keep their records.
fn key() -> String {
    // The sources may lie where only who runs the suite may look.
    as_invoker(digest_of_sources)
}

fn digest_of_sources() -> String {
    let mut digest = Sha256::new();
    for room in ["crates/image/src", "crates/store/src"] {
        for entry in tree::walk(&workspace_dir().join(room)) {
            if !entry.dir {
                // The same in every checkout.
                let name = entry.path.strip_prefix(workspace_dir()).expect("it is below it");
                digest.update(name.to_string_lossy().as_bytes());
                digest.update(fs::read(&entry.path).expect("a source file"));
            }
        }
    }
    hex::encode(&digest.finalize()[..6])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_seeds_go_but_for_those_that_somebody_takes_from() {
        let cache = tempfile::tempdir().unwrap();
        let seed = |key: u64| cache.path().join(format!("bare-{key:012x}"));
        let held = using(&seed(0));
        for key in 0..6 {
            fs::create_dir(seed(key)).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(key);
            File::create(used_file(&seed(key))).unwrap().set_modified(at).unwrap();
        }
        fs::create_dir(cache.path().join("bare-work")).unwrap();
        let left = || {
            let mut all: Vec<u64> = (0..6).filter(|key| seed(*key).is_dir()).collect();
            all.sort_unstable();
            all
        };
        prune(cache.path(), "bare");
        assert_eq!(left(), [0, 3, 4, 5]);
        drop(held);
        prune(cache.path(), "bare");
        assert_eq!(left(), [3, 4, 5]);
        assert!(cache.path().join("bare-work").is_dir() && !used_file(&seed(0)).exists());
    }
}
