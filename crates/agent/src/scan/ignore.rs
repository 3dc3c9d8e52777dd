//! git's ignore rules for untracked files (gitignore(5)).
//!
//! Owns which rules are in force in which directory: `info/exclude`, then every `.gitignore` from
//! the top down, the last match wins. The matching itself is a library's.

use gix_glob::pattern::Case;
use gix_glob::search::Pattern as _;
use gix_glob::search::pattern::List;
use gix_ignore::Search;
use gix_ignore::search::Ignore;

/// The rules in force, innermost last.
#[derive(Debug, Default)]
pub(super) struct Rules {
    search: Search,
}

impl Rules {
    /// Adds the rules of a directory (empty: the top), which hold below it.
    pub(super) fn push(&mut self, dir: &[u8], text: &[u8]) {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let base = if dir.is_empty() { None } else { Some([dir, b"/"].concat().into()) };
        let patterns = Ignore { support_precious: false }.bytes_to_patterns(text, std::path::Path::new(""));
        self.search.patterns.push(List { patterns, source: None, base });
    }

    /// How many sets of rules there are, for [`Self::pop_to`].
    pub(super) fn depth(&self) -> usize {
        self.search.patterns.len()
    }

    /// Forgets the inner ones.
    pub(super) fn pop_to(&mut self, depth: usize) {
        self.search.patterns.truncate(depth);
    }

    /// Whether git would ignore this untracked path, whose directories are not ignored.
    pub(super) fn ignores(&self, path: &[u8], is_dir: bool) -> bool {
        let found = self.search.pattern_matching_relative_path(path.into(), Some(is_dir), Case::Sensitive);
        found.is_some_and(|m| !m.pattern.is_negative())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_rules_win_and_hold_below_their_directory_only() {
        let mut rules = Rules::default();
        rules.push(b"", b"*.o\n/build\ntmp/\n");
        rules.push(b"src", b"!keep.o\n/local\n");
        assert!(rules.ignores(b"a.o", false) && rules.ignores(b"src/a.o", false));
        assert!(!rules.ignores(b"src/keep.o", false));
        assert!(rules.ignores(b"src/local", false) && !rules.ignores(b"src/x/local", false));
        assert!(rules.ignores(b"build", true) && !rules.ignores(b"src/build", true));
        assert!(rules.ignores(b"src/tmp", true) && !rules.ignores(b"src/tmp", false));
        rules.pop_to(1);
        assert!(rules.ignores(b"src/keep.o", false));
    }
}
