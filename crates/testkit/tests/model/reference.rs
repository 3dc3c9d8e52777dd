//! The reference: what a VM may be after anything that can happen to it. Sets, because who comes
//! first, and where a crash or a cancellation cuts, is nobody's promise; what may come out of it is.

use std::collections::{BTreeMap, BTreeSet};

use banger_model::ErrorCode;
use banger_testkit::fake::Fate;
use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

/// The names there are: few, so that clients meet.
pub(crate) const NAMES: [&str; 3] = ["ant", "bee", "cat"];
/// How many stages or moments into an operation a cut may come.
const LATEST_CUT: u8 = 12;

/// What a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Vm {
    /// There is none of that name.
    Absent,
    /// It has never run.
    Created,
    /// A machine runs.
    Running,
    /// A machine is there and stands still.
    Paused,
    /// It ended in good order.
    Stopped,
    /// It did not.
    Error,
}
use Vm::{Absent, Created, Error, Paused, Running, Stopped};

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Create { start: bool },
    Start,
    Stop,
    Restart,
    Kill,
    Pause,
    Resume,
    Delete { force: bool },
}

/// What happens behind everybody's back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blow {
    /// The guest powers itself off.
    PowerOff,
    /// The guest reboots.
    Reboot,
    /// The guest's kernel panics.
    Panic,
    /// The VMM is killed.
    Killed,
}

/// A request: to whom, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) name: &'static str,
    pub(crate) verb: Verb,
}

/// A fork: of whom, and the name of the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fork {
    pub(crate) parent: &'static str,
    pub(crate) child: &'static str,
}

/// What happens next.
#[derive(Debug, Clone)]
pub(crate) enum Turn {
    /// One client asks and waits.
    One(Ask),
    /// Two clients at once, the second so many moments after the first.
    Two(Ask, u8, Ask),
    /// A client asks and leaves so many moments later.
    Cancelled(Ask, u8),
    /// The daemon dies so many moments into a request, and another one begins.
    Crash(Ask, u8),
    /// The daemon dies while nobody asks anything; a machine may meet a blow before the next begins.
    IdleCrash(Option<(&'static str, Blow)>),
    /// A blow while nobody asks anything.
    Blow(&'static str, Blow),
    /// A blow so many moments into a request about the same VM.
    Struck(Ask, u8, Blow),
    /// The second is to go on from where the first is.
    Fork(Fork),
    /// And the client leaves so many moments later.
    ForkCancelled(Fork, u8),
    /// And the daemon dies so many moments later.
    ForkCrash(Fork, u8),
    /// From now on launches of this VM go so.
    Fate(&'static str, Fate),
}

/// How an operation ended for its client: nothing, or the code of the error.
pub(crate) type End = Result<(), ErrorCode>;
/// What may come out of an operation: how it ended, and what the VM is then.
type Outcomes = Vec<(End, Vm)>;

/// Everything that may be true.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) vms: BTreeMap<&'static str, BTreeSet<Vm>>,
    pub(crate) fates: BTreeMap<&'static str, Fate>,
}

fn boots(fate: Fate) -> bool {
    start_end(fate).is_ok()
}

/// How a start of a VM with this fate ends.
fn start_end(fate: Fate) -> End {
    match fate {
        Fate::Works | Fate::IgnoresPowerOff | Fate::SnapshotFails | Fate::RestoreFails => Ok(()),
        Fate::LaunchFails => Err(ErrorCode::Unavailable),
        Fate::DiesInBoot | Fate::Mute => Err(ErrorCode::BootFailed),
    }
}

/// What an undisturbed operation comes to. One line for each row of the table.
pub(crate) fn outcomes(vm: Vm, fate: Fate, verb: Verb) -> Outcomes {
    let started = if boots(fate) { Running } else { Error };
    let one = |end, vm| vec![(end, vm)];
    match (verb, vm) {
        (Verb::Create { start: false }, Absent) => one(Ok(()), Created),
        (Verb::Create { start: true }, Absent) if boots(fate) => one(Ok(()), Running),
        (Verb::Create { start: true }, Absent) => one(start_end(fate), Absent),
        (Verb::Create { .. }, there) => one(Err(ErrorCode::AlreadyExists), there),
        (_, Absent) => one(Err(ErrorCode::NotFound), Absent),
        (Verb::Start, Running) => one(Ok(()), Running),
        (Verb::Start, Paused) => one(Err(ErrorCode::NotRunning), Paused),
        (Verb::Pause, Running | Paused) => one(Ok(()), Paused),
        (Verb::Resume, Running | Paused) => one(Ok(()), Running),
        (Verb::Pause | Verb::Resume, other) => one(Err(ErrorCode::NotRunning), other),
        (Verb::Start, _) => one(start_end(fate), started),
        (Verb::Stop | Verb::Kill, Running | Paused) => one(Ok(()), Stopped),
        (Verb::Restart, Running | Paused) => one(start_end(fate), started),
        (Verb::Stop | Verb::Kill | Verb::Restart, other) => one(Err(ErrorCode::NotRunning), other),
        (Verb::Delete { force: false }, up @ (Running | Paused)) => one(Err(ErrorCode::Busy), up),
        (Verb::Delete { .. }, _) => one(Ok(()), Absent),
    }
}

/// What a VM may be when an operation on it was cut short and unwound.
pub(crate) fn unwound(vm: Vm, verb: Verb) -> Vec<Vm> {
    match (verb, vm) {
        (Verb::Create { .. }, Absent) => vec![Absent],
        // A start that is taken back leaves no error: nothing was wrong with the VM.
        (Verb::Start, Created) => vec![Created],
        (Verb::Start, Stopped) => vec![Stopped],
        (Verb::Start, Error) => vec![Error, Stopped, Created],
        (Verb::Stop | Verb::Restart | Verb::Kill, up @ (Running | Paused)) => vec![up, Stopped],
        (Verb::Pause, Running) | (Verb::Resume, Paused) => vec![Running, Paused],
        (_, other) => vec![other],
    }
}

/// What a VM may be when the daemon died in an operation on it and the next one has begun.
pub(crate) fn after_crash(vm: Vm, fate: Fate, verb: Verb) -> Vec<Vm> {
    let mut all = unwound(vm, verb);
    // Or it was just done. A failure that nobody saw is no error.
    all.extend(outcomes(vm, fate, verb).into_iter().map(|(_, vm)| vm));
    match (verb, vm) {
        (Verb::Create { .. }, Absent) => all.extend([Created, Stopped]),
        (Verb::Start, Created | Stopped | Error) => all.extend([Created, Stopped]),
        (Verb::Restart | Verb::Stop | Verb::Kill, Running | Paused) => all.push(Stopped),
        _ => {}
    }
    all
}

/// What a blow makes of a VM whose daemon looks on.
pub(crate) fn after_blow(vm: Vm, fate: Fate, blow: Blow) -> Vec<Vm> {
    match (vm, blow) {
        (Running | Paused, Blow::PowerOff) => vec![Stopped],
        (Running | Paused, Blow::Reboot) if boots(fate) => vec![Running],
        (Running | Paused, _) => vec![Error],
        (other, _) => vec![other],
    }
}

/// What a machine's end makes of a VM when no daemon looked on: nobody heard why.
pub(crate) fn after_unseen_blow(vm: Vm) -> Vec<Vm> {
    match vm {
        Running | Paused => vec![Stopped, Error],
        other => vec![other],
    }
}

/// What an operation may come to whose machine meets a blow somewhere in it.
pub(crate) fn struck(vm: Vm, fate: Fate, verb: Verb, blow: Blow) -> Outcomes {
    let mut all = Vec::new();
    // Before it began, after it was done, …
    for hit in after_blow(vm, fate, blow) {
        all.extend(outcomes(hit, fate, verb));
    }
    for (end, then) in outcomes(vm, fate, verb) {
        all.extend(after_blow(then, fate, blow).into_iter().map(|hit| (end, hit)));
    }
    // … or in its midst: the machine that is being started dies.
    let boot_failed = Err(ErrorCode::BootFailed);
    match (verb, vm) {
        (Verb::Create { start: true }, Absent) => all.push((boot_failed, Absent)),
        (Verb::Start, Created | Stopped | Error) => all.push((boot_failed, Error)),
        // What died is stopped, and is started as it was to be.
        (Verb::Restart, Running | Paused) => {
            all.extend([(boot_failed, Error), outcomes(Stopped, fate, Verb::Start)[0]]);
        }
        _ => {}
    }
    // Between the two machines of a reboot none runs.
    if let (Running | Paused, Blow::Reboot) = (vm, blow) {
        for (end, then) in outcomes(Stopped, fate, verb) {
            all.push((end, then));
            all.extend((then == Stopped).then_some((end, if boots(fate) { Running } else { Error })));
        }
    }
    // The guest that is being started or stopped may break its channel first.
    if boots(fate) && matches!(verb, Verb::Create { start: true } | Verb::Start | Verb::Restart) {
        let then = if matches!(verb, Verb::Create { .. }) && vm == Absent { Absent } else { Error };
        all.push((Err(ErrorCode::GuestFailed), then));
    }
    all
}

impl Model {
    pub(crate) fn new() -> Self {
        Self {
            vms: NAMES.iter().map(|n| (*n, BTreeSet::from([Absent]))).collect(),
            fates: NAMES.iter().map(|n| (*n, Fate::Works)).collect(),
        }
    }

    pub(crate) fn fate(&self, name: &str) -> Fate {
        self.fates.get(name).copied().unwrap_or_default()
    }

    pub(crate) fn may_be(&self, name: &str) -> BTreeSet<Vm> {
        self.vms.get(name).cloned().unwrap_or_default()
    }

    fn each(&mut self, name: &'static str, next: impl Fn(Vm, Fate) -> Vec<Vm>) {
        let fate = self.fate(name);
        let after = self.may_be(name).into_iter().flat_map(|vm| next(vm, fate)).collect();
        self.vms.insert(name, after);
    }

    /// One operation; with its end known, only what goes with that end remains. Empty: impossible.
    pub(crate) fn ask(&mut self, ask: Ask, end: Option<End>) {
        self.each(ask.name, |vm, fate| {
            let all = outcomes(vm, fate, ask.verb).into_iter();
            all.filter(|(e, _)| end.is_none_or(|end| end == *e)).map(|(_, vm)| vm).collect()
        });
    }

    /// Two at once.
    pub(crate) fn two(&mut self, asks: [Ask; 2], ends: Option<[End; 2]>) {
        let [first, second] = asks;
        if first.name != second.name {
            self.ask(first, ends.map(|e| e[0]));
            return self.ask(second, ends.map(|e| e[1]));
        }
        self.each(first.name, |vm, fate| both(vm, fate, [first.verb, second.verb], ends));
    }

    pub(crate) fn cancelled(&mut self, ask: Ask, end: Option<End>) {
        self.each(ask.name, |vm, fate| {
            let unwound = unwound(vm, ask.verb).into_iter().map(|vm| (Err(ErrorCode::Cancelled), vm));
            let all = outcomes(vm, fate, ask.verb).into_iter().chain(unwound);
            all.filter(|(e, _)| end.is_none_or(|end| end == *e)).map(|(_, vm)| vm).collect()
        });
    }

    pub(crate) fn crash(&mut self, ask: Ask) {
        self.each(ask.name, |vm, fate| after_crash(vm, fate, ask.verb));
    }

    pub(crate) fn blow(&mut self, name: &'static str, blow: Blow, seen: bool) {
        self.each(name, |vm, fate| if seen { after_blow(vm, fate, blow) } else { after_unseen_blow(vm) });
    }

    pub(crate) fn struck(&mut self, ask: Ask, blow: Blow, end: Option<End>) {
        self.each(ask.name, |vm, fate| {
            let all = struck(vm, fate, ask.verb, blow).into_iter();
            all.filter(|(e, _)| end.is_none_or(|end| end == *e)).map(|(_, vm)| vm).collect()
        });
    }

    /// The parent is afterwards what it was, whatever came of it.
    pub(crate) fn fork(&mut self, fork: Fork, how: Cut, end: Option<End>) {
        let fate = self.fate(fork.child);
        let takes = self.fate(fork.parent) != Fate::SnapshotFails;
        let (mut parents, mut children) = (BTreeSet::new(), BTreeSet::new());
        for parent in self.may_be(fork.parent) {
            for child in self.may_be(fork.child) {
                let all = forked(parent, takes, child, fate, how);
                for (_, then) in all.into_iter().filter(|(e, _)| end.is_none_or(|end| end == *e)) {
                    parents.insert(parent);
                    children.insert(then);
                }
            }
        }
        self.vms.insert(fork.parent, parents);
        self.vms.insert(fork.child, children);
    }

    pub(crate) fn set_fate(&mut self, name: &'static str, fate: Fate) {
        self.fates.insert(name, fate);
    }
}

/// What cut an operation short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Nothing.
    Nothing,
    /// Its client left.
    Client,
    /// The daemon died.
    Daemon,
}

/// What a fork comes to for the child.
fn forked(parent: Vm, takes: bool, child: Vm, fate: Fate, how: Cut) -> Outcomes {
    let born = match (parent, child) {
        (Absent, _) => (Err(ErrorCode::NotFound), child),
        (Running | Paused, Absent) if !takes => (Err(ErrorCode::Unsupported), Absent),
        (Running | Paused, Absent) if fate == Fate::RestoreFails => (Err(ErrorCode::Unsupported), Absent),
        (Running | Paused, Absent) if boots(fate) => (Ok(()), Running),
        (Running | Paused, Absent) => (start_end(fate), Absent),
        (Running | Paused, there) => (Err(ErrorCode::AlreadyExists), there),
        (_, child) => (Err(ErrorCode::NotRunning), child),
    };
    let mut all = vec![born];
    match how {
        Cut::Nothing => {}
        Cut::Client => all.push((Err(ErrorCode::Cancelled), child)),
        Cut::Daemon => all.extend([(born.0, child), (Ok(()), child)]),
    }
    all
}

/// Two operations on one VM: one after the other in either order, and what only overlapping ones meet.
fn both(vm: Vm, fate: Fate, verbs: [Verb; 2], ends: Option<[End; 2]>) -> Vec<Vm> {
    let mut all: Vec<([End; 2], Vm)> = Vec::new();
    for (x, y) in [(0, 1), (1, 0)] {
        for (end_x, between) in outcomes(vm, fate, verbs[x]) {
            for (end_y, then) in outcomes(between, fate, verbs[y]) {
                let mut both = [end_x; 2];
                both[y] = end_y;
                all.push((both, then));
            }
        }
        // A name is taken while a create holds it, also by one that will fail.
        if let (Verb::Create { .. }, Verb::Create { .. }, Absent) = (verbs[x], verbs[y], vm) {
            for (end_x, then) in outcomes(vm, fate, verbs[x]) {
                let mut both = [end_x; 2];
                both[y] = Err(ErrorCode::AlreadyExists);
                all.push((both, then));
            }
        }
    }
    all.into_iter().filter(|(e, _)| ends.is_none_or(|ends| ends == *e)).map(|(_, vm)| vm).collect()
}

fn verbs(there: bool) -> BoxedStrategy<Verb> {
    let (create, others) = if there { (1, 3) } else { (20, 1) };
    prop_oneof![
        create => any::<bool>().prop_map(|start| Verb::Create { start }),
        others => Just(Verb::Start),
        others => Just(Verb::Stop),
        others => Just(Verb::Restart),
        others => Just(Verb::Kill),
        others => Just(Verb::Pause),
        others => Just(Verb::Resume),
        others => any::<bool>().prop_map(|force| Verb::Delete { force }),
    ]
    .boxed()
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Turn;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::new()).boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Turn> {
        let name = || proptest::sample::select(&NAMES[..]);
        // What makes sense most of the time, and what does not now and then.
        let there = |name| state.may_be(name) != BTreeSet::from([Absent]);
        let asks = NAMES.map(|name| verbs(there(name)).prop_map(move |verb| Ask { name, verb }));
        let ask = proptest::strategy::Union::new(asks).boxed();
        let blow =
            prop_oneof![Just(Blow::PowerOff), Just(Blow::Reboot), Just(Blow::Panic), Just(Blow::Killed)]
                .boxed();
        let fate = prop_oneof![
            12 => Just(Fate::Works),
            2 => Just(Fate::LaunchFails),
            2 => Just(Fate::DiesInBoot),
            1 => Just(Fate::Mute),
            2 => Just(Fate::IgnoresPowerOff),
            1 => Just(Fate::SnapshotFails),
            1 => Just(Fate::RestoreFails),
        ];
        let cut = || 0..LATEST_CUT;
        let fork = (0..NAMES.len(), 1..NAMES.len())
            .prop_map(|(n, on)| Fork { parent: NAMES[n], child: NAMES[(n + on) % NAMES.len()] })
            .boxed();
        let same = (ask.clone(), cut(), ask.clone())
            .prop_map(|(a, cut, b)| Turn::Two(a, cut, Ask { name: a.name, ..b }));
        prop_oneof![
            6 => ask.clone().prop_map(Turn::One),
            5 => same,
            3 => (ask.clone(), cut(), ask.clone()).prop_map(|(a, cut, b)| Turn::Two(a, cut, b)),
            4 => (ask.clone(), cut()).prop_map(|(a, cut)| Turn::Cancelled(a, cut)),
            5 => (ask.clone(), cut()).prop_map(|(a, cut)| Turn::Crash(a, cut)),
            1 => proptest::option::of((name(), blow.clone())).prop_map(Turn::IdleCrash),
            2 => (name(), blow.clone()).prop_map(|(n, b)| Turn::Blow(n, b)),
            4 => (ask, cut(), blow).prop_map(|(a, cut, b)| Turn::Struck(a, cut, b)),
            4 => fork.clone().prop_map(Turn::Fork),
            2 => (fork.clone(), cut()).prop_map(|(fork, cut)| Turn::ForkCancelled(fork, cut)),
            3 => (fork, cut()).prop_map(|(fork, cut)| Turn::ForkCrash(fork, cut)),
            2 => (name(), fate).prop_map(|(n, f)| Turn::Fate(n, f)),
        ]
        .boxed()
    }

    fn apply(mut state: Self, turn: &Turn) -> Self {
        match *turn {
            Turn::One(ask) => state.ask(ask, None),
            Turn::Two(first, _, second) => state.two([first, second], None),
            Turn::Cancelled(ask, _) => state.cancelled(ask, None),
            Turn::Crash(ask, _) => state.crash(ask),
            Turn::IdleCrash(blow) => {
                if let Some((name, blow)) = blow {
                    state.blow(name, blow, false);
                }
            }
            Turn::Blow(name, blow) => state.blow(name, blow, true),
            Turn::Struck(ask, _, blow) => state.struck(ask, blow, None),
            Turn::Fork(fork) => state.fork(fork, Cut::Nothing, None),
            Turn::ForkCancelled(fork, _) => state.fork(fork, Cut::Client, None),
            Turn::ForkCrash(fork, _) => state.fork(fork, Cut::Daemon, None),
            Turn::Fate(name, fate) => state.set_fate(name, fate),
        }
        state
    }
}
