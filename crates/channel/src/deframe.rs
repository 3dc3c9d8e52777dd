//! Bytes in, frames out: finds a session's beginning and cuts what follows into frames.
//! Does no I/O; holds at most one frame and what one read brought beyond it.

use banger_protocol::agent::frame::{
    HEADER_LEN, Header, MAX_PAYLOAD, NONCE_LEN, Nonce, TRAILER_LEN, decode_header, trailer,
};
use bytes::{Buf, BytesMut};

/// Room made for each read.
const READ: usize = HEADER_LEN + MAX_PAYLOAD + TRAILER_LEN;
/// Payloads from this size are cut out of the buffer without copying. Smaller ones are copied, lest a few bytes that
/// wait in a queue keep a whole buffer alive.
const SHARE: usize = 32 * 1024;

/// What the bytes turned out to be.
#[derive(Debug, PartialEq)]
pub(crate) enum Unit {
    /// The magic and this nonce; seeking goes on until [`Deframer::enter`].
    Found(Nonce),
    /// A frame of the session.
    Frame(Header, BytesMut),
    /// A header or trailer was wrong; seeking begins.
    Lost,
}

pub(crate) struct Deframer {
    magic: [u8; 16],
    token: Option<u32>,
    buf: BytesMut,
}

impl Deframer {
    /// Seeks `magic` first.
    pub(crate) fn new(magic: [u8; 16]) -> Self {
        Self { magic, token: None, buf: BytesMut::new() }
    }

    /// From here on the bytes are frames with this token.
    pub(crate) fn enter(&mut self, token: u32) {
        self.token = Some(token);
    }

    /// Where the next read should put its bytes; always has room.
    pub(crate) fn space(&mut self) -> &mut BytesMut {
        if self.buf.capacity() - self.buf.len() < READ / 4 {
            self.buf.reserve(READ);
        }
        &mut self.buf
    }

    /// The next unit, or `None` when more bytes are needed.
    pub(crate) fn next(&mut self) -> Option<Unit> {
        match self.token {
            None => self.seek(),
            Some(token) => self.frame(token),
        }
    }

    fn seek(&mut self) -> Option<Unit> {
        if let Some(at) = find(&self.buf, &self.magic) {
            self.buf.advance(at);
            let nonce = self.buf.get(self.magic.len()..self.magic.len() + NONCE_LEN)?.try_into().ok()?;
            self.buf.advance(self.magic.len() + NONCE_LEN);
            return Some(Unit::Found(nonce));
        }
        // The magic may have begun at the very end.
        let keep = self.buf.len().min(self.magic.len() - 1);
        self.buf.advance(self.buf.len() - keep);
        None
    }

    fn frame(&mut self, token: u32) -> Option<Unit> {
        let header: [u8; HEADER_LEN] = self.buf.get(..HEADER_LEN)?.try_into().ok()?;
        let Ok(header) = decode_header(token, &header) else {
            self.token = None;
            return Some(Unit::Lost);
        };
        let end = HEADER_LEN + header.len;
        let sealed = *self.buf.get(end..end + TRAILER_LEN)? == trailer(token);
        if !sealed {
            // The whole frame goes: its payload may hold the magic as ordinary data.
            self.buf.advance(end + TRAILER_LEN);
            self.token = None;
            return Some(Unit::Lost);
        }
        self.buf.advance(HEADER_LEN);
        let payload = if header.len >= SHARE {
            self.buf.split_to(header.len)
        } else {
            let copy = BytesMut::from(&self.buf[..header.len]);
            self.buf.advance(header.len);
            copy
        };
        self.buf.advance(TRAILER_LEN);
        Some(Unit::Frame(header, payload))
    }
}

/// Horspool's search: over the zeros that begin every session it steps nearly a needle at a time.
fn find(hay: &[u8], needle: &[u8; 16]) -> Option<usize> {
    let last = needle.len() - 1;
    let mut skip = [needle.len(); 256];
    for (i, b) in needle[..last].iter().enumerate() {
        skip[usize::from(*b)] = last - i;
    }
    let mut at = 0;
    while let Some(window) = hay.get(at..at + needle.len()) {
        if window == needle {
            return Some(at);
        }
        at += skip[usize::from(window[last])];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_protocol::agent::frame::{self, Kind, Lane, SYNC_MAGIC, encode_header, flush_and_sync};
    use proptest::prelude::*;

    fn frame_of(token: u32, payload: &[u8]) -> Vec<u8> {
        let header = Header { stream: 1, kind: Kind::Data, lane: Lane::In, len: payload.len() };
        [&encode_header(token, header)[..], payload, &trailer(token)].concat()
    }

    /// Feeds `bytes` in pieces and enters every session found.
    fn run(d: &mut Deframer, bytes: &[u8], piece: usize) -> Vec<Unit> {
        let mut units = Vec::new();
        for chunk in bytes.chunks(piece.max(1)) {
            d.space().extend_from_slice(chunk);
            while let Some(unit) = d.next() {
                if let Unit::Found(nonce) = &unit {
                    d.enter(frame::token(nonce));
                }
                units.push(unit);
            }
            assert!(d.buf.len() <= READ + chunk.len(), "holds {} bytes", d.buf.len());
        }
        units
    }

    proptest! {
        #[test]
        fn a_session_cut_anywhere_gives_way_to_the_next(
            cut in 0usize..3000, payload in prop::collection::vec(any::<u8>(), 0..2900), piece in 1usize..5000,
            old: [u8; 16], new: [u8; 16], magic_inside: bool,
        ) {
            // Given a session whose last frame was cut short, perhaps with the magic among its data.
            let (t_old, t_new) = (frame::token(&old), frame::token(&new));
            prop_assume!(t_old != t_new);
            let mut payload = payload;
            if magic_inside {
                payload.extend_from_slice(&SYNC_MAGIC);
                payload.extend_from_slice(&[7; 16]);
            }
            let whole = frame_of(t_old, &payload);
            let cut = cut.min(whole.len());
            // When the next host flushes, syncs and speaks.
            let stream = [flush_and_sync(&old), whole[..cut].to_vec(), flush_and_sync(&new), frame_of(t_new, b"hi")].concat();
            let units = run(&mut Deframer::new(SYNC_MAGIC), &stream, piece);
            // Then both sessions were found, nothing of the cut frame was delivered, and the new frame was.
            let found: Vec<_> = units.iter().filter_map(|u| if let Unit::Found(n) = u { Some(*n) } else { None }).collect();
            prop_assert_eq!(found, vec![old, new]);
            let frames: Vec<_> = units.iter().filter_map(|u| if let Unit::Frame(_, p) = u { Some(p.to_vec()) } else { None }).collect();
            // A frame cut within its trailer's zero bytes is complete.
            let complete = whole[cut..].iter().all(|b| *b == 0);
            let expected = if complete { vec![payload, b"hi".to_vec()] } else { vec![b"hi".to_vec()] };
            prop_assert_eq!(frames, expected);
        }

        #[test]
        fn rubbish_is_neither_a_panic_nor_memory(bytes in prop::collection::vec(any::<u8>(), 0..20_000), piece in 1usize..4000, token: u32) {
            let mut d = Deframer::new(SYNC_MAGIC);
            d.enter(token | 1);
            run(&mut d, &bytes, piece);
        }

        #[test]
        fn find_finds(before in prop::collection::vec(0u8..3, 0..100), after in prop::collection::vec(any::<u8>(), 0..50)) {
            let hay = [&before[..], &SYNC_MAGIC, &after].concat();
            prop_assert_eq!(find(&hay, &SYNC_MAGIC), Some(before.len()));
            prop_assert_eq!(find(&before, &SYNC_MAGIC), None);
        }
    }
}
