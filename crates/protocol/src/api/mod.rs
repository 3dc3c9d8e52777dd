//! The daemon's API: JSON bodies of HTTP/1.1 on a unix socket, below `/v1`.
//!
//! Every answer has an `x-banger-op` header with the operation's id. Requests that change
//! something answer with a stream of [`Event`] lines when asked to (`Accept:` [`NDJSON`]), else
//! with the result alone. When the client closes the connection, the operation is cancelled and
//! unwound. The machine-readable description is at `/v1/openapi.json`.

mod artifact;
mod daemon;
mod operation;
mod template;
mod vm;

use serde::{Deserialize, Serialize};

use banger_model::{Error, ErrorCode, OpId};

use crate::ProtocolVersion;

pub use artifact::{AvailableKernel, BuildImage, ImportImage, ImportKernel, PullKernel};
pub use daemon::{Check, CheckStatus, DaemonStatus};
pub use operation::{DETACH, News, OperationState, OperationView, PREFER, VmNews};
pub use template::{PruneTemplates, PrunedTemplates, SaveTemplate, TemplateView};
pub use vm::{
    AppliedCommit, AppliedFile, ApplyRequest, ApplySummary, ChangeKind, CreateSnapshot, CreateVm, CreatedVm,
    ExecRequest, ExportRequest, ExportSummary, FileChange, ForkVm, ForkedVm, KillVm, Outcome, PreparePlan,
    PrepareRequest, Prepared, RebuildVm, SetVm, SnapshotKind, SnapshotView, StopVm, Timing,
};

/// This protocol's version; the major is the `/v1` of every path.
pub const VERSION: ProtocolVersion = ProtocolVersion { major: 1, minor: 0 };
/// Media type of an event stream: one JSON document a line.
pub const NDJSON: &str = "application/x-ndjson";
/// Media type of an export: one line of JSON ([`ExportSummary`]), then the patch.
pub const EXPORT: &str = "application/vnd.banger.export";
/// The header in which the answer to an exec says that the host's repository has moved on.
pub const NOTICE_HEADER: &str = "banger-notice";
/// Response header that carries the operation's id.
pub const OP_HEADER: &str = "x-banger-op";

/// An error as the API and `--json` show it: `{"error": {…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ErrorEnvelope {
    /// The error.
    pub error: ErrorBody,
}

/// What is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// The stable code.
    pub code: ErrorCode,
    /// One sentence.
    pub message: String,
    /// What to type next.
    pub hint: Option<String>,
    /// Finds it in the logs; absent when the daemon was never reached.
    pub op_id: Option<OpId>,
}

impl ErrorBody {
    /// The error with the operation it belongs to.
    #[must_use]
    pub fn new(error: Error, op_id: Option<OpId>) -> Self {
        Self { code: error.code, message: error.message, hint: error.hint, op_id }
    }
}

/// A line of an event stream. The last is `result` or `error`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// A stage began or moved on.
    Progress(Progress),
    /// Something the user should know, once.
    Notice {
        /// One sentence.
        message: String,
    },
    /// It is done.
    Result {
        /// What the endpoint answers without a stream.
        value: serde_json::Value,
    },
    /// It failed.
    Error {
        /// Why.
        error: ErrorBody,
    },
}

/// Where an operation is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Progress {
    /// A stable word for the stage, such as `boot`.
    pub stage: String,
    /// What it does, for people.
    pub message: String,
    /// How far the stage is, 0–100, when that is known.
    pub percent: Option<u8>,
    /// Milliseconds since the operation began.
    pub since_start_ms: u64,
    /// Milliseconds since the last stage began.
    pub since_last_stage_ms: u64,
}
