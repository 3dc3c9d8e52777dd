use serde_json::json;

use crate::scripted::Place;

#[test]
fn wrong_usage_is_2_and_help_is_0() {
    let place = Place::new();
    for wrong in [
        &["vm", "frobnicate"][..],
        &["frobnicate"],
        &["run", "--frobnicate"],
        &["exec", "web"],
        &["exec"],
        &["exec", "web", "--env", "", "--", "true"],
        &["run", "--rm", "-e", "=x", "--", "true"],
        &["run", "--memory", "lots"],
        &["run", "--name", "Not_A_Name"],
        &["run", "--vcpu", "0"],
        &["run", "--branch", "b"],
        &["run", "--dry-run"],
        &["run", ".", "--from", "HEAD"],
        &["run", "-d", "--rm"],
        &["run", "-d", "--", "true"],
        &["run", ".", "--dry-run", "extra"],
        &["vm", "stop"],
        &["vm", "show", ""],
        &["vm", "stop", "web", "--timeout", "soon"],
        &["image", "import", "../x", "."],
    ] {
        let ran = place.run(wrong);
        assert_eq!(ran.status, 2, "{wrong:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, b"", "{wrong:?}");
        assert!(ran.stderr.starts_with("error: "), "{wrong:?}: {}", ran.stderr);
    }
    for help in [&["--help"][..], &["run", "--help"], &["vm", "workspace", "export", "-h"], &["--version"]] {
        let ran = place.run(help);
        assert_eq!((ran.status, &*ran.stderr), (0, ""), "{help:?}");
    }
}

#[test]
fn a_value_that_does_not_parse_says_what_to_write() {
    let place = Place::new();
    let ran = place.run(&["vm", "create", "--memory", "lots"]);
    assert_eq!(
        ran.stderr,
        "error: --memory <SIZE>: 'lots' is not a size: it does not begin with a number\n\
         hint: write 512M, 4G or 4GiB; a bare number is MiB\n"
    );
    let ran = place.run(&["--json", "vm", "create", "--memory", "lots"]);
    let error = &ran.error_json()["error"];
    assert_eq!((ran.status, &error["code"]), (2, &json!("invalid_argument")));
    assert_eq!(error["hint"], "write 512M, 4G or 4GiB; a bare number is MiB");
    let ran = place.run(&["vm", "frobnicate", "--json"]);
    assert_eq!(ran.error_json()["error"]["code"], "invalid_argument");
}

#[test]
fn an_error_is_text_or_exactly_one_json_object() {
    let place = Place::new();
    place.serve(|_, reply| reply.error("404 Not Found", "not_found", "no VM 'x'"));
    let text = place.run(&["vm", "show", "x"]);
    assert_eq!(text.status, 1);
    assert_eq!(text.stderr, "error: no VM 'x' (op-0123456789ab)\nhint: a hint\n");
    let json = place.run(&["vm", "show", "x", "--json"]);
    assert_eq!((json.status, &json.stdout[..]), (1, &b""[..]));
    assert_eq!(
        json.error_json(),
        json!({"error": {"code": "not_found", "message": "no VM 'x'", "hint": "a hint", "op_id": "op-0123456789ab"}})
    );
}

#[test]
fn an_error_in_the_stream_of_a_change_is_an_error() {
    let place = Place::new();
    place.serve(|_, reply| {
        reply.events(&[
            json!({"type": "notice", "message": "something to know"}),
            json!({"type": "error", "error": {"code": "boot_failed", "message": "no\u{1b}[2J", "hint": null, "op_id": null}}),
        ]);
    });
    let ran = place.run(&["vm", "start", "web"]);
    assert_eq!(ran.status, 1);
    assert_eq!(ran.stderr, "something to know\nerror: no\\u{1b}[2J (op-0123456789ab)\n");
    assert_eq!(place.run(&["vm", "start", "web", "-q"]).stderr, "error: no\\u{1b}[2J (op-0123456789ab)\n");
    assert_eq!(place.run(&["vm", "start", "web", "--json"]).error_json()["error"]["code"], "boot_failed");
}

#[test]
fn a_daemon_that_dies_before_its_answer_is_told_with_a_hint() {
    let place = Place::new();
    place.serve(|request, reply| {
        if request.method == "POST" {
            reply.begin("application/x-ndjson");
        }
    });
    for args in [&["ps"][..], &["vm", "stop", "web"]] {
        let ran = place.run(args);
        assert_eq!(ran.status, 1);
        assert!(ran.stderr.contains("the daemon went away"), "{}", ran.stderr);
        assert!(ran.stderr.contains("hint: 'banger daemon logs'"), "{}", ran.stderr);
    }
    let ran = place.run(&["run", "--", "true"]);
    assert_eq!(ran.status, 125);
}
