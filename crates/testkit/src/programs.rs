//! The programs under test, where the owner of sandboxes can run them.
//!
//! A checkout of root's often lies where no other user may look. The suite's user therefore gets a copy of the programs in
//! its home, owned by root, as an installation has them.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::identity::{as_invoker, is_root, stays_root};
use crate::{account, workspace_dir};

/// The directory of the programs under test: those of `BANGER_BIN_DIR`, else what `make` builds.
///
/// # Panics
/// When there is no `banger` in it.
#[must_use]
pub fn bin_dir() -> PathBuf {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    let usual = || workspace_dir().join("target/banger");
    let dir = std::env::var_os("BANGER_BIN_DIR").map_or_else(usual, PathBuf::from);
    if is_root() && !stays_root() {
        return COPY.get_or_init(|| as_invoker(|| copied(&dir))).clone();
    }
    assert_is_there(&dir);
    dir
}

fn assert_is_there(dir: &Path) {
    let there = dir.join("banger").exists();
    assert!(there, "no banger in {}: run `make build` or set BANGER_BIN_DIR", dir.display());
}

/// Brings the copy of a directory up to date, a file at a time: what runs keeps its file.
fn copied(dir: &Path) -> PathBuf {
    assert_is_there(dir);
    let mut hasher = DefaultHasher::new();
    dir.hash(&mut hasher);
    let home = &account::of_this_thread().home;
    let to = home.join(format!("programs-{:016x}", hasher.finish()));
    fs::DirBuilder::new().recursive(true).mode(0o755).create(&to).expect("a directory for the programs");
    for entry in fs::read_dir(dir).expect("the programs").flatten() {
        let (from, target) = (entry.path(), to.join(entry.file_name()));
        let meta = fs::metadata(&from).expect("a program");
        let same = |there: fs::Metadata| there.size() == meta.size() && there.mtime() == meta.mtime();
        if meta.is_file() && !fs::metadata(&target).is_ok_and(same) {
            // Several test programs may do so at once.
            let fresh = tempfile::NamedTempFile::new_in(&to).expect("a file").into_temp_path();
            fs::copy(&from, &fresh).expect("a copy of a program");
            fs::File::options()
                .write(true)
                .open(&fresh)
                .and_then(|f| f.set_modified(meta.modified()?))
                .expect("its time");
            fresh.persist(&target).expect("its place");
        }
    }
    to
}
