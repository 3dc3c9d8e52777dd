//! The initramfs: a newc cpio archive (kernel: Documentation/driver-api/early-userspace/buffer-format.rst) of the
//! agent and the modules it loads, in the layout of `banger_protocol::boot`. Must never depend on time or host:
//! equal input gives equal bytes.

use std::io::{self, Write};

use banger_protocol::boot;

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const PLAIN: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;
/// Names the end of an archive.
const TRAILER: &str = "TRAILER!!!";

/// Writes the archive: the agent as /init, `/dev/console` for its first words, and the files of the module
/// directory, the list among them.
pub(crate) fn write(out: impl Write, agent: &[u8], modules: &[(String, Vec<u8>)]) -> io::Result<()> {
    let mut archive = Archive { out, inode: 0, written: 0 };
    archive.entry("dev", DIRECTORY, (0, 0), &[])?;
    archive.entry("dev/console", CHARACTER_DEVICE, (5, 1), &[])?;
    archive.entry(boot::MODULE_DIR, DIRECTORY, (0, 0), &[])?;
    archive.entry(boot::INIT, EXECUTABLE, (0, 0), agent)?;
    for (name, content) in modules {
        archive.entry(&format!("{}/{name}", boot::MODULE_DIR), PLAIN, (0, 0), content)?;
    }
    archive.inode = 0;
    archive.entry(TRAILER, 0, (0, 0), &[])?;
    archive.out.flush()
}

struct Archive<W> {
    out: W,
    inode: u32,
    written: usize,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let length = |n: usize| u32::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));
        self.inode += 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [
            self.inode,
            mode,
            0,
            0,
            1,
            0,
            length(content.len())?,
            0,
            0,
            device.0,
            device.1,
            length(name.len() + 1)?,
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }

    /// Header and content both end on a multiple of four.
    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.put([0; 4].get(..missing).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_it_and_equal_input_gives_equal_bytes() {
        // Given an agent and two module files of awkward lengths
        let modules = vec![("load".to_owned(), b"boot a.ko\n".to_vec()), ("a.ko".to_owned(), vec![7; 4097])];
        let make = || {
            let mut bytes = Vec::new();
            write(&mut bytes, b"agent", &modules).unwrap();
            bytes
        };
        // When the archive is read by cpio
        let bytes = make();
        let mut cpio = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = cpio.wait_with_output().unwrap();
        // Then it lists everything with its mode, size and device
        let list = String::from_utf8(output.stdout).unwrap();
        let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
        let brief: Vec<(&str, &str)> = rows.iter().map(|row| (row[0], *row.last().unwrap())).collect();
        assert_eq!(
            brief,
            [
                ("drwxr-xr-x", "dev"),
                ("crw-------", "dev/console"),
                ("drwxr-xr-x", "modules"),
                ("-rwxr-xr-x", "init"),
                ("-rw-r--r--", "modules/load"),
                ("-rw-r--r--", "modules/a.ko"),
            ]
        );
        assert!(output.status.success());
        assert!(list.contains("5,   1") && list.contains(" 4097 "), "{list}");
        assert_eq!(bytes, make());
    }
}
