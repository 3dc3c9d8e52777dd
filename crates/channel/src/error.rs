//! What can go wrong on the channel, as its users see it.

use banger_model::{Error, ErrorCode};

/// A failure of a session, of one stream, or of the guest's request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The byte stream ended or failed; the session is over.
    #[error("the agent channel closed: {0}")]
    Closed(String),
    /// The guest's bytes are no frames of this session; the session is over.
    #[error("the agent channel lost its frame boundary")]
    Desync,
    /// The guest said that it could not do it.
    #[error("{message}")]
    Guest {
        /// The stable code.
        code: ErrorCode,
        /// One sentence, from the guest, without control characters.
        message: String,
    },
    /// The stream ended before what was awaited came.
    #[error("the guest agent ended the stream before it answered")]
    Ended,
    /// The stream was reset by either side.
    #[error("the stream was reset")]
    Reset,
    /// The guest broke the rules of one stream, which was reset.
    #[error("the guest agent broke the channel's rules: {0}")]
    Violation(&'static str),
    /// A message that is none of ours, in either direction.
    #[error("a message on the agent channel cannot be read: {0}")]
    Malformed(String),
    /// The agent speaks another major version of the protocol.
    #[error("{0}")]
    Incompatible(String),
    /// The agent is older than this request.
    #[error("the agent in the guest ({agent}) is older than this banger and does not know '{request}'")]
    TooOld {
        /// The request's name.
        request: &'static str,
        /// The agent's build version.
        agent: String,
    },
    /// A request that is longer than any may be.
    #[error("a request to the guest has {size} bytes, more than {max}")]
    TooLong {
        /// Its bytes.
        size: usize,
        /// The most that there may be.
        max: usize,
    },
    /// No more streams fit in this session.
    #[error("the agent channel already carries {0} streams")]
    TooManyStreams(usize),
}

impl From<ChannelError> for Error {
    fn from(e: ChannelError) -> Self {
        let message = e.to_string();
        match e {
            ChannelError::Guest { code, .. } => Self::new(code, message),
            ChannelError::Closed(_) | ChannelError::Desync => Self::new(ErrorCode::Unavailable, message)
                .with_hint("'banger ps -a' shows what became of the VM, 'banger logs VM --console' what its guest said"),
            ChannelError::TooManyStreams(_) => {
                Self::new(ErrorCode::Busy, message).with_hint("try again when a command has ended")
            }
            ChannelError::Incompatible(_) | ChannelError::TooOld { .. } => {
                Self::new(ErrorCode::Unsupported, message)
                    .with_hint("'banger vm restart NAME' boots it with this banger's agent")
            }
            ChannelError::TooLong { .. } => Self::invalid(message),
            ChannelError::Reset => Self::new(ErrorCode::Cancelled, message),
            ChannelError::Ended | ChannelError::Violation(_) | ChannelError::Malformed(_) => {
                Self::new(ErrorCode::GuestFailed, message)
            }
        }
    }
}

impl From<ChannelError> for std::io::Error {
    fn from(e: ChannelError) -> Self {
        let kind = match e {
            ChannelError::Closed(_) | ChannelError::Reset | ChannelError::Ended => {
                std::io::ErrorKind::BrokenPipe
            }
            _ => std::io::ErrorKind::Other,
        };
        Self::new(kind, e)
    }
}
