//! Peers of other versions: what the first release wrote is understood, what it would not understand is not sent, and a
//! peer of another major version is refused.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_channel::{ChannelError, GuestStream, Handler, Session, StreamEvent, serve};
use banger_model::ErrorCode;
use banger_protocol::ProtocolVersion;
use banger_protocol::agent::frame::{
    HEADER_LEN, Header, Kind, Lane, NONCE_LEN, Nonce, SYNC_MAGIC, TRAILER_LEN, decode_header, flush_and_sync,
    token,
};
use banger_protocol::agent::{
    AgentHello, ExecSpec, ExitStatus, Identity, InitKind, Reply, Request, ScanSpec, ShutdownMode, VERSION,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// The nonce of the sessions in the golden files.
const NONCE: Nonce = *b"0123456789abcdef";

/// What one side of protocol 1.0 wrote; never changed afterwards.
fn golden(side: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/tests/golden");
    std::fs::read(dir.join(format!("agent-1.0.{side}.bin"))).unwrap()
}

/// Frames with their headers, as bytes.
fn frames(mut bytes: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some(head) = bytes.first_chunk::<HEADER_LEN>() {
        let header = decode_header(token(&NONCE), head).unwrap();
        let (frame, rest) = bytes.split_at(HEADER_LEN + header.len + TRAILER_LEN);
        all.push((header, frame.to_vec()));
        bytes = rest;
    }
    all
}

fn within<F: Future>(f: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async { tokio::time::timeout(Duration::from_secs(30), f).await.expect("it took too long") })
}

/// An agent of the first release: it answers the streams that its golden session had with the very bytes of then.
async fn agent_of_then(mut io: DuplexStream) {
    let said = golden("guest");
    let (ack, answers) = said.split_at(SYNC_MAGIC.len() + NONCE_LEN);
    let mut greeting = vec![0; flush_and_sync(&NONCE).len()];
    io.read_exact(&mut greeting).await.unwrap();
    assert_eq!(greeting, flush_and_sync(&NONCE), "the handshake of then");
    io.write_all(ack).await.unwrap();
    let answers = frames(answers);
    loop {
        let mut head = [0; HEADER_LEN];
        if io.read_exact(&mut head).await.is_err() {
            return;
        }
        let asked = decode_header(token(&NONCE), &head).unwrap();
        let mut rest = vec![0; asked.len + TRAILER_LEN];
        io.read_exact(&mut rest).await.unwrap();
        // The command of stream 3 gave credit for its stdin.
        let due = if asked.stream == 3 { Kind::Data } else { Kind::Open };
        if asked.kind == due {
            for (_, frame) in answers.iter().filter(|(header, _)| header.stream == asked.stream) {
                io.write_all(frame).await.unwrap();
            }
        }
    }
}

fn exec() -> Request {
    Request::Exec(ExecSpec::plain(&["true"]))
}

/// The requests of the golden session.
fn first_requests() -> Vec<Request> {
    let said = golden("host");
    let opens = frames(said.get(flush_and_sync(&NONCE).len()..).unwrap());
    opens
        .iter()
        .filter(|(header, _)| header.kind == Kind::Open)
        .map(|(header, frame)| {
            banger_protocol::agent::decode(frame.get(HEADER_LEN..HEADER_LEN + header.len).unwrap()).unwrap()
        })
        .collect()
}

#[test]
fn an_agent_of_the_first_release_is_understood() {
    within(async {
        let (host, guest) = duplex(1 << 20);
        tokio::spawn(agent_of_then(guest));
        // When we begin a session with it
        let session = Session::connect(host, NONCE).await.unwrap();
        let agent = session.hello(1, vec![7; 64], None).await.unwrap();
        // Then it is what it said it is
        assert_eq!(agent.version, ProtocolVersion { major: 1, minor: 0 });
        assert_eq!((agent.agent.as_str(), agent.init), ("0.1.0", InitKind::Image));
        assert_eq!(agent.kernel, "6.1.0-41-cloud-amd64");

        // And a command runs as it ever did
        let (sender, mut receiver) = session.open(&exec()).await.unwrap();
        sender.send("stdin\n".into()).await.unwrap();
        let mut events = Vec::new();
        while let Some(event) = receiver.next().await.unwrap() {
            events.push(event);
        }
        let ended = |status| StreamEvent::Message(Reply::Exited(status));
        assert_eq!(
            events,
            [
                StreamEvent::Message(Reply::Started { pid: 321 }),
                StreamEvent::Data(Lane::Out, "out\n".into()),
                StreamEvent::Data(Lane::Err, "err\n".into()),
                StreamEvent::Eof(Lane::Out),
                StreamEvent::Eof(Lane::Err),
                ended(ExitStatus::Code(3)),
                ended(ExitStatus::Signal(9)),
                ended(ExitStatus::NotFound("no such program".into())),
                ended(ExitStatus::NotExecutable("is a directory".into())),
            ]
        );

        // And so do copies (stream 7), after a command that nobody waited for (5)
        drop(session.open(&exec()).await.unwrap());
        let unpack = first_requests().into_iter().find(|r| matches!(r, Request::Unpack(_))).unwrap();
        let (_sender, mut receiver) = session.open(&unpack).await.unwrap();
        assert_eq!(receiver.next().await.unwrap(), Some(StreamEvent::Message(Reply::Done)));
        // And scans (11), after a pack (9)
        drop(session.open(&Request::Pack { path: "/x".into() }).await.unwrap());
        let scan = first_requests().into_iter().find(|r| matches!(r, Request::Scan(_))).unwrap();
        let (_sender, mut receiver) = session.open(&scan).await.unwrap();
        let Some(StreamEvent::Message(Reply::Scanned(summary))) = receiver.next().await.unwrap() else {
            panic!("no summary")
        };
        assert_eq!((summary.records, summary.bytes), (2, 5));
        assert_eq!((summary.repositories, summary.some_repositories), (0, Vec::new()), "not known then");
        let Some(StreamEvent::Data(Lane::Out, records)) = receiver.next().await.unwrap() else {
            panic!("no records")
        };
        assert!(records.starts_with(b"P"));
        // And a refusal is one (13)
        let error = session.call(&Request::SetTime { unix_ns: 1 }).await.unwrap_err();
        assert!(matches!(&error, ChannelError::Guest { code: ErrorCode::Unsupported, .. }), "{error:?}");
    });
}

/// Notes what it is asked, and answers a hello as an agent of some version.
#[derive(Clone)]
struct Agent {
    asked: Arc<Mutex<Vec<Request>>>,
    version: ProtocolVersion,
    knows: &'static [&'static str],
}

impl Agent {
    fn new(major: u16, minor: u16, knows: &'static [&'static str]) -> Self {
        Self { asked: Arc::default(), version: ProtocolVersion { major, minor }, knows }
    }

    fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    async fn greeted(&self) -> (Session, Result<AgentHello, ChannelError>) {
        let (host, guest) = duplex(1 << 16);
        tokio::spawn(serve(guest, self.clone()));
        let session = Session::connect(host, NONCE).await.unwrap();
        let hello = session.hello(0, Vec::new(), None).await;
        (session, hello)
    }
}

impl Handler for Agent {
    async fn handle(&self, request: Request, stream: GuestStream) {
        let reply = match &request {
            Request::Hello(_) => Reply::Hello(AgentHello {
                version: self.version,
                agent: "0.9.9".into(),
                capabilities: self.knows.iter().copied().map(str::to_owned).collect(),
                kernel: "6.1".into(),
                boot_id: "b".into(),
                init: InitKind::Agent,
                uptime_ms: 1,
                unix_ns: None,
            }),
            _ => Reply::Done,
        };
        self.asked.lock().unwrap().push(request);
        let _ = stream.reply(&reply).await;
    }
}

#[test]
fn what_a_daemon_of_the_first_release_says_is_understood_by_an_agent() {
    within(async {
        let agent = Agent::new(VERSION.major, VERSION.minor, AgentHello::CAPABILITIES);
        let (mut host, guest) = duplex(1 << 20);
        let serving = tokio::spawn(serve(guest, agent.clone()));
        host.write_all(&golden("host")).await.unwrap();
        let mut said = Vec::new();
        while agent.asked().len() < 12 {
            host.read_buf(&mut said).await.unwrap();
        }
        drop(host);
        let _ = serving.await.unwrap();
        // It answers the handshake with the bytes of then, and has got every request.
        let ack = SYNC_MAGIC.len() + NONCE_LEN;
        assert_eq!(said.get(..ack), golden("guest").get(..ack));
        let asked = agent.asked();
        assert!(
            matches!(&asked[0], Request::Hello(host) if host.version.minor == 0 && host.entropy.len() == 64)
        );
        assert!(matches!(&asked[1], Request::Exec(spec)
            if spec.argv[1].0 == b"\xff\n" && spec.tty.is_some() && spec.user.as_deref() == Some("nobody")));
        assert!(matches!(&asked[2], Request::Exec(spec) if spec.argv.is_empty() && spec.cwd.is_none()));
        assert!(
            matches!(&asked[3], Request::Unpack(spec) if spec.must_be_empty && spec.dest.0 == b"/root/repo")
        );
        assert!(matches!(&asked[4], Request::Pack { path } if path.0 == b"/root/repo/.git"));
        assert!(
            matches!(&asked[5], Request::Scan(ScanSpec { object_format, .. }) if object_format == "sha1")
        );
        assert!(matches!(&asked[6], Request::SetTime { .. }));
        assert!(matches!(&asked[7], Request::AddEntropy { bytes } if bytes == &[1, 2, 3]));
        assert!(matches!(&asked[8], Request::ConfigureNetwork(config) if config.address == "10.0.2.15/24"));
        assert!(matches!(&asked[9], Request::Sync));
        assert!(matches!(&asked[10], Request::Shutdown { mode: ShutdownMode::PowerOff }));
        assert!(matches!(&asked[11], Request::Shutdown { mode: ShutdownMode::Reboot }));
    });
}

#[test]
fn an_agent_is_asked_for_nothing_that_it_did_not_announce() {
    within(async {
        // Given an agent that runs commands and cannot do anything else
        let agent = Agent::new(VERSION.major, 0, &["hello", "exec"]);
        let (session, hello) = agent.greeted().await;
        assert_eq!(hello.unwrap().version.minor, 0);
        // When it is asked for both, and for a command that is longer than a frame
        session.call(&exec()).await.unwrap();
        let long = Request::Exec(ExecSpec::plain(&["echo", &"x".repeat(100_000)]));
        for (request, name) in [(Request::Sync, "sync"), (long, "long_requests")] {
            let error = session.call(&request).await.unwrap_err();
            // Then what it does not know is refused here, with what to do about it, and never sent
            assert_eq!(error, ChannelError::TooOld { request: name, agent: "0.9.9".into() });
            let error: banger_model::Error = error.into();
            assert_eq!(error.code, ErrorCode::Unsupported);
            assert!(error.hint.unwrap().contains("restart"));
        }
        assert_eq!(agent.asked().iter().map(Request::name).collect::<Vec<_>>(), ["hello", "exec"]);
        // And the session goes on
        session.call(&exec()).await.unwrap();
    });
}

#[test]
fn a_restored_guest_whose_agent_took_no_notice_of_its_identity_is_refused() {
    within(async {
        let identity =
            Identity { hostname: "calm-otter".into(), machine_id: None, network: None, rehearsal: false };
        for (knows, fine) in [(&["hello", "exec"][..], false), (AgentHello::CAPABILITIES, true)] {
            let agent = Agent::new(VERSION.major, 1, knows);
            let (host, guest) = duplex(1 << 16);
            tokio::spawn(serve(guest, agent.clone()));
            let session = Session::connect(host, NONCE).await.unwrap();
            let answer = session.hello(0, Vec::new(), Some(identity.clone())).await;
            assert_eq!(answer.is_ok(), fine, "{answer:?}");
            assert!(
                matches!(&agent.asked()[0], Request::Hello(host) if host.identity.as_ref() == Some(&identity))
            );
        }
    });
}

#[test]
fn an_agent_of_a_newer_minor_version_is_spoken_to_and_one_of_another_major_is_refused() {
    within(async {
        let (session, hello) =
            Agent::new(VERSION.major, VERSION.minor + 7, AgentHello::CAPABILITIES).greeted().await;
        assert_eq!(hello.unwrap().version.minor, VERSION.minor + 7);
        session.call(&Request::Sync).await.unwrap();
        for major in [VERSION.major + 1, VERSION.major - 1] {
            let (_session, hello) = Agent::new(major, 0, AgentHello::CAPABILITIES).greeted().await;
            let error: banger_model::Error = hello.unwrap_err().into();
            assert_eq!(error.code, ErrorCode::Unsupported);
            assert!(error.message.contains(&format!("protocol {major}.0")), "{error}");
            assert!(error.hint.unwrap().contains("restart"));
        }
    });
}

/// An agent that refuses the host's version itself, as ours does.
#[derive(Clone)]
struct Refuses;

impl Handler for Refuses {
    async fn handle(&self, _: Request, stream: GuestStream) {
        let message = "the guest agent speaks version 2.0 of the channel, banger 1.1".to_owned();
        let _ = stream.reply(&Reply::Error { code: ErrorCode::Unsupported, message }).await;
    }
}

#[test]
fn an_agent_that_refuses_us_is_reported_with_what_to_do() {
    within(async {
        let (host, guest) = duplex(1 << 16);
        tokio::spawn(serve(guest, Refuses));
        let session = Session::connect(host, NONCE).await.unwrap();
        let error = session.hello(0, Vec::new(), None).await.unwrap_err();
        assert!(
            matches!(&error, ChannelError::Incompatible(message) if message.contains("2.0")),
            "{error:?}"
        );
        assert!(banger_model::Error::from(error).hint.is_some());
    });
}

#[test]
fn requests_have_the_names_they_have_on_the_wire() {
    let names: Vec<&str> = first_requests().iter().map(Request::name).collect();
    for (request, name) in first_requests().iter().zip(&names) {
        let bytes = banger_protocol::agent::encode(request).unwrap();
        assert!(bytes.windows(name.len()).any(|w| w == name.as_bytes()), "{name}");
        assert!(AgentHello::CAPABILITIES.contains(name));
    }
    // All of the first release are still there.
    let AgentHello { capabilities, .. } = hello_of_then();
    for name in capabilities {
        assert!(AgentHello::CAPABILITIES.contains(&name.as_str()), "{name}");
    }
}

fn hello_of_then() -> AgentHello {
    let said = golden("guest");
    let (header, frame) = frames(said.get(SYNC_MAGIC.len() + NONCE_LEN..).unwrap()).remove(0);
    match banger_protocol::agent::decode(frame.get(HEADER_LEN..HEADER_LEN + header.len).unwrap()).unwrap() {
        Reply::Hello(hello) => hello,
        other => panic!("{other:?}"),
    }
}
