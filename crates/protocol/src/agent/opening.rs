//! How a stream begins: in one frame with a request and what it is part of, or, when they do not fit in one, with how long
//! they are. Free of I/O; must never read more than what it is given as a request.

use banger_model::OpId;
use serde::{Deserialize, Serialize};

use super::message::{Request, decode, encode};

/// The longest request with its context, bytes. More than execve(2) takes, in whatever words it comes.
pub const MAX_OPENING: usize = 4 << 20;
/// What an agent announces that takes [`Opening::Long`].
pub const LONG_REQUESTS: &str = "long_requests";

/// What may stand behind a request in the opening of a stream, since 1.1. An older agent reads the request only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The host's operation that this is part of, for the agent's log lines.
    #[serde(default)]
    pub op_id: Option<OpId>,
}

/// What the first frame of a stream says.
#[derive(Debug, Clone, PartialEq)]
pub enum Opening {
    /// The request, and what it is part of.
    Whole(Box<(Request, Context)>),
    /// They come as the first so many bytes of the In lane. Since 1.3, to an agent that announced [`LONG_REQUESTS`].
    Long(u64),
}

/// [`Opening::Long`] on the wire: an older agent takes it for a request that it does not know.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Announcement {
    Long { bytes: u64 },
}

/// A request, and what it is part of.
///
/// # Errors
/// As [`encode`].
pub fn encode_opening(request: &Request, context: Option<&Context>) -> Result<Vec<u8>, String> {
    let mut out = encode(request)?;
    if let Some(context) = context {
        out.extend(encode(context)?);
    }
    Ok(out)
}

/// The announcement of a request that is `bytes` long with its context.
///
/// # Errors
/// As [`encode`].
pub fn encode_long(bytes: usize) -> Result<Vec<u8>, String> {
    encode(&Announcement::Long { bytes: bytes as u64 })
}

/// What the first frame of a stream says.
///
/// # Errors
/// A sentence when the bytes do not begin with a request or an announcement.
pub fn decode_opening(bytes: &[u8]) -> Result<Opening, String> {
    // Nearly all are a request: it is read first, and the others cost a second look.
    match decode_whole(bytes) {
        Ok(whole) => Ok(Opening::Whole(Box::new(whole))),
        Err(why) => decode(bytes).map(|Announcement::Long { bytes }| Opening::Long(bytes)).map_err(|_| why),
    }
}

/// A request and its context; one that cannot be read is none.
///
/// # Errors
/// A sentence when the bytes do not begin with a request.
pub fn decode_whole(bytes: &[u8]) -> Result<(Request, Context), String> {
    let mut rest = bytes;
    let request = ciborium::de::from_reader_with_recursion_limit(&mut rest, 16).map_err(|e| e.to_string())?;
    Ok((request, decode(rest).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::ShutdownMode;

    #[test]
    fn an_opening_has_a_context_that_an_older_agent_does_not_see() {
        let request = Request::Shutdown { mode: ShutdownMode::PowerOff };
        let context = Context { op_id: Some(OpId::from_random([7; 6])) };
        let bytes = encode_opening(&request, Some(&context)).unwrap();
        assert_eq!(decode_opening(&bytes).unwrap(), Opening::Whole(Box::new((request.clone(), context))));
        assert_eq!(decode::<Request>(&bytes).unwrap(), request, "as the first release reads it");
        let plain = encode_opening(&request, None).unwrap();
        let whole = Opening::Whole(Box::new((request, Context::default())));
        assert_eq!(decode_opening(&plain).unwrap(), whole);
        assert_eq!(decode_opening(&[plain, vec![0xff; 9]].concat()).unwrap(), whole);
    }

    #[test]
    fn an_announcement_is_no_request_to_an_older_agent_nor_within_another() {
        // {"long": {"bytes": 1500000}}, as 1.3 says it
        let then = b"\xa1\x64long\xa1\x65bytes\x1a\x00\x16\xe3\x60";
        assert_eq!(encode_long(1_500_000).unwrap(), then);
        assert_eq!(decode_opening(then).unwrap(), Opening::Long(1_500_000));
        assert!(decode::<Request>(then).is_err());
        assert!(decode_whole(then).is_err());
    }
}
