//! Growing an ext4 file system to its disk, which the host made larger while the machine was off. The kernel does it
//! while the file system is mounted, and its journal keeps a growth that is cut off from doing harm.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::error::{BootError, Result};
use super::{console, sys};

/// What mke2fs leaves unused at the end of a disk: less than a group's tables.
const TAIL: u64 = 4 << 20;

/// Grows the file system on `device`, mounted at `mounted`, if the device has room. One that cannot be grown is as
/// good as before: a line on the console says why.
pub(super) fn fill_device(device: &Path, mounted: &Path) {
    let grown = room(device).and_then(|room| match room {
        Some(blocks) => grow(mounted, blocks),
        None => Ok(()),
    });
    if let Err(error) = grown {
        console::say(&error.to_string());
    }
}

fn grow(mounted: &Path, blocks: u64) -> Result<()> {
    let what = || format!("grow the file system at {}", mounted.display());
    let directory = File::open(mounted).map_err(BootError::os(what()))?;
    sys::resize_ext4(&directory, blocks).map_err(BootError::os(what()))
}

/// How many blocks it could have, if that is worth while.
fn room(device: &Path) -> Result<Option<u64>> {
    let what = || format!("look at the size of {}", device.display());
    let mut disk = File::open(device).map_err(BootError::os(what()))?;
    let size = disk.seek(SeekFrom::End(0)).map_err(BootError::os(what()))?;
    let mut superblock = [0; 1024];
    disk.seek(SeekFrom::Start(1024))
        .and_then(|_| disk.read_exact(&mut superblock))
        .map_err(BootError::os(what()))?;
    Ok(Superblock::parse(&superblock).and_then(|now| now.room(size)))
}

/// What the growth needs of it (kernel: Documentation/filesystems/ext4/super.rst).
#[derive(Debug, PartialEq, Eq)]
struct Superblock {
    blocks: u64,
    block_size: u64,
}

impl Superblock {
    fn parse(bytes: &[u8; 1024]) -> Option<Self> {
        let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let magic = bytes.get(0x38..0x3a)?;
        let wide = word(0x60)? & 0x80 != 0;
        let high = if wide { u64::from(word(0x150)?) << 32 } else { 0 };
        let block_size = 1024u64.checked_shl(word(0x18)?).filter(|size| *size <= 64 << 10)?;
        (magic == [0x53, 0xef]).then_some(Self { blocks: high | u64::from(word(0x4)?), block_size })
    }

    fn room(&self, device_bytes: u64) -> Option<u64> {
        let possible = device_bytes / self.block_size;
        let more = possible.checked_sub(self.blocks)?.checked_mul(self.block_size)?;
        (more >= TAIL).then_some(possible)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(blocks: u64, log: u32) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        bytes[0x4..0x8].copy_from_slice(&(blocks as u32).to_le_bytes());
        bytes[0x18..0x1c].copy_from_slice(&log.to_le_bytes());
        bytes[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        bytes[0x60..0x64].copy_from_slice(&0x80u32.to_le_bytes());
        bytes[0x150..0x154].copy_from_slice(&((blocks >> 32) as u32).to_le_bytes());
        bytes
    }

    #[test]
    fn only_a_disk_with_more_than_a_tail_is_worth_growing() {
        let gib = 1u64 << 30;
        let now = Superblock::parse(&superblock(gib / 4096, 2)).unwrap();
        assert_eq!(now.room(gib), None);
        assert_eq!(now.room(gib + (1 << 20)), None, "a tail");
        assert_eq!(now.room(2 * gib + 100), Some(2 * gib / 4096));
        assert_eq!(now.room(gib / 2), None, "a disk that shrank is not ours to mend");
        let huge = Superblock::parse(&superblock(1 << 33, 2)).unwrap();
        assert_eq!(huge, Superblock { blocks: 1 << 33, block_size: 4096 });
    }

    #[test]
    fn what_is_no_ext4_is_left_alone() {
        assert_eq!(Superblock::parse(&[0; 1024]), None);
        assert_eq!(Superblock::parse(&superblock(1, 40)), None);
    }
}
