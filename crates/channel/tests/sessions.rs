//! Both ends together, over an in-memory byte stream.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use banger_channel::{ChannelError, GuestStream, Handler, Session, StreamEvent, StreamReceiver, serve};
use banger_model::{ByteString, ErrorCode};
use banger_protocol::agent::frame::{
    self, HEADER_LEN, Header, Kind, Lane, MAX_PAYLOAD, SYNC_MAGIC, WINDOW, encode_header, flush_and_sync,
    token, trailer,
};
use banger_protocol::agent::{Control, Reply, Request, ShutdownMode, encode};
use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};

/// Does by the path of a pack request what a test needs.
#[derive(Clone, Default)]
struct Fake {
    /// Streams that were told of their end.
    told: Arc<AtomicUsize>,
}

impl Handler for Fake {
    async fn handle(&self, request: Request, stream: GuestStream) {
        let Request::Pack { path } = request else {
            let _ = stream.reply(&Reply::Done).await;
            return;
        };
        let how = String::from_utf8(path.0).unwrap();
        let end = match how.as_str() {
            "echo" => echo(&stream).await,
            "flood" => loop {
                if let Err(e) = stream.send(Lane::Out, Bytes::from_static(&[7; 4096])).await {
                    break Err(e);
                }
            },
            "fail" => {
                let reply =
                    Reply::Error { code: ErrorCode::NotFound, message: "no\x1b[31m such thing\n".into() };
                stream.reply(&reply).await
            }
            _ => Err(stream.ended().await),
        };
        if end.is_err() {
            self.told.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn echo(stream: &GuestStream) -> Result<(), ChannelError> {
    while let Some(data) = stream.input().await? {
        stream.send(Lane::Out, data).await?;
    }
    stream.finish(Lane::Out)?;
    stream.reply(&Reply::Done).await
}

fn ask(how: &str) -> Request {
    Request::Pack { path: ByteString::from(how) }
}

async fn pair(buffer: usize) -> (Session, Fake) {
    let (host, guest) = duplex(buffer);
    let fake = Fake::default();
    tokio::spawn(serve(guest, fake.clone()));
    (Session::connect(host, [3; 16]).await.unwrap(), fake)
}

async fn drain(mut receiver: StreamReceiver) -> (Vec<u8>, Option<Reply>) {
    let (mut data, mut reply) = (Vec::new(), None);
    while let Some(event) = receiver.next().await.unwrap() {
        match event {
            StreamEvent::Data(_, piece) => data.extend_from_slice(&piece),
            StreamEvent::Message(message) => reply = Some(message),
            StreamEvent::Eof(_) => {}
        }
    }
    (data, reply)
}

fn within<F: Future>(f: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async { tokio::time::timeout(Duration::from_secs(30), f).await.expect("it took too long") })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn payloads_arrive_as_they_were_sent(
        buffer in 1usize..70_000,
        streams in prop::collection::vec(prop::collection::vec(0usize..90_000, 0..8), 1..6),
    ) {
        let buffer = buffer.max(streams.iter().flatten().sum::<usize>() / 2000);
        within(async {
            let (session, _) = pair(buffer).await;
            let all = streams.into_iter().enumerate().map(|(n, pieces)| {
                let session = session.clone();
                tokio::spawn(async move {
                    let (sender, receiver) = session.open(&ask("echo")).await.unwrap();
                    let pieces: Vec<Bytes> = pieces.iter().map(|len| (0..*len).map(|i| (i * 31 + n) as u8).collect()).collect();
                    let feed = async {
                        for piece in &pieces {
                            sender.send(piece.clone()).await.unwrap();
                        }
                        sender.finish().await.unwrap();
                    };
                    let ((), (got, reply)) = tokio::join!(feed, drain(receiver));
                    assert!(got == pieces.concat());
                    assert_eq!(reply, Some(Reply::Done));
                })
            });
            for task in all.collect::<Vec<_>>() {
                task.await.unwrap();
            }
        });
    }

    #[test]
    fn a_hostile_guest_costs_neither_a_panic_nor_the_session_of_another(
        noise in prop::collection::vec((0u32..4, 0u8..9, 0u8..4, prop::collection::vec(any::<u8>(), 0..200)), 0..60),
        tail in prop::collection::vec(any::<u8>(), 0..500),
    ) {
        within(async {
            let (host, mut guest) = duplex(1 << 20);
            tokio::spawn(async move {
                let mut greeting = vec![0; flush_and_sync(&[3; 16]).len()];
                guest.read_exact(&mut greeting).await.unwrap();
                guest.write_all(&frame::ack(&[3; 16])).await.unwrap();
                for (stream, kind, lane, payload) in noise {
                    let header = Header { stream, kind: Kind::Data, lane: Lane::In, len: payload.len() };
                    let mut bytes = encode_header(token(&[3; 16]), header);
                    bytes[8..10].copy_from_slice(&[kind, lane]);
                    let sent = [&bytes[..], &payload, &trailer(token(&[3; 16]))].concat();
                    if guest.write_all(&sent).await.is_err() {
                        return;
                    }
                }
                let _ = guest.write_all(&tail).await;
            });
            let session = Session::connect(host, [3; 16]).await.unwrap();
            if let Ok((_sender, mut receiver)) = session.open(&ask("echo")).await {
                while let Ok(Some(_)) = receiver.next().await {}
            }
            session.closed().await;
        });
    }
}

#[test]
fn a_slow_reader_stalls_its_own_stream_only() {
    within(async {
        let (session, _) = pair(16 * 1024).await;
        // Given a stream whose output nobody takes.
        let (_flood_sender, mut flood) = session.open(&ask("flood")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Then another moves many windows.
        let (sender, receiver) = session.open(&ask("echo")).await.unwrap();
        let feed = async {
            for _ in 0..64 {
                sender.send(Bytes::from(vec![1; MAX_PAYLOAD])).await.unwrap();
            }
            sender.finish().await.unwrap();
        };
        let ((), (got, _)) = tokio::join!(feed, drain(receiver));
        assert_eq!(got.len(), 64 * MAX_PAYLOAD);
        // And the stalled one had sent just its window, and goes on when read.
        let mut taken = 0;
        while taken < 2 * WINDOW as usize {
            let Some(StreamEvent::Data(_, data)) = flood.next().await.unwrap() else { panic!() };
            assert!(data.iter().all(|b| *b == 7));
            taken += data.len();
        }
    });
}

#[test]
fn many_streams_and_calls_at_once() {
    within(async {
        let (session, _) = pair(8 * 1024).await;
        let all: Vec<_> = (0..32)
            .map(|i| {
                let session = session.clone();
                tokio::spawn(async move {
                    assert_eq!(session.call(&Request::Sync).await, Ok(Reply::Done));
                    let (sender, receiver) = session.open(&ask("echo")).await.unwrap();
                    let feed = async {
                        sender.send(Bytes::from(vec![i; 500_000])).await.unwrap();
                        sender.finish().await.unwrap();
                    };
                    let ((), (got, _)) = tokio::join!(feed, drain(receiver));
                    assert!(got == vec![i; 500_000]);
                })
            })
            .collect();
        for task in all {
            task.await.unwrap();
        }
    });
}

#[test]
fn errors_are_the_guests_sentence_without_its_escapes() {
    within(async {
        let (session, _) = pair(8 * 1024).await;
        let Err(ChannelError::Guest { code, message }) = session.call(&ask("fail")).await else { panic!() };
        assert_eq!(code, ErrorCode::NotFound);
        assert_eq!(message, "no\u{fffd}[31m such thing\u{fffd}");
    });
}

#[test]
fn dropping_both_halves_tells_the_guest() {
    within(async {
        let (session, fake) = pair(8 * 1024).await;
        let (sender, receiver) = session.open(&ask("wait")).await.unwrap();
        drop(sender);
        assert_eq!(session.call(&Request::Sync).await, Ok(Reply::Done));
        assert_eq!(fake.told.load(Ordering::SeqCst), 0, "one half is enough to live");
        drop(receiver);
        assert_eq!(session.call(&Request::Sync).await, Ok(Reply::Done));
        assert_eq!(fake.told.load(Ordering::SeqCst), 1);
    });
}

/// Passes bytes on until the near end closes, then gives the far end back, unread bytes and all.
async fn relay(mut near: DuplexStream, mut far: DuplexStream) -> DuplexStream {
    let (mut a, mut b) = tokio::io::split(&mut near);
    let (mut c, mut d) = tokio::io::split(&mut far);
    async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
        let mut buf = [0; 777];
        while let Ok(n @ 1..) = from.read(&mut buf).await {
            if to.write_all(&buf[..n]).await.is_err() {
                break;
            }
        }
    }
    tokio::select! { () = copy(&mut a, &mut d) => {}, () = copy(&mut c, &mut b) => {} }
    far
}

#[test]
fn a_session_is_taken_over_with_leftovers_in_both_directions() {
    within(async {
        // Given a session with a flood towards the host, whose host dies in the middle of frames.
        let (far, guest) = duplex(10_000);
        let fake = Fake::default();
        tokio::spawn(serve(guest, fake.clone()));
        let (near, host) = duplex(10_000);
        let wire = tokio::spawn(relay(near, far));
        let session = Session::connect(host, [3; 16]).await.unwrap();
        let (sender, flood) = session.open(&ask("flood")).await.unwrap();
        let (other, echo) = session.open(&ask("echo")).await.unwrap();
        let _ =
            tokio::time::timeout(Duration::from_millis(50), other.send(Bytes::from(vec![9; 1 << 20]))).await;
        drop((sender, flood, other, echo, session));
        let mut wire = wire.await.unwrap();
        let half = Header { stream: 1, kind: Kind::Message, lane: Lane::In, len: 3000 };
        let old = [&encode_header(token(&[3; 16]), half)[..], &SYNC_MAGIC, &[1; 100]].concat();
        let _ = tokio::time::timeout(Duration::from_millis(100), wire.write_all(&old)).await;
        // When the next takes over.
        let session = Session::connect(wire, [4; 16]).await.unwrap();
        // Then the old streams were ended, and the new session works and sees none of their bytes.
        let (sender, receiver) = session.open(&ask("echo")).await.unwrap();
        sender.send(Bytes::from_static(b"new")).await.unwrap();
        sender.finish().await.unwrap();
        assert_eq!(drain(receiver).await, (b"new".to_vec(), Some(Reply::Done)));
        assert_eq!(fake.told.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn the_end_of_the_byte_stream_ends_everything() {
    within(async {
        let (host, guest) = duplex(100_000);
        let server = tokio::spawn(serve(guest, Fake::default()));
        let session = Session::connect(host, [3; 16]).await.unwrap();
        let (_sender, mut receiver) = session.open(&ask("wait")).await.unwrap();
        server.abort();
        assert!(matches!(receiver.next().await, Err(ChannelError::Closed(_))));
        session.closed().await;
        assert!(session.is_closed());
        assert!(matches!(session.open(&ask("wait")).await, Err(ChannelError::Closed(_))));
    });
}

/// The guest's end by hand, after the handshake.
#[test]
fn a_session_that_is_over_lets_go_of_the_byte_stream() {
    within(async {
        let (session, mut guest) = by_hand().await;
        guest.write_all(&[0x5a; HEADER_LEN]).await.unwrap();
        session.closed().await;
        // The session itself is still there.
        let mut rest = Vec::new();
        guest.read_to_end(&mut rest).await.unwrap();
        assert!(session.is_closed());
    });
}

async fn by_hand() -> (Session, DuplexStream) {
    let (host, mut guest) = duplex(1 << 20);
    let greet = async {
        let mut greeting = vec![0; flush_and_sync(&[3; 16]).len()];
        guest.read_exact(&mut greeting).await.unwrap();
        guest.write_all(&frame::ack(&[3; 16])).await.unwrap();
        guest
    };
    let (session, guest) = tokio::join!(Session::connect(host, [3; 16]), greet);
    (session.unwrap(), guest)
}

fn bytes_of(stream: u32, kind: Kind, lane: Lane, payload: &[u8]) -> Vec<u8> {
    let token = token(&[3; 16]);
    [&encode_header(token, Header { stream, kind, lane, len: payload.len() })[..], payload, &trailer(token)]
        .concat()
}

#[test]
fn a_guest_that_overruns_its_credit_or_floods_messages_loses_the_stream() {
    within(async {
        let done = encode(&Reply::Done).unwrap();
        for (kind, lane, payload, times) in [
            (Kind::Data, Lane::Out, &[0; 1000][..], 300),
            (Kind::Message, Lane::In, &done[..], 100),
            (Kind::Data, Lane::In, b"x", 1),
        ] {
            let (session, mut guest) = by_hand().await;
            let (_sender, mut receiver) = session.open(&ask("x")).await.unwrap();
            for _ in 0..times {
                guest.write_all(&bytes_of(1, kind, lane, payload)).await.unwrap();
            }
            // The reset comes back behind the request.
            let mut seen = Vec::new();
            while !seen.windows(HEADER_LEN + 4).any(|w| w == bytes_of(1, Kind::Reset, Lane::In, b"")) {
                assert_ne!(guest.read_buf(&mut seen).await.unwrap(), 0);
            }
            let end = loop {
                match receiver.next().await {
                    Ok(Some(_)) => {}
                    other => break other,
                }
            };
            assert!(matches!(end, Err(ChannelError::Violation(_))), "{end:?}");
            assert!(!session.is_closed());
        }
    });
}

#[test]
fn single_bytes_do_not_pile_up_as_single_events() {
    within(async {
        let (session, mut guest) = by_hand().await;
        let (_sender, mut receiver) = session.open(&ask("x")).await.unwrap();
        for _ in 0..20_000 {
            guest.write_all(&bytes_of(1, Kind::Data, Lane::Out, b"o")).await.unwrap();
            guest.write_all(&bytes_of(1, Kind::Data, Lane::Err, b"e")).await.unwrap();
        }
        guest.write_all(&bytes_of(1, Kind::Close, Lane::In, b"")).await.unwrap();
        // Let the session take it all in before anybody reads.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (mut events, mut bytes) = (0, [0, 0, 0]);
        while let Some(event) = receiver.next().await.unwrap() {
            let StreamEvent::Data(lane, data) = event else { panic!() };
            events += 1;
            bytes[lane as usize] += data.len();
        }
        assert_eq!(bytes, [0, 20_000, 20_000]);
        assert!(events < 1000, "{events} events");
    });
}

#[test]
fn more_streams_than_fit_are_refused_on_both_sides() {
    within(async {
        let (session, _) = pair(1 << 16).await;
        let mut held = Vec::new();
        for _ in 0..banger_channel::MAX_STREAMS {
            held.push(session.open(&ask("wait")).await.unwrap());
        }
        assert!(matches!(session.open(&ask("wait")).await, Err(ChannelError::TooManyStreams(_))));
        drop(held);
        while session.call(&Request::Sync).await != Ok(Reply::Done) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn messages_and_controls_pass_in_order_within_their_kind() {
    within(async {
        #[derive(Clone)]
        struct Controls;
        impl Handler for Controls {
            async fn handle(&self, _: Request, stream: GuestStream) {
                for expected in 1..=200 {
                    assert_eq!(stream.control().await, Ok(Control::Signal { signal: expected }));
                }
                let _ = stream.reply(&Reply::Done).await;
            }
        }
        let (host, guest) = duplex(1000);
        tokio::spawn(serve(guest, Controls));
        let session = Session::connect(host, [5; 16]).await.unwrap();
        let (sender, receiver) =
            session.open(&Request::Shutdown { mode: ShutdownMode::Reboot }).await.unwrap();
        let feed = async {
            for signal in 1..=200 {
                sender.control(Control::Signal { signal }).await.unwrap();
            }
        };
        let ((), (_, reply)) = tokio::join!(feed, drain(receiver));
        assert_eq!(reply, Some(Reply::Done));
    });
}
