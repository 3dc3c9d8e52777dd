//! Firecracker's API with a server that sends anything: every answer is taken or refused in bounded memory, an end of
//! the stream is an end of the call, and what an error says is one short line that no terminal acts on.
#![no_main]

mod seeds;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[derive(Debug, Arbitrary)]
enum Input {
    Raw(Vec<u8>),
    /// A head that makes sense, with any body.
    Answer {
        status: u16,
        length: Option<u32>,
        body: Vec<u8>,
    },
    /// A body in pieces.
    Chunked {
        status: u16,
        pieces: Vec<Vec<u8>>,
        is_ended: bool,
    },
    /// A refusal with any sentence.
    Refusal {
        status: u16,
        sentence: String,
    },
}

fn bytes(input: &Input) -> Vec<u8> {
    let head = |status: u16| format!("HTTP/1.1 {} X\r\n", 100 + status % 500);
    match input {
        Input::Raw(raw) => raw.clone(),
        Input::Answer { status, length, body } => {
            let length = length.map_or(body.len(), |n| n as usize);
            [format!("{}content-length: {length}\r\n\r\n", head(*status)).as_bytes(), body].concat()
        }
        Input::Chunked { status, pieces, is_ended } => {
            let mut all = format!("{}transfer-encoding: chunked\r\n\r\n", head(*status)).into_bytes();
            for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
                all.extend(format!("{:x}\r\n", piece.len()).bytes());
                all.extend(piece);
                all.extend(b"\r\n");
            }
            all.extend(if *is_ended { &b"0\r\n\r\n"[..] } else { b"" });
            all
        }
        Input::Refusal { status, sentence } => {
            let body = format!("{{\"fault_message\": {sentence:?}}}");
            format!("{}content-length: {}\r\n\r\n{body}", head(*status), body.len()).into_bytes()
        }
    }
}

/// Answers of every kind that Firecracker gives.
fn seeds() -> Vec<Vec<u8>> {
    let with = |head: &str, body: &str| {
        format!(
            "HTTP/1.1 {head}\r\nServer: Firecracker API\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let fault = r#"{"fault_message":"The requested operation is not supported after starting the microVM."}"#;
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{\"id\":\"\r\n3\r\na\"}\r\n0\r\n\r\n";
    vec![
        b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n".to_vec(),
        with("200 ", r#"{"id":"m","state":"Running","vmm_version":"1.17.0-dev","app_name":"Firecracker"}"#)
            .into(),
        with("400 ", fault).into(),
        with("400 ", "{}").into(),
        with("500 ", "no json").into(),
        with("100 Continue", "").into(),
        chunked.into(),
    ]
}

fuzz_target!(init: seeds::write(seeds), |input: Input| {
    let answer = bytes(&input);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let words = runtime.block_on(async {
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        let server = async {
            let mut request = [0; 4096];
            let _ = theirs.read(&mut request).await;
            // A client that has had enough hangs up.
            let _ = theirs.write_all(&answer).await;
            drop(theirs);
        };
        tokio::join!(banger_vmm::firecracker::judge_answer(ours), server).0
    });
    if let Some(words) = words {
        assert!(words.chars().count() < 700, "{} characters", words.chars().count());
        assert!(!words.contains(|c: char| c.is_control()), "{words:?}");
    }
});
