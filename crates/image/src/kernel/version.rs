//! What a kernel file is and which release it was built as, read from the file itself.
//! Must never run anything: the file may be anybody's.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use super::error::Result;
use crate::error::ImageError;

/// "HdrS", offset 0x202 of a bzImage (kernel: Documentation/arch/x86/boot.rst).
const MAGIC: (u64, &[u8]) = (0x202, b"HdrS");
/// Offset 0x20e: where the version string is, minus 0x200.
const VERSION_POINTER: u64 = 0x20e;
/// Longer than any version string: release, builder, date.
const VERSION_MAX: u64 = 512;
/// How an uncompressed kernel greets, `init/version.c`.
const BANNER: &[u8] = b"Linux version ";

/// `uname -r` of a bzImage or an uncompressed ELF kernel.
pub(super) fn release(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(ImageError::io("open", path))?;
    let found = match read_at(&mut file, 0, 4).map_err(ImageError::io("read", path))? {
        magic if magic == b"\x7fELF" => banner_release(file),
        _ => header_release(&mut file),
    };
    match found.map_err(ImageError::io("read", path))? {
        Some(release) => Ok(release),
        None => Err(ImageError::bad_source(
            path,
            "it is no x86 kernel: neither a bzImage nor an ELF with a version",
        )
        .into()),
    }
}

fn header_release(file: &mut File) -> io::Result<Option<String>> {
    if read_at(file, MAGIC.0, MAGIC.1.len() as u64)? != MAGIC.1 {
        return Ok(None);
    }
    let Ok(pointer) = <[u8; 2]>::try_from(read_at(file, VERSION_POINTER, 2)?) else { return Ok(None) };
    let at = u64::from(u16::from_le_bytes(pointer));
    if at == 0 {
        return Ok(None);
    }
    Ok(first_word(&read_at(file, at + 0x200, VERSION_MAX)?))
}

fn banner_release(mut file: File) -> io::Result<Option<String>> {
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::new(file);
    let mut matched = 0;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
        }
        let length = buffer.len();
        let mut used = length;
        for (index, byte) in buffer.iter().enumerate() {
            // No prefix of the banner but the first letter repeats in it, so one step back is enough.
            matched = if BANNER.get(matched) == Some(byte) {
                matched + 1
            } else {
                usize::from(BANNER.first() == Some(byte))
            };
            if matched == BANNER.len() {
                used = index + 1;
                break;
            }
        }
        reader.consume(used);
        if matched == BANNER.len() {
            let mut text = Vec::new();
            reader.by_ref().take(VERSION_MAX).read_to_end(&mut text)?;
            // The format string of the same greeting is in the file, too: "Linux version %s".
            match first_word(&text) {
                Some(release) => return Ok(Some(release)),
                None => return banner_again(reader),
            }
        }
    }
}

/// Looks on after a greeting that was not one, in what is left of the file.
fn banner_again(mut reader: BufReader<File>) -> io::Result<Option<String>> {
    let mut rest = Vec::new();
    reader.by_ref().take(256 << 20).read_to_end(&mut rest)?;
    Ok(rest
        .windows(BANNER.len())
        .enumerate()
        .filter(|(_, window)| *window == BANNER)
        .find_map(|(at, _)| first_word(rest.get(at + BANNER.len()..)?)))
}

/// A release is a word that could be a directory's name: it becomes one below `/lib/modules`.
fn first_word(bytes: &[u8]) -> Option<String> {
    let word: String = bytes.iter().take_while(|b| b.is_ascii_graphic()).map(|b| char::from(*b)).collect();
    let fits = word.len() < 65
        && word.starts_with(|c: char| c.is_ascii_digit())
        && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '~'));
    fits.then_some(word)
}

/// Up to `length` bytes at `offset`; fewer at the end of the file.
fn read_at(file: &mut File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file that is a bzImage as far as its header goes.
    pub(in crate::kernel) fn bzimage(release: &str) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x150u16.to_le_bytes());
        let version = format!("{release} (debian-kernel@lists.debian.org) #1 SMP\0");
        bytes[0x350..0x350 + version.len()].copy_from_slice(version.as_bytes());
        bytes
    }

    fn release_of(bytes: &[u8]) -> Result<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        release(file.path())
    }

    #[test]
    fn a_bzimage_names_its_release_in_its_header() {
        assert_eq!(release_of(&bzimage("6.1.0-56-cloud-amd64")).unwrap(), "6.1.0-56-cloud-amd64");
    }

    #[test]
    fn an_elf_kernel_greets_with_its_release() {
        let elf = [b"\x7fELF".as_slice(), &[0; 9000], b"LLinux version 6.12.3-x (me@here)\n"].concat();
        assert_eq!(release_of(&elf).unwrap(), "6.12.3-x");
        let format_first =
            [b"\x7fELF..Linux version %s\n".as_slice(), &[0; 700], b"Linux version 6.9 (me)"].concat();
        assert_eq!(release_of(&format_first).unwrap(), "6.9");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let mut pointless = bzimage("6.1");
        pointless[0x20e..0x210].copy_from_slice(&[0xff, 0xff]);
        for bad in
            [&b""[..], b"text", &[0; 5000], b"\x7fELF and no greeting", &pointless, &bzimage("../../etc")]
        {
            assert!(release_of(bad).unwrap_err().to_string().contains("no x86 kernel"));
        }
    }
}
