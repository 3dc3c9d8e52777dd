//! Workspaces in: a prepare beside a plain `tar` of the same files through the agent, a second one after ten edits, and
//! the daemon's memory meanwhile.

use std::fs;
use std::path::Path;

use banger_testkit::guests::{forget_peak, peak_rss_kib, rss_kib};
use banger_testkit::measure::median;
use banger_testkit::repo::git;
use banger_testkit::{Sandbox, Vm};

use super::{Line, clocked};

/// What a daemon may need more than at rest, KiB.
const MEMORY: u64 = 32 << 10;

pub(crate) fn sources(lines: &mut Vec<Line>) {
    eprintln!("bench: a workspace of 6 000 source files in");
    let sandbox = Sandbox::bare();
    let dir = sandbox.work("sources");
    tree(&dir, 6000, |n| source(n).into_bytes());
    let what = ["prepare 6 000 source files", "the same after ten edits", "the daemon meanwhile"];
    measure(lines, &sandbox, &dir, what, 1);
    sandbox.no_vm_is_left();
}

pub(crate) fn small_files(lines: &mut Vec<Line>) {
    eprintln!("bench: a workspace of 100 000 small files in");
    let sandbox = Sandbox::bare();
    let dir = sandbox.work("small");
    tree(&dir, 100_000, |n| format!("{n}\n").into_bytes());
    let what = ["prepare 100 000 small files", "the same after ten edits", "the daemon meanwhile"];
    measure(lines, &sandbox, &dir, what, 1);
    sandbox.no_vm_is_left();
}

/// A committed repository of `count` files, the same each time.
fn tree(dir: &Path, count: usize, text: impl Fn(usize) -> Vec<u8>) {
    for n in 0..count {
        let file = dir.join(path(n));
        fs::create_dir_all(file.parent().expect("a directory")).expect("it is made");
        fs::write(file, text(n)).expect("a file is written");
    }
    for args in [&["init", "--quiet"][..], &["add", "-A"], &["commit", "--quiet", "-m", "all"]] {
        git(dir).args(args).within(std::time::Duration::from_secs(300)).go().ok().done();
    }
}

fn path(n: usize) -> String {
    format!("part-{}/unit-{}/file-{n}.c", n % 97, n % 7)
}

/// Text that looks like a program, of one to some ten kilobytes.
fn source(n: usize) -> String {
    (0..20 + n * 7919 % 200)
        .map(|line| format!("int f_{n}_{line}(int a) {{ return a * {}; }}\n", n * 31 + line))
        .collect()
}

fn measure(lines: &mut Vec<Line>, sandbox: &Sandbox, dir: &Path, what: [&'static str; 3], rounds: usize) {
    let vm = sandbox.vm("measured", "bare", &["--network", "none", "--memory", "1G"]);
    vm.exec(["true"]).go().ok().done();
    let list = sandbox.work("files");
    fs::write(&list, git(dir).args(["ls-files", "-z"]).go().ok().stdout).expect("the list is written");
    let daemon = sandbox.daemon().expect("the daemon runs");
    let before = rss_kib(daemon);
    forget_peak(daemon);
    let (mut raws, mut firsts, mut seconds) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        raws.push(raw(sandbox, dir, &list, &vm, round));
        let to = format!("/srv/copy-{round}");
        let prepare = || {
            let run =
                sandbox.banger(["vm", "workspace", "prepare", "measured", "--quiet", "--guest-path", &to]);
            clocked(run.arg(dir))
        };
        firsts.push(prepare());
        for n in 0..10 {
            fs::write(dir.join(path(n * 11)), format!("touched {round}\n")).expect("a file is written");
        }
        seconds.push(prepare());
        let end = vm.exec(["cat", &path(99)]).go().ok();
        assert_eq!(end.text(), format!("touched {round}"), "the guest has it");
    }
    let more = peak_rss_kib(daemon).saturating_sub(before);
    let (raw, first, second) = (median(raws), median(firsts), median(seconds));
    lines.push(Line {
        what: what[0],
        value: format!("{first:.0} ms"),
        beside: format!("`tar` through exec: {raw:.0} ms"),
        ratio: Some(first / raw),
        bound: "1.5 × tar".to_owned(),
        kept: first / raw <= 1.5,
    });
    lines.push(Line {
        what: what[1],
        value: format!("{second:.0} ms"),
        beside: format!("the first: {first:.0} ms"),
        ratio: Some(second / first),
        bound: "0.1 × first".to_owned(),
        kept: second / first <= 0.1,
    });
    lines.push(Line {
        what: what[2],
        value: format!("{:.1} MiB", super::mib(more * 1024)),
        beside: "the daemon before".to_owned(),
        ratio: None,
        bound: "32 MiB more".to_owned(),
        kept: more <= MEMORY,
    });
    vm.delete();
}

/// The files, by the host's `tar` and the guest's.
fn raw(sandbox: &Sandbox, dir: &Path, list: &Path, vm: &Vm<'_>, round: usize) -> f64 {
    let to = format!("/srv/raw-{round}");
    vm.exec(["mkdir", "-p", &to]).go().ok().done();
    let banger = banger_testkit::bin_dir().join("banger");
    // The guest's shell has tar built in.
    let script = "tar --create --file - --null --files-from \"$1\" | \"$2\" exec -i measured -- sh -c \"tar -x -f - -C $3\"";
    let run = sandbox.program("sh").args(["-c", script, "sh"]).arg(list).arg(banger).arg(to).dir(dir);
    clocked(run)
}
