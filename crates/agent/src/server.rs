//! Requests to the rooms that carry them out. Owns no mechanism itself. Outside a guest it refuses
//! whatever would change the machine it runs on.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use banger_channel::{GuestStream, Handler, serve};
use banger_model::{Error, ErrorCode};
use banger_protocol::agent::frame::Lane;
use banger_protocol::agent::{AgentHello, HostHello, Identity, Reply, Request, VERSION};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{Handle, Runtime};

use crate::port::Port;
use crate::standstill::{Onward, Standstill};
use crate::vsock::Listener;
use crate::{archive, boot, exec, groups, restored, scan};

/// The clock is stepped when it is further away than this from the host's: a clock chip that is read at boot knows seconds.
const CLOCK_TOLERANCE_NS: u64 = 50_000_000;
/// What follows the first answer at once, usually the user's command, goes before the late modules.
const LATE: Duration = Duration::from_millis(150);

/// Serves the agent's port for ever. For the server process of a guest.
pub fn serve_guest() -> ! {
    let standstill = Standstill::found(groups::of_guest());
    loop {
        let agent = Agent { in_guest: true, standstill: standstill.clone() };
        let outcome = runtime().and_then(|rt| rt.block_on(guest_sessions(agent)));
        if let Err(e) = outcome {
            log(&format!("the agent channel failed: {e}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

async fn guest_sessions(agent: Agent) -> io::Result<()> {
    if let Some(port) = boot::vsock_port() {
        return vsock_sessions(port, agent).await;
    }
    let mut port = Port::open().await?;
    loop {
        port.wait_host().await?;
        serve(&mut port, agent.clone()).await?;
    }
}

/// One connection after the other. One that fails, as all do when their machine is restored from a snapshot, only
/// makes room for the next.
async fn vsock_sessions(port: u32, agent: Agent) -> io::Result<()> {
    let listener = Listener::open(port).await?;
    loop {
        let io = listener.accept().await?;
        let _ = serve(io, agent.clone()).await;
    }
}

/// Serves connections on a unix socket, one at a time, for ever. For tests outside a guest.
#[must_use]
pub fn serve_socket(path: &Path) -> ExitCode {
    let outcome = runtime().and_then(|rt| {
        rt.block_on(async {
            let listener = tokio::net::UnixListener::bind(path)?;
            loop {
                let (io, _) = listener.accept().await?;
                if let Err(e) = serve_hosted(io).await {
                    log(&format!("a connection failed: {e}"));
                }
            }
        })
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log(&format!("cannot serve {}: {e}", path.display()));
            ExitCode::FAILURE
        }
    }
}

/// Serves one byte stream outside a guest: commands and files, nothing that changes the machine.
///
/// # Errors
/// When reading or writing the stream fails.
pub async fn serve_hosted<T: AsyncRead + AsyncWrite + Send + Unpin>(io: T) -> io::Result<()> {
    serve(io, Agent { in_guest: false, standstill: Standstill::default() }).await
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()
}

/// One line for whoever reads the console.
fn log(line: &str) {
    use io::Write as _;
    let _ = writeln!(io::stderr(), "banger-agent: {line}");
}

/// Whether the console is told of a request when it begins: not of those that are many.
fn is_told(request: &Request) -> bool {
    matches!(request, Request::Unpack(_) | Request::Scan(_) | Request::Shutdown { .. })
}

#[derive(Debug, Clone)]
struct Agent {
    /// Whether the machine is ours to change.
    in_guest: bool,
    standstill: Standstill,
}

impl Handler for Agent {
    async fn handle(&self, request: Request, stream: GuestStream) {
        let (name, op) = (request.name(), stream.op_id().map(|id| format!("{id} ")).unwrap_or_default());
        if is_told(&request) {
            log(&format!("{op}{name}"));
        }
        let answer = match request {
            Request::Exec(spec) => return exec::run(spec, &stream, &self.standstill).await,
            Request::Hello(host) => self.hello(host).await,
            Request::Unpack(spec) => {
                let input = stream.blocking_reader(Handle::current());
                blocking(&stream, move || Ok(archive::unpack(&spec, input).map(|()| Reply::Done)?)).await
            }
            Request::CopyIn(spec) if spec.readonly && !self.in_guest => Err(outside()),
            Request::CopyIn(spec) => {
                let input = stream.blocking_reader(Handle::current());
                blocking(&stream, move || Ok(archive::copy_in(&spec, input).map(|()| Reply::Done)?)).await
            }
            Request::Compare(spec) => {
                let input = stream.blocking_reader(Handle::current());
                let output = stream.blocking_writer(Handle::current(), Lane::Out);
                let answer =
                    blocking(&stream, move || Ok(scan::compare(&spec, input, output).map(Reply::Compared)?))
                        .await;
                finish_when_fine(&stream, answer)
            }
            Request::Pack { path } => {
                let output = stream.blocking_writer(Handle::current(), Lane::Out);
                let answer =
                    blocking(&stream, move || Ok(archive::pack(&path, output).map(|()| Reply::Done)?)).await;
                finish_when_fine(&stream, answer)
            }
            Request::Scan(spec) => {
                let input = stream.blocking_reader(Handle::current());
                let output = stream.blocking_writer(Handle::current(), Lane::Out);
                let answer = blocking(&stream, move || {
                    let root = Path::new(spec.root.as_os_str());
                    let output = io::BufWriter::with_capacity(32 * 1024, output);
                    Ok(scan::scan(root, &spec, input, output).map(Reply::Scanned)?)
                })
                .await;
                finish_when_fine(&stream, answer)
            }
            Request::Sync => {
                blocking(&stream, || {
                    boot::sync();
                    Ok(Reply::Done)
                })
                .await
            }
            Request::SetTime { .. }
            | Request::AddEntropy { .. }
            | Request::ConfigureNetwork(_)
            | Request::Protect { .. }
            | Request::Freeze
            | Request::Thaw { .. }
            | Request::Shutdown { .. }
                if !self.in_guest =>
            {
                Err(outside())
            }
            Request::SetTime { unix_ns } => done(boot::set_time(unix_ns)),
            Request::AddEntropy { bytes } => done(boot::add_entropy(&bytes)),
            Request::ConfigureNetwork(config) => {
                blocking(&stream, move || done(boot::configure_network(&config))).await
            }
            Request::Protect { path } => {
                blocking(&stream, move || {
                    let protected = archive::protect(Path::new(path.as_os_str()));
                    protected.map(|()| Reply::Done).map_err(|e| {
                        let path = path.to_string_lossy();
                        Error::new(ErrorCode::GuestFailed, format!("{path} cannot be mounted read-only: {e}"))
                    })
                })
                .await
            }
            Request::Freeze => self.freeze().await,
            Request::Thaw { unix_ns } => {
                let received = Instant::now();
                let clock = move || restored::set_clock(unix_ns, received);
                done(self.standstill.go_on(groups::of_guest(), Onward::Same, clock).await)
            }
            Request::Shutdown { mode } => done(boot::shutdown(mode)),
        };
        if let Err(e) = &answer {
            log(&format!("{op}{name} failed: {e}"));
        }
        let reply = answer.unwrap_or_else(|e| Reply::Error { code: e.code, message: e.message });
        // It fails only when nobody listens any more.
        let _ = stream.reply(&reply).await;
    }
}

impl Agent {
    async fn hello(&self, mut host: HostHello) -> Result<Reply, Error> {
        if host.version.major != VERSION.major {
            let message =
                format!("the guest agent speaks version {VERSION} of the channel, banger {}", host.version);
            return Err(Error::new(ErrorCode::Unsupported, message));
        }
        match (self.in_guest, host.identity.take()) {
            (true, Some(identity)) => self.become_another(host, identity).await?,
            (true, None) => self.greet(host).await?,
            (false, Some(_)) => return Err(outside()),
            (false, None) => {}
        }
        let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Ok(Reply::Hello(AgentHello {
            version: VERSION,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: AgentHello::CAPABILITIES.iter().copied().map(str::to_owned).collect(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            boot_id: boot_id().to_owned(),
            init: boot::init_kind(),
            uptime_ms: u64::try_from(uptime.tv_sec * 1000 + uptime.tv_nsec / 1_000_000).unwrap_or_default(),
            unix_ns: Some(clock_ns()),
        }))
    }
}

impl Agent {
    /// For the host of a guest that is who it was.
    async fn greet(&self, host: HostHello) -> Result<(), Error> {
        let received = Instant::now();
        let was_still = self.standstill.is_still();
        let first = move || {
            if was_still || clock_ns().abs_diff(host.unix_ns) > CLOCK_TOLERANCE_NS {
                restored::set_clock(host.unix_ns, received)?;
            }
            if !host.entropy.is_empty() {
                boot::add_entropy(&host.entropy)?;
            }
            Ok(())
        };
        if was_still {
            // Whoever froze it is gone.
            self.standstill.go_on(groups::of_guest(), Onward::Same, first).await?;
        } else {
            first()?;
        }
        tokio::spawn(async {
            tokio::time::sleep(LATE).await;
            if let Ok(Err(e)) = tokio::task::spawn_blocking(boot::load_late_modules).await {
                log(&e.to_string());
            }
        });
        Ok(())
    }

    /// For the host of a guest that was restored from a copy.
    async fn become_another(&self, host: HostHello, identity: Identity) -> Result<(), Error> {
        let received = Instant::now();
        let (mut remaining, rehearsal) = (None, identity.rehearsal);
        let first = || {
            remaining = Some(restored::take_on(&host, identity, received)?);
            Ok(())
        };
        if rehearsal {
            return self.standstill.rehearse(first).await;
        }
        self.standstill.go_on(groups::of_guest(), Onward::Copy, first).await?;
        if let Some(remaining) = remaining {
            // It may take long, and the next host is not to wait for it.
            tokio::spawn(async move {
                if !remaining.is_awaited() {
                    tokio::time::sleep(LATE).await;
                }
                std::thread::spawn(move || remaining.finish(log));
            });
        }
        Ok(())
    }

    async fn freeze(&self) -> Result<Reply, Error> {
        let groups = groups::of_guest().ok_or_else(|| {
            Error::new(ErrorCode::Unsupported, "the guest's kernel has no control groups to freeze")
        })?;
        // What is loaded and read now need not be in every copy.
        let ahead = || {
            restored::look_ahead();
            boot::load_late_modules()
        };
        if let Ok(Err(e)) = tokio::task::spawn_blocking(ahead).await {
            log(&e.to_string());
        }
        self.standstill.freeze(groups).await?;
        if let Err(e) = restored::take_stock() {
            log(&e.to_string());
        }
        Ok(Reply::Done)
    }
}

/// As the kernel said when it was asked first: it stays for as long as the memory does.
fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    let read = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    ID.get_or_init(|| read().trim_end().to_owned())
}

fn clock_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

fn outside() -> Error {
    Error::new(ErrorCode::Unsupported, "this agent runs outside a VM and leaves the machine as it is")
}

fn done<E: Into<Error>>(outcome: Result<(), E>) -> Result<Reply, Error> {
    outcome.map(|()| Reply::Done).map_err(Into::into)
}

/// The Out lane ends before a good answer; before an error it does not, so that no reader takes what came for all.
fn finish_when_fine(stream: &GuestStream, answer: Result<Reply, Error>) -> Result<Reply, Error> {
    if answer.is_ok() {
        let _ = stream.finish(Lane::Out);
    }
    answer
}

/// Runs what blocks on a thread of the pool. A stream that ends makes its readers and writers there
/// fail, which ends the work.
async fn blocking<F>(stream: &GuestStream, work: F) -> Result<Reply, Error>
where
    F: FnOnce() -> Result<Reply, Error> + Send + 'static,
{
    let answer = tokio::task::spawn_blocking(work).await;
    stream.ignore_input();
    answer.unwrap_or_else(|e| Err(Error::internal(format!("the agent's worker failed: {e}"))))
}
