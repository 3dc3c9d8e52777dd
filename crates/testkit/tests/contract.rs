//! The contract with scripts (docs/cli.md): statuses, JSON, errors. Mostly without booting anything.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use banger_testkit::{Sandbox, bin_dir};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

fn has(value: &Value, fields: &[&str]) {
    let object = value.as_object().unwrap();
    for field in fields {
        assert!(object.contains_key(*field), "no '{field}' in {value}");
    }
}

#[test]
fn wrong_usage_is_two_and_a_daemon_that_cannot_start_is_125() {
    let sandbox = Sandbox::empty();
    for wrong in
        [&["vm", "frobnicate"][..], &["--no-such-flag"], &["vm", "exec"], &["run", "--memory", "lots"]]
    {
        sandbox.banger(wrong).go().ends_with(2).done();
    }
    sandbox
        .banger(["run", "--name", "Not_A_Name", "--", "true"])
        .go()
        .ends_with(2)
        .says(&["Not_A_Name"])
        .done();
    assert_eq!(sandbox.daemon(), None, "wrong usage wakes nobody");

    // Given a state directory that is a file.
    let file = sandbox.work("file");
    fs::write(&file, "").unwrap();
    let broken = |args: &[&str]| sandbox.banger(args).env("BANGER_STATE_DIR", &file).go();
    broken(&["run", "--rm", "--", "true"]).ends_with(125).says(&["file", "hint:"]).done();
    broken(&["exec", "some", "--", "true"]).ends_with(125).done();
    broken(&["vm", "list"]).ends_with(1).says(&["file"]).done();
    // Given a configuration that is wrong.
    sandbox.configure("[vm_defaults]\nmemroy = '1G'\n");
    sandbox.banger(["run", "--rm", "--", "true"]).go().ends_with(125).says(&["memroy", "config.toml"]).done();
    // Given a relative directory.
    let relative =
        sandbox.banger(["vm", "list", "--json"]).env("BANGER_RUNTIME_DIR", "relative").go().ends_with(1);
    let error = relative.json_error();
    has(&error, &["code", "message", "hint", "op_id"]);
    assert_eq!(error["code"], "invalid_argument");
    assert_eq!(relative.stdout, b"");
}

#[test]
fn the_daemon_starts_by_itself_is_one_and_describes_itself() {
    let sandbox = Sandbox::empty();
    let status = sandbox.banger(["daemon", "status", "--json"]).go().json();
    has(&status, &["running", "pid", "version", "socket", "state_dir", "uptime_s"]);
    assert_eq!(status["running"], false);
    assert_eq!(sandbox.daemon(), None, "asking for the status starts nothing");

    // When eight commands find no daemon at once, then one daemon serves them all.
    let eight: Vec<_> = (0..8).map(|_| sandbox.banger(["vm", "list", "-a", "--json"]).start()).collect();
    for one in eight {
        assert_eq!(one.wait().ok().json(), Value::Array(Vec::new()));
    }
    let status = sandbox.banger(["daemon", "status", "--json"]).go().ok().json();
    assert_eq!(status["running"], true);
    assert_eq!(status["state_dir"], sandbox.state().to_str().unwrap());
    let daemons = banger_testkit::leaks::Scope::of(sandbox.root()).processes();
    assert_eq!(daemons.iter().filter(|p| p.detail.contains("bangerd")).count(), 1, "{daemons:?}");

    let mut socket = UnixStream::connect(status["socket"].as_str().unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(socket, "GET /v1/openapi.json HTTP/1.1\r\nHost: banger\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.to_lowercase().contains("x-banger-op: op-"), "{head}");
    let api: Value = serde_json::from_str(&body[body.find('{').unwrap()..=body.rfind('}').unwrap()]).unwrap();
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1"), "{}", api["openapi"]);
    for path in ["/v1/vms", "/v1/vms/{vm}/exec", "/v1/images", "/v1/kernels", "/v1/daemon", "/v1/doctor"] {
        assert!(api["paths"].get(path).is_some(), "{path} is not described");
    }

    // Who asks with other sockets learns at once which daemon it is.
    let beside = |name: &str| sandbox.runtime().with_file_name(name);
    let elsewhere = sandbox.banger(["ps"]).env("BANGER_RUNTIME_DIR", beside("elsewhere"));
    let sockets = format!("BANGER_RUNTIME_DIR={}", sandbox.runtime().display());
    elsewhere.go().ends_with(1).says(&["another daemon", &sockets]).done();
    let both = beside("both");
    let both = sandbox.banger(["ps"]).env("BANGER_RUNTIME_DIR", &both).env("BANGER_STATE_DIR", &both);
    both.go().ends_with(1).says(&["both the state and the runtime", "hint:"]).done();

    let version = sandbox.banger(["version", "--json"]).go().ok().json();
    has(&version, &["version"]);
    for shell in ["bash", "zsh", "fish"] {
        assert!(sandbox.banger(["completion", shell]).go().ok().text().contains("banger"));
    }
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    assert_eq!(sandbox.daemon(), None);
    assert!(!sandbox.runtime().join("bangerd.sock").exists());
}

// As `ulimit -f` sets it, which ends a program that does not expect it.
#[test]
fn a_limit_on_files_does_not_end_the_daemon() {
    let sandbox = Sandbox::bare();
    sandbox.banger(["daemon", "start"]).go().ok().done();
    let daemon = sandbox.daemon().unwrap();
    let pid = Pid::from_raw(i32::try_from(daemon).unwrap());
    let limit = |most| prlimit(pid, Resource::Fsize, Rlimit { current: most, maximum: None }).unwrap();
    let args = ["vm", "create", "--no-start", "--image", "bare", "--name", "limited", "--json"];
    let create = || sandbox.banger(args).go();
    limit(Some(1000));
    let refused = create().ends_with(1);
    assert_eq!(refused.json_error()["code"], "unavailable", "{refused}");
    assert_eq!(sandbox.daemon(), Some(daemon), "it went on");
    limit(None);
    create().ok().done();
    sandbox.existing("limited").delete();
}

#[test]
fn json_of_a_vm_has_every_field_and_progress_never_reaches_stdout() {
    const FIELDS: &[&str] = &[
        "id",
        "name",
        "state",
        "driver",
        "accel",
        "image",
        "kernel",
        "vcpu",
        "memory_mib",
        "disk_bytes",
        "network",
        "workspace",
        "pid",
        "created_at",
        "started_at",
        "boot",
        "last_error",
        "parent",
    ];
    let sandbox = Sandbox::bare();
    let args = [
        "vm",
        "create",
        "--name",
        "shown",
        "--image",
        "bare",
        "--memory",
        "256M",
        "--disk-size",
        "1G",
        "--timings",
        "--json",
    ];
    let made = sandbox.banger(args).go().ok().json();
    has(&made, FIELDS);
    has(&made, &["timings"]);
    for timing in made["timings"].as_array().unwrap() {
        has(timing, &["step", "ms"]);
    }
    let vm = sandbox.existing("shown");
    let shown = vm.show();
    has(&shown, FIELDS);
    has(&shown["network"], &["mode", "guest_ip", "nat"]);
    has(&shown["boot"], &["kind", "ready_ms"]);
    assert_eq!(shown["state"], "running");
    assert_eq!((&shown["memory_mib"], &shown["disk_bytes"]), (&256.into(), &(1u64 << 30).into()));
    assert_eq!((&shown["workspace"], &shown["last_error"]), (&Value::Null, &Value::Null));
    for time in ["created_at", "started_at"] {
        let text = shown[time].as_str().unwrap();
        assert!(text.ends_with('Z') && text.as_bytes()[10] == b'T', "{time} is RFC 3339 UTC: {text}");
    }
    let listed = sandbox.banger(["vm", "list", "--json"]).go().ok().json();
    assert_eq!(listed[0]["id"], shown["id"]);
    has(&listed[0], FIELDS);

    // References: id, name, prefix of either; an ambiguous one lists the matches.
    let id = shown["id"].as_str().unwrap();
    for reference in [id, &id[..5], "shown", "sho"] {
        sandbox.banger(["vm", "show", reference]).go().ok().done();
    }
    let no_start =
        ["vm", "create", "--no-start", "--image", "bar", "--kernel", "debian", "--name", "shown-two"];
    sandbox.banger(no_start).go().ok().done();
    let two = sandbox.existing("shown-two").show();
    assert_eq!((&two["image"], &two["kernel"]), (&"bare".into(), &"debian-cloud".into()));
    let logs = sandbox.banger(["logs", "shown", "--console", "--json"]).go().ok().json();
    assert_eq!((&logs["source"], logs["lines"].is_array()), (&"console".into(), true));
    let daemon = sandbox.banger(["daemon", "logs", "--json"]).go().ok().json();
    has(&daemon[0], &["timestamp", "level"]);
    let many = sandbox.banger(["vm", "show", "sho", "--json"]).go().ends_with(1);
    assert_eq!(many.json_error()["code"], "ambiguous");
    many.says(&["shown-two"]).done();
    let taken = sandbox.banger(no_start).arg("--json").go().ends_with(1);
    assert_eq!(taken.json_error()["code"], "already_exists");
    assert!(taken.json_error()["op_id"].as_str().unwrap().starts_with("op-"));
    // The op id finds the failure in the log.
    let op = taken.json_error()["op_id"].as_str().unwrap().to_owned();
    assert!(fs::read_to_string(sandbox.state().join("bangerd.log")).unwrap().contains(&op));

    // Images and kernels in use are not deleted.
    let image = sandbox.banger(["image", "delete", "bare", "--json"]).go().ends_with(1);
    assert_eq!(image.json_error()["code"], "busy");
    image.says(&["shown"]).done();
    sandbox.banger(["kernel", "delete", "debian-cloud"]).go().ends_with(1).says(&["shown"]).done();
    sandbox.banger(["vm", "delete", "shown-two"]).go().ok().done();
    vm.delete();
    sandbox.banger(["image", "delete", "bare"]).go().ok().done();
    assert_eq!(sandbox.banger(["image", "list", "--json"]).go().ok().json(), Value::Array(Vec::new()));
    assert!(banger_testkit::tree::walk(&sandbox.state().join("images")).is_empty(), "the file is gone, too");
    sandbox.no_vm_is_left();
}

#[test]
fn wrong_requests_are_refused_in_one_sentence_with_a_hint() {
    let sandbox = Sandbox::bare();
    let refused = |args: &[&str], words: &[&str]| {
        let out = sandbox.banger(["vm", "create", "--image", "bare"]).args(args).go();
        assert!(matches!(out.code(), 1 | 2), "{out}");
        out.says(words).done();
        assert_eq!(sandbox.vm_names(), Vec::<String>::new());
    };
    refused(&["--name=-bad"], &["-bad"]);
    refused(&["--name", "UPPER"], &["UPPER", "a-z"]);
    refused(&["--name", &"x".repeat(64)], &["63"]);
    refused(&["--memory", "0"], &["memory"]);
    refused(&["--memory", "1Q"], &["1Q"]);
    refused(&["--memory", "1M"], &["64"]);
    refused(&["--memory", "900G"], &["memory"]);
    refused(&["--vcpu", "0"], &["vcpu"]);
    refused(&["--vcpu", "100000"], &["100000"]);
    refused(&["--disk-size", "1M"], &["64"]);
    refused(&["--driver", "bochs"], &["bochs", "qemu"]);
    refused(&["--driver", "firecracker"], &["firecracker", "hint:"]);
    let near = sandbox.banger(["vm", "create", "--image", "baer", "--json"]).go().ends_with(1);
    let error = near.json_error();
    assert_eq!(error["code"], "image_missing", "{error}");
    assert!(error["hint"].as_str().unwrap().contains("bare"), "{error}");
    let kernel =
        sandbox.banger(["vm", "create", "--image", "bare", "--kernel", "debian-clud"]).go().ends_with(1);
    kernel.says(&["debian-clud", "debian-cloud"]).done();
    sandbox.banger(["image", "import", "x", "/no/such/dir"]).go().ends_with(1).says(&["/no/such/dir"]).done();
    sandbox.banger(["image", "import", "../x", "/tmp"]).go().ends_with(2).says(&["../x"]).done();
    sandbox.banger(["vm", "show", "nobody"]).go().ends_with(1).says(&["nobody", "hint:"]).done();
    // A VM whose memory this host has not is refused when it starts, and leaves nothing.
    sandbox.no_vm_is_left();
}

#[test]
fn kvm_asked_for_and_not_working_is_said() {
    let sandbox = Sandbox::bare();
    let checks = sandbox.banger(["doctor", "--json"]).within(Duration::from_secs(120)).go().json();
    let kvm = checks.as_array().unwrap().iter().find(|c| c["name"] == "kvm").unwrap().clone();
    banger_testkit::skip_unless!(kvm["status"] != "ok", "KVM works on this host");
    let out =
        sandbox.banger(["vm", "create", "--image", "bare", "--accel", "kvm", "--json"]).go().ends_with(1);
    let error = out.json_error();
    assert_eq!(error["code"], "unavailable", "{error}");
    assert!(error["message"].as_str().unwrap().to_lowercase().contains("kvm"), "{error}");
    assert!(error["hint"].is_string(), "{error}");
    assert_eq!(sandbox.vm_names(), Vec::<String>::new());
    // Not asked for, it is a notice, and the VM says what it has.
    let vm = sandbox.vm("slow", "bare", &[]);
    assert_eq!(vm.show()["accel"], "tcg");
    vm.delete();
}

#[test]
fn a_damaged_database_is_left_as_it_is_and_said() {
    let sandbox = Sandbox::empty();
    sandbox.banger(["vm", "list"]).go().ok().done();
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    let path = sandbox.state().join("banger.db");
    for side in ["-wal", "-shm"] {
        let _ = fs::remove_file(sandbox.state().join(format!("banger.db{side}")));
    }
    let rubbish = banger_testkit::random::bytes(20_000, 77);
    fs::write(&path, &rubbish).unwrap();
    let run = sandbox.banger(["run", "--rm", "--image", "bare", "--", "true"]).go();
    run.ends_with(125).says(&["banger.db", "hint:"]).done();
    sandbox.banger(["vm", "list"]).go().ends_with(1).says(&["banger.db"]).done();
    assert!(fs::read(&path).unwrap() == rubbish, "the damaged database was touched");
    // When it is out of the way, work goes on.
    fs::remove_file(&path).unwrap();
    sandbox.banger(["vm", "list"]).go().ok().done();
}

#[test]
fn version_needs_no_daemon_and_no_home() {
    let sandbox = Sandbox::empty();
    let banger = bin_dir().join("banger");
    let out = banger_testkit::Run::new(&banger).arg("version").go().ok();
    assert!(out.text().contains(env!("CARGO_PKG_VERSION")), "{out}");
    let nowhere = banger_testkit::Run::new(&banger).args(["vm", "list"]).go().ends_with(1);
    nowhere.says(&["BANGER_STATE_DIR"]).done();
    assert_eq!(sandbox.daemon(), None);
}
