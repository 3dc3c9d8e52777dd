//! The commits that go along: how deep a copy is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{BufRead, BufReader, Read, Write};

use super::refs::apart;
use crate::source::{Source, object_id};
use crate::watch::{Watched, read_regular, unpacked};
use crate::{Result, WorkspaceError};

/// Generations of commits in a shallow copy, when no merge base needs more.
pub(crate) const DEPTH: u32 = 10;
/// Generations that are not exceeded for anything.
const DEEPEST: u32 = 10_000;
/// The largest list of cut commits that is read, bytes.
const CAP: u64 = 256 << 20;

/// A piece of history.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Where it begins.
    pub(crate) tips: Vec<String>,
    /// What it holds when it is bounded, sorted; with everything before them when it is not, nothing.
    pub(crate) commits: Vec<String>,
    /// Commits whose parents stay behind, sorted.
    pub(crate) shallow: Vec<String>,
    /// Generations it has; when it is not bounded, commits.
    pub(crate) depth: u32,
}

impl History {
    /// Everything before the tips that the source has.
    pub(crate) fn whole(source: &Source, commit: Option<&str>, tips: Vec<String>) -> Result<Self> {
        let depth = match commit {
            Some(commit) => {
                let out = source.git.line(&["rev-list", "--count", commit, "--"])?;
                String::from_utf8_lossy(&out).trim().parse().unwrap_or(u32::MAX)
            }
            None => 0,
        };
        let shallow = cut(source)?.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        Ok(Self { tips, commits: Vec::new(), shallow, depth })
    }

    /// [`DEPTH`] generations from the tips, and more until `commit` and each other tip have their
    /// merge base, and as many commits on either side as in the source. `guest` are commits that
    /// the guest has from an earlier time, `cut_there` those of them without their parents.
    pub(crate) fn bounded(
        source: &Source,
        commit: Option<&str>,
        tips: Vec<String>,
        guest: &[String],
        cut_there: &[String],
    ) -> Result<Self> {
        let cut = cut(source)?;
        let mut graph = Graph::new(source, &tips, &cut)?;
        let mut want = DEPTH;
        loop {
            graph.grow_to(want)?;
            if graph.next.is_empty() || want >= DEEPEST {
                break;
            }
            let mut is_enough = true;
            for tip in tips.iter().filter(|_| commit.is_some()) {
                is_enough = is_enough && graph.joins(commit.unwrap_or_default(), tip)?;
            }
            if is_enough {
                break;
            }
            want *= 2;
        }
        let depth = graph.depth;
        let mut parents = graph.close()?;
        for commit in guest {
            parents.entry(commit.clone()).or_insert_with(|| match cut_there.contains(commit) {
                // Whether they are here is not known any more.
                true => vec![String::new()],
                false => Vec::new(),
            });
        }
        let is_cut = |(id, above): &(&String, &Vec<String>)| {
            cut.contains(*id) || above.iter().any(|parent| !parents.contains_key(parent))
        };
        let shallow = parents.iter().filter(is_cut).map(|(id, _)| id.clone()).collect();
        Ok(Self { tips, commits: parents.keys().cloned().collect(), shallow, depth })
    }
}

/// The commits whose parents the source does not have.
fn cut(source: &Source) -> Result<HashSet<String>> {
    let text = read_regular(&source.common_dir.join("shallow"), CAP)?.unwrap_or_default();
    Ok(text.split(|b| *b == b'\n').filter_map(object_id).collect())
}

/// Commits and their parents, a generation at a time.
struct Graph<'a> {
    commits: Commits<'a>,
    cut: &'a HashSet<String>,
    parents: HashMap<String, Vec<String>>,
    /// The next generation.
    next: Vec<String>,
    seen: HashSet<String>,
    depth: u32,
    /// Sides that were counted in the source.
    apart: HashMap<String, Option<(u64, u64)>>,
}

impl<'a> Graph<'a> {
    fn new(source: &'a Source, tips: &[String], cut: &'a HashSet<String>) -> Result<Self> {
        let seen: HashSet<String> = tips.iter().cloned().collect();
        Ok(Self {
            commits: Commits::open(source)?,
            cut,
            parents: HashMap::new(),
            next: seen.iter().cloned().collect(),
            seen,
            depth: 0,
            apart: HashMap::new(),
        })
    }

    fn grow_to(&mut self, depth: u32) -> Result<()> {
        while self.depth < depth && !self.next.is_empty() {
            self.depth += 1;
            for commit in std::mem::take(&mut self.next) {
                let above = match self.cut.contains(&commit) {
                    true => Vec::new(),
                    false => self.commits.parents(&commit)?,
                };
                self.next.extend(above.iter().filter(|p| self.seen.insert((*p).clone())).cloned());
                self.parents.insert(commit, above);
            }
        }
        Ok(())
    }

    /// Whether the two have here what they have in the source: a commit in common, if any, and as
    /// many on either side.
    fn joins(&mut self, one: &str, other: &str) -> Result<bool> {
        if one == other {
            return Ok(true);
        }
        let there = match self.apart.get(other) {
            Some(there) => *there,
            None => {
                let there = apart(self.commits.source, one, other)?;
                self.apart.insert(other.to_owned(), there);
                there
            }
        };
        let (ours, theirs) = (self.reach(one), self.reach(other));
        let common = ours.intersection(&theirs).count();
        let here = ((ours.len() - common) as u64, (theirs.len() - common) as u64);
        if there.is_none_or(|there| there != here) {
            return Ok(there.is_none());
        }
        let base = ["merge-base", one, other];
        Ok(common > 0 || self.commits.source.git.query(&base, 1 << 12)?.is_none())
    }

    fn reach(&self, from: &str) -> HashSet<&str> {
        let mut found = HashSet::new();
        let mut ahead: Vec<&str> =
            self.parents.get_key_value(from).map(|(id, _)| &**id).into_iter().collect();
        while let Some(commit) = ahead.pop() {
            if found.insert(commit) {
                let above = self.parents.get(commit).into_iter().flatten();
                ahead.extend(above.filter(|p| self.parents.contains_key(*p)).map(String::as_str));
            }
        }
        found
    }

    fn close(self) -> Result<BTreeMap<String, Vec<String>>> {
        self.commits.close()?;
        Ok(self.parents.into_iter().collect())
    }
}

/// One `git cat-file --batch` that is asked for commits.
struct Commits<'a> {
    source: &'a Source,
    run: crate::git::Running,
    out: BufReader<Watched<std::process::ChildStdout>>,
}

impl<'a> Commits<'a> {
    fn open(source: &'a Source) -> Result<Self> {
        let mut run = source.git.converse(&["cat-file", "--batch"])?;
        let out = run.child.stdout.take().ok_or_else(|| source.git.odd("cat-file"))?;
        let out = BufReader::new(run.watched(out));
        Ok(Self { source, run, out })
    }

    fn parents(&mut self, commit: &str) -> Result<Vec<String>> {
        let body = self
            .body(commit)
            .map_err(|e| unpacked(e, |e| WorkspaceError::io("read commits in", &self.source.top, e)))?;
        let header = body.ok_or_else(|| self.source.git.odd("cat-file"))?;
        let lines = header.split(|b| *b == b'\n').take_while(|line| !line.is_empty());
        Ok(lines.filter_map(|line| object_id(line.strip_prefix(b"parent ")?)).collect())
    }

    fn body(&mut self, commit: &str) -> std::io::Result<Option<Vec<u8>>> {
        let Some(pipe) = self.run.child.stdin.as_mut() else { return Ok(None) };
        pipe.write_all(format!("{commit}\n").as_bytes())?;
        let mut line = String::new();
        (&mut self.out).take(1 << 12).read_line(&mut line)?;
        let [_, "commit", size] = line.split_whitespace().collect::<Vec<_>>()[..] else { return Ok(None) };
        let Ok(size) = size.parse::<u64>() else { return Ok(None) };
        let mut body = Vec::new();
        (&mut self.out).take(size + 1).read_to_end(&mut body)?;
        Ok(Some(body))
    }

    fn close(self) -> Result<()> {
        self.run.finish()
    }
}
