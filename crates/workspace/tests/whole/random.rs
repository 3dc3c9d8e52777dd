//! Random repositories and random guests: what comes out is the guest's tree, always.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::apply::wish;
use crate::support::{
    Guest, applied_to_index, at, commit, directory, export, git, guest_tree, prepare, put, request, status,
    tree_id, tree_of_files, try_git,
};
use banger_model::{Error, ErrorCode};
use banger_workspace::apply;
use banger_workspace::export::Exported;
use proptest::prelude::*;

const PATHS: [&[u8]; 12] = [
    b"a",
    b"b.o",
    b"d/a",
    b"d/e/f",
    b"d/e",
    b"build/z",
    b"odd \xff",
    b"n\nl/-x",
    b"-dash",
    b".hidden/q",
    b"d/k.o",
    b"tmp/deep/er/x",
];
const RULES: [&str; 8] = [
    "*.o\n",
    "*.o\n!k.o\n",
    "/build\n",
    "build/\ntmp/*\n!tmp/deep\n",
    "*\n!a\n",
    "**/e/\n",
    "# none\n\n",
    "/d/**/f\n",
];

#[derive(Debug, Clone)]
enum Edit {
    Write(usize, Vec<u8>),
    Big(usize, u8),
    Remove(usize),
    Mode(usize),
    Link(usize, usize),
    Rename(usize, usize),
    Rules(bool, usize),
    Stage(usize),
    Untrack(usize),
    Commit,
    Reset(bool),
    Switch,
    Stash,
}

fn edit() -> impl Strategy<Value = Edit> {
    let path = 0..PATHS.len();
    prop_oneof![
        6 => (path.clone(), proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(p, c)| Edit::Write(p, c)),
        1 => (path.clone(), any::<u8>()).prop_map(|(p, c)| Edit::Big(p, c)),
        3 => path.clone().prop_map(Edit::Remove),
        2 => path.clone().prop_map(Edit::Mode),
        2 => (path.clone(), path.clone()).prop_map(|(p, t)| Edit::Link(p, t)),
        2 => (path.clone(), path.clone()).prop_map(|(p, t)| Edit::Rename(p, t)),
        2 => (any::<bool>(), 0..RULES.len()).prop_map(|(top, r)| Edit::Rules(top, r)),
        2 => path.clone().prop_map(Edit::Stage),
        1 => path.prop_map(Edit::Untrack),
        2 => Just(Edit::Commit),
        1 => any::<bool>().prop_map(Edit::Reset),
        1 => Just(Edit::Switch),
        1 => Just(Edit::Stash),
    ]
}

/// Makes room for a path: no file above it, nothing at it.
fn clear(dir: &Path, path: &[u8]) {
    let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(n, _)| n).chain([path.len()]);
    for end in slashes {
        let there = at(dir, &path[..end]);
        match std::fs::symlink_metadata(&there) {
            Ok(meta) if meta.is_dir() && end == path.len() => std::fs::remove_dir_all(&there).unwrap(),
            Ok(meta) if !meta.is_dir() => std::fs::remove_file(&there).unwrap(),
            _ => {}
        }
    }
    std::fs::create_dir_all(at(dir, path).parent().unwrap()).unwrap();
}

fn perform(dir: &Path, edit: &Edit) {
    match edit {
        Edit::Write(p, content) => {
            clear(dir, PATHS[*p]);
            put(dir, PATHS[*p], content);
        }
        Edit::Big(p, byte) => {
            clear(dir, PATHS[*p]);
            put(dir, PATHS[*p], vec![*byte; (1 << 20) + usize::from(*byte)]);
        }
        Edit::Remove(p) => clear(dir, PATHS[*p]),
        Edit::Mode(p) => {
            let path = at(dir, PATHS[*p]);
            if let Ok(meta) = std::fs::symlink_metadata(&path)
                && meta.is_file()
            {
                std::fs::set_permissions(&path, PermissionsExt::from_mode(meta.permissions().mode() ^ 0o111))
                    .unwrap();
            }
        }
        Edit::Link(p, target) => {
            clear(dir, PATHS[*p]);
            // From a deeper directory the target is mostly not there; it never leads out.
            symlink(at(Path::new(""), PATHS[*target]), at(dir, PATHS[*p])).unwrap();
        }
        Edit::Rename(from, to) => {
            let aside = dir.join(".git/aside");
            if std::fs::symlink_metadata(at(dir, PATHS[*from])).is_ok() {
                std::fs::rename(at(dir, PATHS[*from]), &aside).unwrap();
                clear(dir, PATHS[*to]);
                std::fs::rename(&aside, at(dir, PATHS[*to])).unwrap();
            }
        }
        Edit::Rules(top, rules) => {
            let path: &[u8] = if *top { b".gitignore" } else { b"d/.gitignore" };
            clear(dir, path);
            put(dir, path, RULES[*rules]);
        }
        Edit::Stage(p) => drop(try_git(dir, &["add", "-f", "--", &String::from_utf8_lossy(PATHS[*p])])),
        Edit::Untrack(p) => {
            drop(try_git(dir, &["rm", "-rq", "--cached", "--", &String::from_utf8_lossy(PATHS[*p])]));
        }
        Edit::Commit => commit(dir, "some"),
        Edit::Reset(hard) => drop(try_git(dir, &["reset", "-q", if *hard { "--hard" } else { "--mixed" }])),
        Edit::Switch => drop(try_git(dir, &["checkout", "-q", "-B", "another", "HEAD~1"])),
        Edit::Stash => drop(try_git(dir, &["stash", "-q", "-u"])),
    }
}

fn round_trip(before: &[Edit], dirty: &[Edit], guests: &[Edit], untracked: bool) {
    let repo = directory();
    git(repo.path(), &["init", "-q"]);
    before.iter().for_each(|e| perform(repo.path(), e));
    commit(repo.path(), "base");
    dirty.iter().for_each(|e| perform(repo.path(), e));

    let mut asked = request(repo.path());
    asked.include_untracked = untracked;
    let guest = prepare(&asked).unwrap();
    let (host, mine) = (status(repo.path()), status(guest.path()));
    let tracked = |s: &str| {
        s.lines().filter(|l| untracked || !l.starts_with("? ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(tracked(&mine), tracked(&host), "status");

    guests.iter().for_each(|e| perform(guest.path(), e));
    let base = &guest.captured.base_commit;
    let (_scratch, out) = export(repo.path(), base, guest.path()).unwrap();
    assert_eq!(out.tree, guest_tree(guest.path()), "the guest's tree\n{}", status(guest.path()));
    assert_eq!(applied_to_index(repo.path(), base, &out.patch), out.tree, "the patch");
    if untracked {
        into_files(repo.path(), &guest, &out);
    } else {
        into_a_branch(repo.path(), &out);
    }
}

/// The change is made in the host's files and nothing else is; or nothing at all, when something is in the way.
fn into_files(repo: &Path, guest: &Guest, out: &Exported) {
    let before = tree_of_files(repo, &out.summary.base_commit, out);
    let index = std::fs::read(repo.join(".git/index")).ok();
    let ignored = others(repo, &["--ignored"]);
    let done = apply::plan(out, wish(guest, out)).and_then(apply::Plan::carry_out).map_err(Error::from);
    match done {
        // A copied file that the guest ignores now is in nobody's tree, and stays; it may hold the rules themselves.
        Ok(_) if ignores_a_copy(guest, out) => {}
        // Nor did one go in that the host ignored, and its rules are the guest's now.
        Ok(_) if !others(repo, &[]).is_disjoint(&ignored) => {}
        Ok(_) => {
            assert_eq!(tree_of_files(repo, &out.tree, out), out.tree, "the files after apply");
            assert_eq!(std::fs::read(repo.join(".git/index")).ok(), index, "the host's index");
        }
        Err(error) => {
            // A directory with files that are not in git, ignored ones among them, makes room for nothing.
            assert_eq!(error.code, ErrorCode::Conflict, "{error}");
            assert!(!git(repo, &["ls-files", "--others"]).is_empty(), "{error}");
            assert_eq!(tree_of_files(repo, &out.summary.base_commit, out), before, "{error}");
        }
    }
}

/// The names of files that are not in git.
fn others(repo: &Path, which: &[&str]) -> BTreeSet<Vec<u8>> {
    let list = git(repo, &[&["ls-files", "-z", "--others", "--exclude-standard"], which].concat());
    list.split(|b| *b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

/// Whether a file that was copied in is there and is in neither tree.
fn ignores_a_copy(guest: &Guest, out: &Exported) -> bool {
    let listed = |tree: &str| {
        let list =
            git(out.patch.with_file_name("export.git").as_path(), &["ls-tree", "-rz", "--name-only", tree]);
        list.split(|b| *b == 0).map(<[u8]>::to_vec).collect::<BTreeSet<_>>()
    };
    let (before, after) = (listed(&out.summary.base_commit), listed(&out.tree));
    guest.captured.plan.files.iter().map(banger_model::ByteString::as_bytes).any(|path| {
        let is_there = std::fs::symlink_metadata(at(guest.path(), path)).is_ok_and(|meta| !meta.is_dir());
        is_there && !before.contains(path) && !after.contains(path)
    })
}

fn into_a_branch(repo: &Path, out: &Exported) {
    let before = status(repo);
    let done = apply::to_branch(out, "guests", "all", false).unwrap();
    assert_eq!(status(repo), before);
    if done.has_changes {
        let tree = git(repo, &["rev-parse", "guests^{tree}"]);
        assert_eq!(tree_id(&tree), out.tree, "the branch");
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 150,
        max_shrink_iters: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn edits(most: usize) -> impl Strategy<Value = Vec<Edit>> {
    proptest::collection::vec(edit(), 0..most)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_comes_out_is_the_guests_tree(before in edits(12), dirty in edits(6), guests in edits(10)) {
        round_trip(&before, &dirty, &guests, true);
    }

    #[test]
    fn so_it_is_without_untracked_files(before in edits(12), dirty in edits(6), guests in edits(10)) {
        round_trip(&before, &dirty, &guests, false);
    }
}

/// The random cases found it once in some hundreds.
#[test]
fn a_directory_where_a_copied_file_was_takes_it_away() {
    round_trip(&[], &[Edit::Write(4, b"copied".to_vec())], &[Edit::Remove(3)], true);
}
