//! The agent channel with a peer that sends anything: the host's end with a hostile guest, and the agent's end, which
//! may find the rest of an old session before the new one. Both come to an end when the byte stream does.
#![no_main]

mod seeds;

use banger_channel::{GuestStream, Handler, Session, serve};
use banger_model::ErrorCode;
use banger_protocol::agent::frame::{
    HEADER_LEN, Header, Kind, Lane, MAX_PAYLOAD, Nonce, ack, decode_header, encode_header, flush_and_sync,
    token, trailer,
};
use banger_protocol::agent::scan::{
    RECORD_HEADER_LEN, decode_header as decode_record, encode_header as encode_record,
};
use banger_protocol::agent::{ExecSpec, Reply, Request, ScanSpec};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const NONCE: Nonce = *b"0123456789abcdef";

#[derive(Debug, Arbitrary)]
enum Input {
    Raw(Vec<u8>),
    Session { before: Vec<u8>, pieces: Vec<Piece> },
}

#[derive(Debug, Arbitrary)]
enum Piece {
    Raw(Vec<u8>),
    Frame { stream: u8, kind: u8, lane: u8, payload: Vec<u8>, is_broken: bool },
    Reply { stream: u8, which: u8, text: String },
    Large { stream: u8, lane: u8 },
}

fn frame(stream: u8, kind: Kind, lane: u8, payload: &[u8]) -> Vec<u8> {
    let lane = [Lane::In, Lane::Out, Lane::Err][usize::from(lane % 3)];
    let payload = &payload[..payload.len().min(MAX_PAYLOAD)];
    let header = Header { stream: u32::from(stream % 8), kind, lane, len: payload.len() };
    [&encode_header(token(&NONCE), header)[..], payload, &trailer(token(&NONCE))].concat()
}

/// What there is before a session, and in it.
fn bytes(input: &Input) -> (&[u8], Vec<u8>) {
    let (before, pieces) = match input {
        Input::Raw(raw) => return (&[], raw.clone()),
        Input::Session { before, pieces } => (before, pieces),
    };
    let mut all = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Raw(raw) => all.extend_from_slice(raw),
            Piece::Frame { stream, kind, lane, payload, is_broken } => {
                let kinds = [
                    Kind::Open,
                    Kind::Message,
                    Kind::Data,
                    Kind::Eof,
                    Kind::Credit,
                    Kind::Reset,
                    Kind::Close,
                ];
                let mut made = frame(*stream, kinds[usize::from(kind % 7)], *lane, payload);
                if *is_broken && let Some(byte) = made.get_mut(usize::from(*lane) % HEADER_LEN) {
                    *byte ^= 1 << (kind % 8);
                }
                all.extend(made);
            }
            Piece::Reply { stream, which, text } => {
                let reply = match which % 3 {
                    0 => Reply::Done,
                    1 => Reply::Started { pid: u32::from(*which) },
                    _ => Reply::Error { code: ErrorCode::Internal, message: text.clone() },
                };
                if let Ok(payload) = banger_protocol::agent::encode(&reply) {
                    all.extend(frame(*stream, Kind::Message, 0, &payload));
                }
            }
            Piece::Large { stream, lane } => all.extend(frame(*stream, Kind::Data, *lane, &[7; MAX_PAYLOAD])),
        }
    }
    (before, all)
}

/// Both sides of a short session, as they are said.
fn seeds() -> Vec<Vec<u8>> {
    /// What goes one way, written down.
    async fn carry(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin) -> Vec<u8> {
        let (mut said, mut buffer) = (Vec::new(), vec![0; 4096]);
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            said.extend_from_slice(&buffer[..n]);
            if to.write_all(&buffer[..n]).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
        said
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (asked, answered) = runtime.block_on(async {
        let ((ours, near), (far, theirs)) = (tokio::io::duplex(1 << 16), tokio::io::duplex(1 << 16));
        let ((near_from, near_to), (far_from, far_to)) = (tokio::io::split(near), tokio::io::split(far));
        let host = async {
            let session = Session::connect(ours, NONCE).await.unwrap();
            let scan =
                ScanSpec { root: "/w".into(), object_format: "sha1".into(), max_bytes: 1, ticks: true };
            let (sender, receiver) = session.open(&Request::Scan(scan)).await.unwrap();
            let mut writer = sender.writer();
            writer.write_all(b"100644 blob 0123456789012345678901234567890123456789\ta\0").await.unwrap();
            writer.shutdown().await.unwrap();
            receiver.reader().reply().await.unwrap();
            let (sender, receiver) = session.open(&Request::Sync).await.unwrap();
            sender.finish().await.unwrap();
            receiver.reader().reply().await.unwrap();
            // The last: it is longer than inputs are kept.
            let long = Request::Exec(ExecSpec::plain(&["true", &"x".repeat(MAX_PAYLOAD)]));
            let (sender, receiver) = session.open(&long).await.unwrap();
            sender.send("stdin".into()).await.unwrap();
            sender.finish().await.unwrap();
            receiver.reader().reply().await.unwrap();
        };
        let agent = tokio::time::timeout(std::time::Duration::from_secs(5), serve(theirs, Reader));
        let (asked, answered, (), _) =
            tokio::join!(carry(near_from, far_to), carry(far_from, near_to), host, agent);
        (asked, answered)
    });
    let after = |said: &[u8], start: &[u8]| said.strip_prefix(start).unwrap_or(said).to_vec();
    vec![after(&asked, &flush_and_sync(&NONCE)), after(&answered, &ack(&NONCE)), asked, answered]
}

/// Reads what it is sent and says it is done.
#[derive(Clone)]
struct Reader;

impl Handler for Reader {
    async fn handle(&self, _request: Request, stream: GuestStream) {
        while let Ok(Some(_)) = stream.input().await {}
        let _ = stream.reply(&Reply::Done).await;
    }
}

async fn host(bytes: &[u8], before: &[u8]) {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (mut from, mut to) = tokio::io::split(theirs);
    let guest = async {
        let _ = to.write_all(before).await;
        let _ = to.write_all(&ack(&NONCE)).await;
        let _ = to.write_all(bytes).await;
        let _ = to.shutdown().await;
    };
    let drain = async {
        let mut sink = vec![0; 1 << 16];
        while matches!(from.read(&mut sink).await, Ok(n) if n > 0) {}
    };
    let work = async {
        let Ok(session) = Session::connect(ours, NONCE).await else { return };
        let scan = ScanSpec { root: "/w".into(), object_format: "sha1".into(), max_bytes: 1, ticks: true };
        let (Ok((_a, mut events)), Ok((_b, reader))) =
            (session.open(&Request::Scan(scan)).await, session.open(&Request::Sync).await)
        else {
            return;
        };
        let plain = async {
            let mut reader = reader.reader();
            let mut all = Vec::new();
            let _ = (&mut reader).take(1 << 22).read_to_end(&mut all).await;
            let _ = reader.reply().await;
        };
        tokio::join!(async { while let Ok(Some(_)) = events.next().await {} }, plain);
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(guest, work) } => {}
        () = async { drain.await; std::future::pending().await } => {}
    }
}

async fn agent(bytes: &[u8], before: &[u8]) {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (mut from, mut to) = tokio::io::split(theirs);
    let host = async {
        let _ = to.write_all(before).await;
        let _ = to.write_all(&flush_and_sync(&NONCE)).await;
        let _ = to.write_all(bytes).await;
        let _ = to.shutdown().await;
        let mut sink = vec![0; 1 << 16];
        while matches!(from.read(&mut sink).await, Ok(n) if n > 0) {}
    };
    let (_, _) = tokio::join!(host, serve(ours, Reader));
}

fuzz_target!(init: seeds::write(seeds), |input: Input| {
    let (before, all) = bytes(&input);
    if let Some(header) = all.first_chunk::<HEADER_LEN>()
        && let Ok(read) = decode_header(token(&NONCE), header)
    {
        assert_eq!(encode_header(token(&NONCE), read), *header);
    }
    if let Some(header) = all.first_chunk::<RECORD_HEADER_LEN>()
        && let Ok(read) = decode_record(header)
    {
        assert_eq!(encode_record(read), *header);
    }
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
    runtime.block_on(async {
        host(&all, before).await;
        agent(&all, before).await;
    });
});
