//! Argument groups that several commands share, and how they become requests.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::time::Duration;

use banger_model::{
    Accel, ByteString, Bytes, DriverChoice, Error, GuestPath, ImageName, KernelName, Mib, NetworkMode,
    VmName, WorkspaceMode, parse_duration,
};
use banger_protocol::api::{CreateVm, ExecRequest, PrepareRequest};
use clap::builder::{NonEmptyStringValueParser, OsStringValueParser, TypedValueParser as _};
use clap_complete::engine::ArgValueCompleter;

use super::completion;
use crate::error::Result;
use crate::terminal;

/// One VM.
#[derive(Debug, clap::Args)]
pub(crate) struct VmArg {
    /// The VM: its id, its name, or a unique beginning of either
    #[arg(value_name = "VM", value_parser = NonEmptyStringValueParser::new(), add = ArgValueCompleter::new(completion::vms))]
    pub(crate) vm: String,
}

/// One or more VMs.
#[derive(Debug, clap::Args)]
pub(crate) struct VmsArg {
    /// The VMs: ids, names, or unique beginnings of either
    #[arg(value_name = "VM", required = true, value_parser = NonEmptyStringValueParser::new(), add = ArgValueCompleter::new(completion::vms))]
    pub(crate) vms: Vec<String>,
}

/// What a machine is made of.
#[derive(Debug, clap::Args)]
pub(crate) struct MachineArgs {
    /// Name of the VM [default: a generated one]
    #[arg(long)]
    name: Option<VmName>,
    /// Image to boot from [default: debian, built when it is not there]
    #[arg(long, add = ArgValueCompleter::new(completion::images))]
    image: Option<ImageName>,
    /// Kernel to boot with [default: debian-cloud, pulled when it is not there]
    #[arg(long, add = ArgValueCompleter::new(completion::kernels))]
    kernel: Option<KernelName>,
    /// What runs the VM: auto, firecracker or qemu
    #[arg(long)]
    driver: Option<DriverChoice>,
    /// What runs the guest's instructions: kvm or tcg [default: kvm where it works]
    #[arg(long)]
    accel: Option<Accel>,
    /// Virtual CPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpu: Option<u32>,
    /// Memory, such as 512M or 4G
    #[arg(long, value_name = "SIZE")]
    memory: Option<Mib>,
    /// Size of the writable disk, such as 8G; it takes only the space that is used
    #[arg(long, value_name = "SIZE")]
    disk_size: Option<Bytes>,
    /// A second disk of this size on the homes (root's and /home), which a rebuild leaves alone
    #[arg(long, value_name = "SIZE")]
    work_disk: Option<Bytes>,
    /// Network: user, bridge or none [default: user]
    #[arg(long, value_name = "MODE")]
    network: Option<NetworkMode>,
    /// Let a VM on the bridge reach the outside
    #[arg(long)]
    nat: bool,
    /// Let the guest reach services on this host's loopback
    #[arg(long)]
    host_access: bool,
    /// Boot the kernel even where a template could be restored
    #[arg(long)]
    cold: bool,
    /// Go on from a template that was saved; it says what image, kernel and size the VM has
    #[arg(long, value_name = "NAME", conflicts_with = "cold")]
    template: Option<VmName>,
}

impl MachineArgs {
    /// The request for such a machine.
    pub(crate) fn into_request(self) -> CreateVm {
        CreateVm {
            name: self.name,
            image: self.image,
            kernel: self.kernel,
            driver: self.driver,
            accel: self.accel,
            vcpu: self.vcpu,
            memory: self.memory,
            disk_size: self.disk_size,
            work_disk: self.work_disk,
            network: self.network,
            nat: self.nat,
            host_access: self.host_access,
            cold: self.cold,
            template: self.template,
            ..CreateVm::default()
        }
    }
}

/// How a repository is copied in.
#[derive(Debug, clap::Args)]
pub(crate) struct WorkspaceArgs {
    /// How much is copied: shallow_overlay, full_copy or metadata_only [default: shallow_overlay]
    #[arg(long)]
    mode: Option<WorkspaceMode>,
    /// Where the repository is in the guest [default: /root/repo]
    #[arg(long, value_name = "PATH")]
    guest_path: Option<GuestPath>,
    /// Check out a new branch of this name in the guest
    #[arg(long, value_name = "NAME")]
    branch: Option<String>,
    /// Where that branch begins [default: HEAD]
    #[arg(long, value_name = "REF", requires = "branch")]
    from: Option<String>,
    /// Copy untracked files too; ignored ones always stay behind
    #[arg(long)]
    include_untracked: bool,
    /// Mount the copy read-only in the guest
    #[arg(long)]
    readonly: bool,
    /// Show what would be copied, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

impl WorkspaceArgs {
    /// A flag that was given although it means nothing without a repository.
    pub(crate) fn given(&self) -> Option<&'static str> {
        [
            (self.mode.is_some(), "--mode"),
            (self.guest_path.is_some(), "--guest-path"),
            (self.branch.is_some(), "--branch"),
            (self.include_untracked, "--include-untracked"),
            (self.readonly, "--readonly"),
            (self.dry_run, "--dry-run"),
        ]
        .into_iter()
        .find_map(|(given, flag)| given.then_some(flag))
    }

    /// The request to copy the repository at `path`.
    ///
    /// # Errors
    /// When there is nothing at `path`.
    pub(crate) fn into_request(self, path: &OsStr) -> Result<PrepareRequest> {
        Ok(PrepareRequest {
            path: existing(path)?,
            mode: self.mode,
            guest_path: self.guest_path,
            branch: self.branch,
            from: self.from,
            include_untracked: self.include_untracked,
            readonly: self.readonly,
        })
    }
}

/// What to do about a workspace whose repository has moved on.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct RefreshArgs {
    /// Bring the workspace up to date with the repository on the host first
    #[arg(long)]
    pub(crate) auto_prepare: bool,
    /// With --auto-prepare, give up what the guest changed where the host did too
    #[arg(long, requires = "auto_prepare")]
    pub(crate) force: bool,
}

/// The absolute form of a path on this host that must exist.
pub(crate) fn existing(path: &OsStr) -> Result<ByteString> {
    match std::fs::canonicalize(path) {
        Ok(absolute) => Ok(ByteString(absolute.into_os_string().into_vec())),
        Err(e) => {
            Err(Error::invalid(format!("cannot use the path '{}': {e}", PathBuf::from(path).display()))
                .with_hint("give the path of something that exists on this host")
                .into())
        }
    }
}

/// How a command is tied to our terminal.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct TerminalArgs {
    /// Pass stdin on also when it is a terminal
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal; implies -i
    #[arg(short, long)]
    pub(crate) tty: bool,
}

/// How a command is run in the guest.
#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    /// Set a variable, or with a bare KEY pass on our own; may be repeated
    #[arg(short, long = "env", value_name = "KEY[=VALUE]", value_parser = OsStringValueParser::new().try_map(named))]
    env: Vec<OsString>,
    /// Directory to run in [default: the workspace, else the user's home]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<OsString>,
    /// User to run as [default: root]
    #[arg(short, long)]
    user: Option<String>,
    /// End the command after this long, such as 90s or 10m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

impl ExecArgs {
    /// The request for a command, and whether the keyboard becomes the guest's. An empty command is
    /// the login shell.
    pub(crate) fn into_request(self, argv: Vec<OsString>, terminal: &TerminalArgs) -> (ExecRequest, bool) {
        let keyboard = terminal::stdin_is_terminal();
        let tty = terminal.tty;
        let own = |key: &OsStr| std::env::var_os(key);
        let mut env: Vec<_> = self.env.iter().filter_map(|word| variable(word, own)).collect();
        if tty && !env.iter().any(|(key, _)| key.as_bytes() == b"TERM") {
            env.extend(variable(OsStr::new("TERM"), own));
        }
        let request = ExecRequest {
            argv: argv.into_iter().map(ByteString::from).collect(),
            env,
            workdir: self.workdir.map(ByteString::from),
            user: self.user,
            tty: tty.then(terminal::size),
            stdin: terminal.interactive || tty || !keyboard,
            timeout_ms: self.timeout.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
        };
        (request, tty && keyboard)
    }
}

/// Refuses a variable without a name.
fn named(word: OsString) -> Result<OsString, &'static str> {
    if word.is_empty() || word.as_bytes().starts_with(b"=") {
        return Err("a variable has a name: KEY=VALUE, or KEY");
    }
    Ok(word)
}

/// `KEY=VALUE`, or `KEY` with its value from `own`; a variable we do not have is not passed on.
fn variable(word: &OsStr, own: impl Fn(&OsStr) -> Option<OsString>) -> Option<(ByteString, ByteString)> {
    let bytes = word.as_bytes();
    let (key, value) = match bytes.iter().position(|b| *b == b'=') {
        Some(at) => (&bytes[..at], OsStr::from_bytes(&bytes[at + 1..]).to_owned()),
        None => (bytes, own(word)?),
    };
    Some((ByteString(key.to_vec()), ByteString::from(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_bytes_and_may_come_from_our_own_environment() {
        let own = |key: &OsStr| (key == "HERE").then(|| OsString::from_vec(vec![0xff]));
        let get = |word: &[u8]| variable(OsStr::from_bytes(word), own);
        let pair = |k: &[u8], v: &[u8]| Some((ByteString(k.to_vec()), ByteString(v.to_vec())));
        assert_eq!(get(b"A=b=c"), pair(b"A", b"b=c"));
        assert_eq!(get(b"A="), pair(b"A", b""));
        assert_eq!(get(b"A=\xfe"), pair(b"A", b"\xfe"));
        assert_eq!(get(b"HERE"), pair(b"HERE", b"\xff"));
        assert_eq!(get(b"GONE"), None);
        for (word, fine) in [("=x", false), ("", false), ("A", true), ("A=", true)] {
            assert_eq!(named(word.into()).is_ok(), fine, "{word}");
        }
    }
}
