use std::sync::Barrier;

use serde_json::json;

use crate::scripted::{Place, created, vm};

#[test]
fn the_good_ones_go_through_and_any_failure_is_1() {
    let place = Place::new();
    let log = place.serve(|request, reply| match &*request.path {
        "/v1/vms/bad/stop" => reply.error("404 Not Found", "not_found", "no VM 'bad'"),
        "/v1/vms/worse/stop" => reply.error("409 Conflict", "busy", "'worse' is busy"),
        path => reply.result(&vm(path.split('/').nth(3).unwrap())),
    });
    let text = place.run(&["vm", "stop", "a", "bad", "b", "worse", "a"]);
    assert_eq!((text.status, &text.stdout[..]), (1, &b""[..]));
    assert_eq!(
        text.stderr,
        "'a' is stopped\n'b' is stopped\nerror: no VM 'bad' (op-0123456789ab)\nhint: a hint\n\
         error: 'worse' is busy (op-0123456789ab)\nhint: a hint\n"
    );
    assert_eq!(log.all().len(), 4, "each once");

    let json = place.run(&["vm", "stop", "--json", "a", "bad", "b", "worse"]);
    assert_eq!(json.status, 1);
    let names: Vec<_> = json.json().as_array().unwrap().iter().map(|v| v["name"].clone()).collect();
    assert_eq!(names, ["a", "b"]);
    let error = json.error_json();
    assert_eq!(error["error"]["code"], "not_found");
    assert_eq!(error["errors"][1]["message"], "'worse' is busy");

    let one = place.run(&["vm", "stop", "--json", "a"]);
    assert_eq!((one.status, &one.json()["name"]), (0, &json!("a")), "an object for one");
}

#[test]
fn several_run_at_once() {
    let place = Place::new();
    let both = Barrier::new(2);
    place.serve(move |_, reply| {
        both.wait();
        reply.result(&created("x"));
    });
    let ran = place.run(&["vm", "start", "a", "b"]);
    assert_eq!((ran.status, &*ran.stderr), (0, "'x' runs (cold boot, 1.2 s)\n'x' runs (cold boot, 1.2 s)\n"));
}

#[test]
fn lists_are_tables_ids_or_documents() {
    let place = Place::new();
    let log = place.serve(|_, reply| reply.json(&json!([vm("web")])));
    let table = place.run(&["ps"]);
    assert!(table.text().starts_with("ID            NAME  STATE    IMAGE"), "{}", table.text());
    assert_eq!(table.text().lines().count(), 2);
    assert_eq!(place.run(&["ps", "-a", "-q"]).text(), "0123456789ab\n");
    assert_eq!(place.run(&["vm", "list", "--json"]).json(), json!([vm("web")]));
    assert_eq!(log.lines(), ["GET /v1/vms", "GET /v1/vms?all=true", "GET /v1/vms"]);
}

#[test]
fn requests_carry_what_was_asked() {
    let place = Place::new();
    let log = place.serve(|_, reply| reply.result(&vm("web")));
    place.run(&["vm", "stop", "web", "--timeout", "10s"]);
    place.run(&["vm", "kill", "web", "--signal", "SIGTERM"]);
    place.run(&["vm", "delete", "-f", "we b"]);
    place.run(&["vm", "restart", "web"]);
    assert_eq!(log.body("POST /v1/vms/web/stop"), json!({"timeout_ms": 10_000}));
    assert_eq!(log.body("POST /v1/vms/web/kill"), json!({"signal": "TERM"}));
    assert_eq!(log.lines()[2], "DELETE /v1/vms/we%20b?force=true");
    assert_eq!(log.body("POST /v1/vms/web/restart"), json!({"timeout_ms": null}));
    assert!(log.all().iter().all(|r| r.headers["accept"] == "application/x-ndjson"));
}
