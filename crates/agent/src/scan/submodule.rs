//! Whether a submodule is as it was copied in: a patch of the outer repository cannot say what
//! happened inside one, so a change there must not pass for none.
//!
//! Owns the walk within it. Reads of its `.git` only which commit is checked out.

use std::io::Write;

use super::ignore::Rules;
use super::seen::{Record, Stamp};
use super::tracked::Id;
use super::tree::Tree;
use super::{Name, Scan, ScanError, read_if_there, unreadable};

/// The largest `.git`, `HEAD` or list of refs that is read, bytes.
const MAX_REF: u64 = 64 << 20;

impl<W: Write> Scan<W> {
    /// Whether anything in the submodule at `path` differs from what was copied in; without a
    /// record of that, nothing is known to.
    pub(super) fn submodule_changed(&mut self, path: &[u8], commit: &Id) -> Result<bool, ScanError> {
        let Some(record) = &self.seen else { return Ok(false) };
        let inside = [path, b"/"].concat();
        let is_below = |p: &[u8]| p.starts_with(&inside);
        if !record.keys().any(|p| is_below(p)) {
            return Ok(false);
        }
        if files_changed(&mut self.tree, record, path)? {
            return Ok(true);
        }
        let recorded = record.keys().filter(|p| is_below(p) && !p.windows(5).any(|w| w == b".git/"));
        for file in recorded {
            if self.tree.look(file).map_err(|e| unreadable(file, e.into()))?.is_none() {
                return Ok(true);
            }
        }
        head_moved(&mut self.tree, record, path, commit, self.id_len)
    }
}

/// Whether there is a file that was not copied in, or not like this.
fn files_changed(tree: &mut Tree, record: &Record, top: &[u8]) -> Result<bool, ScanError> {
    let mut rules = Rules::default();
    let mut ahead: Vec<(Vec<u8>, usize)> = vec![(top.to_vec(), 0)];
    while let Some((dir, depth)) = ahead.pop() {
        rules.pop_to(depth);
        let Ok(names) = tree.names(&dir) else { continue };
        let file = [&dir[..], b"/.gitignore"].concat();
        if names.iter().any(|n| n.name == b".gitignore")
            && let Some((text, _)) = read_if_there(tree, &file, MAX_REF)?
        {
            rules.push(&dir, &text);
        }
        let depth = rules.depth();
        for Name { name, is_dir } in names {
            if name == b".git" {
                continue;
            }
            let path = [&dir[..], b"/", &name].concat();
            if is_dir {
                if !rules.ignores(&path, true) {
                    ahead.push((path, depth));
                }
                continue;
            }
            let Some(stat) = tree.look(&path).map_err(|e| unreadable(&path, e.into()))? else { continue };
            let same = match record.get(&path) {
                Some(seen) => seen.stamp == Stamp::of(&stat),
                None => rules.ignores(&path, false),
            };
            if !same {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether another commit is checked out than the base names, and than was copied in.
fn head_moved(
    tree: &mut Tree,
    record: &Record,
    path: &[u8],
    commit: &Id,
    id_len: usize,
) -> Result<bool, ScanError> {
    let dot_git = [path, b"/.git"].concat();
    let git_dir = match read_if_there(tree, &dot_git, MAX_REF)? {
        Some((text, _)) => {
            match text.strip_prefix(b"gitdir: ").and_then(|to| joined(path, to.trim_ascii_end())) {
                Some(dir) => dir,
                None => return Ok(true),
            }
        }
        None => dot_git,
    };
    let head = [&git_dir[..], b"/HEAD"].concat();
    let Some((text, stat)) = read_if_there(tree, &head, MAX_REF)? else { return Ok(false) };
    let untouched = |path: &[u8], stamp: Stamp| record.get(path).is_some_and(|seen| seen.stamp == stamp);
    let is_commit =
        |text: &[u8]| super::tracked::hex_id(text.trim_ascii_end(), id_len).is_some_and(|id| id == *commit);
    let Some(name) = text.strip_prefix(b"ref: ") else {
        return Ok(!is_commit(&text) && !untouched(&head, Stamp::of(&stat)));
    };
    let name = name.trim_ascii_end();
    let loose = [&git_dir[..], b"/", name].concat();
    if let Some((text, _)) = read_if_there(tree, &loose, MAX_REF)? {
        return Ok(!is_commit(&text));
    }
    let packed = [&git_dir[..], b"/packed-refs"].concat();
    let Some((text, stat)) = read_if_there(tree, &packed, MAX_REF)? else { return Ok(true) };
    if untouched(&packed, Stamp::of(&stat)) {
        return Ok(false);
    }
    let line =
        text.split(|b| *b == b'\n').find(|line| line.strip_suffix(name).is_some_and(|l| l.ends_with(b" ")));
    Ok(!line.is_some_and(|line| is_commit(&line[..line.len() - name.len() - 1])))
}

/// A relative path from a directory of the workspace; `None` when it leaves the workspace.
fn joined(from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = from.split(|b| *b == b'/').collect();
    for part in to.split(|b| *b == b'/') {
        match part {
            b"" if to.starts_with(b"/") => return None,
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join(&b'/'))
}
