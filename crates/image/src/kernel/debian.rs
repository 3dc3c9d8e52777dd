//! Debian's cloud kernel: the package, fetched by a private apt and unpacked, without root and without touching the
//! host's package lists. Must never run hooks of the host's apt: they are written for its own state.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::error::{KernelError, Result};
use super::store::digest_of;
use super::tool::Tool;
use crate::context::Context;
use crate::error::ImageError;
use crate::workdir::make_private_dir;

const META_PACKAGE: &str = "linux-image-cloud-amd64";
const APT_GET: Tool = Tool("apt-get");
const APT_CACHE: Tool = Tool("apt-cache");
const APT_CONFIG: Tool = Tool("apt-config");
const DPKG_DEB: Tool = Tool("dpkg-deb");
const WHAT: &str = "the kernel download";
/// At how many percent of a pull the package lists are there, and at how many the package is: by a pull that took 8 s near a
/// mirror, with more given to the download, which takes longer elsewhere.
const LISTED: u8 = 25;
const DOWNLOADED: u8 = 70;
/// A cached package younger than this is used without asking for a newer one.
const FRESH: Duration = Duration::from_secs(7 * 24 * 3600);

/// What the cache says about its package.
#[derive(Debug, Serialize, Deserialize)]
struct Cached {
    file: String,
    sha256: String,
}

/// An unpacked kernel package below `work`, and the package's file name.
pub(super) fn fetch(work: &Path, force: bool, ctx: &Context<'_>) -> Result<(PathBuf, String)> {
    let cache = ctx.cache_dir.join("kernels");
    make_private_dir(&cache)?;
    let cached = read_cache(&cache);
    let fresh = cached.as_ref().is_some_and(|(deb, _)| age(deb) < FRESH);
    let (deb, file) = match cached {
        Some(cached) if fresh && !force => {
            ctx.report("download", format!("{} is in the cache", cached.1), Some(DOWNLOADED));
            cached
        }
        old => match (download(work, &cache, ctx), old) {
            (Err(error), Some(cached))
                if !force && !matches!(&error, KernelError::Image(ImageError::Cancelled { .. })) =>
            {
                ctx.report("download", format!("{error}; using {} of the cache", cached.1), Some(DOWNLOADED));
                cached
            }
            (done, _) => done?,
        },
    };
    let tree = work.join("package");
    ctx.report("unpack", format!("unpacking {file}"), Some(DOWNLOADED));
    DPKG_DEB.run(DPKG_DEB.command()?.arg("-x").args([&deb, &tree]), WHAT, ctx, |_| {})?;
    Ok((tree, file))
}

fn read_cache(cache: &Path) -> Option<(PathBuf, String)> {
    let note = std::fs::read(cache.join("debian-cloud.json")).ok()?;
    let cached: Cached = serde_json::from_slice(&note).ok()?;
    if cached.file.contains('/') {
        return None;
    }
    let deb = cache.join(&cached.file);
    // A damaged cache is no cache.
    (digest_of(&deb).ok()?.as_str() == cached.sha256).then_some((deb, cached.file))
}

fn age(path: &Path) -> Duration {
    let modified = std::fs::metadata(path).and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    // A time in the future is a clock that was set: as good as new.
    SystemTime::now().duration_since(modified).unwrap_or_default()
}

fn download(work: &Path, cache: &Path, ctx: &Context<'_>) -> Result<(PathBuf, String)> {
    if APT_GET.command().is_err() {
        return Err(KernelError::NoPackage {
            message: "there is no apt on this host to get Debian's kernel with".to_owned(),
        });
    }
    let apt = Apt::prepare(work, ctx)?;
    ctx.report("lists", "reading the package lists of this host's sources", Some(0));
    // One broken source of many is no reason to give up: whether the package is known decides.
    let update = APT_GET.run(apt.command(APT_GET)?.args(["-q", "update"]), WHAT, ctx, |_| {});
    if let Err(KernelError::Image(error @ ImageError::Cancelled { .. })) = update {
        return Err(error.into());
    }
    let package = match (apt.image_package(ctx), update) {
        (Ok(package), _) => package,
        (Err(KernelError::Image(error @ ImageError::Cancelled { .. })), _) => return Err(error.into()),
        (Err(_), Err(update)) => return Err(update),
        (Err(error), Ok(_)) => return Err(error),
    };
    ctx.report("download", format!("downloading {package}"), Some(LISTED));
    let into = work.join("deb");
    make_private_dir(&into)?;
    let mut command = apt.command(APT_GET)?;
    command.current_dir(&into).args(["-q", "-o", "APT::Status-Fd=2", "download", &package]);
    let mut last = 0;
    APT_GET.run(&command, WHAT, ctx, |line| {
        if let Some(percent) = percent(line)
            && percent > last
        {
            last = percent;
            let of_all = u16::from(percent) * u16::from(DOWNLOADED - LISTED) / 100;
            let percent = u8::try_from(of_all).map_or(DOWNLOADED, |of_all| LISTED + of_all);
            ctx.report("download", format!("downloading {package}"), Some(percent));
        }
    })?;
    keep(&into, cache)
}

/// Moves the one package of `from` into the cache, and the older one out.
fn keep(from: &Path, cache: &Path) -> Result<(PathBuf, String)> {
    let names = std::fs::read_dir(from).map_err(ImageError::io("read", from))?.flatten();
    let Some(file) =
        names.filter_map(|entry| entry.file_name().into_string().ok()).find(|name| name.ends_with(".deb"))
    else {
        return Err(ImageError::bad_source(from, "apt-get downloaded nothing").into());
    };
    let deb = cache.join(&file);
    let sha256 = digest_of(&from.join(&file))?.as_str().to_owned();
    let part = cache.join(format!("{file}.{}.part", std::process::id()));
    std::fs::copy(from.join(&file), &part).map_err(ImageError::io("write", &part))?;
    std::fs::rename(&part, &deb).map_err(ImageError::io("write", &deb))?;
    let old = read_cache(cache);
    let note = cache.join("debian-cloud.json");
    let text = serde_json::to_vec(&Cached { file: file.clone(), sha256 }).unwrap_or_default();
    let part = cache.join(format!("debian-cloud.json.{}.part", std::process::id()));
    std::fs::write(&part, text).map_err(ImageError::io("write", &part))?;
    std::fs::rename(&part, &note).map_err(ImageError::io("write", &note))?;
    if let Some((old, name)) = old
        && name != file
    {
        let _ = std::fs::remove_file(old);
    }
    Ok((deb, file))
}

/// `dlstatus:1:42.1234:Retrieving file 1 of 1` of apt's status descriptor.
fn percent(line: &str) -> Option<u8> {
    let number = line.strip_prefix("dlstatus:")?.split(':').nth(1)?;
    number.split('.').next()?.parse().ok().filter(|percent| *percent <= 100)
}

/// A private apt: its state in scratch, the host's sources, keys, proxies and credentials.
struct Apt {
    config: PathBuf,
}

impl Apt {
    fn prepare(work: &Path, ctx: &Context<'_>) -> Result<Self> {
        let root = work.join("apt");
        for dir in ["empty", "lists/partial", "cache/archives/partial"] {
            make_private_dir(&root.join(dir))?;
        }
        let status = root.join("status");
        std::fs::write(&status, "").map_err(ImageError::io("write", &status))?;
        let host = APT_CONFIG.run(APT_CONFIG.command()?.arg("dump"), WHAT, ctx, |_| {})?;
        let config = root.join("apt.conf");
        std::fs::write(&config, configuration(&host, &root)).map_err(ImageError::io("write", &config))?;
        Ok(Self { config })
    }

    fn command(&self, tool: Tool) -> Result<Command> {
        let mut command = tool.command()?;
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C.UTF-8");
        Ok(command)
    }

    /// The package that really has the kernel.
    fn image_package(&self, ctx: &Context<'_>) -> Result<String> {
        let none = || KernelError::NoPackage {
            message: format!("this host's package sources have no {META_PACKAGE}"),
        };
        let mut command = self.command(APT_CACHE)?;
        command.args(["show", "--no-all-versions", META_PACKAGE]);
        let shown = APT_CACHE.run(&command, WHAT, ctx, |_| {}).map_err(|error| match error {
            KernelError::Image(ImageError::ToolFailed { .. }) => none(),
            other => other,
        })?;
        depends_on_image(&shown).ok_or_else(none)
    }
}

/// The host's ways to fetch, and nothing else of its configuration.
fn configuration(dump: &str, root: &Path) -> String {
    let mut text: String = dump
        .lines()
        .filter(|line| line.starts_with("Acquire::") && !line.starts_with("Acquire::Languages"))
        .map(|line| format!("{line}\n"))
        .collect();
    let path = |name: &str| root.join(name).display().to_string().replace('"', "");
    for (key, value) in [
        ("Dir::Etc::parts", path("empty")),
        ("Dir::Etc::main", "/dev/null".to_owned()),
        ("Dir::State", path("")),
        ("Dir::State::lists", path("lists")),
        ("Dir::State::status", path("status")),
        ("Dir::Cache", path("cache")),
        ("APT::Architecture", "amd64".to_owned()),
        ("APT::Sandbox::User", String::new()),
        ("Acquire::Languages", "none".to_owned()),
        ("Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled", "false".to_owned()),
    ] {
        text.push_str(&format!("{key} \"{value}\";\n"));
    }
    text
}

/// The image package in a `Depends:` of `apt-cache show`.
fn depends_on_image(shown: &str) -> Option<String> {
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    depends
        .split([',', '|'])
        .filter_map(|one| one.split_ascii_whitespace().next())
        .find(|name| name.starts_with("linux-image-") && name.ends_with("-cloud-amd64"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_leads_to_the_real_one() {
        let shown =
            "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n";
        assert_eq!(depends_on_image(shown).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(depends_on_image("Package: x\nDepends: linux-base\n"), None);
        assert_eq!(depends_on_image(""), None);
    }

    #[test]
    fn the_host_s_hooks_stay_behind_and_its_proxy_comes_along() {
        let dump = "APT::Update::Post-Invoke:: \"rm -f /var/cache/apt/*.bin\";\nAcquire::http::Proxy \"http://p:1\";\n";
        let text = configuration(dump, Path::new("/scratch"));
        assert!(text.contains("Acquire::http::Proxy \"http://p:1\";\n"));
        assert!(!text.contains("Post-Invoke"));
        assert!(text.contains("Dir::State::lists \"/scratch/lists\";\n"));
    }

    #[test]
    fn progress_is_read_from_apt_s_status_lines() {
        assert_eq!(percent("dlstatus:1:42.1234:Retrieving file 1 of 1"), Some(42));
        assert_eq!(percent("dlstatus:1:1000:x"), None);
        assert_eq!(percent("Get:1 http://x"), None);
    }

    #[test]
    fn a_cached_package_counts_only_while_its_digest_holds() {
        // Given a package that was downloaded
        let dir = tempfile::tempdir().unwrap();
        let (from, cache) = (dir.path().join("from"), dir.path().join("cache"));
        std::fs::create_dir_all(&from).unwrap();
        std::fs::create_dir_all(&cache).unwrap();
        std::fs::write(from.join("a_1.deb"), "one").unwrap();
        let (deb, _) = keep(&from, &cache).unwrap();
        assert_eq!(read_cache(&cache).unwrap(), (deb.clone(), "a_1.deb".to_owned()));
        // When a newer one comes, the older one goes
        std::fs::rename(from.join("a_1.deb"), from.join("a_2.deb")).unwrap();
        let (newer, _) = keep(&from, &cache).unwrap();
        assert!(newer.exists() && !deb.exists());
        // And a damaged one is none
        std::fs::write(&newer, "two").unwrap();
        assert!(read_cache(&cache).is_none());
    }
}
