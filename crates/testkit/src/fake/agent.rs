//! The fake's agent: the guest's end of the real channel, with answers that touch nothing.

use std::sync::{Arc, PoisonError};

use banger_channel::{GuestStream, Handler};
use banger_model::ErrorCode;
use banger_protocol::agent::frame::Lane;
use banger_protocol::agent::{AgentHello, ExitStatus, InitKind, Reply, Request, ShutdownMode};
use banger_vmm::ExitReason;
use tokio::net::UnixListener;

use super::driver::DOOM;
use super::world::{Fate, Vmm};

/// Serves one host at a time until the machine ends.
pub(super) async fn serve(vmm: Arc<Vmm>, listener: UnixListener, fate: Fate) {
    let mut exit = vmm.exit.clone();
    let serving = async {
        match fate {
            Fate::DiesInBoot => {
                tokio::time::sleep(DOOM).await;
                vmm.end(ExitReason::Unknown);
            }
            Fate::Mute => std::future::pending().await,
            _ => loop {
                let Ok((io, _)) = listener.accept().await else { return };
                let agent = FakeAgent { vmm: vmm.clone(), fate };
                let _ = banger_channel::serve(io, agent).await;
            },
        }
    };
    tokio::select! {
        () = serving => {}
        _ = exit.wait_for(Option::is_some) => {}
    }
}

#[derive(Debug, Clone)]
struct FakeAgent {
    vmm: Arc<Vmm>,
    fate: Fate,
}

impl Handler for FakeAgent {
    async fn handle(&self, request: Request, stream: GuestStream) {
        let reply = match request {
            Request::Hello(_) => {
                let (version, capabilities) =
                    self.vmm.agent.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Reply::Hello(AgentHello {
                    version,
                    agent: "fake".to_owned(),
                    capabilities,
                    kernel: "fake".to_owned(),
                    boot_id: self.vmm.handle.process.pid.to_string(),
                    init: InitKind::Agent,
                    uptime_ms: 1,
                    unix_ns: None,
                })
            }
            Request::Exec(spec) => {
                // Echoes its words: enough to see that the channel carries what was asked.
                let _ = stream.reply(&Reply::Started { pid: 1 }).await;
                let words: Vec<_> = spec.argv.iter().map(|w| w.as_os_str().to_string_lossy()).collect();
                let _ = stream.send(Lane::Out, words.join(" ").into_bytes().into()).await;
                let _ = (stream.finish(Lane::Out), stream.finish(Lane::Err));
                Reply::Exited(ExitStatus::Code(0))
            }
            Request::Sync
            | Request::ConfigureNetwork(_)
            | Request::Freeze
            | Request::Thaw { .. }
            | Request::SetTime { .. } => Reply::Done,
            Request::Shutdown { mode } => {
                if self.fate != Fate::IgnoresPowerOff {
                    let _ = stream.reply(&Reply::Done).await;
                    let reason = match mode {
                        ShutdownMode::PowerOff => ExitReason::GuestShutdown,
                        ShutdownMode::Reboot => ExitReason::GuestReset,
                    };
                    self.vmm.end(reason);
                    return;
                }
                Reply::Done
            }
            _ => Reply::Error {
                code: ErrorCode::Unsupported,
                message: "the fake agent does not do this".to_owned(),
            },
        };
        let _ = stream.reply(&reply).await;
    }
}
