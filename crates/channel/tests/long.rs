//! Requests that are longer than a frame: whole, apart from the bytes behind them, and with peers that lie about them.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_channel::{ChannelError, GuestStream, Handler, Session, StreamEvent, serve};
use banger_model::{ByteString, ErrorCode, OpId};
use banger_protocol::agent::frame::{
    self, HEADER_LEN, Header, Kind, Lane, MAX_PAYLOAD, TRAILER_LEN, WINDOW, decode_header, encode_header,
    flush_and_sync, token, trailer,
};
use banger_protocol::agent::{
    ExecSpec, MAX_OPENING, Reply, Request, decode, encode, encode_long, encode_opening,
};
use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// A request, and the operation it is part of.
type Asked = (Request, Option<OpId>);

/// Notes what it is asked, and sends its input back.
#[derive(Clone, Default)]
struct Echo {
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Handler for Echo {
    async fn handle(&self, request: Request, stream: GuestStream) {
        self.asked.lock().unwrap().push((request, stream.op_id().cloned()));
        while let Ok(Some(data)) = stream.input().await {
            let _ = stream.send(Lane::Out, data).await;
        }
        let _ = stream.reply(&Reply::Done).await;
    }
}

fn within<F: Future>(f: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async { tokio::time::timeout(Duration::from_secs(30), f).await.expect("it took too long") })
}

/// Bytes that are not the same anywhere near.
fn noise(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + seed) ^ (i >> 8)) as u8).collect()
}

fn exec(words: Vec<ByteString>) -> Request {
    let mut spec = ExecSpec::plain(&[]);
    spec.argv = words;
    Request::Exec(spec)
}

/// A request of exactly this many bytes in its opening.
fn of_size(size: usize) -> Request {
    let made = |word, filler: usize| {
        let mut spec = ExecSpec::plain(&[]);
        (spec.argv, spec.op_id) = (vec![ByteString(noise(word, 1))], "x".repeat(filler));
        Request::Exec(spec)
    };
    let len = |request: &Request| encode_opening(request, None).unwrap().len();
    let word = size - (len(&made(size, 0)) - size);
    // A word's own length may have become shorter with it.
    let request = made(word, size - len(&made(word, 0)));
    assert_eq!(len(&request), size);
    request
}

fn bytes_of(stream: u32, kind: Kind, lane: Lane, payload: &[u8]) -> Vec<u8> {
    let token = token(&[3; 16]);
    [&encode_header(token, Header { stream, kind, lane, len: payload.len() })[..], payload, &trailer(token)]
        .concat()
}

async fn next_frame(io: &mut DuplexStream) -> (Header, Vec<u8>) {
    let mut head = [0; HEADER_LEN];
    io.read_exact(&mut head).await.unwrap();
    let header = decode_header(token(&[3; 16]), &head).unwrap();
    let mut rest = vec![0; header.len + TRAILER_LEN];
    io.read_exact(&mut rest).await.unwrap();
    rest.truncate(header.len);
    (header, rest)
}

/// What a request and the input behind it come back as.
async fn round_trip(session: &Session, request: &Request, input: &[Vec<u8>]) -> Vec<u8> {
    let (sender, mut receiver) = session.open(request).await.unwrap();
    let feed = async {
        for piece in input {
            sender.send(Bytes::from(piece.clone())).await.unwrap();
        }
        sender.finish().await.unwrap();
    };
    let read = async {
        let mut all = Vec::new();
        while let Some(event) = receiver.next().await.unwrap() {
            match event {
                StreamEvent::Data(_, data) => all.extend_from_slice(&data),
                StreamEvent::Message(reply) => assert_eq!(reply, Reply::Done),
                StreamEvent::Eof(_) => {}
            }
        }
        all
    };
    tokio::join!(feed, read).1
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_long_request_and_the_bytes_behind_it_arrive_apart(
        buffer in 1000usize..90_000,
        words in prop::collection::vec(0usize..300_000, 0..8),
        input in prop::collection::vec(0usize..90_000, 0..4),
    ) {
        within(async {
            let (host, guest) = duplex(buffer);
            let echo = Echo::default();
            tokio::spawn(serve(guest, echo.clone()));
            let op: OpId = OpId::from_random([7; 6]);
            let session = Session::connect(host, [3; 16]).await.unwrap().for_operation(&op);
            let request = exec(words.iter().enumerate().map(|(n, len)| ByteString(noise(*len, n))).collect());
            let input: Vec<_> = input.iter().enumerate().map(|(n, len)| noise(*len, n)).collect();
            assert!(round_trip(&session, &request, &input).await == input.concat());
            let asked = std::mem::take(&mut *echo.asked.lock().unwrap());
            assert!(asked == [(request, Some(op))]);
        });
    }
}

#[test]
fn requests_of_every_size_near_a_border_arrive() {
    within(async {
        let (host, guest) = duplex(100_000);
        let echo = Echo::default();
        tokio::spawn(serve(guest, echo.clone()));
        let session = Session::connect(host, [3; 16]).await.unwrap();
        let borders = [MAX_PAYLOAD, 2 * MAX_PAYLOAD, WINDOW as usize, WINDOW as usize + MAX_PAYLOAD];
        let sizes = borders.into_iter().flat_map(|b| [b - 1, b, b + 1]).chain([MAX_OPENING - 1, MAX_OPENING]);
        for size in sizes {
            let request = of_size(size);
            assert_eq!(round_trip(&session, &request, &[b"in".to_vec()]).await, b"in", "{size}");
            assert!(echo.asked.lock().unwrap().pop() == Some((request, None)), "{size}");
        }
        let error = session.open(&of_size(MAX_OPENING + 1)).await.unwrap_err();
        assert_eq!(error, ChannelError::TooLong { size: MAX_OPENING + 1, max: MAX_OPENING });
        assert!(echo.asked.lock().unwrap().is_empty());
    });
}

/// An agent and its host by hand, after the handshake.
async fn agent(echo: &Echo) -> DuplexStream {
    let (mut host, guest) = duplex(1 << 20);
    tokio::spawn(serve(guest, echo.clone()));
    host.write_all(&flush_and_sync(&[3; 16])).await.unwrap();
    let mut ack = vec![0; frame::ack(&[3; 16]).len()];
    host.read_exact(&mut ack).await.unwrap();
    host
}

#[test]
fn an_agent_finds_the_border_wherever_the_frames_are_cut() {
    within(async {
        let echo = Echo::default();
        let mut host = agent(&echo).await;
        let request = encode(&exec(vec!["a".into(), "bc".into()])).unwrap();
        let both = [&request[..], b"input"].concat();
        for (n, cut) in (1..both.len()).enumerate() {
            // Given frames that end anywhere, also in the middle of what belongs together
            let id = 2 * n as u32 + 1;
            let announced = encode_long(request.len()).unwrap();
            host.write_all(&bytes_of(id, Kind::Open, Lane::In, &announced)).await.unwrap();
            for piece in [&both[..cut], &both[cut..]] {
                host.write_all(&bytes_of(id, Kind::Data, Lane::In, piece)).await.unwrap();
            }
            host.write_all(&bytes_of(id, Kind::Eof, Lane::In, b"")).await.unwrap();
            // Then the input is what stood behind the request
            let mut got = Vec::new();
            loop {
                match next_frame(&mut host).await {
                    (Header { kind: Kind::Data, lane: Lane::Out, .. }, data) => got.extend(data),
                    (Header { kind: Kind::Close, .. }, _) => break,
                    (header, payload) => {
                        assert_eq!(header.kind, Kind::Message);
                        assert_eq!(decode::<Reply>(&payload).unwrap(), Reply::Done);
                    }
                }
            }
            assert_eq!(got, b"input", "cut at {cut}");
            assert_eq!(echo.asked.lock().unwrap().pop(), Some((decode(&request).unwrap(), None)));
        }
    });
}

#[test]
fn an_agent_refuses_a_request_whose_length_is_a_lie_and_serves_on() {
    within(async {
        let echo = Echo::default();
        let mut host = agent(&echo).await;
        let request = encode(&Request::Sync).unwrap();
        let nested = encode_long(9).unwrap();
        let lies: [(usize, &[u8], ErrorCode); 6] = [
            (request.len() - 1, &request, ErrorCode::Unsupported),
            (0, &request, ErrorCode::Unsupported),
            (nested.len(), &nested, ErrorCode::Unsupported),
            (request.len() + 1, &request, ErrorCode::InvalidArgument),
            (MAX_OPENING + 1, &request, ErrorCode::InvalidArgument),
            (usize::MAX, &request, ErrorCode::InvalidArgument),
        ];
        for (n, (length, said, expected)) in lies.into_iter().enumerate() {
            let id = 2 * n as u32 + 1;
            let announced = encode_long(length).unwrap();
            host.write_all(&bytes_of(id, Kind::Open, Lane::In, &announced)).await.unwrap();
            host.write_all(&bytes_of(id, Kind::Data, Lane::In, said)).await.unwrap();
            host.write_all(&bytes_of(id, Kind::Eof, Lane::In, b"")).await.unwrap();
            let (header, payload) = next_frame(&mut host).await;
            assert_eq!((header.stream, header.kind), (id, Kind::Reset), "{length}");
            let Reply::Error { code, .. } = decode(&payload).unwrap() else { unreachable!() };
            assert_eq!(code, expected, "{length}");
        }
        assert!(echo.asked.lock().unwrap().is_empty(), "a handler saw a request that was none");
        host.write_all(&bytes_of(99, Kind::Open, Lane::In, &request)).await.unwrap();
        host.write_all(&bytes_of(99, Kind::Eof, Lane::In, b"")).await.unwrap();
        assert_eq!(next_frame(&mut host).await.0.kind, Kind::Message);
    });
}

#[test]
fn a_guest_that_takes_no_long_request_costs_its_own_stream_only() {
    within(async {
        let refusal = encode(&Reply::Error { code: ErrorCode::Busy, message: "not\nnow".into() }).unwrap();
        let refused = ChannelError::Guest { code: ErrorCode::Busy, message: "not\u{fffd}now".into() };
        let rule = ChannelError::Violation("credit for data that was never sent");
        let answers: [(Kind, &[u8], Option<ChannelError>); 4] = [
            (Kind::Reset, &refusal, Some(refused)),
            (Kind::Close, b"", Some(ChannelError::Ended)),
            (Kind::Credit, &u32::MAX.to_le_bytes(), Some(rule)),
            // No credit, for ever.
            (Kind::Credit, &0u32.to_le_bytes(), None),
        ];
        for (kind, payload, expected) in answers {
            let (host, mut guest) = duplex(1 << 20);
            let greet = async {
                let mut greeting = vec![0; flush_and_sync(&[3; 16]).len()];
                guest.read_exact(&mut greeting).await.unwrap();
                guest.write_all(&frame::ack(&[3; 16])).await.unwrap();
                guest
            };
            let (session, mut guest) = tokio::join!(Session::connect(host, [3; 16]), greet);
            let session = session.unwrap();
            let request = of_size(1 << 20);
            let take = async {
                // The announcement first, then one window and no more.
                assert_eq!(next_frame(&mut guest).await.0.kind, Kind::Open);
                let mut taken = 0;
                while taken < WINDOW as usize {
                    taken += next_frame(&mut guest).await.0.len;
                }
                guest.write_all(&bytes_of(1, kind, Lane::In, payload)).await.unwrap();
            };
            if let Some(expected) = expected {
                let (opened, ()) = tokio::join!(session.open(&request), take);
                assert_eq!(opened.unwrap_err(), expected);
            } else {
                // Whoever asked stops waiting: the guest is told.
                tokio::select! {
                    opened = session.open(&request) => assert!(opened.is_err(), "nobody has taken it"),
                    () = take => {}
                }
                let (header, _) = next_frame(&mut guest).await;
                assert_eq!((header.stream, header.kind), (1, Kind::Reset));
            }
            assert!(!session.is_closed());
        }
    });
}
