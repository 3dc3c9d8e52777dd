//! The system: the real services, store, files and API over the fake driver, in this process. Its
//! daemon dies by the end of its runtime; machines, records and files outlive it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use banger_daemon::embedded::Embedded;
use banger_model::VmId;
use banger_testkit::fake::{FakeDriver, World};
use banger_testkit::{Sandbox, bin_dir, tree};
use banger_vmm::{Driver, ExitReason};
use proptest_state_machine::StateMachineTest;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::client::{Request, So, get};
use crate::reference::{Ask, Blow, Cut, End, Model, NAMES, Turn, Vm};

/// A state directory with everything that a boot needs, made once.
pub(crate) static TEMPLATE: Mutex<Option<PathBuf>> = Mutex::new(None);
/// How long the daemon has to come to rest.
const REST: Duration = Duration::from_secs(10);

/// One installation and all that runs for it.
pub(crate) struct Lifecycle {
    daemon: Option<Runtime>,
    clients: Runtime,
    world: World,
    model: Model,
    disks: HashMap<VmId, u64>,
    history: Vec<String>,
    sandbox: Sandbox,
}

/// One VM as the API shows it.
struct Seen {
    id: VmId,
    state: String,
    pid: Option<u64>,
    /// Its last error.
    explained: Option<String>,
}

impl Lifecycle {
    pub(crate) fn new() -> Self {
        let sandbox = Sandbox::empty();
        sandbox.configure("[boot]\ntimeout = '700ms'\n");
        if let Some(template) = &*TEMPLATE.lock().unwrap() {
            sandbox.make_state();
            copy(template, &sandbox.state());
        }
        let clients = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut new = Self {
            daemon: None,
            clients,
            world: World::new(),
            model: Model::new(),
            disks: HashMap::new(),
            history: Vec::new(),
            sandbox,
        };
        new.begin();
        new
    }

    fn begin(&mut self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let env: HashMap<String, String> = self.sandbox.environment().into_iter().collect();
        let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(self.world.clone()));
        let open = Embedded::open(|key| env.get(key).map(Into::into), vec![driver], bin_dir());
        let embedded = runtime.block_on(open).unwrap_or_else(|e| panic!("no daemon: {e}"));
        runtime.spawn(embedded.serve());
        self.daemon = Some(runtime);
    }

    /// SIGKILL: every task ends where it stands.
    fn crash(&mut self) {
        if let Some(runtime) = self.daemon.take() {
            runtime.shutdown_timeout(Duration::from_secs(20));
        }
    }

    fn socket(&self) -> PathBuf {
        self.sandbox.runtime().join("bangerd.sock")
    }

    fn seen(&self) -> BTreeMap<String, Seen> {
        let all = self.clients.block_on(get(&self.socket(), "/v1/vms?all=true"));
        let all = all.as_array().unwrap_or_else(|| panic!("no list: {all}"));
        let one = |vm: &Value| {
            let seen = Seen {
                id: vm["id"].as_str().unwrap().parse().unwrap(),
                state: vm["state"].as_str().unwrap().to_owned(),
                pid: vm["pid"].as_u64(),
                explained: vm["last_error"]["message"].as_str().map(str::to_owned),
            };
            (vm["name"].as_str().unwrap().to_owned(), seen)
        };
        all.iter().map(one).collect()
    }

    fn end_machine(&self, name: &str, blow: Blow) -> bool {
        let reason = match blow {
            Blow::PowerOff => ExitReason::GuestShutdown,
            Blow::Reboot => ExitReason::GuestReset,
            Blow::Panic => ExitReason::GuestPanic,
            Blow::Killed => ExitReason::Unknown,
        };
        self.seen().get(name).is_some_and(|vm| self.world.end(&vm.id, reason))
    }

    /// Waits until what is seen is what may be, and nobody is at work any more.
    fn rest(&mut self) {
        let end = Instant::now() + REST;
        let mut before = None;
        loop {
            let wrong = self.wrong();
            let now = self.states();
            if wrong.is_empty() && before.as_ref() == Some(&now) {
                break;
            }
            before = wrong.is_empty().then_some(now);
            assert!(
                Instant::now() < end,
                "after\n  {}\nthis stays wrong:\n  {}",
                self.history.join("\n  "),
                wrong.join("\n  ")
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        // What was seen is what is: from here on nothing else may be.
        for (name, vm) in self.states() {
            self.model.vms.insert(name, BTreeSet::from([vm]));
        }
    }

    fn states(&self) -> BTreeMap<&'static str, Vm> {
        let seen = self.seen();
        let of = |name: &'static str| match seen.get(name).map(|vm| vm.state.as_str()) {
            None => Vm::Absent,
            Some("created") => Vm::Created,
            Some("running") => Vm::Running,
            Some("paused") => Vm::Paused,
            Some("stopped") => Vm::Stopped,
            _ => Vm::Error,
        };
        NAMES.iter().map(|name| (*name, of(name))).collect()
    }

    /// Everything that is not as it must be, now.
    fn wrong(&mut self) -> Vec<String> {
        let mut wrong = self.world.wrong();
        if self
            .clients
            .block_on(get(&self.socket(), "/v1/operations"))
            .as_array()
            .is_some_and(|a| !a.is_empty())
        {
            wrong.push("an operation is under way".to_owned());
        }
        let seen = self.seen();
        for name in NAMES {
            let vm = seen.get(name);
            let state = vm.map_or("absent", |vm| vm.state.as_str());
            let may_be = self.model.may_be(name);
            let is = |vm: Vm| format!("{vm:?}").to_lowercase() == state;
            if !may_be.iter().any(|vm| is(*vm)) {
                let why = vm.and_then(|vm| vm.explained.as_deref()).unwrap_or_default();
                wrong.push(format!("{name} is {state} ({why}) and may be {may_be:?}"));
            }
            let Some(vm) = vm else { continue };
            wrong.extend(self.untrue(name, vm));
        }
        let known: BTreeSet<String> = seen.values().map(|vm| vm.id.to_string()).collect();
        for dir in [self.sandbox.state().join("vms"), self.sandbox.runtime().join("vms")] {
            let strays = names(&dir).into_iter().filter(|id| !known.contains(id));
            wrong.extend(strays.map(|id| format!("{}/{id} belongs to no VM", dir.display())));
        }
        let scratch = names(&self.sandbox.state().join("tmp"));
        wrong.extend(scratch.into_iter().map(|name| format!("tmp/{name} is left")));
        let orphans = self.world.running().into_iter().filter(|id| !known.contains(&id.to_string()));
        wrong.extend(orphans.map(|id| format!("a machine of {id} runs, which is no VM")));
        wrong
    }

    /// What is not true of one VM, by the process table and the disk.
    fn untrue(&mut self, name: &str, vm: &Seen) -> Vec<String> {
        let mut wrong = Vec::new();
        let running = matches!(vm.state.as_str(), "running" | "paused");
        if running && self.world.halted(&vm.id) != (vm.state == "paused") {
            wrong.push(format!("{name} is {}, and its machine is not", vm.state));
        }
        let process = self.world.process(&vm.id).map(|p| u64::from(p.pid));
        if process != vm.pid || process.is_some() != running {
            wrong.push(format!(
                "{name} is {} with pid {:?}, and its machine is {process:?}",
                vm.state, vm.pid
            ));
        }
        if (vm.state == "error") != vm.explained.is_some() {
            wrong.push(format!("{name} is {}, explained: {:?}", vm.state, vm.explained));
        }
        let dir = self.sandbox.state().join("vms").join(vm.id.as_str());
        let runtime = self.sandbox.runtime().join("vms").join(vm.id.as_str());
        if !dir.is_dir() {
            wrong.push(format!("{name} has no directory"));
        }
        for held in [dir.join("handles.json"), runtime] {
            if held.exists() != running {
                wrong.push(format!("{name} is {}, and {} is there or not", vm.state, held.display()));
            }
        }
        // A disk is made once: another one in its place is lost work.
        let disk = std::fs::metadata(dir.join("system.ext4")).map(|m| m.ino()).ok();
        match (self.disks.get(&vm.id), disk) {
            (Some(was), now) if now != Some(*was) => wrong.push(format!("{name} has lost its disk")),
            (None, Some(now)) if running => {
                self.disks.insert(vm.id.clone(), now);
            }
            _ => {}
        }
        wrong
    }

    fn turn(&mut self, turn: &Turn) {
        let socket = self.socket();
        match *turn {
            Turn::One(ask) => {
                let end = self.clients.block_on(async { Request::send(&socket, ask).await.end().await });
                self.model.ask(ask, Some(end));
                self.said(&format!("{end:?}"));
            }
            Turn::Two(first, cut, second) => {
                let ends = self.clients.block_on(both(&socket, first, cut, second));
                self.model.two([first, second], Some(ends));
                self.said(&format!("{ends:?}"));
            }
            Turn::Cancelled(ask, cut) => {
                let so = self.clients.block_on(async { Request::send(&socket, ask).await.until(cut).await });
                let end = if let So::Done(end) = so { Some(end) } else { None };
                match end {
                    Some(end) => self.model.ask(ask, Some(end)),
                    None => self.model.cancelled(ask, None),
                }
                self.said(&format!("{end:?}"));
            }
            Turn::Crash(ask, cut) => {
                let (request, so) = self.clients.block_on(async {
                    let mut request = Request::send(&socket, ask).await;
                    let so = request.until(cut).await;
                    (request, so)
                });
                self.crash();
                drop(request);
                match so {
                    So::Done(end) => self.model.ask(ask, Some(end)),
                    So::Far => self.model.crash(ask),
                }
                self.begin();
            }
            Turn::IdleCrash(blow) => {
                let id = blow.and_then(|(name, _)| self.seen().remove(name)).map(|vm| vm.id);
                self.crash();
                if let (Some((name, blow)), Some(id)) = (blow, id) {
                    self.world.end(&id, ExitReason::Unknown);
                    self.model.blow(name, blow, false);
                }
                self.begin();
            }
            Turn::Blow(name, blow) => {
                self.end_machine(name, blow);
                self.model.blow(name, blow, true);
            }
            Turn::Struck(ask, cut, blow) => self.struck(ask, cut, blow),
            Turn::Fork(fork) => {
                let end = self.clients.block_on(async { Request::fork(&socket, fork).await.end().await });
                self.model.fork(fork, Cut::Nothing, Some(end));
                self.said(&format!("{end:?}"));
            }
            Turn::ForkCancelled(fork, cut) => {
                let so = self.clients.block_on(async { Request::fork(&socket, fork).await.until(cut).await });
                match so {
                    So::Done(end) => self.model.fork(fork, Cut::Nothing, Some(end)),
                    So::Far => self.model.fork(fork, Cut::Client, None),
                }
            }
            Turn::ForkCrash(fork, cut) => {
                let (request, so) = self.clients.block_on(async {
                    let mut request = Request::fork(&socket, fork).await;
                    let so = request.until(cut).await;
                    (request, so)
                });
                self.crash();
                drop(request);
                match so {
                    So::Done(end) => self.model.fork(fork, Cut::Nothing, Some(end)),
                    So::Far => self.model.fork(fork, Cut::Daemon, None),
                }
                self.begin();
            }
            Turn::Fate(name, fate) => {
                self.world.fate(name, fate);
                self.model.set_fate(name, fate);
            }
        }
    }

    fn struck(&mut self, ask: Ask, cut: u8, blow: Blow) {
        let socket = self.socket();
        let (mut request, so) = self.clients.block_on(async {
            let mut request = Request::send(&socket, ask).await;
            let so = request.until(cut).await;
            (request, so)
        });
        let hit = self.end_machine(ask.name, blow);
        let end = match so {
            So::Done(end) => end,
            So::Far => self.clients.block_on(request.end()),
        };
        if hit {
            self.model.struck(ask, blow, Some(end));
        } else {
            self.model.ask(ask, Some(end));
        }
        self.said(&format!("hit: {hit}, {end:?}"));
    }

    fn said(&mut self, what: &str) {
        if let Some(last) = self.history.last_mut() {
            *last = format!("{last} -> {what}");
        }
    }
}

async fn both(socket: &Path, first: Ask, cut: u8, second: Ask) -> [End; 2] {
    let mut one = Request::send(socket, first).await;
    let so = one.until(cut).await;
    let mut two = Request::send(socket, second).await;
    match so {
        So::Done(end) => [end, two.end().await],
        So::Far => {
            let (a, b) = tokio::join!(one.end(), two.end());
            [a, b]
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// Gives a fresh state directory what the template holds; its database is written to.
fn copy(template: &Path, state: &Path) {
    for name in names(template) {
        let (from, to) = (template.join(&name), state.join(&name));
        match name.as_str() {
            "images" | "kernels" => tree::link(&from, &to),
            "kvm.json" | "banger.db" => drop(std::fs::copy(&from, &to).unwrap()),
            _ => {}
        }
    }
}

impl StateMachineTest for Lifecycle {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(_: &Model) -> Self {
        Self::new()
    }

    fn apply(mut system: Self, _: &Model, turn: Turn) -> Self {
        system.history.push(format!("{turn:?}"));
        system.turn(&turn);
        for (name, set) in &system.model.vms {
            assert!(!set.is_empty(), "{name} after\n  {}\nis impossible", system.history.join("\n  "));
        }
        system.rest();
        system
    }

    fn teardown(mut system: Self, _: Model) {
        let asks = NAMES.map(|name| Ask { name, verb: crate::reference::Verb::Delete { force: true } });
        for ask in asks {
            system.turn(&Turn::One(ask));
        }
        system.rest();
    }
}

impl Drop for Lifecycle {
    fn drop(&mut self) {
        self.crash();
        // A daemon that was killed leaves its socket; the next would replace it.
        let _ = std::fs::remove_file(self.socket());
        // Machines that a failed case leaves must not outlive it.
        for id in self.world.running() {
            self.world.end(&id, ExitReason::Unknown);
        }
    }
}
