//! Free space, asked before a long job starts.
//! Must never guess: the caller says what it needs.

use std::path::Path;

use banger_model::Bytes;

use crate::error::{ImageError, Result};

/// Checks that `dir` has `needed` bytes free for this user.
pub(crate) fn require(what: &'static str, dir: &Path, needed: Bytes) -> Result<()> {
    let stat = rustix::fs::statvfs(dir).map_err(ImageError::errno("look at", dir))?;
    let available = Bytes(stat.f_bavail.saturating_mul(stat.f_frsize));
    if available < needed {
        return Err(ImageError::NoSpace { what, dir: dir.to_owned(), needed, available });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_says_how_much_is_needed_and_how_much_there_is() {
        let dir = tempfile::tempdir().unwrap();
        require("the test", dir.path(), Bytes(1)).unwrap();
        let error = require("the test", dir.path(), Bytes(1 << 62)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("needs about 4194304 TiB") && text.contains("are free"), "{text}");
        assert_eq!(banger_model::Error::from(error).code, banger_model::ErrorCode::Unavailable);
    }
}
