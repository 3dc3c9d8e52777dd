//! What tests of templates, spares, forks and snapshots ask of a sandbox and its VMs. Must never make anything true by
//! looking: each only waits, or fails the test.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::{Run, Sandbox, Vm, wait};

/// How long the daemon may take to make a template on a busy host.
const MADE: Duration = Duration::from_secs(300);
/// How long a small script in a guest may take.
const SOON: Duration = Duration::from_secs(120);

impl Sandbox {
    /// What `vm template list --json` says.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn templates(&self) -> Vec<Value> {
        self.listed(&["vm", "template", "list", "--json"])
    }

    /// Whether no operation is under way.
    ///
    /// # Panics
    /// When nobody says.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.listed(&["operation", "list", "--json"]).is_empty()
    }

    fn listed(&self, words: &[&str]) -> Vec<Value> {
        self.banger(words).go().ok().json().as_array().expect("a list").clone()
    }

    /// Waits until the daemon has made a template, the only one, and is done with it; its directory.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    #[expect(clippy::must_use_candidate, reason = "that it is there may be all that is wanted")]
    pub fn template_made(&self) -> PathBuf {
        wait::must("a template is made", MADE, || self.templates().len() == 1 && self.is_idle());
        let id = self.templates().swap_remove(0)["id"].as_str().expect("an id").to_owned();
        self.state().join("templates").join(id)
    }

    /// The ids of the spares that wait, as the daemon says.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn spares(&self) -> Vec<String> {
        let of = |template: &Value| template["spares"].as_array().cloned().unwrap_or_default();
        let all = self.templates();
        all.iter().flat_map(of).map(|id| id.as_str().expect("an id").to_owned()).collect()
    }

    /// Waits until as many spares wait, and the daemon has nothing more to do; their ids.
    ///
    /// # Panics
    /// When they do not come.
    #[track_caller]
    #[expect(clippy::must_use_candidate, reason = "that they wait may be all that is wanted")]
    pub fn spares_wait(&self, count: usize) -> Vec<String> {
        wait::must("spares wait", SOON, || self.spares().len() == count && self.is_idle());
        self.spares()
    }
}

impl Vm<'_> {
    /// What a script in it prints.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    #[expect(clippy::must_use_candidate, reason = "what it does there may be all that is wanted")]
    pub fn says(&self, script: &str) -> String {
        self.sh(script).within(SOON).go().ok().text().to_owned()
    }

    /// Where its files are.
    ///
    /// # Panics
    /// When it has no id.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.sandbox().state().join("vms").join(self.show()["id"].as_str().expect("an id"))
    }

    /// Whether it booted, `cold`, or went on from somewhere, `warm`.
    #[must_use]
    pub fn boot_kind(&self) -> String {
        self.show()["boot"]["kind"].as_str().unwrap_or_default().to_owned()
    }

    /// Passes when its clock is the host's, within a tenth of a second.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn has_the_time(&self) {
        let (early, guest, late) = self.what_time();
        assert!((early..=late).contains(&guest), "{guest} is not between {early} and {late}");
    }

    /// Waits until its clock is the host's, within a tenth of a second.
    ///
    /// # Panics
    /// When it does not become so.
    #[track_caller]
    pub fn gets_the_time(&self) {
        wait::must("the guest is told the time", SOON, || {
            let (early, guest, late) = self.what_time();
            (early..=late).contains(&guest)
        });
    }

    /// Its time between two of its host's, seconds since 1970, a tenth of a second apart from when it was asked.
    fn what_time(&self) -> (f64, f64, f64) {
        // The one tool of every image that tells parts of a second.
        let ask = "date +%s.%N | grep -v N || busybox adjtimex | busybox awk '/tv_sec/ {s = $2} /tv_usec/ {printf \"%d.%06d\", s, $2}'";
        let early = self.sandbox().time() - 0.1;
        let guest = self.says(ask).parse().expect("a number");
        (early, guest, self.sandbox().time() + 0.1)
    }

    /// Stops it, and looks at its disks with the eyes of another.
    ///
    /// # Panics
    /// When one is not as it should be.
    #[track_caller]
    pub fn is_sound(&self) {
        let dir = self.dir();
        self.verb("stop", &[]).ok().done();
        for disk in fs::read_dir(&dir).expect("its directory").flatten().map(|entry| entry.path()) {
            if disk.extension().is_some_and(|e| e == "ext4") {
                Run::new("/sbin/e2fsck").args(["-f", "-n"]).arg(&disk).go().ok().done();
            }
        }
    }
}
