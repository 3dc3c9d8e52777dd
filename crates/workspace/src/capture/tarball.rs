//! Tar entries byte for byte: any name, any link target, everything owned by root.
//!
//! Owns the format (ustar headers with GNU long names). Must never tidy a name or a target.

use std::io::{self, Write};

use tar::{EntryType, Header};

const BLOCK: usize = 512;

/// A tar stream being written.
pub(crate) struct Tarball<W> {
    out: W,
}

impl<W: Write> Tarball<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }

    /// A directory.
    pub(crate) fn directory(&mut self, path: &[u8], mtime: u64) -> io::Result<()> {
        self.header(EntryType::Directory, &[path, b"/"].concat(), &[], 0o755, mtime, 0)
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &[u8], target: &[u8], mtime: u64) -> io::Result<()> {
        self.header(EntryType::Symlink, path, target, 0o777, mtime, 0)
    }

    /// A small file.
    pub(crate) fn file(&mut self, path: &[u8], mode: u32, mtime: u64, data: &[u8]) -> io::Result<()> {
        self.begin(path, mode, mtime, data.len() as u64)?;
        self.data(data)?;
        self.end(data.len() as u64)
    }

    /// A file whose `size` bytes follow with [`Self::data`], closed by [`Self::end`].
    pub(crate) fn begin(&mut self, path: &[u8], mode: u32, mtime: u64, size: u64) -> io::Result<()> {
        self.header(EntryType::Regular, path, &[], mode, mtime, size)
    }

    pub(crate) fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.out.write_all(data)
    }

    /// Pads the file of `size` bytes to a whole block.
    pub(crate) fn end(&mut self, size: u64) -> io::Result<()> {
        let over = (size % BLOCK as u64) as usize;
        if over > 0 { self.out.write_all(&[0; BLOCK][over..]) } else { Ok(()) }
    }

    /// The end mark.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()
    }

    fn header(
        &mut self,
        kind: EntryType,
        path: &[u8],
        target: &[u8],
        mode: u32,
        mtime: u64,
        size: u64,
    ) -> io::Result<()> {
        if target.len() > 100 {
            self.long(EntryType::GNULongLink, target)?;
        }
        if path.len() > 100 {
            self.long(EntryType::GNULongName, path)?;
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(mtime);
        header.set_size(size);
        header.set_username("root")?;
        header.set_groupname("root")?;
        let bytes = header.as_mut_bytes();
        let (path, target) = (&path[..path.len().min(100)], &target[..target.len().min(100)]);
        bytes[..path.len()].copy_from_slice(path);
        bytes[157..157 + target.len()].copy_from_slice(target);
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn long(&mut self, kind: EntryType, name: &[u8]) -> io::Result<()> {
        let size = name.len() as u64 + 1;
        self.header(kind, b"././@LongLink", &[], 0o644, 0, size)?;
        self.out.write_all(name)?;
        self.out.write_all(&[0])?;
        self.end(size)
    }
}
