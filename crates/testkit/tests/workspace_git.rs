//! Workspaces in a guest that has git: its status is the host's in many situations, names and contents of all kinds go
//! both ways, and what git does in the guest is neither in the way nor lost. One VM for all of it.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use banger_testkit::guests::{forget_peak, peak_rss_kib, rss_kib};
use banger_testkit::repo::{Repo, git};
use banger_testkit::{Run, Sandbox, Vm};

const LONG: Duration = Duration::from_secs(300);
const STATUS: &str = "status --porcelain=v2 --branch -z --untracked-files=all";

/// Every repository begins with this.
const FIRST: &str = "git init -q -b main; mkdir -p d/e; echo one >a; echo two >d/b; echo three >d/e/c; : >empty
    printf '#!/bin/sh\\n' >run; chmod 755 run; ln -s a link; ln -s nowhere dangling; ln -s d dir; printf '*.o\\n/build/\\n' >.gitignore
    git add -A; git commit -qm first; echo more >>d/b; git commit -qam second; echo ignored >x.o";

/// What then happens to it. `./r` at the end of a name: the copy is made of that directory.
const SITUATIONS: [(&str, &str); 42] = [
    ("clean", ""),
    ("modified", "echo x >a"),
    ("same size", "echo eno >a"),
    ("staged", "echo x >a; git add a"),
    ("staged and modified", "echo x >a; git add a; echo y >a"),
    ("staged and restored", "echo x >a; git add a; echo one >a"),
    ("added", "mkdir n; echo x >n/w; git add n"),
    ("added and deleted", "echo x >n; git add n; rm n"),
    ("deleted", "rm a d/e/c"),
    ("deletion staged", "git rm -q a"),
    ("out of the index", "git rm -q --cached a"),
    ("renamed", "git mv a z"),
    ("renamed and modified", "git mv d z; echo more >>z/b"),
    ("mode", "chmod 755 a; chmod 644 run"),
    ("mode staged", "chmod 755 a; git add a"),
    ("mode staged and taken back", "chmod 755 a; git add a; chmod 644 a"),
    ("intent to add", "echo x >n; git add -N n"),
    ("untracked", "mkdir u; echo x >u/n; echo y >'u/n m'"),
    ("tracked though ignored", "git add -f x.o; echo y >>x.o"),
    (
        "content conflict",
        "git checkout -qb o; echo x >a; git commit -qam o; git checkout -q main; echo y >a; git commit -qam y; ! git merge -q o",
    ),
    (
        "modify and delete",
        "git checkout -qb o; git rm -q a; git commit -qm o; git checkout -q main; echo y >a; git commit -qam y; ! git merge -q o",
    ),
    (
        "add and add",
        "git checkout -qb o; echo x >n; git add n; git commit -qm o; git checkout -q main; echo y >n; git add n; git commit -qm y; ! git merge -q o",
    ),
    (
        "cherry-pick",
        "git checkout -qb o; echo x >a; git commit -qam o; git checkout -q main; echo y >a; git commit -qam y; ! git cherry-pick o",
    ),
    ("detached", "git checkout -q --detach HEAD~1; echo x >a"),
    ("no commit", "rm -rf .git; git init -q -b main"),
    ("no commit, staged", "rm -rf .git; git init -q -b main; git add a d; echo x >a"),
    ("file became a link", "rm a; ln -s d/b a"),
    ("link became a file", "rm link; echo x >link"),
    ("file became a directory", "rm a; mkdir a; echo x >a/b"),
    ("directory became a file", "rm -r d; echo x >d"),
    ("directory became a link", "rm -r d; ln -s . d"),
    ("links", "ln -s ../../up far; ln -sfn / dir; ln -s link again; git add again"),
    (
        "odd names",
        "printf x >\"$(printf 'n\\nl')\"; printf x >-dash; printf x >'q\"u\\o'; printf x >\"$(printf 'b\\377y')\"; printf x >' s '; git add -- -dash 'q\"u\\o'",
    ),
    (
        "line ends",
        "printf '* text=auto eol=crlf\\n' >.gitattributes; git add --renormalize .; rm a; git checkout -q a; printf 'x\\r\\n' >>d/b",
    ),
    (
        "clean and smudge",
        "git config filter.up.clean 'tr a-z A-Z'; git config filter.up.smudge 'tr A-Z a-z'; echo 'f filter=up' >.gitattributes; echo abc >f; git add f; git commit -qm f",
    ),
    (
        "large file storage",
        "printf 'version https://git-lfs.github.com/spec/v1\\noid sha256:0\\nsize 3\\n' >p; echo 'p filter=lfs diff=lfs merge=lfs -text' >.gitattributes; git add p .gitattributes; git commit -qm p",
    ),
    ("sparse", "git sparse-checkout set --no-cone /a /d/e; echo x >a"),
    ("shallow clone ./r", "git clone -q --depth 1 \"file://$PWD\" r; cd r; echo x >a"),
    (
        "partial clone ./r",
        "git config uploadpack.allowFilter 1; git clone -q --filter=blob:none \"file://$PWD\" r; cd r; echo x >a; git add a",
    ),
    ("alternates ./r", "git clone -q --shared . r; cd r; git mv a z"),
    ("linked worktree ./r", "git worktree add -q -b w r; cd r; echo x >a; git rm -q d/b"),
    (
        "ahead and behind ./r",
        "git clone -q . r; echo up >>a; git commit -qam up; cd r; echo x >n; git add n; git commit -qm n; git fetch -q; echo y >n",
    ),
];

fn prepare(sandbox: &Sandbox, path: &std::path::Path, to: &str, more: &[&str]) -> Run {
    sandbox
        .banger(["vm", "workspace", "prepare", "git", "--guest-path", to])
        .args(more)
        .arg(path)
        .within(LONG)
}

fn apply(sandbox: &Sandbox) -> Run {
    sandbox.banger(["vm", "workspace", "apply", "git", "--json"]).within(LONG)
}

/// The tree of the files in a directory of the guest, its index left alone.
const TREE: &str = "cp -p .git/index .git/t; GIT_INDEX_FILE=.git/t git -c safe.directory='*' add -A; GIT_INDEX_FILE=.git/t git write-tree";

/// The same on the host.
fn tree_of(repo: &Repo) -> String {
    let run =
        |args: &[&str]| git(repo.dir()).env("GIT_INDEX_FILE", repo.dir().join(".git/of-a-test")).args(args);
    run(&["add", "-A"]).go().ok().done();
    run(&["write-tree"]).go().ok().text().to_owned()
}

#[test]
fn a_guest_with_git_sees_what_the_developer_sees_and_loses_nothing() {
    let sandbox = Sandbox::debian();
    let vm = sandbox.vm("git", "debian", &["--network", "none", "--memory", "512M"]);
    status_is_the_hosts(&sandbox, &vm);
    names_of_any_bytes_go_both_ways(&sandbox, &vm);
    what_git_does_in_the_guest_is_no_hindrance(&sandbox, &vm);
    a_large_file_goes_whole(&sandbox, &vm);
    vm.delete();
    sandbox.no_vm_is_left();
}

fn status_is_the_hosts(sandbox: &Sandbox, vm: &Vm<'_>) {
    let (mut host, mut script) = (Vec::new(), String::new());
    for (n, (name, then)) in SITUATIONS.iter().enumerate() {
        let mut dir = sandbox.work(&format!("status-{n}"));
        fs::create_dir(&dir).unwrap();
        let make = format!("set -e; {FIRST}; {then}");
        let identity = "export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=protocol.file.allow GIT_CONFIG_VALUE_0=always";
        let mut made = sandbox.program("sh").args(["-c", &format!("{identity}\n{make}")]).dir(&dir);
        for role in ["AUTHOR", "COMMITTER"] {
            made =
                made.env(format!("GIT_{role}_NAME"), "T").env(format!("GIT_{role}_EMAIL"), "t@example.org");
        }
        made.go().ok().done();
        if name.ends_with("./r") {
            dir.push("r");
        }
        let to = format!("/srv/{n}");
        prepare(sandbox, &dir, &to, &["--include-untracked"]).go().ok().done();
        let status = git(&dir).args(STATUS.split(' ')).go().ok().stdout;
        host.push(format!("{name}: {}", status.escape_ascii()));
        script.push_str(&format!("git -c safe.directory='*' -C {to} {STATUS}; printf '\\n--\\n'\n"));
    }
    let out = vm.sh(&script).within(LONG).go().ok().stdout;
    let text = out.escape_ascii().to_string();
    let guest: Vec<&str> = text.split("\\n--\\n").collect();
    let wrong: Vec<String> = host
        .iter()
        .zip(&guest)
        .zip(SITUATIONS)
        .filter(|((host, guest), (name, _))| **host != format!("{name}: {guest}"))
        .map(|((host, guest), _)| format!("{host}\n  in the guest: {guest}"))
        .collect();
    assert_eq!(guest.len(), SITUATIONS.len() + 1);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn names_of_any_bytes_go_both_ways(sandbox: &Sandbox, vm: &Vm<'_>) {
    use std::os::unix::ffi::OsStrExt;
    let repo = Repo::make(&sandbox.work("names"));
    let names: [&[u8]; 8] = [
        b"-n",
        b"new\nline",
        b"quote\"'",
        b"\xff\xfe",
        b"back\\slash",
        b" space ",
        b"*?[",
        "\u{fc}\u{1f980}".as_bytes(),
    ];
    for name in names {
        fs::write(repo.dir().join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    repo.commit("names");
    fs::write(repo.dir().join("README.md"), "mine\n").unwrap();
    fs::write(repo.dir().join("loose"), "mine\n").unwrap();
    fs::remove_file(repo.dir().join("Makefile")).unwrap();
    prepare(sandbox, repo.dir(), "/srv/names", &["--include-untracked"]).go().ok().done();
    // Half are changed, half moved, and the user's own uncommitted work is undone.
    let work = "set -e; cd /srv/names; n=0; find . -name .git -prune -o -type f -print0 | sort -z | while IFS= read -r -d '' f; do
        n=$((n + 1)); if [ $((n % 2)) = 0 ]; then echo more >>\"$f\"; else mv -- \"$f\" \"$f.moved\"; fi; done
        git checkout -q -- README.md Makefile; rm -f loose loose.moved README.md.moved; ln -s \"$(printf 'new\\nline')\" \"$(printf 'l\\n\\377')\"; mkdir -- --; : >--/-";
    vm.exec(["bash", "-c", work]).within(LONG).go().ok().done();
    let theirs = vm.sh(&format!("cd /srv/names; {TREE}")).within(LONG).go().ok().text().to_owned();
    apply(sandbox).go().ok().done();
    assert_eq!(tree_of(&repo), theirs);
    assert_eq!(fs::read(repo.dir().join("README.md")).unwrap(), b"# a project\n");
    assert!(!repo.dir().join("loose").exists() && repo.dir().join("Makefile").exists());
    // The guest goes on, and so does the next apply; nobody has moved on.
    vm.sh("cd /srv/names; echo 2 >README.md; git mv -- -n minus; rm -r -- --").within(LONG).go().ok().done();
    let told = vm.exec(["true"]).go().ok();
    assert!(!told.err().contains("moved on"), "{told}");
    let theirs = vm.sh(&format!("cd /srv/names; {TREE}")).within(LONG).go().ok().text().to_owned();
    apply(sandbox).go().ok().done();
    assert_eq!(tree_of(&repo), theirs);
}

fn what_git_does_in_the_guest_is_no_hindrance(sandbox: &Sandbox, vm: &Vm<'_>) {
    let repo = Repo::make(&sandbox.work("gc"));
    let to = "/srv/gc";
    prepare(sandbox, repo.dir(), to, &[]).go().ok().done();
    let guest = |script: &str| vm.sh(&format!("cd {to}; {script}")).within(LONG).go().ok().text().to_owned();
    // Given a guest that has thrown all packs together and its reflogs away.
    guest("git gc -q --prune=now --aggressive; git pack-refs --all; echo guest >new.txt; git add new.txt");
    let out = sandbox.banger(["vm", "workspace", "export", "git", "--names-only"]).within(LONG).go().ok();
    assert_eq!(out.text(), "new.txt");
    // When the host goes on, then the guest gets that, and what it has staged stays staged.
    repo.write("README.md", b"# more\n");
    prepare(sandbox, repo.dir(), to, &[]).go().ok().done();
    assert_eq!(guest("cat README.md; git diff --cached --name-only"), "# more\nnew.txt");
    // When both stage something, neither loses it unasked.
    repo.git(&["add", "README.md"]).ok().done();
    let refused = prepare(sandbox, repo.dir(), to, &[]).go().ends_with(1);
    refused.says(&[".git/index", "--force"]).done();
    assert_eq!(guest("git diff --cached --name-only"), "new.txt");
    // Nor are the guest's own settings overwritten when the host's change.
    guest("git reset -q; git config user.name 'The Guest'");
    repo.git(&["config", "user.name", "The Host"]).ok().done();
    let refused = prepare(sandbox, repo.dir(), to, &[]).go().ends_with(1);
    refused.says(&[".git/config"]).done();
    prepare(sandbox, repo.dir(), to, &["--force"]).go().ok().done();
    assert_eq!(
        guest("git config user.name; git diff --cached --name-only; cat new.txt"),
        "The Host\nREADME.md\nguest"
    );
    // And after a commit there the repository is whole.
    repo.commit("third");
    prepare(sandbox, repo.dir(), to, &[]).go().ok().done();
    assert_eq!(
        guest("git fsck --no-dangling 2>&1; git status --porcelain; git log --oneline | wc -l"),
        "?? new.txt\n3"
    );
}

fn a_large_file_goes_whole(sandbox: &Sandbox, vm: &Vm<'_>) {
    // A gibibyte when it is asked for: an emulated guest takes a minute or two for that.
    let size =
        std::env::var("BANGER_LARGE_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(128_u64) << 20;
    let repo = Repo::make(&sandbox.work("large"));
    // Mostly holes on both sides, and nothing of that on the way.
    let file = fs::File::create(repo.dir().join("large")).unwrap();
    file.set_len(size).unwrap();
    let pieces: [u64; 3] = [0, size / 2 + 5, size - (1 << 20)];
    for (seed, at) in pieces.into_iter().enumerate() {
        file.write_all_at(&banger_testkit::random::bytes(1 << 20, seed as u64), at).unwrap();
    }
    let daemon = sandbox.daemon().unwrap();
    let before = rss_kib(daemon);
    forget_peak(daemon);
    prepare(sandbox, repo.dir(), "/srv/large", &["--include-untracked"]).go().ok().done();
    let theirs = vm.sh("cd /srv/large; stat -c %s large; md5sum <large; du -m large").within(LONG).go().ok();
    let ours = sandbox.program("sh").args(["-c", "stat -c %s large; md5sum <large"]).dir(repo.dir());
    let ours = ours.within(LONG).go().ok();
    let mut lines = theirs.text().lines();
    assert_eq!(lines.by_ref().take(2).collect::<Vec<_>>(), ours.text().lines().collect::<Vec<_>>());
    let disk: u64 = lines.next().and_then(|l| l.split_whitespace().next()).unwrap().parse().unwrap();
    assert!(disk < 20, "{disk} MiB on the guest's disk");
    // Out again it is more than the limit, which is said before it is sent.
    let refused = sandbox.banger(["vm", "workspace", "export", "git", "--max-bytes", "1000000"]).within(LONG);
    refused.go().ends_with(1).says(&["large", "--max-bytes"]).done();
    // When the guest changes some of it, then all of it comes back.
    let change =
        "cd /srv/large; echo changed | dd of=large bs=1 seek=1000003 conv=notrunc status=none; md5sum <large";
    let theirs = vm.sh(change).within(LONG).go().ok();
    let limit = (2 * size).to_string();
    let out = sandbox.banger(["vm", "workspace", "apply", "git", "--max-bytes", &limit]).within(LONG);
    out.go().ok().done();
    let ours = sandbox.program("sh").args(["-c", "md5sum <large"]).dir(repo.dir()).within(LONG).go().ok();
    assert_eq!(ours.text(), theirs.text());
    // And the daemon never had it in its memory.
    let more = peak_rss_kib(daemon).saturating_sub(before);
    assert!(more < 32 << 10, "{more} KiB");
}
