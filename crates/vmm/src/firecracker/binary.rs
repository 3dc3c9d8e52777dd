//! The Firecracker binary: where it is, which version it is, and whether it can be used.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use banger_host::programs::is_program;

use super::quirks::{NEWEST, OLDEST, Quirks, Version};
use crate::{Result, VmmError, binary};

const NAME: &str = "firecracker";

/// What a usable Firecracker says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirecrackerInfo {
    /// Where it is.
    pub program: PathBuf,
    /// Its version, such as `1.16.1`.
    pub version: String,
    /// One line about what is doubtful with it, such as that it is newer than what was tried.
    pub warning: Option<String>,
    pub(super) quirks: Quirks,
}

/// Finds the binary: `wanted` (the value of BANGER_FIRECRACKER) if given, else in `search_path` (the
/// value of PATH).
///
/// # Errors
/// When there is none.
pub fn locate(wanted: Option<&OsStr>, search_path: Option<&OsStr>) -> Result<PathBuf> {
    binary::locate(NAME, "BANGER_FIRECRACKER", wanted, search_path)
        .map_err(|looked| VmmError::FirecrackerMissing { looked })
}

/// Asks a binary for its version.
///
/// # Errors
/// When it is missing, does not answer, or is too old.
pub async fn check(program: &Path) -> Result<FirecrackerInfo> {
    if !is_program(program) {
        return Err(VmmError::FirecrackerMissing { looked: program.display().to_string() });
    }
    let unusable = |why: String| VmmError::FirecrackerUnusable { program: program.to_owned(), why };
    let said = binary::ask(program, &["--version"]).await.map_err(unusable)?;
    let text = parse_version(&said).ok_or_else(|| unusable("it does not say its version".to_owned()))?;
    let version =
        Version::parse(&text).ok_or_else(|| unusable(format!("'{text}' is no version that we know")))?;
    if version < OLDEST {
        return Err(unusable(format!("its version {text} is older than {OLDEST}")));
    }
    let newer = (version.0, version.1) > (NEWEST.0, NEWEST.1);
    let warning =
        newer.then(|| format!("Firecracker {text} is newer than what was tried ({OLDEST} to {NEWEST})"));
    Ok(FirecrackerInfo { program: program.to_owned(), version: text, warning, quirks: Quirks::of(version) })
}

fn parse_version(said: &str) -> Option<String> {
    Some(said.lines().next()?.strip_prefix("Firecracker v")?.trim_end().to_owned())
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
        assert!(wrong.unwrap_err().to_string().contains("BANGER_FIRECRACKER=/nowhere"));
        let error: banger_model::Error = locate(None, None).unwrap_err().into();
        assert!(error.hint.unwrap().contains("BANGER_FIRECRACKER"));
    }

    #[tokio::test]
    async fn an_old_or_foreign_binary_is_refused_and_a_newer_one_is_taken_with_a_word() {
        let dir = tempfile::tempdir().unwrap();
        for (body, why) in [
            ("echo 'Firecracker v1.4.0'", "older than 1.15"),
            ("echo hello", "does not say its version"),
            ("echo 'Firecracker vNext'", "no version that we know"),
        ] {
            let file = script(dir.path(), body);
            let error = check(&file).await.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        for (said, newer) in [("1.15.0", false), ("1.17.0-dev", false), ("1.18.2", true), ("2.0.0", true)] {
            let info =
                check(&script(dir.path(), &format!("echo 'Firecracker v{said}'; echo"))).await.unwrap();
            assert_eq!((info.version.as_str(), info.warning.is_some()), (said, newer));
        }
    }
}
