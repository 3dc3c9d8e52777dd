//! Commands through the whole channel: a session on a socket pair, the agent's server at its other end.

use std::time::{Duration, Instant};

use crate::fixture::{self, Output, exec, session, sh};
use banger_channel::StreamEvent;
use banger_model::ByteString;
use banger_protocol::agent::frame::Lane;
use banger_protocol::agent::{Control, ExitStatus, Reply, Request, TermSize};
use bytes::Bytes;

#[tokio::test]
async fn exit_codes_and_signals_come_back() {
    let s = session().await;
    assert_eq!(sh(&s, "exit 42").await.status, ExitStatus::Code(42));
    assert_eq!(sh(&s, "true").await.status, ExitStatus::Code(0));
    assert_eq!(sh(&s, "kill -TERM $$").await.status, ExitStatus::Signal(15));
}

#[tokio::test]
async fn stdout_and_stderr_are_apart_and_complete() {
    let s = session().await;
    let got = sh(&s, "echo out; echo err >&2; head -c 300000 /dev/zero").await;
    assert_eq!(got.err, b"err\n");
    assert_eq!(got.out.len(), 4 + 300_000);
}

#[tokio::test]
async fn what_cannot_run_is_told_apart() {
    let s = session().await;
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "echo hi\n").unwrap();
    let run = async |argv: &[&str]| exec(&s, argv, |_| ()).await.status;

    let ExitStatus::NotFound(text) = run(&["no-such-command"]).await else { panic!() };
    assert!(text.contains("'no-such-command'"), "{text}");
    assert!(matches!(run(&["/no/such/file"]).await, ExitStatus::NotFound(_)));
    assert!(matches!(run(&[""]).await, ExitStatus::NotFound(_)));
    assert!(matches!(run(&[plain.to_str().unwrap()]).await, ExitStatus::NotExecutable(_)), "no x bit");
    let ExitStatus::NotExecutable(text) = run(&["/etc"]).await else { panic!() };
    assert_eq!(text, "'/etc' is a directory");

    fixture::executable(&plain, b"echo \"$0 $1\"\n");
    let script = exec(&s, &[plain.to_str().unwrap(), "a b"], |_| ()).await;
    assert_eq!(script.status, ExitStatus::Code(0), "a script without #! is run by sh");
    assert_eq!(script.out, format!("{} a b\n", plain.display()).as_bytes());

    let binary = dir.path().join("binary");
    fixture::executable(&binary, b"\x7fELF\0\0\0");
    let ExitStatus::NotExecutable(text) = run(&[binary.to_str().unwrap()]).await else { panic!() };
    assert!(text.contains("not a program"), "{text}");
    let orphan = dir.path().join("orphan");
    fixture::executable(&orphan, b"#!/no/interpreter\n");
    let ExitStatus::NotExecutable(text) = run(&[orphan.to_str().unwrap()]).await else { panic!() };
    assert!(text.contains("interpreter"), "{text}");

    let nowhere = exec(&s, &["true"], |e| e.cwd = Some("/no/such/dir".into())).await.status;
    let ExitStatus::NotExecutable(text) = nowhere else { panic!() };
    assert_eq!(text, "the working directory /no/such/dir does not exist in the guest");
    let nobody = exec(&s, &["true"], |e| e.user = Some("no-such-user".into())).await.status;
    let ExitStatus::NotExecutable(text) = nobody else { panic!() };
    assert_eq!(text, "there is no user 'no-such-user' in the guest");
    assert!(matches!(run(&["echo", "a\0b"]).await, ExitStatus::NotExecutable(_)));
}

#[tokio::test]
async fn arguments_and_environment_arrive_as_they_were_given() {
    use proptest::strategy::{Strategy as _, ValueTree as _};
    let s = session().await;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let word = proptest::collection::vec(1u8..=255, 0..40);
    for _ in 0..25 {
        // Given arguments of any bytes but zero, and one variable.
        let args = proptest::collection::vec(word.clone(), 0..6).new_tree(&mut runner).unwrap().current();
        let value = word.new_tree(&mut runner).unwrap().current();
        // When a program prints what it got.
        let script = r#"for a in "$@"; do printf '%s\0' "$a"; done; printf '%s\0' "$PROBE""#;
        let argv = ["sh", "-c", script, "sh"].map(ByteString::from).into_iter();
        let argv: Vec<ByteString> = argv.chain(args.iter().cloned().map(ByteString)).collect();
        let got =
            fixture::exec_bytes(&s, argv, |e| e.env = vec![("PROBE".into(), ByteString(value.clone()))])
                .await;
        // Then they are the same.
        let want: Vec<u8> = args.iter().chain([&value]).flat_map(|a| [a.as_slice(), &[0]].concat()).collect();
        assert_eq!(got.out.escape_ascii().to_string(), want.escape_ascii().to_string());
    }
}

#[tokio::test]
async fn what_execve_does_not_take_is_said() {
    let s = session().await;
    let many =
        |len: usize| ["true".into()].into_iter().chain((0..len / 1000).map(|_| "x".repeat(999).into()));
    let run = async |argv: Vec<ByteString>| fixture::exec_bytes(&s, argv, |_| ()).await.status;
    assert_eq!(run(many(1_800_000).collect()).await, ExitStatus::Code(0));
    let too_long = ExitStatus::NotExecutable("the arguments and environment of 'true' are too long".into());
    assert_eq!(run(many(2_300_000).collect()).await, too_long);
    assert_eq!(run(vec!["true".into(), "x".repeat(131_072).into()]).await, too_long);
    // Long names are told, too.
    let ExitStatus::NotExecutable(text) = run(vec!["x".repeat(1_000_000).into()]).await else { panic!() };
    assert!(text.contains("x\u{2026}' cannot run: File name too long"), "{text}");
    let nowhere = exec(&s, &["true"], |e| e.cwd = Some("/x".repeat(500_000).into())).await.status;
    let ExitStatus::NotExecutable(text) = nowhere else { panic!() };
    assert!(text.contains("the working directory /x/x"), "{text}");
    let nobody = exec(&s, &["true"], |e| e.user = Some("x".repeat(1_000_000))).await.status;
    assert!(matches!(nobody, ExitStatus::NotExecutable(_)), "{nobody:?}");
}

#[tokio::test]
async fn the_last_of_many_variables_of_one_name_counts() {
    let s = session().await;
    // Given as many variables as fit, in two thirds of which there is news
    let env: Vec<(ByteString, ByteString)> =
        (0..60_000).map(|n| (format!("V{}", n % 40_000).into(), n.to_string().into())).collect();
    let script = "env | grep -c ^V; echo $V0 $V19999 $V20000 $V39999";
    let got = exec(&s, &["sh", "-c", script], |e| e.env = env).await;
    assert_eq!(got.out, b"40000\n40000 59999 20000 39999\n");
}

#[tokio::test]
async fn the_environment_is_clean() {
    let s = session().await;
    let got =
        exec(&s, &["env"], |e| e.env = vec![("LANG".into(), "C".into()), ("A".into(), "b c".into())]).await;
    let text = String::from_utf8(got.out).unwrap();
    let mut names: Vec<_> = text.lines().filter_map(|l| l.split_once('=')).map(|(k, _)| k).collect();
    names.sort_unstable();
    assert_eq!(names, ["A", "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"]);
    assert!(text.contains("LANG=C\n") && text.contains("A=b c\n"));
    let signals = exec(&s, &["grep", "-E", "^Sig(Ign|Blk):", "/proc/self/status"], |_| ()).await;
    let text = String::from_utf8(signals.out).unwrap();
    assert_eq!(text.matches("0000000000000000").count(), 2, "ignored or blocked signals leak: {text}");
    let fds = exec(&s, &["sh", "-c", "echo /proc/self/fd/*"], |_| ()).await;
    let text = String::from_utf8(fds.out).unwrap();
    assert!(!text.contains("/fd/4"), "descriptors leak: {text}");
}

#[tokio::test]
async fn sixty_four_mebibytes_through_cat_are_the_same() {
    let s = session().await;
    let block: Bytes =
        (0..1_048_573u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>().into();
    let (sender, mut receiver) =
        s.open(&Request::Exec(fixture::spec(&["cat"], |e| e.stdin = true))).await.unwrap();
    let feed = async {
        for _ in 0..64 {
            sender.send(block.clone()).await.unwrap();
        }
        sender.finish().await.unwrap();
    };
    let take = async {
        let mut at = 0usize;
        let mut status = None;
        while let Some(event) = receiver.next().await.unwrap() {
            match event {
                StreamEvent::Data(Lane::Out, data) => {
                    let mut rest = &data[..];
                    while !rest.is_empty() {
                        let from = at % block.len();
                        let n = rest.len().min(block.len() - from);
                        assert!(rest[..n] == block[from..from + n], "differs at {at}");
                        at += n;
                        rest = &rest[n..];
                    }
                }
                StreamEvent::Message(Reply::Exited(end)) => status = Some(end),
                _ => {}
            }
        }
        (at, status)
    };
    let ((), (total, status)) = tokio::join!(feed, take);
    assert_eq!((total, status), (64 * block.len(), Some(ExitStatus::Code(0))));
}

#[tokio::test]
async fn stdin_ends_and_a_program_that_ignores_it_ends_too() {
    let s = session().await;
    // Without stdin it is empty.
    assert_eq!(exec(&s, &["cat"], |_| ()).await.status, ExitStatus::Code(0));
    // A program that closes its input neither stalls the sender nor the end.
    let request =
        Request::Exec(fixture::spec(&["sh", "-c", "exec <&-; sleep 0.3; echo done"], |e| e.stdin = true));
    let (sender, receiver) = s.open(&request).await.unwrap();
    let feed = async {
        let mut sent = 0;
        while sent < 64 << 20 && sender.send(Bytes::from(vec![7; 1 << 20])).await.is_ok() {
            sent += 1 << 20;
        }
    };
    let (got, ()) = tokio::time::timeout(Duration::from_secs(20), async {
        tokio::join!(fixture::collect(receiver), feed)
    })
    .await
    .unwrap();
    assert_eq!((got.status, got.out.as_slice()), (ExitStatus::Code(0), &b"done\n"[..]));
}

#[tokio::test]
async fn signals_reach_the_group_past_unread_input() {
    let s = session().await;
    let request = Request::Exec(fixture::spec(
        &["sh", "-c", "trap 'echo caught; exit 3' USR1; echo ready; sleep 30 & wait"],
        |e| e.stdin = true,
    ));
    let (sender, mut receiver) = s.open(&request).await.unwrap();
    fixture::wait_for(&mut receiver, b"ready").await;
    // More input than pipe and window hold, from a task that gets stuck with it.
    let stuck = async {
        let _ = sender.send(Bytes::from(vec![0; 1 << 20])).await;
        std::future::pending::<()>().await;
    };
    let signal = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        sender.control(Control::Signal { signal: 10 }).await.unwrap();
        fixture::collect(receiver).await
    };
    tokio::select! {
        () = stuck => {}
        got = signal => {
            assert_eq!(got.status, ExitStatus::Code(3));
            assert!(got.out.ends_with(b"caught\n"));
        }
        () = tokio::time::sleep(Duration::from_secs(10)) => panic!("the signal did not arrive"),
    }
}

#[tokio::test]
async fn a_terminal_has_a_size_follows_it_and_passes_ctrl_c_on() {
    let s = session().await;
    let script = "stty size; trap 'stty size' WINCH; trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.05; done";
    let request = Request::Exec(fixture::spec(&["sh", "-c", script], |e| {
        e.tty = Some(TermSize { rows: 33, cols: 101 });
        e.stdin = true;
    }));
    let (sender, mut receiver) = s.open(&request).await.unwrap();
    let before = fixture::wait_for(&mut receiver, b"ready\r\n").await;
    assert!(before.starts_with(b"33 101\r\n"), "{}", before.escape_ascii());
    sender.control(Control::Resize(TermSize { rows: 20, cols: 60 })).await.unwrap();
    fixture::wait_for(&mut receiver, b"20 60\r\n").await;
    sender.send(Bytes::from_static(b"\x03")).await.unwrap();
    let got = tokio::time::timeout(Duration::from_secs(10), fixture::collect(receiver)).await.unwrap();
    assert_eq!(got.status, ExitStatus::Code(9));
    assert!(got.out.ends_with(b"interrupted\r\n"), "{}", got.out.escape_ascii());
}

#[tokio::test]
async fn the_end_of_input_reaches_a_terminal() {
    let s = session().await;
    let request = Request::Exec(fixture::spec(&["sh", "-c", "stty -echo; echo ready; cat"], |e| {
        e.tty = Some(TermSize { rows: 24, cols: 80 });
        e.stdin = true;
    }));
    let (sender, mut receiver) = s.open(&request).await.unwrap();
    fixture::wait_for(&mut receiver, b"ready\r\n").await;
    sender.send(Bytes::from_static(b"no newline")).await.unwrap();
    sender.finish().await.unwrap();
    let got = tokio::time::timeout(Duration::from_secs(10), fixture::collect(receiver)).await.unwrap();
    assert_eq!((got.status, got.out.as_slice()), (ExitStatus::Code(0), &b"no newline"[..]));
}

#[tokio::test]
async fn a_grandchild_that_keeps_the_streams_does_not_keep_the_request() {
    let s = session().await;
    let begin = Instant::now();
    let silent = sh(&s, "sleep 30 & echo $!").await;
    assert_eq!(silent.status, ExitStatus::Code(0));
    // One that never stops writing neither.
    let noisy = tokio::time::timeout(Duration::from_secs(20), sh(&s, "yes & echo $!")).await.unwrap();
    assert_eq!(noisy.status, ExitStatus::Code(0));
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    fixture::kill(std::str::from_utf8(&silent.out).unwrap());
}

#[tokio::test]
async fn thirty_two_commands_at_once() {
    let s = session().await;
    let all = (0..32).map(|i| {
        let s = s.clone();
        tokio::spawn(async move { sh(&s, &format!("sleep 0.2; echo {i}; exit {i}")).await })
    });
    for (i, task) in all.collect::<Vec<_>>().into_iter().enumerate() {
        let Output { status, out, .. } = task.await.unwrap();
        assert_eq!((status, out), (ExitStatus::Code(i as i32), format!("{i}\n").into_bytes()));
    }
}

#[tokio::test]
async fn a_reset_stream_hangs_the_group_up_and_then_kills_it() {
    let s = session().await;
    let dir = tempfile::tempdir().unwrap();
    // Its shell says "Hangup" about sleep on stderr, which is closed by then.
    let script = format!(
        "exec 2>/dev/null; trap 'echo hup >> {0}/log' HUP; echo $$ > {0}/pid; echo ready; while :; do sleep 0.05; done",
        dir.path().display()
    );
    let (sender, mut receiver) =
        s.open(&Request::Exec(fixture::spec(&["sh", "-c", &script], |_| ()))).await.unwrap();
    fixture::wait_for(&mut receiver, b"ready").await;
    drop((sender, receiver));
    fixture::eventually(|| dir.path().join("log").exists()).await;
    let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
    fixture::eventually(|| !fixture::alive(&pid)).await;
}

#[tokio::test]
async fn a_new_session_ends_the_commands_of_the_old_one() {
    let (a, b) = tokio::net::UnixStream::pair().unwrap();
    tokio::spawn(banger_agent::serve_hosted(b));
    // Given a host that runs a command and dies in the middle of a frame.
    let (relay, old) = fixture::relay(a);
    let s = banger_channel::Session::connect(old, [1; 16]).await.unwrap();
    let (sender, mut receiver) = s
        .open(&Request::Exec(fixture::spec(&["sh", "-c", "echo $$; exec sleep 60"], |e| e.stdin = true)))
        .await
        .unwrap();
    let pid = String::from_utf8(fixture::wait_for(&mut receiver, b"\n").await).unwrap();
    drop((sender, receiver, s));
    let mut io = relay.await.unwrap();
    fixture::half_a_frame(&mut io, [1; 16]).await;
    // When another takes the same byte stream over.
    let s = banger_channel::Session::connect(io, [2; 16]).await.unwrap();
    // Then it works, and the old command is gone.
    assert_eq!(sh(&s, "exit 5").await.status, ExitStatus::Code(5));
    fixture::eventually(|| !fixture::alive(&pid)).await;
}
