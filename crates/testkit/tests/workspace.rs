//! A repository in, a patch out. The bare image proves that the guest needs no git.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::fs;
use std::time::Duration;

use banger_testkit::repo::Repo;
use banger_testkit::{Sandbox, Vm, tree};

/// A repository with everything a working tree can have: staged, unstaged, deleted, untracked, ignored.
fn dirty(sandbox: &Sandbox, name: &str) -> (Repo, String) {
    let repo = Repo::make(&sandbox.work(name));
    let head = repo.git(&["rev-parse", "HEAD"]).ok().text().to_owned();
    repo.write("README.md", b"# a project, edited\n");
    repo.write("src/data.bin", &banger_testkit::random::bytes(9000, 4));
    repo.git(&["add", "src/data.bin"]).ok().done();
    fs::remove_file(repo.dir().join("doomed.txt")).unwrap();
    repo.write("secret.env", b"TOKEN=untracked\n");
    repo.write("noise.log", b"ignored\n");
    (repo, head)
}

fn export(sandbox: &Sandbox, vm: &Vm<'_>, more: &[&str]) -> Vec<u8> {
    let run = sandbox.banger(["vm", "workspace", "export", &vm.name]).args(more);
    run.within(Duration::from_secs(120)).go().ok().stdout
}

#[test]
fn what_the_guest_did_comes_back_as_a_patch_that_makes_the_same_tree() {
    let sandbox = Sandbox::bare();
    let (repo, head) = dirty(&sandbox, "project");
    let before = (repo.status(), fs::read(repo.dir().join(".git/index")).unwrap());
    let vm = sandbox.vm("work", "bare", &["--network", "none"]);
    let prepare = sandbox.banger(["vm", "workspace", "prepare", "work"]).arg(repo.dir());
    prepare.within(Duration::from_secs(120)).go().ok().done();

    // Then the guest sees the dirty tree, without what is untracked or ignored.
    let shown = vm.show()["workspace"].clone();
    assert_eq!(shown["base_commit"], head.as_str(), "{shown}");
    assert_eq!(shown["guest_path"], "/root/repo");
    let script = "cat README.md; ls; stat -c %a check.sh; readlink link; sha256sum src/data.bin";
    let seen = vm.sh(script).go().ok();
    assert!(seen.text().contains("edited") && seen.text().contains("src/a b.txt"), "{seen}");
    for absent in ["secret.env", "noise.log", "doomed.txt"] {
        assert!(!seen.text().contains(absent), "{absent} must not be in the guest: {seen}");
    }
    assert_eq!(vm.exec(["pwd"]).go().ok().text(), "/root/repo", "commands run in the workspace");

    // When the guest edits, adds, deletes, links, changes modes and writes binaries.
    let work = "set -e; printf 'one\\n2\\nthree\\n' >'src/a b.txt'; printf 'new\\n' >new.txt; rm check.sh
        chmod 755 Makefile; ln -s nowhere dangling; mkdir -p deep/er; head -c 50000 /dev/urandom >deep/er/blob.bin
        printf x >\"$(printf 'bad\\377name')\"; rm link; printf 'a file now' >link; echo skip >build.log; mkdir build; echo skip >build/out";
    vm.sh(work).go().ok().done();
    let patch = export(&sandbox, &vm, &[]);
    assert!(!patch.is_empty());

    // Then the patch applies to the base, and what results is what the guest has.
    let patch_file = sandbox.work("change.patch");
    fs::write(&patch_file, &patch).unwrap();
    let copy = repo.checkout(&sandbox.work("copy"), &head);
    let file = patch_file.to_str().unwrap();
    copy.git(&["apply", "--check", file]).ok().done();
    copy.git(&["apply", file]).ok().done();
    let made = tree::contents(copy.dir());
    let list = "find . \\( -path ./.git -o -name '*.log' -o -path ./build \\) -prune -o -type f -print0 | sort -z | xargs -0 sha256sum";
    let in_guest = vm.sh(list).go().ok().stdout;
    let on_host = sandbox.program("sh").args(["-c", list]).dir(copy.dir()).go().ok().stdout;
    assert_eq!(in_guest.escape_ascii().to_string(), on_host.escape_ascii().to_string(), "files differ");
    let (mode, target) = &made[std::path::Path::new("dangling")];
    assert_eq!((mode.as_str(), target.as_slice()), ("120000", &b"nowhere"[..]));
    assert_eq!(made[std::path::Path::new("Makefile")].0, "100755");
    assert_eq!(made[std::path::Path::new("link")].0, "100644");
    assert!(!made.contains_key(std::path::Path::new("check.sh")));
    assert!(!String::from_utf8_lossy(&patch).contains("build.log"), "ignored files stay behind");

    // And neither side's index nor tree was touched.
    assert_eq!((repo.status(), fs::read(repo.dir().join(".git/index")).unwrap()), before);
    // And the summary says the same.
    let out = sandbox.banger(["vm", "workspace", "export", "work", "--json"]).go().ok();
    let summary = out.json();
    assert_eq!(summary["base_commit"], head.as_str());
    assert_eq!(summary["has_changes"], true);
    assert_eq!(summary["patch_bytes"], patch.len());
    let change = |path: &str| {
        let files = summary["files"].as_array().unwrap();
        files.iter().find(|f| f["path"] == path).map(|f| f["change"].as_str().unwrap().to_owned())
    };
    assert_eq!(change("new.txt").as_deref(), Some("added"));
    assert_eq!(change("check.sh").as_deref(), Some("deleted"));
    assert_eq!(change("Makefile").as_deref(), Some("mode"));
    assert_eq!(change("link").as_deref(), Some("typechange"));
    let names = String::from_utf8_lossy(&export(&sandbox, &vm, &["--names-only"])).into_owned();
    assert!(names.lines().any(|l| l == "new.txt"), "{names}");
    let to = sandbox.work("out.patch");
    export(&sandbox, &vm, &["-o", to.to_str().unwrap()]);
    assert_eq!(fs::read(to).unwrap(), patch);
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn run_in_a_repository_copies_it_in_and_says_nothing_when_nothing_changed() {
    let sandbox = Sandbox::bare();
    let (repo, _) = dirty(&sandbox, "clean");
    repo.git(&["checkout", "--quiet", "--", "."]).ok().done();
    repo.git(&["reset", "--quiet", "--hard"]).ok().done();
    let run = sandbox.banger(["run", "--name", "quick", "--image", "bare", "."]).dir(repo.dir().join("src"));
    let out = run.args(["--", "./check.sh"]).within(Duration::from_secs(120)).go().ok();
    assert_eq!(out.stdout, b"", "progress and notices go to stderr: {out}");
    let vm = sandbox.existing("quick");
    assert_eq!(export(&sandbox, &vm, &[]), b"");
    let summary = sandbox.banger(["vm", "workspace", "export", "quick", "--json"]).go().ok().json();
    assert_eq!((&summary["has_changes"], &summary["patch_bytes"]), (&false.into(), &0.into()));
    vm.delete();

    // A dry run copies and boots nothing.
    let dry = sandbox.banger(["run", "--dry-run", "--json", "--include-untracked"]).arg(repo.dir()).go().ok();
    let plan = dry.json();
    let files: Vec<_> = plan["files"].as_array().unwrap().iter().filter_map(|f| f.as_str()).collect();
    assert!(files.contains(&"secret.env") && !files.contains(&"noise.log"), "{plan}");
    assert_eq!(sandbox.vm_names(), Vec::<String>::new());
    sandbox.no_vm_is_left();
}

#[test]
fn paths_that_are_no_usable_repository_are_refused_before_anything_boots() {
    let sandbox = Sandbox::bare();
    let refused = |path: &std::path::Path, words: &[&str]| {
        let run = sandbox.banger(["run", "--rm", "--image", "bare"]).arg(path).args(["--", "true"]);
        run.go().ends_with(125).says(words).says(&["hint:"]).done();
        assert_eq!(sandbox.vm_names(), Vec::<String>::new());
    };
    let plain = sandbox.work("plain");
    fs::create_dir(&plain).unwrap();
    refused(&plain, &["plain", "repository"]);
    refused(&sandbox.work("absent"), &["absent"]);
    let bare = sandbox.work("bare.git");
    banger_testkit::repo::git(&sandbox.work(""))
        .args(["init", "--quiet", "--bare"])
        .arg(&bare)
        .go()
        .ok()
        .done();
    refused(&bare, &["bare"]);
    let (repo, _) = dirty(&sandbox, "real");
    let from = sandbox
        .banger(["run", "--rm", "--image", "bare", "--from", "no-such-ref", "--branch", "b"])
        .arg(repo.dir());
    from.args(["--", "true"]).go().ends_with(125).says(&["no-such-ref"]).done();
    sandbox.no_vm_is_left();
}
