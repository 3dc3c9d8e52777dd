//! The network: passt and its guard on the host, a device in the machine, addresses in the guest.
//! Must never keep its end of the backend's socket: the network ends when the VMM does.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use banger_channel::Session;
use banger_model::{Error, NetworkMode, Result, Vm};
use banger_network::{
    GuestAddresses, UserNetwork, UserNetworkHandle, UserNetworkSpec, guard, passt, responder,
};
use banger_protocol::agent::{Identity, NetworkConfig, Request};
use banger_protocol::api::Check;
use banger_vmm::{MachineSpec, NetDevice};
use futures_util::future::BoxFuture;

use super::{Capability, Context, Hooks, StepName};
use crate::doctor;
use crate::vm::handles::Handles;
use crate::vm::start::{Purpose, no_bridge};
use crate::vm::teardown::end_all;

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

impl Hooks for Network {
    fn preflight<'a>(&'a mut self, cx: Context<'a>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            match cx.vm.network {
                NetworkMode::None => {}
                NetworkMode::Bridge => return Err(no_bridge()),
                NetworkMode::User if cx.purpose == Purpose::Template => {}
                NetworkMode::User => {
                    let passt = passt::locate(std::env::var_os("PATH").as_deref())?;
                    let guard = guard::locate(&cx.vms.companions)?;
                    let responder = responder::locate(&cx.vms.companions)?;
                    self.programs = Some(Programs { passt, guard, responder });
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
            let Some(Programs { passt, guard, responder }) = &self.programs else { return Ok(()) };
            let (network, backend) = UserNetwork::plan(UserNetworkSpec {
                vm_id: cx.vm.id.clone(),
                host_access: cx.vm.host_access,
                log: cx.vms.dirs.state.vm(&cx.vm.id).join("network.log"),
                passt: passt.clone(),
                guard: guard.clone(),
                responder: responder.clone(),
                resolv: cx.vms.dirs.runtime.vm_network(&cx.vm.id),
                cage: cx.vms.cage.clone(),
            })?;
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
    match found.await {
        Ok(info) => doctor::ok("network", format!("{} ({})", info.program.display(), info.version)),
        Err(error) => doctor::fail("network", error.into()),
    }
}
