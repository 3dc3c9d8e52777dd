//! A repository in, again and again: what a second prepare sends, keeps and refuses, read-only copies, notices, and
//! what a daemon that dies between two steps leaves.

use std::fs;
use std::path::Path;
use std::time::Duration;

use banger_testkit::repo::Repo;
use banger_testkit::{Output, Run, Running, Sandbox};

const LONG: Duration = Duration::from_secs(120);

fn prepare(sandbox: &Sandbox, vm: &str, path: &Path) -> Run {
    sandbox.banger(["vm", "workspace", "prepare", vm]).arg(path).within(LONG)
}

fn quickly(run: Run) -> Output {
    run.within(LONG).go()
}

#[test]
fn a_second_prepare_sends_what_changed_keeps_the_guests_work_and_refuses_to_overwrite_it() {
    let sandbox = Sandbox::bare();
    let repo = Repo::make(&sandbox.work("project"));
    let vm = sandbox.vm("work", "bare", &["--network", "none"]);
    let first = prepare(&sandbox, "work", repo.dir()).arg("--json").go().ok().json();
    assert_eq!((&first["updated"], &first["guest_path"]), (&false.into(), &"/root/repo".into()), "{first}");

    // When nothing has changed, nothing is sent.
    let again = prepare(&sandbox, "work", repo.dir()).arg("--json").go().ok().json();
    assert_eq!((&again["updated"], &again["sent"], &again["removed"]), (&true.into(), &0.into(), &0.into()));

    // When both sides change different files, each keeps its own.
    vm.sh("echo guest >new.txt; echo guest >>Makefile").go().ok().done();
    repo.write("README.md", b"# host\n");
    repo.write("src/more.txt", b"more\n");
    repo.git(&["add", "src/more.txt"]).ok().done();
    fs::remove_file(repo.dir().join("doomed.txt")).unwrap();
    let update = prepare(&sandbox, "work", repo.dir()).arg("--json").go().ok().json();
    assert_eq!((&update["sent"], &update["removed"]), (&2.into(), &1.into()), "{update}");
    let seen = vm.sh("cat README.md src/more.txt new.txt Makefile; ls").go().ok();
    assert!(
        seen.text().contains("# host") && seen.text().contains("more") && !seen.text().contains("doomed"),
        "{seen}"
    );
    assert_eq!(seen.text().matches("guest").count(), 2, "{seen}");

    // When both change the same file, it is refused by name and nothing is touched.
    repo.write("Makefile", b"host:\n");
    repo.write("new.txt", b"host\n");
    repo.git(&["add", "new.txt"]).ok().done();
    let refused = prepare(&sandbox, "work", repo.dir()).arg("--json").go().ends_with(1);
    let error = refused.json_error();
    assert_eq!(error["code"], "conflict", "{error}");
    let said = error.to_string();
    assert!(said.contains("'Makefile'") && said.contains("'new.txt'") && said.contains("--force"), "{said}");
    assert!(vm.sh("cat Makefile").go().ok().text().contains("guest"));
    assert_eq!(vm.show()["workspace"]["guest_path"], "/root/repo", "the workspace is whole as before");

    // What became the same on both sides is nobody's loss.
    vm.sh("echo host >new.txt").go().ok().done();
    let refused = prepare(&sandbox, "work", repo.dir()).go().ends_with(1);
    assert!(refused.err().contains("Makefile") && !refused.err().contains("new.txt"), "{refused}");
    prepare(&sandbox, "work", repo.dir()).arg("--force").go().ok().done();
    assert_eq!(vm.sh("cat Makefile new.txt").go().ok().text(), "host:\nhost");

    // A directory in the place of a file, and the reverse, on the host; and a commit.
    fs::remove_dir_all(repo.dir().join("src")).unwrap();
    repo.write("src", b"a file now\n");
    fs::remove_file(repo.dir().join("README.md")).unwrap();
    fs::create_dir(repo.dir().join("README.md")).unwrap();
    repo.write("README.md/in", b"in a directory\n");
    let head = repo.commit("turned round");
    prepare(&sandbox, "work", repo.dir()).go().ok().done();
    assert_eq!(vm.sh("cat src README.md/in").go().ok().text(), "a file now\nin a directory");
    assert_eq!(vm.show()["workspace"]["base_commit"], head.as_str());
    let out = quickly(sandbox.banger(["vm", "workspace", "export", "work"])).ok();
    assert_eq!(out.stdout.escape_ascii().to_string(), "", "the guest is as the host");

    // Another repository goes nowhere near it, but elsewhere.
    let other = Repo::make(&sandbox.work("other"));
    prepare(&sandbox, "work", other.dir()).go().ends_with(1).says(&["/root/repo", "--guest-path"]).done();
    prepare(&sandbox, "work", other.dir()).args(["--guest-path", "/srv/other"]).go().ok().done();
    assert_eq!(vm.exec(["pwd"]).go().ok().text(), "/srv/other");
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn a_command_begins_in_the_workspace_and_says_when_the_host_has_moved_on() {
    let sandbox = Sandbox::bare();
    let repo = Repo::make(&sandbox.work("project"));
    let vm = sandbox.vm("work", "bare", &["--network", "none"]);
    let none = quickly(vm.exec_with(&["--auto-prepare"], ["true"])).ends_with(125);
    none.says(&["no workspace", "prepare"]).done();
    prepare(&sandbox, "work", repo.dir()).go().ok().done();
    let quiet = vm.exec(["pwd"]).go().ok();
    assert_eq!((quiet.text(), quiet.err().as_str()), ("/root/repo", ""), "nothing moved: {quiet}");
    let shell = sandbox.banger(["vm", "exec", "work", "--json", "--", "true"]).go().ok();
    assert!(!shell.err().contains("moved on"), "{shell}");

    repo.write("README.md", b"# moved\n");
    let told = vm.exec(["cat", "README.md"]).go().ok();
    assert_eq!(told.text(), "# a project");
    assert_eq!(told.err().matches("moved on").count(), 1, "{told}");
    assert!(told.err().contains("README.md") && told.err().contains("--auto-prepare"), "{told}");
    for silent in ["--quiet", "--json"] {
        let out = sandbox.banger([silent, "vm", "exec", "work", "--", "true"]).go().ok();
        assert!(!out.err().contains("moved on"), "{silent}: {out}");
    }
    let head = repo.commit("moved");
    let told = vm.exec(["true"]).go().ok();
    assert!(told.err().contains(&head[..12]), "{told}");

    let fresh = quickly(vm.exec_with(&["--auto-prepare"], ["cat", "README.md"])).ok();
    assert_eq!(fresh.text(), "# moved");
    assert_eq!(vm.exec(["true"]).go().ok().err(), "", "it is up to date");

    // The guest's own change is not overwritten, and its command does not run.
    vm.sh("echo guest >README.md").go().ok().done();
    repo.write("README.md", b"# again\n");
    let refused = quickly(vm.exec_with(&["--auto-prepare"], ["touch", "/ran"])).ends_with(125);
    refused.says(&["README.md", "--force"]).done();
    vm.exec(["test", "!", "-e", "/ran"]).go().ok().done();
    let forced = quickly(vm.exec_with(&["--auto-prepare", "--force"], ["cat", "README.md"])).ok();
    assert_eq!(forced.text(), "# again");
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn a_read_only_copy_cannot_be_written_and_stays_so_over_a_restart() {
    let sandbox = Sandbox::bare();
    let repo = Repo::make(&sandbox.work("project"));
    let vm = sandbox.vm("work", "bare", &["--network", "none"]);
    prepare(&sandbox, "work", repo.dir()).args(["--readonly", "--guest-path", "/root/a b"]).go().ok().done();
    let cannot = || {
        let out = vm.sh("pwd; cat README.md; echo x >new").go();
        assert!(out.code() != 0 && out.text().starts_with("/root/a b"), "{out}");
        assert!(out.err().to_lowercase().contains("read-only file system"), "{out}");
    };
    cannot();
    vm.verb("stop", &[]).ok().done();
    vm.verb("start", &[]).ok().done();
    cannot();
    assert_eq!(vm.show()["workspace"]["readonly"], true);
    // It is brought up to date all the same, and is writable when that is asked for.
    repo.write("README.md", b"# second\n");
    prepare(&sandbox, "work", repo.dir()).args(["--readonly", "--guest-path", "/root/a b"]).go().ok().done();
    assert_eq!(vm.exec(["cat", "README.md"]).go().ok().text(), "# second");
    cannot();
    prepare(&sandbox, "work", repo.dir()).args(["--guest-path", "/root/a b"]).go().ok().done();
    vm.sh("echo x >new").go().ok().done();
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn a_dry_run_needs_neither_vm_nor_image_and_says_what_would_go() {
    let sandbox = Sandbox::empty();
    let repo = Repo::make(&sandbox.work("project"));
    repo.write("new", b"12345");
    let dry = sandbox.banger(["vm", "workspace", "prepare", "nobody", "--dry-run", "--json"]).arg(repo.dir());
    let plan = dry.go().ok().json();
    assert_eq!((&plan["mode"], &plan["depth"]), (&"shallow_overlay".into(), &2.into()), "{plan}");
    assert!(plan["files"].as_array().unwrap().len() > 5 && plan["bytes"].as_u64().unwrap() > 9000);
    assert_eq!(plan["skipped_untracked"], 1);
    let dry = |flags: &[&str]| {
        let run = sandbox.banger(["vm", "workspace", "prepare", "nobody", "--dry-run", "--json"]).args(flags);
        run.arg(repo.dir()).go().ok().json()
    };
    assert_eq!(dry(&["--include-untracked"])["skipped_untracked"], 0);
    assert_eq!(dry(&["--mode", "metadata_only"])["files"].as_array().unwrap().len(), 0);
    assert_eq!(dry(&["--branch", "b", "--from", "HEAD~1"])["branch"], "b");
}

#[test]
fn a_daemon_that_dies_in_a_prepare_leaves_no_half_workspace_and_the_next_one_works() {
    let sandbox = Sandbox::bare();
    let repo = Repo::make(&sandbox.work("project"));
    let vm = sandbox.vm("work", "bare", &["--network", "none"]);
    let steps = sandbox.program(banger_testkit::bin_dir().join("bangerd")).arg("--list-steps").go().ok();
    let steps: Vec<String> =
        steps.text().lines().filter(|s| s.starts_with("prepare.")).map(str::to_owned).collect();
    assert_eq!(steps.len(), 5, "{steps:?}");
    let mut n = 0;
    // A first copy, then an update.
    for update in [false, true] {
        for step in &steps {
            for action in ["kill-before", "kill-after", "fail"] {
                n += 1;
                let place = if update { "/root/repo".to_owned() } else { format!("/root/copy-{n}") };
                repo.write("README.md", format!("# {n}\n").as_bytes());
                sandbox.banger(["daemon", "stop"]).go().ok().done();
                let fault = format!("{step}={action}");
                sandbox.banger(["daemon", "start"]).env("BANGER_FAULT", &fault).go().ok().done();
                let flags = ["--guest-path", &place];
                prepare(&sandbox, "work", repo.dir()).args(flags).go().ends_with(1).done();
                let shown = vm.show()["workspace"].clone();
                let whole = shown.is_object().then(|| vm.sh("cat README.md && cat 'src/a b.txt'").go().ok());
                if update {
                    // One that is brought up to date is there all the time, as it was or as it will be.
                    let (was, is) = (format!("# {}\n", n - 1), format!("# {n}\n"));
                    let text = whole.unwrap().text().to_owned();
                    assert!(text.starts_with(&was) || text.starts_with(&is), "{fault}: {text}");
                    let out =
                        quickly(sandbox.banger(["vm", "workspace", "export", "work", "--names-only"])).ok();
                    assert_eq!(out.text(), "README.md", "{fault}");
                } else if shown["guest_path"] == place.as_str() {
                    assert!(whole.unwrap().text().starts_with(&format!("# {n}\n")), "{fault}: {shown}");
                }
                prepare(&sandbox, "work", repo.dir()).args(flags).go().ok().done();
                assert_eq!(vm.exec(["cat", "README.md"]).go().ok().text(), format!("# {n}"), "{fault}");
                let shown = vm.show()["workspace"]["guest_path"].clone();
                assert_eq!(shown, place.as_str(), "{fault}");
                let left = vm.sh("ls -a /root | grep -c banger-; true").go().ok();
                assert_eq!(left.text(), "0", "{fault}");
            }
        }
        prepare(&sandbox, "work", repo.dir()).args(["--guest-path", "/root/repo"]).go().ok().done();
    }
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn an_interrupted_prepare_and_a_full_disk_leave_nothing_in_the_guest() {
    let sandbox = Sandbox::bare();
    let repo = Repo::make(&sandbox.work("project"));
    fs::write(repo.dir().join("big"), banger_testkit::random::bytes(48 << 20, 5)).unwrap();
    repo.git(&["add", "big"]).ok().done();
    let vm = sandbox.vm("work", "bare", &["--network", "none"]);
    let run = prepare(&sandbox, "work", repo.dir()).start();
    let begun =
        |vm: &banger_testkit::Vm<'_>| vm.sh("ls -A /root/.banger-new-repo 2>/dev/null").go().text().len() > 2;
    let until_begun = |run: &Running| {
        while !begun(&vm) {
            assert!(!run.stderr_so_far().contains("error"), "{}", run.stderr_so_far());
        }
    };
    until_begun(&run);
    run.signal(rustix::process::Signal::INT);
    let ended = run.wait();
    assert!(ended.code() != 0, "{ended}");
    banger_testkit::wait::must("the guest is clean", LONG, || {
        vm.sh("ls -A /root | grep -c 'repo'; true").go().ok().text() == "0"
    });
    assert!(vm.show()["workspace"].is_null());

    // A copy under way keeps nobody from stopping the VM.
    let run = prepare(&sandbox, "work", repo.dir()).start();
    until_begun(&run);
    vm.verb("stop", &[]).ok().done();
    let ended = run.wait();
    assert!(ended.code() != 0, "{ended}");
    vm.verb("start", &[]).ok().done();
    assert!(vm.show()["workspace"].is_null());
    assert_eq!(vm.sh("ls -A /root | grep -cx repo; true").go().ok().text(), "0");

    // A small file system at the place it would go to.
    vm.sh("mkdir -p /small && mount -t tmpfs -o size=8M none /small").go().ok().done();
    let full = prepare(&sandbox, "work", repo.dir())
        .args(["--guest-path", "/small/repo", "--json"])
        .go()
        .ends_with(1);
    let error = full.json_error();
    assert_eq!(error["code"], "unavailable", "{error}");
    assert!(error["message"].as_str().unwrap().contains("disk is full"), "{error}");
    assert_eq!(vm.sh("ls -A /small | wc -l").go().ok().text().trim(), "0");
    assert!(vm.show()["workspace"].is_null());
    prepare(&sandbox, "work", repo.dir()).go().ok().done();
    let sum = vm.sh("sha256sum <big").go().ok();
    let ours = sandbox.program("sh").args(["-c", "sha256sum <big"]).dir(repo.dir()).go().ok();
    assert_eq!(sum.text(), ours.text());
    vm.delete();
    sandbox.no_vm_is_left();
}
