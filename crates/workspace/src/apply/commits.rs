//! The guest's commits as commits of the host's repository.
//!
//! Owns their inspection: the guest's pack is taken apart in scratch, every tree is made anew from
//! entries that were looked at one by one, and every commit is written anew from its author, dates,
//! message and parents; signatures and other headers stay behind. Must never keep a guest's object
//! that was not made again from inspected parts.

use std::collections::HashMap;
use std::io::{Read, Write};

use banger_model::ByteString;
use banger_protocol::api::{AppliedCommit, ApplySummary};

use super::{committed, objects, trees};
use crate::export::{
    Batch, Exported, GITLINK, Links, MAX_CHANGES, TreeChange, escapes, objection, refused, tree_links,
};
use crate::git::Git;
use crate::source::object_id;
use crate::{Result, WorkspaceError};

/// The most commits that are brought at once.
pub const MAX_COMMITS: usize = 1000;
/// The most paths that all commits together may change.
const MAX_PATHS: usize = 200_000;
/// The largest commit object, bytes.
const MAX_COMMIT: u64 = 1 << 20;

/// The guest's commits, in scratch and not believed yet.
#[derive(Debug)]
pub struct Arrived<'a> {
    exported: &'a Exported,
    tip: String,
}

/// A commit that was written anew.
struct Anew {
    id: String,
    tree: String,
    links: Links,
}

/// What is kept of a commit object.
struct Parts {
    tree: String,
    parents: Vec<String>,
    people: Vec<Vec<u8>>,
    message: Vec<u8>,
}

impl<'a> Arrived<'a> {
    /// Takes the pack that the guest's git made of `base..tip`, at most `max_bytes`. git checks
    /// that it is whole and that each object is what its id says.
    ///
    /// # Errors
    /// A pack that is too large, broken, or of objects that no git would make.
    pub fn receive(
        exported: &'a Exported,
        pack: impl Read + Send,
        tip: &str,
        max_bytes: u64,
    ) -> Result<Self> {
        let tip = object_id(tip.as_bytes())
            .filter(|id| id.len() == exported.tree.len())
            .ok_or_else(|| WorkspaceError::Malformed("its HEAD is not a commit's id".into()))?;
        let limit = format!("--max-input-size={max_bytes}");
        let args = ["index-pack", "--stdin", "--fix-thin", "--strict", &limit];
        let git = exported.git.clone().setting("core.bigFileThreshold=1m").setting("pack.threads=1");
        let mut pack = pack;
        let taken = git.feed(&args, 1 << 16, |pipe| {
            std::io::copy(&mut pack, pipe).map(drop).map_err(WorkspaceError::GuestStream)
        });
        taken.map_err(|e| match e {
            WorkspaceError::Git { message, .. } if message.contains("exceeds maximum") => {
                WorkspaceError::TooMuch { limit: max_bytes, what: "bytes", path: "its commits".into() }
            }
            WorkspaceError::Git { message, .. } => {
                WorkspaceError::Malformed(format!("git does not take its commits: {message}"))
            }
            other => other,
        })?;
        Ok(Self { exported, tip })
    }

    /// Inspects each commit and puts them on a new branch, oldest first.
    ///
    /// # Errors
    /// A path, link or submodule that is refused, by name; a parent that the host does not have.
    pub fn to_branch(self, branch: &str, dry_run: bool) -> Result<ApplySummary> {
        objects::check_branch(self.exported, branch)?;
        super::refuse_filters(self.exported)?;
        let (made, last) = self.make_anew()?;
        let mut done = committed(self.exported, branch);
        done.has_changes = !made.is_empty();
        done.branch = done.has_changes.then(|| branch.to_owned());
        done.uncommitted =
            self.exported.compare_trees(&self.tip, &self.exported.tree, MAX_CHANGES)?.len() as u64;
        done.commits = made;
        if let Some(last) = last
            && !dry_run
        {
            objects::keep(self.exported, &last)?;
            objects::make_ref(self.exported, &format!("refs/heads/{branch}"), &last, "banger: apply")?;
        }
        Ok(done)
    }

    fn make_anew(&self) -> Result<(Vec<AppliedCommit>, Option<String>)> {
        let git = &self.exported.git;
        let mut args = vec!["rev-list", "--reverse", "--topo-order", "--end-of-options", &self.tip];
        let not = self.exported.base_commit().map(|base| format!("^{base}"));
        args.extend(not.as_deref());
        args.push("--");
        let list = git.query(&args, 1 << 24)?.ok_or_else(|| {
            WorkspaceError::Malformed("its commits do not lead back to one that the host has".into())
        })?;
        let ids: Vec<String> = list.split(|b| *b == b'\n').filter_map(object_id).collect();
        if ids.len() > MAX_COMMITS {
            let limit = MAX_COMMITS as u64;
            return Err(WorkspaceError::TooMuch { limit, what: "commits", path: "its history".into() });
        }
        let mut known: HashMap<String, Anew> = HashMap::new();
        let (mut made, mut last, mut left) = (Vec::new(), None, MAX_PATHS);
        for id in ids {
            let parts = read_commit(git, &id)?;
            let anew = self.one(&parts, &mut known, &mut left)?;
            let subject = parts.message.split(|b| *b == b'\n').next().unwrap_or_default();
            made.push(AppliedCommit { id: anew.id.clone(), subject: ByteString(subject.to_vec()) });
            last = Some(anew.id.clone());
            known.insert(id, anew);
        }
        Ok((made, last))
    }

    /// Makes one commit anew; its parents are made already, or the host's own. It may change `left` paths.
    fn one(&self, parts: &Parts, known: &mut HashMap<String, Anew>, left: &mut usize) -> Result<Anew> {
        let git = &self.exported.git;
        for parent in &parts.parents {
            if !known.contains_key(parent) {
                let (id, tree) = self.hosts_own(parent)?;
                let links = tree_links(git, &tree)?;
                known.insert(parent.clone(), Anew { id, tree, links });
            }
        }
        let first = parts.parents.first().and_then(|p| known.get(p));
        let before = first.map_or_else(|| self.exported.source.empty_tree().to_owned(), |p| p.tree.clone());
        let mut links = first.map(|p| p.links.clone()).unwrap_or_default();
        let changes = trees::compare(git, &before, &parts.tree, *left)?;
        *left -= changes.len();
        self.inspect(&changes, &mut links)?;
        let tree = self.tree_anew(&before, &changes)?;
        if tree != parts.tree {
            return Err(WorkspaceError::Malformed("a commit's tree is not in git's order".into()));
        }
        let mut text = format!("tree {tree}\n").into_bytes();
        for parent in parts.parents.iter().filter_map(|p| known.get(p)) {
            text.extend(format!("parent {}\n", parent.id).into_bytes());
        }
        for line in &parts.people {
            text.extend([line, &b"\n"[..]].concat());
        }
        text.push(b'\n');
        text.extend_from_slice(&parts.message);
        let out = git.feed(&["hash-object", "-t", "commit", "-w", "--stdin"], 1 << 12, |pipe| {
            pipe.write_all(&text).map_err(|e| WorkspaceError::io("write to git in", git.dir(), e))
        })?;
        let id = object_id(&out).ok_or_else(|| git.odd("hash-object"))?;
        Ok(Anew { id, tree, links })
    }

    /// A commit that the host has itself, and its tree.
    fn hosts_own(&self, id: &str) -> Result<(String, String)> {
        let source = &self.exported.source;
        let missing =
            |_| WorkspaceError::Malformed(format!("a commit's parent {id} is not in the host's repository"));
        let commit = source.resolve(id, "commit").map_err(missing)?;
        let tree = source.resolve(id, "tree").map_err(missing)?;
        Ok((commit, tree))
    }

    fn inspect(&self, changes: &[TreeChange], links: &mut Links) -> Result<()> {
        let before = links.clone();
        let mut batch = Batch::open(&self.exported.git)?;
        for change in changes {
            let path = &change.path;
            if let Some(why) = objection(path) {
                return Err(refused(path, why));
            }
            links.remove(path);
            for (mode, id) in change.old.iter().chain(&change.new) {
                if mode.as_bytes() == GITLINK {
                    return Err(WorkspaceError::SubmoduleChanged(ByteString(path.clone())));
                }
                if !matches!(&mode[..], "100644" | "100755" | "120000" | "100664") {
                    return Err(refused(path, "its mode is none that git writes"));
                }
                if mode == "120000" && change.new.as_ref().is_some_and(|new| new.1 == *id) {
                    let target = crate::export::link_target(&mut batch, path, id)?;
                    links.insert(path.clone(), target);
                }
            }
        }
        batch.close()?;
        if before == *links {
            return Ok(());
        }
        for (path, target) in &*links {
            let was_so = before.get(path) == Some(target) && escapes(&before, path);
            if !was_so && escapes(links, path) {
                return Err(refused(path, "the symbolic link leads out of the repository"));
            }
        }
        Ok(())
    }

    /// The tree made of its predecessor and inspected entries.
    fn tree_anew(&self, before: &str, changes: &[TreeChange]) -> Result<String> {
        let git = self.exported.git.clone().index(&self.exported.scratch.join("commits.index"));
        git.output(&["read-tree", before], 1 << 16)?;
        let none = "0".repeat(before.len());
        git.feed(&["update-index", "-z", "--index-info"], 1 << 16, |pipe| {
            let mut pipe = std::io::BufWriter::new(pipe);
            let (gone, new): (Vec<_>, Vec<_>) = changes.iter().partition(|c| c.new.is_none());
            let all = || {
                for change in gone.into_iter().chain(new) {
                    let (mode, id) = change.new.as_ref().map_or(("0", &none[..]), |(m, i)| (m, i));
                    pipe.write_all(format!("{mode} {id}\t").as_bytes())?;
                    pipe.write_all(&change.path)?;
                    pipe.write_all(&[0])?;
                }
                pipe.flush()
            };
            all().map_err(|e| WorkspaceError::io("write to git in", &self.exported.scratch, e))
        })?;
        object_id(&git.line(&["write-tree", "--missing-ok"])?).ok_or_else(|| git.odd("write-tree"))
    }
}

fn read_commit(git: &Git, id: &str) -> Result<Parts> {
    let text = git.output(&["cat-file", "commit", id], MAX_COMMIT)?;
    let odd = || WorkspaceError::Malformed("a commit that git cannot have made".into());
    let end = text.windows(2).position(|pair| pair == b"\n\n").ok_or_else(odd)?;
    let mut parts = Parts {
        tree: String::new(),
        parents: Vec::new(),
        people: Vec::new(),
        message: text[end + 2..].to_vec(),
    };
    for line in text[..end].split(|b| *b == b'\n') {
        let Some(space) = line.iter().position(|b| *b == b' ') else { continue };
        match &line[..space] {
            b"tree" => parts.tree = object_id(&line[space + 1..]).ok_or_else(odd)?,
            b"parent" => parts.parents.push(object_id(&line[space + 1..]).ok_or_else(odd)?),
            b"author" | b"committer" | b"encoding" => parts.people.push(line.to_vec()),
            // A signature would be of another commit; other headers are not ours to repeat.
            _ => {}
        }
    }
    if parts.tree.is_empty() { Err(odd()) } else { Ok(parts) }
}
