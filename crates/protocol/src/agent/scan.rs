//! The records of a workspace scan, guest to host: what differs from the base listing.
//!
//! A record is `kind u8, mode u32 LE, path_len u32 LE, size u64 LE | path | content`. `mode` is a
//! git tree mode (octal 100644, 100755, 120000); content is the file's bytes or the link's
//! target. The receiver caps `path_len` by [`MAX_PATH`] and `size` by its own budget, and checks
//! every path: these bytes come from the guest.

/// Bytes before path and content.
pub const RECORD_HEADER_LEN: usize = 17;
/// The longest path, bytes (Linux PATH_MAX).
pub const MAX_PATH: usize = 4096;

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// It is there and is not what the base says: content follows.
    Present = b'P',
    /// The base has it and it is gone.
    Deleted = b'D',
    /// A submodule of the base is not as it was copied in: no content.
    Submodule = b'S',
    /// The agent is at work and has nothing to say: no path, no content. Only when it was asked for.
    Tick = b'T',
    /// The end: no path, no content. A stream without it was cut short.
    End = b'E',
}

/// A record without its path and content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// What happened.
    pub kind: RecordKind,
    /// The git tree mode, for [`RecordKind::Present`].
    pub mode: u32,
    /// Bytes of path.
    pub path_len: usize,
    /// Bytes of content.
    pub size: u64,
}

/// Writes a record's header.
#[must_use]
pub fn encode_header(h: RecordHeader) -> [u8; RECORD_HEADER_LEN] {
    let mut out = [0; RECORD_HEADER_LEN];
    out[0] = h.kind as u8;
    out[1..5].copy_from_slice(&h.mode.to_le_bytes());
    out[5..9].copy_from_slice(&u32::try_from(h.path_len).unwrap_or(u32::MAX).to_le_bytes());
    out[9..17].copy_from_slice(&h.size.to_le_bytes());
    out
}

/// Reads a record's header.
///
/// # Errors
/// A sentence when the kind, mode or path length is none that an honest agent sends.
pub fn decode_header(bytes: &[u8; RECORD_HEADER_LEN]) -> Result<RecordHeader, String> {
    let kind = match bytes[0] {
        b'P' => RecordKind::Present,
        b'D' => RecordKind::Deleted,
        b'S' => RecordKind::Submodule,
        b'T' => RecordKind::Tick,
        b'E' => RecordKind::End,
        n => return Err(format!("unknown scan record {n}")),
    };
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (mode, path_len) = (word(1), word(5) as usize);
    let mut size = [0; 8];
    size.copy_from_slice(&bytes[9..17]);
    let size = u64::from_le_bytes(size);
    let fine = match kind {
        RecordKind::Present => {
            matches!(mode, 0o100_644 | 0o100_755 | 0o120_000) && (1..=MAX_PATH).contains(&path_len)
        }
        RecordKind::Deleted | RecordKind::Submodule => {
            mode == 0 && (1..=MAX_PATH).contains(&path_len) && size == 0
        }
        RecordKind::Tick | RecordKind::End => mode == 0 && path_len == 0 && size == 0,
    };
    if fine {
        Ok(RecordHeader { kind, mode, path_len, size })
    } else {
        Err(format!("a scan record with mode {mode:o}, a path of {path_len} bytes and {size} bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_odd_ones_are_refused() {
        let good = RecordHeader { kind: RecordKind::Present, mode: 0o100_755, path_len: 3, size: 1 << 40 };
        assert_eq!(decode_header(&encode_header(good)).unwrap(), good);
        for bad in [
            RecordHeader { mode: 0o160_000, ..good },
            RecordHeader { path_len: 0, ..good },
            RecordHeader { path_len: MAX_PATH + 1, ..good },
            RecordHeader { kind: RecordKind::Deleted, ..good },
            RecordHeader { kind: RecordKind::End, ..good },
            RecordHeader { kind: RecordKind::Tick, ..good },
        ] {
            assert!(decode_header(&encode_header(bad)).is_err(), "{bad:?}");
        }
    }
}
