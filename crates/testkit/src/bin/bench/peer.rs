//! The peer of `exec`: ssh to an sshd in the same guest, over the guest's network, through a master
//! connection that is open before the clock starts.
//!
//! User-mode networking takes no connections from outside. So the guest's sshd (in its inetd mode)
//! calls out, and two sockets on the host's loopback are joined: what ssh says goes to it as it is.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use banger_testkit::{Feed, Run, Running, Sandbox, Vm};

/// An open master connection.
pub(crate) struct Ssh {
    control: PathBuf,
    key: PathBuf,
    port: u16,
    sshd: Running,
}

impl Ssh {
    /// Sets everything up and opens the master.
    pub(crate) fn into(sandbox: &Sandbox, vm: &Vm<'_>) -> Self {
        // Until systemd has started everything, the guest is busy, and /run may still be put in place.
        banger_testkit::wait::must("systemd is up", Duration::from_secs(120), || {
            matches!(vm.exec(["systemctl", "is-system-running"]).go().text(), "running" | "degraded")
        });
        let key = sandbox.work("key");
        Run::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).go().ok().done();
        let public = std::fs::read(key.with_extension("pub")).expect("a public key");
        // An image has no host keys: each machine makes its own. The service then keeps /run/sshd.
        let install = "set -e; umask 077; mkdir -p /root/.ssh; cat >/root/.ssh/authorized_keys; ssh-keygen -A; \
             systemctl reset-failed ssh; systemctl start ssh";
        vm.sh(install).feed(Feed::Bytes(public)).go().ok().done();

        let for_guest = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let for_ssh = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = for_ssh.local_addr().expect("its number").port();
        let call = format!(
            "exec 3<>/dev/tcp/{}/{}; exec /usr/sbin/sshd -i <&3 >&3",
            gateway(vm),
            for_guest.local_addr().expect("its number").port()
        );
        let sshd = vm.exec(["bash", "-c", &call]).within(Duration::from_secs(600)).start();
        std::thread::spawn(move || {
            let (Ok((guest, _)), Ok((ssh, _))) = (for_guest.accept(), for_ssh.accept()) else { return };
            join(&guest, &ssh);
        });
        let ssh = Self { control: sandbox.work("ctl"), key, port, sshd };
        assert!(ssh.open_master(), "ssh could not reach the guest's sshd: {}", ssh.sshd.stderr_so_far());
        ssh
    }

    fn open_master(&self) -> bool {
        let mut command = self.base();
        command.args(["-o", "ControlMaster=yes", "-o", "ControlPersist=300", "-N", "-f", "guest"]);
        command.status().is_ok_and(|s| s.success())
    }

    fn base(&self) -> Command {
        let mut command = Command::new("ssh");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.args([
            "-F",
            "/dev/null",
            "-q",
            "-o",
            "BatchMode=yes",
            "-o",
            "HostName=127.0.0.1",
            "-l",
            "root",
        ]);
        command.args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-p",
            &self.port.to_string(),
        ]);
        command.arg("-i").arg(&self.key).arg("-S").arg(&self.control);
        command.arg("-E").arg(self.control.with_extension("log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// A command in the guest over the master.
    pub(crate) fn command(&self, what: &str) -> Command {
        let mut command = self.base();
        command.args(["-o", "ControlMaster=no", "guest", what]);
        command
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        let _ = self.base().args(["-O", "exit", "guest"]).status();
    }
}

/// The default gateway as the guest's kernel has it: little-endian hexadecimal in /proc/net/route.
fn gateway(vm: &Vm<'_>) -> Ipv4Addr {
    let table = vm.exec(["cat", "/proc/net/route"]).go().ok();
    let line = table.text().lines().find(|l| l.split('\t').nth(1) == Some("00000000"));
    let field = line.and_then(|l| l.split('\t').nth(2)).unwrap_or_else(|| panic!("no gateway: {table}"));
    Ipv4Addr::from(u32::from_str_radix(field, 16).expect("an address").to_le_bytes())
}

fn join(a: &TcpStream, b: &TcpStream) {
    let copy = |from: &TcpStream, to: &TcpStream| {
        let (mut from, mut to) = (from, to);
        let mut chunk = [0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut chunk) {
            if to.write_all(chunk.get(..n).unwrap_or_default()).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
    };
    let _ = (a.set_nodelay(true), b.set_nodelay(true));
    std::thread::scope(|scope| {
        scope.spawn(|| copy(a, b));
        copy(b, a);
    });
}
