//! Packages that an earlier build downloaded, one directory a release.
//! Must never hand out or keep a file that is only half there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{ImageError, Result};
use crate::workdir::{self, WorkDir};

/// Packages that no build wanted for so long are replaced ones.
const KEEP: Duration = Duration::from_secs(45 * 24 * 60 * 60);
const PREFIX: &str = ".build-";

/// The cache as one build sees it: what is there at its start, and room for what it adds.
/// Builds at the same time do not see each other.
pub(super) struct Cache {
    dir: PathBuf,
    work: WorkDir,
}

impl Cache {
    pub(super) fn open(cache_dir: &Path, release: &str) -> Result<Self> {
        let dir = cache_dir.join("apt").join(release);
        workdir::make_private_dir(&dir)?;
        if let Err(error) = workdir::sweep(&dir, PREFIX) {
            tracing::warn!(%error, "leftovers of a killed build stay in the cache");
        }
        let work = WorkDir::new(&dir, PREFIX, 0o700)?;
        let cache = Self { dir, work };
        for path in [cache.before(), cache.after()] {
            workdir::make_private_dir(&path)?;
        }
        for package in packages(&cache.dir)? {
            if let Some(name) = package.file_name() {
                // Another build may be dropping it right now.
                let _ = fs::hard_link(&package, cache.before().join(name));
            }
        }
        Ok(cache)
    }

    /// The packages there are, for mmdebstrap to copy in.
    pub(super) fn before(&self) -> PathBuf {
        self.work.path().join("before")
    }

    /// Where mmdebstrap copies all packages that it used.
    pub(super) fn after(&self) -> PathBuf {
        self.work.path().join("after")
    }

    /// Keeps what the build used.
    pub(super) fn keep(self) -> Result<()> {
        let now = SystemTime::now();
        for package in packages(&self.after())? {
            let Some(name) = package.file_name() else { continue };
            let to = self.dir.join(name);
            let file =
                File::options().append(true).open(&package).map_err(ImageError::io("open", &package))?;
            file.set_modified(now).map_err(ImageError::io("date", &package))?;
            // Both are on one file system, so the file appears at once and whole.
            fs::rename(&package, &to).map_err(ImageError::io("keep", &to))?;
        }
        for package in packages(&self.dir)? {
            let age = fs::metadata(&package).ok().and_then(|meta| meta.modified().ok());
            if age.and_then(|at| now.duration_since(at).ok()).is_some_and(|age| age > KEEP) {
                let _ = fs::remove_file(&package);
            }
        }
        Ok(())
    }
}

fn packages(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(ImageError::io("list", dir))?;
    let paths =
        entries.flatten().filter(|e| e.file_type().is_ok_and(|kind| kind.is_file())).map(|e| e.path());
    Ok(paths.filter(|path| path.extension().is_some_and(|e| e == "deb")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_build_downloads_the_next_one_finds_and_the_long_unused_goes() {
        let dir = tempfile::tempdir().unwrap();
        let first = Cache::open(dir.path(), "bookworm").unwrap();
        fs::write(first.after().join("a_1_all.deb"), "a").unwrap();
        fs::write(first.after().join("lock"), "").unwrap();
        first.keep().unwrap();
        let stale = dir.path().join("apt/bookworm/old_1_all.deb");
        fs::write(&stale, "o").unwrap();
        let long_ago = SystemTime::now() - KEEP - Duration::from_secs(60);
        File::options().append(true).open(&stale).unwrap().set_modified(long_ago).unwrap();

        let second = Cache::open(dir.path(), "bookworm").unwrap();
        assert_eq!(packages(&second.before()).unwrap().len(), 2);
        fs::write(second.after().join("a_1_all.deb"), "a").unwrap();
        second.keep().unwrap();

        let left: Vec<_> = fs::read_dir(dir.path().join("apt/bookworm")).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        let other = Cache::open(dir.path(), "trixie").unwrap();
        assert!(packages(&other.before()).unwrap().is_empty());
    }
}
