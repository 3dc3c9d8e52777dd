//! Which conversions hold for a guest's files, and carrying them out.
//!
//! Owns the one question to git: what the attributes of the resulting tree say. They are read from
//! an index in scratch; of what they say, only git's built-in conversions are believed.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};

use banger_model::ByteString;

use super::Export;
use super::base::Base;
use super::convert::{ATTRIBUTES, Facts, IN_MEMORY, Rule, Unified};
use super::receive::{Change, Changes, Sink, Store, Stored};
use crate::git::{Git, Running};
use crate::source::LISTING_CAP;
use crate::{Result, WorkspaceError};

/// What became of the changed files.
#[derive(Debug, Default)]
pub(crate) struct Converted {
    /// The objects of paths that `git add` would convert.
    pub(crate) ids: BTreeMap<Vec<u8>, String>,
    /// Paths for which the host has a filter program, sorted.
    pub(crate) unfiltered: Vec<ByteString>,
}

/// A file whose content git would take in otherwise than it is.
struct Task<'a> {
    path: &'a [u8],
    id: &'a str,
    facts: Facts,
    rule: Rule,
    base_has_crlf: bool,
}

/// Converts what has to be; `index` is that of the resulting tree.
pub(crate) fn convert(
    export: &Export,
    index: &std::path::Path,
    changes: &Changes,
    base: &Base,
    stored: &Stored,
) -> Result<Converted> {
    let files: Vec<&[u8]> = changes
        .iter()
        .filter(|(_, change)| matches!(change, Change::File { .. }))
        .map(|(path, _)| &path[..])
        .collect();
    if files.is_empty() {
        return Ok(Converted::default());
    }
    let rules = rules(export, index, &files)?;
    let mut converted = Converted::default();
    let mut filters: HashMap<String, bool> = HashMap::new();
    let mut tasks = Vec::new();
    for (path, rule) in files.into_iter().zip(rules) {
        if let Some(name) = &rule.filter
            && has_filter(export, name, &mut filters)?
        {
            converted.unfiltered.push(ByteString(path.to_vec()));
        }
        let Some(Change::File { mark, .. }) = changes.get(path) else { continue };
        let Some((id, facts)) = stored.of(*mark) else { continue };
        if rule.unifies(facts, false) || rule.needs_whole(facts) {
            tasks.push(Task { path, id, facts: *facts, rule, base_has_crlf: false });
        }
    }
    if tasks.is_empty() {
        return Ok(converted);
    }
    ask_base(export, base, &mut tasks)?;
    converted.ids = store(export, &tasks)?;
    Ok(converted)
}

/// The rule of each path, as git looks it up.
fn rules(export: &Export, index: &std::path::Path, files: &[&[u8]]) -> Result<Vec<Rule>> {
    let git = export.source.writing_to(&export.scratch.join("export.git/objects"))?.index(index);
    let mut args = vec!["check-attr", "--cached", "-z", "--stdin"];
    args.extend(ATTRIBUTES);
    let out = git.feed(&args, LISTING_CAP, |pipe| {
        let mut pipe = std::io::BufWriter::new(pipe);
        let mut all = || {
            for path in files {
                pipe.write_all(path)?;
                pipe.write_all(&[0])?;
            }
            pipe.flush()
        };
        all().map_err(|e| WorkspaceError::io("write to git in", &export.scratch, e))
    })?;
    let auto = export.source.setting("core.autocrlf")?.unwrap_or_default().to_ascii_lowercase();
    let auto_crlf = matches!(&auto[..], b"true" | b"input" | b"yes" | b"on" | b"1");
    // Triples of path, attribute and value, each ended by a NUL.
    let fields: Vec<&[u8]> = out.split(|b| *b == 0).collect();
    let odd = || export.odd("check-attr");
    let mut rules = Vec::with_capacity(files.len());
    for (path, fields) in files.iter().zip(fields.chunks(3 * ATTRIBUTES.len())) {
        let mut values = [&b""[..]; 6];
        for ((slot, name), triple) in values.iter_mut().zip(ATTRIBUTES).zip(fields.chunks(3)) {
            let [of, attribute, value] = triple else { return Err(odd()) };
            if of != path || *attribute != name.as_bytes() {
                return Err(odd());
            }
            *slot = value;
        }
        rules.push(Rule::new(&values, auto_crlf));
    }
    if rules.len() == files.len() { Ok(rules) } else { Err(odd()) }
}

/// Whether the host's user has a program for this filter.
fn has_filter(export: &Export, name: &str, known: &mut HashMap<String, bool>) -> Result<bool> {
    if let Some(has) = known.get(name) {
        return Ok(*has);
    }
    let mut has = false;
    for key in ["clean", "process"] {
        has |= export.source.setting(&format!("filter.{name}.{key}"))?.is_some_and(|v| !v.is_empty());
    }
    known.insert(name.to_owned(), has);
    Ok(has)
}

/// Finds out where the base's file has line ends that stay.
fn ask_base(export: &Export, base: &Base, tasks: &mut [Task<'_>]) -> Result<()> {
    let mut batch = None;
    for task in tasks.iter_mut().filter(|t| t.rule.asks_base(&t.facts)) {
        let Some(entry) = base.get(task.path).filter(|e| e.mode.starts_with(b"100")) else { continue };
        let id = String::from_utf8_lossy(entry.id).into_owned();
        let batch = match &mut batch {
            Some(batch) => batch,
            none => none.insert(Batch::open(&export.source.git)?),
        };
        let mut facts = Facts::default();
        batch.read(&id, |content, _| {
            let mut buf = vec![0; 64 << 10];
            loop {
                match content.read(&mut buf)? {
                    0 => return Ok(Ok(())),
                    n => facts.count(&buf[..n]),
                }
            }
        })?;
        task.base_has_crlf = facts.end().has_settled_crlf();
    }
    batch.map_or(Ok(()), Batch::close)
}

/// Converts and stores; the ids of what became another object.
fn store(export: &Export, tasks: &[Task<'_>]) -> Result<BTreeMap<Vec<u8>, String>> {
    let mut batch = Batch::open(&export.git)?;
    let mut store = Store::new(&export.git, export.scratch.join("converted-marks"));
    let mut marks = Vec::new();
    for task in tasks {
        let whole = task.rule.needs_whole(&task.facts);
        if whole && task.facts.size > IN_MEMORY {
            continue;
        }
        if !whole && !task.rule.unifies(&task.facts, task.base_has_crlf) {
            continue;
        }
        let mark = batch.read(task.id, |content, size| {
            if !whole {
                return Ok(store
                    .put(task.path, &mut Unified::new(content), size - task.facts.crlf)
                    .map(Some));
            }
            let mut raw = Vec::new();
            content.read_to_end(&mut raw)?;
            Ok(match task.rule.convert(&raw, task.base_has_crlf) {
                Some(clean) if clean != raw => {
                    store.put(task.path, &mut &clean[..], clean.len() as u64).map(Some)
                }
                _ => Ok(None),
            })
        })?;
        marks.extend(mark.map(|mark| (task.path, mark)));
    }
    batch.close()?;
    let stored = store.close()?;
    let id = |(path, mark): (&[u8], u64)| Some((path.to_vec(), stored.of(mark)?.0.to_owned()));
    Ok(marks.into_iter().filter_map(id).collect())
}

/// One `git cat-file --batch`.
pub(crate) struct Batch {
    run: Running,
    out: BufReader<std::process::ChildStdout>,
    git: Git,
}

impl Batch {
    pub(crate) fn open(git: &Git) -> Result<Self> {
        let mut run = git.converse(&["cat-file", "--batch"])?;
        let out = run.child.stdout.take().ok_or_else(|| git.odd("cat-file"))?;
        Ok(Self { run, out: BufReader::new(out), git: git.clone() })
    }

    /// Gives an object's content, and its size, to `take`; what that leaves is skipped.
    pub(crate) fn read<T>(
        &mut self,
        id: &str,
        take: impl FnOnce(&mut dyn Read, u64) -> std::io::Result<Result<T>>,
    ) -> Result<T> {
        let git = &self.git;
        let failed = |e| WorkspaceError::io("read objects of", git.dir(), e);
        let pipe = self.run.child.stdin.as_mut().ok_or_else(|| git.odd("cat-file"))?;
        pipe.write_all(format!("{id}\n").as_bytes()).map_err(failed)?;
        let mut line = String::new();
        (&mut self.out).take(1 << 12).read_line(&mut line).map_err(failed)?;
        let size = line.trim_end().rsplit(' ').next().and_then(|n| n.parse::<u64>().ok());
        let size = size.ok_or_else(|| git.odd("cat-file"))?;
        let mut content = (&mut self.out).take(size);
        let taken = take(&mut content, size).map_err(failed)?;
        std::io::copy(&mut content, &mut std::io::sink()).map_err(failed)?;
        (&mut self.out).take(1).read_to_end(&mut Vec::new()).map_err(failed)?;
        taken
    }

    pub(crate) fn close(self) -> Result<()> {
        self.run.finish()
    }
}
