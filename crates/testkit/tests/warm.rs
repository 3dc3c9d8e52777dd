//! Warm start: what goes on from a template is a machine of its own, as fast as that may be; a template that cannot be
//! used costs a notice and a boot, never a start.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use banger_testkit::repo::Repo;
use banger_testkit::{Output, Run, Sandbox, Vm, truth, wait};

/// How many go on from one template.
const CLONES: usize = 10;
const SOON: Duration = Duration::from_secs(120);
const SHAPE: &[&str] = &["--image", "bare", "--memory", "256M"];

fn run(sandbox: &Sandbox, flags: &[&str], script: &str) -> Output {
    let run = sandbox.banger(["vm", "run", "--rm"]).args(SHAPE).args(flags);
    run.args(["--", "sh", "-c", script]).within(SOON).go()
}

#[test]
fn clones_of_one_template_are_machines_of_their_own() {
    let sandbox = Sandbox::bare().warm();
    // Whoever comes first boots, and nothing of theirs is in the template.
    let first = sandbox.vm("first-of-all", "bare", &SHAPE[2..]);
    assert_eq!(first.boot_kind(), "cold");
    first.says("echo a-secret-of-the-first-user >/dev/shm/secret; cp /dev/shm/secret /root/");
    let template = sandbox.template_made();
    for file in ["memory", "system.ext4"] {
        for word in ["a-secret-of-the-first-user", "first-of-all"] {
            let found = Run::new("grep").args(["-c", "-a", "-F", word]).arg(template.join(file)).go();
            assert_eq!((found.code(), found.text()), (1, "0"), "{word} is in {file}");
        }
    }
    first.delete();

    let clones: Vec<Vm<'_>> =
        (0..CLONES).map(|n| sandbox.vm(&format!("clone-{n}"), "bare", &SHAPE[2..])).collect();
    let mut seen: [BTreeSet<String>; 5] = Default::default();
    for vm in &clones {
        assert_eq!(vm.boot_kind(), "warm");
        vm.has_the_time();
        let told = vm.says("head -c 32 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/uuid; hostname; cat /etc/hostname; \
             cat /sys/class/net/eth0/address",
        );
        assert_eq!(told.lines().count(), seen.len(), "{told}");
        for (set, line) in seen.iter_mut().zip(told.lines()) {
            set.insert(line.to_owned());
        }
        assert_eq!(told.lines().nth(2), told.lines().nth(3), "{told}");
        // Its link is up, and it knows nobody there: what the template's guest heard is nothing to it.
        assert_eq!(vm.says("cat /sys/class/net/eth0/carrier; tail -n +2 /proc/net/arp"), "1");
        vm.says("dd if=/dev/urandom of=/root/written bs=64k count=16 2>/dev/null; mkdir /root/d; echo x >/root/d/x",
        );
    }
    for (what, set) in seen.iter().enumerate() {
        assert_eq!(set.len(), CLONES, "line {what}: {set:?}");
    }
    // They do not notice that it is gone, nor that another daemon serves them.
    sandbox.banger(["vm", "template", "prune"]).go().ok().done();
    assert_eq!(sandbox.templates().len(), 0);
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    for vm in &clones {
        assert_eq!(vm.says("cat /root/d/x"), "x");
    }
    for vm in clones {
        vm.is_sound();
        vm.delete();
    }
    let wrong = truth::untruths(&sandbox);
    assert!(wrong.is_empty(), "{wrong:#?}");
    sandbox.no_vm_is_left();
}

/// A server of TLS on the host's loopback, with a certificate that is valid from this very second on.
struct TlsServer {
    server: std::process::Child,
    port: u16,
    certificate: String,
}

impl TlsServer {
    fn start(sandbox: &Sandbox) -> Self {
        let (key, certificate) = (sandbox.work("key.pem"), sandbox.work("certificate.pem"));
        let make =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"];
        let make = Run::new("openssl").args(make).args(["-subj", "/CN=host", "-keyout"]).arg(&key);
        make.arg("-out").arg(&certificate).go().ok().done();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut server = Command::new("openssl");
        server
            .args(["s_server", "-quiet", "-accept", &format!("127.0.0.1:{port}"), "-cert"])
            .arg(&certificate);
        let server =
            server.arg("-key").arg(&key).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = server.spawn().unwrap();
        wait::must("it listens", SOON, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { server, port, certificate: fs::read_to_string(certificate).unwrap() }
    }

    /// Passes when a VM's own client trusts it, by the VM's own clock.
    fn is_trusted_by(&self, vm: &Vm<'_>) {
        let connect = format!(
            "cat >/root/ca.pem <<'END'\n{}END\nopenssl s_client -connect 10.0.2.2:{} -CAfile /root/ca.pem \
             -verify_return_error -brief </dev/null",
            self.certificate, self.port
        );
        let out = vm.sh(&connect).within(SOON).go().ok();
        assert!(out.err().contains("Verification: OK"), "{out}");
    }
}

/// Lets a VM open a connection to a port of the host's, and one to itself, that stay open: nobody says anything. In a copy
/// of it another one is opened as soon as anything goes on there.
fn connects(vm: &Vm<'_>, port: u16) {
    let script = format!(
        "cat >/root/connect.pl <<'END'
use IO::Socket::INET;
my $server = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1', LocalPort => {OWN}) or die;
my $own = IO::Socket::INET->new('127.0.0.1:{OWN}') or die;
my $accepted = $server->accept or die;
my $foreign = IO::Socket::INET->new('10.0.2.2:{port}') or die;
if (!fork) {{
    <$foreign>;
    open my $said, '>', '/dev/shm/foreign-ended';
    exit;
}}
close $foreign;
sub name {{ open my $name, '<', '/proc/sys/kernel/hostname'; <$name> }}
my $first = name;
select undef, undef, undef, 0.01 while name eq $first;
my $next = IO::Socket::INET->new('10.0.2.2:{port}') or die;
<$own>;
END
perl /root/connect.pl </dev/null >/dev/null 2>&1 &"
    );
    vm.says(&script);
    wait::must("both are connected", SOON, || connections(vm, port) == [1, 1]);
}

/// A port in a guest.
const OWN: u16 = 4433;

/// How many established connections lead to a port of the host's, and to one of the VM's own.
fn connections(vm: &Vm<'_>, port: u16) -> [usize; 2] {
    let table = vm.says("cat /proc/net/tcp");
    let to = |address: &str, port: u16| {
        let there = format!("{address}:{port:04X}");
        let of = |line: &&str| {
            let mut words = line.split_whitespace().skip(2);
            words.next() == Some(&there) && words.next() == Some("01")
        };
        table.lines().filter(of).count()
    };
    [to("0202000A", port), to("0100007F", OWN)]
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn clones_of_a_whole_system_are_machines_of_their_own() {
    let sandbox = Sandbox::debian().warm();
    let shape = ["--memory", "512M"];
    let first = sandbox.vm("first-of-all", "debian", &shape);
    sandbox.template_made();
    first.delete();
    let tls = TlsServer::start(&sandbox);
    let clones: Vec<Vm<'_>> = (0..3)
        .map(|n| sandbox.vm(&format!("clone-{n}"), "debian", &[&shape[..], &["--host-access"]].concat()))
        .collect();
    let mut seen: [BTreeSet<String>; 6] = Default::default();
    for vm in &clones {
        assert_eq!(vm.boot_kind(), "warm");
        vm.has_the_time();
        tls.is_trusted_by(vm);
        let told = vm.says(
            "head -c 32 /dev/urandom | sha256sum; uuidgen 2>/dev/null || cat /proc/sys/kernel/random/uuid; hostname; \
             cat /etc/hostname; cat /etc/machine-id; cat /sys/class/net/eth0/address",
        );
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), seen.len(), "{told}");
        assert_eq!((lines[2], lines[3]), (vm.name.as_str(), vm.name.as_str()), "{told}");
        for (set, line) in seen.iter_mut().zip(lines) {
            set.insert(line.to_owned());
        }
        vm.says("dd if=/dev/urandom of=/root/written bs=64k count=16 2>/dev/null");
    }
    for (what, set) in seen.iter().enumerate() {
        assert_eq!(set.len(), clones.len(), "line {what}: {set:?}");
    }
    // A copy's network knows nothing of its parent's connections: they end at once there, and only those.
    let parent = &clones[0];
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    connects(parent, port);
    sandbox.banger(["vm", "fork", &parent.name, "--name", "copy"]).within(SOON).go().ok().done();
    let copy = sandbox.existing("copy");
    copy.says("until test -e /dev/shm/foreign-ended; do sleep 0.1; done");
    // What it opened itself meanwhile is its own.
    wait::must("its own connections stay", SOON, || connections(&copy, port) == [1, 1]);
    tls.is_trusted_by(&copy);
    assert_eq!(connections(parent, port), [1, 1]);
    for vm in clones.into_iter().chain([copy]) {
        vm.is_sound();
        vm.delete();
    }
    drop(tls);
    sandbox.no_vm_is_left();
}

#[test]
fn a_template_that_cannot_be_used_costs_a_notice_and_a_boot() {
    let sandbox = Sandbox::bare().warm();
    let offered = "template could not be used";
    run(&sandbox, &[], "exit 0").ok().done();
    let template = sandbox.template_made();
    // As it was made; then cut, written to, and half gone: each time the run is what it would have been.
    let warm = run(&sandbox, &["--timings"], "exit 42").ends_with(42);
    assert!(!warm.err().contains(offered) && !warm.err().contains("guest_network"), "{}", warm.err());
    type Harm = fn(&std::path::Path);
    let harms: [(&str, Harm); 3] = [
        ("cut", |dir| {
            let file = fs::File::options().write(true).open(dir.join("memory")).unwrap();
            file.set_len(1 << 20).unwrap();
        }),
        ("written to", |dir| {
            let file = fs::File::options().write(true).open(dir.join("memory")).unwrap();
            file.write_all_at(b"banger", 1 << 20).unwrap();
        }),
        ("half gone", |dir| fs::remove_file(dir.join("state")).unwrap()),
    ];
    for (what, harm) in harms {
        assert_eq!(sandbox.template_made(), template);
        harm(&template);
        let out = run(&sandbox, &["--timings"], "exit 42").ends_with(42);
        assert!(out.err().contains(offered), "{what}: {}", out.err());
        assert!(out.err().contains("guest_network"), "{what}: it did not boot: {}", out.err());
    }
    // Another that is as good is there again; whoever does not want it does not get it.
    sandbox.template_made();
    let cold = run(&sandbox, &["--cold", "--timings"], "exit 42").ends_with(42);
    assert!(cold.err().contains("guest_network"), "{}", cold.err());
    sandbox.no_vm_is_left();
}

#[test]
fn a_saved_template_is_what_was_saved() {
    let sandbox = Sandbox::bare().warm();
    let vm = sandbox.vm("tools", "bare", &[&SHAPE[2..], &["--cold"]].concat());
    vm.says("echo installed >/root/tool; echo up >/dev/shm/service");
    let repo = Repo::make(&sandbox.work("project"));
    let copy = sandbox.banger(["vm", "workspace", "prepare", "tools"]).arg(repo.dir());
    copy.args(["--guest-path", "/srv/project"]).go().ok().done();
    vm.says("echo built >/srv/project/built");
    let save = || sandbox.banger(["vm", "template", "save", "tools", "ready", "--json"]).within(SOON).go();
    save().ok().done();
    assert_eq!(save().json_error()["code"], "already_exists");
    vm.delete();
    let script = "cat /root/tool /dev/shm/service; hostname";
    let from = |flags: &[&str]| {
        let run = sandbox.banger(["vm", "run", "--rm", "--template", "ready"]).args(flags);
        run.args(["--", "sh", "-c", script]).within(SOON).go()
    };
    let names: BTreeSet<String> = (0..3)
        .map(|_| {
            let said = from(&[]).ok().text().to_owned();
            assert!(said.starts_with("installed\nup\n"), "{said}");
            said
        })
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(from(&["--memory", "512M", "--json"]).json_error()["code"], "invalid_argument");
    // The repository that is in it is brought up to date, and what was done there stays; another's place is taken.
    repo.write("README.md", b"changed on the host\n");
    let again = |dir: &std::path::Path, flags: &[&str]| {
        let run = sandbox.banger(["vm", "run", "--rm", "--template", "ready"]).args(flags).arg(dir);
        run.args(["--", "cat", "built", "README.md"]).within(SOON).go()
    };
    assert_eq!(again(repo.dir(), &[]).ok().text(), "built\nchanged on the host");
    let other = Repo::make(&sandbox.work("other"));
    assert_eq!(again(other.dir(), &["--json"]).json_error()["code"], "already_exists");
    // What it needs stays while it is there.
    let busy = sandbox.banger(["image", "delete", "bare", "--json"]).go();
    assert_eq!(busy.json_error()["code"], "busy");
    sandbox.banger(["vm", "template", "delete", "ready"]).go().ok().done();
    assert_eq!(from(&["--json"]).json_error()["code"], "not_found");
    sandbox.no_vm_is_left();
}

/// The processes of a VM or a spare.
fn processes(sandbox: &Sandbox, id: &str) -> Vec<u32> {
    let all = sandbox.processes();
    all.iter().filter(|p| p.detail.contains(id)).map(|p| p.key.parse().unwrap()).collect()
}

/// A process that writes down each name that it sees its machine have, and a hook. The name is read in one piece: a shell's
/// `read` asks for a byte at a time, and may be halted between two.
const PRESENT: &str = r#"
    mkdir -p /etc/banger/restored.d
    printf '#!/bin/sh\necho "$BANGER_VM_NAME" >>/root/hooked\n' >/etc/banger/restored.d/10-name
    chmod 755 /etc/banger/restored.d/10-name
    cat >/root/names <<'END'
    last=
    while name=$(cat /proc/sys/kernel/hostname); do
        [ "$name" = "$last" ] || echo "$name"
        last=$name
    done
END
    sh /root/names </dev/null >/dev/shm/names 2>&1 &
    until [ -s /dev/shm/names ]; do sleep 0.1; done"#;

#[test]
fn a_spare_that_waits_becomes_the_next_vm_and_another_takes_its_place() {
    let sandbox = Sandbox::bare().warm();
    sandbox.configure("[warm]\nspares = 1\n");
    run(&sandbox, &["--vcpu", "1"], "exit 0").ok().done();
    let template = sandbox.template_made();
    // It is nobody's, and in nobody's way.
    let first = sandbox.spares_wait(1).remove(0);
    assert_eq!(sandbox.vm_names(), Vec::<String>::new());
    assert_eq!(sandbox.banger(["vm", "show", &first, "--json"]).go().json_error()["code"], "not_found");
    assert!(!processes(&sandbox, &first).is_empty(), "no machine waits");
    sandbox.no_vm_is_left();
    // Whoever comes next is it, with a name, addresses and the time of their own.
    let vm = sandbox.vm("taken", "bare", &SHAPE[2..]);
    assert_eq!((vm.show()["id"].as_str().unwrap(), vm.boot_kind().as_str()), (first.as_str(), "warm"));
    vm.has_the_time();
    let mac = format!("52:54:00:{}:{}:{}", &first[6..8], &first[8..10], &first[10..12]);
    assert_eq!(vm.says("hostname; cat /sys/class/net/eth0/address"), format!("taken\n{mac}"));
    vm.says("ip neigh flush all; ping -c 1 -W 2 10.0.2.2 >/dev/null 2>&1; grep -q '^10.0.2.2 .* 0x2 ' /proc/net/arp");
    let second = sandbox.spares_wait(1).remove(0);
    assert_ne!(first, second);
    let wrong = truth::untruths(&sandbox);
    assert!(wrong.is_empty(), "{wrong:#?}");
    // One that dies costs whoever comes next a restore, and nobody a word; its files go.
    for pid in processes(&sandbox, &second) {
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    let out = run(&sandbox, &["--timings", "--vcpu", "1"], "exit 42").ends_with(42);
    assert!(!out.err().contains("could not") && !out.err().contains("guest_network"), "{}", out.err());
    let third = sandbox.spares_wait(1).remove(0);
    assert_ne!(second, third);
    // A daemon that is killed leaves it to the next, which ends it and makes another.
    let daemon = sandbox.daemon().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())).unwrap();
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
    wait::must("it is gone", SOON, || rustix::process::test_kill_process(daemon).is_err());
    assert_eq!(vm.says("hostname"), "taken");
    let fourth = sandbox.spares_wait(1).remove(0);
    assert_ne!(third, fourth);
    assert_eq!(processes(&sandbox, &third), Vec::<u32>::new());
    // It goes with its template.
    assert!(template.is_dir());
    sandbox.banger(["vm", "template", "prune"]).go().ok().done();
    wait::must("the spare goes", SOON, || processes(&sandbox, &fourth).is_empty());
    // One of a template with a workspace and services is the VM that was saved; and it ends with the daemon.
    vm.says(PRESENT);
    sandbox.banger(["vm", "template", "save", "taken", "ready"]).within(SOON).go().ok().done();
    let fifth = sandbox.spares_wait(1).remove(0);
    vm.delete();
    let saved = sandbox.banger(["vm", "create", "--name", "saved", "--template", "ready"]).within(SOON);
    saved.go().ok().done();
    let vm = sandbox.existing("saved");
    assert_eq!(vm.show()["id"], fifth.as_str());
    // None of its processes went on while it rehearsed, and its hooks were run once.
    let told = "until [ -s /root/hooked ]; do sleep 0.1; done; sleep 0.5; cat /root/hooked /dev/shm/names";
    assert_eq!(vm.says(told), "saved\ntaken\nsaved");
    vm.delete();
    let last = sandbox.spares_wait(1).remove(0);
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    wait::must("the daemon takes it along", SOON, || processes(&sandbox, &last).is_empty());
}
