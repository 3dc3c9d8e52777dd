//! Where symbolic links of a tree lead.
//!
//! Owns the question whether a link stays inside, through other links too. Touches no file system:
//! it works on the tree as git would check it out.

use std::collections::HashMap;

use super::receive::{Change, Changes, refused};
use crate::Result;

/// Links followed before a chain counts as a loop (Linux, path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// Components walked for one link before it is refused: no honest link comes near.
const MAX_STEPS: u32 = 10_000;

/// The symbolic links of one tree: path and target.
pub(crate) type Links = HashMap<Vec<u8>, Vec<u8>>;

/// Refuses links that lead out of the repository when the changes are made, unless they did so before.
pub(crate) fn check(before: &Links, changes: &Changes) -> Result<()> {
    let mut after = before.clone();
    for (path, change) in changes {
        match change {
            Change::Link { target, .. } => drop(after.insert(path.clone(), target.clone())),
            _ => drop(after.remove(path)),
        }
    }
    for (path, target) in &after {
        let was_so = before.get(path) == Some(target) && escapes(before, path);
        if !was_so && escapes(&after, path) {
            return Err(refused(path, "the symbolic link leads out of the repository"));
        }
    }
    Ok(())
}

/// Whether the link at `path` leads out of the tree, through whatever other links there are.
pub(crate) fn escapes(links: &Links, path: &[u8]) -> bool {
    let Some(target) = links.get(path) else { return false };
    let mut here: Vec<Vec<u8>> = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
    here.pop();
    // Components still to be walked, the next one last.
    let mut ahead: Vec<Vec<u8>> = Vec::new();
    if !push(&mut ahead, target) {
        return true;
    }
    let (mut followed, mut steps) = (0, 0);
    while let Some(name) = ahead.pop() {
        steps += 1;
        if steps > MAX_STEPS {
            return true;
        }
        match &name[..] {
            b"" | b"." => continue,
            b".." => {
                if here.pop().is_none() {
                    return true;
                }
                continue;
            }
            _ => here.push(name),
        }
        let Some(target) = links.get(&here.join(&b'/')) else { continue };
        followed += 1;
        if followed > MAX_LINKS {
            // The kernel gives up with ELOOP: it leads nowhere. Who takes paths by their words alone may not.
            return links.get(path).is_some_and(|target| climbs(path, target));
        }
        here.pop();
        if !push(&mut ahead, target) {
            return true;
        }
    }
    false
}

/// Whether a target, taken as words alone, climbs above the top.
fn climbs(path: &[u8], target: &[u8]) -> bool {
    let mut depth = path.iter().filter(|b| **b == b'/').count();
    for name in target.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return true,
            },
            _ => depth += 1,
        }
    }
    false
}

/// Puts a target's components before what is ahead; `false` when it is absolute.
fn push(ahead: &mut Vec<Vec<u8>>, target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return false;
    }
    ahead.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(all: &[(&str, &str)]) -> Links {
        all.iter().map(|(p, t)| (p.as_bytes().to_vec(), t.as_bytes().to_vec())).collect()
    }

    #[test]
    fn links_that_lead_out_are_found() {
        for (path, target) in
            [("l", ".."), ("l", "/etc"), ("a/l", "../.."), ("a/l", "x/../../../y"), ("l", "../here")]
        {
            assert!(escapes(&links(&[(path, target)]), path.as_bytes()), "{path} -> {target}");
        }
        for (path, target) in
            [("l", "x"), ("a/l", "../b"), ("a/l", ".."), ("l", "."), ("l", "a/../b"), ("l", "l")]
        {
            assert!(!escapes(&links(&[(path, target)]), path.as_bytes()), "{path} -> {target}");
        }
    }

    #[test]
    fn a_link_through_a_link_counts_where_it_really_leads() {
        // Given a link to the top inside a directory, then ".." behind it is outside.
        let through = links(&[("d/top", ".."), ("l", "d/top/../x")]);
        assert!(escapes(&through, b"l"));
        assert!(!escapes(&through, b"d/top"));
        // Given a link that leaves already, then one through it leaves too.
        assert!(escapes(&links(&[("out", "/etc"), ("l", "out/passwd")]), b"l"));
        // Given two that point at each other, then they lead nowhere.
        assert!(!escapes(&links(&[("a", "b"), ("b", "a/../../..")]), b"a"));
        // But one that climbs by its words is refused though it does: not everybody follows links.
        assert!(escapes(&links(&[("a", "b"), ("b", "a/../../..")]), b"b"));
    }
}
