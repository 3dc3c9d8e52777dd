//! What the real Firecracker cannot be made to do: hang, answer nonsense, die in mid-answer, lie. A
//! program that only sleeps stands for its process, and this one answers in its place.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use banger_model::{Accel, Error, ErrorCode};
use banger_vmm::firecracker::FirecrackerDriver;
use banger_vmm::{Cage, VmmError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::bench::{Bench, Subject, soon, until};
use crate::guest;

/// What is answered to one call.
#[derive(Debug, Clone, Copy)]
enum Answer {
    /// As Firecracker would.
    Fine,
    Refuse,
    Fail,
    Hang,
    /// The head and half of the body.
    HalfThenHangUp,
    /// Half of the body, and then the process is gone as well.
    HalfThenDie,
    /// Not HTTP at all.
    Nonsense,
    /// A body without an end.
    Flood,
    /// The machine is said not to have started.
    NotStarted,
}

fn scripted(dir: &std::path::Path) -> Subject {
    let program: PathBuf = dir.join("firecracker");
    let script = "#!/bin/bash\n[ \"$1\" = --version ] && echo 'Firecracker v1.17.0' && exit\n: > started\nexec -a \"fake:$2\" sleep 600\n";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Subject {
        name: "scripted",
        driver: Arc::new(FirecrackerDriver::new(program, Cage::none())),
        accel: Accel::Kvm,
        power_off: Vec::new(),
        reset: Vec::new(),
    }
}

/// Serves until it is dropped: `odd` to the calls on that path, and as the real one to the others.
async fn serve(
    listener: UnixListener,
    path: &'static str,
    odd: Answer,
    pid: Arc<std::sync::Mutex<Option<u32>>>,
) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        // As the real one, it answers on one connection for as long as there are calls.
        while let Some(target) = asked(&mut stream).await {
            let answer = if target == path { odd } else { Answer::Fine };
            say(&mut stream, &target, answer).await;
            if let Answer::HalfThenDie = answer {
                let pid = pid.lock().unwrap().take().unwrap();
                let process = banger_vmm::process::ProcessId::of(pid).unwrap().unwrap();
                process.signal(banger_vmm::Signal::KILL).unwrap();
            }
            if let Answer::HalfThenHangUp | Answer::HalfThenDie | Answer::Nonsense | Answer::Flood = answer {
                break;
            }
        }
    }
}

/// Reads a call; what it is to. `None`: there is none any more.
async fn asked(stream: &mut UnixStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length =
        head.lines().find_map(|l| l.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    stream.read_exact(&mut vec![0; length]).await.unwrap();
    Some(head.split(' ').nth(1).unwrap().to_owned())
}

async fn say(stream: &mut UnixStream, target: &str, answer: Answer) {
    let fault = r#"{"fault_message": "The disk is on fire."}"#;
    let whole = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let text = match answer {
        Answer::Fine if target == "/" => whole("200 OK", r#"{"state": "Running"}"#),
        Answer::Fine => whole("204 No Content", ""),
        Answer::Refuse => whole("400 Bad Request", fault),
        Answer::Fail => whole("500 Internal Server Error", "oops"),
        Answer::NotStarted => whole("200 OK", r#"{"state": "Not started"}"#),
        Answer::HalfThenHangUp | Answer::HalfThenDie => {
            "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"state\"".to_owned()
        }
        Answer::Nonsense => "SSH-2.0-nonsense\r\n\r\n".to_owned(),
        Answer::Flood => "HTTP/1.1 400 Bad Request\r\ncontent-length: 99999999\r\n\r\n".to_owned(),
        Answer::Hang => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            String::new()
        }
    };
    let _ = stream.write_all(text.as_bytes()).await;
    if let Answer::Flood = answer {
        while stream.write_all(&[b' '; 4096]).await.is_ok() {}
    }
}

/// Launches against a server that is odd on one path.
async fn launch(path: &'static str, odd: Answer) -> (Bench, Result<Arc<dyn banger_vmm::Machine>, VmmError>) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let bench = Bench::new(&scripted(dir.path()));
    let pid = Arc::<std::sync::Mutex<Option<u32>>>::default();
    let serving = async {
        until(|| bench.runtime().join("started").exists()).await;
        fs::remove_file(bench.runtime().join("started")).unwrap();
        let process = banger_vmm::process::find_marked(&bench.id).unwrap()[0].clone();
        *pid.lock().unwrap() = Some(process.pid);
        serve(UnixListener::bind(bench.runtime().join("api.sock")).unwrap(), path, odd, Arc::clone(&pid))
            .await;
    };
    let launched = tokio::select! {
        launched = soon(bench.subject.driver.launch(bench.spec(&guest::idle()))) => launched,
        () = serving => unreachable!("it serves for ever"),
    };
    (bench, launched)
}

#[tokio::test]
async fn whatever_the_server_does_a_launch_ends_in_an_error_and_leaves_nothing() {
    for (path, odd, code, words) in [
        ("/machine-config", Answer::Refuse, ErrorCode::BootFailed, "The disk is on fire."),
        ("/drives/system", Answer::Refuse, ErrorCode::BootFailed, "PUT /drives/system"),
        ("/boot-source", Answer::Fail, ErrorCode::Internal, "status 500"),
        ("/vsock", Answer::HalfThenHangUp, ErrorCode::Internal, "connection"),
        ("/actions", Answer::HalfThenDie, ErrorCode::BootFailed, "signal 9"),
        ("/entropy", Answer::Nonsense, ErrorCode::Internal, "makes no sense"),
        ("/vsock", Answer::Flood, ErrorCode::Internal, "connection"),
        ("/actions", Answer::Hang, ErrorCode::Timeout, "within 5 s"),
        ("/", Answer::NotStarted, ErrorCode::Internal, "NotStarted"),
        ("/", Answer::Nonsense, ErrorCode::Internal, "makes no sense"),
    ] {
        let (bench, launched) = launch(path, odd).await;
        let error: Error = launched.unwrap_err().into();
        assert_eq!(error.code, code, "{path} {odd:?}: {error}");
        assert!(error.message.contains(words), "{path} {odd:?}: {error}");
        bench.assert_nothing_left(&format!("{path} {odd:?}"));
    }
}

#[tokio::test]
async fn a_machine_that_lies_about_its_state_is_not_believed() {
    // Given one that was launched, whose server then says 'done' and is not
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let bench = Bench::new(&scripted(dir.path()));
    let socket = bench.runtime().join("api.sock");
    let pid = Arc::<std::sync::Mutex<Option<u32>>>::default();
    let serving = tokio::spawn({
        let (started, socket) = (bench.runtime().join("started"), socket.clone());
        async move {
            until(|| started.exists()).await;
            serve(UnixListener::bind(socket).unwrap(), "/nothing", Answer::Fine, pid).await;
        }
    });
    let machine = soon(bench.subject.driver.launch(bench.spec(&guest::idle()))).await.unwrap();
    // When it is paused, then it goes on saying that it runs: an error
    let error = soon(machine.pause()).await.unwrap_err();
    assert!(error.to_string().contains("Running after that"), "{error}");
    // And with nobody who answers, every command ends in time or at once
    serving.abort();
    let _ = serving.await;
    let error = soon(machine.pause()).await.unwrap_err();
    assert!(matches!(error, VmmError::Control { .. }), "{error:?}");
    // And yet it can be stopped
    soon(machine.stop()).await.unwrap();
    assert_eq!(bench.processes(), 0);
}
