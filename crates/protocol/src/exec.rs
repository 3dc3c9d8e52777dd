//! The exec stream: what the CLI and the daemon say after `101 Switching Protocols`.
//!
//! A frame is one byte of kind, four bytes of length (little endian) and the payload. stdout and
//! stderr share the connection, so a client that stops reading stalls its own command only. stdin
//! has credit, so that signals and the window's size are never stuck behind bytes that the command
//! does not read: a client may have [`STDIN_WINDOW`] bytes under way and sends more as
//! [`Kind::Credit`] comes back.

use crate::ProtocolVersion;

/// This protocol's version.
pub const VERSION: ProtocolVersion = ProtocolVersion { major: 1, minor: 0 };
/// The token in the HTTP `Upgrade` header.
pub const UPGRADE: &str = "banger-exec-1";
/// The largest payload of one frame, bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Bytes of stdin a client may send before it has credit for more.
pub const STDIN_WINDOW: usize = 256 * 1024;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 5;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client: bytes for stdin.
    Stdin = 0,
    /// Client: no more stdin.
    StdinEof = 1,
    /// Client: the terminal's size, rows and columns as u16 LE.
    Resize = 2,
    /// Client: a signal for the process group, i32 LE.
    Signal = 3,
    /// Daemon: bytes from stdout (with a terminal: everything).
    Stdout = 16,
    /// Daemon: bytes from stderr.
    Stderr = 17,
    /// Daemon: the command ended; JSON [`crate::agent::ExitStatus`]. The last frame.
    Exit = 18,
    /// Daemon: banger failed; JSON [`crate::api::ErrorBody`]. The last frame.
    Error = 19,
    /// Daemon: the command runs; empty.
    Started = 20,
    /// Daemon: this many more bytes of stdin may come, u32 LE.
    Credit = 21,
}

impl Kind {
    /// The kind with this number.
    #[must_use]
    pub fn from_u8(n: u8) -> Option<Self> {
        Some(match n {
            0 => Self::Stdin,
            1 => Self::StdinEof,
            2 => Self::Resize,
            3 => Self::Signal,
            16 => Self::Stdout,
            17 => Self::Stderr,
            18 => Self::Exit,
            19 => Self::Error,
            20 => Self::Started,
            21 => Self::Credit,
            _ => return None,
        })
    }
}

/// The header of a frame.
#[must_use]
pub fn header(kind: Kind, len: usize) -> [u8; HEADER_LEN] {
    debug_assert!(len <= MAX_PAYLOAD);
    let len = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    [kind as u8, len[0], len[1], len[2], len[3]]
}

/// Reads a header.
///
/// # Errors
/// A sentence when the kind is unknown or the length is over [`MAX_PAYLOAD`].
pub fn parse_header(bytes: [u8; HEADER_LEN]) -> Result<(Kind, usize), String> {
    let [kind, a, b, c, d] = bytes;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    let kind = Kind::from_u8(kind).ok_or_else(|| format!("unknown exec frame kind {kind}"))?;
    if len > MAX_PAYLOAD {
        return Err(format!("an exec frame of {len} bytes is over {MAX_PAYLOAD}"));
    }
    Ok((kind, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_its_header_and_rubbish_is_refused() {
        for n in 0..=255u8 {
            if let Some(kind) = Kind::from_u8(n) {
                assert_eq!(kind as u8, n);
                assert_eq!(parse_header(header(kind, 7)).unwrap(), (kind, 7));
            } else {
                assert!(parse_header([n, 0, 0, 0, 0]).is_err());
            }
        }
        assert!(parse_header([0, 1, 0, 1, 0]).is_err(), "longer than a frame may be");
    }
}
