//! Which paths and link targets of a guest are believed.
//!
//! Owns the rules: nothing that git, or a file system this repository may be checked out on, would
//! take for `.git`, and nothing that leaves the repository.

use banger_protocol::agent::scan::MAX_PATH;

/// The longest component, bytes (Linux NAME_MAX).
const MAX_NAME: usize = 255;
/// The longest link target, bytes (Linux PATH_MAX without its NUL).
pub(crate) const MAX_TARGET: u64 = 4095;

/// Why a path is refused, if it is.
pub(crate) fn objection(path: &[u8]) -> Option<&'static str> {
    if path.is_empty() || path.len() > MAX_PATH {
        return Some("its length is none a path can have");
    }
    if path.contains(&0) {
        return Some("it holds a NUL byte");
    }
    if path.starts_with(b"/") {
        return Some("it is absolute");
    }
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" => return Some("it has an empty component"),
            b"." | b".." => return Some("it has a '.' or '..' component"),
            _ if name.len() > MAX_NAME => return Some("a component is longer than a file name can be"),
            // A backslash separates names where Windows' file systems are used.
            _ if name.split(|b| *b == b'\\').any(is_dot_git) => {
                return Some("a component is a spelling of '.git'");
            }
            _ => {}
        }
    }
    None
}

/// Why a symbolic link may not have this path, if so.
pub(crate) fn link_objection(path: &[u8]) -> Option<&'static str> {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
    let folded = folded(name);
    let folded = folded.split(|c| *c == ':').next().unwrap_or_default();
    let text: String = folded.iter().collect();
    (text.trim_end_matches(['.', ' ']) == ".gitmodules")
        .then_some("'.gitmodules' must not be a symbolic link")
}

/// Whether a file system somewhere takes this name for `.git`: case and ignorable characters (HFS+,
/// APFS), trailing dots, spaces and stream names (NTFS), and the short names that it makes up.
fn is_dot_git(name: &[u8]) -> bool {
    let folded = folded(name);
    let before_stream = folded.split(|c| *c == ':').next().unwrap_or_default();
    let text: String = before_stream.iter().collect();
    let text = text.trim_end_matches(['.', ' ']);
    if text == ".git" {
        return true;
    }
    let short = text.strip_prefix("git~").or_else(|| text.strip_prefix(".git~"));
    short.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The name in lower case, without what HFS+ ignores; bytes that are no text stay apart.
fn folded(name: &[u8]) -> Vec<char> {
    let text = String::from_utf8_lossy(name);
    let kept = text.chars().filter(|c| {
        !matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
    });
    // Only ASCII letters fold to the letters of ".git", but for the two that Unicode adds.
    kept.flat_map(|c| {
        match c {
            '\u{130}' | '\u{131}' => 'i',
            _ => c.to_ascii_lowercase(),
        }
        .to_lowercase()
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_dot_git_is_refused() {
        for bad in [
            ".git",
            ".GIT",
            ".Git/config",
            "a/.git/hooks/x",
            ".git.",
            ".git ",
            ".git. .",
            ".git::$INDEX_ALLOCATION",
            "git~1",
            "GIT~1/x",
            "git~12",
            "a\\.git\\config",
            ".g\u{200c}it",
            "\u{feff}.git",
            ".gi\u{202e}T",
            ".g\u{131}t",
        ] {
            assert!(objection(bad.as_bytes()).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn paths_that_leave_or_are_none_are_refused() {
        for bad in ["", "/", "/a", "a//b", "a/", "./a", "a/..", "../a", "a/./b", "a\0b"] {
            assert!(objection(bad.as_bytes()).is_some(), "{bad:?}");
        }
        assert!(objection(&[b'a'; MAX_NAME + 1]).is_some());
        assert!(objection(&[b"a/".repeat(MAX_PATH / 2), b"bc".to_vec()].concat()).is_some());
    }

    #[test]
    fn ordinary_and_odd_names_are_fine() {
        for good in [
            ".gitignore",
            ".gitmodules",
            ".github/x",
            "a.git",
            "git",
            "...",
            "..a",
            "-a",
            "a\nb",
            " .git",
            "git~",
            "x~1",
            "a\\b",
            ".gitx",
        ] {
            assert_eq!(objection(good.as_bytes()), None, "{good:?}");
        }
        assert_eq!(objection(b"\xff\xfe"), None);
        assert_eq!(link_objection(b"a/.gitignore"), None);
        assert!(link_objection(b"a/.gitModules").is_some());
    }
}
