//! Where a submodule is in the workspace and where its repository goes.
//!
//! Owns the names below `.git/modules`. Must never let a name lead out of it.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::Result;
use crate::source::Source;

/// A repository's place in the workspace.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Empty, or the path of its working tree with a slash at the end.
    pub(crate) prefix: Vec<u8>,
    /// The path of its git directory.
    pub(crate) git_dir: Vec<u8>,
}

impl Place {
    pub(crate) fn outermost() -> Self {
        Self { prefix: Vec::new(), git_dir: b".git".to_vec() }
    }

    /// Of the submodule `name` at `path`.
    pub(crate) fn within(&self, path: &[u8], name: &[u8]) -> Self {
        Self {
            prefix: [&self.prefix[..], path, b"/"].concat(),
            git_dir: [&self.git_dir[..], b"/modules/", name].concat(),
        }
    }

    pub(crate) fn is_submodule(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// What the `.git` file of a submodule says.
    pub(crate) fn pointer(&self) -> Vec<u8> {
        [b"gitdir: ", &up(&self.prefix)[..], &self.git_dir, b"\n"].concat()
    }

    /// The working tree, from the git directory.
    pub(crate) fn work_tree(&self) -> Vec<u8> {
        let inside = self.prefix.strip_suffix(b"/").unwrap_or(&self.prefix);
        [&up(&[&self.git_dir[..], b"/"].concat())[..], inside].concat()
    }
}

/// The way back up from a directory whose path ends in a slash.
fn up(dir: &[u8]) -> Vec<u8> {
    b"../".repeat(dir.iter().filter(|b| **b == b'/').count())
}

/// The names of submodules by path, as `.gitmodules` in the working tree has them.
pub(crate) fn names(source: &Source) -> Result<HashMap<Vec<u8>, Vec<u8>>> {
    let mut names = HashMap::new();
    if !source.top.join(".gitmodules").symlink_metadata().is_ok_and(|m| m.is_file()) {
        return Ok(names);
    }
    let args = ["config", "-z", "-f", ".gitmodules", "--get-regexp", r"^submodule\..*\.path$"];
    let out = source.git.query(&args, 16 << 20)?.unwrap_or_default();
    for line in out.split(|b| *b == 0) {
        let Some(at) = line.iter().position(|b| *b == b'\n') else { continue };
        let name = line[..at].strip_prefix(b"submodule.").and_then(|n| n.strip_suffix(b".path"));
        if let Some(name) = name.filter(|name| is_safe(name)) {
            names.insert(line[at + 1..].to_vec(), name.to_vec());
        }
    }
    Ok(names)
}

/// Whether a name stays below the directory it is put in, and is no place of git's own there.
fn is_safe(name: &[u8]) -> bool {
    name.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b"..")) && !name.contains(&b'\n')
}

/// The submodule's own repository; none when it was never checked out.
pub(crate) fn repository(outer: &Source, path: &[u8]) -> Result<Option<Source>> {
    let top = outer.top.join(Path::new(std::ffi::OsStr::from_bytes(path)));
    let is_there = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.is_file() || m.is_dir());
    if !top.symlink_metadata().is_ok_and(|m| m.is_dir()) || !is_there(&top.join(".git")) {
        return Ok(None);
    }
    let found = Source::find_watching(&top, outer.git.cancel())?;
    // A `.git` that is none leads to the outer repository.
    Ok(Some(found).filter(|found| found.git_dir != outer.git_dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submodule_and_its_repository_find_each_other() {
        let place = Place::outermost().within(b"a/b", b"n/m").within(b"c", b"c");
        assert_eq!(place.prefix, b"a/b/c/");
        assert_eq!(place.pointer(), b"gitdir: ../../../.git/modules/n/m/modules/c\n");
        assert_eq!(place.work_tree(), b"../../../../../../a/b/c");
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_not_used() {
        for (name, fine) in
            [(&b"a"[..], true), (b"a/b", true), (b"../a", false), (b"/a", false), (b"a/", false)]
        {
            assert_eq!(is_safe(name), fine);
        }
    }
}
