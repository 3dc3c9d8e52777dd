//! Directories that are mounted read-only where they are. Must never touch a mount that is not such a one.

use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};

/// Mounts a directory read-only over itself; done already is done, and where nothing is there is nothing to do.
pub(crate) fn protect(dir: &Path) -> io::Result<()> {
    if !dir.exists() || is_protected(dir)? {
        return Ok(());
    }
    mount_bind(dir, dir)?;
    // The bind alone takes the flags of what it is a part of.
    let flags = MountFlags::BIND | MountFlags::RDONLY;
    mount_remount(dir, flags, "").inspect_err(|_| {
        let _ = unmount(dir, UnmountFlags::DETACH);
    })?;
    Ok(())
}

/// Takes such a mount away; says whether there was one.
pub(super) fn lift(dir: &Path) -> io::Result<bool> {
    let was = is_protected(dir)?;
    if was {
        // Commands that are in it keep the old view.
        unmount(dir, UnmountFlags::DETACH)?;
    }
    Ok(was)
}

/// Whether a read-only bind mount of the directory itself is on top there.
fn is_protected(dir: &Path) -> io::Result<bool> {
    let Ok(dir) = std::fs::canonicalize(dir) else { return Ok(false) };
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(is_bound_readonly(&table, dir.as_os_str().as_bytes()))
}

/// proc(5): id, parent, device, root, mount point, options, …; the later line is on top.
fn is_bound_readonly(table: &[u8], dir: &[u8]) -> bool {
    let mut top = None;
    for line in table.split(|b| *b == b'\n') {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        if let [_, _, _, root, point, options, ..] = fields[..]
            && unescaped(point) == dir
        {
            let is_readonly = options.split(|b| *b == b',').any(|o| o == b"ro");
            top = Some(is_readonly && root != b"/");
        }
    }
    top == Some(true)
}

/// The table writes space, tab, line feed and backslash as octal numbers.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'\\')
            .then(|| {
                tail.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok())
            })
            .flatten();
        out.push(code.unwrap_or(first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    std::ffi::OsString::from_vec(out).into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_readonly_bind_on_top_counts() {
        let table = b"20 1 0:19 / / rw - overlay overlay rw\n21 20 0:19 /root/a\\040b /root/a\\040b ro,relatime - overlay overlay rw\n\
            22 20 0:19 /root/c /root/c ro - overlay x rw\n23 22 8:1 / /root/c rw - ext4 y rw\n24 20 7:0 / /ro ro - squashfs z ro\n";
        assert!(is_bound_readonly(table, b"/root/a b"));
        for not in [&b"/root/c"[..], b"/ro", b"/", b"/root/x"] {
            assert!(!is_bound_readonly(table, not), "{}", not.escape_ascii());
        }
    }
}
