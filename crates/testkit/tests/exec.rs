//! `exec`: statuses, bytes, arguments and many at once, in a real VM on the barest image.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use banger_testkit::guests::{agent_rss_kib, rss_kib};
use banger_testkit::{Feed, Sandbox, random};

#[test]
fn the_guest_commands_status_is_ours() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("statuses", "bare", &[]);
    vm.sh("exit 42").go().ends_with(42).done();
    vm.exec(["true"]).go().ok().done();
    vm.exec(["no-such-program"]).go().ends_with(127).says(&["no-such-program"]).done();
    vm.sh("echo text >/tmp/text; chmod 644 /tmp/text").go().ok().done();
    vm.exec(["/tmp/text"]).go().ends_with(126).says(&["/tmp/text"]).done();
    vm.exec(["/bin"]).go().ends_with(126).done();
    vm.sh("kill -TERM $$").go().ends_with(143).done();
    vm.sh("kill -KILL $$").go().ends_with(137).done();

    let late = vm.exec_with(&["--timeout", "1s"], ["sleep", "600"]).go();
    assert!(late.elapsed < Duration::from_secs(20), "{late}");
    late.ends_with(125).says(&["1"]).done();
    vm.sh("! pidof sleep").go().ok().done();

    sandbox.banger(["exec", "nobody", "--", "true"]).go().ends_with(125).says(&["nobody", "hint:"]).done();
    vm.exec_with(&["--user", "stranger"], ["true"]).go().ends_with(126).says(&["stranger"]).done();
    vm.exec_with(&["--workdir", "/no/where"], ["true"]).go().ends_with(126).says(&["/no/where"]).done();

    let json =
        sandbox.banger(["exec", &vm.name, "--json", "--", "sh", "-c", "echo out; exit 3"]).go().ends_with(3);
    assert_eq!(json.json()["exit_code"], 3, "{json}");
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn run_passes_the_status_through_and_deletes_what_it_made() {
    let sandbox = Sandbox::bare();
    for (script, status) in [("exit 42", 42), ("kill -TERM $$", 143), ("exec no-such", 127)] {
        let run = sandbox.banger(["vm", "run", "--rm", "--image", "bare", "--", "sh", "-c", script]);
        run.go().ends_with(status).done();
    }
    let missing = sandbox.banger(["run", "--rm", "--image", "bare", "--", "no-such-program"]).go();
    missing.ends_with(127).says(&["no-such-program"]).done();
    assert_eq!(sandbox.vm_names(), Vec::<String>::new());
    sandbox.no_vm_is_left();
}

#[test]
fn stdin_ends_where_it_ends() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("stdin", "bare", &[]);
    // Given input: it arrives, and so does its end.
    let out = vm.exec(["cat"]).feed(Feed::Bytes(b"some\0bytes\xff\n".to_vec())).go().ok();
    assert_eq!(out.stdout, b"some\0bytes\xff\n");
    // Given none: cat ends at once.
    assert_eq!(vm.exec(["cat"]).feed(Feed::Null).go().ok().stdout, b"");
    // Given a closed descriptor.
    let banger = banger_testkit::bin_dir().join("banger");
    let closed = sandbox.program("sh").args(["-c", "exec \"$0\" exec stdin -- cat <&-"]).arg(&banger);
    assert_eq!(closed.go().ok().stdout, b"");
    // Given an open pipe that never says anything: the command's end is the end.
    vm.exec(["true"]).feed(Feed::Silent).within(Duration::from_secs(20)).go().ok().done();
    // Given a command that reads a little and leaves.
    let little = vm.exec(["head", "-c", "4"]).feed(Feed::Bytes(random::bytes(4 << 20, 5))).go().ok();
    assert_eq!(little.stdout, random::bytes(4, 5));
    // stdout and stderr stay apart.
    let both = vm.sh("echo out; echo err >&2").go().ok();
    assert_eq!((both.text(), both.err().as_str()), ("out", "err\n"));

    // 64 MiB there and back.
    let much = random::bytes(64 << 20, 11);
    let cat = sandbox.banger(["exec", "-i", "stdin", "--", "cat"]).feed(Feed::Bytes(much.clone()));
    let back = cat.within(Duration::from_secs(180)).go();
    assert_eq!(back.code(), 0);
    assert_eq!(back.stdout.len(), much.len());
    assert!(back.stdout == much, "64 MiB came back different");
    vm.delete();
}

#[test]
fn a_slow_reader_stalls_itself_and_fills_nobodys_memory() {
    const TOTAL: usize = 256 << 20;
    const MORE_KIB: u64 = 32 * 1024;
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("slow", "bare", &[]);
    vm.exec(["true"]).go().ok().done();
    let daemon = sandbox.daemon().unwrap();
    let (daemon_before, agent_before) = (rss_kib(daemon), agent_rss_kib(&vm));

    // Given 256 MiB of output, and a reader that takes a little and then looks away.
    let mut command = vm.exec(["dd", "if=/dev/zero", "bs=65536", "count=4096"]).into_command();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut from = child.stdout.take().unwrap();
    let mut chunk = vec![0; 1 << 20];
    let mut total = 0;
    while total < 1 << 20 {
        total += from.read(&mut chunk).unwrap();
    }
    let (mut daemon_most, mut agent_most) = (0, 0);
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(700));
        // When another command runs meanwhile, it is not held up.
        let began = Instant::now();
        vm.exec(["true"]).within(Duration::from_secs(20)).go().ok().done();
        assert!(began.elapsed() < Duration::from_secs(5), "another stream is stalled too");
        daemon_most = daemon_most.max(rss_kib(daemon));
        agent_most = agent_most.max(agent_rss_kib(&vm));
        total += from.read(&mut chunk).unwrap();
    }
    loop {
        let n = from.read(&mut chunk).unwrap();
        if n == 0 {
            break;
        }
        assert!(chunk[..n].iter().all(|b| *b == 0));
        total += n;
        daemon_most = daemon_most.max(rss_kib(daemon));
    }
    assert!(child.wait().unwrap().success());
    // Then all of it came, and nobody kept it.
    assert_eq!(total, TOTAL);
    assert!(daemon_most < daemon_before + MORE_KIB, "daemon: {daemon_before} KiB, then {daemon_most} KiB");
    assert!(agent_most < agent_before + MORE_KIB, "agent: {agent_before} KiB, then {agent_most} KiB");
    vm.delete();
}

#[test]
fn arguments_environment_and_directory_arrive_as_given() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("words", "bare", &[]);
    let words: Vec<&[u8]> = vec![
        b"two words",
        b"",
        b"'single'",
        b"\"double\"",
        b"$HOME",
        b"`id`",
        b"$(id)",
        b"back\\slash",
        b"new\nline",
        b"*",
        b"~",
        b"-n",
        b"--",
        b"--rm",
        b"\xff\xfe\x80",
        "gr\u{fc}n".as_bytes(),
        b"a=b",
        b"; exit 9",
        b"\x01\x1b[0m",
    ];
    let mut argv: Vec<OsString> = vec!["printf".into(), "%s\\n--\\n".into()];
    argv.extend(words.iter().map(|w| OsStr::from_bytes(w).to_owned()));
    let expected: Vec<u8> = words.iter().flat_map(|w| [w, &b"\n--\n"[..]].concat()).collect();
    let out = vm.exec(&argv).go().ok();
    assert_eq!(out.stdout.escape_ascii().to_string(), expected.escape_ascii().to_string());

    // The same through `run`, whose words pass one more hand.
    let mut run = sandbox.banger(["run", "--rm", "--image", "bare", "--"]);
    run = run.args(&argv);
    assert_eq!(run.go().ok().stdout, expected);

    let odd = OsStr::from_bytes(b"ODD=a b'\"$\n\xff");
    let flags = [OsStr::new("exec"), OsStr::new("words"), OsStr::new("--env"), odd];
    let env = sandbox.banger(flags).args(["--", "sh", "-c", "printf %s \"$ODD\""]).go().ok();
    assert_eq!(env.stdout, b"a b'\"$\n\xff");
    let passed = sandbox
        .banger(["exec", "words", "-e", "MINE", "--", "sh", "-c", "echo $MINE"])
        .env("MINE", "yes")
        .go()
        .ok();
    assert_eq!(passed.text(), "yes");
    // As many as execve takes, with stdin right behind them.
    let mut noise = random::bytes(1_200_000, 9);
    noise.iter_mut().filter(|byte| matches!(**byte, 0 | b'\n')).for_each(|byte| *byte = b'x');
    let many: Vec<&[u8]> = noise[..1_100_000].chunks(100_000).chain(noise[1_100_000..].chunks(7)).collect();
    let stdin = random::bytes(300_000, 10);
    let argv =
        [&b"sh"[..], b"-c", b"printf '%s\\n' \"$@\"; cat", b"sh"].into_iter().chain(many.iter().copied());
    let out = vm.exec(argv.map(OsStr::from_bytes)).feed(Feed::Bytes(stdin.clone())).go().ok().stdout;
    assert!(out == [many.join(&b"\n"[..]), b"\n".to_vec(), stdin].concat(), "{} bytes came", out.len());
    // More than it takes, and more than is carried.
    let script =
        "ulimit -s 65536; x=$(printf %0100000d 0); for i in $(seq \"$1\"); do set -- \"$@\" \"$x\"; done
        exec \"$0\" exec words -- true \"$@\"";
    let banger = banger_testkit::bin_dir().join("banger");
    let repeated = |times| sandbox.program("sh").args(["-c", script]).arg(&banger).arg(times).go();
    repeated("25").ends_with(126).says(&["arguments and environment of 'true' are too long"]).done();
    repeated("50").ends_with(125).says(&["more than 4194304", "stdin"]).done();
    assert_eq!(vm.exec_with(&["--workdir", "/bin"], ["pwd"]).go().ok().text(), "/bin");
    assert_eq!(vm.exec_with(&["--user", "1234"], ["id", "-u"]).go().ok().text(), "1234");
    let base = vm.exec(["env"]).go().ok();
    assert!(base.text().contains("PATH=") && base.text().contains("HOME="), "{base}");
    assert!(!base.text().contains("XDG_RUNTIME_DIR"), "the host's environment stays on the host: {base}");
    vm.delete();
}

#[test]
fn thirty_two_execs_at_once_each_get_their_own() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("many", "bare", &[]);
    let running: Vec<_> = (0..32u8)
        .map(|n| {
            let script = format!("cat; echo err-{n} >&2; exit {n}");
            vm.sh(&script).feed(Feed::Bytes(random::bytes(100_000, u64::from(n) + 50))).start()
        })
        .collect();
    for (n, one) in (0..32u8).zip(running) {
        let out = one.wait().ends_with(i32::from(n));
        assert!(out.stdout == random::bytes(100_000, u64::from(n) + 50), "command {n} got another's bytes");
        assert_eq!(out.err(), format!("err-{n}\n"));
    }
    vm.delete();
}
