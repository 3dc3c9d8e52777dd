//! Which refs go along, and where history begins.
//!
//! Owns the choice of what the guest can compare its branch with. Must never send a stash or what
//! other tools keep under names of their own.

use std::collections::BTreeMap;

use super::part::Start;
use crate::Result;
use crate::settings::Settings;
use crate::source::{LISTING_CAP, Source, object_id};

/// The symbolic ref of a clone that names its default branch.
const ORIGIN_HEAD: &str = "refs/remotes/origin/HEAD";
/// Refs that stay behind even when everything goes along.
const OURS: [&str; 5] = ["refs/stash", "refs/banger/", "refs/bisect/", "refs/worktree/", "refs/rewritten/"];
/// A branch that has so many commits on either side is not worth their history.
const FAR: u64 = 1000;

/// The refs of the guest.
#[derive(Debug, Default)]
pub(crate) struct Refs {
    /// Their objects by name.
    pub(crate) objects: BTreeMap<String, String>,
    /// What tags point to in the end.
    peeled: BTreeMap<String, String>,
    /// Symbolic ones, and the names they stand for.
    pub(crate) symbolic: BTreeMap<String, String>,
}

impl Refs {
    /// The branch, what it follows, and the trunk: what one compares with.
    pub(crate) fn near(source: &Source, settings: &Settings, start: &Start) -> Result<Self> {
        let mut refs = Self::default();
        let Some(commit) = &start.commit else { return Ok(refs) };
        let upstream = start.branch.as_deref().filter(|_| !start.is_new).and_then(|b| upstream(settings, b));
        let mut names = vec![ORIGIN_HEAD, "refs/heads/main", "refs/heads/master"];
        names.extend(upstream.as_deref());
        let all = Self::list(source, &names)?;
        let trunk = all.symbolic.get(ORIGIN_HEAD).cloned();
        if let Some(target) = trunk.as_ref().filter(|name| all.objects.contains_key(*name)) {
            refs.symbolic.insert(ORIGIN_HEAD.into(), target.clone());
        }
        let local = || ["refs/heads/main", "refs/heads/master"].iter().map(|n| (*n).to_owned());
        let trunk = trunk.or_else(|| local().find(|name| all.objects.contains_key(name)));
        for name in upstream.into_iter().chain(trunk) {
            if let Some(id) = all.objects.get(&name)
                && (id == commit || is_near(source, commit, id)?)
            {
                refs.objects.insert(name, id.clone());
            }
        }
        refs.symbolic.retain(|_, target| refs.objects.contains_key(target));
        refs.check_out(start);
        Ok(refs)
    }

    /// All of them.
    pub(crate) fn all(source: &Source, start: &Start) -> Result<Self> {
        let mut refs = Self::list(source, &[])?;
        let stays = |name: &String| OURS.iter().any(|ours| name.starts_with(ours));
        refs.objects.retain(|name, _| !stays(name));
        refs.peeled.retain(|name, _| !stays(name));
        refs.symbolic.retain(|name, _| name.starts_with("refs/") && !stays(name));
        refs.check_out(start);
        Ok(refs)
    }

    /// The branch to begin with, which is not there yet when it is new.
    fn check_out(&mut self, start: &Start) {
        if let (Some(branch), Some(commit)) = (&start.branch, &start.commit) {
            self.objects.insert(format!("refs/heads/{branch}"), commit.clone());
        }
    }

    fn list(source: &Source, names: &[&str]) -> Result<Self> {
        let format = "--format=%(objectname) %(*objectname) %(symref) %(refname)";
        let args: Vec<&str> = ["for-each-ref", format].iter().chain(names).copied().collect();
        let out = source.git.output(&args, LISTING_CAP)?;
        let mut refs = Self::default();
        for line in out.split(|b| *b == b'\n') {
            let words: Vec<&str> = std::str::from_utf8(line).unwrap_or_default().split(' ').collect();
            // A ref with a name that is no text cannot be said in a setting either; it stays behind.
            let [id, peeled, symbolic, name] = words[..] else { continue };
            let Some(id) = object_id(id.as_bytes()) else { continue };
            if symbolic.is_empty() {
                refs.objects.insert(name.to_owned(), id);
                refs.peeled.extend(object_id(peeled.as_bytes()).map(|id| (name.to_owned(), id)));
            } else {
                refs.symbolic.insert(name.to_owned(), symbolic.to_owned());
            }
        }
        Ok(refs)
    }

    /// As git keeps many in one file.
    pub(crate) fn packed(&self) -> Vec<u8> {
        let mut text = String::from("# pack-refs with: peeled fully-peeled sorted \n");
        for (name, id) in &self.objects {
            text.extend([id, " ", name, "\n"]);
            if let Some(peeled) = self.peeled.get(name) {
                text.extend(["^", peeled, "\n"]);
            }
        }
        text.into_bytes()
    }
}

/// The ref that a branch follows, when it is one of the origin's or of this repository's.
fn upstream(settings: &Settings, branch: &str) -> Option<String> {
    let get = |key: &str| std::str::from_utf8(settings.get(&format!("branch.{branch}.{key}"))?).ok();
    let merge = get("merge")?;
    match get("remote")? {
        "origin" => Some(format!("refs/remotes/origin/{}", merge.strip_prefix("refs/heads/")?)),
        "." => Some(merge.to_owned()),
        _ => None,
    }
}

/// Whether few enough commits are on either side alone.
fn is_near(source: &Source, commit: &str, other: &str) -> Result<bool> {
    Ok(apart(source, commit, other)?.is_some_and(|(ours, theirs)| ours + theirs <= FAR))
}

/// How many commits are on either side alone; none when git cannot say.
pub(crate) fn apart(source: &Source, commit: &str, other: &str) -> Result<Option<(u64, u64)>> {
    let range = format!("{commit}...{other}");
    let out = source.git.query(&["rev-list", "--left-right", "--count", &range, "--"], 1 << 12)?;
    let Some(out) = out else { return Ok(None) };
    let counts: Vec<u64> =
        String::from_utf8_lossy(&out).split_whitespace().filter_map(|n| n.parse().ok()).collect();
    Ok(match counts[..] {
        [ours, theirs] => Some((ours, theirs)),
        _ => None,
    })
}
