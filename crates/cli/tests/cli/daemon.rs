use std::fs;
use std::os::unix::net::UnixListener;
use std::thread;

use serde_json::json;

use crate::scripted::{Place, Ran, wait_for};

/// Tells `run/asked`, waits until the test has bound the socket, and says that it is ready.
const STARTS: &str = r#"
echo $$ >> "$BANGER_RUNTIME_DIR/asked"
cut -d' ' -f6 /proc/$$/stat > "$BANGER_RUNTIME_DIR/session"
readlink /proc/$$/cwd > "$BANGER_RUNTIME_DIR/cwd"
ls -l /proc/$$/fd > "$BANGER_RUNTIME_DIR/fds"
while [ ! -e "$BANGER_RUNTIME_DIR/bound" ]; do sleep 0.02; done
echo '{"ready":{"pid":1}}' > /proc/$$/fd/$2
"#;

fn read(place: &Place, name: &str) -> String {
    fs::read_to_string(place.path(name)).unwrap()
}

#[test]
fn the_first_command_starts_the_daemon_detached_from_everything() {
    let place = Place::new();
    place.bangerd(STARTS);
    let secret = fs::File::create(place.path("inherited")).unwrap();
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    let one = place.banger(&["ps", "--json"]).spawn().unwrap();
    let two = place.banger(&["ps", "--json"]).spawn().unwrap();
    wait_for("the start", || place.path("run/fds").exists() && place.path("run/asked").exists());
    place.serve(|_, reply| reply.json(&json!([])));
    fs::write(place.path("run/bound"), "").unwrap();
    for child in [one, two] {
        let ran = Ran::from(child.wait_with_output().unwrap());
        assert_eq!((ran.status, ran.text()), (0, "[]\n"), "{}", ran.stderr);
    }
    let pids = read(&place, "run/asked");
    assert!(pids.lines().any(|pid| pid == read(&place, "run/session").trim()), "its own session");
    assert_eq!(read(&place, "run/cwd"), "/\n");
    let fds = read(&place, "run/fds");
    assert!(!fds.contains("inherited"), "{fds}");
    assert_eq!(fds.matches("/dev/null").count(), 3, "{fds}");
}

#[test]
fn a_stale_socket_is_no_daemon() {
    let place = Place::new();
    drop(UnixListener::bind(place.socket()).unwrap());
    assert!(place.socket().exists());
    place.bangerd(&format!("rm \"$BANGER_RUNTIME_DIR/bangerd.sock\"\n{STARTS}"));
    let child = place.banger(&["ps", "--json"]).spawn().unwrap();
    wait_for("the start", || place.path("run/asked").exists());
    place.serve(|_, reply| reply.json(&json!([])));
    fs::write(place.path("run/bound"), "").unwrap();
    assert_eq!(Ran::from(child.wait_with_output().unwrap()).status, 0);
}

#[test]
fn a_daemon_that_another_one_locks_out_is_waited_for() {
    let place = Place::new();
    place.bangerd(
        r#"echo x >> "$BANGER_RUNTIME_DIR/asked"
echo '{"error":{"code":"busy","message":"m","hint":null,"op_id":null}}' > /proc/$$/fd/$2"#,
    );
    let child = place.banger(&["ps", "--json"]).spawn().unwrap();
    wait_for("two attempts", || {
        fs::read_to_string(place.path("run/asked")).is_ok_and(|text| text.lines().count() >= 2)
    });
    place.serve(|_, reply| reply.json(&json!([])));
    assert_eq!(Ran::from(child.wait_with_output().unwrap()).status, 0);
}

#[test]
fn why_the_daemon_cannot_start_is_our_own_error() {
    let place = Place::new();
    place.bangerd(
        r#"echo '{"error":{"code":"internal","message":"the database is corrupt","hint":"move it","op_id":null}}' > /proc/$$/fd/$2"#,
    );
    let ran = place.run(&["ps"]);
    assert_eq!((ran.status, &*ran.stderr), (1, "error: the database is corrupt\nhint: move it\n"));
    assert_eq!(place.run(&["run", "--", "true"]).status, 125);
    assert_eq!(place.run(&["exec", "web", "--", "true"]).status, 125);

    // A trial needs the daemon. What is checked without it is said all the same.
    let doctor = place.run(&["doctor", "--network", "--json"]);
    assert_eq!(doctor.status, 1);
    let failed =
        json!({"name": "daemon", "status": "fail", "detail": "the database is corrupt", "hint": "move it"});
    assert_eq!(doctor.json(), json!([failed]));
    let shown = place.run(&["doctor", "--network"]);
    assert!(shown.text().starts_with("fail  daemon       the database is corrupt\n"), "{}", shown.text());
}

#[test]
fn doctor_asks_the_daemons_program_where_no_daemon_runs_and_starts_none() {
    let place = Place::new();
    place.bangerd(
        r#"echo "$@" > "$BANGER_RUNTIME_DIR/../asked"
echo '[{"name":"kvm","status":"ok","detail":"d","hint":null}]'"#,
    );
    let doctor = place.run(&["doctor", "--json"]);
    assert_eq!(doctor.status, 0, "{}", doctor.stderr);
    let checks = doctor.json();
    assert_eq!(checks[0]["name"], "daemon");
    assert!(checks[0]["detail"].as_str().unwrap().contains("does not run"), "{checks}");
    assert_eq!(checks[1], json!({"name": "kvm", "status": "ok", "detail": "d", "hint": null}));
    assert_eq!(fs::read_to_string(place.path("asked")).unwrap(), "--doctor\n");
    // A program that says nothing is said.
    place.bangerd("exit 3");
    let doctor = place.run(&["doctor", "--json"]);
    assert_eq!(doctor.status, 1);
    assert!(doctor.json()[0]["detail"].as_str().unwrap().contains("gave no checks"), "{}", doctor.text());
}

#[test]
fn doctor_tells_a_daemon_of_another_version() {
    let place = Place::new();
    place.serve(|request, reply| match request.path.as_str() {
        "/v1/doctor" => reply.json(&json!([])),
        _ => reply
            .json(&json!({"running": true, "pid": 7, "version": "0.0.1", "socket": "/s", "state_dir": "/d",
                                "uptime_s": 1})),
    });
    let checks = place.run(&["doctor", "--json"]).json();
    assert_eq!(checks[0]["status"], "warn");
    assert!(checks[0]["hint"].as_str().unwrap().contains("banger daemon stop"), "{checks}");
}

#[test]
fn a_daemon_that_ends_without_a_word_or_is_not_there_is_told() {
    let place = Place::new();
    let ran = place.run(&["ps"]);
    assert_eq!(ran.status, 1);
    assert!(ran.stderr.contains("'bangerd' was not found"), "{}", ran.stderr);
    place.bangerd("exit 3");
    let ran = place.run(&["ps", "--json"]);
    assert_eq!(ran.error_json()["error"]["code"], "unavailable");
    assert!(ran.stderr.contains("before it was ready"), "{}", ran.stderr);
}

#[test]
fn some_commands_never_start_it() {
    let place = Place::new();
    place.bangerd("echo x > \"$BANGER_RUNTIME_DIR/asked\"");
    let status = place.run(&["daemon", "status", "--json"]);
    assert_eq!(status.status, 0);
    assert_eq!(
        status.json(),
        json!({"running": false, "pid": null, "version": null, "socket": place.socket().to_str().unwrap(),
               "state_dir": place.path("state").to_str().unwrap(), "uptime_s": null})
    );
    for args in [&["daemon", "status"][..], &["daemon", "stop"], &["version"], &["completion", "bash"]] {
        assert_eq!(place.run(args).status, 0, "{args:?}");
    }
    assert_eq!(place.run(&["daemon", "logs"]).status, 1, "there is none yet");
    fs::write(place.path("state/bangerd.log"), "{}\n").unwrap();
    assert_eq!(place.run(&["daemon", "logs"]).text(), "{}\n");
    assert!(!place.path("run/asked").exists());
}

#[test]
fn the_log_is_followed() {
    use std::io::{Read as _, Write as _};
    let place = Place::new();
    fs::write(place.path("state/bangerd.log"), "one\n").unwrap();
    let mut child = place.banger(&["daemon", "logs", "-f"]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut word = [0; 4];
    out.read_exact(&mut word).unwrap();
    let mut log = fs::OpenOptions::new().append(true).open(place.path("state/bangerd.log")).unwrap();
    log.write_all(b"two\n").unwrap();
    out.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"two\n");
    // Nobody reads any more: it ends at the next line.
    drop(out);
    let writer = thread::spawn(move || {
        for _ in 0..50 {
            let _ = log.write_all(b"more\n");
            thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    assert_eq!(child.wait().unwrap().code(), Some(141));
    writer.join().unwrap();
}

#[test]
fn names_complete_from_a_running_daemon_only() {
    let place = Place::new();
    let complete = |words: &[&str]| {
        let mut command = place.banger(&["--"]);
        command
            .args(words)
            .env("BANGER_COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
        command
            .env("_CLAP_IFS", "\n")
            .env("_CLAP_COMPLETE_COMP_TYPE", "9")
            .env("_CLAP_COMPLETE_SPACE", "true");
        Ran::from(command.output().unwrap())
    };
    assert_eq!(complete(&["banger", "exec", "w"]).text(), "", "silent");
    place.serve(|_, reply| reply.json(&json!([{"name": "web"}, {"name": "worker"}, {"name": "db"}])));
    assert_eq!(complete(&["banger", "exec", "w"]).text(), "web\nworker");
    assert!(complete(&["banger", "vm", "s"]).text().contains("start"));
}
