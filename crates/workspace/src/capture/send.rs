//! The writing of a capture: git's small files, the files, the packs made meanwhile, the indexes.
//!
//! Owns the order of the stream. Must never close it over something that was left out.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use banger_model::ByteString;
use sha2::{Digest, Sha256};

use super::files::{self, Kind, Tree};
use super::guest_repo;
use super::list::{executable, is_there, known};
use super::manifest::{self, Facts, Manifest, PartFacts, Row, Rows, Writer};
use super::tarball::Tarball;
use super::{Capture, Captured, Changes, Surveyed};
use crate::{Cancel, Result, WorkspaceError};

/// What the copy calls itself.
const COPY: &[u8] = b".git/banger-copy";

/// What every git directory has.
const DIRECTORIES: [&str; 8] =
    ["", "/info", "/objects", "/objects/info", "/objects/pack", "/refs", "/refs/heads", "/refs/tags"];

pub(super) fn write(capture: Capture, out: impl Write) -> Result<Captured> {
    let Capture { mut survey, cancel, request, base, changes, manifest, packing, name, kept_indexes } =
        capture;
    let mut sending = Sending { tar: Tarball::new(out), directories: HashSet::new(), cancel };
    for (n, each) in survey.parts.iter().enumerate() {
        sending.git(each, base.as_ref().and_then(|b| b.facts.parts.get(n)))?;
    }
    if !name.is_empty() {
        sending.tar.file(COPY, 0o600, now(), name.as_bytes()).map_err(WorkspaceError::Stream)?;
    }
    let mut writer = Writer::create(&manifest)?;
    let mut parts = Vec::new();
    for (n, each) in survey.parts.iter_mut().enumerate() {
        let mut facts = facts(each);
        let rows = base.as_ref().map(|base| base.rows(n)).transpose()?;
        facts.at = writer.at();
        let paths = &survey.plan.files[each.files.clone()];
        facts.rows = sending.files(each, paths, rows, &mut writer)?;
        parts.push(facts);
    }
    for ((each, facts), packs) in survey.parts.iter().zip(&mut parts).zip(packing.finish()?) {
        sending.packs(each, &packs, facts)?;
    }
    if let Some(base) = &base {
        for (facts, old) in parts.iter_mut().zip(&base.facts.parts) {
            facts.packs.splice(0..0, old.packs.iter().cloned());
            facts.packs.sort();
            facts.packs.dedup();
        }
    }
    let outermost = survey.parts.first().map(|each| (&each.part.start, &each.part.source));
    let (branch, overlay) =
        outermost.map_or((None, true), |(start, _)| (start.branch.clone(), start.overlay));
    let object_format = outermost.map_or_else(String::new, |(_, source)| source.object_format.clone());
    for (n, each) in std::mem::take(&mut survey.parts).into_iter().enumerate() {
        if kept_indexes.contains(&n) {
            continue;
        }
        // Last and with the present time: git takes a file as old as the index for suspicious.
        let file = [&each.part.place.git_dir[..], b"/index"].concat();
        let index = each.part.index.finish();
        sending.tar.file(&file, 0o644, now(), &index).map_err(WorkspaceError::Stream)?;
    }
    sending.tar.finish().map_err(WorkspaceError::Stream)?;
    let plan = survey.plan;
    let applied = match (&base, &changes) {
        (Some(base), Some(changes)) => writer.applied(still_applied(base, changes)?)?,
        _ => (0, 0),
    };
    let manifest = writer.finish(Facts {
        request,
        source: plan.source_path.clone(),
        guest_path: plan.guest_path.as_str().to_owned(),
        mode: plan.mode,
        name,
        base_commit: plan.base_commit.clone(),
        parts,
        applied,
    })?;
    Ok(Captured { base_commit: plan.base_commit.clone(), branch, object_format, overlay, plan, manifest })
}

/// The rows of the last apply at paths that the guest keeps as they are.
fn still_applied(base: &Manifest, changes: &Changes) -> Result<impl Iterator<Item = Result<Row>>> {
    let written: HashSet<Vec<u8>> =
        changes.replaced.iter().chain(&changes.removed).map(|path| path.as_bytes().to_vec()).collect();
    let mut rows = base.applied()?;
    let all = std::iter::from_fn(move || rows.next().transpose());
    Ok(all.filter(move |row| row.as_ref().map_or(true, |row| !written.contains(&row.path))))
}

/// What is known of a repository before it is sent.
fn facts(each: &Surveyed) -> PartFacts {
    let part = &each.part;
    let is_bounded = !part.history.commits.is_empty();
    PartFacts {
        prefix: ByteString(part.place.prefix.clone()),
        git_dir: ByteString(part.place.git_dir.clone()),
        object_format: part.source.object_format.clone(),
        head: guest_repo::head(part),
        branch: part.start.branch.clone(),
        host_branch: part.start.host_branch.clone(),
        host_commit: part.start.host_commit.clone(),
        commit: part.start.commit.clone(),
        overlay: part.start.overlay,
        trust_modes: part.trust_modes(),
        commits: part.history.commits.clone(),
        shallow: part.history.shallow.clone(),
        tips: if is_bounded { Vec::new() } else { part.history.tips.clone() },
        extra: each.extra.clone(),
        packs: Vec::new(),
        refs: part.refs.objects.clone(),
        git_files: digests(&each.git_files),
        staged: part.index.digest(),
        index: part.index_state,
        rows: 0,
        at: 0,
    }
}

/// The names of files and a digest of each.
pub(super) fn digests(files: &[guest_repo::GitFile]) -> BTreeMap<String, String> {
    files.iter().map(|(name, data)| (name.clone(), hex::encode(Sha256::digest(data)))).collect()
}

/// A stream being written.
struct Sending<W> {
    tar: Tarball<W>,
    /// Directories that were sent already.
    directories: HashSet<Vec<u8>>,
    cancel: Cancel,
}

impl<W: Write> Sending<W> {
    /// The git directory but for packs and index; of what is there already, what is other.
    fn git(&mut self, each: &Surveyed, old: Option<&PartFacts>) -> Result<()> {
        let (place, part, now) = (&each.part.place, &each.part, now());
        let below = |name: &str| [&place.git_dir[..], name.as_bytes()].concat();
        for dir in DIRECTORIES {
            self.tar.directory(&below(dir), now).map_err(WorkspaceError::Stream)?;
        }
        let mut small: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let digests = digests(&each.git_files);
        for (name, data) in &each.git_files {
            if old.and_then(|old| old.git_files.get(name)) != digests.get(name) || old.is_none() {
                small.push((below(&format!("/{name}")), data.clone()));
            }
        }
        match old {
            None => small.push((below("/packed-refs"), part.refs.packed())),
            // The guest may have packed refs of its own; a loose one goes before a packed one. The
            // branch is where the host has it, also when the guest moved it and the host did not.
            Some(old) => {
                let own = part.start.branch.as_ref().map(|branch| format!("refs/heads/{branch}"));
                let is_own = |name: &String| own.as_ref() == Some(name);
                let is_moved =
                    |(name, id): &(&String, &String)| is_own(name) || old.refs.get(*name) != Some(id);
                let moved = part.refs.objects.iter().filter(is_moved);
                small.extend(
                    moved.map(|(name, id)| (below(&format!("/{name}")), format!("{id}\n").into_bytes())),
                );
            }
        }
        if place.is_submodule() {
            small.push((part.full(b".git"), place.pointer()));
        }
        for (name, data) in small {
            self.tar.file(&name, 0o644, now, &data).map_err(WorkspaceError::Stream)?;
        }
        Ok(())
    }

    /// The working tree; makes the index fit it, and writes down every file. Returns their number.
    fn files(
        &mut self,
        each: &mut Surveyed,
        paths: &[ByteString],
        mut rows: Option<Rows>,
        writer: &mut Writer,
    ) -> Result<u64> {
        let mut tree = Tree::open(&each.part.tree)?;
        let mut send = each.send.take().map(|send| send.into_iter().peekable());
        let (mut at, mut written) = (0, 0);
        // What came from the guest and is not copied stays on record.
        let mut theirs = Vec::new();
        for (n, full) in paths.iter().enumerate() {
            let path = &full.as_bytes()[each.part.place.prefix.len()..];
            let index = &mut each.part.index;
            while at < index.len() && index.entry(at).path < path {
                index.forget(at);
                at += 1;
            }
            let entry = (at < index.len() && index.entry(at).path == path).then_some(at);
            let is_sent = send.as_mut().is_none_or(|send| send.next_if_eq(&n).is_some());
            let passed = |row: Row| theirs.extend(row.is_theirs.then_some(row));
            let old = rows.as_mut().map(|rows| rows.find(path, passed)).transpose()?.flatten();
            written += theirs.len() as u64 + 1;
            theirs.drain(..).try_for_each(|row| writer.row(&row))?;
            let row = if is_sent {
                self.directory(full.as_bytes())?;
                let (began, executable) = (SystemTime::now(), executable(&each.part, entry));
                let found = tree.send(path, full.as_bytes(), executable, &mut self.tar, &self.cancel)?;
                Row {
                    path: path.to_vec(),
                    state: if found.is_unsure(began) { [0; 4] } else { manifest::state(&found.stamp) },
                    size: found.stamp.size,
                    mtime: (tree.time(&found) & 0xffff_ffff) as u32,
                    kind: manifest::kind(&found, executable),
                    id: known(&each.part, entry, &found.stamp),
                    is_theirs: false,
                }
            } else {
                let old = old.ok_or_else(|| WorkspaceError::Changed(full.clone()))?;
                unchanged(each, &mut tree, entry, old)?
            };
            if let Some(entry) = entry {
                match row.id {
                    [0, ..] if row.id == [0; 20] => each.part.index.forget(entry),
                    _ => each.part.index.vouch(entry, row.mtime, row.size),
                }
                at += 1;
            }
            writer.row(&row)?;
        }
        for n in at..each.part.index.len() {
            each.part.index.forget(n);
        }
        while let Some(row) = rows.as_mut().map(Rows::next).transpose()?.flatten() {
            if row.is_theirs {
                writer.row(&row)?;
                written += 1;
            }
        }
        self.submodules(each, &mut tree)?;
        Ok(written)
    }

    /// The directories of submodules, also of those that are empty.
    fn submodules(&mut self, each: &Surveyed, tree: &mut Tree) -> Result<()> {
        for entry in each.part.index.entries().filter(super::index::Entry::is_submodule) {
            let is_dir = !each.part.start.overlay
                || tree.look(entry.path)?.is_some_and(|found| found.kind == Kind::Directory);
            if is_dir {
                self.directory(&[&each.part.full(entry.path)[..], b"/"].concat())?;
            }
        }
        Ok(())
    }

    /// The directories above a path that were not sent yet.
    fn directory(&mut self, path: &[u8]) -> Result<()> {
        let Some(last) = path.iter().rposition(|b| *b == b'/') else { return Ok(()) };
        if self.directories.contains(&path[..last]) {
            return Ok(());
        }
        let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        for at in slashes {
            if self.directories.insert(path[..at].to_vec()) {
                self.tar.directory(&path[..at], now()).map_err(WorkspaceError::Stream)?;
            }
        }
        Ok(())
    }

    fn packs(&mut self, each: &Surveyed, packs: &[PathBuf], facts: &mut PartFacts) -> Result<()> {
        let (now, is_partial) = (now(), each.part.settings.is_partial());
        for pack in packs {
            let file = pack.file_name().unwrap_or_default().as_bytes();
            let name = [&each.part.place.git_dir[..], b"/objects/pack/", file].concat();
            files::send_ours(pack, &name, now, &mut self.tar, &self.cancel)?;
            if let Some(stem) = name.strip_suffix(b".pack") {
                facts.packs.push(String::from_utf8_lossy(file).into_owned());
                if is_partial {
                    let marker = [stem, b".promisor"].concat();
                    self.tar.file(&marker, 0o444, now, b"").map_err(WorkspaceError::Stream)?;
                }
            }
        }
        Ok(())
    }
}

/// The row of a file that is not sent again. The guest has it as the old row says, whatever became
/// of it here since it was looked at.
fn unchanged(each: &Surveyed, tree: &mut Tree, entry: Option<usize>, mut old: Row) -> Result<Row> {
    let part = &each.part;
    old.is_theirs = false;
    if entry.is_some_and(|n| part.index.entry(n).records(&old.stamp()) && part.index.entry(n).stage() == 0) {
        old.id = known(part, entry, &old.stamp());
        return Ok(old);
    }
    let path = old.path.clone();
    match tree.look(&path)? {
        Some(found) if is_there(part, entry, &found, &old) => {
            old.id = known(part, entry, &found.stamp);
            old.state = manifest::state(&found.stamp);
        }
        _ => {
            // It is other by now: the next capture will see.
            old.id = [0; 20];
            old.state = [0; 4];
        }
    }
    Ok(old)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
