//! Names that a file system takes for one.
//!
//! Owns finding out whether the host's does that, without writing to it.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::base::Base;
use super::receive::{Change, Changes, refused};
use crate::Result;

/// Whether `.git` answers to another spelling in this working tree.
pub(crate) fn folds(top: &Path) -> bool {
    let look = |name: &str| std::fs::symlink_metadata(top.join(name)).ok().map(|m| (m.dev(), m.ino()));
    look(".git").is_some_and(|real| look(".gIT") == Some(real))
}

/// Refuses a new path that differs from another only in case, as a whole or up to a directory's
/// name where the other is a file.
pub(crate) fn check(changes: &Changes, base: &Base) -> Result<()> {
    let is_gone = |path: &[u8]| changes.get(path).is_some_and(|c| *c == Change::Deleted);
    let kept = base.entries().map(|e| e.path).filter(|path| !is_gone(path));
    let new = changes.iter().filter(|(_, c)| **c != Change::Deleted).map(|(path, _)| &path[..]);
    let mut files: HashMap<String, &[u8]> = HashMap::new();
    for path in kept.chain(new.clone()) {
        if let Some(other) = files.insert(folded(path), path)
            && other != path
        {
            let culprit = if changes.contains_key(path) { path } else { other };
            return Err(refused(
                culprit,
                "another path differs from it only in case, and the host's file system takes them for one",
            ));
        }
    }
    for path in new {
        let above = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at]);
        if above.into_iter().any(|dir| files.contains_key(&folded(dir))) {
            return Err(refused(
                path,
                "a file's name differs from one of its directories' only in case, and the host's file system takes them for one",
            ));
        }
    }
    Ok(())
}

fn folded(path: &[u8]) -> String {
    String::from_utf8_lossy(path).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_differ_in_case_only_are_refused_by_name() {
        let base = Base::parse(
            b"100644 blob 0123456789012345678901234567890123456789\tReadMe\x00100644 blob 0123456789012345678901234567890123456789\tdir/x\0".to_vec(),
        );
        let file = || Change::File { mode: 0o100_644, mark: 1 };
        let verdict = |changes: Vec<(&str, Change)>| {
            let changes = changes.into_iter().map(|(p, c)| (p.as_bytes().to_vec(), c)).collect();
            check(&changes, &base).map_err(|e| banger_model::Error::from(e).message)
        };
        assert_eq!(verdict(vec![("ReadMe", file()), ("other", file()), ("Dir/y", file())]), Ok(()));
        assert_eq!(verdict(vec![("README", file()), ("ReadMe", Change::Deleted)]), Ok(()), "a rename");
        assert!(verdict(vec![("README", file())]).unwrap_err().contains("README"));
        assert!(verdict(vec![("n", file()), ("N", file())]).is_err());
        assert!(verdict(vec![("readme/x", file())]).unwrap_err().contains("readme/x"));
    }

    #[test]
    fn an_ordinary_file_system_does_not_fold() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".git")).unwrap();
        assert!(!folds(dir.path()));
    }
}
