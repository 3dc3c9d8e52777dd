//! Everything that can go wrong with a kernel, and how it is told to users.
//! Must never swallow what a tool said: its last line travels in the error.

use std::path::PathBuf;

use banger_model::{Error, ErrorCode, KernelName};

use crate::error::ImageError;

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
    /// The kernel has a driver neither built in nor as a module.
    #[error("kernel {release} has no '{module}', neither built in nor as a module")]
    MissingModule {
        /// `uname -r` of it.
        release: String,
        /// The driver, as a module name.
        module: String,
    },
    /// There is no apt here, or its sources do not have the package.
    #[error("{message}")]
    NoPackage {
        /// One sentence.
        message: String,
    },
    /// A stored kernel is not complete.
    #[error("kernel '{name}' is damaged: {reason}")]
    Damaged {
        /// The name.
        name: KernelName,
        /// What is wrong.
        reason: String,
    },
    /// What kernels have in common with images: tools, files, cancellation.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Result with [`KernelError`].
pub(crate) type Result<T, E = KernelError> = std::result::Result<T, E>;

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
            KernelError::Image(inner) => return inner.into(),
            KernelError::MissingModule { .. } => (
                ErrorCode::Unsupported,
                Some(
                    "'banger kernel pull debian-cloud' brings a kernel that has all that is needed"
                        .to_owned(),
                ),
            ),
            KernelError::NoPackage { .. } => (
                ErrorCode::Unavailable,
                Some("take a kernel from a directory with: banger kernel import NAME DIR".to_owned()),
            ),
            KernelError::Damaged { name, .. } => (
                ErrorCode::ImageMissing,
                Some(format!("delete it and fetch it again: banger kernel delete {name}")),
            ),
        };
        Self { code, message, hint }
    }
}
