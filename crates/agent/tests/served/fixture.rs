//! A session with an in-process agent, and commands through it.

use std::path::Path;
use std::time::Duration;

use banger_channel::{Session, StreamEvent, StreamReceiver};
use banger_model::ByteString;
use banger_protocol::agent::frame::{self, Header, Kind, Lane};
use banger_protocol::agent::{ExecSpec, ExitStatus, Reply, Request};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

pub(crate) async fn session() -> Session {
    let (host, guest) = UnixStream::pair().unwrap();
    tokio::spawn(banger_agent::serve_hosted(guest));
    Session::connect(host, [9; 16]).await.unwrap()
}

#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) out: Vec<u8>,
    pub(crate) err: Vec<u8>,
}

pub(crate) fn spec(argv: &[&str], change: impl FnOnce(&mut ExecSpec)) -> ExecSpec {
    let mut spec =
        ExecSpec { cwd: Some("/".into()), op_id: "op-000000000000".into(), ..ExecSpec::plain(argv) };
    change(&mut spec);
    spec
}

pub(crate) async fn exec(s: &Session, argv: &[&str], change: impl FnOnce(&mut ExecSpec)) -> Output {
    let (_sender, receiver) = s.open(&Request::Exec(spec(argv, change))).await.unwrap();
    collect(receiver).await
}

pub(crate) async fn exec_bytes(
    s: &Session,
    argv: Vec<ByteString>,
    change: impl FnOnce(&mut ExecSpec),
) -> Output {
    let mut spec = spec(&[], change);
    spec.argv = argv;
    let (_sender, receiver) = s.open(&Request::Exec(spec)).await.unwrap();
    collect(receiver).await
}

pub(crate) async fn sh(s: &Session, script: &str) -> Output {
    exec(s, &["sh", "-c", script], |_| ()).await
}

pub(crate) async fn collect(mut receiver: StreamReceiver) -> Output {
    let (mut out, mut err, mut status) = (Vec::new(), Vec::new(), None);
    while let Some(event) = receiver.next().await.unwrap() {
        match event {
            StreamEvent::Data(Lane::Err, data) => err.extend_from_slice(&data),
            StreamEvent::Data(_, data) => out.extend_from_slice(&data),
            StreamEvent::Message(Reply::Exited(end)) => status = Some(end),
            StreamEvent::Message(Reply::Started { pid }) => assert!(pid > 0),
            StreamEvent::Message(other) => panic!("{other:?}"),
            StreamEvent::Eof(_) => assert_eq!(status, None, "output after the end"),
        }
    }
    Output { status: status.expect("an exit status"), out, err }
}

/// Collects output until it ends with `mark`.
pub(crate) async fn wait_for(receiver: &mut StreamReceiver, mark: &[u8]) -> Vec<u8> {
    let mut seen = Vec::new();
    let wait = async {
        while !seen.windows(mark.len()).any(|w| w == mark) {
            match receiver.next().await.unwrap() {
                Some(StreamEvent::Data(_, data)) => seen.extend_from_slice(&data),
                Some(StreamEvent::Message(Reply::Started { .. }) | StreamEvent::Eof(Lane::Err)) => {}
                other => panic!("{other:?} instead of {}", mark.escape_ascii()),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the mark in time");
    seen
}

/// Writes a file and makes it executable.
pub(crate) fn executable(path: &Path, contents: &[u8]) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, contents).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

pub(crate) fn alive(pid: &str) -> bool {
    Path::new("/proc").join(pid.trim()).exists()
}

pub(crate) fn kill(pid: &str) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

pub(crate) async fn eventually(mut happened: impl FnMut() -> bool) {
    for _ in 0..200 {
        if happened() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not happen within ten seconds");
}

/// A byte stream that outlives its user: the task gives the inner one back when the user is gone.
pub(crate) fn relay(mut inner: UnixStream) -> (JoinHandle<UnixStream>, UnixStream) {
    let (mut near, far) = UnixStream::pair().unwrap();
    let task = tokio::spawn(async move {
        let (mut from_near, mut to_near) = near.split();
        let (mut from_inner, mut to_inner) = inner.split();
        tokio::select! {
            _ = tokio::io::copy(&mut from_near, &mut to_inner) => {}
            _ = tokio::io::copy(&mut from_inner, &mut to_near) => {}
        }
        inner
    });
    (task, far)
}

/// The first part of a data frame of the session with this nonce.
pub(crate) async fn half_a_frame(io: &mut UnixStream, nonce: [u8; 16]) {
    let header = Header { stream: 1, kind: Kind::Data, lane: Lane::In, len: 5000 };
    io.write_all(&frame::encode_header(frame::token(&nonce), header)).await.unwrap();
    io.write_all(&[b'x'; 1000]).await.unwrap();
}
