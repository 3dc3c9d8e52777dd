//! The directory of templates. A template is there whole or not at all: it is made under a name that begins with a dot,
//! renamed into place, and renamed away before it is removed. One that was made by itself is called by its key, one that
//! was saved by `@` and its name. Must never remove what somebody saved unless told to.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use banger_model::{Bytes, Error, ErrorCode, KernelName, Result, Sha256, VmName};

use super::super::snapshot::Snapshot;
use super::super::start::{failed, make_dir};
use super::super::teardown::remove_tree;
use crate::op::random_bytes;

/// How the name of one that was saved begins.
const SAVED: char = '@';
/// How the name of one that is no template yet, or none any more, begins.
const UNDER_WAY: &str = ".";
/// Changed when a template is used.
const USED: &str = "used";
/// How often a template of one shape is tried for, before this daemon gives up.
const TRIES: u32 = 2;

/// The templates.
#[derive(Debug)]
pub(crate) struct Shelf {
    dir: PathBuf,
    budget: Bytes,
    /// By key: what was begun, and how often it came to nothing.
    making: Mutex<HashMap<String, Making>>,
    /// Held by whoever makes one.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Whoever keeps spares is told that one came or went.
    pub(super) changed: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct Making {
    under_way: bool,
    failures: u32,
}

impl Shelf {
    /// Those in a directory.
    pub(crate) fn new(dir: PathBuf, budget: Bytes) -> Self {
        let (turn, changed) = (tokio::sync::Mutex::default(), tokio::sync::Notify::new());
        Self { dir, budget, making: Mutex::default(), turn, changed }
    }

    /// Removes what a daemon that died left half made or half removed.
    pub(crate) fn sweep(&self) {
        for (name, path) in self.entries().into_iter().filter(|(name, _)| name.starts_with(UNDER_WAY)) {
            if let Err(error) = remove_tree(&path) {
                tracing::warn!(name, %error, "what is left of a template stays");
            }
        }
    }

    /// The template with this key.
    pub(super) fn find(&self, key: &str) -> Option<Snapshot> {
        let dir = self.dir.join(key);
        match Snapshot::open(&dir) {
            Ok(template) => {
                touch(&dir);
                Some(template)
            }
            Err(error) => {
                if dir.is_dir() {
                    tracing::warn!(key, %error, "a template is damaged: dropped");
                    self.drop_template(&dir);
                }
                None
            }
        }
    }

    /// The template that somebody saved by this name.
    ///
    /// # Errors
    /// `not_found`, with those that there are.
    pub(super) fn saved(&self, name: &VmName) -> Result<Snapshot> {
        let dir = self.saved_dir(name);
        if !dir.is_dir() {
            let all: Vec<String> = self.all().iter().filter_map(|t| saved_name(t.dir())).collect();
            let hint = if all.is_empty() {
                "none is saved yet: 'banger vm template save VM NAME'".to_owned()
            } else {
                format!("there are {}", all.join(", "))
            };
            return Err(Error::not_found(format!("there is no template '{name}'")).with_hint(hint));
        }
        let template = Snapshot::open(&dir)?;
        touch(&dir);
        Ok(template)
    }

    pub(super) fn saved_dir(&self, name: &VmName) -> PathBuf {
        self.dir.join(format!("{SAVED}{name}"))
    }

    pub(super) fn made_dir(&self, key: &str) -> PathBuf {
        self.dir.join(key)
    }

    /// All that are whole, least recently used first.
    pub(super) fn all(&self) -> Vec<Snapshot> {
        let whole = |(name, path): (String, PathBuf)| {
            (!name.starts_with(UNDER_WAY)).then(|| Snapshot::open(&path).ok()).flatten()
        };
        let mut all: Vec<Snapshot> = self.entries().into_iter().filter_map(whole).collect();
        all.sort_by_key(used_at);
        all
    }

    /// Those that were made by themselves.
    pub(super) fn made(&self) -> Vec<Snapshot> {
        self.all().into_iter().filter(|template| saved_name(template.dir()).is_none()).collect()
    }

    /// A directory to make one in; what is not published goes with it.
    ///
    /// # Errors
    /// `unavailable` when it cannot be made.
    pub(super) fn begin(&self) -> Result<UnderWay> {
        let word = hex::encode(random_bytes::<6>());
        let dir = self.dir.join(format!("{UNDER_WAY}new-{word}"));
        make_dir(&dir)?;
        Ok(UnderWay { dir })
    }

    /// Gives a whole directory its place.
    ///
    /// # Errors
    /// `already_exists`, `unavailable`.
    pub(super) fn publish(&self, made: &UnderWay, to: &Path) -> Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        touch(&made.dir);
        match renameat_with(CWD, &made.dir, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {
                let name = to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                return Err(already_there(&name));
            }
            Err(e) => return Err(failed("name", to, &e.into())),
        }
        // The new name survives a power cut as well; if it does not, the template is made again.
        if let Err(error) = std::fs::File::open(&self.dir).and_then(|dir| dir.sync_all()) {
            tracing::warn!(%error, "the directory of templates could not be flushed");
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Removes a template. Machines that went on from it keep what they need.
    pub(super) fn drop_template(&self, dir: &Path) {
        if let Err(error) = self.remove(dir) {
            tracing::warn!(dir = %dir.display(), %error, "a template could not be removed");
        }
    }

    /// The same for whoever wants to know.
    ///
    /// # Errors
    /// `unavailable`.
    pub(super) fn remove(&self, dir: &Path) -> Result<()> {
        // Out of sight in one step: nobody finds half of it.
        let doomed = self.begin()?;
        let aside = doomed.dir.join("old");
        match std::fs::rename(dir, &aside) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed("remove", dir, &e)),
            _ => {}
        }
        self.changed.notify_one();
        remove_tree(&doomed.dir)
    }

    /// Keeps those that were made by themselves within the budget: the ones that were not used for longest go. False
    /// when not even this one fits.
    pub(super) fn make_room(&self, latest: &Path) -> bool {
        let all = self.made();
        let mut total: u64 = all.iter().map(Snapshot::size).sum();
        for template in all.iter().filter(|t| t.dir() != latest) {
            if total <= self.budget.0 {
                return true;
            }
            total = total.saturating_sub(template.size());
            tracing::info!(template = %template.dir().display(), "dropped for want of room");
            self.drop_template(template.dir());
        }
        if total > self.budget.0 {
            tracing::info!(bytes = total, budget = %self.budget, "a template is larger than all that templates may take");
            self.drop_template(latest);
        }
        total <= self.budget.0
    }

    /// Notes that a template is being made; false when it is already, or cannot be.
    pub(super) fn claim(&self, key: &str) -> bool {
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = making.entry(key.to_owned()).or_default();
        if entry.under_way || entry.failures >= TRIES {
            return false;
        }
        entry.under_way = true;
        true
    }

    /// Notes that nobody makes it any more.
    pub(super) fn release(&self, key: &str, made: bool) {
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = making.entry(key.to_owned()).or_default();
        entry.under_way = false;
        entry.failures = if made { 0 } else { entry.failures + 1 };
    }

    fn entries(&self) -> Vec<(String, PathBuf)> {
        entries(&self.dir)
    }
}

/// A directory in which a template is made. It is removed on drop unless it was published.
#[derive(Debug)]
pub(super) struct UnderWay {
    pub(super) dir: PathBuf,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "a half-made template stays");
        }
    }
}

/// The error of a name that is taken; those of saved templates begin with `@`.
pub(super) fn already_there(name: &str) -> Error {
    let message = format!("there is a template '{}' already", name.trim_start_matches(SAVED));
    Error::new(ErrorCode::AlreadyExists, message)
        .with_hint(format!("choose another name, or 'banger vm template delete {name}'"))
}

/// What a template is called: its directory.
pub(super) fn id_of(template: &Snapshot) -> String {
    template.dir().file_name().map(|id| id.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The name that a template was saved by, if somebody did.
pub(super) fn saved_name(dir: &Path) -> Option<String> {
    dir.file_name()?.to_str()?.strip_prefix(SAVED).map(str::to_owned)
}

/// When a template was last used.
pub(super) fn used_at(template: &Snapshot) -> SystemTime {
    let of = |path: PathBuf| std::fs::metadata(path).and_then(|meta| meta.modified());
    of(template.dir().join(USED)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn touch(dir: &Path) {
    let used = dir.join(USED);
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let touched = options.write(true).create(true).truncate(false).open(&used);
    if let Err(error) = touched.and_then(|file| file.set_modified(SystemTime::now())) {
        tracing::debug!(%error, "the use of a template could not be noted");
    }
}

/// What the saved templates in a directory need to be gone on from: their names, images and kernels. The others are
/// dropped when they can no longer be used, and keep nothing from being deleted.
pub(crate) fn needs(dir: &Path) -> Vec<(String, Sha256, KernelName)> {
    let saved = entries(dir).into_iter().filter_map(|(name, path)| {
        let template = Snapshot::open(&path).ok().filter(|_| name.starts_with(SAVED))?;
        Some((format!("the template {name}"), template.about.image_digest, template.about.kernel))
    });
    saved.collect()
}

fn entries(dir: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let named = entries.flatten().filter_map(|e| Some((e.file_name().into_string().ok()?, e.path())));
    named.collect()
}
