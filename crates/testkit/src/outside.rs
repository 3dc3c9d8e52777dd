//! A world of our own: a network namespace that plays the host, another that plays the outside, a
//! cable between them, and servers in both. Nothing leaves the machine.
//!
//! Owns both namespaces and `/etc/netns/<host>`; all are gone when it is dropped. Needs root.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::LinkNameSpaceType;

use crate::{Run, as_invoker, dns};

/// The outside's address, from a block reserved for documentation (RFC 5737).
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The host's address on the cable.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The name that the outside's name server knows.
pub const NAME: &str = "outside.test";

/// Two namespaces and a cable.
#[derive(Debug)]
pub struct World {
    host: String,
    outside: String,
}

impl World {
    /// Builds it, with a web server and a name server outside.
    #[must_use]
    pub fn build() -> Self {
        // The process id shows whether the owner is gone; a test program may have several at once.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let world = Self { host: format!("bth{unique}"), outside: format!("bto{unique}") };
        let ip = |line: &str| Run::new("ip").args(line.split(' ')).by_invoker().go().ok().done();
        let (host, outside) = (&world.host, &world.outside);
        ip(&format!("netns add {host}"));
        ip(&format!("netns add {outside}"));
        ip(&format!("-n {host} link add eth0 type veth peer name eth0 netns {outside}"));
        for (space, address) in [(host, HOST), (outside, OUTSIDE)] {
            ip(&format!("-n {space} address add {address}/24 dev eth0"));
            ip(&format!("-n {space} link set lo up"));
            ip(&format!("-n {space} link set eth0 up"));
        }
        as_invoker(|| std::fs::create_dir_all(format!("/etc/netns/{host}"))).expect("a directory");
        world.plug_in();
        serve_text(bind_in(outside, OUTSIDE, 8080), "hello from outside");
        let names = within(outside, || UdpSocket::bind((OUTSIDE, 53)).expect("port 53 outside is free"));
        std::thread::spawn(move || dns::serve(&names, NAME, OUTSIDE));
        let names = bind_in(outside, OUTSIDE, 53);
        std::thread::spawn(move || dns::serve_connections(&names, NAME, OUTSIDE));
        world
    }

    /// Connects "the host": its cable, its default route and the outside's name server.
    pub fn plug_in(&self) {
        self.ip("link set eth0 up");
        self.ip(&format!("route add default via {OUTSIDE}"));
        self.write_resolv_conf(&format!("nameserver {OUTSIDE}\n"));
    }

    /// Leaves "the host" with its loopback interface alone, and without name servers.
    pub fn unplug(&self) {
        self.ip("link set eth0 down");
        self.write_resolv_conf("# nothing\n");
    }

    fn ip(&self, line: &str) {
        Run::new("ip").args(["-n", &self.host]).args(line.split(' ')).by_invoker().go().ok().done();
    }

    /// `ip netns exec` puts this file in the place of /etc/resolv.conf. It is written in place: another file of that
    /// name would not be seen by what runs already.
    fn write_resolv_conf(&self, text: &str) {
        as_invoker(|| std::fs::write(format!("/etc/netns/{}/resolv.conf", self.host), text)).expect("a file");
    }

    /// The command prefix that runs something on "the host".
    #[must_use]
    pub fn on_host(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.host]
    }

    /// A web server on "the host" that is bound to its loopback alone.
    pub fn serve_on_host_loopback(&self, port: u16, text: &'static str) {
        serve_text(bind_in(&self.host, Ipv4Addr::LOCALHOST, port), text);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for space in [&self.host, &self.outside] {
            let _ = Run::new("ip").args(["netns", "delete", space]).by_invoker().go();
        }
        let _ = as_invoker(|| std::fs::remove_dir_all(format!("/etc/netns/{}", self.host)));
    }
}

/// Runs a closure on a thread that has entered a network namespace; a socket stays in the
/// namespace in which it was made.
fn within<T: Send>(space: &str, make: impl FnOnce() -> T + Send) -> T {
    let file = std::fs::File::open(format!("/run/netns/{space}")).expect("the namespace");
    // A thread has the identity of the one that starts it.
    as_invoker(|| {
        std::thread::scope(|scope| {
            let made = scope.spawn(move || {
                rustix::thread::move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&file),
                    Some(LinkNameSpaceType::Network),
                )
                .expect("root may enter it");
                make()
            });
            made.join().expect("it could be made there")
        })
    })
}

fn bind_in(space: &str, address: Ipv4Addr, port: u16) -> TcpListener {
    within(space, move || TcpListener::bind((address, port)).expect("the port is free there"))
}

/// Answers every HTTP request with a text, until the process ends.
pub fn serve_text(listener: TcpListener, text: &'static str) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                let mut request = [0; 1024];
                let _ = stream.read(&mut request);
                let len = text.len();
                let _ = write!(
                    stream,
                    "HTTP/1.0 200 OK\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{text}"
                );
            });
        }
    });
}
