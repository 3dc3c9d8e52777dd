//! Fault points: a test tells a daemon to fail or die at a named step of an operation, and sees what the next daemon
//! makes of it. Always compiled in, armed by `BANGER_FAULT` only, each at most once per daemon. Must never act on
//! anything but the step that was named.
//!
//! `BANGER_FAULT="start.launch=kill-after,delete.files=fail"`; `bangerd --list-steps` prints every step there is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use banger_model::{Error, Result};
use tokio::sync::watch;

/// The variable.
pub(crate) const VARIABLE: &str = "BANGER_FAULT";
/// How often a machine that is to be killed is looked for while its step runs.
const LOOK: Duration = Duration::from_millis(1);

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// It does its work, and then says that it failed: all of its effects are there to be undone.
    Fail,
    /// The daemon dies before it.
    KillBefore,
    /// The daemon dies after it.
    KillAfter,
    /// The VM's machine monitor dies while it runs, or at the latest before the next step.
    KillVmm,
    /// It does not begin until its operation is cancelled.
    Hold,
}

impl Action {
    const ALL: [(&'static str, Self); 5] = [
        ("fail", Self::Fail),
        ("kill-before", Self::KillBefore),
        ("kill-after", Self::KillAfter),
        ("kill-vmm", Self::KillVmm),
        ("hold", Self::Hold),
    ];
}

/// How a daemon dies.
#[derive(Debug)]
pub(crate) enum Death {
    /// By SIGKILL to its process.
    Process,
    /// By whoever runs it within a process of their own: this tells them, and the step never goes on.
    Embedded(watch::Sender<bool>),
}

/// The faults that are still to come.
#[derive(Debug)]
pub(crate) struct Faults {
    any: AtomicBool,
    armed: Mutex<Vec<(String, Action)>>,
    death: Death,
}

impl Faults {
    /// Those that a variable's text names; `steps` are all there are.
    ///
    /// # Errors
    /// `invalid_argument` for a step or an action that does not exist: a test with a slip must not pass.
    pub(crate) fn parse(text: Option<&str>, steps: &[String], death: Death) -> Result<Self> {
        let mut armed = Vec::new();
        for word in text.unwrap_or_default().split(',').map(str::trim).filter(|w| !w.is_empty()) {
            let (step, action) = word.split_once('=').unwrap_or((word, ""));
            if !steps.iter().any(|s| s == step) {
                return Err(Error::invalid(format!("{VARIABLE}: '{}' is no step", step.escape_debug()))
                    .with_hint("'bangerd --list-steps' prints all of them"));
            }
            let found = Action::ALL.iter().find(|(name, _)| *name == action);
            let Some((_, action)) = found else {
                let names: Vec<&str> = Action::ALL.iter().map(|(name, _)| *name).collect();
                let message = format!("{VARIABLE}: '{}' is no action", action.escape_debug());
                return Err(Error::invalid(message).with_hint(format!("one of: {}", names.join(" "))));
            };
            armed.push((step.to_owned(), *action));
        }
        Ok(Self { any: AtomicBool::new(!armed.is_empty()), armed: Mutex::new(armed), death })
    }

    /// None at all.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { any: AtomicBool::new(false), armed: Mutex::default(), death: Death::Process }
    }

    /// What is to happen at this step, from now on not again.
    fn take(&self, operation: &str, step: &str) -> Option<Action> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it =
            |name: &str| name.strip_prefix(operation).and_then(|rest| rest.strip_prefix('.')) == Some(step);
        let index = armed.iter().position(|(name, _)| is_it(name))?;
        let (name, action) = armed.remove(index);
        self.any.store(!armed.is_empty(), Ordering::Relaxed);
        tracing::warn!(step = name, ?action, "a fault that was asked for");
        Some(action)
    }

    /// Runs a step's work with the fault that is armed for it. `kill_vmm` kills the machine monitor the step is
    /// about, and says whether there was one. `cancelled` resolves when the operation is cancelled.
    pub(crate) async fn around<T>(
        &self,
        operation: &str,
        step: &str,
        kill_vmm: impl Fn() -> bool,
        cancelled: impl Future<Output = ()>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match self.take(operation, step) {
            None => work.await,
            Some(Action::Fail) => {
                work.await?;
                Err(asked_for(operation, step))
            }
            Some(Action::KillBefore) => self.die().await,
            Some(Action::KillAfter) => {
                let _ = work.await;
                self.die().await
            }
            Some(Action::KillVmm) => {
                let kill_vmm = || {
                    let killed = kill_vmm();
                    if killed {
                        tracing::warn!(operation, step, "a machine monitor was killed, as asked for");
                    }
                    killed
                };
                let kill = async {
                    while !kill_vmm() {
                        tokio::time::sleep(LOOK).await;
                    }
                };
                let mut kill = std::pin::pin!(kill);
                let mut work = std::pin::pin!(work);
                tokio::select! {
                    biased;
                    () = &mut kill => work.await,
                    done = &mut work => {
                        kill_vmm();
                        done
                    }
                }
            }
            Some(Action::Hold) => {
                cancelled.await;
                work.await
            }
        }
    }

    async fn die<T>(&self) -> T {
        self.strike();
        std::future::pending().await
    }

    fn strike(&self) {
        match &self.death {
            Death::Process => {
                let _ =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            }
            Death::Embedded(tell) => {
                tell.send_replace(true);
            }
        }
    }
}

fn asked_for(operation: &str, step: &str) -> Error {
    Error::internal(format!("the step {operation}.{step} failed because {VARIABLE} asked for it"))
}

/// The faults of a synchronous job that tells its stages as it goes.
#[derive(Debug)]
pub(crate) struct Stages<'a> {
    faults: &'a Faults,
    operation: &'static str,
    at: Mutex<Option<(String, Option<Action>)>>,
    failed: Mutex<Option<Error>>,
}

impl<'a> Stages<'a> {
    pub(crate) fn new(faults: &'a Faults, operation: &'static str) -> Self {
        Self { faults, operation, at: Mutex::default(), failed: Mutex::default() }
    }

    /// The job is at this stage: the one before it is over.
    pub(crate) fn at(&self, stage: &str) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if at.as_ref().is_some_and(|(current, _)| current == stage) {
            return;
        }
        self.over(at.take());
        let action = self.faults.take(self.operation, stage);
        if action == Some(Action::KillBefore) {
            self.die();
        }
        *at = Some((stage.to_owned(), action));
    }

    /// Whether the job must end now.
    pub(crate) fn must_end(&self) -> bool {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What becomes of the job's result.
    pub(crate) fn end<T>(&self, result: Result<T>) -> Result<T> {
        let last = self.at.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.over(last);
        match self.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => result,
        }
    }

    fn over(&self, stage: Option<(String, Option<Action>)>) {
        match stage {
            Some((_, Some(Action::KillAfter))) => self.die(),
            Some((stage, Some(Action::Fail))) => {
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                *failed = Some(asked_for(self.operation, &stage));
            }
            _ => {}
        }
    }

    fn die(&self) {
        self.faults.strike();
        loop {
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::future::{pending, ready};

    fn faults(text: &str) -> Faults {
        let steps = ["start.boot", "start.launch"].map(str::to_owned);
        Faults::parse(Some(text), &steps, Death::Process).unwrap()
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        for (text, needle) in [("start.boo=fail", "start.boo"), ("start.boot=explode", "explode"), ("x", "x")]
        {
            let error = Faults::parse(Some(text), &["start.boot".to_owned()], Death::Process).unwrap_err();
            assert!(error.message.contains(needle), "{error}");
        }
        assert!(Faults::parse(None, &[], Death::Process).is_ok());
    }

    #[tokio::test]
    async fn a_step_that_is_to_fail_has_done_its_work_and_fails_once() {
        let (faults, done) = (faults("start.boot=fail"), Cell::new(0));
        let run = || {
            faults.around("start", "boot", || false, pending(), async {
                done.set(done.get() + 1);
                Ok(())
            })
        };
        assert!(run().await.is_err());
        assert!(run().await.is_ok());
        assert_eq!(done.get(), 2);
        // The same step of another operation is another step.
        let other = faults.around("restart", "launch", || false, pending(), ready(Ok(()))).await;
        assert!(other.is_ok());
    }

    #[tokio::test]
    async fn a_machine_that_appears_while_its_step_runs_is_killed_and_one_that_appears_last_too() {
        for late in [false, true] {
            let (faults, there, killed) =
                (faults("start.launch=kill-vmm"), Cell::new(false), Cell::new(false));
            let kill = || {
                killed.set(killed.get() || there.get());
                there.get()
            };
            let work = async {
                if !late {
                    there.set(true);
                    while !killed.get() {
                        tokio::task::yield_now().await;
                    }
                }
                there.set(true);
                Ok(())
            };
            faults.around("start", "launch", kill, pending(), work).await.unwrap();
            assert!(killed.get());
        }
    }

    #[tokio::test]
    async fn an_embedded_daemon_tells_its_death_and_the_step_never_goes_on() {
        let (tell, mut told) = watch::channel(false);
        let steps = ["start.boot".to_owned()];
        let faults = Faults::parse(Some("start.boot=kill-before"), &steps, Death::Embedded(tell)).unwrap();
        let step = faults.around("start", "boot", || false, pending(), ready(Ok(())));
        tokio::select! {
            _ = step => unreachable!("it never goes on"),
            died = told.wait_for(|dead| *dead) => { died.unwrap(); }
        }
    }

    #[test]
    fn a_job_fails_after_the_stage_that_is_to_fail() {
        let steps = ["image_build.pack".to_owned()];
        let faults = Faults::parse(Some("image_build.pack=fail"), &steps, Death::Process).unwrap();
        let stages = Stages::new(&faults, "image_build");
        stages.at("download");
        stages.at("pack");
        stages.at("pack");
        assert!(!stages.must_end());
        stages.at("store");
        assert!(stages.must_end());
        assert!(stages.end(Ok(())).is_err());
    }
}
