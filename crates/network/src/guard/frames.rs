//! Takes a byte stream of frames apart: each frame is behind its length, 32 bits, big-endian.

/// The largest frame: 64 KiB of packet and its ethernet header, with QEMU's own allowance
/// (NET_BUFSIZE).
pub(super) const FRAME_MAX: usize = 4096 + 65536;
const LENGTH: usize = 4;

/// Bytes that were read and not yet handed on. Holds two of the largest frames, no more.
#[derive(Debug)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    filled: usize,
    taken: usize,
}

/// A length that no frame has: the two sides no longer understand each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong;

impl Frames {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; 2 * (LENGTH + FRAME_MAX)], filled: 0, taken: 0 }
    }

    /// Where the next bytes go; never empty, once [`Frames::next`] has said that there is no more.
    pub(super) fn space(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        self.buffer.get_mut(self.filled..).unwrap_or_default()
    }

    /// So many bytes were put there.
    pub(super) fn add(&mut self, count: usize) {
        self.filled = (self.filled + count).min(self.buffer.len());
    }

    /// The next whole frame, with its length before it.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let from = self.taken;
        let Some(length) = self.length_at(from)? else { return Ok(None) };
        self.taken += length;
        Ok(self.buffer.get(from..self.taken))
    }

    /// All whole frames that are there, as they came.
    pub(super) fn take_whole(&mut self) -> Result<&[u8], TooLong> {
        let from = self.taken;
        while let Some(length) = self.length_at(self.taken)? {
            self.taken += length;
        }
        Ok(self.buffer.get(from..self.taken).unwrap_or_default())
    }

    /// The length of the frame that begins there, if it is there as a whole, and of what says so.
    fn length_at(&self, from: usize) -> Result<Option<usize>, TooLong> {
        let rest = self.buffer.get(from..self.filled).unwrap_or_default();
        let Some(length) = rest.first_chunk::<LENGTH>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| TooLong)?;
        if length > FRAME_MAX {
            return Err(TooLong);
        }
        Ok(Some(LENGTH + length).filter(|length| *length <= rest.len()))
    }
}

/// A frame without the length before it.
pub(super) fn body(frame: &[u8]) -> &[u8] {
    frame.get(LENGTH..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(body: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        frame.extend(body);
        frame
    }

    #[test]
    fn frames_come_out_whole_however_the_bytes_arrive() {
        let bodies: Vec<Vec<u8>> =
            [0, 1, 60, FRAME_MAX, 3].iter().enumerate().map(|(n, len)| vec![n as u8; *len]).collect();
        let stream: Vec<u8> = bodies.iter().flat_map(|b| wrapped(b)).collect();
        for step in [1, 7, 4096, FRAME_MAX, usize::MAX] {
            let mut frames = Frames::new();
            let mut got = Vec::new();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let space = frames.space();
                let count = rest.len().min(step).min(space.len());
                assert!(count > 0);
                space[..count].copy_from_slice(&rest[..count]);
                frames.add(count);
                rest = &rest[count..];
                while let Some(frame) = frames.next().unwrap() {
                    got.push(body(frame).to_vec());
                }
            }
            assert!(got == bodies, "step {step}");
        }
    }

    #[test]
    fn an_impossible_length_is_refused() {
        let mut frames = Frames::new();
        frames.space()[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        frames.add(4);
        assert_eq!(frames.next(), Err(TooLong));
    }
}
