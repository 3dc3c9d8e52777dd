//! The agent channel: frames on one byte stream, many flow-controlled streams in it.
//!
//! [`frame`] is the framing, [`message`] the CBOR messages in it, [`scan`] the records of a
//! workspace scan, [`touched`] those of a comparison. The host opens every stream with one [`Request`]; the guest answers with
//! [`Reply`] messages, data and ends. Guest bytes are untrusted: every length has a cap.

pub mod frame;
mod message;
mod opening;
pub mod scan;
pub mod touched;

use crate::ProtocolVersion;

pub use message::{
    AgentHello, CompareSpec, Compared, Control, CopyIn, ExecSpec, ExitStatus, HostHello, Identity, InitKind,
    NetworkConfig, Place, Reply, Request, ScanSpec, ScanSummary, ShutdownMode, TermSize, UnpackSpec, decode,
    encode,
};
pub use opening::{
    Context, LONG_REQUESTS, MAX_OPENING, Opening, decode_opening, decode_whole, encode_long, encode_opening,
};

/// This protocol's version. 1.1: a scan says where a submodule changed and which repositories it left out;
/// workspaces are copied in and compared by requests of their own. 1.2: a guest can be told to stand still, and who it
/// is when it goes on elsewhere; a scan says that it goes on; a comparison says what is staged and which copy is there.
/// 1.3: a request may be longer than a frame; a copy may rehearse who it will be.
pub const VERSION: ProtocolVersion = ProtocolVersion { major: 1, minor: 3 };
