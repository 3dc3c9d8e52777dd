//! Everything that can go wrong with a kernel, and how it is told to users.
//! Must never swallow what a tool said: its last line travels in the error.

use std::io;
use std::path::{Path, PathBuf};

use banger_model::{Error, ErrorCode, KernelName};

/// A failure of this crate's kernel side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// No kernel by that name; carries near names as a hint.
    #[error(transparent)]
    Reference(#[from] Error),
    /// The catalog has no such kernel.
    #[error("the catalog has no kernel '{name}'")]
    NotInCatalog {
        /// The name that was asked for.
        name: KernelName,
        /// What the catalog has.
        catalog: String,
    },
    /// The name is taken.
    #[error("there is a kernel '{name}' already")]
    AlreadyExists {
        /// The name.
        name: KernelName,
    },
    /// The directory to import has no kernel file.
    #[error("{} holds no kernel file", dir.display())]
    NoKernelFile {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory to import has several candidates for one thing.
    #[error("{} holds several {what}: {}", dir.display(), found.join(", "))]
    Several {
        /// The directory.
        dir: PathBuf,
        /// Kernel files, or directories of modules.
        what: &'static str,
        /// The candidates, relative to the directory.
        found: Vec<String>,
    },
    /// The source is not what it should be.
    #[error("cannot import {}: {reason}", path.display())]
    BadSource {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The kernel has a driver neither built in nor as a module.
    #[error("kernel {release} has no '{module}', neither built in nor as a module")]
    MissingModule {
        /// `uname -r` of it.
        release: String,
        /// The driver, as a module name.
        module: String,
    },
    /// A program that is needed is not installed.
    #[error("{tool} is not installed")]
    ToolMissing {
        /// The program.
        tool: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// There is no apt here, or its sources do not have the package.
    #[error("{message}")]
    NoPackage {
        /// One sentence.
        message: String,
    },
    /// A program failed.
    #[error("{tool} failed: {line}")]
    ToolFailed {
        /// The program.
        tool: &'static str,
        /// Its last line that says why.
        line: String,
    },
    /// A stored kernel is not complete.
    #[error("kernel '{name}' is damaged: {reason}")]
    Damaged {
        /// The name.
        name: KernelName,
        /// What is wrong.
        reason: String,
    },
    /// The caller asked to stop.
    #[error("{what} was cancelled")]
    Cancelled {
        /// What was.
        what: &'static str,
    },
    /// The host failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as `read`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Result with [`KernelError`].
pub type Result<T, E = KernelError> = std::result::Result<T, E>;

impl KernelError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn bad_source(path: &Path, reason: impl Into<String>) -> Self {
        Self::BadSource { path: path.to_owned(), reason: reason.into() }
    }
}

impl From<KernelError> for Error {
    fn from(error: KernelError) -> Self {
        let message = error.to_string();
        let (code, hint) = match error {
            KernelError::Reference(inner) => return inner,
            KernelError::NotInCatalog { catalog, .. } => (
                ErrorCode::NotFound,
                Some(format!("it has: {catalog}; 'banger kernel import' takes a kernel from a directory")),
            ),
            KernelError::AlreadyExists { name } => (
                ErrorCode::AlreadyExists,
                Some(format!("choose another name, or first: banger kernel delete {name}")),
            ),
            KernelError::NoKernelFile { .. } => (
                ErrorCode::InvalidArgument,
                Some("put a vmlinuz, bzImage or vmlinux there, or in boot/ below it".to_owned()),
            ),
            KernelError::Several { .. } => {
                (ErrorCode::InvalidArgument, Some("leave only one of them in the directory".to_owned()))
            }
            KernelError::BadSource { .. } => (ErrorCode::InvalidArgument, None),
            KernelError::MissingModule { .. } => (
                ErrorCode::Unsupported,
                Some("'banger kernel pull debian-cloud' brings a kernel that has all that is needed".to_owned()),
            ),
            KernelError::ToolMissing { package, .. } => (
                ErrorCode::Unavailable,
                Some(format!("install the package {package}, for example with: sudo apt-get install {package}")),
            ),
            KernelError::NoPackage { .. } => (
                ErrorCode::Unavailable,
                Some("take a kernel from a directory with: banger kernel import NAME DIR".to_owned()),
            ),
            KernelError::ToolFailed { .. } => (ErrorCode::Unavailable, None),
            KernelError::Damaged { name, .. } => (
                ErrorCode::ImageMissing,
                Some(format!("delete it and fetch it again: banger kernel delete {name}")),
            ),
            KernelError::Cancelled { .. } => (ErrorCode::Cancelled, None),
            KernelError::Io { ref source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (ErrorCode::Unavailable, None),
                _ => (ErrorCode::Internal, None),
            },
        };
        Self { code, message, hint }
    }
}
