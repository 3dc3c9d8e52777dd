//! A daemon made of a closure: it speaks HTTP and exec frames on a socket, and remembers what it
//! was asked.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use banger_protocol::exec::{HEADER_LEN, Kind, header, parse_header};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A place of its own for one test: state, sockets, and a `banger` that finds no other daemon.
pub(crate) struct Place {
    dir: TempDir,
    bin: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("bcli").tempdir_in("/var/tmp").unwrap();
        let bin = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::hard_link(env!("CARGO_BIN_EXE_banger"), bin.path().join("banger")).unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        Self { dir, bin }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/bangerd.sock")
    }

    /// Puts a shell script beside `banger` as its daemon.
    pub(crate) fn bangerd(&self, script: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.bin.path().join("bangerd");
        fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn banger(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.bin.path().join("banger"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("BANGER_RUNTIME_DIR", self.path("run"))
            .env("BANGER_STATE_DIR", self.path("state"))
            .env("PATH", "/usr/bin:/bin")
            .env_remove("NO_COLOR")
            .env("TERM", "xterm-test")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.banger(args).output().unwrap())
    }

    /// Serves until the test ends.
    pub(crate) fn serve(&self, answer: impl Fn(&Request, &mut Reply) + Send + Sync + 'static) -> Log {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let log = Log::default();
        let (seen, answer) = (log.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, answer) = (seen.clone(), Arc::clone(&answer));
                thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let Some(request) = Request::read(&mut stream) else { return };
                    seen.0.lock().unwrap().push(request.clone());
                    answer(&request, &mut Reply(stream));
                });
            }
        });
        log
    }
}

/// What a process left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub(crate) fn error_json(&self) -> Value {
        serde_json::from_str(&self.stderr).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// The requests so far.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Request>>>);

impl Log {
    pub(crate) fn all(&self) -> Vec<Request> {
        self.0.lock().unwrap().clone()
    }

    /// `METHOD path` of each.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.all().iter().map(Request::line).collect()
    }

    pub(crate) fn body(&self, line: &str) -> Value {
        let all = self.all();
        let found =
            all.iter().find(|r| r.line() == line).unwrap_or_else(|| panic!("no {line}: {:?}", self.lines()));
        serde_json::from_slice(&found.body).unwrap()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    fn read(stream: &mut UnixStream) -> Option<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).ok()? == 0 {
                return None;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let mut words = lines.next()?.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let headers: HashMap<String, String> = lines
            .filter_map(|l| l.split_once(": "))
            .map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned()))
            .collect();
        let length = headers.get("content-length").map_or(0, |v| v.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        Some(Self { method, path, headers, body })
    }

    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// The answering side of a connection.
pub(crate) struct Reply(pub(crate) UnixStream);

impl Reply {
    pub(crate) fn json(&mut self, value: &Value) {
        self.whole("200 OK", &value.to_string());
    }

    pub(crate) fn error(&mut self, status: &str, code: &str, message: &str) {
        let body = json!({"error": {"code": code, "message": message, "hint": "a hint", "op_id": null}});
        self.whole(status, &body.to_string());
    }

    fn whole(&mut self, status: &str, body: &str) {
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nx-banger-op: op-0123456789ab\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let _ = self.0.write_all(format!("{head}{body}").as_bytes());
    }

    /// Begins a chunked body.
    pub(crate) fn begin(&mut self, media: &str) {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {media}\r\nx-banger-op: op-0123456789ab\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        self.0.write_all(head.as_bytes()).unwrap();
    }

    pub(crate) fn chunk(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(format!("{:x}\r\n", bytes.len()).as_bytes());
        let _ = self.0.write_all(bytes);
        let _ = self.0.write_all(b"\r\n");
    }

    pub(crate) fn end(&mut self) {
        let _ = self.0.write_all(b"0\r\n\r\n");
    }

    /// A whole event stream.
    pub(crate) fn events(&mut self, events: &[Value]) {
        self.begin("application/x-ndjson");
        for event in events {
            self.chunk(format!("{event}\n").as_bytes());
        }
        self.end();
    }

    pub(crate) fn result(&mut self, value: &Value) {
        self.events(&[json!({"type": "result", "value": value})]);
    }

    /// Waits until the client closes the connection.
    pub(crate) fn until_closed(&mut self) {
        let _ = self.0.read(&mut [0]);
    }

    /// Switches to frames and says that the command runs.
    pub(crate) fn upgrade(&mut self) {
        let head =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: banger-exec-1\r\n\r\n";
        self.0.write_all(head.as_bytes()).unwrap();
        self.frame(Kind::Started, b"");
    }

    pub(crate) fn frame(&mut self, kind: Kind, payload: &[u8]) {
        let _ = self.0.write_all(&header(kind, payload.len()));
        let _ = self.0.write_all(payload);
    }

    pub(crate) fn exit(&mut self, status: &Value) {
        self.frame(Kind::Exit, status.to_string().as_bytes());
    }

    /// The next frame from the client; nothing when it has gone.
    pub(crate) fn next(&mut self) -> Option<(Kind, Vec<u8>)> {
        let mut head = [0; HEADER_LEN];
        self.0.read_exact(&mut head).ok()?;
        let (kind, len) = parse_header(head).unwrap();
        let mut payload = vec![0; len];
        self.0.read_exact(&mut payload).ok()?;
        Some((kind, payload))
    }
}

/// A VM as the daemon shows it.
pub(crate) fn vm(name: &str) -> Value {
    json!({
        "id": "0123456789ab", "name": name, "state": "running", "driver": "qemu", "accel": "tcg",
        "image": "debian", "kernel": "debian-cloud", "vcpu": 2, "memory_mib": 1024, "disk_bytes": 8_589_934_592_u64,
        "network": {"mode": "user", "guest_ip": null, "nat": false, "host_access": false},
        "workspace": null, "pid": 7, "created_at": "2026-01-01T00:00:00Z", "started_at": null,
        "boot": {"kind": "cold", "ready_ms": 1234}, "last_error": null, "security": null, "work_disk_bytes": null,
        "parent": null,
    })
}

/// The same with the timings of its start.
pub(crate) fn created(name: &str) -> Value {
    let mut value = vm(name);
    value["timings"] = json!([{"step": "boot", "ms": 12.5}]);
    value
}

/// Waits for something that another process brings about.
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal to a process of ours.
pub(crate) fn signal(child: &std::process::Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}
