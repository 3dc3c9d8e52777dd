//! The daemon itself: bodies of `/v1/daemon…` and `/v1/doctor`.

use banger_model::ByteString;
use serde::{Deserialize, Serialize};

/// `GET /v1/daemon`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DaemonStatus {
    /// Always true when the daemon itself answers.
    pub running: bool,
    /// Its process id.
    pub pid: Option<u32>,
    /// Its build version.
    pub version: Option<String>,
    /// Its socket.
    pub socket: ByteString,
    /// Its state directory.
    pub state_dir: ByteString,
    /// Seconds since it started.
    pub uptime_s: Option<u64>,
}

/// One check of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Check {
    /// A stable word, such as `kvm`.
    pub name: String,
    /// How it went.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// What to type next.
    pub hint: Option<String>,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// Fine.
    Ok,
    /// It works, but not as well as it could.
    Warn,
    /// Something will not work.
    Fail,
}
