//! Networks, in a world of our own: nothing here depends on, or reaches, any real network.

#![expect(clippy::panic, reason = "a helper of a test fails it by panicking")]

use std::time::Duration;

use banger_testkit::outside::{NAME, OUTSIDE, World};
use banger_testkit::{Sandbox, Vm, is_root, skip_unless};

const SECRET: &str = "only for the host itself";

fn fetch(vm: &Vm<'_>, address: &str, port: u16) -> Option<String> {
    let url = format!("http://{address}:{port}/");
    let out = vm.exec(["wget", "-q", "-T", "5", "-O", "-", &url]).within(Duration::from_secs(40)).go();
    (out.code() == 0).then(|| out.text().to_owned())
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
    let there = ["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:18080/"];
    assert_eq!(sandbox.program(there[0]).args(&there[1..]).go().ok().text(), SECRET);

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
    for address in [gateway_address.as_str(), &own, &hosts, "10.0.2.2", "169.254.1.1", "127.0.0.1"] {
        for port in [80, 18080] {
            let got = fetch(&vm, address, port);
            assert_ne!(got.as_deref(), Some(SECRET), "{address}:{port} leads to the host's loopback");
        }
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

#[test]
fn network_none_means_no_device() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("alone", "bare", &["--network", "none"]);
    let devices = vm.exec(["ls", "/sys/class/net"]).go().ok();
    assert_eq!(devices.text(), "lo");
    assert_eq!(vm.show()["network"]["mode"], "none");
    assert_eq!(vm.exec(["cat", "/proc/net/route"]).go().ok().text().lines().count(), 1, "no route");
    vm.delete();
    let bridge = sandbox.banger(["vm", "create", "--image", "bare", "--network", "bridge"]).go();
    bridge.ends_with(1).says(&["bridge", "hint:"]).done();
    sandbox.no_vm_is_left();
}
