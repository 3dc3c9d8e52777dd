//! In: a repository with the developer's exact state as one tar stream.
//!
//! Owns what goes along. The source is only read: whatever git has to write for it goes to a
//! scratch directory.

mod files;
mod guest_repo;
mod history;
mod index;
mod tarball;

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use banger_model::{ByteString, GuestPath, WorkspaceMode};
use banger_protocol::api::{PreparePlan, PrepareRequest};
use serde::{Deserialize, Serialize};

use self::files::{Kind, Tree};
use self::guest_repo::Head;
use self::history::History;
use self::index::Index;
use self::tarball::Tarball;
use crate::git::Git;
use crate::source::{LISTING_CAP, Source};
use crate::{Result, WorkspaceError};

/// What a capture would hold; changes nothing and needs no VM.
///
/// # Errors
/// As [`Capture::open`].
pub fn plan(request: &PrepareRequest) -> Result<PreparePlan> {
    let scratch = tempfile::Builder::new()
        .prefix("banger-plan-")
        .tempdir()
        .map_err(|e| WorkspaceError::io("make a directory in", std::env::temp_dir(), e))?;
    Ok(Survey::make(request, scratch.path())?.plan)
}

/// What was captured: kept with the VM, for export and for telling whether the host has moved on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Captured {
    /// Files, bytes, mode and depth as they were sent.
    pub plan: PreparePlan,
    /// The commit that an export diffs against; the empty tree's id when there was no commit.
    pub base_commit: String,
    /// The branch checked out in the guest; none when HEAD is detached.
    pub branch: Option<String>,
    /// The hash of object ids: `sha1` or `sha256`.
    pub object_format: String,
    /// Whether uncommitted changes went along; not so with a starting point other than HEAD.
    pub overlay: bool,
}

/// A repository, inspected and packed, ready to be streamed.
#[derive(Debug)]
pub struct Capture {
    survey: Survey,
    packs: Vec<PathBuf>,
    git_files: Vec<(&'static str, Vec<u8>)>,
    is_partial: bool,
}

impl Capture {
    /// Inspects the repository and makes, in `scratch` (an empty private directory that must live
    /// as long as this), the pack of its history and a copy of its index. The repository itself
    /// is only read.
    ///
    /// With `branch` the guest has a new branch of that name at `from` (HEAD when absent). Changes
    /// that are not committed go along only when that is the commit HEAD names.
    ///
    /// # Errors
    /// No such path, no repository, bare, submodules, an unknown revision, a mode that is not
    /// supported yet, or git's own failure.
    pub fn open(request: &PrepareRequest, scratch: &Path) -> Result<Self> {
        let survey = Survey::make(request, scratch)?;
        let dir = scratch.join("pack");
        make_dir(&dir)?;
        let source = &survey.source;
        let staged = history::staged(source, &survey.index_file, survey.commit.as_deref(), &survey.index)?;
        survey.history.pack(source, &survey.index, &staged, &dir, &scratch.join("objects"))?;
        let mut packs = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(|e| WorkspaceError::io("list", &dir, e))? {
            packs.push(entry.map_err(|e| WorkspaceError::io("list", &dir, e))?.path());
        }
        packs.sort();
        let head = Head {
            branch: survey.plan.branch.as_deref(),
            commit: survey.commit.as_deref(),
            overlay: survey.overlay,
        };
        let git_files = guest_repo::files(source, &head, &survey.history)?;
        let is_partial = source.is_partial()?;
        Ok(Self { survey, packs, git_files, is_partial })
    }

    /// What [`Self::write_tar`] will send.
    #[must_use]
    pub fn plan(&self) -> &PreparePlan {
        &self.survey.plan
    }

    /// Writes the tar stream that, unpacked into an empty directory, is the repository. Memory
    /// does not grow with the size of files. `cancelled` is asked between chunks.
    ///
    /// # Errors
    /// A file that changed, vanished or cannot be read; a writer that broke; cancellation. Then
    /// the stream has no end marker and what was unpacked must be thrown away.
    pub fn write_tar(&self, out: impl Write, cancelled: &dyn Fn() -> bool) -> Result<Captured> {
        let mut tar = Tarball::new(out);
        self.write_git(&mut tar, cancelled)?;
        let (index, bytes) = self.write_files(&mut tar, cancelled)?;
        // Last and with the present time: git takes a file as old as the index for suspicious.
        tar.file(b".git/index", 0o644, now(), &index).map_err(WorkspaceError::Stream)?;
        tar.finish().map_err(WorkspaceError::Stream)?;
        let mut plan = self.survey.plan.clone();
        plan.bytes = bytes;
        Ok(Captured {
            base_commit: plan.base_commit.clone(),
            branch: plan.branch.clone(),
            object_format: self.survey.source.object_format.clone(),
            overlay: self.survey.overlay,
            plan,
        })
    }

    fn write_git<W: Write>(&self, tar: &mut Tarball<W>, cancelled: &dyn Fn() -> bool) -> Result<()> {
        let now = now();
        for dir in
            ["", "/info", "/objects", "/objects/info", "/objects/pack", "/refs", "/refs/heads", "/refs/tags"]
        {
            tar.directory(format!(".git{dir}").as_bytes(), now).map_err(WorkspaceError::Stream)?;
        }
        for (name, data) in &self.git_files {
            tar.file(format!(".git/{name}").as_bytes(), 0o644, now, data).map_err(WorkspaceError::Stream)?;
        }
        for pack in &self.packs {
            let name = [b".git/objects/pack/", pack.file_name().unwrap_or_default().as_bytes()].concat();
            files::send_ours(pack, &name, now, tar, cancelled)?;
            if self.is_partial
                && let Some(stem) = name.strip_suffix(b".pack")
            {
                let marker = [stem, b".promisor"].concat();
                tar.file(&marker, 0o444, now, b"").map_err(WorkspaceError::Stream)?;
            }
        }
        Ok(())
    }

    /// Sends the working tree; returns the index that fits it, and the bytes.
    fn write_files<W: Write>(
        &self,
        tar: &mut Tarball<W>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(Vec<u8>, u64)> {
        let survey = &self.survey;
        let mut tree = Tree::open(&survey.tree)?;
        let mut guest = survey.index.forgetful();
        let (mut at, mut bytes, mut dirs) = (0, 0, Directories::default());
        for path in &survey.plan.files {
            let path = path.as_bytes();
            dirs.send(path, tar)?;
            // The plan's tracked files are in the index's order; its untracked ones follow.
            let mut entry = None;
            while at < survey.index.len() && survey.index.entry(at).path < path {
                at += 1;
            }
            if at < survey.index.len() && survey.index.entry(at).path == path {
                entry = Some(survey.index.entry(at));
            }
            let executable = entry.filter(|_| !survey.trust_modes).map(|e| e.executable());
            let found = tree.send(path, executable, tar, cancelled)?;
            bytes += found.stamp.size;
            if let Some(entry) = entry
                && entry.stage() == 0
                && entry.records(&found.stamp)
            {
                guest.vouch(at, found.mtime(), found.stamp.size);
            }
        }
        Ok((guest.finish(), bytes))
    }
}

/// The directories that were sent already, for paths that come sorted (untracked ones begin anew).
#[derive(Default)]
struct Directories {
    sent: HashSet<Vec<u8>>,
}

impl Directories {
    fn send<W: Write>(&mut self, path: &[u8], tar: &mut Tarball<W>) -> Result<()> {
        let Some(last) = path.iter().rposition(|b| *b == b'/') else { return Ok(()) };
        if self.sent.contains(&path[..last]) {
            return Ok(());
        }
        let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        for at in slashes {
            if self.sent.insert(path[..at].to_vec()) {
                tar.directory(&path[..at], now()).map_err(WorkspaceError::Stream)?;
            }
        }
        Ok(())
    }
}

/// A repository as it was found, before anything is packed.
#[derive(Debug)]
struct Survey {
    source: Source,
    plan: PreparePlan,
    /// The commit checked out in the guest, if there is any.
    commit: Option<String>,
    overlay: bool,
    /// Where the files are: the source's working tree, or a checkout in scratch.
    tree: PathBuf,
    index_file: PathBuf,
    index: Index,
    history: History,
    /// Whether the file system's executable bits mean something.
    trust_modes: bool,
}

impl Survey {
    fn make(request: &PrepareRequest, scratch: &Path) -> Result<Self> {
        let mode = request.mode.unwrap_or(WorkspaceMode::ShallowOverlay);
        if mode != WorkspaceMode::ShallowOverlay {
            return Err(WorkspaceError::Mode(mode));
        }
        if let (None, Some(from)) = (&request.branch, &request.from) {
            return Err(WorkspaceError::FromWithoutBranch(from.clone()));
        }
        let source = Source::find(Path::new(request.path.as_os_str()))?;
        let (commit, branch, overlay) = start(&source, request)?;
        let (index_file, objects) = (scratch.join("index"), scratch.join("objects"));
        make_dir(&objects)?;
        let tree = if overlay {
            copy_index(&source, &index_file, &objects)?;
            source.top.clone()
        } else {
            checkout(&source, commit.as_deref().unwrap_or_default(), &index_file, scratch)?
        };
        let index = Index::read(&index_file, &source.object_format)
            .map_err(|e| WorkspaceError::io("read", &index_file, e))?
            .ok_or_else(|| odd(&source, "update-index"))?;
        if let Some(entry) = index.entries().find(index::Entry::is_submodule) {
            let path = ByteString(entry.path.to_vec());
            return Err(WorkspaceError::Submodule { repository: source.top, path, mode });
        }
        let (files, bytes, skipped_untracked) = list(&source, &tree, &index, &index_file, overlay, request)?;
        let mut tips: Vec<String> = commit.iter().cloned().collect();
        if overlay {
            tips.extend(guest_repo::heads_in_progress(&source)?);
        }
        let history = History::walk(&source, tips)?;
        let plan = PreparePlan {
            source_path: source.top.clone().into_os_string().into(),
            guest_path: guest_path(request)?,
            mode,
            base_commit: commit.clone().unwrap_or_else(|| source.empty_tree().to_owned()),
            branch,
            depth: history.depth,
            files,
            bytes,
            skipped_untracked,
        };
        let trust_modes = source.setting("core.fileMode")?.as_deref() != Some(b"false");
        Ok(Self { source, plan, commit, overlay, tree, index_file, index, history, trust_modes })
    }
}

fn guest_path(request: &PrepareRequest) -> Result<GuestPath> {
    match &request.guest_path {
        Some(path) => Ok(path.clone()),
        None => "/root/repo".parse().map_err(WorkspaceError::Model),
    }
}

/// The commit and the branch to begin with, and whether the working tree goes with them.
fn start(source: &Source, request: &PrepareRequest) -> Result<(Option<String>, Option<String>, bool)> {
    let head = source.resolve("HEAD", "commit").ok();
    let current = source.git.query(&["symbolic-ref", "-q", "HEAD"], 1 << 16)?;
    let current = current.and_then(|out| {
        let name = String::from_utf8(out).ok()?;
        Some(name.trim_end_matches('\n').strip_prefix("refs/heads/")?.to_owned())
    });
    let Some(branch) = &request.branch else { return Ok((head, current, true)) };
    if branch.contains('\0')
        || source.git.query(&["check-ref-format", "--branch", branch], 1 << 16)?.is_none()
        || branch.starts_with('@')
    {
        return Err(WorkspaceError::BranchName(branch.clone()));
    }
    let commit = match &request.from {
        Some(from) => Some(source.resolve(from, "commit")?),
        None => head.clone(),
    };
    let overlay = commit == head;
    Ok((commit, Some(branch.clone()), overlay))
}

/// A copy of the source's index that git has brought up to date and made plain: no split, sparse
/// or monitored parts. Its time goes along, because git distrusts files that are as young.
fn copy_index(source: &Source, to: &Path, objects: &Path) -> Result<()> {
    let from = source.git_path("index")?;
    match File::open(&from) {
        Ok(mut file) => {
            let copying = |e| WorkspaceError::io("copy", &from, e);
            let mut copy = File::create_new(to).map_err(copying)?;
            let meta = file.metadata().map_err(copying)?;
            std::io::copy(&mut file, &mut copy).map_err(copying)?;
            copy.set_modified(meta.modified().map_err(copying)?).map_err(copying)?;
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(WorkspaceError::io("read", from, e)),
    }
    // Making a sparse index whole can make objects.
    let git = source.writing_to(objects)?.index(to);
    let args =
        ["update-index", "--index-version", "2", "-q", "--unmerged", "--force-write-index", "--refresh"];
    git.output(&args, 1 << 20)?;
    Ok(())
}

/// A clean checkout of `commit` in scratch, with its index. Returns where.
fn checkout(source: &Source, commit: &str, index_file: &Path, scratch: &Path) -> Result<PathBuf> {
    let tree = scratch.join("tree");
    make_dir(&tree)?;
    let git = Git::at(&source.git_dir, &tree).index(index_file);
    git.output(&["read-tree", "--end-of-options", commit], 1 << 16)?;
    git.output(&["checkout-index", "-a", "-q", "-u"], 1 << 20)?;
    git.output(&["update-index", "--index-version", "2", "--force-write-index", "--refresh"], 1 << 20)?;
    Ok(tree)
}

/// The files that go along, their bytes, and how many untracked ones do not.
fn list(
    source: &Source,
    tree: &Path,
    index: &Index,
    index_file: &Path,
    overlay: bool,
    request: &PrepareRequest,
) -> Result<(Vec<ByteString>, u64, u64)> {
    let (mut files, mut bytes, mut skipped) = (Vec::new(), 0, 0);
    let mut look = Tree::open(tree)?;
    let mut last: &[u8] = &[];
    for n in 0..index.len() {
        let entry = index.entry(n);
        if entry.path == last {
            continue;
        }
        last = entry.path;
        match look.look(entry.path)? {
            // Gone, or a directory is in its place: for git the file is deleted.
            None => {}
            Some(found) if found.kind == Kind::Directory => {}
            Some(found) if found.kind == Kind::Special => {
                return Err(WorkspaceError::Special(ByteString(entry.path.to_vec())));
            }
            Some(found) => {
                bytes += found.stamp.size;
                files.push(ByteString(entry.path.to_vec()));
            }
        }
    }
    if !overlay {
        return Ok((files, bytes, 0));
    }
    let git = source.git.clone().index(index_file);
    let others = git.output(&["ls-files", "-z", "--others", "--exclude-standard"], LISTING_CAP)?;
    for path in others.split(|b| *b == 0).filter(|p| !p.is_empty()) {
        // A path that ends in a slash is another repository, which git would not add either.
        let found = if path.ends_with(b"/") || !request.include_untracked { None } else { look.look(path)? };
        match found {
            Some(found) if matches!(found.kind, Kind::File { .. } | Kind::Link) => {
                bytes += found.stamp.size;
                files.push(ByteString(path.to_vec()));
            }
            _ => skipped += 1,
        }
    }
    Ok((files, bytes, skipped))
}

fn make_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(dir).map_err(|e| WorkspaceError::io("make", dir, e))
}

fn odd(source: &Source, verb: &str) -> WorkspaceError {
    WorkspaceError::GitAnswer { verb: verb.to_owned(), repository: source.top.clone() }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
