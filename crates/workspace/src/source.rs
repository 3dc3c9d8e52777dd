//! Which repository a path means, and what is asked of it more than once.
//!
//! Owns discovery: linked worktrees, submodules' git directories and the rest are git's own
//! business. Must never write.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::git::Git;
use crate::{Cancel, Result, WorkspaceError};

/// The most bytes of a listing of one tree or index.
pub(crate) const LISTING_CAP: u64 = 2 << 30;

/// A repository with a working tree.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The working tree's top directory.
    pub(crate) top: PathBuf,
    /// Its git directory, absolute; for a linked worktree that worktree's own.
    pub(crate) git_dir: PathBuf,
    /// What all its worktrees share: objects, refs, settings.
    pub(crate) common_dir: PathBuf,
    /// `sha1` or `sha256`.
    pub(crate) object_format: String,
    /// git on it.
    pub(crate) git: Git,
}

impl Source {
    /// The repository that `path` is in.
    pub(crate) fn find(path: &Path) -> Result<Self> {
        Self::find_watching(path, &Cancel::never())
    }

    /// The same, given up when the caller no longer wants it; so are all later calls of git.
    pub(crate) fn find_watching(path: &Path, cancel: &Cancel) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                WorkspaceError::NoSuchPath(path.to_owned())
            }
            _ => WorkspaceError::io("look at", path, e),
        })?;
        let dir = if meta.is_dir() { path } else { path.parent().unwrap_or(Path::new("/")) };
        let git = Git::discover(dir).watching(cancel);
        let facts = git
            .output(
                &["rev-parse", "--is-bare-repository", "--is-inside-work-tree", "--show-object-format"],
                1 << 16,
            )
            .map_err(|e| explain(e, dir))?;
        let facts = String::from_utf8_lossy(&facts).into_owned();
        let [_bare, inside, object_format] = facts.lines().collect::<Vec<_>>()[..] else {
            return Err(WorkspaceError::GitAnswer { verb: "rev-parse".into(), repository: dir.to_owned() });
        };
        if inside != "true" {
            return Err(WorkspaceError::Bare(dir.to_owned()));
        }
        let top = path_of(git.line(&["rev-parse", "--show-toplevel"])?);
        let git_dir = path_of(git.line(&["rev-parse", "--absolute-git-dir"])?);
        let common_dir = path_of(git.line(&["rev-parse", "--path-format=absolute", "--git-common-dir"])?);
        let git = Git::at(&git_dir, &top).watching(cancel);
        Ok(Self { top, git_dir, common_dir, object_format: object_format.to_owned(), git })
    }

    /// Where git keeps `name` for this working tree (its own or the common directory).
    pub(crate) fn git_path(&self, name: &str) -> Result<PathBuf> {
        Ok(self.top.join(path_of(self.git.line(&["rev-parse", "--git-path", name])?)))
    }

    /// git on the same repository whose new objects, temporary files and locks go to `objects`, a
    /// directory in scratch.
    pub(crate) fn writing_to(&self, objects: &Path) -> Result<Git> {
        let ours = OsString::from_vec(quoted(&self.common_dir.join("objects")));
        let git = self.git.clone().env("GIT_OBJECT_DIRECTORY", objects.as_os_str());
        Ok(git.env("GIT_ALTERNATE_OBJECT_DIRECTORIES", &ours))
    }

    /// The object that `revision` names, peeled to `kind` (`commit` or `tree`).
    pub(crate) fn resolve(&self, revision: &str, kind: &str) -> Result<String> {
        let spec = format!("{revision}^{{{kind}}}");
        let found = if revision.contains('\0') {
            None
        } else {
            self.git.query(&["rev-parse", "--verify", "--quiet", "--end-of-options", &spec], 1 << 12)?
        };
        found.and_then(|out| object_id(&out)).ok_or_else(|| WorkspaceError::Revision {
            repository: self.top.clone(),
            revision: revision.to_owned(),
        })
    }

    /// One setting as git resolves it, if it is set and text.
    pub(crate) fn setting(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let out = self.git.query(&["config", "-z", "--get", name], 1 << 16)?;
        Ok(out.map(|mut value| {
            if value.last() == Some(&0) {
                value.pop();
            }
            value
        }))
    }

    /// The id of the tree without entries.
    pub(crate) fn empty_tree(&self) -> &'static str {
        if self.object_format == "sha256" {
            "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321"
        } else {
            "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
        }
    }
}

/// The bytes of a path as git printed them.
pub(crate) fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

/// A line of output that is one whole object id.
pub(crate) fn object_id(line: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(line).ok()?.trim_end_matches('\n');
    let fine = matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit());
    fine.then(|| text.to_owned())
}

fn explain(e: WorkspaceError, dir: &Path) -> WorkspaceError {
    match e {
        WorkspaceError::Git { message, .. } if message.contains("not a git repository") => {
            WorkspaceError::NoRepository(dir.to_owned())
        }
        WorkspaceError::Git { message, .. } if message.contains("dubious ownership") => {
            WorkspaceError::NotTrusted(dir.to_owned())
        }
        other => other,
    }
}

/// An object directory as `objects/info/alternates` and `GIT_ALTERNATE_OBJECT_DIRECTORIES` (git(1))
/// have it, quoted so that any path can be said.
pub(crate) fn quoted(path: &Path) -> Vec<u8> {
    let mut line = b"\"".to_vec();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'"' | b'\\' => line.extend([b'\\', *byte]),
            0..=31 | 127 => line.extend(format!("\\{byte:03o}").into_bytes()),
            _ => line.push(*byte),
        }
    }
    line.extend([b'"']);
    line
}
