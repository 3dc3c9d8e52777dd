//! The barest image there is: one static busybox and links to it. No init, no sshd, no git, no
//! `/etc/passwd`, no directory that a kernel or a daemon could hope for.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

const TOOLS: &[&str] = &[
    "sh",
    "ash",
    "[",
    "awk",
    "base64",
    "cat",
    "chmod",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "echo",
    "env",
    "false",
    "find",
    "grep",
    "head",
    "hostname",
    "id",
    "ip",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mknod",
    "mv",
    "nc",
    "nslookup",
    "od",
    "pidof",
    "ping",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "sed",
    "seq",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "sync",
    "tail",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "truncate",
    "uname",
    "uptime",
    "wc",
    "wget",
    "xargs",
    "yes",
];

/// Lays the image's files out in `dir`; false when this host has no static busybox.
#[must_use]
pub fn lay_out(dir: &Path) -> bool {
    let source = Path::new("/bin/busybox");
    if !source.exists() {
        return false;
    }
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).expect("a directory");
    fs::copy(source, bin.join("busybox")).expect("a copy of busybox");
    fs::set_permissions(bin.join("busybox"), fs::Permissions::from_mode(0o755)).expect("its mode");
    for tool in TOOLS {
        symlink("busybox", bin.join(tool)).expect("a link to busybox");
    }
    true
}
