//! What makes the image *this* guest: hostname, machine id, and, for systemd, what must not be waited for.
//! Writes to the overlay and to /run only, and nothing that is right already. Must never fail a boot: a guest
//! whose /etc cannot be written is still a guest.

use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;

/// Units that wait for hardware that no VM here has, ask questions on a console that nobody reads, or spend the
/// first minutes on upkeep. Masked in /run, so the image and its overlay know nothing of it.
const MASKED_UNITS: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "man-db.timer",
    "NetworkManager-wait-online.service",
    "serial-getty@ttyS0.service",
    "serial-getty@hvc0.service",
    "systemd-firstboot.service",
    "systemd-networkd-wait-online.service",
    "systemd-remount-fs.service",
    "systemd-vconsole-setup.service",
];

/// Generators that look for disks and terminals of other machines: an image's fstab speaks of those, and a wait for
/// one of them would take 90 seconds and end in an emergency shell.
const MASKED_GENERATORS: &[&str] = &[
    "systemd-bless-boot-generator",
    "systemd-cryptsetup-generator",
    "systemd-fstab-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-veritysetup-generator",
];

/// The mounts of the kernel's modules, by both names of the directory. systemd would unmount them while it ends,
/// find them busy and report a failure; without the default dependencies it leaves them to the end.
const KEPT_MOUNTS: &[&str] = &["lib-modules.mount", "usr-lib-modules.mount"];

/// Sets the hostname, and names it in the image's files, below `root`, in the place of the one before.
pub(super) fn set_hostname(root: &Path, name: &str) {
    let before = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let _ = rustix::system::sethostname(name.as_bytes());
    write_hostname(root, &before, name);
}

fn write_hostname(root: &Path, before: &str, name: &str) {
    let hostname = root.join("etc/hostname");
    let text = read(&hostname);
    if text.trim() != name {
        replace(&hostname, text.len(), &format!("{name}\n"));
    }
    let hosts = root.join("etc/hosts");
    let before_text = read(&hosts);
    if let Some(text) = with_host(&before_text, before, name) {
        replace(&hosts, before_text.len(), &text);
    }
}

/// Gives a file of `length` bytes another text, over what it holds: that is less work than a new file, and the first of a
/// restored guest's work is the slowest.
fn replace(path: &Path, length: usize, text: &str) {
    let written =
        std::fs::File::options().write(true).create(true).truncate(false).open(path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            if text.len() < length { file.set_len(text.len() as u64) } else { Ok(()) }
        });
    // A guest whose files cannot be written is still a guest.
    drop(written);
}

/// The hosts file with an entry for `name`, in the place of the one for the name `before`; None when it has one.
fn with_host(text: &str, before: &str, name: &str) -> Option<String> {
    let names = |text: &str, word: &str| {
        text.lines()
            .map(|line| line.split('#').next().unwrap_or_default())
            .any(|line| line.split_ascii_whitespace().skip(1).any(|other| other == word))
    };
    let is_old = |line: &&str| **line == host_line(before);
    let had_old = before != name && text.lines().any(|line| is_old(&line));
    if names(text, name) && !had_old {
        return None;
    }
    let mut text: String = if had_old {
        text.lines().filter(|line| !is_old(line)).flat_map(|line| [line, "\n"]).collect()
    } else {
        text.to_owned()
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if !names(&text, "localhost") {
        text.insert_str(0, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    }
    if !names(&text, name) {
        text.push_str(&host_line(name));
        text.push('\n');
    }
    Some(text)
}

/// Our entry, by which it is known again.
fn host_line(name: &str) -> String {
    format!("127.0.1.1\t{name}")
}

/// Gives the guest a machine id of its own (machine-id(5)): where there is none, and on the first boot of a system
/// disk, since an id that came with the image would be that of every VM made from it.
pub(super) fn set_machine_id(root: &Path, first_boot: bool) {
    if machine_id(root).is_some() && !first_boot {
        return;
    }
    let mut bytes = [0; 16];
    if std::fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes)).is_err() {
        return;
    }
    write_machine_id(root, &hex::encode(bytes));
    let mode = std::fs::Permissions::from_mode(0o444);
    let _ = std::fs::set_permissions(root.join("etc/machine-id"), mode);
}

/// The machine id below `root`, if there is one.
pub(crate) fn machine_id(root: &Path) -> Option<String> {
    let id = read(&root.join("etc/machine-id"));
    let id = id.trim();
    (id.len() == 32).then(|| id.to_owned())
}

/// Writes the machine id below `root`, for an image that knows such a thing.
pub(crate) fn write_machine_id(root: &Path, id: &str) {
    let path = root.join("etc/machine-id");
    if path.symlink_metadata().is_err() && !root.join("usr/lib/systemd").is_dir() {
        return;
    }
    let (old, new) = (path.symlink_metadata().is_ok_and(|meta| meta.is_file()), format!("{id}\n"));
    if old {
        return replace(&path, read(&path).len(), &new);
    }
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::write(&path, new);
}

/// Tells systemd, below `run`, what not to start.
pub(super) fn calm_systemd(run: &Path) {
    for (dir, names) in [("systemd/system", MASKED_UNITS), ("systemd/system-generators", MASKED_GENERATORS)] {
        let dir = run.join(dir);
        if std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&dir).is_err() {
            continue;
        }
        for name in names {
            let _ = symlink("/dev/null", dir.join(name));
        }
    }
    for unit in KEPT_MOUNTS {
        keep_mount(run, unit);
    }
}

/// Tells systemd, below `run`, to leave a mount to the end.
pub(super) fn keep_mount(run: &Path, unit: &str) {
    let dir = run.join("systemd/system").join(format!("{unit}.d"));
    if std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&dir).is_ok() {
        let _ = std::fs::write(dir.join("banger.conf"), "[Unit]\nDefaultDependencies=no\n");
    }
}

/// The unit of a mount: `/home/a-b` is `home-a\\x2db.mount` (systemd.unit(5), "String escaping").
pub(super) fn mount_unit(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut unit = String::new();
    for byte in path.as_os_str().as_bytes().strip_prefix(b"/").unwrap_or_default() {
        match byte {
            b'/' => unit.push('-'),
            b'_' | b':' => unit.push(char::from(*byte)),
            b'.' if !unit.is_empty() => unit.push('.'),
            other if other.is_ascii_alphanumeric() => unit.push(char::from(*other)),
            other => unit.push_str(&format!("\\x{other:02x}")),
        }
    }
    unit + ".mount"
}

fn read(path: &Path) -> String {
    const MAX: u64 = 1 << 20;
    let mut text = String::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(MAX).read_to_string(&mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_gets_the_name_once() {
        let written = with_host("127.0.0.1 localhost # calm-otter", "(none)", "calm-otter").unwrap();
        assert_eq!(written, "127.0.0.1 localhost # calm-otter\n127.0.1.1\tcalm-otter\n");
        assert_eq!(with_host(&written, "(none)", "calm-otter"), None);
        assert_eq!(with_host(&written, "calm-otter", "calm-otter"), None);
        let bare = with_host("", "(none)", "a").unwrap();
        assert!(bare.starts_with("127.0.0.1\tlocalhost\n") && bare.ends_with("127.0.1.1\ta\n"), "{bare}");
    }

    #[test]
    fn another_name_takes_the_place_of_the_one_before() {
        // Given a guest that was somebody else, and a user's line about that machine
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        let hosts = root.path().join("etc/hosts");
        let text = "127.0.0.1\tlocalhost\n127.0.1.1\ttemplate\n10.0.0.7 template.example template\n";
        std::fs::write(&hosts, text).unwrap();
        // When it is renamed
        write_hostname(root.path(), "template", "calm-otter");
        // Then only our own line is another
        assert_eq!(
            read(&hosts),
            "127.0.0.1\tlocalhost\n10.0.0.7 template.example template\n127.0.1.1\tcalm-otter\n"
        );
        assert_eq!(read(&root.path().join("etc/hostname")), "calm-otter\n");
    }

    #[test]
    fn a_machine_id_is_made_where_it_is_missing_or_shared() {
        // Given an image with systemd and an uninitialized machine id
        let root = tempfile::tempdir().unwrap();
        let id = root.path().join("etc/machine-id");
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        std::fs::write(&id, "uninitialized\n").unwrap();
        // When it boots the first time
        set_machine_id(root.path(), true);
        let first = read(&id);
        assert!(first.trim().len() == 32 && first.trim().bytes().all(|b| b.is_ascii_hexdigit()), "{first}");
        // Then later boots keep it, and a first boot on another disk gets another
        set_machine_id(root.path(), false);
        assert_eq!(read(&id), first);
        set_machine_id(root.path(), true);
        assert_ne!(read(&id), first);
    }

    #[test]
    fn an_image_that_knows_no_machine_id_gets_none() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        set_machine_id(root.path(), true);
        assert!(!root.path().join("etc/machine-id").exists());
    }

    #[test]
    fn the_unit_of_a_mount_is_named_as_systemd_names_it() {
        assert_eq!(mount_unit(Path::new("/root")), "root.mount");
        assert_eq!(mount_unit(Path::new("/home/a-b")), "home-a\\x2db.mount");
        assert_eq!(mount_unit(Path::new("/.x/y.z")), "\\x2ex-y.z.mount");
    }

    #[test]
    fn masks_are_links_to_dev_null_in_run_only() {
        let run = tempfile::tempdir().unwrap();
        calm_systemd(run.path());
        calm_systemd(run.path());
        let mask = run.path().join("systemd/system/serial-getty@ttyS0.service");
        assert_eq!(std::fs::read_link(mask).unwrap(), Path::new("/dev/null"));
    }
}
