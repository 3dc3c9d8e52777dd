//! What `git add` would make of a guest's file: line ends, `$Id$` and encodings, done here.
//!
//! Owns git's built-in conversions (gitattributes(5)), told by attributes that git itself looks up
//! in the resulting tree's index. Must never run a filter program, whoever configured it.

use std::io::{self, Read};

/// Contents up to this are converted in memory where a stream will not do, bytes.
pub(crate) const IN_MEMORY: u64 = 64 << 20;

/// The attributes that decide, in the order in which they are asked for.
pub(crate) const ATTRIBUTES: [&str; 6] = ["text", "crlf", "eol", "ident", "filter", "working-tree-encoding"];

/// What git counts of a content before it guesses whether it is text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) size: u64,
    pub(crate) crlf: u64,
    lone_cr: u64,
    nul: u64,
    printable: u64,
    nonprintable: u64,
    dollars: u64,
    pending_cr: bool,
    last: u8,
}

impl Facts {
    /// Counts the next piece of a content.
    pub(crate) fn count(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        for &byte in bytes {
            if std::mem::take(&mut self.pending_cr) {
                if byte == b'\n' {
                    self.crlf += 1;
                    continue;
                }
                self.lone_cr += 1;
            }
            match byte {
                b'\r' => self.pending_cr = true,
                b'\n' => {}
                b'$' => {
                    self.dollars += 1;
                    self.printable += 1;
                }
                8 | b'\t' | 0x1b | 0x0c => self.printable += 1,
                0 => {
                    self.nul += 1;
                    self.nonprintable += 1;
                }
                1..=31 | 127 => self.nonprintable += 1,
                _ => self.printable += 1,
            }
        }
        if let Some(last) = bytes.last() {
            self.last = *last;
        }
    }

    /// The end: a CR that nothing follows stands alone, and a DOS end-of-file mark is no sign of a
    /// binary.
    pub(crate) fn end(mut self) -> Self {
        if std::mem::take(&mut self.pending_cr) {
            self.lone_cr += 1;
        }
        if self.last == 0x1a {
            self.nonprintable = self.nonprintable.saturating_sub(1);
        }
        self
    }

    /// Of a whole content.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut facts = Self::default();
        facts.count(bytes);
        facts.end()
    }

    fn is_binary(&self) -> bool {
        self.lone_cr > 0 || self.nul > 0 || (self.printable >> 7) < self.nonprintable
    }

    /// Whether the base's content has line ends that git leaves alone once they are there.
    pub(crate) fn has_settled_crlf(&self) -> bool {
        self.crlf > 0 && !self.is_binary()
    }
}

/// What git does to line ends when it takes a file in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineEnds {
    Keep,
    Text,
    /// Text if it looks so, and if the base's file has no CRLF already.
    Guess,
}

/// What is to be done to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    line_ends: LineEnds,
    ident: bool,
    /// The encoding the working tree's file has.
    pub(crate) encoding: Option<String>,
    /// The filter driver that is named for it.
    pub(crate) filter: Option<String>,
}

impl Rule {
    /// From the values of [`ATTRIBUTES`] as `git check-attr` writes them, and `core.autocrlf`.
    pub(crate) fn new(values: &[&[u8]; 6], auto_crlf: bool) -> Self {
        let [text, crlf, eol, ident, filter, encoding] = values;
        let named = |value: &[u8]| match value {
            b"unspecified" | b"unset" | b"set" | b"" => None,
            name => Some(String::from_utf8_lossy(name).into_owned()),
        };
        let said = |value: &[u8]| match value {
            b"set" | b"input" => Some(LineEnds::Text),
            b"unset" => Some(LineEnds::Keep),
            b"auto" => Some(LineEnds::Guess),
            _ => None,
        };
        let line_ends = match said(text).or_else(|| said(crlf)) {
            // An `eol` alone makes it text.
            None if matches!(*eol, b"lf" | b"crlf") => LineEnds::Text,
            None if auto_crlf => LineEnds::Guess,
            None => LineEnds::Keep,
            Some(said) => said,
        };
        Self { line_ends, ident: *ident == b"set", encoding: named(encoding), filter: named(filter) }
    }

    /// Whether the base's content has to be asked before [`Self::applies`].
    pub(crate) fn asks_base(&self, facts: &Facts) -> bool {
        self.line_ends == LineEnds::Guess && facts.crlf > 0 && !facts.is_binary()
    }

    /// Whether CRLF becomes LF.
    pub(crate) fn unifies(&self, facts: &Facts, base_has_crlf: bool) -> bool {
        facts.crlf > 0
            && match self.line_ends {
                LineEnds::Keep => false,
                LineEnds::Text => true,
                LineEnds::Guess => !facts.is_binary() && !base_has_crlf,
            }
    }

    /// Whether the content has to be in memory to be converted.
    pub(crate) fn needs_whole(&self, facts: &Facts) -> bool {
        facts.size > 0 && (self.encoding.is_some() || (self.ident && facts.dollars > 1))
    }

    /// The whole conversion of a content in memory; `None` when its encoding is not what the
    /// attribute says, or one that is not known here.
    pub(crate) fn convert(&self, content: &[u8], base_has_crlf: bool) -> Option<Vec<u8>> {
        let mut out = match &self.encoding {
            Some(encoding) => to_utf8(content, encoding)?,
            None => content.to_vec(),
        };
        if self.unifies(&Facts::of(&out), base_has_crlf) {
            let mut unified = Vec::with_capacity(out.len());
            // Reading from memory does not fail.
            let _ = Unified::new(&out[..]).read_to_end(&mut unified);
            out = unified;
        }
        Some(if self.ident { without_ident(&out) } else { out })
    }
}

/// A reader that drops each CR before an LF.
pub(crate) struct Unified<R> {
    inner: R,
    cr: bool,
    ready: Vec<u8>,
    at: usize,
}

impl<R: Read> Unified<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, cr: false, ready: Vec::new(), at: 0 }
    }

    /// The next piece; empty at the end.
    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 << 10];
        self.ready.clear();
        self.at = 0;
        while self.ready.is_empty() {
            let n = self.inner.read(&mut chunk)?;
            if n == 0 {
                if std::mem::take(&mut self.cr) {
                    self.ready.push(b'\r');
                }
                return Ok(());
            }
            for &byte in &chunk[..n] {
                if std::mem::take(&mut self.cr) && byte != b'\n' {
                    self.ready.push(b'\r');
                }
                if byte == b'\r' {
                    self.cr = true;
                } else {
                    self.ready.push(byte);
                }
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for Unified<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.ready.len() {
            self.fill()?;
        }
        let n = buf.len().min(self.ready.len() - self.at);
        buf[..n].copy_from_slice(&self.ready[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// `$Id: anything$` on one line becomes `$Id$`.
fn without_ident(mut src: &[u8]) -> Vec<u8> {
    let find = |bytes: &[u8]| bytes.iter().position(|b| *b == b'$');
    let mut out = Vec::with_capacity(src.len());
    while let Some(dollar) = find(src) {
        out.extend_from_slice(&src[..=dollar]);
        src = &src[dollar + 1..];
        if src.len() > 3 && src.starts_with(b"Id:") {
            let Some(close) = find(&src[3..]) else { break };
            if src[3..3 + close].contains(&b'\n') {
                continue;
            }
            out.extend_from_slice(b"Id$");
            src = &src[3 + close + 1..];
        }
    }
    out.extend_from_slice(src);
    out
}

/// The content in UTF-8, by git's rules on byte order marks.
fn to_utf8(content: &[u8], encoding: &str) -> Option<Vec<u8>> {
    let name = encoding.to_ascii_uppercase();
    let little = content.starts_with(&[0xff, 0xfe]);
    let marked = little || content.starts_with(&[0xfe, 0xff]);
    let wide = |bytes: &[u8], little: bool| {
        if !bytes.len().is_multiple_of(2) {
            return None;
        }
        let unit = |pair: &[u8]| {
            let pair = [pair[0], pair[1]];
            if little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) }
        };
        let text: Result<String, _> = char::decode_utf16(bytes.chunks_exact(2).map(unit)).collect();
        text.ok().map(String::into_bytes)
    };
    match &name[..] {
        "UTF-8" | "UTF8" => Some(content.to_vec()),
        "UTF-16" | "UTF16" | "UTF-16LE-BOM" if marked => wide(&content[2..], little),
        "UTF-16LE" | "UTF16LE" if !marked => wide(content, true),
        "UTF-16BE" | "UTF16BE" if !marked => wide(content, false),
        "ISO-8859-1" | "ISO8859-1" | "LATIN1" | "LATIN-1" => {
            Some(content.iter().map(|b| char::from(*b)).collect::<String>().into_bytes())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str, eol: &str, auto_crlf: bool) -> Rule {
        let none = &b"unspecified"[..];
        Rule::new(&[text.as_bytes(), none, eol.as_bytes(), none, none, none], auto_crlf)
    }

    fn converted(rule: &Rule, content: &str, base_has_crlf: bool) -> String {
        String::from_utf8(rule.convert(content.as_bytes(), base_has_crlf).unwrap()).unwrap()
    }

    #[test]
    fn line_ends_become_what_the_attributes_say() {
        let none = "unspecified";
        for (text, eol, auto, given, then) in [
            ("set", none, false, "a\r\nb\r\r\nc\r", "a\nb\r\nc\r"),
            ("auto", none, false, "a\r\nb\r\n", "a\nb\n"),
            ("auto", none, false, "a\r\nb\r", "a\r\nb\r"),
            ("auto", none, false, "a\0\r\n", "a\0\r\n"),
            (none, "crlf", false, "a\r\n", "a\n"),
            (none, "lf", false, "a\0\r\n", "a\0\n"),
            ("unset", "crlf", true, "a\r\n", "a\r\n"),
            (none, none, true, "a\r\n", "a\n"),
            (none, none, false, "a\r\n", "a\r\n"),
        ] {
            assert_eq!(
                converted(&rule(text, eol, auto), given, false),
                then,
                "{text} {eol} {auto} {given:?}"
            );
        }
        // Given a base that has CRLF already, then only what is called text is changed.
        assert_eq!(converted(&rule("auto", none, false), "a\r\n", true), "a\r\n");
        assert_eq!(converted(&rule("set", none, false), "a\r\n", true), "a\n");
    }

    #[test]
    fn a_stream_is_unified_wherever_it_is_cut() {
        struct Bits<'a>(&'a [u8], usize);
        impl Read for Bits<'_> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                let n = self.1.min(buf.len()).min(self.0.len());
                buf[..n].copy_from_slice(&self.0[..n]);
                self.0 = &self.0[n..];
                Ok(n)
            }
        }
        for cut in 1..6 {
            let mut out = Vec::new();
            Unified::new(Bits(b"\r\na\r\n\r\r\nb\r", cut)).read_to_end(&mut out).unwrap();
            assert_eq!(out, b"\na\n\r\nb\r", "{cut}");
        }
    }

    #[test]
    fn identifiers_and_encodings_are_taken_back() {
        let none = &b"unspecified"[..];
        let ident = Rule::new(&[none, none, none, b"set", none, none], false);
        let given = "$Id: 0123 $ $Id$ $Id: a\nb$ $Id:x";
        assert_eq!(converted(&ident, given, false), "$Id$ $Id$ $Id: a\nb$ $Id:x");
        let wide = Rule::new(&[b"set", none, none, none, none, b"UTF-16LE-BOM"], false);
        let bytes: Vec<u8> = "\u{feff}\u{fc}\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(wide.convert(&bytes, false).unwrap(), "\u{fc}\n".as_bytes());
        assert_eq!(wide.convert(b"odd", false), None);
    }
}
