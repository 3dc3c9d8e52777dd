//! The QEMU binary: where it is and whether it can be used.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use banger_host::programs::is_program;

use crate::binary::{self, ask};
use crate::{Result, VmmError};

const NAME: &str = "qemu-system-x86_64";
/// The oldest QEMU we know to work: it brought `-netdev stream` with descriptors.
const OLDEST: (u32, u32) = (7, 2);
/// It brought emulated vCPUs that see what another one changes in their code. Before, one that translated a page in that
/// moment kept the old code: a Linux that patched itself while it booted (`int3`, then the new code) hung forever.
const SEES_CHANGED_CODE: (u32, u32) = (8, 1);
/// It brought memory of a file that is only read, and yet not a ROM to the guest (`readonly=on,rom=off`).
const READS_MEMORY_ONLY: (u32, u32) = (8, 2);

/// What a usable QEMU says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuInfo {
    /// Where it is.
    pub program: PathBuf,
    /// Its version, such as `7.2.22`.
    pub version: String,
    /// Whether it can begin with a memory file that it may not write to.
    pub reads_memory_only: bool,
    /// Whether emulated vCPUs may run side by side.
    pub sees_changed_code: bool,
}

/// Finds the binary: `wanted` (the value of BANGER_QEMU) if given, else in `search_path` (the
/// value of PATH).
///
/// # Errors
/// When there is none.
pub fn locate(wanted: Option<&OsStr>, search_path: Option<&OsStr>) -> Result<PathBuf> {
    binary::locate(NAME, "BANGER_QEMU", wanted, search_path)
        .map_err(|looked| VmmError::QemuMissing { looked })
}

/// Asks a binary for its version and whether it has the microvm machine.
///
/// # Errors
/// When it is missing, does not answer, is too old, or has no microvm machine.
pub async fn check(program: &Path) -> Result<QemuInfo> {
    if !is_program(program) {
        return Err(VmmError::QemuMissing { looked: program.display().to_string() });
    }
    let unusable = |why: String| VmmError::QemuUnusable { program: program.to_owned(), why };
    let said = ask(program, &["--version"]).await.map_err(unusable)?;
    let version = parse_version(&said).ok_or_else(|| unusable("it does not say its version".to_owned()))?;
    let since = |first| numbers(&version).is_some_and(|n| n >= first);
    if !since(OLDEST) {
        return Err(unusable(format!("its version {version} is older than {}.{}", OLDEST.0, OLDEST.1)));
    }
    let machines = ask(program, &["-machine", "help"]).await.map_err(unusable)?;
    if !machines.lines().any(|l| l.split_ascii_whitespace().next() == Some("microvm")) {
        return Err(unusable("it has no microvm machine".to_owned()));
    }
    Ok(QemuInfo {
        program: program.to_owned(),
        reads_memory_only: since(READS_MEMORY_ONLY),
        sees_changed_code: since(SEES_CHANGED_CODE),
        version,
    })
}

fn parse_version(said: &str) -> Option<String> {
    let rest = said.lines().next()?.strip_prefix("QEMU emulator version ")?;
    Some(rest.split_ascii_whitespace().next()?.to_owned())
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn script(dir: &Path, body: &str) -> PathBuf {
        let file = dir.join(NAME);
        fs::write(&file, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    #[test]
    fn the_wanted_binary_wins_and_a_wrong_one_is_not_replaced_silently() {
        let dir = tempfile::tempdir().unwrap();
        let file = script(dir.path(), "");
        assert_eq!(locate(None, Some(dir.path().as_os_str())).unwrap(), file);
        assert_eq!(locate(Some(file.as_os_str()), None).unwrap(), file);
        let wrong = locate(Some(OsStr::new("/nowhere")), Some(dir.path().as_os_str()));
        assert!(wrong.unwrap_err().to_string().contains("BANGER_QEMU=/nowhere"));
        let error: banger_model::Error = locate(None, None).unwrap_err().into();
        assert!(error.hint.unwrap().contains("apt-get install qemu-system-x86"));
    }

    #[tokio::test]
    async fn an_old_or_foreign_binary_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        for (body, why) in [
            ("echo 'QEMU emulator version 5.2.0 (Debian)'", "older than"),
            ("echo hello", "does not say its version"),
            ("[ $1 = --version ] && echo 'QEMU emulator version 9.1.0' || echo pc", "no microvm"),
        ] {
            let file = script(dir.path(), body);
            let error = check(&file).await.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn what_a_binary_can_goes_by_its_version() {
        let dir = tempfile::tempdir().unwrap();
        for (version, expected) in
            [("7.2.22", (false, false)), ("8.1.0", (true, false)), ("10.0.2", (true, true))]
        {
            let said =
                format!("[ $1 = --version ] && echo 'QEMU emulator version {version}' || echo microvm");
            let info = check(&script(dir.path(), &said)).await.unwrap();
            assert_eq!((info.sees_changed_code, info.reads_memory_only), expected, "{version}");
        }
    }

    #[test]
    fn versions_are_read_from_what_distributions_print() {
        let said = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright";
        assert_eq!(parse_version(said).as_deref(), Some("7.2.22"));
        assert_eq!(numbers("10.0"), Some((10, 0)));
    }
}
