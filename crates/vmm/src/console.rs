//! The guest's console file: kept small, and shown without letting the guest drive the reader's
//! terminal. Must never trust a byte of it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::{Result, VmmError};

/// The largest console or VMM log that is kept, bytes.
pub const DEFAULT_CAP: u64 = 4 << 20;

/// The most of a file's end that [`tail`] looks at, bytes.
const TAIL_WINDOW: u64 = 256 << 10;

/// The longest line that [`tail`] gives, characters.
const LINE_MAX: usize = 1000;

/// Cuts a file that is larger than `cap` down to its last `cap / 2` bytes, in place, so that a
/// writer that appends (as our VMMs do) goes on writing to it. What is written in the very moment
/// of the cut may be lost. True: it was cut. A missing file is fine.
///
/// # Errors
/// When the file cannot be read or written.
pub fn enforce_cap(path: &Path, cap: u64) -> Result<bool> {
    cut(path, cap).map_err(VmmError::file("shorten", path))
}

fn cut(path: &Path, cap: u64) -> io::Result<bool> {
    let Some(mut file) = open(path, OpenOptions::new().read(true).write(true))? else { return Ok(false) };
    let size = file.metadata()?.len();
    if size <= cap {
        return Ok(false);
    }
    let keep = cap / 2;
    file.seek(SeekFrom::Start(size - keep))?;
    let mut end = Vec::new();
    (&mut file).take(keep).read_to_end(&mut end)?;
    // From the first whole line on, when there is one.
    let start = end.iter().position(|b| *b == b'\n').map_or(0, |n| n + 1);
    file.set_len(0)?;
    // The writer appends, so its next byte goes behind these.
    file.seek(SeekFrom::Start(0))?;
    file.write_all(b"[... earlier output was cut ...]\n")?;
    file.write_all(end.get(start..).unwrap_or_default())?;
    Ok(true)
}

fn open(path: &Path, options: &OpenOptions) -> io::Result<Option<File>> {
    match options.open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The last lines of a file, fit for a terminal: no control characters, no escape sequences, long
/// lines cut, empty lines left out. Empty when there is no such file.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    tail_from(path, 0, lines)
}

/// Like [`tail`], but only of what stands behind the first `start` bytes.
#[must_use]
pub fn tail_from(path: &Path, start: u64, lines: usize) -> Vec<String> {
    let bytes = match read_end(path, start) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::debug!(%error, path = %path.display(), "no tail of this file");
            return Vec::new();
        }
    };
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<String> = text.lines().map(plain).filter(|l| !l.trim().is_empty()).collect();
    all.into_iter().rev().take(lines).rev().collect()
}

fn read_end(path: &Path, start: u64) -> io::Result<Vec<u8>> {
    let Some(mut file) = open(path, OpenOptions::new().read(true))? else { return Ok(Vec::new()) };
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL_WINDOW).max(start)))?;
    let mut end = Vec::new();
    file.take(TAIL_WINDOW).read_to_end(&mut end)?;
    Ok(end)
}

/// One line without anything that a terminal acts on: escape sequences (ECMA-48) go as a whole,
/// other control characters, also the C1 set and direction overrides, one by one; a tab becomes a space.
#[must_use]
pub fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars().peekable();
    let mut length = 0;
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => skip_sequence(&mut chars),
            '\u{9b}' => skip_control_sequence(&mut chars),
            '\t' => out.push(' '),
            c if c.is_control() || is_format(c) => continue,
            c => out.push(c),
        }
        length += 1;
        if length > LINE_MAX {
            out.push('…');
            break;
        }
    }
    out
}

/// Characters that change the order or presence of others on the screen (Unicode's bidirectional
/// controls, zero-width characters and line separators).
fn is_format(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn skip_sequence(chars: &mut Chars<'_>) {
    match chars.next() {
        Some('[') => skip_control_sequence(chars),
        // A string for the terminal (title, clipboard, …), ended by BEL or ESC \.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(c) = chars.next() {
                if c == '\u{7}' || c == '\u{9c}' || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some()) {
                    break;
                }
            }
        }
        // ESC, intermediates, one final character.
        Some(' '..='/') => {
            while chars.next_if(|c| (' '..='/').contains(c)).is_some() {}
            chars.next();
        }
        _ => {}
    }
}

fn skip_control_sequence(chars: &mut Chars<'_>) {
    while chars.next_if(|c| (' '..='?').contains(c)).is_some() {}
    chars.next_if(|c| ('@'..='~').contains(c));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_over_its_cap_keeps_its_end_and_its_writer() {
        // Given a writer that appends, as QEMU does
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut writer = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        for n in 0..2000 {
            writeln!(writer, "line {n}").unwrap();
        }
        // When the cap is below its size
        assert!(!enforce_cap(&path, 1 << 20).unwrap());
        assert!(enforce_cap(&path, 4096).unwrap());
        writeln!(writer, "after").unwrap();
        // Then the end is there, whole lines only, and the writer goes on behind it
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.len() < 4096);
        assert!(text.starts_with("[... earlier output was cut ...]\nline "), "{text}");
        assert!(text.ends_with("line 1999\nafter\n"), "{text}");
        assert!(!text.contains('\0'));
        assert!(!enforce_cap(&dir.path().join("absent"), 1).unwrap());
    }

    #[test]
    fn a_tail_cannot_drive_the_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let hostile = b"one\n\x1b[2J\x1b]0;owned\x07two\r\n\n\x1b]52;c;ZXZpbA==\x1b\\three\x9b31m\xff\x08\tend\n\xe2\x80\xaefour\x1b(B\x1b[";
        fs::write(&path, hostile).unwrap();
        assert_eq!(tail(&path, 10), ["one", "two", "three\u{fffd}31m\u{fffd} end", "four"]);
        assert_eq!(tail(&path, 1), ["four"]);
        assert_eq!(plain("a\u{9b}31mb"), "ab");
        assert!(tail(&dir.path().join("absent"), 3).is_empty());
    }

    #[test]
    fn a_tail_is_bounded_whatever_the_guest_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        fs::write(&path, vec![b'x'; 10 << 20]).unwrap();
        let lines = tail(&path, 5);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].chars().count() <= LINE_MAX + 2);
    }
}
