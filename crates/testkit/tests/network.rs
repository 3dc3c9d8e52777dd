//! Networks, in a world of our own: nothing here depends on, or reaches, any real network.

#![expect(clippy::panic, reason = "a helper of a test fails it by panicking")]

use std::time::Duration;

use banger_testkit::outside::{NAME, OUTSIDE, World};
use banger_testkit::{Running, Sandbox, Vm, is_root, skip_unless, wait};

const SECRET: &str = "only for the host itself";

/// Asks for a page by hand: busybox's own wget is a static program that looks for the shared
/// libraries of a resolver, and falls over where there are none. The pause keeps our end of the
/// connection open until the answer is there.
fn ask(vm: &Vm<'_>, address: &str, port: u16) -> Running {
    let script = format!("(printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 1) | nc -w 3 {address} {port}");
    vm.sh(&script).within(Duration::from_secs(40)).start()
}

fn fetch(vm: &Vm<'_>, address: &str, port: u16) -> Option<String> {
    text(&ask(vm, address, port).wait().stdout)
}

/// What comes after the headers.
fn text(answer: &[u8]) -> Option<String> {
    String::from_utf8_lossy(answer).split_once("\r\n\r\n").map(|(_, text)| text.to_owned())
}

fn gateway(vm: &Vm<'_>) -> String {
    let routes = vm.exec(["ip", "route"]).go().ok();
    let line = routes.text().lines().find(|l| l.starts_with("default")).unwrap_or_else(|| panic!("{routes}"));
    line.split_whitespace().nth(2).unwrap_or_else(|| panic!("{routes}")).to_owned()
}

#[test]
fn a_guest_reaches_the_outside_and_never_the_hosts_loopback_unless_asked() {
    skip_unless!(is_root(), "making network namespaces needs root");
    let world = World::build();
    for port in [80, 18080] {
        world.serve_on_host_loopback(port, SECRET);
    }
    let sandbox = Sandbox::bare().through(&world.on_host());
    // Given that the server is there.
    let there = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 5 127.0.0.1 18080";
    assert!(sandbox.program("sh").args(["-c", there]).go().ok().text().contains(SECRET));

    let vm = sandbox.vm("closed", "bare", &[]);
    // Then the outside is reached, by address and by name.
    assert_eq!(fetch(&vm, &OUTSIDE.to_string(), 8080).as_deref(), Some("hello from outside"));
    let names = vm.exec(["nslookup", NAME]).go().ok();
    assert!(names.text().contains(&OUTSIDE.to_string()), "{names}");
    // And the host's loopback is not: by no address a guest could think of.
    let shown = vm.show();
    let own = shown["network"]["guest_ip"].as_str().unwrap_or_default().to_owned();
    let hosts = banger_testkit::outside::HOST.to_string();
    let gateway_address = gateway(&vm);
    let mut asked = Vec::new();
    for address in [gateway_address.as_str(), &own, &hosts, "10.0.2.2", "169.254.1.1", "127.0.0.1"] {
        for port in [80, 18080] {
            asked.push((format!("{address}:{port}"), ask(&vm, address, port)));
        }
    }
    for (whom, answer) in asked {
        let got = text(&answer.wait().stdout);
        assert_ne!(got.as_deref(), Some(SECRET), "{whom} leads to the host's loopback");
    }
    vm.delete();

    // When it is opened on purpose, the gateway stands for the host.
    let vm = sandbox.vm("open", "bare", &["--host-access"]);
    assert_eq!(vm.show()["network"]["host_access"], true);
    assert_eq!(fetch(&vm, &gateway(&vm), 18080).as_deref(), Some(SECRET));
    assert_eq!(fetch(&vm, &OUTSIDE.to_string(), 8080).as_deref(), Some("hello from outside"));
    vm.delete();
    sandbox.no_vm_is_left();
}

/// Asks the guest's name server over TCP: the length of the message, then a query for the address of `outside.test`.
fn ask_by_tcp(vm: &Vm<'_>) -> Vec<u8> {
    let query =
        "\\0\\036\\022\\064\\001\\0\\0\\001\\0\\0\\0\\0\\0\\0\\007outside\\004test\\0\\0\\001\\0\\001";
    vm.sh(&format!("(printf '{query}'; sleep 1) | nc -w 5 10.0.2.3 53")).go().ok().stdout
}

#[test]
fn a_vm_that_starts_on_an_offline_host_is_told_so_at_once_and_is_online_when_the_host_is() {
    skip_unless!(is_root(), "making network namespaces needs root");
    let world = World::build();
    world.unplug();
    let sandbox = Sandbox::bare().through(&world.on_host());
    // Given a host without any way out
    let created = sandbox.banger(["vm", "create", "--name", "train", "--image", "bare"]).go().ok();
    assert!(created.err().contains("no default route"), "{created}");
    let vm = sandbox.existing("train");
    // Then a connection and a name fail with their reason, and nobody waits for it.
    let connect = vm.sh(&format!("nc -w 60 {OUTSIDE} 8080 </dev/null")).within(Duration::from_secs(40)).go();
    assert!(connect.err().contains("Network is unreachable"), "{connect}");
    let names = vm.exec(["nslookup", NAME]).within(Duration::from_secs(40)).go();
    assert!(names.code() != 0 && names.to_string().contains("SERVFAIL"), "{names}");
    // When the host is plugged in, with name servers that were not there before
    world.plug_in();
    let known = || vm.exec(["nslookup", NAME]).go().text().contains(&OUTSIDE.to_string()).then_some(());
    assert!(wait::until(Duration::from_secs(20), known).is_some(), "{}", vm.exec(["nslookup", NAME]).go());
    // Then the same VM reaches the outside, by address and by name, and the names by TCP as well.
    assert_eq!(fetch(&vm, &OUTSIDE.to_string(), 8080).as_deref(), Some("hello from outside"));
    let answer = ask_by_tcp(&vm);
    assert!(answer.ends_with(&OUTSIDE.octets()), "{answer:?}");
    // And what is taken away again is missed again.
    world.unplug();
    let connect = vm.sh(&format!("nc -w 60 {OUTSIDE} 8080 </dev/null")).within(Duration::from_secs(40)).go();
    assert!(connect.err().contains("Network is unreachable"), "{connect}");
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn network_none_means_no_device() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("alone", "bare", &["--network", "none"]);
    let devices = vm.exec(["ls", "/sys/class/net"]).go().ok();
    assert_eq!(devices.text(), "lo");
    assert_eq!(vm.show()["network"]["mode"], "none");
    assert_eq!(vm.exec(["ip", "route"]).go().ok().text(), "");
    vm.delete();
    let bridge = sandbox.banger(["vm", "create", "--image", "bare", "--network", "bridge"]).go();
    bridge.ends_with(1).says(&["bridge", "hint:"]).done();
    sandbox.no_vm_is_left();
}
