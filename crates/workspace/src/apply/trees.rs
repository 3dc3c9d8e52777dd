//! What differs between two trees of which one is a guest's, found tree by tree.
//!
//! Owns the budget: a few small trees, each many times in the next, can name more paths than there is memory for, and
//! git's own comparison would collect them all before it said the first.

use crate::export::{Batch, TreeChange};
use crate::git::Git;
use crate::{Result, WorkspaceError};
use banger_model::ByteString;

/// The largest tree object that is read, bytes.
const MAX_TREE: u64 = 64 << 20;
/// The most directories one within the other.
const MAX_DEPTH: usize = 1_000;

/// Mode and id of an entry.
type Entry = (String, String);

/// One directory to be compared.
struct Pair {
    dir: Vec<u8>,
    depth: usize,
    before: Option<String>,
    after: Option<String>,
}

/// The paths that differ, sorted, at most `most` of them.
pub(super) fn compare(git: &Git, before: &str, after: &str, most: usize) -> Result<Vec<TreeChange>> {
    let mut batch = Batch::open(git)?;
    let mut changes = Vec::new();
    let mut ahead = vec![Pair {
        dir: Vec::new(),
        depth: 0,
        before: Some(before.to_owned()),
        after: Some(after.to_owned()),
    }];
    while let Some(pair) = ahead.pop() {
        if pair.before == pair.after {
            continue;
        }
        if pair.depth > MAX_DEPTH || changes.len() + ahead.len() > most {
            let (limit, what) = if pair.depth > MAX_DEPTH {
                (MAX_DEPTH, "directories one within the other")
            } else {
                (most, "paths")
            };
            return Err(WorkspaceError::TooMuch { limit: limit as u64, what, path: ByteString(pair.dir) });
        }
        let (old, new) = (
            entries(&mut batch, git, pair.before.as_deref())?,
            entries(&mut batch, git, pair.after.as_deref())?,
        );
        let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
        loop {
            let (name, was, is) = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some((a, _)), Some((b, _))) if a == b => {
                    let (a, b) = (old.next(), new.next());
                    (a.as_ref().map(|e| e.0.clone()), a.map(|e| e.1), b.map(|e| e.1))
                }
                (Some((a, _)), Some((b, _))) if a > b => {
                    let b = new.next();
                    (b.as_ref().map(|e| e.0.clone()), None, b.map(|e| e.1))
                }
                (Some(_), _) => {
                    let a = old.next();
                    (a.as_ref().map(|e| e.0.clone()), a.map(|e| e.1), None)
                }
                (None, Some(_)) => {
                    let b = new.next();
                    (b.as_ref().map(|e| e.0.clone()), None, b.map(|e| e.1))
                }
            };
            let name = name.unwrap_or_default();
            if was == is {
                continue;
            }
            let path = if pair.dir.is_empty() { name } else { [&pair.dir[..], b"/", &name].concat() };
            let (was_tree, was) = apart(was);
            let (is_tree, is) = apart(is);
            if was_tree.is_some() || is_tree.is_some() {
                let depth = pair.depth + 1;
                ahead.push(Pair { dir: path.clone(), depth, before: was_tree, after: is_tree });
            }
            if was.is_some() || is.is_some() {
                changes.push(TreeChange { path, old: was, new: is });
            }
        }
    }
    batch.close()?;
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

/// A directory's tree, or the entry of what is none.
fn apart(entry: Option<Entry>) -> (Option<String>, Option<Entry>) {
    match entry {
        Some((mode, id)) if mode == "40000" || mode == "040000" => (Some(id), None),
        other => (None, other),
    }
}

/// A tree object's entries by name.
fn entries(batch: &mut Batch, git: &Git, tree: Option<&str>) -> Result<Vec<(Vec<u8>, Entry)>> {
    let Some(tree) = tree else { return Ok(Vec::new()) };
    let raw = batch.read(tree, |content, size| {
        if size > MAX_TREE {
            return Ok(Err(WorkspaceError::Malformed(format!("a tree of {size} bytes"))));
        }
        let mut raw = Vec::new();
        content.read_to_end(&mut raw).map(|_| Ok(raw))
    })?;
    let mut found = parse(&raw, tree.len() / 2).ok_or_else(|| git.odd("cat-file"))?;
    // git sorts directories as if their names ended in a slash; here names are matched.
    found.sort();
    if found.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(WorkspaceError::Malformed("a tree that has a name twice".into()));
    }
    Ok(found)
}

/// `mode SP name NUL id`, again and again.
fn parse(mut raw: &[u8], id_len: usize) -> Option<Vec<(Vec<u8>, Entry)>> {
    let mut found = Vec::new();
    while !raw.is_empty() {
        let space = raw.iter().position(|b| *b == b' ')?;
        let nul = raw.iter().position(|b| *b == 0).filter(|nul| *nul > space)?;
        let mode = std::str::from_utf8(&raw[..space]).ok()?.to_owned();
        let name = raw[space + 1..nul].to_vec();
        let id = raw.get(nul + 1..nul + 1 + id_len)?;
        found.push((name, (mode, hex::encode(id))));
        raw = &raw[nul + 1 + id_len..];
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_parsed_whole_or_not_at_all() {
        let raw = [&b"100644 a\0"[..], &[7; 20], b"40000 d e\0", &[255; 20]].concat();
        let found = parse(&raw, 20).unwrap();
        assert_eq!(found[0], (b"a".to_vec(), ("100644".into(), "07".repeat(20))));
        assert_eq!(found[1], (b"d e".to_vec(), ("40000".into(), "ff".repeat(20))));
        for cut in [1, 8, 10, 28, raw.len() - 1] {
            assert!(parse(&raw[..cut], 20).is_none(), "{cut}");
        }
    }
}
