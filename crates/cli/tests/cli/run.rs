use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use banger_protocol::exec::Kind;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::scripted::{Place, Reply, Request, created, signal, wait_for};

/// What happened, in order, from the daemon's point of view.
#[derive(Clone, Default)]
struct Story(Arc<Mutex<Vec<String>>>);

impl Story {
    fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// A daemon in which the command ends with `status`.
fn daemon(story: Story, status: Value) -> impl Fn(&Request, &mut Reply) + Send + Sync {
    move |request, reply| match &*request.line() {
        "POST /v1/vms" => {
            reply.begin("application/x-ndjson");
            let progress = json!({"type": "progress", "stage": "boot", "message": "booting", "percent": null, "since_start_ms": 1, "since_last_stage_ms": 1});
            reply.chunk(format!("{progress}\n").as_bytes());
            let result = json!({"type": "result", "value": created("calm-otter-01")});
            reply.chunk(format!("{result}\n").as_bytes());
            story.add("created");
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            if body["rm"] == true {
                reply.until_closed();
                story.add("released");
            } else {
                reply.end();
            }
        }
        "POST /v1/vms/0123456789ab/exec" => {
            story.add("exec");
            reply.upgrade();
            reply.frame(Kind::Stdout, b"output");
            if status.is_null() {
                while let Some((kind, _)) = reply.next() {
                    if kind == Kind::Signal {
                        reply.exit(&json!({"signal": 2}));
                    }
                }
            } else {
                reply.exit(&status);
            }
        }
        "DELETE /v1/vms/0123456789ab?force=true" => {
            std::thread::sleep(Duration::from_millis(50));
            story.add("deleted");
            reply.json(&created("calm-otter-01"));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn rm_deletes_before_the_exit_and_only_then_lets_the_vm_go() {
    let place = Place::new();
    let story = Story::default();
    place.serve(daemon(story.clone(), json!({"code": 42})));
    let ran = place.run(&["run", "--rm", "--", "make", "test"]);
    assert_eq!((ran.status, ran.text(), &*ran.stderr), (42, "output", ""), "and no reminder");
    wait_for("the release", || story.lines().len() == 4);
    assert_eq!(story.lines(), ["created", "exec", "deleted", "released"]);
}

#[test]
fn rm_deletes_after_an_interrupt_too() {
    let place = Place::new();
    let story = Story::default();
    place.serve(daemon(story.clone(), Value::Null));
    let mut child = place.banger(&["run", "--rm", "--", "sleep", "9"]).spawn().unwrap();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(&story.lines()[..3], ["created", "exec", "deleted"]);
}

#[test]
fn rm_with_a_daemon_that_died_is_125_and_soon() {
    let place = Place::new();
    let socket = place.socket();
    place.serve(move |request, reply| match &*request.path {
        "/v1/vms" => {
            reply.begin("application/x-ndjson");
            let result = json!({"type": "result", "value": created("web")});
            reply.chunk(format!("{result}\n").as_bytes());
            reply.until_closed();
        }
        _ => {
            std::fs::remove_file(&socket).unwrap();
            reply.upgrade();
        }
    });
    let began = Instant::now();
    let ran = place.run(&["run", "--rm", "--", "x"]);
    assert_eq!(ran.status, 125);
    assert!(ran.stderr.contains("daemon went away"), "{}", ran.stderr);
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn an_interrupt_while_it_boots_closes_the_connection() {
    let place = Place::new();
    let story = Story::default();
    let told = story.clone();
    let log = place.serve(move |_, reply| {
        reply.begin("application/x-ndjson");
        reply.until_closed();
        told.add("closed");
    });
    let mut child = place.banger(&["run", "--rm", "--", "x"]).spawn().unwrap();
    wait_for("the request", || !log.all().is_empty());
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    wait_for("the close", || story.lines() == ["closed"]);
    assert_eq!(log.lines(), ["POST /v1/vms"]);
}

#[test]
fn flags_become_the_request() {
    let place = Place::new();
    let log = place.serve(daemon(Story::default(), json!({"code": 0})));
    let repo = place.path("state").canonicalize().unwrap();
    let ran = place.run(&[
        "vm",
        "run",
        "state",
        "--name",
        "web",
        "--image",
        "debian",
        "--kernel",
        "debian-cloud",
        "--driver",
        "qemu",
        "--vcpu",
        "2",
        "--memory",
        "1G",
        "--disk-size",
        "4GiB",
        "--network",
        "none",
        "--nat",
        "--host-access",
        "--cold",
        "--mode",
        "full_copy",
        "--guest-path",
        "/w",
        "--branch",
        "b",
        "--from",
        "HEAD~1",
        "--include-untracked",
        "-d",
    ]);
    assert_eq!((ran.status, ran.text()), (0, "calm-otter-01\n"), "{}", ran.stderr);
    let body = log.body("POST /v1/vms");
    for (key, value) in [
        ("name", json!("web")),
        ("image", json!("debian")),
        ("kernel", json!("debian-cloud")),
        ("driver", json!("qemu")),
        ("vcpu", json!(2)),
        ("memory", json!(1024)),
        ("disk_size", json!(4_294_967_296_u64)),
        ("network", json!("none")),
        ("nat", json!(true)),
        ("host_access", json!(true)),
        ("cold", json!(true)),
        ("rm", json!(false)),
        ("no_start", json!(false)),
        (
            "workspace",
            json!({"path": repo.to_str().unwrap(), "mode": "full_copy", "guest_path": "/w", "branch": "b",
                   "from": "HEAD~1", "include_untracked": true, "readonly": false}),
        ),
    ] {
        assert_eq!(body[key], value, "{key}");
    }
}

#[test]
fn timings_and_json_tell_about_the_start() {
    let place = Place::new();
    place.serve(daemon(Story::default(), json!({"code": 3})));
    let text = place.run(&["run", "--rm", "--timings", "--", "x"]);
    assert_eq!((text.status, text.text()), (3, "output"));
    assert_eq!(text.stderr, "STEP          MS\nboot        12.5\ntotal       12.5\n");
    let json = place.run(&["run", "--rm", "--timings", "--json", "--", "x"]);
    assert_eq!((json.status, &*json.stderr), (3, "output"));
    let document = json.json();
    assert_eq!((&document["name"], &document["exit_code"]), (&json!("calm-otter-01"), &json!(3)));
    assert_eq!(document["timings"][0]["step"], "boot");
    assert!(place.run(&["run", "-d", "--json"]).json().get("timings").is_none(), "only when asked for");
}

#[test]
fn a_dry_run_shows_the_plan_and_makes_nothing() {
    let place = Place::new();
    let log = place.serve(|_, reply| {
        reply.json(&json!({
            "source_path": "/repo", "guest_path": "/root/repo", "mode": "shallow_overlay", "base_commit": "abc",
            "branch": null, "depth": 10, "files": ["a b", {"hex": "ff"}], "bytes": 2048, "skipped_untracked": 1,
        }));
    });
    let ran = place.run(&["run", ".", "--dry-run"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stdout.ends_with(b"\n\na b\n\xff\n"), "{:?}", String::from_utf8_lossy(&ran.stdout));
    assert!(String::from_utf8_lossy(&ran.stdout).contains("bytes:               2048 (2 KiB)\n"));
    assert_eq!(log.lines(), ["POST /v1/workspace/plan"]);
}

#[test]
fn a_path_that_is_not_there_is_told_before_anything_starts() {
    let place = Place::new();
    let ran = place.run(&["run", "no-such", "--", "true"]);
    assert_eq!(ran.status, 125);
    assert!(ran.stderr.contains("'no-such'"), "{}", ran.stderr);
}

#[test]
fn without_a_terminal_a_run_without_command_is_a_shell_that_reads_stdin() {
    let place = Place::new();
    let log = place.serve(daemon(Story::default(), json!({"code": 0})));
    assert_eq!(place.run(&["run"]).status, 0);
    let body = log.body("POST /v1/vms/0123456789ab/exec");
    assert_eq!((&body["argv"], &body["tty"], &body["stdin"]), (&json!([]), &json!(null), &json!(true)));
}
