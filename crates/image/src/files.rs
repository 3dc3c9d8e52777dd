//! The store of root file systems: content-addressed squashfs files, written once, never modified.
//! Must never know names; names and references live in the database.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use banger_model::{Bytes, RootFsType, Sha256};
use sha2::Digest as _;

use crate::archive::{self, Kind};
use crate::context::Context;
use crate::error::{ImageError, Result};
use crate::squash::{self, Finished};
use crate::workdir::{self, WorkDir};
use crate::{build, space, tree};

const SUFFIX: &str = ".sqfs";
/// Work directories in the scratch directory.
pub(crate) const PREFIX: &str = "image-";
const CHUNK: usize = 1 << 20;

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BuildSpec {
    /// The Debian release, such as `trixie`; [`DEFAULT_RELEASE`] when absent.
    pub release: Option<String>,
    /// Packages besides the default ones.
    pub include: Vec<String>,
    /// Leave out the default development packages: only systemd and what it needs.
    pub minimal: bool,
}

/// The release built when none is asked for.
pub const DEFAULT_RELEASE: &str = "bookworm";

/// A root file system that is in the store now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltImage {
    /// Digest of the file, and its address.
    pub digest: Sha256,
    /// The file's size.
    pub size: Bytes,
    /// Its format.
    pub fs: RootFsType,
    /// What it was made from, for people.
    pub description: String,
}

/// The image files below one state directory.
#[derive(Debug, Clone)]
pub struct ImageFiles {
    images: PathBuf,
    scratch: PathBuf,
}

impl ImageFiles {
    /// The store in `images_dir`; `scratch_dir` must be on the same file system. Both are created (0700) when needed.
    #[must_use]
    pub fn new(images_dir: impl Into<PathBuf>, scratch_dir: impl Into<PathBuf>) -> Self {
        Self { images: images_dir.into(), scratch: scratch_dir.into() }
    }

    /// Builds a Debian root file system.
    ///
    /// # Errors
    /// `invalid_argument` for bad or unknown names, `unavailable` when the host lacks something, `cancelled`.
    pub fn build(&self, spec: &BuildSpec, ctx: &Context<'_>) -> Result<BuiltImage> {
        let finished = build::build(spec, self.scratch()?, ctx)?;
        self.take_in(&finished, build::describe(spec), ctx)
    }

    /// Takes in a directory, a tar archive (plain, gzip, zstd, xz) or a squashfs file at the absolute `path`.
    ///
    /// A directory's files that belong to the calling ordinary user become root's; sockets stay behind; whatever cannot
    /// be read is an error.
    ///
    /// # Errors
    /// `invalid_argument` when it is none of these, empty or damaged; `cancelled`.
    pub fn import(&self, path: &Path, ctx: &Context<'_>) -> Result<BuiltImage> {
        if !path.is_absolute() {
            return Err(ImageError::bad_source(path, "its path is not absolute"));
        }
        let meta = fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ImageError::bad_source(path, "there is nothing of that name"),
            _ => ImageError::bad_source(path, error.to_string()),
        })?;
        squash::require()?;
        let dir = self.scratch()?;
        let finished = if meta.is_dir() {
            tree::import(path, dir, ctx)?
        } else if meta.is_file() {
            let unreadable = |error: io::Error| ImageError::bad_source(path, error.to_string());
            let mut file = File::open(path).map_err(unreadable)?;
            match archive::kind(&mut file).map_err(unreadable)? {
                Kind::Unknown => {
                    let reason = "it is neither a directory, nor a tar archive (plain, gzip, zstd, xz), nor a squashfs";
                    return Err(ImageError::bad_source(path, reason));
                }
                Kind::Squashfs => copy(path, &file, dir, ctx)?,
                kind => archive::import(path, file, kind, dir, ctx)?,
            }
        } else {
            return Err(ImageError::bad_source(path, "it is neither a directory nor a file"));
        };
        self.take_in(&finished, format!("imported from {}", path.display()), ctx)
    }

    /// The file of `digest`.
    ///
    /// # Errors
    /// `image_missing` when it is not there.
    pub fn path(&self, digest: &Sha256) -> Result<PathBuf> {
        let path = self.file(digest);
        if path.is_file() {
            Ok(path)
        } else {
            Err(ImageError::Missing { digest: digest.clone(), dir: self.images.clone() })
        }
    }

    /// Deletes the file of `digest`; that it is gone already is no error.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn remove(&self, digest: &Sha256) -> Result<()> {
        let path = self.file(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::io("delete", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// The digests of all files that are not in `referenced`, in order.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list_unreferenced(&self, referenced: &[Sha256]) -> Result<Vec<Sha256>> {
        let entries = match fs::read_dir(&self.images) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(ImageError::io("list", &self.images)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(ImageError::io("list", &self.images))?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            if let Some(Ok(digest)) = stem.map(|stem| Sha256::try_from(stem.to_owned()))
                && !referenced.contains(&digest)
            {
                found.push(digest);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Reads the whole file of `digest` and checks that it is what its name says.
    ///
    /// # Errors
    /// `image_missing`, or `internal` when it is damaged.
    pub fn verify(&self, digest: &Sha256) -> Result<()> {
        let path = self.path(digest)?;
        let file = File::open(&path).map_err(ImageError::io("open", &path))?;
        let (found, _) = hash(&file, &path, &|| false)?;
        if found == *digest { Ok(()) } else { Err(ImageError::Damaged { digest: digest.clone(), found }) }
    }

    /// Removes what builds and imports left behind that were killed, here and in the system's temporary directory.
    /// Jobs that still run, also those of another daemon, are left alone. Returns how many leftovers went.
    ///
    /// # Errors
    /// When a leftover cannot be removed.
    pub fn sweep(&self) -> Result<usize> {
        let here = workdir::sweep(&self.scratch, PREFIX);
        let there = workdir::sweep(&build::temp_dir(), build::PREFIX);
        Ok(here? + there?)
    }

    fn file(&self, digest: &Sha256) -> PathBuf {
        self.images.join(format!("{digest}{SUFFIX}"))
    }

    fn scratch(&self) -> Result<WorkDir> {
        workdir::make_private_dir(&self.images)?;
        workdir::make_private_dir(&self.scratch)?;
        WorkDir::new(&self.scratch, PREFIX, 0o700)
    }

    /// Gives a finished file its address. On disk before it has a name, so that a crash leaves all of it or nothing.
    fn take_in(&self, finished: &Finished, description: String, ctx: &Context<'_>) -> Result<BuiltImage> {
        ctx.report("store", "storing the image", None);
        let from = finished.path();
        let file = File::open(&from).map_err(ImageError::io("open", &from))?;
        let (digest, size) = hash(&file, &from, ctx.cancelled)?;
        file.set_permissions(fs::Permissions::from_mode(0o400)).map_err(ImageError::io("protect", &from))?;
        file.sync_all().map_err(ImageError::io("flush", &from))?;
        let to = self.file(&digest);
        fs::rename(&from, &to).map_err(ImageError::io("write", &to))?;
        File::open(&self.images)
            .and_then(|dir| dir.sync_all())
            .map_err(ImageError::io("flush", &self.images))?;
        Ok(BuiltImage { digest, size: Bytes(size), fs: RootFsType::Squashfs, description })
    }
}

/// Takes over a squashfs file as it is.
fn copy(path: &Path, mut file: &File, dir: WorkDir, ctx: &Context<'_>) -> Result<Finished> {
    let size = file.metadata().map_err(ImageError::io("look at", path))?.len();
    space::require("the image", dir.path(), Bytes(size))?;
    ctx.report("import", format!("copying {}", path.display()), None);
    let finished = Finished::new(dir);
    let to = finished.path();
    let mut out = File::create_new(&to).map_err(ImageError::io("make", &to))?;
    // Shares the blocks where the file system can, and copies where it cannot.
    if rustix::fs::ioctl_ficlone(&out, file).is_err() {
        let mut buffer = vec![0; CHUNK];
        loop {
            if ctx.is_cancelled() {
                return Err(ImageError::Cancelled { what: "the import" });
            }
            let n = file.read(&mut buffer).map_err(ImageError::io("read", path))?;
            if n == 0 {
                break;
            }
            out.write_all(&buffer[..n]).map_err(ImageError::io("write", &to))?;
        }
    }
    squash::check(&to, path)?;
    Ok(finished)
}

fn hash(mut file: &File, path: &Path, cancelled: &dyn Fn() -> bool) -> Result<(Sha256, u64)> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        if cancelled() {
            return Err(ImageError::Cancelled { what: "storing the image" });
        }
        let n = file.read(&mut buffer).map_err(ImageError::io("read", path))?;
        if n == 0 {
            return Ok((Sha256::from_bytes(hasher.finalize().into()), size));
        }
        hasher.update(&buffer[..n]);
        size += n as u64;
    }
}
