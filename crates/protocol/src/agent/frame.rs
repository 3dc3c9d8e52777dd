//! Framing of the agent channel, free of I/O.
//!
//! The byte stream may outlive the host process that used it (virtio-serial keeps its queues when
//! a daemon dies), so either side can find itself in the middle of somebody else's frame. A
//! session therefore begins with a handshake that no leftover can spoil:
//!
//! 1. the host sends [`flush_and_sync`]: zeros as long as the longest frame, then [`SYNC_MAGIC`]
//!    and a random nonce. Zeros complete a half-received frame, whose trailer is then wrong, so
//!    it is dropped whole, never delivered;
//! 2. the agent, whenever a header or trailer is wrong, searches for [`SYNC_MAGIC`], ends every
//!    stream of the old session and answers [`ACK_MAGIC`] and the nonce;
//! 3. the host discards everything before its own nonce comes back.
//!
//! A frame is a [`HEADER_LEN`]-byte header, the payload and a 4-byte trailer, little endian:
//! `token u32, stream u32, kind u8, lane u8, zero u16, len u32 | payload | !token u32`.
//! `token` is the first four bytes of the nonce with the lowest bit set, so never zero.

/// The largest payload of one frame, bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 16;
/// Bytes after the payload.
pub const TRAILER_LEN: usize = 4;
/// Bytes a sender may have under way on one lane of one stream before it waits for credit.
pub const WINDOW: u32 = 256 * 1024;
/// Begins a session, from the host.
pub const SYNC_MAGIC: [u8; 16] = *b"\x00banger-sync-1\r\n";
/// Answers it, from the agent.
pub const ACK_MAGIC: [u8; 16] = *b"\x00banger-ack-1!\r\n";
/// Bytes of the random nonce after either magic.
pub const NONCE_LEN: usize = 16;

/// A random number that belongs to one session.
pub type Nonce = [u8; NONCE_LEN];

/// What a frame does to its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Begins a stream; CBOR `Request`.
    Open = 1,
    /// A message within a stream; CBOR `Reply` from the guest, `Control` from the host.
    Message = 2,
    /// Bytes on a lane.
    Data = 3,
    /// No more bytes on a lane.
    Eof = 4,
    /// The receiver of a lane took this many bytes; u32.
    Credit = 5,
    /// The stream is over at once, in both directions; CBOR `Reply::Error` or empty.
    Reset = 6,
    /// The stream is over in good order; from the guest, empty, after its last message.
    Close = 7,
}

/// The byte lanes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Lane {
    /// Host to guest: stdin, file contents.
    In = 0,
    /// Guest to host: stdout, file contents.
    Out = 1,
    /// Guest to host: stderr.
    Err = 2,
}

/// A frame's header without its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The stream; the host's are odd.
    pub stream: u32,
    /// What it does.
    pub kind: Kind,
    /// Which lane, for data, ends and credit.
    pub lane: Lane,
    /// Bytes of payload.
    pub len: usize,
}

/// A header that is not of this session, or that no peer of ours would send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent channel lost its frame boundary")]
pub struct Desync;

/// The session's token, made from its nonce.
#[must_use]
pub fn token(nonce: &Nonce) -> u32 {
    u32::from_le_bytes([nonce[0], nonce[1], nonce[2], nonce[3]]) | 1
}

/// Writes a header.
#[must_use]
pub fn encode_header(token: u32, h: Header) -> [u8; HEADER_LEN] {
    debug_assert!(h.len <= MAX_PAYLOAD);
    let mut out = [0; HEADER_LEN];
    out[0..4].copy_from_slice(&token.to_le_bytes());
    out[4..8].copy_from_slice(&h.stream.to_le_bytes());
    out[8] = h.kind as u8;
    out[9] = h.lane as u8;
    out[12..16].copy_from_slice(&u32::try_from(h.len).unwrap_or(u32::MAX).to_le_bytes());
    out
}

/// Reads a header.
///
/// # Errors
/// [`Desync`] when the token, kind, lane or length is not what this session sends.
pub fn decode_header(token: u32, bytes: &[u8; HEADER_LEN]) -> Result<Header, Desync> {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let kind = match bytes[8] {
        1 => Kind::Open,
        2 => Kind::Message,
        3 => Kind::Data,
        4 => Kind::Eof,
        5 => Kind::Credit,
        6 => Kind::Reset,
        7 => Kind::Close,
        _ => return Err(Desync),
    };
    let lane = match bytes[9] {
        0 => Lane::In,
        1 => Lane::Out,
        2 => Lane::Err,
        _ => return Err(Desync),
    };
    let len = word(12) as usize;
    if word(0) != token || bytes[10..12] != [0, 0] || len > MAX_PAYLOAD {
        return Err(Desync);
    }
    Ok(Header { stream: word(4), kind, lane, len })
}

/// The trailer of every frame of a session.
#[must_use]
pub fn trailer(token: u32) -> [u8; TRAILER_LEN] {
    (!token).to_le_bytes()
}

/// What the host sends first.
#[must_use]
pub fn flush_and_sync(nonce: &Nonce) -> Vec<u8> {
    let mut out = vec![0; HEADER_LEN + MAX_PAYLOAD + TRAILER_LEN];
    out.extend_from_slice(&SYNC_MAGIC);
    out.extend_from_slice(nonce);
    out
}

/// What the agent answers.
#[must_use]
pub fn ack(nonce: &Nonce) -> Vec<u8> {
    [&ACK_MAGIC[..], &nonce[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_survive_and_other_tokens_do_not(nonce: [u8; 16], other: [u8; 16], stream: u32, len in 0..=MAX_PAYLOAD) {
            let header = Header { stream, kind: Kind::Data, lane: Lane::Err, len };
            let bytes = encode_header(token(&nonce), header);
            prop_assert_eq!(decode_header(token(&nonce), &bytes), Ok(header));
            if token(&nonce) != token(&other) {
                prop_assert_eq!(decode_header(token(&other), &bytes), Err(Desync));
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(nonce: [u8; 16], bytes: [u8; 16]) {
            let _ = decode_header(token(&nonce), &bytes);
        }
    }

    #[test]
    fn zeros_are_neither_a_header_nor_a_trailer() {
        assert_eq!(decode_header(token(&[0; 16]), &[0; HEADER_LEN]), Err(Desync));
        assert_ne!(trailer(token(&[0xff; 16])), trailer(token(&[0; 16])));
        assert!((0..=255u8).all(|b| trailer(token(&[b; 16])) != [0; 4] || b == 0xff));
    }
}
