//! Finding kernel and modules in a directory that somebody points at.
//! Must never choose between several: the user does.

use std::path::{Path, PathBuf};

use super::error::{KernelError, Result};
use super::version;
use crate::error::ImageError;

/// What a directory to import holds.
#[derive(Debug)]
pub(super) struct Source {
    /// The bootable file.
    pub(super) kernel: PathBuf,
    /// `uname -r`.
    pub(super) release: String,
    /// `lib/modules/<release>`, when there is one.
    pub(super) modules: Option<PathBuf>,
}

/// Looks for a kernel file in `dir` and `dir/boot`, and for the modules of its release.
pub(super) fn inspect(dir: &Path) -> Result<Source> {
    let kernel = kernel_file(dir)?;
    let release = version::release(&kernel)?;
    let parents = ["lib/modules", "usr/lib/modules", "modules"];
    let modules = parents.iter().map(|parent| dir.join(parent).join(&release)).find(|path| path.is_dir());
    if modules.is_none() {
        let others: Vec<String> =
            parents.iter().flat_map(|parent| names(&dir.join(parent)).unwrap_or_default()).collect();
        if !others.is_empty() {
            let reason = format!("its modules are for {}, and the kernel is {release}", others.join(", "));
            return Err(ImageError::bad_source(dir, reason).into());
        }
    }
    Ok(Source { kernel, release, modules })
}

fn kernel_file(dir: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for place in ["", "boot"] {
        for name in names(&dir.join(place))
            .or_else(|error| if place.is_empty() { Err(error) } else { Ok(Vec::new()) })?
        {
            let path = dir.join(place).join(&name);
            let looks_right = ["vmlinuz", "bzImage", "vmlinux"].iter().any(|word| name.starts_with(word));
            // A link beside what it links to is no second kernel.
            if looks_right && path.symlink_metadata().is_ok_and(|file| file.is_file()) {
                found.push(path);
            }
        }
    }
    match found.as_slice() {
        [] => Err(KernelError::NoKernelFile { dir: dir.to_owned() }),
        [one] => Ok(one.clone()),
        many => {
            let relative = |path: &PathBuf| path.strip_prefix(dir).unwrap_or(path).display().to_string();
            Err(KernelError::Several {
                dir: dir.to_owned(),
                what: "kernel files",
                found: many.iter().map(relative).collect(),
            })
        }
    }
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .map_err(ImageError::io("read", dir))?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::version::tests::bzimage;

    #[test]
    fn kernel_and_modules_are_found_as_a_package_lays_them_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("boot")).unwrap();
        std::fs::create_dir_all(dir.path().join("lib/modules/6.1-a")).unwrap();
        std::fs::write(dir.path().join("boot/vmlinuz-6.1-a"), bzimage("6.1-a")).unwrap();
        std::fs::write(dir.path().join("boot/config-6.1-a"), "").unwrap();
        std::os::unix::fs::symlink("boot/vmlinuz-6.1-a", dir.path().join("vmlinuz")).unwrap();
        let source = inspect(dir.path()).unwrap();
        assert_eq!(source.release, "6.1-a");
        assert_eq!(source.modules.unwrap(), dir.path().join("lib/modules/6.1-a"));
    }

    #[test]
    fn none_and_several_and_foreign_modules_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(inspect(dir.path()), Err(KernelError::NoKernelFile { .. })));
        assert!(inspect(&dir.path().join("absent")).unwrap_err().to_string().contains("absent"));
        std::fs::write(dir.path().join("bzImage"), bzimage("6.1-a")).unwrap();
        std::fs::create_dir_all(dir.path().join("lib/modules/6.1-b")).unwrap();
        let foreign = inspect(dir.path()).unwrap_err().to_string();
        assert!(foreign.contains("6.1-b") && foreign.contains("6.1-a"), "{foreign}");
        std::fs::write(dir.path().join("vmlinux"), "").unwrap();
        let several = inspect(dir.path()).unwrap_err().to_string();
        assert!(several.ends_with("several kernel files: bzImage, vmlinux"), "{several}");
    }
}
