//! What the guest must lose and may not have touched when it gets a difference.

use std::collections::{BTreeMap, HashSet};

use banger_model::ByteString;

use super::manifest::{Manifest, PartFacts};
use super::send::digests;
use super::{Applied, Changes, GitChange, Survey, Surveyed};
use crate::Result;

impl Survey {
    /// The difference to `base`, which is one of this workspace.
    pub(super) fn changes(&self, base: &Manifest, resend_history: bool) -> Result<Changes> {
        let mut changes = Changes { bytes: self.send_bytes, ..Changes::default() };
        for (n, (each, old)) in self.parts.iter().zip(&base.facts.parts).enumerate() {
            let files = &self.plan.files[each.files.clone()];
            let sent = each.send.iter().flatten().filter_map(|at| files.get(*at));
            changes.replaced.extend(sent.cloned());
            changes.removed.extend(each.gone.iter().cloned());
            changes.git_removed.extend(in_git(each, old));
            if !resend_history {
                let below = |pack: &String| {
                    ByteString([old.git_dir.as_bytes(), b"/objects/pack/", pack.as_bytes()].concat())
                };
                changes.packs.extend(old.packs.iter().map(below));
            }
            changes.indexes.push(GitChange {
                path: ByteString([old.git_dir.as_bytes(), b"/index"].concat()),
                old: Some(old.staged.clone()),
                new: Some(each.part.index.digest()),
            });
            changes.git_files.extend(other_files(each, old).filter(|(name, _)| n > 0 || name != "HEAD").map(
                |(name, new)| GitChange {
                    path: ByteString([old.git_dir.as_bytes(), b"/", name.as_bytes()].concat()),
                    old: old.git_files.get(&name).cloned(),
                    new,
                },
            ));
            if n == 0 {
                changes.head = ByteString(old.head.clone().into_bytes());
                changes.branch = old.branch.clone().zip(old.commit.clone());
            }
        }
        changes.applied = applied(base, &changes)?;
        Ok(changes)
    }
}

/// What the last apply brought here of what is to be written or removed.
fn applied(base: &Manifest, changes: &Changes) -> Result<BTreeMap<Vec<u8>, Applied>> {
    let mut found = BTreeMap::new();
    let mut rows = base.applied()?;
    let paths: HashSet<&[u8]> =
        changes.replaced.iter().chain(&changes.removed).map(ByteString::as_bytes).collect();
    while let Some(row) = rows.next()? {
        if paths.contains(&row.path[..]) {
            let mut digest = [0; 32];
            for (to, word) in digest.chunks_exact_mut(8).zip(row.state) {
                to.copy_from_slice(&word.to_le_bytes());
            }
            found.insert(row.path, (row.kind, digest));
        }
    }
    Ok(found)
}

/// The small files that are written or removed, and the digest of what they will be.
fn other_files(each: &Surveyed, old: &PartFacts) -> impl Iterator<Item = (String, Option<String>)> {
    let now = digests(&each.git_files);
    let gone: Vec<String> = old.git_files.keys().filter(|name| !now.contains_key(*name)).cloned().collect();
    let other = now.into_iter().filter(|(name, digest)| old.git_files.get(name) != Some(digest));
    let other: Vec<_> = other.map(|(name, digest)| (name, Some(digest))).collect();
    other.into_iter().chain(gone.into_iter().map(|name| (name, None)))
}

/// Files of the git directory that are of the past. Refs stay, for the guest may have commits there,
/// but for one in whose place a directory must be, or the other way round.
fn in_git(each: &Surveyed, old: &PartFacts) -> Vec<ByteString> {
    let now = digests(&each.git_files);
    let refs = &each.part.refs.objects;
    let gone_files = old.git_files.keys().filter(|name| !now.contains_key(*name));
    let below = |name: &str, above: &str| name.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
    let is_in_the_way = |name: &String| {
        !refs.contains_key(name) && refs.keys().any(|new| below(new, name) || below(name, new))
    };
    let gone_refs = old.refs.keys().filter(|name| is_in_the_way(name));
    let names = gone_files.chain(gone_refs);
    let below = |name: &String| [old.git_dir.as_bytes(), b"/", name.as_bytes()].concat();
    names.map(|name| ByteString(below(name))).collect()
}
