//! The passt binary: where it is, whether it can be used, and its arguments.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_host::programs::{self, Missing, is_program};
use tokio::process::Command;

use crate::addresses::{DNS, GATEWAY, GATEWAY_MAC, GUEST, MTU, PREFIX};
use crate::{NetworkError, Result};

const NAME: &str = "passt";
/// passt mounts its own empty root here before it enters it (`TMPDIR` in its isolation.c; the variable of that name has
/// no part in it). The directory must exist.
pub(crate) const MOUNTS_OVER: &str = "/tmp";

/// What a usable passt says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PasstInfo {
    /// Where it is.
    pub program: PathBuf,
    /// Its version; Debian 12's says "unknown version".
    pub version: String,
}

/// Finds passt in `search_path` (the value of PATH).
///
/// # Errors
/// When it is not there.
pub fn locate(search_path: Option<&OsStr>) -> Result<PathBuf> {
    Ok(programs::find_in(NAME, search_path)?)
}

/// Asks a passt for its version and looks for the options that we rely on.
///
/// # Errors
/// When it is missing, does not answer, or lacks an option.
pub async fn check(program: &Path) -> Result<PasstInfo> {
    if !is_program(program) {
        return Err(Missing { name: NAME.to_owned() }.into());
    }
    let unusable = |why: String| NetworkError::PasstUnusable { program: program.to_owned(), why };
    let ask = |option: &'static str| {
        let run =
            Command::new(program).arg(option).kill_on_drop(true).stdin(std::process::Stdio::null()).output();
        async move {
            match tokio::time::timeout(Duration::from_secs(5), run).await {
                Ok(Ok(output)) => {
                    let mut text = output.stdout;
                    text.extend(output.stderr);
                    Ok(String::from_utf8_lossy(&text).into_owned())
                }
                Ok(Err(error)) => Err(unusable(error.to_string())),
                Err(_) => Err(unusable(format!("{option} gave no answer within 5 s"))),
            }
        }
    };
    let help = ask("--help").await?;
    for option in ["--fd", "--no-map-gw", "--mac-addr", "--interface"] {
        if !help.contains(option) {
            return Err(unusable(format!("it has no option {option}")));
        }
    }
    let said = ask("--version").await?;
    let line = said.lines().find(|l| l.starts_with(NAME)).unwrap_or_default();
    let version = line.strip_prefix(NAME).unwrap_or_default().trim().to_owned();
    Ok(PasstInfo { program: program.to_owned(), version })
}

/// What passt's last words mean, where they name no file: the file or right that it missed.
pub(crate) fn missed(log: &[String]) -> Option<String> {
    let said = |words: &str| log.iter().any(|line| line.contains(words));
    if said("mount tmpfs") {
        return Some(format!("its sandbox lacks {MOUNTS_OVER}, where it mounts its own root"));
    }
    if said("user namespace") || said("Failed to sandbox process") {
        let denied = banger_host::user_namespaces::why_denied();
        return Some(format!("it may not make a user namespace of its own ({})", denied.why));
    }
    None
}

/// The build that passt would become by itself. It could not inside its cage, where nothing tells it that it has.
pub(crate) fn build_for_this_host(program: &Path) -> PathBuf {
    let mut newer = program.as_os_str().to_owned();
    newer.push(".avx2");
    let newer = PathBuf::from(newer);
    if std::arch::is_x86_feature_detected!("avx2") && is_program(&newer) { newer } else { program.to_owned() }
}

/// The arguments for one guest, whose frames come and go through descriptor `fd`.
pub(crate) fn arguments(fd: RawFd, host_access: bool) -> Vec<OsString> {
    let mut args: Vec<String> = vec![
        "--foreground".into(),
        "--quiet".into(),
        "--stderr".into(),
        "--fd".into(),
        fd.to_string(),
        "--ipv4-only".into(),
        "--address".into(),
        GUEST.to_string(),
        "--netmask".into(),
        PREFIX.to_string(),
        "--gateway".into(),
        GATEWAY.to_string(),
        // Everything that passt would derive from the interface of the host's default route is given. With that interface it
        // would not start on a host without such a route (a laptop that is offline); the loopback interface is always
        // there. Connections take the host's routes as they are at the time.
        "--interface".into(),
        "lo".into(),
        "--mac-addr".into(),
        GATEWAY_MAC.map(|byte| format!("{byte:02x}")).join(":"),
        "--mtu".into(),
        MTU.to_string(),
        // A guest's own DHCP client gets this name server. Queries to it do not come to passt: see the responder.
        "--dns".into(),
        DNS.to_string(),
    ];
    if !host_access {
        args.push("--no-map-gw".into());
    }
    args.into_iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passt_missed_is_named_where_its_own_words_do_not() {
        let missed = |line: &str| missed(&[line.to_owned()]);
        // As it was seen with directories outside of /tmp.
        assert!(missed("mount tmpfs: No such file or directory").unwrap().contains("lacks /tmp"));
        assert!(
            missed("Couldn't create user namespace: Operation not permitted").unwrap().contains("namespace")
        );
        assert_eq!(missed("Couldn't open PCAP file /x: No such file or directory"), None);
    }
}
