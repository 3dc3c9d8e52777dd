//! What can go wrong between a repository and a guest, each with its code and its hint.

use std::io;
use std::path::{Path, PathBuf};

use banger_model::{ByteString, Error, ErrorCode};

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkspaceError {
    /// There is nothing at the path.
    #[error("there is nothing at {}", show(.0))]
    NoSuchPath(PathBuf),
    /// The path is in no repository.
    #[error("{} is not in a git repository", show(.0))]
    NoRepository(PathBuf),
    /// The repository has no working tree, or the path is in its git directory.
    #[error("{} is a bare repository or inside a .git directory; there is no working tree to copy", show(.0))]
    Bare(PathBuf),
    /// git refuses the repository because somebody else owns it.
    #[error("git does not trust {}: another user owns it", show(.0))]
    NotTrusted(PathBuf),
    /// The repository has submodules.
    #[error("{} has a submodule at '{}', which mode {mode} does not copy", show(.repository), name(.path))]
    Submodule {
        /// The repository.
        repository: PathBuf,
        /// The submodule's path in it.
        path: ByteString,
        /// The mode asked for.
        mode: banger_model::WorkspaceMode,
    },
    /// `from` without `branch`.
    #[error("a starting point ('{0}') was given without a new branch to start there")]
    FromWithoutBranch(String),
    /// No branch can have that name.
    #[error("'{0}' is not a branch name")]
    BranchName(String),
    /// A revision that the repository does not have.
    #[error("{} has no revision '{revision}'", show(.repository))]
    Revision {
        /// The repository.
        repository: PathBuf,
        /// The revision as it was given.
        revision: String,
    },
    /// A file kept changing, or went away, while it was copied.
    #[error("'{}' changed while it was being copied", name(.0))]
    Changed(ByteString),
    /// A tracked path is neither a file nor a link.
    #[error("'{}' is neither a file, a directory nor a symbolic link", name(.0))]
    Special(ByteString),
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", show(.path))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The reader of the stream went away.
    #[error("the stream to the guest broke: {0}")]
    Stream(io::Error),
    /// The stream from the guest broke.
    #[error("the stream from the guest broke: {0}")]
    GuestStream(io::Error),
    /// The caller asked to stop.
    #[error("the copy was cancelled")]
    Cancelled,
    /// A word of the vocabulary is wrong.
    #[error(transparent)]
    Model(Error),
    /// git is not there.
    #[error("git cannot be run: {0}")]
    NoGit(io::Error),
    /// git failed.
    #[error("git {verb} failed in {}: {message}", show(.repository))]
    Git {
        /// The git command.
        verb: String,
        /// Where.
        repository: PathBuf,
        /// The last line git wrote to stderr.
        message: String,
    },
    /// git said something that is not understood.
    #[error("git {verb} answered something unexpected in {}", show(.repository))]
    GitAnswer {
        /// The git command.
        verb: String,
        /// Where.
        repository: PathBuf,
    },
    /// The guest sent a path or content that is refused.
    #[error("the guest's change at '{}' is refused: {why}", name(.path))]
    Refused {
        /// The path as the guest sent it.
        path: ByteString,
        /// Why.
        why: &'static str,
    },
    /// The guest stopped before its last record.
    #[error("the guest's scan ends in the middle{}", at(.0.as_ref()))]
    CutShort(Option<ByteString>),
    /// The guest broke the record format.
    #[error("the guest's scan is malformed: {0}")]
    Malformed(String),
    /// The guest sent more than allowed.
    #[error("the guest's change is larger than the limit of {limit} {what}; it was at '{}'", name(.path))]
    TooMuch {
        /// The limit.
        limit: u64,
        /// Of what.
        what: &'static str,
        /// The path that went beyond it.
        path: ByteString,
    },
    /// Files changed on the host since they were copied in.
    #[error("{} in {} changed there since the copy was made", names(.paths), show(.repository))]
    TouchedHere {
        /// The repository.
        repository: PathBuf,
        /// The paths.
        paths: Vec<ByteString>,
    },
    /// Both sides changed them, and lines cannot be merged.
    #[error("{} in {} changed on both sides and cannot be merged: deleted, binary or a link on one of them", names(.paths), show(.repository))]
    CannotMerge {
        /// The repository.
        repository: PathBuf,
        /// The paths.
        paths: Vec<ByteString>,
    },
    /// The change needs the place of something that is not part of it.
    #[error("'{}' in the working tree is in the way of the change: it is not what was copied, or holds other files", name(.0))]
    InTheWay(ByteString),
    /// Another apply to the same repository is under way.
    #[error("another apply to {} is under way", show(.0))]
    Applying(PathBuf),
    /// An apply stopped in the middle.
    #[error("the apply to {} stopped after {done} of {of} paths: {why}{}", show(.repository), kept(.backup.as_deref()))]
    HalfApplied {
        /// The repository.
        repository: PathBuf,
        /// Paths done.
        done: usize,
        /// Of how many.
        of: usize,
        /// The ref with what was replaced.
        backup: Option<String>,
        /// What stopped it.
        why: Box<WorkspaceError>,
    },
    /// The branch is there already.
    #[error("there is a branch '{0}' already")]
    BranchExists(String),
    /// A commit of this file needs a filter program.
    #[error("'{}' goes through a filter program when it is committed, and none is run on what a guest wrote", name(.0))]
    NeedsFilter(ByteString),
    /// The guest changed a submodule.
    #[error("the submodule at '{}' was changed in the guest, which a patch of this repository cannot say", name(.0))]
    SubmoduleChanged(ByteString),
}

fn show(path: &Path) -> String {
    format!("'{}'", path.as_os_str().as_encoded_bytes().escape_ascii_lossy())
}

fn name(path: &ByteString) -> String {
    path.as_bytes().escape_ascii_lossy()
}

fn at(path: Option<&ByteString>) -> String {
    path.map(|path| format!(" of '{}'", name(path))).unwrap_or_default()
}

/// The first few names.
fn names(paths: &[ByteString]) -> String {
    const FEW: usize = 10;
    let few: Vec<String> = paths.iter().take(FEW).map(|path| format!("'{}'", name(path))).collect();
    match paths.len().checked_sub(FEW).filter(|more| *more > 0) {
        Some(more) => format!("{} and {more} more", few.join(", ")),
        None => few.join(", "),
    }
}

fn kept(backup: Option<&str>) -> String {
    backup.map(|name| format!("; what was replaced is kept in {name}")).unwrap_or_default()
}

/// Names in messages: text as it is, control characters and other bytes escaped.
trait EscapeLossy {
    fn escape_ascii_lossy(&self) -> String;
}

impl EscapeLossy for [u8] {
    fn escape_ascii_lossy(&self) -> String {
        let mut out = String::new();
        for chunk in self.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
            }
            out.push_str(&chunk.invalid().escape_ascii().to_string());
        }
        out
    }
}

impl WorkspaceError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    /// Whether the guest stopped in the middle, which it may say the reason of.
    #[must_use]
    pub fn is_cut_short(&self) -> bool {
        matches!(self, Self::CutShort(_) | Self::GuestStream(_))
    }

    fn code(&self) -> ErrorCode {
        match self {
            Self::Model(e) => e.code,
            Self::NoSuchPath(_) | Self::Revision { .. } => ErrorCode::NotFound,
            Self::NoRepository(_)
            | Self::Bare(_)
            | Self::NotTrusted(_)
            | Self::FromWithoutBranch(_)
            | Self::BranchName(_)
            | Self::Special(_) => ErrorCode::InvalidArgument,
            Self::Submodule { .. } | Self::SubmoduleChanged(_) | Self::NeedsFilter(_) => {
                ErrorCode::Unsupported
            }
            Self::TouchedHere { .. } | Self::CannotMerge { .. } | Self::InTheWay(_) => ErrorCode::Conflict,
            Self::HalfApplied { why, .. } => why.code(),
            Self::BranchExists(_) => ErrorCode::AlreadyExists,
            Self::Changed(_) | Self::Applying(_) => ErrorCode::Busy,
            Self::Cancelled => ErrorCode::Cancelled,
            Self::NoGit(_) | Self::Io { .. } | Self::Git { .. } => ErrorCode::Unavailable,
            Self::Refused { .. } | Self::Malformed(_) | Self::TooMuch { .. } => ErrorCode::GuestFailed,
            Self::CutShort(_) | Self::Stream(_) | Self::GuestStream(_) => ErrorCode::GuestFailed,
            Self::GitAnswer { .. } => ErrorCode::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Model(e) => return e.hint.clone(),
            Self::NoRepository(path) => {
                return Some(format!("make it one: git -C {} init, then commit what it holds", show(path)));
            }
            Self::Bare(_) => "name a checkout of it: git worktree add DIR, or git clone",
            Self::NotTrusted(path) => {
                return Some(format!("git config --global --add safe.directory {}", show(path)));
            }
            Self::Submodule { .. } => {
                "--mode full_copy takes submodules along; or name the submodule's own directory to work on it alone"
            }
            Self::FromWithoutBranch(_) => "add --branch NAME",
            Self::BranchName(_) => "see git help check-ref-format for what a name may hold",
            Self::Revision { .. } => "git log --oneline --all shows what is there",
            Self::Changed(_) => "let whatever writes to the repository finish, and try again",
            Self::Special(_) => "remove it or take it out of the repository: git rm --cached",
            Self::NoGit(_) => return Some(banger_host::programs::install_hint("git")),
            Self::TouchedHere { .. } => {
                "--3way merges both sides; --branch NAME makes a commit and leaves the files alone"
            }
            Self::CannotMerge { .. } => {
                "--branch NAME makes a commit and leaves the files alone; then git merge NAME"
            }
            Self::InTheWay(_) => "move it away, or use --branch NAME, which leaves the files alone",
            Self::Applying(_) => "wait for it to end, and try again",
            Self::HalfApplied { backup, .. } => {
                return backup.as_deref().map(|name| format!("to go back: {}", crate::apply::restore(name)));
            }
            Self::BranchExists(_) => "choose another name with --branch",
            Self::NeedsFilter(_) => "apply to the working tree (without --branch), then git add and commit",
            Self::SubmoduleChanged(_) => {
                "take its change out by itself: prepare the submodule's own directory in another VM, or push from the guest"
            }
            Self::TooMuch { what: "bytes", .. } => "raise --max-bytes, or ignore build output in .gitignore",
            Self::TooMuch { .. } => "ignore build output in .gitignore",
            Self::Refused { .. } => "look at it with vm exec, and remove or rename it there",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

impl From<WorkspaceError> for Error {
    fn from(e: WorkspaceError) -> Self {
        let (error, hint) = (Self::new(e.code(), e.to_string()), e.hint());
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_shown_whole_and_without_control_characters() {
        let error: Error = WorkspaceError::Changed(ByteString(b"a\n\xff\xc3\xbc".to_vec())).into();
        assert_eq!(error.code, ErrorCode::Busy);
        assert_eq!(error.message, "'a\\n\\xff\u{fc}' changed while it was being copied");
        assert!(error.hint.is_some());
    }
}
