//! The agent channel: one byte stream, many flow-controlled streams in it, for both ends.
//!
//! [`Session`] is the host's end, [`serve`] the guest's. Framing is `banger_protocol::agent::frame`.
//! Must never trust a peer's numbers: whatever arrives, memory stays bounded and nothing panics.
//! Opens no socket, file or device of its own.

mod deframe;
mod error;
mod guest;
mod host;
mod lane_io;
mod mux;
mod stream;

pub use error::ChannelError;
pub use guest::{GuestStream, Handler, LaneReader, LaneWriter, MAX_STREAMS, serve};
pub use host::{Session, StreamEvent, StreamReceiver, StreamSender};
pub use lane_io::{InWriter, OutReader};
