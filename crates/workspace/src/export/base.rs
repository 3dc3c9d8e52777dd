//! The base tree as `git ls-tree -r -z --full-tree` lists it.
//!
//! Owns looking a path up in it, in git's own bytes: a hundred thousand paths cost their listing.

use crate::Result;
use crate::git::Git;
use crate::source::LISTING_CAP;

/// How the base is listed, both for the guest and here.
pub(crate) fn arguments(base: &str) -> [&str; 6] {
    ["ls-tree", "-r", "-z", "--full-tree", "--end-of-options", base]
}

/// One path of the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BaseEntry<'a> {
    /// The mode as git writes it, such as `100644`.
    pub(crate) mode: &'a [u8],
    /// The object's id in hexadecimal.
    pub(crate) id: &'a [u8],
    /// The path.
    pub(crate) path: &'a [u8],
}

/// A listing, sorted by path as git makes it.
#[derive(Debug)]
pub(crate) struct Base {
    raw: Vec<u8>,
    starts: Vec<usize>,
}

impl Base {
    pub(crate) fn list(git: &Git, base: &str) -> Result<Self> {
        Ok(Self::parse(git.output(&arguments(base), LISTING_CAP)?))
    }

    /// A listing as it was printed.
    pub(crate) fn parse(raw: Vec<u8>) -> Self {
        let mut starts = Vec::new();
        let mut at = 0;
        while let Some(end) = raw[at..].iter().position(|b| *b == 0) {
            starts.push(at);
            at += end + 1;
        }
        Self { raw, starts }
    }

    fn entry(&self, n: usize) -> BaseEntry<'_> {
        let line = &self.raw[self.starts[n]..];
        let line = &line[..line.iter().position(|b| *b == 0).unwrap_or(line.len())];
        let tab = line.iter().position(|b| *b == b'\t').unwrap_or(line.len());
        let mut words = line[..tab].split(|b| *b == b' ');
        let (mode, _, id) = (words.next(), words.next(), words.next());
        BaseEntry {
            mode: mode.unwrap_or_default(),
            id: id.unwrap_or_default(),
            path: line.get(tab + 1..).unwrap_or_default(),
        }
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = BaseEntry<'_>> {
        (0..self.starts.len()).map(|n| self.entry(n))
    }

    /// The entry of exactly this path.
    pub(crate) fn get(&self, path: &[u8]) -> Option<BaseEntry<'_>> {
        let n = self.first_from(path)?;
        Some(self.entry(n)).filter(|e| e.path == path)
    }

    /// The entries below this directory.
    pub(crate) fn below<'a>(&'a self, dir: &'a [u8]) -> impl Iterator<Item = BaseEntry<'a>> {
        let start = [dir, b"/"].concat();
        let from = self.first_from(&start).unwrap_or(self.starts.len());
        (from..self.starts.len()).map(|n| self.entry(n)).take_while(move |e| e.path.starts_with(&start))
    }

    fn first_from(&self, path: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.starts.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.entry(middle).path < path { low = middle + 1 } else { high = middle }
        }
        (low < self.starts.len()).then_some(low)
    }
}
