//! What a change of ten files costs on its way out, beside the copy that it was made in.

use std::path::Path;
use std::time::Duration;

use banger_testkit::Sandbox;
use banger_testkit::guests::{forget_peak, peak_rss_kib, rss_kib};
use banger_testkit::measure::median;
use banger_testkit::repo::Repo;

use super::{Line, clocked, repositories};

/// Exports of each repository; their first prepare is there only once.
const EXPORTS: usize = 3;
/// Memory that the daemon may take besides, KiB.
const MEMORY: u64 = 32 << 10;
const LONG: Duration = Duration::from_secs(900);

/// How to make a repository.
type Make = fn(&Path) -> Repo;

pub(crate) fn export(lines: &mut Vec<Line>) {
    let all: [(&'static str, Make); 2] = [
        ("export of 10 changed files of 5 000 real ones", repositories::real),
        ("export of 10 changed files of 100 000 small ones", repositories::many),
    ];
    for (what, make) in all {
        eprintln!("bench: {what}");
        let sandbox = Sandbox::bare();
        let repo = make(&sandbox.work("repo"));
        let vm = sandbox.vm("out", "bare", &["--network", "none", "--memory", "1G"]);
        let daemon = sandbox.daemon().expect("a daemon runs");
        let before = rss_kib(daemon);
        forget_peak(daemon);
        let prepare =
            clocked(sandbox.banger(["vm", "workspace", "prepare", "out"]).arg(repo.dir()).within(LONG));
        let change = "find . -name .git -prune -o -type f -print | sort | head -10 | while read -r f; do echo more >>\"$f\"; done";
        vm.sh(change).within(LONG).go().ok().done();
        let to = sandbox.work("patch");
        let out = || sandbox.banger(["vm", "workspace", "export", "out", "-o"]).arg(&to).within(LONG);
        let took = median((0..EXPORTS).map(|_| clocked(out())).collect());
        let patch = std::fs::read(&to).expect("a patch");
        let changed = String::from_utf8_lossy(&patch).matches("diff --git ").count();
        assert_eq!(changed, 10, "the patch is of ten files");
        let more = peak_rss_kib(daemon).saturating_sub(before);
        eprintln!("  prepare {prepare:.0} ms, export {took:.0} ms, {more} KiB besides");
        lines.push(Line {
            what,
            value: format!("{took:.0} ms"),
            beside: format!("first prepare: {prepare:.0} ms"),
            ratio: Some(took / prepare),
            bound: "1/5 of the prepare".to_owned(),
            kept: took / prepare <= 0.2,
        });
        lines.push(Line {
            what: "the daemon's memory for that prepare and export, besides",
            value: format!("{:.1} MiB", more as f64 / 1024.0),
            beside: format!("at rest: {:.1} MiB", before as f64 / 1024.0),
            ratio: None,
            bound: "32 MiB".to_owned(),
            kept: more <= MEMORY,
        });
        vm.delete();
        sandbox.no_vm_is_left();
    }
}
