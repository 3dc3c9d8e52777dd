//! What a guest says that it changed, against rules of its own: whatever the inspector lets through stays inside the
//! repository, is no spelling of `.git` and is a tree.
#![no_main]

mod seeds;

use std::collections::BTreeSet;

use banger_protocol::agent::scan::{MAX_PATH, RecordHeader, RecordKind, encode_header};
use banger_workspace::export::Limits;
use banger_workspace::export::fuzzing::{Verdict, inspect};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

const LISTING: &[u8] = b"100644 blob 0123456789012345678901234567890123456789\ta\0\
100644 blob 0123456789012345678901234567890123456789\td/b\0\
120000 blob 0123456789012345678901234567890123456789\td/up\0\
120000 blob 0123456789012345678901234567890123456789\tout\0\
160000 commit 0123456789012345678901234567890123456789\tsub\0";
const BASE: [&[u8]; 5] = [b"a", b"d/b", b"d/up", b"out", b"sub"];
const LINKS: [(&[u8], &[u8]); 2] = [(b"d/up", b".."), (b"out", b"/etc")];

/// Words that paths and targets are made of.
const WORDS: [&[u8]; 20] = [
    b"a",
    b"b",
    b"d",
    b"up",
    b"out",
    b"sub",
    b"..",
    b".",
    b"",
    b"/",
    b".git",
    b".GIT",
    b".git ",
    b"git~1",
    b".gitmodules",
    b"\\",
    b":",
    b"\xe2\x80\x8c",
    b"etc",
    b"\0",
];

#[derive(Debug, Arbitrary)]
enum Input {
    Raw(Vec<u8>),
    Records(Vec<Record>),
}

#[derive(Debug, Arbitrary)]
struct Record {
    kind: u8,
    mode: u8,
    path: Vec<Word>,
    content: Vec<Word>,
    /// Added to the size that is said.
    lie: i8,
}

#[derive(Debug, Arbitrary)]
enum Word {
    Known(u8),
    Slash,
    Other(Vec<u8>),
}

fn bytes(words: &[Word]) -> Vec<u8> {
    let mut all = Vec::new();
    for word in words {
        match word {
            Word::Known(n) => all.extend_from_slice(WORDS[usize::from(*n) % WORDS.len()]),
            Word::Slash => all.push(b'/'),
            Word::Other(bytes) => all.extend_from_slice(bytes),
        }
    }
    all
}

fn encode(record: &Record) -> Vec<u8> {
    let (path, content) = (bytes(&record.path), bytes(&record.content));
    let kind = match record.kind % 4 {
        0 | 1 => RecordKind::Present,
        2 => RecordKind::Deleted,
        _ => RecordKind::Submodule,
    };
    let mode = [0o100_644, 0o100_755, 0o120_000, 0o160_000][usize::from(record.mode % 4)];
    let (mode, size) = match kind {
        RecordKind::Present => (mode, (content.len() as u64).saturating_add_signed(i64::from(record.lie))),
        _ => (0, 0),
    };
    let header = encode_header(RecordHeader { kind, mode, path_len: path.len(), size });
    let content = if kind == RecordKind::Present { content } else { Vec::new() };
    [&header[..], &path, &content].concat()
}

fn is_dot_git(name: &[u8]) -> bool {
    let end = name.iter().rposition(|b| !matches!(b, b'.' | b' ')).map_or(0, |at| at + 1);
    name[..end].eq_ignore_ascii_case(b".git") || name.eq_ignore_ascii_case(b"git~1")
}

/// Whether a target, taken as words alone, climbs above the top.
fn climbs(path: &[u8], target: &[u8]) -> bool {
    let mut depth = path.split(|b| *b == b'/').count() as i64 - 1;
    for name in target.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => depth -= 1,
            _ => depth += 1,
        }
        if depth < 0 {
            return true;
        }
    }
    target.starts_with(b"/")
}

/// Whether a word of the target is the name of any link, before or after.
fn linked_above(target: &[u8], changes: &[(Vec<u8>, Verdict)]) -> bool {
    let new = changes.iter().filter(|(_, v)| matches!(v, Verdict::Link(_))).map(|(path, _)| &path[..]);
    let mut names =
        new.chain([&b"up"[..], b"out"]).map(|path| path.rsplit(|b| *b == b'/').next().unwrap_or(path));
    names.any(|name| target.split(|b| *b == b'/').any(|word| word == name))
}

/// Changes as an agent says them, and some that are refused.
fn seeds() -> Vec<Vec<u8>> {
    let present = |mode: u32, path: &[u8], content: &[u8]| {
        let size = content.len() as u64;
        let header = RecordHeader { kind: RecordKind::Present, mode, path_len: path.len(), size };
        [&encode_header(header)[..], path, content].concat()
    };
    let other = |kind: RecordKind, path: &[u8]| {
        let header = RecordHeader { kind, mode: 0, path_len: path.len(), size: 0 };
        [&encode_header(header)[..], path].concat()
    };
    let (file, link) = (0o100_644, 0o120_000);
    vec![
        present(file, b"a", b"other\n"),
        [present(0o100_755, b"new/run", b"#!/bin/sh\n"), other(RecordKind::Deleted, b"d/b")].concat(),
        // A file becomes a directory, a directory a file.
        [other(RecordKind::Deleted, b"a"), present(file, b"a/in", b"x"), present(file, b"d", b"")].concat(),
        [other(RecordKind::Deleted, b"d/b"), other(RecordKind::Deleted, b"d/up"), present(file, b"d", b"x")]
            .concat(),
        [present(link, b"d/in", b"../a"), present(link, b"top", b"d/up"), present(link, b"out", b"/etc")]
            .concat(),
        present(link, b"escape", b"d/up/../../etc"),
        other(RecordKind::Submodule, b"sub"),
        present(file, b".gitmodules", b"[submodule \"sub\"]\n"),
        present(file, b"d/.GIT/config", b"[core]\n"),
        present(file, b"git~1/hooks/x", b""),
        present(file, "\u{feff}.g\u{200c}it".as_bytes(), b"x"),
    ]
}

fuzz_target!(init: seeds::write(seeds), |input: Input| {
    let mut records = match &input {
        Input::Raw(raw) => raw.clone(),
        Input::Records(records) => records.iter().flat_map(encode).collect(),
    };
    let end = RecordHeader { kind: RecordKind::End, mode: 0, path_len: 0, size: 0 };
    records.extend(encode_header(end));
    let limits = Limits { max_bytes: 4096, max_records: 64 };
    let Ok(changes) = inspect(&records, LISTING, &LINKS, &limits) else { return };
    assert!(changes.len() <= 64);
    let mut there: BTreeSet<&[u8]> = BASE.into_iter().collect();
    for (path, verdict) in &changes {
        assert!(!path.is_empty() && path.len() <= MAX_PATH && !path.contains(&0), "{path:?}");
        for name in path.split(|b| *b == b'/') {
            assert!(!name.is_empty() && name != b"." && name != b".." && !is_dot_git(name), "{path:?}");
        }
        assert!(path != b"sub" && !path.starts_with(b"sub/"), "{path:?} is in a submodule");
        match verdict {
            Verdict::File => assert!(there.insert(path) || BASE.contains(&&path[..])),
            Verdict::Link(target) => {
                there.insert(path);
                // Where another link is on the way, words do not say where it leads.
                let is_plain = !linked_above(target, &changes);
                let stays = !target.starts_with(b"/") && (!is_plain || !climbs(path, target));
                assert!(stays || LINKS.contains(&(path, target)), "{path:?} -> {target:?}");
            }
            Verdict::Gone => assert!(there.remove(&path[..]), "{path:?} was not there"),
        }
    }
    for path in &there {
        for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            assert!(!there.contains(&path[..at]), "{path:?} is below a file");
        }
    }
});
