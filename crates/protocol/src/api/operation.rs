//! Operations and news: bodies of `/v1/operations…` and lines of `/v1/events`.

use banger_model::{LastError, OpId, VmId, VmName, VmState};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ErrorBody;

/// The header of a request whose operation goes on without its client, by the value [`DETACH`] (RFC 7240): the
/// answer is 202 and an [`OperationView`].
pub const PREFER: &str = "prefer";
/// See [`PREFER`].
pub const DETACH: &str = "respond-async";

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Under way.
    Running,
    /// Told to end, and unwinding.
    Cancelling,
    /// Done.
    Done,
    /// Failed; `error` says why.
    Failed,
    /// Cancelled and unwound.
    Cancelled,
}

impl OperationState {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more happens.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct OperationView {
    /// Finds it in the logs.
    pub id: OpId,
    /// What it does, such as `create`.
    pub kind: String,
    /// The VM it is about: its name, or what the request called it.
    pub vm: Option<String>,
    /// How far it is.
    pub state: OperationState,
    /// A stable word for the stage it is in, or was in last.
    pub stage: Option<String>,
    /// What that stage does, for people.
    pub message: Option<String>,
    /// How far the stage is, 0–100, when that is known.
    pub percent: Option<u8>,
    /// When it began.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub started_at: Timestamp,
    /// When it ended.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>, format = DateTime))]
    pub ended_at: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<ErrorBody>,
}

/// A line of `/v1/events`. Kinds may be added: pass over those you do not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum News {
    /// The first line: from here on nothing is missed.
    Watching {
        /// When.
        #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
        at: Timestamp,
    },
    /// An operation began, moved on or ended.
    Operation {
        /// When.
        #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
        at: Timestamp,
        /// It, as it is now.
        operation: OperationView,
    },
    /// A VM's state changed.
    Vm(VmNews),
    /// A VM was deleted.
    VmDeleted(VmNews),
    /// The watcher was too slow: it missed this many lines.
    Missed {
        /// How many.
        lines: u64,
    },
}

/// What changed with a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmNews {
    /// When.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub at: Timestamp,
    /// The VM.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// Its state now, or at last.
    pub state: VmState,
    /// Why it is in `error`.
    pub last_error: Option<LastError>,
    /// The operation that did it, if it was one.
    pub op_id: Option<OpId>,
}
