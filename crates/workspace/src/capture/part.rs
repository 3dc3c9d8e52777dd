//! One repository of a capture as it was found: the one asked for, or a submodule of it.
//!
//! Owns what is checked out in the guest and which files go with it. Reads the source only.

use std::fs::File;
use std::path::{Path, PathBuf};

use banger_model::{ByteString, WorkspaceMode};
use banger_protocol::api::PrepareRequest;

use super::guest_repo;
use super::history::History;
use super::index::Index;
use super::manifest::PartFacts;
use super::refs::Refs;
use super::submodules::Place;
use crate::git::Git;
use crate::settings::Settings;
use crate::source::Source;
use crate::watch::open_regular;
use crate::{Result, WorkspaceError};

/// How often a repository that is committed to while it is looked at is looked at again.
const TRIES: u32 = 4;

/// A repository, surveyed.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) place: Place,
    pub(crate) source: Source,
    pub(crate) settings: Settings,
    pub(crate) start: Start,
    /// Where the files are: the source's working tree, or a checkout in scratch.
    pub(crate) tree: PathBuf,
    pub(crate) index_file: PathBuf,
    pub(crate) index: Index,
    /// The source's index file, before it was copied.
    pub(crate) index_state: [i64; 4],
    pub(crate) history: History,
    pub(crate) refs: Refs,
    pub(crate) mode: WorkspaceMode,
    pub(crate) scratch: PathBuf,
}

/// What the guest's repository begins with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Start {
    /// The commit checked out in the guest, if there is any.
    pub(crate) commit: Option<String>,
    /// The branch checked out there; none when HEAD is detached.
    pub(crate) branch: Option<String>,
    /// Whether that branch is made for the guest.
    pub(crate) is_new: bool,
    /// Whether the working tree goes along as it is.
    pub(crate) overlay: bool,
    /// The host's own.
    pub(crate) host_commit: Option<String>,
    pub(crate) host_branch: Option<String>,
}

impl Part {
    /// Looks at a repository. `scratch` is an empty directory of its own.
    pub(crate) fn survey(
        source: Source,
        place: Place,
        request: &PrepareRequest,
        scratch: &Path,
        base: Option<&PartFacts>,
    ) -> Result<Self> {
        let mode = request.mode.unwrap_or(WorkspaceMode::ShallowOverlay);
        let settings = Settings::read(&source.git)?;
        let (index_file, objects) = (scratch.join("index"), scratch.join("objects"));
        make_dir(&objects)?;
        let mut tries = 0;
        let (start, index_state) = loop {
            let start = Start::of(&source, request)?;
            let index_state =
                if start.overlay { copy_index(&source, &index_file, &objects)? } else { [0; 4] };
            // An index of one commit and a HEAD of another would look like changes.
            let (commit, branch) = head(&source)?;
            if (&commit, &branch) == (&start.host_commit, &start.host_branch) {
                break (start, index_state);
            }
            tries += 1;
            if tries == TRIES {
                return Err(WorkspaceError::Changed(ByteString(b"HEAD".to_vec())));
            }
        };
        let tree = match start.overlay {
            true => source.top.clone(),
            false => checkout(&source, start.commit.as_deref().unwrap_or_default(), &index_file, scratch)?,
        };
        if mode == WorkspaceMode::MetadataOnly {
            skip_all(&source, &index_file, &objects)?;
        }
        let index = read_index(&source, &index_file)?;
        if let Some(entry) = index.entries().find(super::index::Entry::is_submodule)
            && mode != WorkspaceMode::FullCopy
        {
            let path = ByteString(entry.path.to_vec());
            return Err(WorkspaceError::Submodule { repository: source.top, path, mode });
        }
        let (refs, history) = refs_and_history(&source, &settings, &start, mode, base)?;
        let scratch = scratch.to_owned();
        Ok(Self {
            place,
            source,
            settings,
            start,
            tree,
            index_file,
            index,
            index_state,
            history,
            refs,
            mode,
            scratch,
        })
    }

    /// Whether the file system's executable bits mean something.
    pub(crate) fn trust_modes(&self) -> bool {
        !self.settings.is_off("core.filemode")
    }

    /// git with the index of this capture.
    pub(crate) fn git(&self) -> Git {
        self.source.git.clone().index(&self.index_file)
    }

    /// A path of this repository, below the workspace.
    pub(crate) fn full(&self, path: &[u8]) -> Vec<u8> {
        [&self.place.prefix[..], path].concat()
    }
}

impl Start {
    fn of(source: &Source, request: &PrepareRequest) -> Result<Self> {
        let (host_commit, host_branch) = head(source)?;
        let mut start = Self {
            commit: host_commit.clone(),
            branch: host_branch.clone(),
            is_new: false,
            overlay: true,
            host_commit,
            host_branch,
        };
        let Some(branch) = &request.branch else { return Ok(start) };
        if branch.contains('\0')
            || source.git.query(&["check-ref-format", "--branch", branch], 1 << 16)?.is_none()
            || branch.starts_with('@')
        {
            return Err(WorkspaceError::BranchName(branch.clone()));
        }
        if let Some(from) = &request.from {
            start.commit = Some(source.resolve(from, "commit")?);
        }
        start.is_new = true;
        start.overlay = start.commit == start.host_commit;
        start.branch = Some(branch.clone());
        Ok(start)
    }
}

/// The host's commit and branch.
pub(crate) fn head(source: &Source) -> Result<(Option<String>, Option<String>)> {
    let commit = source.resolve("HEAD", "commit").ok();
    let current = source.git.query(&["symbolic-ref", "-q", "HEAD"], 1 << 16)?;
    let branch = current.and_then(|out| {
        let name = String::from_utf8(out).ok()?;
        Some(name.trim_end_matches('\n').strip_prefix("refs/heads/")?.to_owned())
    });
    Ok((commit, branch))
}

fn refs_and_history(
    source: &Source,
    settings: &Settings,
    start: &Start,
    mode: WorkspaceMode,
    base: Option<&PartFacts>,
) -> Result<(Refs, History)> {
    let commit = start.commit.as_deref();
    let mut tips: Vec<String> = commit.map(str::to_owned).into_iter().collect();
    if start.overlay {
        tips.extend(guest_repo::heads_in_progress(source)?);
    }
    let refs = match mode {
        WorkspaceMode::FullCopy => Refs::all(source, start)?,
        _ => Refs::near(source, settings, start)?,
    };
    tips.extend(refs.objects.values().cloned());
    let mut seen = std::collections::HashSet::new();
    tips.retain(|tip| seen.insert(tip.clone()));
    let history = match mode {
        WorkspaceMode::FullCopy => History::whole(source, commit, tips)?,
        _ => {
            let (there, cut) = base.map_or((&[][..], &[][..]), |b| (&b.commits[..], &b.shallow[..]));
            History::bounded(source, commit, tips, there, cut)?
        }
    };
    Ok((refs, history))
}

/// A copy of the source's index that git has brought up to date and made plain: no split, sparse
/// or monitored parts. Its time goes along, because git distrusts files that are as young. Returns
/// the original's state.
fn copy_index(source: &Source, to: &Path, objects: &Path) -> Result<[i64; 4]> {
    let from = source.git_dir.join("index");
    let copying = |e| WorkspaceError::io("copy", &from, e);
    // An earlier try may have left one.
    let _ = std::fs::remove_file(to);
    let mut state = [0; 4];
    if let Some(mut file) = open_regular(&from).map_err(copying)? {
        let mut copy = File::create_new(to).map_err(copying)?;
        let meta = file.metadata().map_err(copying)?;
        state = index_state(&meta);
        std::io::copy(&mut file, &mut copy).map_err(copying)?;
        copy.set_modified(meta.modified().map_err(copying)?).map_err(copying)?;
    }
    // Making a sparse index whole can make objects.
    let git = source.writing_to(objects)?.index(to);
    let args =
        ["update-index", "--index-version", "2", "-q", "--unmerged", "--force-write-index", "--refresh"];
    git.output(&args, 1 << 20)?;
    Ok(state)
}

/// What tells one state of an index file from another.
pub(crate) fn index_state(meta: &std::fs::Metadata) -> [i64; 4] {
    use std::os::unix::fs::MetadataExt;
    let ns = |s: i64, ns: i64| s.wrapping_mul(1_000_000_000).wrapping_add(ns);
    let (mtime, ctime) = (ns(meta.mtime(), meta.mtime_nsec()), ns(meta.ctime(), meta.ctime_nsec()));
    [mtime, ctime, meta.ino().cast_signed(), meta.size().cast_signed()]
}

/// A clean checkout of `commit` in scratch, with its index. Returns where.
fn checkout(source: &Source, commit: &str, index_file: &Path, scratch: &Path) -> Result<PathBuf> {
    let tree = scratch.join("tree");
    make_dir(&tree)?;
    let git = Git::at(&source.git_dir, &tree).watching(source.git.cancel()).index(index_file);
    git.output(&["read-tree", "--end-of-options", commit], 1 << 16)?;
    git.output(&["checkout-index", "-a", "-q", "-u"], 1 << 20)?;
    git.output(&["update-index", "--index-version", "2", "--force-write-index", "--refresh"], 1 << 20)?;
    Ok(tree)
}

/// Marks every entry as one whose file is not there on purpose. A conflict's cannot be.
fn skip_all(source: &Source, index_file: &Path, objects: &Path) -> Result<()> {
    let index = read_index(source, index_file)?;
    let git = source.writing_to(objects)?.index(index_file).setting("core.sparseCheckout=false");
    let args = ["update-index", "-z", "--force-write-index", "--skip-worktree", "--stdin"];
    git.feed(&args, 1 << 20, |pipe| {
        for entry in index.entries().filter(|e| e.stage() == 0) {
            let path = [entry.path, b"\0"].concat();
            pipe.write_all(&path).map_err(|e| WorkspaceError::io("write to git in", &source.top, e))?;
        }
        Ok(())
    })?;
    Ok(())
}

fn read_index(source: &Source, file: &Path) -> Result<Index> {
    Index::read(file, &source.object_format)
        .map_err(|e| WorkspaceError::io("read", file, e))?
        .ok_or_else(|| source.git.odd("update-index"))
}

pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(dir).map_err(|e| WorkspaceError::io("make", dir, e))
}
