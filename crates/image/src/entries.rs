//! The archive that the squashfs writer reads: plain GNU entries, written by us from whatever comes in.
//! Must never pass on an entry that it did not understand, nor one that would be dropped or changed in silence.
//!
//! The writer (sqfstar 4.5) strips the leading '/' of a symbolic link's target in a pax header, and keeps the first of
//! two entries of one name where tar keeps the last. So names longer than a header go as GNU long names, and
//! duplicates are errors.

use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Write};

use tar::{EntryType, Header};

/// The capabilities of executables (capabilities(7)); the only attribute that a root file system needs.
pub(crate) const PAX_CAPABILITY: &str = "SCHILY.xattr.security.capability";

/// One entry, its content apart.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    /// Below the root, without `.`, `..` or double slashes.
    pub(crate) name: Vec<u8>,
    /// The target of a symbolic or hard link.
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) capability: Option<Vec<u8>>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
    pub(crate) size: u64,
    /// Major and minor number.
    pub(crate) device: Option<(u32, u32)>,
}

/// Two processes on two cores hand over in pieces of this size, not in blocks.
const BUFFER: usize = 1 << 18;

/// Writes entries, and counts them.
pub(crate) struct Entries<W: Write> {
    tar: tar::Builder<BufWriter<W>>,
    /// What was written, and whether it is a directory.
    seen: HashMap<Vec<u8>, bool>,
    files: u64,
}

impl<W: Write> Entries<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { tar: tar::Builder::new(BufWriter::with_capacity(BUFFER, out)), seen: HashMap::new(), files: 0 }
    }

    /// How many entries are no directories.
    pub(crate) fn files(&self) -> u64 {
        self.files
    }

    /// Why `entry` cannot be written, if so: its name is taken, or lies below something that is no directory.
    pub(crate) fn conflict(&self, entry: &Entry, kind: EntryType) -> Option<String> {
        match self.seen.get(&entry.name) {
            Some(was_dir) if !(*was_dir && kind.is_dir()) => return Some("is there twice".to_owned()),
            _ => {}
        }
        let mut parent = entry.name.as_slice();
        while let Some(slash) = parent.iter().rposition(|byte| *byte == b'/') {
            parent = &parent[..slash];
            if self.seen.get(parent) == Some(&false) {
                return Some(format!("lies below '{}', which is no directory", parent.escape_ascii()));
            }
        }
        None
    }

    /// Writes one entry with exactly `entry.size` bytes of `content`.
    pub(crate) fn write(&mut self, entry: Entry, kind: EntryType, content: &mut dyn Read) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(entry.mode & 0o7777);
        header.set_uid(entry.uid);
        header.set_gid(entry.gid);
        header.set_mtime(entry.mtime);
        header.set_size(entry.size);
        if let Some((major, minor)) = entry.device {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        if let Some(gnu) = header.as_gnu_mut() {
            if !put(&mut gnu.name, &entry.name) {
                long(&mut self.tar, EntryType::GNULongName, &entry.name)?;
            }
            if let Some(link) = &entry.link
                && !put(&mut gnu.linkname, link)
            {
                long(&mut self.tar, EntryType::GNULongLink, link)?;
            }
        }
        if let Some(capability) = &entry.capability {
            self.tar.append_pax_extensions([(PAX_CAPABILITY, capability.as_slice())])?;
        }
        header.set_cksum();
        let mut exact = content.take(entry.size);
        self.tar.append(&header, &mut exact)?;
        if exact.limit() > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.files += u64::from(!kind.is_dir());
        self.seen.insert(entry.name, kind.is_dir());
        Ok(())
    }

    /// Writes the end, without which the archive counts as truncated.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.tar.into_inner().and_then(|mut out| out.flush())
    }
}

/// The entry that carries the name of the next one: its bytes and a NUL (tar(5), "GNU tar archives").
fn long<W: Write>(tar: &mut tar::Builder<W>, kind: EntryType, name: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    if let Some(gnu) = header.as_gnu_mut() {
        put(&mut gnu.name, b"././@LongLink");
    }
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(name.len() as u64 + 1);
    header.set_cksum();
    tar.append(&header, name.chain(&[0u8][..]))
}

/// Copies what fits, and says whether all of it did.
fn put(field: &mut [u8], value: &[u8]) -> bool {
    let n = value.len().min(field.len());
    field[..n].copy_from_slice(&value[..n]);
    n == value.len()
}
