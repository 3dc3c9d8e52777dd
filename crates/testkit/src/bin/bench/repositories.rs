//! Repositories of the sizes that the promises about workspaces name.

use std::path::{Path, PathBuf};

use banger_testkit::account::give;
use banger_testkit::repo::Repo;
use banger_testkit::{as_invoker, tree};

/// Files that the real one has at least.
const REAL: usize = 5_000;
/// Files of the other.
const MANY: usize = 100_000;

/// Real files: the sources of this project's own dependencies, as cargo keeps them.
pub(crate) fn real(dir: &Path) -> Repo {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home =
        home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo"))).expect("a home");
    std::fs::create_dir_all(dir).expect("a directory");
    as_invoker(|| copy_crates(&home.join("registry/src"), dir));
    give(dir);
    committed(dir, REAL)
}

/// Copies as many crates as it takes. They are in the home of who runs the benchmark.
fn copy_crates(sources: &Path, dir: &Path) {
    let mut registries: Vec<PathBuf> = children(sources);
    let mut crates = registries.drain(..).flat_map(|registry| children(&registry)).collect::<Vec<_>>();
    crates.sort();
    let mut count = 0;
    for from in crates {
        // git's own files do not go into a repository of ours.
        let files: Vec<_> =
            tree::walk(&from).into_iter().filter(|e| !e.path.to_string_lossy().contains("/.git")).collect();
        let name = from.file_name().expect("a name");
        std::process::Command::new("cp").arg("-r").arg(&from).arg(dir.join(name)).status().expect("cp runs");
        count += files.len();
        if count >= REAL + REAL / 5 {
            break;
        }
    }
}

/// Small files, a hundred in each directory.
pub(crate) fn many(dir: &Path) -> Repo {
    for n in 0..MANY {
        let sub = dir.join(format!("d{:04}", n / 100));
        if n % 100 == 0 {
            std::fs::create_dir_all(&sub).expect("a directory");
        }
        std::fs::write(sub.join(format!("f{n:06}")), format!("file {n} of many\n")).expect("a file");
    }
    committed(dir, MANY)
}

fn committed(dir: &Path, at_least: usize) -> Repo {
    let repo = Repo::at(dir);
    repo.git(&["init", "--quiet", "--initial-branch=main"]).ok().done();
    repo.commit("all");
    let files = repo.git(&["ls-files"]).ok().stdout.iter().filter(|b| **b == b'\n').count();
    assert!(files >= at_least, "{} has {files} files: run cargo fetch", dir.display());
    repo
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|path| path.is_dir()).collect()
}
