//! Packages of this host's own sources, fetched and unpacked by any user.
//! Owns an apt state below the directory that it is given. Must never change the host's, nor run hooks written for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Run;

const LONG: Duration = Duration::from_secs(300);

/// Whether this host has the programs.
#[must_use]
pub fn is_there() -> bool {
    let starts = |program| Command::new(program).arg("--version").output().is_ok();
    ["apt-get", "apt-cache", "apt-config", "dpkg-deb"].into_iter().all(starts)
}

/// Unpacks the kernel that a package without files, such as `linux-image-amd64`, depends on; the directory of its files.
///
/// # Panics
/// When it cannot be had.
#[must_use]
pub fn kernel_package(name: &str, dir: &Path) -> PathBuf {
    let config = configure(dir);
    let apt = |program: &str| Run::new(program).env("APT_CONFIG", &config).dir(dir).within(LONG);
    // Of many sources one may be broken. Whether the package is there decides.
    let _ = apt("apt-get").args(["-q", "update"]).go();
    let depends = apt("apt-cache").args(["depends", name]).go().ok();
    let package = depends.text().lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.into_iter().find(|package| package.starts_with("linux-image-"));
    apt("apt-get").args(["-q", "download", package.expect("a kernel")]).go().ok().done();
    let mut files = fs::read_dir(dir).expect("the directory").flatten().map(|entry| entry.path());
    let deb = files.find(|path| path.extension().is_some_and(|e| e == "deb")).expect("a package");
    let tree = dir.join("tree");
    Run::new("dpkg-deb").arg("-x").args([&deb, &tree]).within(LONG).go().ok().done();
    tree
}

/// A configuration with the host's ways to fetch, and a state of its own.
fn configure(dir: &Path) -> PathBuf {
    for name in ["empty", "lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(dir.join(name)).expect("a directory");
    }
    let host = Run::new("apt-config").arg("dump").go().ok();
    let mut text: String =
        host.text().lines().filter(|l| l.starts_with("Acquire::")).map(|l| format!("{l}\n")).collect();
    for (key, value) in [
        ("Dir::Etc::parts", "empty"),
        ("Dir::State", ""),
        ("Dir::State::lists", "lists"),
        ("Dir::Cache", "cache"),
        ("Dir::State::status", "status"),
    ] {
        text.push_str(&format!("{key} \"{}\";\n", dir.join(value).display()));
    }
    text.push_str("Dir::Etc::main \"/dev/null\";\nAPT::Architecture \"amd64\";\nAPT::Sandbox::User \"\";\n");
    fs::write(dir.join("status"), "").expect("a file");
    let config = dir.join("apt.conf");
    fs::write(&config, text).expect("a file");
    config
}
