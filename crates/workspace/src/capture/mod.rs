//! In: a repository with the developer's exact state as one tar stream.
//!
//! Owns what goes along. The source is only read: whatever git has to write for it goes to a
//! scratch directory.

mod changes;
mod drift;
mod files;
mod guest_repo;
mod history;
mod index;
mod list;
mod manifest;
mod pack;
mod part;
mod refs;
mod send;
mod submodules;
mod tarball;

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use banger_model::{ByteString, GuestPath, WorkspaceMode};
use banger_protocol::api::{PreparePlan, PrepareRequest};

pub use self::drift::Drift;
pub(crate) use self::files::{Found, TICK};
use self::list::Listing;
pub use self::manifest::Manifest;
pub(crate) use self::manifest::{Row, digest_state, state};
use self::pack::{Order, Packing};
use self::part::Part;
use self::submodules::Place;
use crate::source::Source;
use crate::{Cancel, Result, WorkspaceError};

/// The most repositories in one capture.
const MOST: usize = 10_000;

/// What a capture would hold; changes nothing and needs no VM.
///
/// # Errors
/// As [`Capture::open`].
pub fn plan(request: &PrepareRequest, cancel: &Cancel) -> Result<PreparePlan> {
    let scratch = tempfile::Builder::new()
        .prefix("banger-plan-")
        .tempdir()
        .map_err(|e| WorkspaceError::io("make a directory in", std::env::temp_dir(), e))?;
    let options = Options { cancel: cancel.clone(), ..Options::default() };
    Ok(Survey::make(request, scratch.path(), &options)?.plan)
}

/// How to capture.
#[derive(Debug, Clone, Default)]
pub struct Options<'a> {
    /// Who may no longer want it.
    pub cancel: Cancel,
    /// What the guest has from an earlier capture: only the difference will be written. It is of no use, and not used, when it is
    /// of another repository, mode, guest path or set of submodules.
    pub base: Option<&'a Manifest>,
    /// Whether to send all history again: the guest no longer has the packs of [`Changes::packs`].
    pub resend_history: bool,
    /// What the copy calls itself in the guest: another word each time.
    pub name: &'a str,
}

/// What was captured: kept with the VM, for export and for telling whether the host has moved on.
#[derive(Debug, Clone, PartialEq)]
pub struct Captured {
    /// Files, bytes, mode and depth of the whole workspace.
    pub plan: PreparePlan,
    /// The commit that an export diffs against; the empty tree's id when there was no commit.
    pub base_commit: String,
    /// The branch checked out in the guest; none when HEAD is detached.
    pub branch: Option<String>,
    /// The hash of object ids: `sha1` or `sha256`.
    pub object_format: String,
    /// Whether uncommitted changes went along; not so with a starting point other than HEAD.
    pub overlay: bool,
    /// What was sent, for the next time; in scratch until it is kept.
    pub manifest: Manifest,
}

/// What the guest had at a path when an apply brought it here: a file (0), an executable one (1), a link (2) or nothing (3), and
/// the SHA-256 of the content, zeros when it is not known.
pub type Applied = (u8, [u8; 32]);

/// The difference that is sent to a guest which has an earlier capture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Paths below the workspace that the stream writes: new or other than they were.
    pub replaced: Vec<ByteString>,
    /// Paths below the workspace that are gone: to be removed before the stream is unpacked, with
    /// the directories that become empty.
    pub removed: Vec<ByteString>,
    /// The same in git directories; some may not be there.
    pub git_removed: Vec<ByteString>,
    /// Packs sent earlier, that what is sent now leans on: paths below the workspace.
    pub packs: Vec<ByteString>,
    /// What `.git/HEAD` held after the earlier capture.
    pub head: ByteString,
    /// The branch that was checked out, and its commit.
    pub branch: Option<(String, String)>,
    /// The index of each repository.
    pub indexes: Vec<GitChange>,
    /// git's small files that are written or removed, but for the outermost `HEAD`.
    pub git_files: Vec<GitChange>,
    /// The bytes of the files in `replaced`.
    pub bytes: u64,
    /// Of the paths to be written or removed, those that an apply brought here since the earlier capture.
    pub applied: BTreeMap<Vec<u8>, Applied>,
}

/// A file of a git directory that the guest has its own of, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitChange {
    /// Below the workspace.
    pub path: ByteString,
    /// SHA-256, in hexadecimal, of what was sent earlier; of an index, of what is staged in it.
    pub old: Option<String>,
    /// The same of what is to be sent.
    pub new: Option<String>,
}

/// A repository, inspected, ready to be streamed. Its packs are made meanwhile, in a thread that
/// is stopped when this is dropped.
#[derive(Debug)]
pub struct Capture {
    survey: Survey,
    cancel: Cancel,
    request: PrepareRequest,
    changes: Option<Changes>,
    base: Option<Manifest>,
    manifest: PathBuf,
    name: String,
    /// Of which repositories the index stays the guest's.
    kept_indexes: Vec<usize>,
    packing: Packing,
}

impl Capture {
    /// Inspects the repository and begins to make, in `scratch` (an empty private directory that
    /// must live as long as this), the pack of its history. The repository itself is only read.
    ///
    /// With `branch` the guest has a new branch of that name at `from` (HEAD when absent). Changes
    /// that are not committed go along only when that is the commit HEAD names.
    ///
    /// # Errors
    /// No such path, no repository, bare, submodules in a mode that does not copy them, an unknown
    /// revision, or git's own failure.
    pub fn open(request: &PrepareRequest, scratch: &Path, options: &Options<'_>) -> Result<Self> {
        let mut survey = Survey::make(request, scratch, options)?;
        let base = options.base.filter(|_| survey.fits).cloned();
        let mut orders = Vec::new();
        for (n, part) in survey.parts.iter_mut().enumerate() {
            let dir = part.part.scratch.join("pack");
            part::make_dir(&dir)?;
            let facts = base.as_ref().and_then(|b| b.facts.parts.get(n)).filter(|_| !options.resend_history);
            let objects = part.part.scratch.join("objects");
            let commit = part.part.start.commit.as_deref();
            part.extra = pack::extra(&part.part.git(), commit, &part.part.index)?;
            let is_partial = part.part.settings.is_partial();
            let (source, history) = (&part.part.source, &part.part.history);
            orders.push(Order::new(source, history, &part.extra, facts, is_partial, dir, &objects)?);
        }
        let packing = Packing::start(orders, &options.cancel);
        let changes = base.as_ref().map(|base| survey.changes(base, options.resend_history)).transpose()?;
        Ok(Self {
            survey,
            cancel: options.cancel.clone(),
            request: request.clone(),
            changes,
            base,
            manifest: scratch.join("manifest"),
            name: options.name.to_owned(),
            kept_indexes: Vec::new(),
            packing,
        })
    }

    /// Leaves some of [`Changes::indexes`] to the guest, by their number.
    pub fn keep_indexes(&mut self, which: Vec<usize>) {
        self.kept_indexes = which;
    }

    /// The whole workspace, as it will be in the guest.
    #[must_use]
    pub fn plan(&self) -> &PreparePlan {
        &self.survey.plan
    }

    /// What [`Self::write_tar`] will send of it, when the guest has an earlier capture; everything
    /// when there is none, or not one of the same workspace.
    #[must_use]
    pub fn changes(&self) -> Option<&Changes> {
        self.changes.as_ref()
    }

    /// Writes the tar stream that, unpacked into an empty directory (or into the earlier capture,
    /// from which [`Changes`] says what to remove), is the workspace. Memory does not grow with the
    /// size of files.
    ///
    /// # Errors
    /// A file that changed, vanished or cannot be read; a writer that broke; cancellation. Then
    /// the stream has no end marker and what was unpacked must be thrown away.
    pub fn write_tar(self, out: impl Write) -> Result<Captured> {
        send::write(self, out)
    }
}

/// One repository, its place among all files, and what its pack holds beyond commits.
#[derive(Debug)]
struct Surveyed {
    part: Part,
    /// Its files in the plan.
    files: Range<usize>,
    /// Which of them are sent, if not all.
    send: Option<Vec<usize>>,
    extra: Vec<String>,
    gone: Vec<ByteString>,
    git_files: Vec<guest_repo::GitFile>,
}

/// A workspace as it was found, before anything is packed.
#[derive(Debug)]
struct Survey {
    plan: PreparePlan,
    /// The outermost repository first, then those within it.
    parts: Vec<Surveyed>,
    /// Whether the base of the options is one of this workspace.
    fits: bool,
    send_bytes: u64,
}

impl Survey {
    fn make(request: &PrepareRequest, scratch: &Path, options: &Options<'_>) -> Result<Self> {
        if let (None, Some(from)) = (&request.branch, &request.from) {
            return Err(WorkspaceError::FromWithoutBranch(from.clone()));
        }
        let mode = request.mode.unwrap_or(WorkspaceMode::ShallowOverlay);
        let source = Source::find_watching(Path::new(request.path.as_os_str()), &options.cancel)?;
        let plan = PreparePlan {
            source_path: source.top.clone().into_os_string().into(),
            guest_path: guest_path(request)?,
            mode,
            base_commit: String::new(),
            branch: None,
            depth: 0,
            files: Vec::new(),
            bytes: 0,
            skipped_untracked: 0,
        };
        let base = options.base.filter(|base| {
            let facts = &base.facts;
            facts.mode == mode
                && facts.guest_path == plan.guest_path.as_str()
                && facts.source == plan.source_path
        });
        let mut survey = Self { plan, parts: Vec::new(), fits: base.is_some(), send_bytes: 0 };
        survey.add(source, Place::outermost(), request, scratch, base)?;
        survey.fits &= base.is_some_and(|base| base.facts.parts.len() == survey.parts.len());
        if base.is_some() && !survey.fits {
            // What was left out as known is known to nobody: once more, from nothing.
            let scratch = scratch.join("whole");
            part::make_dir(&scratch)?;
            return Self::make(request, &scratch, &Options { base: None, ..options.clone() });
        }
        Ok(survey)
    }

    /// A repository, and with it those within.
    fn add(
        &mut self,
        source: Source,
        place: Place,
        request: &PrepareRequest,
        scratch: &Path,
        base: Option<&Manifest>,
    ) -> Result<()> {
        let n = self.parts.len();
        if n >= MOST {
            return Err(source.git.odd("ls-files"));
        }
        let facts = base.and_then(|base| base.facts.parts.get(n));
        let same = facts.filter(|facts| {
            facts.prefix.as_bytes() == place.prefix
                && facts.git_dir.as_bytes() == place.git_dir
                && facts.object_format == source.object_format
        });
        self.fits &= same.is_some();
        let base = base.filter(|_| same.is_some());
        let own = scratch.join(format!("part-{n}"));
        part::make_dir(&own)?;
        // Submodules are as they are, whatever branch the outer repository begins with.
        let inner = PrepareRequest { branch: None, from: None, ..request.clone() };
        let mine = if place.is_submodule() { &inner } else { request };
        let part = Part::survey(source, place, mine, &own, same)?;
        let rows = base.map(|base| base.rows(n)).transpose()?;
        let listing = Listing::make(&part, request.include_untracked, rows)?;
        let within = within(&part)?;
        let git_files = guest_repo::files(&part, within.iter().map(|inner| &inner.name[..]))?;
        let plan = &mut self.plan;
        if n == 0 {
            let commit = part.start.commit.clone();
            plan.base_commit = commit.unwrap_or_else(|| part.source.empty_tree().to_owned());
            plan.branch = part.start.branch.clone();
            plan.depth = part.history.depth;
        }
        plan.bytes += listing.bytes;
        plan.skipped_untracked += listing.skipped_untracked;
        self.send_bytes += listing.send_bytes;
        let from = plan.files.len();
        match from {
            0 => plan.files = listing.files,
            _ => plan.files.extend(listing.files),
        }
        let files = from..plan.files.len();
        let places: Vec<_> = within
            .into_iter()
            .map(|inner| (inner.source, part.place.within(&inner.path, &inner.name)))
            .collect();
        let (send, gone) = (listing.send, listing.gone);
        self.parts.push(Surveyed { part, files, send, extra: Vec::new(), gone, git_files });
        for (source, place) in places {
            self.add(source, place, request, scratch, base)?;
        }
        Ok(())
    }
}

/// A submodule that is checked out.
struct Inner {
    source: Source,
    name: Vec<u8>,
    path: Vec<u8>,
}

/// The submodules of a repository.
fn within(part: &Part) -> Result<Vec<Inner>> {
    let mut found = Vec::new();
    // In a checkout of another commit they are empty directories, as git leaves them.
    if part.mode != WorkspaceMode::FullCopy || !part.start.overlay {
        return Ok(found);
    }
    let names = submodules::names(&part.source)?;
    for entry in part.index.entries().filter(|e| e.is_submodule() && e.stage() == 0) {
        if let Some(source) = submodules::repository(&part.source, entry.path)? {
            let name = names.get(entry.path).cloned().unwrap_or_else(|| entry.path.to_vec());
            found.push(Inner { source, name, path: entry.path.to_vec() });
        }
    }
    Ok(found)
}

fn guest_path(request: &PrepareRequest) -> Result<GuestPath> {
    match &request.guest_path {
        Some(path) => Ok(path.clone()),
        None => "/root/repo".parse().map_err(WorkspaceError::Model),
    }
}
