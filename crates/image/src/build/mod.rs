//! Debian root file systems, made by mmdebstrap straight into a squashfs file.
//! Must never need root, change the host, or carry the host's identity into the image.

mod apt;
mod cache;
mod log;

use std::fs;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_host::{programs, subordinate_ids};
use banger_model::Bytes;

use crate::archive;
use crate::context::Context;
use crate::error::{ImageError, Result};
use crate::files::{BuildSpec, DEFAULT_RELEASE};
use crate::job::Job;
use crate::space;
use crate::squash::{self, Finished, Squash};
use crate::workdir::WorkDir;
use cache::Cache;
use log::Log;

/// The stages that a build reports, in this order; the last is the store's.
pub const BUILD_STAGES: [&str; 9] =
    ["prepare", "lists", "download", "extract", "base", "packages", "clean", "pack", "store"];

const WHAT: &str = "the image build";
/// Work directories in the system's temporary directory.
pub(crate) const PREFIX: &str = "banger-build-";

/// A machine that boots: init, the bus that it talks on, and devices.
const MINIMAL: [&str; 4] = ["systemd-sysv", "dbus", "udev", "kmod"];
/// What people need to work in a repository, without what they only might.
const DEVELOPMENT: [&str; 24] = [
    "bash-completion",
    "build-essential",
    "bzip2",
    "ca-certificates",
    "curl",
    "file",
    "git",
    "iproute2",
    "iputils-ping",
    "jq",
    "less",
    "nano",
    "openssh-client",
    "patch",
    "pkg-config",
    "procps",
    "python3",
    "python3-venv",
    "rsync",
    "sudo",
    "unzip",
    "vim-tiny",
    "xz-utils",
    "zstd",
];

/// Room for the unpacked tree with its packages, in the temporary directory; and for the packed image.
const ROOM: (u64, u64) = (1800 << 20, 600 << 20);
const ROOM_MINIMAL: (u64, u64) = (700 << 20, 200 << 20);

/// dpkg's options while it builds: no flushing, for a crash starts over anyway, and no documentation, which would be a
/// fifth of the image. Packages that are installed in a guest later are whole.
const DPKG: &str = "force-unsafe-io
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/info/*
path-exclude=/usr/share/lintian/*
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/locale.alias
path-exclude=/usr/share/man/*
";

/// Makes the directories that the other hooks and some packages count on (update-alternatives fails without man1).
const PREPARE: &str = r#"mkdir -p "$1/var/cache/apt/archives" "$1/etc/apt/apt.conf.d" "$1/etc/dpkg/dpkg.cfg.d"
for section in 1 2 3 4 5 6 7 8; do mkdir -p "$1/usr/share/man/man$section"; done"#;

/// Runs as the last step before packing, with the tree's path as `$1`. What is the host's (name, resolver, fetching
/// options) or must be each machine's own (host keys) goes; timers that would fetch packages behind the user's back in
/// every short-lived VM are masked.
const CUSTOMIZE: &str = r#"set -e
cd "$1"
rm -f etc/hostname etc/resolv.conf etc/ssh/ssh_host_*_key* etc/apt/apt.conf.d/00banger-build
rm -f etc/dpkg/dpkg.cfg.d/00banger-build var/log/apt/* var/log/dpkg.log var/log/alternatives.log
rm -f var/cache/apt/archives/*.deb var/lib/systemd/random-seed
chmod 0755 var/cache/apt/archives
mkdir -p etc/default etc/systemd/system
echo LANG=C.UTF-8 > etc/default/locale
for unit in apt-daily.timer apt-daily-upgrade.timer man-db.timer e2scrub_all.timer fstrim.timer; do
	ln -sf /dev/null "etc/systemd/system/$unit"
done
"#;

/// Builds into a file below `scratch`. `dir` is where the file is made.
pub(crate) fn build(spec: &BuildSpec, dir: WorkDir, ctx: &Context<'_>) -> Result<Finished> {
    let release = release(spec)?;
    let packages = packages(spec)?;
    squash::require()?;
    programs::find("mmdebstrap")?;
    require_subordinate_ids()?;
    let temp = temp_dir();
    let (tree, image) = if spec.minimal { ROOM_MINIMAL } else { ROOM };
    space::require("the image build", &temp, Bytes(tree))?;
    space::require("the image", dir.path(), Bytes(image))?;

    ctx.report("prepare", format!("preparing Debian {release}"), Some(0));
    // The namespace's ids are not this user: they must be able to pass, not to read.
    let work = WorkDir::new(&temp, PREFIX, 0o711)?;
    let cache = Cache::open(&ctx.cache_dir, release)?;
    let command = command(release, &packages, &spec.include, &work, &cache)?;
    let mut job = Job::start_guarded("mmdebstrap", &command)?;
    let stdout = job.take_stdout().ok_or_else(|| ImageError::ToolFailed {
        tool: "mmdebstrap",
        status: "started".to_owned(),
        tail: "it has no output".to_owned(),
    })?;
    let mut squash = Squash::start(dir)?;
    let mut pipe = squash.pipe()?;
    let mut log = Log::default();
    // The tree goes by on a thread of its own while this one follows the talk. It ends with the pipe.
    let (copied, ended) = std::thread::scope(|scope| {
        let copy = scope.spawn(move || {
            archive::copy(
                Path::new("the built tree"),
                &mut BufReader::with_capacity(1 << 18, stdout),
                &mut pipe,
                &|| {},
            )
        });
        let ended = job.follow(WHAT, ctx.cancelled, |line| {
            tracing::debug!(line, "mmdebstrap");
            if let Some(step) = log.line(line) {
                ctx.report(step.stage, step.message, step.percent);
            }
        });
        (copy.join(), ended)
    });
    let ended = ended?;
    if !ended.status.success() {
        return Err(log::failure(&ended.tail, ended.status.to_string(), release));
    }
    let copied = copied.unwrap_or_else(|_| {
        Err(ImageError::ToolFailed {
            tool: "mmdebstrap",
            status: "done".to_owned(),
            tail: "its tree could not be packed".to_owned(),
        })
    });
    // When the writer went away first, it says why.
    let finished = squash.finish(WHAT, ctx)?;
    copied?;
    squash::check(&finished.path(), Path::new("the built tree"))?;
    if let Err(error) = cache.keep() {
        tracing::warn!(%error, "downloads were not kept for the next build");
    }
    Ok(finished)
}

/// The build for people.
pub(crate) fn describe(spec: &BuildSpec) -> String {
    let release = spec.release.as_deref().unwrap_or(DEFAULT_RELEASE);
    let set = if spec.minimal { "minimal" } else { "development" };
    let mut text = format!("Debian {release}, {set} packages");
    if !spec.include.is_empty() {
        text.push_str(" and ");
        text.push_str(&spec.include.join(", "));
    }
    text
}

/// Where builds unpack. The namespace's ids must be able to get there, so a private `TMPDIR` will not do.
pub(crate) fn temp_dir() -> PathBuf {
    std::env::var_os("TMPDIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute() && is_open(dir))
        // A tree of a gigabyte belongs on a disk, which /tmp need not be.
        .unwrap_or_else(|| PathBuf::from("/var/tmp"))
}

fn is_open(dir: &Path) -> bool {
    dir.ancestors().all(|part| {
        fs::metadata(part).is_ok_and(|meta| meta.is_dir() && meta.permissions().mode() & 0o001 != 0)
    })
}

fn command(
    release: &str,
    packages: &[&str],
    included: &[String],
    work: &WorkDir,
    cache: &Cache,
) -> Result<Command> {
    let root = work.path();
    let write = |name: &str, text: String| {
        let path = root.join(name);
        fs::write(&path, text).map_err(ImageError::io("write", &path))
    };
    // mmdebstrap's hooks are words of a shell: fixed names in its working directory need no quoting.
    for (name, target) in [("before", cache.before()), ("after", cache.after())] {
        let link = root.join(name);
        std::os::unix::fs::symlink(target, &link).map_err(ImageError::io("make", &link))?;
    }
    write("apt.conf", format!("Acquire::Languages \"none\";\n{}", apt::fetching()))?;
    write("dpkg.cfg", DPKG.to_owned())?;

    let mut command = programs::command("mmdebstrap")?;
    command
        .current_dir(root)
        .env("TMPDIR", root)
        .env("LC_ALL", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env_remove("APT_CONFIG")
        .args(["--mode=unshare", "--variant=minbase", "--format=tar", "--verbose"])
        .arg(format!("--include={}", packages.join(",")))
        // Keep the downloads until they are copied out.
        .arg("--skip=essential/unlink")
        .arg(format!("--setup-hook={PREPARE}"))
        .arg("--setup-hook=upload apt.conf /etc/apt/apt.conf.d/00banger-build")
        .arg("--setup-hook=upload dpkg.cfg /etc/dpkg/dpkg.cfg.d/00banger-build")
        .arg("--setup-hook=sync-in before /var/cache/apt/archives")
        .arg("--customize-hook=sync-out /var/cache/apt/archives after")
        .arg(format!("--customize-hook={CUSTOMIZE}"))
        .args([release, "-"])
        .args(apt::sources(release));
    if !included.is_empty() {
        // A name that does not exist shows as soon as the lists are there, not when the base system is installed.
        let check = format!(
            r#"--extract-hook=APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq --simulate install {} >/dev/null"#,
            included.join(" ")
        );
        command.arg(check);
    }
    Ok(command)
}

fn release(spec: &BuildSpec) -> Result<&str> {
    let release = spec.release.as_deref().unwrap_or(DEFAULT_RELEASE);
    let first = release.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    let rest = release.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if first && rest && release.len() <= 40 {
        Ok(release)
    } else {
        Err(ImageError::Invalid {
            message: format!("'{}' is not a release's name", release.escape_debug()),
            hint: Some("name a release such as bookworm, trixie or sid".to_owned()),
        })
    }
}

fn packages(spec: &BuildSpec) -> Result<Vec<&str>> {
    let more: &[&str] = if spec.minimal { &[] } else { &DEVELOPMENT };
    let mut all: Vec<&str> = MINIMAL.iter().chain(more).copied().collect();
    for name in &spec.include {
        if !is_package(name) {
            return Err(ImageError::Invalid {
                message: format!("'{}' is not a package's name", name.escape_debug()),
                hint: Some(
                    "give Debian's names, with commas between them: --include cmake,ripgrep".to_owned(),
                ),
            });
        }
        all.push(name);
    }
    Ok(all)
}

/// Debian policy 5.6.7. apt would take a final '-' for "remove it".
fn is_package(name: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() >= 2
        && name.len() <= 100
        && name.bytes().next().is_some_and(alnum)
        && name.bytes().all(|b| alnum(b) || b"+.-".contains(&b))
        && !name.ends_with('-')
}

fn require_subordinate_ids() -> Result<()> {
    subordinate_ids::check(rustix::process::geteuid().as_raw()).map_err(|refused| ImageError::HostRefuses {
        message: refused.message,
        hint: refused.hint.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(release: Option<&str>, include: &[&str]) -> BuildSpec {
        BuildSpec {
            release: release.map(str::to_owned),
            include: include.iter().map(|s| (*s).to_owned()).collect(),
            minimal: true,
        }
    }

    #[test]
    fn neither_a_package_nor_a_release_can_smuggle_in_an_option_or_a_path() {
        for good in ["g++", "libstdc++-12-dev", "python3.11", "0ad"] {
            assert!(packages(&spec(None, &[good])).is_ok(), "{good}");
        }
        for bad in
            ["", "a", "-x", "--hook", "a b", "a,b", "A", "./x.deb", "bash-", "?essential", "a/b", "a=1", "ä"]
        {
            let error = packages(&spec(None, &[bad])).unwrap_err();
            assert!(error.to_string().contains("is not a package's name"), "{bad}");
        }
        assert_eq!(release(&spec(None, &[])).unwrap(), "bookworm");
        for bad in ["", "-x", "Bookworm", "a/b", "../x", "a b", "1"] {
            assert!(release(&spec(Some(bad), &[])).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_asked_for_comes_besides_the_default_set() {
        assert_eq!(
            packages(&spec(None, &["cmake"])).unwrap(),
            ["systemd-sysv", "dbus", "udev", "kmod", "cmake"]
        );
        let full = BuildSpec::default();
        assert!(packages(&full).unwrap().contains(&"git"));
        assert_eq!(describe(&full), "Debian bookworm, development packages");
        assert_eq!(describe(&spec(Some("trixie"), &["cmake"])), "Debian trixie, minimal packages and cmake");
    }
}
