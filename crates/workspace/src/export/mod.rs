//! Out: the guest's scan becomes one inspected patch against the base.
//!
//! Owns the scratch object store and the resulting tree. No git runs where a guest wrote, and the
//! source repository is only read, as the alternate of the scratch store.

mod attributes;
mod base;
mod case;
mod convert;
#[cfg(fuzzing)]
pub mod fuzzing;
mod links;
mod path;
mod receive;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use banger_model::ByteString;
use banger_protocol::agent::scan::MAX_PATH;
use banger_protocol::api::{ChangeKind, ExportSummary, FileChange};

use self::base::arguments;
pub(crate) use self::base::{Base, BaseEntry};
use self::receive::{Change, Changes, Store, Stored};

pub(crate) use self::attributes::Batch;
pub(crate) use self::links::{Links, escapes};
pub(crate) use self::path::objection;
pub(crate) use self::receive::{GITLINK, refused};
use crate::git::Git;
use crate::source::{Source, object_id, quoted};
use crate::{Result, WorkspaceError};

/// The most that is taken from a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of changed contents.
    pub max_bytes: u64,
    /// Changed paths.
    pub max_records: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 1 << 30, max_records: MAX_CHANGES as u64 }
    }
}

/// The most paths that two trees may differ in: as many as an export takes.
pub(crate) const MAX_CHANGES: usize = 1_000_000;

/// A path whose entry differs between two trees: mode and object, before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeChange {
    pub(crate) path: Vec<u8>,
    pub(crate) old: Option<(String, String)>,
    pub(crate) new: Option<(String, String)>,
}

/// An export under way: base in the source repository, scratch object store beside it.
#[derive(Debug)]
pub struct Export {
    source: Source,
    base: String,
    scratch: PathBuf,
    git: Git,
}

/// What came out.
#[derive(Debug)]
pub struct Exported {
    /// What changed.
    pub summary: ExportSummary,
    /// The patch, in scratch; empty when nothing changed.
    pub patch: PathBuf,
    /// The resulting tree's id; its objects are in scratch and in the source.
    pub tree: String,
    /// The objects with the guest's files byte for byte, where `git add` converts them.
    pub(crate) raw: BTreeMap<Vec<u8>, String>,
    /// The repository that was compared with.
    pub(crate) source: Source,
    /// git on the scratch store.
    pub(crate) git: Git,
    /// Scratch.
    pub(crate) scratch: PathBuf,
}

impl Export {
    /// An export against `base` (a commit id or any revision of the source) with its work in
    /// `scratch` (an empty private directory). The source is only read.
    ///
    /// # Errors
    /// The source is gone or has no such revision, or git's own failure.
    pub fn new(source_repo: &Path, base: &str, scratch: &Path) -> Result<Self> {
        let source = Source::find(source_repo)?;
        // A workspace made of a repository without a commit has the empty tree for its base.
        let base = source.resolve(base, "commit").or_else(|e| source.resolve(base, "tree").map_err(|_| e))?;
        let git_dir = scratch.join("export.git");
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&git_dir)
            .map_err(|e| WorkspaceError::io("make", &git_dir, e))?;
        let git = Git::private(&git_dir);
        let format = format!("--object-format={}", source.object_format);
        git.output(&["init", "-q", "--bare", "--template=", "--initial-branch=main", &format], 1 << 16)?;
        let objects = source.git_path("objects")?;
        let alternates = git_dir.join("objects/info/alternates");
        let info = git_dir.join("objects/info");
        std::fs::create_dir_all(&info).map_err(|e| WorkspaceError::io("make", &info, e))?;
        let line = [quoted(&objects), b"\n".to_vec()].concat();
        std::fs::write(&alternates, line).map_err(|e| WorkspaceError::io("write", &alternates, e))?;
        Ok(Self { source, base, scratch: scratch.to_owned(), git })
    }

    /// The commit that the patch will apply to.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `sha1` or `sha256`, for [`banger_protocol::agent::ScanSpec`].
    #[must_use]
    pub fn object_format(&self) -> &str {
        &self.source.object_format
    }

    /// The base as `git ls-tree -r -z --full-tree` writes it: what the agent compares with.
    ///
    /// # Errors
    /// git cannot be run.
    pub fn base_listing(&self) -> Result<impl Read + Send + 'static> {
        self.source.git.stream(&arguments(&self.base))
    }

    /// Reads the guest's records up to their end mark, inspects them and makes the patch. To be
    /// called once.
    ///
    /// # Errors
    /// A path, link, size or record that is refused, with the path; a broken stream; git's own
    /// failure.
    pub fn receive(&self, records: impl Read, limits: &Limits) -> Result<Exported> {
        let base = Base::list(&self.source.git, &self.base)?;
        let mut store = Store::new(&self.git, self.scratch.join("marks"));
        let changes = receive::read(records, limits, &base, &mut store)?;
        let stored = store.close()?;
        self.check_links(&changes, &base)?;
        if case::folds(&self.source.top) {
            case::check(&changes, &base)?;
        }
        let ids = self.blobs(&changes, &stored);
        let index = self.scratch.join("export.index");
        let tree = self.write_tree(&index, &changes, &ids)?;
        let converted = attributes::convert(self, &index, &changes, &base, &stored)?;
        let (tree, raw) = if converted.ids.is_empty() {
            (tree, BTreeMap::new())
        } else {
            let raw =
                converted.ids.keys().filter_map(|path| Some((path.clone(), ids.get(&path[..])?.clone())));
            let raw = raw.collect();
            let mut clean = ids;
            clean.extend(converted.ids.iter().map(|(path, id)| (&path[..], id.clone())));
            (self.write_tree(&index, &changes, &clean)?, raw)
        };
        drop((base, changes, stored));
        let patch = self.write_patch(&tree, limits)?;
        let meta = std::fs::metadata(&patch).map_err(|e| WorkspaceError::io("look at", &patch, e))?;
        let files = self.summary(&tree)?;
        let mut unfiltered = converted.unfiltered;
        unfiltered.retain(|path| files.binary_search_by(|f| f.path.cmp(path)).is_ok());
        let summary = ExportSummary {
            base_commit: self.base.clone(),
            has_changes: !files.is_empty(),
            files,
            patch_bytes: meta.len(),
            unfiltered,
            skipped_repositories: 0,
            skipped_paths: Vec::new(),
        };
        Ok(Exported {
            summary,
            patch,
            tree,
            raw,
            source: self.source.clone(),
            git: self.git.clone(),
            scratch: self.scratch.clone(),
        })
    }

    /// The object of each path that has one.
    fn blobs<'a>(&self, changes: &'a Changes, stored: &Stored) -> BTreeMap<&'a [u8], String> {
        let blob = |(path, change): (&'a Vec<u8>, &Change)| {
            let (Change::File { mark, .. } | Change::Link { mark, .. }) = change else { return None };
            Some((&path[..], stored.of(*mark)?.0.to_owned()))
        };
        changes.iter().filter_map(blob).collect()
    }

    fn write_patch(&self, tree: &str, limits: &Limits) -> Result<PathBuf> {
        let patch = self.scratch.join("export.patch");
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&patch)
            .map_err(|e| WorkspaceError::io("write", &patch, e))?;
        let mut args = vec!["diff-tree", "-p", "--binary", "--full-index", "--no-ext-diff", "--no-textconv"];
        args.extend(["--no-color", "--src-prefix=a/", "--dst-prefix=b/"]);
        self.git.clone().holding(limits.max_bytes).write_file(&self.compare(&mut args, tree), file)?;
        Ok(patch)
    }

    fn compare<'a>(&'a self, args: &mut Vec<&'a str>, tree: &'a str) -> Vec<&'a str> {
        args.extend(["-r", "--no-renames", "--end-of-options", &self.base, tree, "--"]);
        std::mem::take(args)
    }

    /// Refuses links that lead out of the repository, unless they did so in the base.
    fn check_links(&self, changes: &Changes, base: &Base) -> Result<()> {
        let is_link = |path: &[u8]| base.get(path).is_some_and(|e| e.mode == b"120000");
        if !changes.iter().any(|(path, change)| matches!(change, Change::Link { .. }) || is_link(path)) {
            return Ok(());
        }
        links::check(&links_of(&self.source.git, base)?, changes)
    }

    /// The resulting tree, made in a scratch index and the scratch store.
    fn write_tree(&self, index: &Path, changes: &Changes, ids: &BTreeMap<&[u8], String>) -> Result<String> {
        let git = self.git.clone().index(index);
        git.output(&["read-tree", "--end-of-options", &self.base], 1 << 16)?;
        let none = "0".repeat(self.base.len());
        git.feed(&["update-index", "-z", "--index-info"], 1 << 16, |pipe| {
            let mut pipe = std::io::BufWriter::new(pipe);
            let mut write = |mode: u32, id: &str, path: &[u8]| {
                pipe.write_all(format!("{mode:o} {id}\t").as_bytes())?;
                pipe.write_all(path)?;
                pipe.write_all(&[0])
            };
            // Deletions first: a directory can then take a file's place, and the reverse.
            let gone = changes.iter().filter(|(_, c)| **c == Change::Deleted);
            let mut done = gone.into_iter().try_for_each(|(path, _)| write(0, &none, path));
            for (path, change) in changes {
                let mode = match change {
                    Change::File { mode, .. } => *mode,
                    Change::Link { .. } => receive::LINK,
                    Change::Deleted => continue,
                };
                if let (Ok(()), Some(id)) = (&done, ids.get(&path[..])) {
                    done = write(mode, id, path);
                }
            }
            done.and_then(|()| pipe.flush())
                .map_err(|e| WorkspaceError::io("write to git in", &self.scratch, e))
        })?;
        let line = git.line(&["write-tree", "--missing-ok"])?;
        object_id(&line).ok_or_else(|| self.odd("write-tree"))
    }

    fn summary(&self, tree: &str) -> Result<Vec<FileChange>> {
        let changes = compare(&self.git, &self.base, tree, MAX_CHANGES)?;
        Ok(changes
            .into_iter()
            .map(|change| FileChange { change: change.kind(), path: ByteString(change.path) })
            .collect())
    }

    fn odd(&self, verb: &str) -> WorkspaceError {
        WorkspaceError::GitAnswer { verb: verb.to_owned(), repository: self.source.top.clone() }
    }
}

impl Exported {
    /// Adds what the agent says of repositories within the workspace. It says what it likes: the
    /// number and the names are shown, nothing more.
    pub fn note_repositories(&mut self, count: u64, some: Vec<ByteString>) {
        self.summary.skipped_repositories = count;
        self.summary.skipped_paths = some;
        self.summary.skipped_paths.truncate(10);
        self.summary.skipped_paths.retain(|path| path.as_bytes().len() <= MAX_PATH);
    }

    /// The base, unless it is the empty tree of a repository without a commit.
    #[must_use]
    pub fn base_commit(&self) -> Option<&str> {
        Some(&self.summary.base_commit[..]).filter(|base| *base != self.source.empty_tree())
    }

    /// Every path of the change.
    pub(crate) fn changes(&self) -> Result<Vec<TreeChange>> {
        self.compare_trees(&self.summary.base_commit, &self.tree, MAX_CHANGES)
    }

    /// What differs between two trees, at most `most` paths: a tree of a few objects can have more than there is
    /// memory for.
    pub(crate) fn compare_trees(&self, before: &str, after: &str, most: usize) -> Result<Vec<TreeChange>> {
        compare(&self.git, before, after, most)
    }
}

impl TreeChange {
    pub(crate) fn kind(&self) -> ChangeKind {
        match (&self.old, &self.new) {
            (None, _) => ChangeKind::Added,
            (_, None) => ChangeKind::Deleted,
            (Some((was, _)), Some((is, _))) if was.get(..3) != is.get(..3) => ChangeKind::Typechange,
            (Some((_, old)), Some((_, new))) if old == new => ChangeKind::Mode,
            _ => ChangeKind::Modified,
        }
    }
}

/// What differs between two trees, in git's order.
fn compare(git: &Git, before: &str, after: &str, most: usize) -> Result<Vec<TreeChange>> {
    let args = [
        "diff-tree",
        "--raw",
        "-z",
        "--no-abbrev",
        "-r",
        "--no-renames",
        "--end-of-options",
        before,
        after,
        "--",
    ];
    let failed = |e| WorkspaceError::io("read git's output in", git.dir(), e);
    let mut out = BufReader::new(git.stream(&args)?);
    let mut changes = Vec::new();
    let mut field = |field: &mut Vec<u8>| {
        field.clear();
        out.read_until(0, field).map_err(failed)?;
        Ok(field.pop().is_some())
    };
    let (mut what, mut path) = (Vec::new(), Vec::new());
    while field(&mut what)? && field(&mut path)? {
        if changes.len() >= most {
            return Err(WorkspaceError::TooMuch {
                limit: most as u64,
                what: "paths",
                path: ByteString(path),
            });
        }
        let text = String::from_utf8_lossy(&what);
        let words: Vec<&str> = text.strip_prefix(':').unwrap_or_default().split(' ').collect();
        let [old_mode, new_mode, old, new, _status] = words[..] else { return Err(git.odd("diff-tree")) };
        let entry = |mode: &str, id: &str| (mode != "000000").then(|| (mode.to_owned(), id.to_owned()));
        changes.push(TreeChange { path: path.clone(), old: entry(old_mode, old), new: entry(new_mode, new) });
    }
    Ok(changes)
}

/// The links of a tree.
pub(crate) fn tree_links(git: &Git, tree: &str) -> Result<Links> {
    links_of(git, &Base::list(git, tree)?)
}

fn links_of(git: &Git, base: &Base) -> Result<Links> {
    let mut links = Links::new();
    let mut batch = None;
    for entry in base.entries().filter(|e| e.mode == b"120000") {
        let batch = match &mut batch {
            Some(batch) => batch,
            none => none.insert(Batch::open(git)?),
        };
        let id = String::from_utf8_lossy(entry.id).into_owned();
        links.insert(entry.path.to_vec(), link_target(batch, entry.path, &id)?);
    }
    batch.map_or(Ok(()), Batch::close)?;
    Ok(links)
}

/// A link's target, which is at most as long as one can be.
pub(crate) fn link_target(batch: &mut Batch, path: &[u8], id: &str) -> Result<Vec<u8>> {
    batch.read(id, |content, size| {
        if size > path::MAX_TARGET {
            return Ok(Err(refused(path, "no symbolic link has a target of that length")));
        }
        let mut target = Vec::new();
        content.read_to_end(&mut target).map(|_| Ok(target))
    })
}
