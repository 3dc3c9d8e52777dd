//! The guest's change into the host's repository: to its working tree, or as commits on a branch.
//!
//! Owns what is safe to replace. Inspects the resulting tree before anything is written, keeps what
//! it replaces, and leaves index and HEAD alone. Must never run a program that a guest names.

mod commits;
mod copied;
mod merge;
mod objects;
mod trees;
mod worktree;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;

use banger_model::ByteString;
use banger_protocol::api::{AppliedCommit, AppliedFile, ApplySummary, ChangeKind, Outcome};
use rustix::fs::Stat;
use sha2::{Digest, Sha256};

use self::copied::{Known, Put};
use self::merge::Merged;
use self::worktree::{Here, Staging, WorkTree};
use crate::capture::{Manifest, TICK};
use crate::export::{Batch, Exported, GITLINK, TreeChange};
use crate::source::{LISTING_CAP, object_id};
use crate::{Result, WorkspaceError};

pub use self::commits::{Arrived, MAX_COMMITS};
pub use self::copied::Copied;

const LINK: &str = "120000";

/// How to apply to a working tree.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What was copied in: of that, what has not changed since may be replaced; of all else, what is as in the base. What the
    /// guest undid of it is undone.
    pub copied: Copied,
    /// Merge what changed on both sides.
    pub three_way: bool,
    /// The last part of the backup's ref.
    pub name: String,
    /// The VM, for the backup's message and the labels of conflicts.
    pub vm: String,
}

/// What was done, and what is true of the copy then.
#[derive(Debug)]
pub struct Applied {
    /// Path by path.
    pub summary: ApplySummary,
    /// The manifest to be kept from now on, if it became another: what was applied is the same on both sides.
    pub manifest: Option<Manifest>,
}

/// A change that was held against the working tree, ready to be carried out.
#[derive(Debug)]
pub struct Plan<'a> {
    exported: &'a Exported,
    tree: WorkTree,
    wish: Wish,
    items: Vec<Item>,
}

/// One path of the change.
#[derive(Debug)]
struct Item {
    change: TreeChange,
    /// Whether the guest has the base's again.
    is_undone: bool,
    here: Here,
    /// The mode and object of what is here, as git would add it.
    ours: Option<(String, String)>,
    todo: Todo,
}

#[derive(Debug)]
enum Todo {
    Nothing,
    Replace,
    Write(Merged),
    /// It changed here since it was copied in.
    Refuse,
}

impl Item {
    /// What undoing does to what is here.
    fn undoing(&self) -> ChangeKind {
        let (path, old, new) = (Vec::new(), self.ours.clone(), self.change.new.clone());
        TreeChange { path, old, new }.kind()
    }

    fn outcome(&self) -> Outcome {
        match &self.todo {
            Todo::Nothing => Outcome::Unchanged,
            Todo::Write(merged) if merged.has_conflict => Outcome::Conflict,
            Todo::Write(_) => Outcome::Merged,
            Todo::Replace | Todo::Refuse => Outcome::Applied,
        }
    }
}

/// Holds a change against the working tree of the repository it was compared with.
///
/// # Errors
/// Paths that changed there since the copy, by name; directories in the way; git's own failure.
pub fn plan(exported: &Exported, wish: Wish) -> Result<Plan<'_>> {
    let tree = WorkTree::open(&exported.source.top)?;
    let mut changes: Vec<(TreeChange, bool)> = exported.changes()?.into_iter().map(|c| (c, false)).collect();
    changes.extend(wish.copied.undone().map(|change| (change.clone(), true)));
    changes.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
    let gone: BTreeSet<&[u8]> =
        changes.iter().filter(|(c, _)| c.new.is_none()).map(|(c, _)| c.path.as_slice()).collect();
    let mut looked = Vec::new();
    for (change, _) in &changes {
        let here = tree.look(&change.path)?;
        let obstacle = match &here {
            Here::Blocked(at) => Some(&change.path[..*at]).filter(|above| !gone.contains(above)),
            Here::Special => Some(&change.path[..]),
            Here::Directory if change.new.is_some() => {
                let keeps = |path: &Vec<u8>| !gone.contains(&path[..]);
                tree.below(&change.path)?.iter().any(keeps).then_some(&change.path[..])
            }
            _ => None,
        };
        if let Some(path) = obstacle
            && change.new.is_some()
            && !wish.copied.of_path(&change.path, &here).is_left
        {
            return Err(WorkspaceError::InTheWay(ByteString(path.to_vec())));
        }
        looked.push(here);
    }
    let present = changes.iter().zip(&looked).filter(|(_, h)| matches!(h, Here::File(_) | Here::Link(_)));
    let ours = as_added(exported, present.map(|((change, _), _)| &change.path[..]).collect())?;
    let mut items: Vec<Item> = Vec::new();
    for ((change, is_undone), here) in changes.into_iter().zip(looked) {
        let ours = ours.get(&change.path).cloned();
        let todo = judge(&change, ours.as_ref(), wish.copied.of_path(&change.path, &here), is_undone);
        if !is_undone || !matches!(todo, Todo::Nothing) {
            items.push(Item { change, is_undone, here, ours, todo });
        }
    }
    let mut plan = Plan { exported, tree, wish, items };
    plan.settle()?;
    Ok(plan)
}

/// What may be done at a path. Where the guest undid something, nothing else than that may be replaced; and what it has not
/// changed since both sides were the same stands against nothing that was done here.
fn judge(change: &TreeChange, ours: Option<&(String, String)>, known: Known, is_undone: bool) -> Todo {
    let new = change.new.as_ref();
    if ours == new || known.is_left {
        Todo::Nothing
    } else if known.is_untouched
        || (!is_undone && ours == change.old.as_ref())
        || (ours.is_some() && known.was_applied(ours))
    {
        Todo::Replace
    } else if known.was_applied(new) {
        Todo::Nothing
    } else {
        Todo::Refuse
    }
}

/// The mode and object that `git add` would make of each path; the objects are in scratch.
fn as_added(exported: &Exported, paths: Vec<&[u8]>) -> Result<BTreeMap<Vec<u8>, (String, String)>> {
    let mut found = BTreeMap::new();
    if paths.is_empty() {
        return Ok(found);
    }
    let index = exported.scratch.join("apply.index");
    let from = exported.source.git_path("index")?;
    match std::fs::copy(&from, &index) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(WorkspaceError::io("copy", from, e)),
    }
    let git = objects::scratch_git(exported)?.index(&index).setting("core.safecrlf=false");
    git.feed(&["update-index", "--add", "--replace", "-z", "--stdin"], 1 << 16, |pipe| {
        let mut pipe = std::io::BufWriter::new(pipe);
        let mut all = || {
            for path in &paths {
                pipe.write_all(path)?;
                pipe.write_all(&[0])?;
            }
            pipe.flush()
        };
        all().map_err(|e| WorkspaceError::io("write to git in", &exported.source.top, e))
    })?;
    let wanted: BTreeSet<&[u8]> = paths.into_iter().collect();
    let listing = git.output(&["ls-files", "--stage", "--full-name", "-z"], LISTING_CAP)?;
    for line in listing.split(|b| *b == 0) {
        let Some(tab) = line.iter().position(|b| *b == b'\t') else { continue };
        let text = String::from_utf8_lossy(&line[..tab]);
        if let [mode, id, _stage] = text.split(' ').collect::<Vec<_>>()[..]
            && wanted.contains(&line[tab + 1..])
        {
            found.insert(line[tab + 1..].to_vec(), (mode.to_owned(), id.to_owned()));
        }
    }
    Ok(found)
}

impl Plan<'_> {
    /// Merges what changed on both sides, or refuses it by name.
    fn settle(&mut self) -> Result<()> {
        let mut refused: Vec<ByteString> = Vec::new();
        for n in 0..self.items.len() {
            if !matches!(self.items[n].todo, Todo::Refuse) {
                continue;
            }
            if self.items[n].is_undone && self.wish.three_way {
                // What changed here since stands against nothing.
                self.items[n].todo = Todo::Nothing;
                continue;
            }
            let merged = if self.wish.three_way { self.merge(&self.items[n])? } else { None };
            match merged {
                Some(merged) => self.items[n].todo = Todo::Write(merged),
                None => refused.push(ByteString(self.items[n].change.path.clone())),
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        let repository = self.exported.source.top.clone();
        Err(match self.wish.three_way {
            true => WorkspaceError::CannotMerge { repository, paths: refused },
            false => WorkspaceError::TouchedHere { repository, paths: refused },
        })
    }

    fn merge(&self, item: &Item) -> Result<Option<Merged>> {
        let (Some(ours), Some(theirs)) = (&item.ours, &item.change.new) else { return Ok(None) };
        let is_file = |(mode, _): &(String, String)| mode != LINK && mode.as_bytes() != GITLINK;
        let base = item.change.old.as_ref();
        if !is_file(ours) || !is_file(theirs) || !base.is_none_or(is_file) {
            return Ok(None);
        }
        let raw = self.tree.read(&item.change.path, &item.here)?;
        merge::merge(self.exported, base, ours, theirs, &raw, &self.wish.vm)
    }

    /// What it does, or would do.
    #[must_use]
    pub fn summary(&self) -> ApplySummary {
        let kinds = kinds(self.exported);
        let files: Vec<AppliedFile> = self
            .items
            .iter()
            .map(|item| AppliedFile {
                path: ByteString(item.change.path.clone()),
                change: kinds.get(&item.change.path).copied().unwrap_or_else(|| item.undoing()),
                outcome: item.outcome(),
            })
            .collect();
        let conflicts = files.iter().filter(|f| f.outcome == Outcome::Conflict).count() as u64;
        let has_changes = !files.is_empty();
        ApplySummary { files, conflicts, has_changes, ..summary(self.exported) }
    }

    /// Changes the working tree. Everything new is written beside it first, and what will be
    /// replaced is kept in `refs/banger/backup/<name>`.
    ///
    /// # Errors
    /// A path that changed since it was inspected, or a failing disk: then the error says what was
    /// done so far and how to go back.
    pub fn carry_out(self) -> Result<Applied> {
        let mut summary = self.summary();
        let busy: Vec<&Item> = self.items.iter().filter(|i| !matches!(i.todo, Todo::Nothing)).collect();
        if busy.is_empty() {
            let manifest = if self.items.is_empty() { None } else { self.amended(&busy, &[], &[])? };
            return Ok(Applied { summary, manifest });
        }
        let staging = Staging::open(&self.exported.source.git_dir, &self.exported.source.top)?;
        let digests = self.stage(&staging, &busy)?;
        summary.backup = self.back_up(&busy)?;
        if self.wish.copied.has_record() {
            // Within a tick of its clock the kernel gives a later change the same times.
            std::thread::sleep(TICK);
        }
        let (mut done, mut put) = (0, vec![None; busy.len()]);
        if let Err(error) = self.change(&staging, &busy, &mut done, &mut put) {
            return Err(WorkspaceError::HalfApplied {
                repository: self.exported.source.top.clone(),
                done,
                of: busy.len(),
                backup: summary.backup,
                why: Box::new(error),
            });
        }
        let manifest = self.amended(&busy, &put, &digests)?;
        Ok(Applied { summary, manifest })
    }

    /// The manifest as if all that was replaced had been copied in like this, and with what the guest has now.
    fn amended(
        &self,
        busy: &[&Item],
        put: &[Option<Stat>],
        digests: &[[u8; 32]],
    ) -> Result<Option<Manifest>> {
        let mut rows = Vec::new();
        for (item, stat) in busy.iter().zip(put).filter(|(item, _)| matches!(item.todo, Todo::Replace)) {
            let left = match stat {
                None => Put::Gone,
                Some(stat) => {
                    let here = self.tree.look(&item.change.path)?;
                    Put::There(if here.is_put(stat) { here } else { Here::Absent })
                }
            };
            rows.push((item.change.path.clone(), left));
        }
        let known: BTreeMap<&[u8], [u8; 32]> =
            busy.iter().zip(digests).map(|(item, digest)| (&item.change.path[..], *digest)).collect();
        let digest = |path: &[u8]| known.get(path).copied().unwrap_or_default();
        let guests = self.items.iter().map(|item| (&item.change, digest(&item.change.path)));
        self.wish.copied.amended(&self.exported.scratch.join("amended"), &rows, guests)
    }

    /// Writes all that is new beside the tree. Returns the SHA-256 of what is the guest's of it, else zeros.
    fn stage(&self, staging: &Staging, busy: &[&Item]) -> Result<Vec<[u8; 32]>> {
        let mut digests = vec![[0; 32]; busy.len()];
        let mut batch = Batch::open(&self.exported.git)?;
        for (n, item) in busy.iter().enumerate() {
            let Some((mode, id)) = &item.change.new else { continue };
            let path = &item.change.path;
            if let Todo::Write(merged) = &item.todo {
                let mode = self.tree.mode_for(path, &item.here, merged.executable)?;
                staging.file(n, mode, &mut &merged.content[..])?;
            } else if mode == LINK {
                let target = batch.read(id, |content, _| {
                    let mut target = Vec::new();
                    content.read_to_end(&mut target).map(|_| Ok(target))
                })?;
                staging.link(n, &target)?;
                digests[n] = Sha256::digest(&target).into();
            } else if item.is_undone {
                let mode = self.tree.mode_for(path, &item.here, mode == "100755")?;
                digests[n] = staging.file(n, mode, &mut self.checked_out(path, id)?)?;
            } else {
                let mode = self.tree.mode_for(path, &item.here, mode == "100755")?;
                // Byte for byte what the guest has, also where git would convert it.
                let id = self.exported.raw.get(path).unwrap_or(id);
                digests[n] = batch.read(id, |content, _| Ok(staging.file(n, mode, content)))?;
            }
        }
        batch.close()?;
        Ok(digests)
    }

    /// A file of the base as a checkout makes it: with the line ends of the working tree. No filter program has to do with it.
    fn checked_out(&self, path: &[u8], id: &str) -> Result<File> {
        let to = self.exported.scratch.join("checked-out");
        let failed = |e| WorkspaceError::io("write", &to, e);
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&to);
        let file = file.map_err(failed)?;
        let place = [b"--path=", path].concat();
        let args =
            [OsStr::new("cat-file"), OsStr::new("--filters"), OsStr::from_bytes(&place), OsStr::new(id)];
        self.exported.source.git.write_file(&args, file.try_clone().map_err(failed)?)?;
        let mut file = file;
        file.rewind().map_err(failed)?;
        Ok(file)
    }

    /// A commit of what will be replaced or removed, under a ref of its own.
    fn back_up(&self, busy: &[&Item]) -> Result<Option<String>> {
        let kept: Vec<_> = busy.iter().filter_map(|i| Some((&i.change.path, i.ours.as_ref()?))).collect();
        if kept.is_empty() {
            return Ok(None);
        }
        let index = self.exported.scratch.join("backup.index");
        let git = objects::scratch_git(self.exported)?.index(&index);
        git.feed(&["update-index", "-z", "--index-info"], 1 << 16, |pipe| {
            let mut pipe = std::io::BufWriter::new(pipe);
            let mut all = || {
                for (path, (mode, id)) in &kept {
                    pipe.write_all(format!("{mode} {id}\t").as_bytes())?;
                    pipe.write_all(path)?;
                    pipe.write_all(&[0])?;
                }
                pipe.flush()
            };
            all().map_err(|e| WorkspaceError::io("write to git in", &self.exported.source.top, e))
        })?;
        let tree =
            object_id(&git.line(&["write-tree", "--missing-ok"])?).ok_or_else(|| git.odd("write-tree"))?;
        let name = format!("refs/banger/backup/{}", self.wish.name);
        let message = format!(
            "files that 'banger vm workspace apply {}' replaced\n\nTo have them back:\n\n    {}\n",
            self.wish.vm,
            restore(&name)
        );
        let commit = objects::commit(self.exported, &tree, None, &message, true)?;
        objects::keep(self.exported, &commit)?;
        objects::make_ref(self.exported, &name, &commit, "banger: backup")?;
        Ok(Some(name))
    }

    fn change(
        &self,
        staging: &Staging,
        busy: &[&Item],
        done: &mut usize,
        put: &mut [Option<Stat>],
    ) -> Result<()> {
        // The deepest first, so that a directory can make room for a file.
        for item in busy.iter().rev().filter(|i| i.change.new.is_none()) {
            if let here @ (Here::File(_) | Here::Link(_)) = &item.here {
                self.tree.remove(&item.change.path, here)?;
            }
            *done += 1;
        }
        for (n, item) in busy.iter().enumerate().filter(|(_, i)| i.change.new.is_some()) {
            put[n] = Some(self.tree.put(staging, n, &item.change.path, &item.here)?);
            *done += 1;
        }
        Ok(())
    }
}

/// The command that brings back what a backup has.
pub(crate) fn restore(backup: &str) -> String {
    format!("git restore --overlay --worktree --source={backup} -- :/")
}

/// A commit of the whole change on a new branch; working tree, index and HEAD stay as they are.
///
/// # Errors
/// A name that is none or is taken; files that only a filter program could turn into what belongs
/// in a commit; git's own failure.
pub fn to_branch(exported: &Exported, branch: &str, message: &str, dry_run: bool) -> Result<ApplySummary> {
    objects::check_branch(exported, branch)?;
    refuse_filters(exported)?;
    let mut done = committed(exported, branch);
    if dry_run || !done.has_changes {
        return Ok(done);
    }
    let base = exported.base_commit();
    let commit = objects::commit(exported, &exported.tree, base, message, false)?;
    objects::keep(exported, &commit)?;
    objects::make_ref(exported, &format!("refs/heads/{branch}"), &commit, "banger: apply")?;
    let subject = message.lines().next().unwrap_or_default();
    done.branch = Some(branch.to_owned());
    done.commits = vec![AppliedCommit { id: commit, subject: subject.into() }];
    Ok(done)
}

/// A commit holds what a filter makes of a file, and no filter runs on what a guest wrote.
fn refuse_filters(exported: &Exported) -> Result<()> {
    match exported.summary.unfiltered.first() {
        Some(path) => Err(WorkspaceError::NeedsFilter(path.clone())),
        None => Ok(()),
    }
}

/// The summary of a change that goes to a branch.
fn committed(exported: &Exported, branch: &str) -> ApplySummary {
    let files = exported.summary.files.iter().map(|file| AppliedFile {
        path: file.path.clone(),
        change: file.change,
        outcome: Outcome::Committed,
    });
    let has_changes = exported.summary.has_changes;
    let branch = Some(branch.to_owned()).filter(|_| has_changes);
    ApplySummary { files: files.collect(), branch, ..summary(exported) }
}

fn summary(exported: &Exported) -> ApplySummary {
    let from = &exported.summary;
    ApplySummary {
        target: exported.source.top.clone().into_os_string().into(),
        base_commit: from.base_commit.clone(),
        has_changes: from.has_changes,
        unfiltered: from.unfiltered.clone(),
        skipped_repositories: from.skipped_repositories,
        skipped_paths: from.skipped_paths.clone(),
        ..ApplySummary::default()
    }
}

fn kinds(exported: &Exported) -> BTreeMap<Vec<u8>, ChangeKind> {
    exported.summary.files.iter().map(|f| (f.path.as_bytes().to_vec(), f.change)).collect()
}
