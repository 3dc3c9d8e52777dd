use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use banger_protocol::exec::{Kind, STDIN_WINDOW};
use rustix::process::Signal;
use serde_json::json;

use crate::scripted::{Place, Ran, Reply, signal, wait_for};

/// `cat` in the guest.
fn cat(reply: &mut Reply) {
    reply.upgrade();
    while let Some((kind, payload)) = reply.next() {
        match kind {
            Kind::Stdin => {
                reply.frame(Kind::Stdout, &payload);
                reply.frame(Kind::Credit, &u32::try_from(payload.len()).unwrap().to_le_bytes());
            }
            Kind::StdinEof => reply.exit(&json!({"code": 0})),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn any_bytes_go_in_and_come_back_the_same() {
    let place = Place::new();
    let log = place.serve(|_, reply| cat(reply));
    let sent: Vec<u8> = (0..8_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();

    let mut child = place.banger(&["exec", "-i", "web", "--", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, bytes) = (child.stdin.take().unwrap(), sent.clone());
    let feeder = thread::spawn(move || stdin.write_all(&bytes));
    let ran = Ran::from(child.wait_with_output().unwrap());

    feeder.join().unwrap().unwrap();
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stdout == sent, "{} of {} bytes came back", ran.stdout.len(), sent.len());
    let request = &log.all()[0];
    assert_eq!(request.line(), "POST /v1/vms/web/exec?watch=true");
    assert_eq!(request.headers["upgrade"], "banger-exec-1");
    assert_eq!(log.body("POST /v1/vms/web/exec?watch=true")["argv"], json!(["cat"]));
}

#[test]
fn stdout_and_stderr_stay_apart_and_the_status_is_the_commands() {
    for (status, expected) in
        [(json!({"code": 42}), 42), (json!({"signal": 15}), 143), (json!({"code": 0}), 0)]
    {
        let place = Place::new();
        place.serve(move |_, reply| {
            reply.upgrade();
            reply.frame(Kind::Stdout, b"out\0\xff");
            reply.frame(Kind::Stderr, b"err");
            reply.exit(&status);
        });
        let ran = place.run(&["vm", "exec", "web", "--", "x"]);
        assert_eq!((ran.status, &ran.stdout[..], &*ran.stderr), (expected, &b"out\0\xff"[..], "err"));
    }
}

#[test]
fn a_program_that_is_not_there_is_127_and_one_that_cannot_run_126() {
    for (status, expected) in [
        (json!({"not_found": "no program 'nope' in the guest"}), 127),
        (json!({"not_executable": "'/etc/passwd' is not executable"}), 126),
    ] {
        let place = Place::new();
        place.serve(move |_, reply| {
            reply.upgrade();
            reply.exit(&status);
        });
        let ran = place.run(&["exec", "web", "nope"]);
        assert_eq!(ran.status, expected);
        assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
    }
}

#[test]
fn what_banger_could_not_do_is_125() {
    let place = Place::new();
    place.serve(|request, reply| match &*request.path {
        "/v1/vms/gone/exec?watch=true" => reply.error("404 Not Found", "not_found", "no VM 'gone'"),
        _ => {
            reply.upgrade();
            let body = json!({"code": "timeout", "message": "the command took longer than 1 s", "hint": null, "op_id": null});
            reply.frame(Kind::Error, body.to_string().as_bytes());
        }
    });
    let gone = place.run(&["exec", "gone", "--", "true"]);
    assert_eq!(gone.status, 125);
    assert_eq!(gone.stderr, "error: no VM 'gone' (op-0123456789ab)\nhint: a hint\n");
    let late = place.run(&["exec", "--json", "--timeout", "1s", "web", "--", "true"]);
    assert_eq!((late.status, late.error_json()["error"]["code"].as_str()), (125, Some("timeout")));
    assert_eq!(late.stdout, b"", "no document when there is nothing to tell");
}

#[test]
fn a_daemon_that_dies_in_the_middle_is_125_after_what_it_did_send() {
    let place = Place::new();
    place.serve(|_, reply| {
        reply.upgrade();
        reply.frame(Kind::Stdout, b"half");
    });
    let ran = place.run(&["exec", "web", "--", "x"]);
    assert_eq!((ran.status, &ran.stdout[..]), (125, &b"half"[..]));
    assert!(ran.stderr.contains("daemon went away") && ran.stderr.contains("hint: "), "{}", ran.stderr);
}

#[test]
fn arguments_environment_and_directory_arrive_as_they_were_given() {
    let place = Place::new();
    let log = place.serve(|_, reply| {
        reply.upgrade();
        reply.exit(&json!({"code": 0}));
    });
    let mut command =
        place.banger(&["exec", "-e", "A=b c", "--env", "OWN", "-w", "/d", "-u", "me", "web", "--", "sh"]);
    command.args(["", "a b", "$x", "\"'\n", "--", "-q", "--json"]).env("OWN", "own value");
    command.arg(OsString::from_vec(vec![b'x', 0xff]));
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let body = log.body("POST /v1/vms/web/exec?watch=true");
    assert_eq!(body["argv"], json!(["sh", "", "a b", "$x", "\"'\n", "--", "-q", "--json", {"hex": "78ff"}]));
    assert_eq!(body["env"], json!([["A", "b c"], ["OWN", "own value"]]));
    assert_eq!((&body["workdir"], &body["user"], &body["tty"]), (&json!("/d"), &json!("me"), &json!(null)));
}

#[test]
fn a_closed_stdin_is_an_end_of_file() {
    let place = Place::new();
    place.serve(|_, reply| cat(reply));
    assert_eq!(place.run(&["exec", "web", "--", "cat"]).status, 0, "/dev/null");

    let banger = place.banger(&["exec", "web", "--", "cat"]);
    let mut shell = std::process::Command::new("/bin/sh");
    shell.arg("-c").arg("exec \"$0\" exec web -- cat <&-").arg(banger.get_program());
    shell.envs(banger.get_envs().filter_map(|(k, v)| Some((k, v?))));
    assert_eq!(shell.status().unwrap().code(), Some(0), "closed");
}

#[test]
fn a_slow_reader_stalls_the_daemon_and_loses_nothing() {
    const TOTAL: usize = 32 << 20;
    let place = Place::new();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    place.serve(move |_, reply| {
        reply.upgrade();
        let block = vec![7; 64 << 10];
        for _ in 0..TOTAL / block.len() {
            reply.frame(Kind::Stdout, &block);
            count.fetch_add(block.len(), Ordering::SeqCst);
        }
        reply.exit(&json!({"code": 0}));
    });
    let mut child = place.banger(&["exec", "web", "--", "yes"]).spawn().unwrap();
    thread::sleep(Duration::from_millis(700));
    let early = sent.load(Ordering::SeqCst);
    assert!(early < 4 << 20, "{early} bytes were taken although nobody reads");

    let mut all = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut all).unwrap();
    assert_eq!((all.len(), child.wait().unwrap().code()), (TOTAL, Some(0)));
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let place = Place::new();
    place.serve(|_, reply| {
        reply.upgrade();
        while reply.0.write_all(&banger_protocol::exec::header(Kind::Stdout, 2)).is_ok() {
            if reply.0.write_all(b"y\n").is_err() {
                break;
            }
        }
    });
    let mut child = place.banger(&["exec", "web", "--", "yes"]).spawn().unwrap();
    let mut first = [0; 2];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.status, &*ran.stderr), (141, ""));
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let place = Place::new();
    place.serve(|_, reply| {
        reply.upgrade();
        reply.frame(Kind::Stdout, b"text");
        reply.exit(&json!({"code": 0}));
    });
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ran = Ran::from(place.banger(&["exec", "web", "--", "x"]).stdout(full).output().unwrap());
    assert_eq!(ran.status, 125);
    assert!(ran.stderr.contains("cannot write to standard output"), "{}", ran.stderr);
}

#[test]
fn signals_are_the_guests_and_the_second_interrupt_is_ours() {
    let place = Place::new();
    let log = place.serve(|request, reply| {
        reply.upgrade();
        reply.frame(Kind::Stdout, b"ready");
        let mut got = Vec::new();
        while let Some((kind, payload)) = reply.next() {
            if kind == Kind::Signal {
                got.push(i32::from_le_bytes(payload.try_into().unwrap()));
                reply.frame(Kind::Stdout, format!(" {}", got.last().unwrap()).as_bytes());
            }
            if got.last() == Some(&15) {
                reply.exit(&json!({"signal": 15}));
            }
        }
        drop(request.clone());
    });
    let start = || {
        let mut child = place.banger(&["exec", "web", "--", "sleep", "9"]).spawn().unwrap();
        let mut ready = [0; 5];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        child
    };

    let mut child = start();
    let answered = |child: &mut std::process::Child, s: Signal| {
        signal(child, s);
        let mut word = vec![0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
        String::from_utf8(word).unwrap()
    };
    assert_eq!(answered(&mut child, Signal::USR1), " 10");
    assert_eq!(answered(&mut child, Signal::USR2), " 12");
    assert_eq!(answered(&mut child, Signal::TERM), " 15");
    assert_eq!(child.wait().unwrap().code(), Some(143));

    let mut child = start();
    signal(&child, Signal::INT);
    let mut word = [0; 2];
    child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
    assert_eq!(&word, b" 2");
    assert!(child.try_wait().unwrap().is_none(), "the guest ignores it, so we wait");
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(log.all().len(), 2);
}

#[test]
fn a_signal_overtakes_stdin_that_the_guest_does_not_read() {
    let place = Place::new();
    let unread = Arc::new(AtomicUsize::new(0));
    let seen = unread.clone();
    place.serve(move |_, reply| {
        reply.upgrade();
        reply.frame(Kind::Stdout, b"ready");
        while let Some((kind, payload)) = reply.next() {
            match kind {
                // The guest reads nothing, so nothing is credited.
                Kind::Stdin => drop(seen.fetch_add(payload.len(), Ordering::SeqCst)),
                Kind::Signal => return reply.exit(&json!({"signal": payload[0]})),
                other => panic!("{other:?}"),
            }
        }
    });
    let mut child = place.banger(&["exec", "web", "--", "sleep", "9"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let filler = thread::spawn(move || while stdin.write_all(&[0; 1 << 16]).is_ok() {});
    let mut ready = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    wait_for("a full window", || unread.load(Ordering::SeqCst) == STDIN_WINDOW);
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(unread.load(Ordering::SeqCst), STDIN_WINDOW, "no more than there was credit for");
    filler.join().unwrap();
}

#[test]
fn an_interrupt_before_the_command_runs_cancels() {
    let place = Place::new();
    let log = place.serve(|_, reply| reply.until_closed());
    let mut child = place.banger(&["exec", "web", "--", "x"]).spawn().unwrap();
    wait_for("the request", || !log.all().is_empty());
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn with_json_stdout_is_one_document_and_the_guests_output_is_on_stderr() {
    let place = Place::new();
    place.serve(|_, reply| {
        reply.upgrade();
        reply.frame(Kind::Stdout, b"hello");
        reply.exit(&json!({"signal": 9}));
    });
    let ran = place.run(&["exec", "--json", "web", "--", "x"]);
    assert_eq!((ran.status, &*ran.stderr), (137, "hello"));
    assert_eq!(ran.json(), json!({"exit_code": 137, "signal": 9}));
}
