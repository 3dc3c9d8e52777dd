use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

use banger_protocol::exec::Kind;
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;

use crate::scripted::{Place, signal, wait_for};

/// A terminal: our side and the program's.
fn terminal() -> (File, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    (File::from(ours), theirs)
}

fn resize(terminal: impl AsFd, rows: u16, cols: u16) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

fn is_raw(modes: &Termios) -> bool {
    !modes.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
}

#[test]
fn a_shell_gets_the_keys_and_the_size_and_the_terminal_is_sane_again() {
    let place = Place::new();
    let (told, frames) = mpsc::channel();
    let log = place.serve(move |_, reply| {
        reply.upgrade();
        reply.frame(Kind::Stdout, b"$ ");
        while let Some(frame) = reply.next() {
            let interrupt = frame == (Kind::Stdin, vec![3]);
            told.send(frame).unwrap();
            if interrupt {
                reply.exit(&json!({"code": 7}));
            }
        }
    });
    let (mut ours, theirs) = terminal();
    resize(&theirs, 30, 100);
    let sane = tcgetattr(&theirs).unwrap();
    let mut command = place.banger(&["shell", "web"]);
    command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap());
    let mut child = command.spawn().unwrap();

    wait_for("raw mode", || is_raw(&tcgetattr(&theirs).unwrap()));
    let mut prompt = [0; 2];
    ours.read_exact(&mut prompt).unwrap();
    assert_eq!(log.body("POST /v1/vms/web/exec?watch=true")["tty"], json!({"rows": 30, "cols": 100}));
    assert_eq!(log.body("POST /v1/vms/web/exec?watch=true")["env"], json!([["TERM", "xterm-test"]]));

    let next = || frames.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(next(), (Kind::Resize, vec![30, 0, 100, 0]));
    resize(&theirs, 40, 120);
    signal(&child, Signal::WINCH);
    assert_eq!(next(), (Kind::Resize, vec![40, 0, 120, 0]));
    ours.write_all(b"\x03").unwrap();
    assert_eq!(next(), (Kind::Stdin, vec![3]), "the interrupt is the guest's");

    assert_eq!(child.wait().unwrap().code(), Some(7));
    let after = tcgetattr(&theirs).unwrap();
    assert_eq!((after.local_modes, after.input_modes), (sane.local_modes, sane.input_modes));
}

#[test]
fn the_terminal_is_sane_after_a_signal_and_after_the_daemon_died() {
    for kill in [true, false] {
        let place = Place::new();
        place.serve(move |_, reply| {
            reply.upgrade();
            if kill {
                while reply.next().is_some() {}
            } else {
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        let (_ours, theirs) = terminal();
        let sane = tcgetattr(&theirs).unwrap();
        let mut command = place.banger(&["exec", "-t", "web", "--", "vi"]);
        command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap());
        let mut child = command.spawn().unwrap();
        wait_for("raw mode", || is_raw(&tcgetattr(&theirs).unwrap()));
        if kill {
            signal(&child, Signal::TERM);
        }
        assert_eq!(child.wait().unwrap().code(), Some(if kill { 143 } else { 125 }));
        assert_eq!(tcgetattr(&theirs).unwrap().local_modes, sane.local_modes);
    }
}

#[test]
fn a_shell_that_ends_leaves_a_reminder_unless_the_vm_goes_too() {
    for rm in [false, true] {
        let place = Place::new();
        place.serve(|request, reply| match &*request.line() {
            "POST /v1/vms" => reply.result(&crate::scripted::created("web")),
            "DELETE /v1/vms/0123456789ab?force=true" => reply.json(&crate::scripted::vm("web")),
            _ => {
                reply.upgrade();
                reply.exit(&json!({"code": 0}));
            }
        });
        let (_ours, theirs) = terminal();
        let mut command = place.banger(&["run"]);
        if rm {
            command.arg("--rm");
        }
        command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap());
        let ran = crate::scripted::Ran::from(command.output().unwrap());
        assert_eq!((ran.status, ran.stderr.contains("still runs")), (0, !rm), "{}", ran.stderr);
    }
}

#[test]
fn a_guests_console_cannot_steer_the_terminal_but_a_pipe_gets_it_as_it_is() {
    let place = Place::new();
    let log = place.serve(|_, reply| {
        reply.begin("text/plain");
        reply.chunk(b"boot\x1b[2J");
        reply.chunk(b"ed.");
        reply.end();
    });
    let piped = place.run(&["logs", "web", "--console"]);
    assert_eq!(piped.stdout, b"boot\x1b[2Jed.");
    let (mut ours, theirs) = terminal();
    assert!(
        place
            .banger(&["logs", "web", "--console"])
            .stdout(theirs.try_clone().unwrap())
            .status()
            .unwrap()
            .success()
    );
    let mut shown = [0; 7];
    ours.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"booted.");
    assert_eq!(log.lines()[0], "GET /v1/vms/web/logs?source=console&follow=false");
}
