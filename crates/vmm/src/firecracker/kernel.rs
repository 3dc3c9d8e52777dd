//! The uncompressed kernel inside a bzImage: some versions of Firecracker boot nothing else. Kept beside the kernel, so that it is unpacked once. Must never trust a length in the file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::{Result, VmmError};

/// No kernel is larger, packed or not, bytes.
const KERNEL_MAX: u64 = 512 << 20;
/// Where the setup header has what we need (the kernel's Documentation/arch/x86/boot.rst).
const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The version of the boot protocol that brought the payload's place.
const WITH_PAYLOAD: u16 = 0x0208;

/// The file of an ELF kernel: the kernel itself if it is one, else what is inside it. Blocks.
pub(super) fn elf(kernel: &Path) -> Result<PathBuf> {
    let failed = |what| VmmError::file(what, kernel);
    let time = fs::metadata(kernel).and_then(|m| m.modified()).map_err(failed("look at"))?;
    let beside = |end: &str| {
        let mut name = kernel.file_name().unwrap_or_default().to_owned();
        name.push(end);
        kernel.with_file_name(name)
    };
    let (unpacked, fresh) = (beside(".elf"), beside(".elf.new"));
    // Equal times, as it was left below: it belongs to this kernel and not to its predecessor.
    let is_there = || fs::metadata(&unpacked).and_then(|m| m.modified()).is_ok_and(|cached| cached == time);
    if is_there() {
        return Ok(unpacked);
    }
    let file = File::open(kernel).map_err(failed("open"))?;
    // Of machines that start at once one unpacks it. What it leaves half done when it dies the next one begins anew.
    file.lock().map_err(failed("lock"))?;
    if is_there() {
        return Ok(unpacked);
    }
    let mut bytes = Vec::new();
    (&file).take(KERNEL_MAX).read_to_end(&mut bytes).map_err(failed("read"))?;
    if bytes.starts_with(b"\x7fELF") {
        return Ok(kernel.to_owned());
    }
    let inside = unpack(&bytes).map_err(|why| VmmError::Kernel { path: kernel.to_owned(), why })?;
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&inside)?;
        file.set_modified(time)?;
        fs::rename(&fresh, &unpacked)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&fresh);
        VmmError::file("write", &fresh)(error)
    })?;
    Ok(unpacked)
}

/// The ELF file in a bzImage.
fn unpack(image: &[u8]) -> Result<Vec<u8>, String> {
    let word = |at: usize| image.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let short = |at: usize| image.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes);
    if image.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        return Err("it is neither an ELF file nor a bzImage".to_owned());
    }
    if short(VERSION).is_none_or(|version| version < WITH_PAYLOAD) {
        return Err("its boot protocol is too old".to_owned());
    }
    let cut = || "it is cut off".to_owned();
    // Zero means four, for history's sake.
    let sectors = match *image.get(SETUP_SECTS).ok_or_else(cut)? {
        0 => 4,
        n => usize::from(n),
    };
    let offset = word(PAYLOAD_OFFSET).ok_or_else(cut)? as usize;
    let length = word(PAYLOAD_LENGTH).ok_or_else(cut)? as usize;
    let start = (sectors + 1) * 512 + offset;
    let payload = image.get(start..start + length).ok_or_else(cut)?;
    let mut elf = Vec::new();
    decompressor(payload)?
        .take(KERNEL_MAX)
        .read_to_end(&mut elf)
        // The kernel's build puts the unpacked size behind the compressed stream, which some
        // decoders take for a broken next one: what they gave before is whole.
        .or_else(
            |error| if elf.starts_with(b"\x7fELF") && is_whole(&elf, payload) { Ok(0) } else { Err(error) },
        )
        .map_err(|error| error.to_string())?;
    if elf.starts_with(b"\x7fELF") { Ok(elf) } else { Err("what is inside is no ELF file".to_owned()) }
}

/// Whether it is as long as the payload's last four bytes say.
fn is_whole(elf: &[u8], payload: &[u8]) -> bool {
    let last = payload.len().checked_sub(4).and_then(|at| payload.get(at..)?.try_into().ok());
    last.map(u32::from_le_bytes).is_some_and(|length| length as usize == elf.len())
}

fn decompressor(payload: &[u8]) -> Result<Box<dyn Read + '_>, String> {
    Ok(match payload {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::GzDecoder::new(payload)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let stream = zstd::stream::read::Decoder::new(payload).map_err(|e| e.to_string())?;
            Box::new(stream.single_frame())
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Box::new(liblzma::read::XzDecoder::new(payload)),
        [0x02, 0x21, 0x4c, 0x18, ..] => Box::new(Lz4Blocks::new(payload.get(4..).unwrap_or_default())),
        [0x7f, b'E', b'L', b'F', ..] => Box::new(payload),
        _ => return Err("it is compressed in a way that we do not know".to_owned()),
    })
}

/// The format of `lz4 -l`: blocks behind their length, each of 8 MiB but for the last.
struct Lz4Blocks<'a> {
    rest: &'a [u8],
    block: io::Cursor<Vec<u8>>,
}

impl<'a> Lz4Blocks<'a> {
    const BLOCK: usize = 8 << 20;

    fn new(rest: &'a [u8]) -> Self {
        Self { rest, block: io::Cursor::default() }
    }

    fn next_block(&mut self) -> io::Result<bool> {
        // What is behind the last block is the unpacked size alone: too short for another.
        let Some((head, rest)) = self.rest.split_first_chunk::<4>() else { return Ok(false) };
        if rest.is_empty() {
            return Ok(false);
        }
        let length = u32::from_le_bytes(*head) as usize;
        let packed = rest.get(..length).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.rest = rest.get(length..).unwrap_or_default();
        let block = lz4_flex::block::decompress(packed, Self::BLOCK)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.block = io::Cursor::new(block);
        Ok(true)
    }
}

impl Read for Lz4Blocks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.block.read(buffer)? {
                0 if !buffer.is_empty() => {}
                n => return Ok(n),
            }
            if !self.next_block()? {
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with this payload, made as the kernel's build does.
    fn image(packed: &[u8], unpacked: usize) -> Vec<u8> {
        let mut image = vec![0; 3 * 512];
        image[SETUP_SECTS] = 1;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&512_u32.to_le_bytes());
        let length = packed.len() as u32 + 4;
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend(packed);
        image.extend((unpacked as u32).to_le_bytes());
        image.extend([0; 100]);
        image
    }

    fn kernel() -> Vec<u8> {
        let mut elf = b"\x7fELF".to_vec();
        elf.extend((0..20_000_000_u32).map(|i| (i / 3000) as u8));
        elf
    }

    fn packed(how: &str, elf: &[u8]) -> Vec<u8> {
        match how {
            "gzip" => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(elf).unwrap();
                out.finish().unwrap()
            }
            "zstd" => zstd::stream::encode_all(elf, 1).unwrap(),
            "xz" => {
                let mut out = liblzma::write::XzEncoder::new(Vec::new(), 0);
                out.write_all(elf).unwrap();
                out.finish().unwrap()
            }
            _ => {
                let mut out = vec![0x02, 0x21, 0x4c, 0x18];
                for block in elf.chunks(Lz4Blocks::BLOCK) {
                    let block = lz4_flex::block::compress(block);
                    out.extend((block.len() as u32).to_le_bytes());
                    out.extend(block);
                }
                out
            }
        }
    }

    #[test]
    fn a_kernel_packed_in_any_usual_way_is_found() {
        let elf = kernel();
        for how in ["gzip", "zstd", "xz", "lz4"] {
            let image = image(&packed(how, &elf), elf.len());
            assert!(unpack(&image).unwrap_or_else(|e| panic!("{how}: {e}")) == elf, "{how}");
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused_and_never_trusted() {
        let elf = kernel();
        let good = image(&packed("lz4", &elf), elf.len());
        let odd = image(b"nonsense", 8);
        let text = image(&packed("gzip", b"hello"), 5);
        let mut long = good.clone();
        long[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        for (bytes, why) in [
            (&b"MZ"[..], "neither"),
            (&good[..good.len() / 2], "cut off"),
            (&good[..0x210], "cut off"),
            (&odd, "do not know"),
            (&text, "no ELF"),
            (&long, "cut off"),
        ] {
            let error = unpack(bytes).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn machines_that_start_at_once_all_get_a_whole_kernel() {
        let inside = kernel();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinuz");
        fs::write(&path, image(&packed("lz4", &inside), inside.len())).unwrap();
        let all = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    all.wait();
                    assert!(fs::read(elf(&path).unwrap()).unwrap() == inside);
                });
            }
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn it_is_unpacked_once_and_again_for_another_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("vmlinuz");
        let write =
            |content: &[u8]| fs::write(&kernel, image(&packed("gzip", content), content.len())).unwrap();
        write(b"\x7fELF one");
        let unpacked = elf(&kernel).unwrap();
        assert_eq!(fs::read(&unpacked).unwrap(), b"\x7fELF one");
        // Given what only a second unpacking would repair
        let time = fs::metadata(&unpacked).unwrap().modified().unwrap();
        fs::write(&unpacked, "kept").unwrap();
        File::options().write(true).open(&unpacked).unwrap().set_modified(time).unwrap();
        assert_eq!(fs::read(elf(&kernel).unwrap()).unwrap(), b"kept");
        // When the kernel is replaced
        write(b"\x7fELF two");
        File::options()
            .write(true)
            .open(&kernel)
            .unwrap()
            .set_modified(time + std::time::Duration::from_secs(9))
            .unwrap();
        assert_eq!(fs::read(elf(&kernel).unwrap()).unwrap(), b"\x7fELF two");
        // Then there is nothing but the two; and an ELF kernel is taken as it is
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        fs::write(&kernel, b"\x7fELF plain").unwrap();
        assert_eq!(elf(&kernel).unwrap(), kernel);
    }
}
