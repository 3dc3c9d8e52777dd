//! Doctor: what works on this host, what does not, and what to type next. It runs in the daemon, and without one in a
//! process of its own. Must never change anything: no directory, no database, no daemon comes into being by it.

mod defaults;
mod host;
mod machine;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_image::kernel::{DEFAULT_KERNEL, KernelStore};
use banger_model::{Error, Image, Kernel, Result};
use banger_protocol::api::{Check, CheckStatus};
use banger_store::{Inspection, inspect};
use banger_vmm::kvm::KvmStatus;
use banger_vmm::{Cage, Driver};

use crate::config::{Config, Host};
use crate::daemon::{Daemon, companions, drivers};
use crate::startup::Dirs;
use crate::vm::capability;

/// The directory of companions has this file when it is whole.
pub(crate) const AGENT: &str = "banger-agent";

/// What the checks look at.
struct Surroundings {
    dirs: Dirs,
    config: Config,
    host: Host,
    /// Where the programs are that belong to the daemon.
    companions: PathBuf,
    cage: Cage,
    drivers: Vec<Arc<dyn Driver>>,
    kvm: KvmStatus,
    kernels: Result<Vec<Kernel>>,
    /// `None`: the records cannot be read without changing them.
    images: Result<Option<Vec<Image>>>,
    /// What a start of the daemon would make of the database.
    database: Result<Inspection>,
}

/// All checks, asked of a daemon.
pub(crate) async fn of_daemon(daemon: &Daemon) -> Vec<Check> {
    let vms = &daemon.vms;
    let about = Surroundings {
        dirs: daemon.dirs.clone(),
        config: daemon.config.clone(),
        host: vms.host(),
        companions: vms.companions().to_owned(),
        cage: vms.cage(),
        drivers: vms.drivers().to_vec(),
        kvm: vms.kvm().await,
        kernels: daemon.artifacts.list_kernels(),
        images: daemon.artifacts.list_images().map(Some),
        database: inspect(&daemon.dirs.state.database()).map_err(Into::into),
    };
    run(&about).await
}

/// All checks, without a daemon: of the installation that these variables name.
///
/// # Errors
/// When the variables or the configuration file are wrong.
pub(crate) async fn of_installation(env: impl Fn(&str) -> Option<OsString> + Copy) -> Result<Vec<Check>> {
    let dirs = Dirs::find(env)?;
    let host = Host::measure();
    let config = Config::load(env, host)?;
    let companions = companions()?;
    // Control groups are taken by the daemon alone.
    let cage = Cage::beside(&companions, config.require.value.clone());
    let database = dirs.state.database();
    let about = Surroundings {
        drivers: drivers(&config, &cage),
        kvm: tokio::task::spawn_blocking(banger_vmm::kvm::probe).await.unwrap_or(KvmStatus::NoModule),
        kernels: KernelStore::new(dirs.state.kernels(), dirs.state.scratch()).list().map_err(Into::into),
        images: banger_store::peek_images(&database).map_err(Into::into),
        database: inspect(&database).map_err(Into::into),
        dirs,
        config,
        host,
        companions,
        cage,
    };
    Ok(run(&about).await)
}

async fn run(about: &Surroundings) -> Vec<Check> {
    let mut checks = vec![host::architecture(), host::memory(about), machine::kvm(&about.kvm)];
    for driver in &about.drivers {
        checks.push(machine::driver(driver.kind().as_str(), driver.capabilities().await, &about.config));
    }
    checks.extend(machine::cage(&about.cage).await);
    checks.push(host::subordinate_ids());
    checks.push(host::disk(about.dirs.state.path()));
    checks.push(agent(&about.companions));
    checks.push(kernel(about));
    checks.push(image(about));
    for check in capability::ALL.iter().filter_map(|c| c.doctor) {
        checks.push(check().await);
    }
    checks.extend(host::programs(about.has_kernel(), about.has_image()));
    checks.push(state(about));
    checks.push(defaults::check(&about.config));
    checks
}

impl Surroundings {
    fn has_kernel(&self) -> bool {
        let name = &self.config.kernel.value;
        self.kernels.as_ref().is_ok_and(|all| all.iter().any(|kernel| kernel.name == *name))
    }

    fn has_image(&self) -> bool {
        let name = &self.config.image.value;
        let all = self.images.as_ref().ok().and_then(Option::as_ref);
        all.is_some_and(|all| all.iter().any(|image| image.name == *name))
    }
}

/// A check that passed.
pub(crate) fn ok(name: &str, detail: String) -> Check {
    Check { name: name.to_owned(), status: CheckStatus::Ok, detail, hint: None }
}

/// A check of something that works, but not as well as it could.
pub(crate) fn warn(name: &str, detail: String, hint: String) -> Check {
    Check { name: name.to_owned(), status: CheckStatus::Warn, detail, hint: Some(hint) }
}

/// A check that failed.
pub(crate) fn fail(name: &str, error: Error) -> Check {
    Check { name: name.to_owned(), status: CheckStatus::Fail, detail: error.message, hint: error.hint }
}

fn agent(companions: &Path) -> Check {
    let agent = companions.join(AGENT);
    if agent.is_file() {
        return ok("agent", agent.display().to_string());
    }
    let missing = Error::unavailable(format!("the guest agent {} is missing", agent.display()));
    let hint = "install banger again ('make install'): bangerd and banger-agent belong together";
    fail("agent", missing.with_hint(hint))
}

fn kernel(about: &Surroundings) -> Check {
    let name = &about.config.kernel.value;
    match &about.kernels {
        Ok(_) if about.has_kernel() => ok("kernel", format!("'{name}' is here")),
        Ok(_) if name.as_str() == DEFAULT_KERNEL => warn(
            "kernel",
            format!("'{DEFAULT_KERNEL}' is not here yet: the first run pulls it"),
            format!("banger kernel pull {DEFAULT_KERNEL}"),
        ),
        Ok(_) => {
            let missing = Error::not_found(format!("the default kernel '{name}' is not here"));
            fail("kernel", missing.with_hint("banger kernel list --available"))
        }
        Err(error) => fail("kernel", error.clone()),
    }
}

fn image(about: &Surroundings) -> Check {
    let name = &about.config.image.value;
    match &about.images {
        Ok(Some(_)) if about.has_image() => ok("image", format!("'{name}' is here")),
        Ok(Some(_)) => warn(
            "image",
            format!("'{name}' is not here yet: the first run builds it"),
            "banger image build debian".to_owned(),
        ),
        Ok(None) => ok("image", "the daemon has to change its database before images are known".to_owned()),
        Err(error) => fail("image", error.clone()),
    }
}

/// The database, and what the next start of the daemon does to it.
fn state(about: &Surroundings) -> Check {
    let path = about.dirs.state.path().display();
    match &about.database {
        Ok(Inspection { schema: None, .. }) => ok("state", format!("{path}: nothing is there yet")),
        Ok(found) if found.pending.is_empty() => ok("state", path.to_string()),
        Ok(found) => ok(
            "state",
            format!("{path}: the next start of the daemon changes the database to schema {}", found.known),
        ),
        Err(error) => fail("state", error.clone()),
    }
}
