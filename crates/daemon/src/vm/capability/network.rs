//! The network: passt and its guard on the host, a device in the machine, addresses in the guest.
//! Must never keep its end of the backend's socket: the network ends when the VMM does.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use banger_channel::Session;
use banger_model::{Error, NetworkMode, Result, Security, Vm, VmId};
use banger_network::{
    GuestAddresses, UserNetwork, UserNetworkHandle, UserNetworkSpec, guard, host, passt, responder,
};
use banger_protocol::agent::{Identity, NetworkConfig, Request};
use banger_protocol::api::Check;
use banger_vmm::{MachineSpec, NetDevice};
use futures_util::future::BoxFuture;

use super::{Capability, Context, Hooks, StepName};
use crate::artifacts::blocking;
use crate::doctor;
use crate::op::random_bytes;
use crate::vm::Vms;
use crate::vm::handles::Handles;
use crate::vm::start::{Purpose, make_dir, no_bridge};
use crate::vm::teardown::{end_all, remove_tree};

pub(super) const CAPABILITY: Capability = Capability {
    host_step: StepName { name: "network", message: "setting up the network" },
    guest_step: Some(StepName { name: "guest_network", message: "configuring the guest's network" }),
    plug: || Box::<Network>::default(),
    in_rescue: false,
    cleanup: Some(|held| Box::pin(cleanup(held))),
    check_change: None,
    apply_change: None,
    doctor: Some(|| Box::pin(check())),
};

#[derive(Default)]
struct Network {
    programs: Option<Programs>,
    device: Option<NetDevice>,
    config: Option<NetworkConfig>,
    /// What is started while the machine is.
    planned: Option<UserNetwork>,
    /// The other end of a template's device: nobody reads there, but while it is open the guest has a link.
    nobody: Option<OwnedFd>,
}

struct Programs {
    passt: PathBuf,
    guard: PathBuf,
    responder: PathBuf,
}

impl Programs {
    fn locate(vms: &Vms) -> Result<Self> {
        let passt = passt::locate(std::env::var_os("PATH").as_deref())?;
        let guard = guard::locate(&vms.companions)?;
        let responder = responder::locate(&vms.companions)?;
        Ok(Self { passt, guard, responder })
    }

    /// The network of one VM.
    fn spec(&self, vms: &Vms, id: &VmId, host_access: bool) -> UserNetworkSpec {
        UserNetworkSpec {
            vm_id: id.clone(),
            host_access,
            log: vms.dirs.state.vm(id).join("network.log"),
            passt: self.passt.clone(),
            guard: self.guard.clone(),
            responder: self.responder.clone(),
            resolv: vms.dirs.runtime.vm_network(id),
            cage: vms.cage.clone(),
        }
    }
}

impl Hooks for Network {
    fn preflight<'a>(&'a mut self, cx: Context<'a>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            match cx.vm.network {
                NetworkMode::None => {}
                NetworkMode::Bridge => return Err(no_bridge()),
                NetworkMode::User if cx.purpose == Purpose::Template => {}
                NetworkMode::User => {
                    self.programs = Some(Programs::locate(cx.vms)?);
                }
            }
            Ok(())
        })
    }

    fn prepare_host<'a>(&'a mut self, cx: Context<'a>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if cx.purpose == Purpose::Template && cx.vm.network == NetworkMode::User {
                let (device, nobody) = UnixStream::pair()
                    .map_err(|e| Error::internal(format!("no socket for a network device: {e}")))?;
                let config = GuestAddresses::of(&cx.vm.id).config();
                self.device = Some(NetDevice { mac: config.mac.clone(), backend: device.into() });
                // Whoever goes on from it has another MAC address, and nothing else to change.
                self.config = Some(config);
                self.nobody = Some(nobody.into());
            }
            let Some(programs) = &self.programs else { return Ok(()) };
            let spec = programs.spec(cx.vms, &cx.vm.id, cx.vm.host_access);
            let (network, backend) = UserNetwork::plan(spec)?;
            let config = network.config();
            self.device = Some(NetDevice { mac: config.mac.clone(), backend });
            self.config = Some(config);
            self.planned = Some(network);
            Ok(())
        })
    }

    fn beside_launch<'a>(&'a mut self, cx: Context<'a>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if let Some(network) = self.planned.take() {
                let UserNetworkHandle { processes, security } = network.start().await?;
                cx.handles.network = processes;
                cx.handles.network_security = security;
            }
            Ok(())
        })
    }

    fn contribute_to_machine(&mut self, _vm: &Vm, spec: &mut MachineSpec) -> Result<()> {
        spec.network = self.device.take();
        Ok(())
    }

    fn identify(&self, identity: &mut Identity) {
        identity.network.clone_from(&self.config);
    }

    fn configure_guest<'a>(&'a mut self, agent: &'a Session) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if let Some(config) = self.config.clone() {
                agent.call(&Request::ConfigureNetwork(config)).await?;
            }
            Ok(())
        })
    }
}

async fn cleanup(held: &Handles) -> Result<()> {
    end_all(&held.network).await
}

async fn check() -> Check {
    let found = async {
        let program = passt::locate(std::env::var_os("PATH").as_deref())?;
        passt::check(&program).await
    };
    let info = match found.await {
        Ok(info) => info,
        Err(error) => return doctor::fail("network", error.into()),
    };
    let detail = format!("{} ({})", info.program.display(), info.version);
    let without = match (host::has_default_route(), host::name_servers(&host::resolv_conf()).is_empty()) {
        (true, false) => return doctor::ok("network", detail),
        (false, _) => "this host has no default route",
        (true, true) => "this host has no name server in /etc/resolv.conf",
    };
    let hint = "connect this host; VMs that run by then are connected with it".to_owned();
    doctor::warn("network", format!("{detail}; {without}: guests reach little or nothing"), hint)
}

/// Starts a network as a VM gets it, with the same programs, sandboxes and directories, and ends it.
pub(crate) async fn try_out(vms: &Arc<Vms>) -> Check {
    let name = "network trial";
    let began = Instant::now();
    let id = VmId::from_random(random_bytes());
    let tried = try_out_as(vms, &id).await;
    let (state, runtime) = (vms.dirs.state.vm(&id), vms.dirs.runtime.vm(&id));
    let cleared = blocking(move || remove_tree(&state).and(remove_tree(&runtime))).await;
    match tried.and_then(|security| cleared.map(|()| security)) {
        Ok(security) => {
            let programs: Vec<&str> = security.keys().map(String::as_str).collect();
            let ms = began.elapsed().as_millis();
            doctor::ok(name, format!("{} came up in {ms} ms and the gateway answered", programs.join(", ")))
        }
        Err(error) => doctor::fail(name, error),
    }
}

async fn try_out_as(vms: &Arc<Vms>, id: &VmId) -> Result<BTreeMap<String, Security>> {
    let programs = Programs::locate(vms)?;
    make_dir(&vms.dirs.state.vm(id))?;
    make_dir(&vms.dirs.runtime.vm(id))?;
    // What begins with it ends with it, as with a VMM.
    let (network, _backend) = UserNetwork::plan(programs.spec(vms, id, false))?;
    let UserNetworkHandle { processes, security } = network.start().await?;
    end_all(&processes).await?;
    Ok(security)
}
