//! Whether a caller still wants an answer. Asked between chunks and while a git process is waited for.

use std::fmt;
use std::sync::Arc;

use crate::{Result, WorkspaceError};

/// A question that may be asked from any thread, at any time: shall this stop?
#[derive(Clone)]
pub struct Cancel(Arc<dyn Fn() -> bool + Send + Sync>);

impl Cancel {
    /// Stops when `asked` says so. It is asked often and must answer at once.
    pub fn new(asked: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(asked))
    }

    /// Never stops.
    #[must_use]
    pub fn never() -> Self {
        Self::new(|| false)
    }

    /// Whether to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        (self.0)()
    }

    /// An error when it is time to stop.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(WorkspaceError::Cancelled) } else { Ok(()) }
    }
}

impl Default for Cancel {
    fn default() -> Self {
        Self::never()
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}
