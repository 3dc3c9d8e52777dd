//! The records of a comparison: what the guest has at paths that it touched. A record is a byte of kind, 32 bytes of
//! SHA-256 (of the contents or the link's target; else zeros), the path's length (u32, little endian) and the path.

/// Bytes before the path.
pub const FIXED: usize = 1 + 32 + 4;
/// The longest path.
pub const MAX_PATH: usize = 64 * 1024;

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Nothing any more.
    Gone = 0,
    /// A file.
    File = 1,
    /// A file that can be executed.
    Executable = 2,
    /// A symbolic link.
    Link = 3,
    /// A directory, or something with no place in a repository. It may be above the path that was asked for.
    Other = 4,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// What is there.
    pub kind: Kind,
    /// SHA-256 of its contents.
    pub digest: [u8; 32],
    /// Where, relative to the workspace.
    pub path: Vec<u8>,
}

impl Touched {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.kind as u8];
        out.extend_from_slice(&self.digest);
        out.extend_from_slice(&u32::try_from(self.path.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&self.path);
        out
    }

    /// The fields before the path, and the path's length; `None` when no agent of ours says so.
    #[must_use]
    pub fn decode(fixed: &[u8; FIXED]) -> Option<(Kind, [u8; 32], usize)> {
        let kind = match fixed[0] {
            0 => Kind::Gone,
            1 => Kind::File,
            2 => Kind::Executable,
            3 => Kind::Link,
            4 => Kind::Other,
            _ => return None,
        };
        let digest = fixed[1..33].try_into().ok()?;
        let len = u32::from_le_bytes(fixed[33..].try_into().ok()?) as usize;
        Some((kind, digest, len)).filter(|_| len <= MAX_PATH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_and_a_path_without_end_is_refused() {
        let record = Touched { kind: Kind::Link, digest: [7; 32], path: b"a\nb".to_vec() };
        let bytes = record.encode();
        let (fixed, path) = bytes.split_first_chunk::<FIXED>().unwrap();
        assert_eq!(Touched::decode(fixed), Some((Kind::Link, [7; 32], 3)));
        assert_eq!(path, b"a\nb");
        let mut long = *fixed;
        long[33..].fill(0xff);
        assert_eq!(Touched::decode(&long), None);
        assert_eq!(Touched::decode(&[9; FIXED]), None);
    }
}
