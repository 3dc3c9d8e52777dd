//! What the first release said on each protocol. Whatever is renamed, removed or newly required since shows here: what
//! was written then is read now, and what is written now has all that readers of then need.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;

use banger_model::VmView;
use banger_protocol::agent::frame::{HEADER_LEN, Kind, TRAILER_LEN, decode_header, token};
use banger_protocol::agent::{Control, ExitStatus, Reply, Request, decode, encode};
use banger_protocol::{api, exec};
use ciborium::Value as Cbor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap()
}

/// The messages in a golden session, with whether they open a stream.
fn messages(session: &str) -> Vec<(bool, Vec<u8>)> {
    let nonce = *b"0123456789abcdef";
    let all = golden(&format!("agent-{session}.bin"));
    let begin = all.windows(nonce.len()).position(|w| w == nonce).unwrap() + nonce.len();
    let mut rest = all.get(begin..).unwrap();
    let mut found = Vec::new();
    while let Some(head) = rest.first_chunk::<HEADER_LEN>() {
        let header = decode_header(token(&nonce), head).unwrap();
        let payload = rest.get(HEADER_LEN..HEADER_LEN + header.len).unwrap();
        if matches!(header.kind, Kind::Open | Kind::Message) {
            found.push((header.kind == Kind::Open, payload.to_vec()));
        }
        rest = rest.get(HEADER_LEN + header.len + TRAILER_LEN..).unwrap();
    }
    found
}

/// What `then` has and `now` has not, or has otherwise. More is no loss.
fn lost_cbor(then: &Cbor, now: &Cbor, at: &str) -> Vec<String> {
    match (then, now) {
        (Cbor::Map(then), Cbor::Map(now)) => then
            .iter()
            .flat_map(|(key, value)| {
                let at = format!("{at}.{}", key.as_text().unwrap());
                match now.iter().find(|(k, _)| k == key) {
                    Some((_, found)) => lost_cbor(value, found, &at),
                    None => vec![at],
                }
            })
            .collect(),
        (then, now) if then == now => Vec::new(),
        _ => vec![at.to_owned()],
    }
}

fn lost_json(then: &Json, now: &Json, at: &str) -> Vec<String> {
    match (then, now) {
        (Json::Object(then), Json::Object(now)) => then
            .iter()
            .flat_map(|(key, value)| match now.get(key) {
                Some(found) => lost_json(value, found, &format!("{at}.{key}")),
                None => vec![format!("{at}.{key}")],
            })
            .collect(),
        (Json::Array(then), Json::Array(now)) if then.len() == now.len() => {
            then.iter().zip(now).flat_map(|(then, now)| lost_json(then, now, &format!("{at}[]"))).collect()
        }
        (then, now) if then == now => Vec::new(),
        _ => vec![at.to_owned()],
    }
}

fn survives<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let now = encode(&decode::<T>(bytes).unwrap()).unwrap();
    let (then, now): (Cbor, Cbor) =
        (ciborium::from_reader(bytes).unwrap(), ciborium::from_reader(now.as_slice()).unwrap());
    assert_eq!(lost_cbor(&then, &now, ""), Vec::<String>::new(), "{then:?}\nis now\n{now:?}");
}

#[test]
fn messages_of_the_agent_channel_lose_nothing() {
    let (host, guest) = (messages("1.0.host"), messages("1.0.guest"));
    assert_eq!((host.len(), guest.len()), (14, 9));
    for (opens, bytes) in host {
        if opens { survives::<Request>(&bytes) } else { survives::<Control>(&bytes) }
    }
    for (_, bytes) in guest {
        survives::<Reply>(&bytes);
    }
}

/// 1.2: a host tells a restored guest who it is, then freezes and thaws it.
#[test]
fn an_identity_is_what_it_was_and_older_hosts_have_none() {
    let host = messages("1.2.host");
    assert_eq!(host.len(), 4);
    for (_, bytes) in &host {
        survives::<Request>(bytes);
    }
    let hello = |bytes: &[u8]| match decode(bytes).unwrap() {
        Request::Hello(hello) => hello,
        other => panic!("{other:?}"),
    };
    let identity = hello(&host[0].1).identity.unwrap();
    assert_eq!(identity.hostname, "calm-otter");
    assert_eq!(identity.machine_id.as_deref(), Some("00112233445566778899aabbccddeeff"));
    assert_eq!(identity.network.unwrap().mac, "52:54:00:00:00:01");
    let identity = hello(&host[1].1).identity.unwrap();
    assert_eq!((identity.machine_id, identity.network), (None, None));
    assert_eq!(decode::<Request>(&host[2].1).unwrap(), Request::Freeze);
    assert_eq!(decode::<Request>(&host[3].1).unwrap(), Request::Thaw { unix_ns: 1_795_267_200_000_000_000 });
    // One that has none says the same as before.
    let first = hello(&messages("1.0.host")[0].1);
    assert_eq!(first.identity, None);
    assert!(!encode(&first).unwrap().windows(8).any(|w| w == b"identity"));
}

#[test]
fn a_loss_would_be_seen() {
    let of = |text: &str| serde_json::from_str::<Json>(text).unwrap();
    let then = of(r#"{"a":1,"b":{"c":[{"d":2}]}}"#);
    assert_eq!(
        lost_json(&then, &of(r#"{"a":1,"b":{"c":[{"d":2,"new":0}],"new":0}}"#), ""),
        Vec::<String>::new()
    );
    assert_eq!(lost_json(&then, &of(r#"{"a":2,"b":{"c":[{"e":2}]}}"#), ""), [".a", ".b.c[].d"]);
    let cbor = |json: &Json| Cbor::serialized(json).unwrap();
    assert_eq!(lost_cbor(&cbor(&then), &cbor(&of(r#"{"a":1,"b":{}}"#)), ""), [".b.c"]);
}

#[test]
fn frames_of_the_exec_stream_are_as_they_were() {
    let all = golden("exec-1.0.bin");
    let mut rest = all.as_slice();
    let mut kinds = Vec::new();
    while let Some(head) = rest.first_chunk::<{ exec::HEADER_LEN }>() {
        let (kind, len) = exec::parse_header(*head).unwrap();
        assert_eq!(exec::header(kind, len), *head);
        let payload = rest.get(exec::HEADER_LEN..exec::HEADER_LEN + len).unwrap();
        match kind {
            exec::Kind::Exit => {
                assert_eq!(serde_json::from_slice::<ExitStatus>(payload).unwrap(), ExitStatus::Code(3));
            }
            exec::Kind::Error => json::<api::ErrorBody>(&serde_json::from_slice(payload).unwrap(), "error"),
            _ => {}
        }
        kinds.push(kind as u8);
        rest = rest.get(exec::HEADER_LEN + len..).unwrap();
    }
    assert!(rest.is_empty());
    assert_eq!(kinds, [0, 1, 2, 3, 20, 16, 17, 21, 18, 19]);
}

fn json<T: Serialize + DeserializeOwned>(then: &Json, what: &str) {
    let read: T = serde_json::from_value(then.clone()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let now = serde_json::to_value(&read).unwrap();
    assert_eq!(lost_json(then, &now, what), Vec::<String>::new());
}

#[derive(Deserialize)]
struct Api {
    requests: serde_json::Map<String, Json>,
    answers: serde_json::Map<String, Json>,
}

#[test]
fn requests_and_answers_of_the_api_lose_nothing() {
    let Api { requests, answers } = serde_json::from_slice(&golden("api-1.0.json")).unwrap();
    assert_eq!((requests.len(), answers.len()), (11, 10));
    for (name, then) in &requests {
        let check: fn(&Json, &str) = match name.as_str() {
            "create" | "create_least" => json::<api::CreateVm>,
            "exec" => json::<api::ExecRequest>,
            "export" => json::<api::ExportRequest>,
            "image_build" => json::<api::BuildImage>,
            "image_import" => json::<api::ImportImage>,
            "kernel_import" => json::<api::ImportKernel>,
            "kernel_pull" => json::<api::PullKernel>,
            "kill" => json::<api::KillVm>,
            "prepare" => json::<api::PrepareRequest>,
            "stop" => json::<api::StopVm>,
            other => panic!("{other}"),
        };
        check(then, name);
    }
    for (name, then) in &answers {
        let check: fn(&Json, &str) = match name.as_str() {
            "check" => json::<api::Check>,
            "created" => json::<api::CreatedVm>,
            "daemon" => json::<api::DaemonStatus>,
            "error" => json::<api::ErrorEnvelope>,
            "event_notice" | "event_progress" | "event_result" => json::<api::Event>,
            "export" => json::<api::ExportSummary>,
            "plan" => json::<api::PreparePlan>,
            "vm" => json::<VmView>,
            other => panic!("{other}"),
        };
        check(then, name);
    }
}
