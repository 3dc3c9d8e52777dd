//! A throw-away installation of banger: its own state, sockets, configuration and caches, the real
//! binaries, and at its end the proof that nothing is left.
//!
//! Owns the directories of [`crate::place`], whose name marks everything that belongs to it. Must never see
//! another installation, nor end a process that does not carry its mark.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock::OwnClock;
use crate::leaks::{Kind, Scope, Snapshot, Thing, list};
use crate::place::{Directories, private};
use crate::{Output, Run, Seed, account, as_invoker, become_user, bin_dir, is_root, tree, wait};

/// Which run of the suite this process belongs to: `make` names each of its runs, a test that is
/// started by hand belongs to none.
#[must_use]
pub fn test_run() -> String {
    std::env::var("BANGER_TEST_RUN").unwrap_or_default()
}

/// The workspace's top directory.
///
/// # Panics
/// Never: the crate lies two directories below it.
#[must_use]
pub fn workspace_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/testkit is two down").to_owned()
}

/// A throw-away installation of the suite's user. Dropping it ends its daemon and fails the test if anything is left.
#[derive(Debug)]
pub struct Sandbox {
    dirs: Directories,
    bin: PathBuf,
    scope: Scope,
    before: Snapshot,
    via: Vec<String>,
    tools: Option<PathBuf>,
    small: bool,
    warm: bool,
    clock: Option<OwnClock>,
}

impl Sandbox {
    /// One with nothing in it: no kernel, no image, and no state directory before the first command. Where root runs the
    /// suite, this thread is the suite's user from now on ([`become_user`]).
    #[must_use]
    pub fn empty() -> Self {
        become_user();
        // Before there is anything that would stay behind where there are none.
        let bin = bin_dir();
        let dirs = Directories::make();
        let scope = Scope { markers: Scope::of(&dirs.root).markers, dirs: Vec::new() };
        let before = scope.snapshot();
        Self {
            dirs,
            bin,
            scope,
            before,
            via: Vec::new(),
            tools: None,
            small: false,
            warm: false,
            clock: None,
        }
    }

    /// One that has what the seed holds.
    #[must_use]
    pub fn with(seed: &Seed) -> Self {
        let sandbox = Self::empty();
        sandbox.make_state();
        seed.fill(&sandbox.state());
        sandbox
    }

    /// Makes the state directory, for a test that puts something there before the first command.
    pub fn make_state(&self) {
        private(&self.dirs.state);
    }

    /// One whose state directory is a file system of `mib` MiB. Needs root.
    #[must_use]
    pub fn on_small_disk(seed: &Seed, mib: u32) -> Self {
        let sandbox = Self::empty().on_disk_of(mib);
        seed.fill(&sandbox.state());
        sandbox
    }

    /// Puts a file system of `mib` MiB in the place of its state directory. Needs root.
    #[must_use]
    pub fn on_disk_of(mut self, mib: u32) -> Self {
        self.make_state();
        let owner = account::of_this_thread();
        let options = format!("size={mib}m,mode=0700,uid={},gid={}", owner.uid, owner.gid);
        let mount = Run::new("mount").args(["-t", "tmpfs", "-o", &options, "small"]).arg(self.state());
        mount.by_invoker().go().ok().done();
        self.small = true;
        self.before = self.scope.snapshot();
        self
    }

    /// A kernel and the bare busybox image.
    #[must_use]
    pub fn bare() -> Self {
        Self::with(&Seed::bare())
    }

    /// A kernel, the bare image and the default Debian image.
    #[must_use]
    pub fn debian() -> Self {
        Self::with(&Seed::debian())
    }

    /// Runs every command through a prefix, such as `ip netns exec NAME`, which root runs. Needs root.
    #[must_use]
    pub fn through(mut self, prefix: &[&str]) -> Self {
        self.via = prefix.iter().map(|w| (*w).to_owned()).collect();
        self
    }

    /// Lets new VMs go on from templates. In the others every VM boots, and nothing is made in the background: they are
    /// about what a boot does, or count processes.
    #[must_use]
    pub fn warm(mut self) -> Self {
        self.warm = true;
        self
    }

    /// Puts a directory's programs before the host's for every command, and so for every daemon.
    #[must_use]
    pub fn with_tools(mut self, dir: &Path) -> Self {
        self.tools = Some(dir.to_owned());
        self
    }

    /// Gives it a wall clock of its own, which [`Sandbox::step_clock`] sets: for every command, and so for its daemon. The
    /// time that goes by is the host's.
    #[must_use]
    pub fn with_own_clock(mut self) -> Self {
        self.clock = Some(OwnClock::new(self.work("clock")));
        self
    }

    /// Sets its own clock this many seconds from the host's.
    ///
    /// # Panics
    /// When it has none.
    pub fn step_clock(&self, seconds: f64) {
        self.clock.as_ref().expect("a clock of its own").step(seconds);
    }

    /// The time by its clock, seconds since 1970.
    pub(crate) fn time(&self) -> f64 {
        let host = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
        host + self.clock.as_ref().map_or(0.0, OwnClock::ahead)
    }

    /// The directory that has its name: a part of every path of it but the runtime directory's.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.dirs.root
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dirs.state.clone()
    }

    /// The runtime directory.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.dirs.runtime.clone()
    }

    /// The user's home.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.dirs.home.clone()
    }

    /// The directory of everybody's temporary files.
    #[must_use]
    pub fn tmp(&self) -> PathBuf {
        self.dirs.tmp.clone()
    }

    /// A directory for the test's own files.
    #[must_use]
    pub fn work(&self, name: &str) -> PathBuf {
        self.dirs.work.join(name)
    }

    /// Writes the configuration file; a daemon reads it when it starts.
    pub fn configure(&self, toml: &str) {
        private(self.dirs.config.parent().expect("a directory"));
        fs::write(&self.dirs.config, toml).expect("a file");
    }

    /// Any program in this sandbox's environment.
    #[must_use]
    pub fn program(&self, program: impl AsRef<OsStr>) -> Run {
        let via: Vec<&str> = self.via.iter().map(String::as_str).collect();
        self.program_through(&via, program)
    }

    /// The same, started by root through a prefix, which passes on what is left of its words: the program gets the
    /// sandbox's user back.
    #[must_use]
    pub fn program_through(&self, prefix: &[&str], program: impl AsRef<OsStr>) -> Run {
        let mut run = match prefix.split_first() {
            None => Run::new(program),
            Some((first, rest)) => {
                let owner = account::of_this_thread();
                let (uid, gid) = (owner.uid.to_string(), owner.gid.to_string());
                let back = ["setpriv", "--reuid", &uid, "--regid", &gid, "--init-groups"];
                Run::new(first).args(rest).args(back).arg(program).by_invoker()
            }
        };
        for (key, value) in self.environment() {
            run = run.env(key, value);
        }
        run.dir(&self.dirs.work)
    }

    /// `banger` with these arguments.
    #[must_use]
    pub fn banger<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        self.program(self.bin.join("banger")).args(args).of_installation(self.state())
    }

    /// The variables that make an installation this one.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let usual = usual_path();
        let path = match &self.tools {
            Some(tools) => format!("{}:{usual}", tools.display()),
            None => usual,
        };
        let more = [("PATH", path), ("BANGER_WARM", if self.warm { "on" } else { "off" }.to_owned())];
        let all = self.dirs.environment().into_iter().chain(more);
        all.map(|(key, value)| (key.to_owned(), value))
            .chain(self.clock.iter().flat_map(OwnClock::environment))
            .collect()
    }

    /// Makes and starts a small VM; `more` are further flags of `vm create`.
    #[must_use]
    pub fn vm(&self, name: &str, image: &str, more: &[&str]) -> Vm<'_> {
        let args = ["vm", "create", "--name", name, "--image", image, "--vcpu", "1"];
        self.banger(args).args(more).within(Duration::from_secs(180)).go().ok().done();
        Vm { sandbox: self, name: name.to_owned() }
    }

    /// A VM that is there already.
    #[must_use]
    pub fn existing(&self, name: &str) -> Vm<'_> {
        Vm { sandbox: self, name: name.to_owned() }
    }

    /// The daemon's pid, if one runs.
    #[must_use]
    pub fn daemon(&self) -> Option<u32> {
        let status = self.banger(["daemon", "status", "--json"]).go();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
        if status.get("running") != Some(&serde_json::Value::Bool(true)) {
            return None;
        }
        status.get("pid")?.as_u64().and_then(|p| u32::try_from(p).ok())
    }

    /// The names of all VMs.
    #[must_use]
    pub fn vm_names(&self) -> Vec<String> {
        let all = self.banger(["vm", "list", "-a", "--json"]).go().ok().json();
        let all = all.as_array().expect("a list").clone();
        all.iter().map(|vm| vm["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// Passes when no VM has left a process, socket or file, while the daemon still runs.
    #[track_caller]
    pub fn no_vm_is_left(&self) {
        let daemon = self.daemon().map(|p| p.to_string());
        let left = wait::until(Duration::from_secs(10), || {
            let now = self.left(daemon.as_deref());
            now.is_empty().then_some(())
        });
        assert!(left.is_some(), "left behind by VMs that are gone:\n{}", list(&self.left(daemon.as_deref())));
    }

    /// What is there beside the daemon and what it says that it keeps for VMs to come.
    fn left(&self, daemon: Option<&str>) -> Vec<Thing> {
        let spares = daemon.map(|_| self.spares()).unwrap_or_default();
        let daemon_socket = self.runtime().join("bangerd.sock");
        let mut left = self.scope.snapshot().since(&self.before);
        left.retain(|t| match t.kind {
            Kind::Process => Some(t.key.as_str()) != daemon,
            Kind::Socket => daemon.is_none() || Path::new(&t.key) != daemon_socket,
            _ => true,
        });
        for dir in [
            self.state().join("vms"),
            self.runtime().join("vms"),
            self.state().join("tmp"),
            self.dirs.tmp.clone(),
        ] {
            left.extend(tree::walk(&dir).into_iter().map(|e| Thing {
                kind: Kind::File,
                key: e.path.to_string_lossy().into_owned(),
                detail: String::new(),
            }));
        }
        let of_spare =
            |thing: &Thing| spares.iter().any(|id| thing.key.contains(id) || thing.detail.contains(id));
        left.retain(|thing| !of_spare(thing));
        left
    }

    /// What is there beside the daemon and its socket, VMs' own things included.
    pub(crate) fn left_while_serving(&self) -> Vec<Thing> {
        let daemon = self.daemon().map(|p| p.to_string());
        self.left(daemon.as_deref())
    }

    /// All processes that are ours.
    #[must_use]
    pub fn processes(&self) -> Vec<Thing> {
        self.scope.processes()
    }

    /// Our processes that carry this VM's id in their command line.
    pub(crate) fn marked(&self, id: &str) -> Vec<Thing> {
        let mut all = self.scope.processes();
        all.retain(|p| p.detail.contains(id));
        all
    }

    /// What the daemon's log says of trouble, and its last lines, without the spans.
    #[must_use]
    pub fn log_tail(&self) -> String {
        const LAST: usize = 8;
        let log = fs::read_to_string(self.state().join("bangerd.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(LAST);
        let wanted =
            lines.iter().enumerate().filter(|(n, l)| *n >= from || !l.contains("\"level\":\"INFO\""));
        let short = wanted.map(|(_, l)| l.split(",\"span\":").next().unwrap_or_default());
        short.collect::<Vec<_>>().join("\n")
    }

    fn stop_daemon(&self) -> Option<String> {
        let pid = self.daemon()?;
        let out = self.banger(["daemon", "stop"]).within(Duration::from_secs(30)).go();
        let gone = || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(());
        if wait::until(Duration::from_secs(10), gone).is_some() {
            return None;
        }
        Some(format!("the daemon (pid {pid}) outlives `daemon stop`: {out}"))
    }

    fn finish(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        wrong.extend(self.stop_daemon());
        let settled = wait::until(Duration::from_secs(5), || self.left(None).is_empty().then_some(()));
        if settled.is_none() {
            wrong.push(format!("left behind in {}:\n{}", self.root().display(), list(&self.left(None))));
        }
        let sockets: Vec<_> =
            tree::walk(&self.runtime()).into_iter().filter(|e| e.socket).map(|e| e.path).collect();
        if !sockets.is_empty() {
            wrong.push(format!("socket files left behind: {sockets:?}"));
        }
        if self.small {
            let out = Run::new("umount").arg(self.state()).by_invoker().go();
            wrong.extend((out.code() != 0).then(|| format!("the small disk is in use: {out}")));
        }
        wrong
    }

    /// Ends it without a word about what is left: for a test that has said that already.
    pub fn abandon(self) {
        self.sweep();
        std::mem::forget(self);
    }

    /// Ends what is left, which by now has been reported. Only what carries our mark.
    fn sweep(&self) {
        as_invoker(|| self.sweep_all());
    }

    fn sweep_all(&self) {
        for thing in self.scope.processes() {
            if let Some(pid) = thing.key.parse().ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = wait::until(Duration::from_secs(5), || self.scope.processes().is_empty().then_some(()));
        for mount in self.scope.snapshot().of(Kind::Mount).iter().rev() {
            let _ = Run::new("umount").args(["-l", &mount.key]).go();
        }
        self.dirs.remove();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- daemon log\n{}", self.log_tail());
            if std::env::var_os("BANGER_TEST_KEEP").is_some() {
                eprintln!("kept: {}", self.root().display());
                return;
            }
            self.sweep();
            return;
        }
        let wrong = self.finish();
        if !wrong.is_empty() {
            eprintln!("--- daemon log\n{}", self.log_tail());
        }
        self.sweep();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// The search path of a login: the invoker's, without directories that are root's or that the user cannot look into.
fn usual_path() -> String {
    let all = std::env::var("PATH").unwrap_or_default();
    if !is_root() {
        return all;
    }
    let usable = |dir: &&str| !dir.ends_with("/sbin") && fs::metadata(dir).is_ok();
    all.split(':').filter(usable).collect::<Vec<_>>().join(":")
}

/// A VM of a sandbox. Not deleted when dropped: that a test forgets it is a leak worth reporting.
#[derive(Debug)]
pub struct Vm<'a> {
    sandbox: &'a Sandbox,
    /// Its name.
    pub name: String,
}

impl Vm<'_> {
    pub(crate) fn sandbox(&self) -> &Sandbox {
        self.sandbox
    }

    /// `banger vm exec` of a command in it.
    #[must_use]
    pub fn exec<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Run {
        self.exec_with(&[], argv)
    }

    /// The same with flags.
    #[must_use]
    pub fn exec_with<A: AsRef<OsStr>>(&self, flags: &[&str], argv: impl IntoIterator<Item = A>) -> Run {
        self.sandbox.banger(["vm", "exec", &self.name]).args(flags).arg("--").args(argv)
    }

    /// A shell script in it.
    #[must_use]
    pub fn sh(&self, script: &str) -> Run {
        self.exec(["sh", "-c", script])
    }

    /// What `vm show --json` says.
    #[must_use]
    pub fn show(&self) -> serde_json::Value {
        self.sandbox.banger(["vm", "show", &self.name, "--json"]).go().ok().json()
    }

    /// `banger vm VERB NAME FLAGS…`.
    #[must_use]
    pub fn verb(&self, verb: &str, flags: &[&str]) -> Output {
        self.sandbox.banger(["vm", verb, &self.name]).args(flags).within(Duration::from_secs(120)).go()
    }

    /// Deletes it, running or not.
    pub fn delete(self) {
        self.verb("delete", &["-f"]).ok().done();
    }
}
