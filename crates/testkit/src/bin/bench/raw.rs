//! The floor under a restore: what the VMM itself takes, by hand, for the same snapshot. No cage, no checks.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use banger_testkit::measure::ms;

/// QEMU with the arguments of a machine that went on from a snapshot, and sockets of its own.
pub(crate) struct RawQemu {
    program: String,
    arguments: Vec<String>,
    state: PathBuf,
    control: PathBuf,
}

impl RawQemu {
    /// That of a process that runs now, and the state that it began with. `work` is for sockets and for a copy of its
    /// system disk, if that is one of a VM's.
    pub(crate) fn of(pid: u32, state: &Path, work: &Path) -> Self {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).expect("its command line");
        let mut words = line
            .split(|b| *b == 0)
            .filter(|w| !w.is_empty())
            .map(|w| String::from_utf8_lossy(w).into_owned());
        let program = words.next().expect("a program");
        let control = work.join("raw-control.sock");
        let socket =
            |id: &str| format!("socket,id={id},path={}/raw-{id}.sock,server=on,wait=off", work.display());
        let arguments = words.map(|word| match word.as_str() {
            // Nobody is to take it for one of banger's.
            name if name.starts_with("banger-vm-") => "raw".to_owned(),
            "defer" => "fd:0".to_owned(),
            chardev if chardev.starts_with("socket,id=control,") => socket("control"),
            chardev if chardev.starts_with("socket,id=agent,") => socket("agent"),
            console if console.starts_with("file,id=console,") => "null,id=console".to_owned(),
            network if network.starts_with("stream,id=net,") => {
                format!("stream,id=net,server=on,addr.type=unix,addr.path={}/raw-net.sock", work.display())
            }
            disk if disk.contains(r#""node-name":"system","read-only":false"#) => with_copy(disk, work),
            _ => word,
        });
        Self { program, arguments: arguments.collect(), state: state.to_owned(), control }
    }

    /// From its start until it says that the guest runs; milliseconds.
    pub(crate) fn restore(&self) -> f64 {
        let _ = std::fs::remove_file(&self.control);
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(File::open(&self.state).expect("the state"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let began = Instant::now();
        let child = Ended(command.spawn().expect("QEMU runs"));
        let mut control = connect(&self.control);
        let mut lines = BufReader::new(control.try_clone().expect("a descriptor"));
        let mut line = String::new();
        let mut answer = |words: &str| loop {
            line.clear();
            assert!(lines.read_line(&mut line).expect("an answer") > 0, "QEMU ended");
            if line.contains(words) {
                return;
            }
        };
        answer("QMP");
        control.write_all(b"{\"execute\": \"qmp_capabilities\"}\n").expect("it listens");
        answer("return");
        // In the middle of the state's arrival it means: as soon as that is done.
        control.write_all(b"{\"execute\": \"cont\"}\n").expect("it listens");
        answer("\"RESUME\"");
        let took = ms(began.elapsed());
        drop(child);
        took
    }
}

/// Firecracker in a directory in which everything lies that its snapshot names.
pub(crate) struct RawFirecracker {
    pub(crate) program: PathBuf,
    pub(crate) dir: PathBuf,
}

impl RawFirecracker {
    /// From its start until the last of these calls is answered; milliseconds. A call is a method, a path and a body.
    pub(crate) fn calls(&self, calls: &[(&str, &str, String)]) -> f64 {
        let socket = self.dir.join("api.sock");
        for name in ["api.sock", "vsock.sock"] {
            let _ = std::fs::remove_file(self.dir.join(name));
        }
        let mut command = Command::new(&self.program);
        command.args(["--id", "raw", "--api-sock", "api.sock"]).current_dir(&self.dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let began = Instant::now();
        let child = Ended(command.spawn().expect("Firecracker runs"));
        for (method, path, body) in calls {
            let mut api = connect(&socket);
            let head =
                format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
            let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
            api.write_all(request.as_bytes()).expect("it listens");
            let mut answer = [0; 12];
            api.read_exact(&mut answer).expect("an answer");
            assert_eq!(
                answer.get(9..10),
                Some(&b"2"[..]),
                "{method} {path}: {}",
                String::from_utf8_lossy(&answer)
            );
        }
        let took = ms(began.elapsed());
        drop(child);
        took
    }
}

/// A process that ends with this.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The word for a disk, with a copy of its file: the machine has that in use.
fn with_copy(disk: &str, work: &Path) -> String {
    let mut node: serde_json::Value = serde_json::from_str(disk).expect("a description of a disk");
    let file = node.pointer_mut("/file/filename").expect("its file");
    let copy = work.join("raw-system.ext4");
    let mut cp = Command::new("cp");
    cp.args(["--sparse=always", "--reflink=auto"]).arg(file.as_str().expect("a path")).arg(&copy);
    assert!(cp.status().expect("cp runs").success(), "{cp:?}");
    *file = copy.display().to_string().into();
    node.to_string()
}

/// As soon as somebody listens.
fn connect(path: &Path) -> UnixStream {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < until, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}
