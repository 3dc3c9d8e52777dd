//! The agent channel: frames on one byte stream, many flow-controlled streams in it.
//!
//! [`frame`] is the framing, [`message`] the CBOR messages in it, [`scan`] the records of a
//! workspace scan. The host opens every stream with one [`Request`]; the guest answers with
//! [`Reply`] messages, data and ends. Guest bytes are untrusted: every length has a cap.

pub mod frame;
mod message;
pub mod scan;

use crate::ProtocolVersion;

pub use message::{
    AgentHello, Control, ExecSpec, ExitStatus, HostHello, InitKind, NetworkConfig, Reply, Request, ScanSpec,
    ScanSummary, ShutdownMode, TermSize, UnpackSpec, decode, encode,
};

/// This protocol's version. 1.1: a scan says where a submodule changed and which repositories it left out.
pub const VERSION: ProtocolVersion = ProtocolVersion { major: 1, minor: 1 };
