//! The cage from inside: what a program sees and reaches that runs where a machine monitor runs, with that monitor's
//! own policy. As root, as an ordinary user, and on hosts that deny namespaces.
//!
//! Each situation runs this test program again in it (`launcher`), which starts a shell, and itself once more (`inside`),
//! in the cage.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test's helpers may fail it"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::fd::FromRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use banger_model::{Accel, Bytes, Layer, MachineShape, Mib, Security, VmId};
use banger_vmm::{
    Cage, Disk, DiskRole, MachineSpec, Policy, Standalone, VmmError, firecracker, process, qemu,
};

const NAME_OF_SOCKET: &str = "banger-cage-test";

/// A place that both root and an ordinary user can use, with our programs in it.
struct Bench {
    dir: tempfile::TempDir,
}

/// Who runs, and what the host allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Situation {
    /// As we are.
    Here,
    /// As somebody without a single right.
    OrdinaryUser,
    /// As that, where no user namespace may be made.
    Denied,
    /// As root, where no user namespace may be made.
    DeniedRoot,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("bt-cage-").tempdir_in("/var/tmp").unwrap();
        let all = fs::Permissions::from_mode(0o777);
        for name in ["bin", "vm", "home", "run"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::set_permissions(dir.path().join(name), all.clone()).unwrap();
        }
        fs::set_permissions(dir.path(), all).unwrap();
        let bench = Self { dir };
        for (from, name) in [
            (std::env::current_exe().unwrap(), "test"),
            (env!("CARGO_BIN_EXE_banger-cage").into(), "banger-cage"),
        ] {
            fs::copy(from, bench.path("bin").join(name)).unwrap();
        }
        fs::write(bench.path("home/secret"), "the user's own").unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the launcher and the probes said; `None` (and a word about it) where this host cannot play the situation.
    fn run(&self, situation: Situation, required: &str) -> Option<Said> {
        self.run_as("qemu", situation, required)
    }

    fn run_as(&self, monitor: &str, situation: Situation, required: &str) -> Option<Said> {
        let root = rustix::process::geteuid().is_root();
        let unprivileged =
            "exec setpriv --reuid 1 --regid 1 --clear-groups --inh-caps=-all --bounding-set=-all";
        let denied = "echo 0 > /proc/sys/user/max_user_namespaces && exec";
        let no_rights = "setpriv --inh-caps=-all --bounding-set=-all";
        let (program, script): (&str, String) = match situation {
            Situation::Here => ("/bin/sh", "exec \"$@\"".into()),
            Situation::OrdinaryUser if !root => ("/bin/sh", "exec \"$@\"".into()),
            Situation::OrdinaryUser => ("/bin/sh", format!("{unprivileged} \"$@\"")),
            Situation::Denied => ("unshare", format!("{denied} {no_rights} \"$@\"")),
            Situation::DeniedRoot => ("unshare", format!("{denied} \"$@\"")),
        };
        let mut command = Command::new(program);
        if program == "unshare" {
            command.args(["--user", "--map-root-user", "/bin/sh"]);
        }
        command.args(["-c", &script, "sh"]).arg(self.path("bin/test"));
        command.args(["--ignored", "--exact", "launcher", "--nocapture", "--test-threads=1"]);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
            .env("BENCH", self.dir.path())
            .env("MONITOR", monitor)
            .env("REQUIRED", required)
            .env("RUST_BACKTRACE", "0");
        command.env("SECRET_OF_THE_ENVIRONMENT", "1");
        // A descriptor that leaks into whatever is started.
        let leak = fs::File::open("/dev/zero").unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        if errors.contains("unshare failed") || errors.contains("max_user_namespaces") {
            println!("skipped {situation:?}: {errors}");
            return None;
        }
        assert!(output.status.success(), "{situation:?}: {text}\n{errors}");
        Some(Said::parse(&text))
    }
}

/// `name=value` lines.
#[derive(Debug)]
struct Said(BTreeMap<String, String>);

impl Said {
    fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.split_once("@@")?.1.split_once('='));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    #[track_caller]
    fn is(&self, name: &str, values: &[&str]) {
        let said = self.0.get(name).unwrap_or_else(|| panic!("nothing about '{name}' in {self:#?}"));
        assert!(values.contains(&said.as_str()), "{name} is {said:?}, not of {values:?}; {self:#?}");
    }

    fn security(&self) -> Security {
        serde_json::from_str(&self.0["security"]).unwrap()
    }
}

/// The machine whose policy is used: a kernel, a disk, a console.
fn spec(dir: &Path) -> MachineSpec {
    let file = |name: &str| -> PathBuf {
        let path = dir.join("vm").join(name);
        fs::write(&path, if name == "initramfs" { "" } else { name }).unwrap();
        path
    };
    MachineSpec {
        id: VmId::from_random([0xed, 0, 0, 0, 0, 1]),
        name: "caged".parse().unwrap(),
        shape: MachineShape { vcpu: 1, memory: Mib(64), disk: Bytes(1 << 20) },
        accel: Accel::Tcg,
        kernel: file("kernel"),
        initramfs: file("initramfs"),
        disks: vec![Disk { role: DiskRole::System, path: file("system.img"), read_only: false }],
        network: None,
        runtime_dir: dir.join("run"),
        log_dir: dir.join("vm"),
        verbose_console: false,
        rescue: false,
    }
}

/// Not a test: started by those below, in their situation.
#[tokio::test]
#[ignore = "a part of the other tests"]
async fn launcher() {
    let Some(dir) = std::env::var_os("BENCH").map(PathBuf::from) else { return };
    let required = std::env::var("REQUIRED").unwrap();
    let required = required.split(',').filter(|w| !w.is_empty()).map(|w| w.parse().unwrap()).collect();
    let cage = Cage::beside(&dir.join("bin"), required);
    // Another process of the same user, and a socket that has no file.
    let mut victim =
        Command::new("sleep").arg("60").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let address = rustix::net::SocketAddrUnix::new_abstract_name(NAME_OF_SOCKET.as_bytes()).unwrap();
    let kind = rustix::net::SocketType::STREAM;
    let listener = rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None).unwrap();
    let _ = rustix::net::bind(&listener, &address).and_then(|()| rustix::net::listen(&listener, 4));

    let spec = spec(&dir);
    // handles.json is what the daemon believes: a monitor must not be able to write it.
    fs::write(dir.join("vm/handles.json"), "trusted").unwrap();
    let console = dir.join("vm/console.log");
    fs::write(&console, "").unwrap();
    let policy = |program: &Path| {
        let mut policy = match std::env::var("MONITOR").as_deref() {
            Ok("firecracker") => firecracker::policy(&spec).unwrap(),
            _ => qemu::policy(Path::new("/usr/bin/qemu-system-x86_64"), &spec, &console),
        };
        if program == Path::new("/bin/sh") {
            policy.read.extend(["/bin/ls", "/bin/cat", "/usr/bin/id"].map(PathBuf::from));
        }
        policy
    };
    let script = SHELL.replace("DIR", dir.to_str().unwrap()).replace("PID", &victim.id().to_string());
    let shell = Path::new("/bin/sh");
    let shell = run(&cage, shell, &["-c", &script], policy(shell), &dir, &[]).await;
    let own = dir.join("bin/test");
    let words = ["--ignored", "--exact", "inside", "--nocapture", "--test-threads=1", "--skip=fdGIVEN"];
    let pid = victim.id().to_string();
    let inside = run(&cage, &own, &words, policy(&own), &dir, &[dir.to_str().unwrap(), &pid]).await;
    let alive = victim.try_wait().unwrap().is_none();
    victim.kill().unwrap();
    victim.wait().unwrap();
    println!("@@victim={}", if alive { "alive" } else { "ended" });
    println!("{shell}\n{inside}");
}

/// Starts a program in the cage and waits for its end; its words, and what holds around it.
async fn run(
    cage: &Cage,
    program: &Path,
    args: &[&str],
    policy: Policy,
    dir: &Path,
    told: &[&str],
) -> String {
    let log = dir.join("vm/vmm.log");
    let _ = fs::remove_file(&log);
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let mut standalone =
        Standalone::new(program, &log, &dir.join("vm")).called(format!("caged:{}", policy.mark));
    let number = standalone.give(read).to_string();
    standalone = standalone.args(args.iter().map(|word| word.replace("GIVEN", &number)));
    let spawned = match standalone.caged(cage, policy).spawn() {
        Ok(spawned) => spawned,
        Err(VmmError::CageIncomplete { layer, .. }) => return format!("@@refused={layer}"),
        Err(error) => panic!("{error}"),
    };
    let security = serde_json::to_string(spawned.security()).unwrap();
    let marked = process::find_marked(&VmId::from_random([0xed, 0, 0, 0, 0, 1])).unwrap();
    // It waits for one of these: its end is not to come before we have looked.
    fs::write(dir.join("vm/initramfs"), "go").unwrap();
    let _ = fs::File::from(write).write_all(format!("{}\n", told.join("\n")).as_bytes());
    let in_sight = marked.is_empty() || marked.contains(spawned.process());
    let exit = spawned.ended_within(std::time::Duration::from_secs(20)).await.expect("it ends");
    let said = fs::read_to_string(&log).unwrap();
    format!("@@security={security}\n@@seen_from_outside={in_sight}\n@@exit={:?}\n{said}", exit.code)
}

/// What a shell tries. It has `ls`, `cat` and `id` besides what a machine monitor has.
const SHELL: &str = r#"
until [ -s DIR/vm/initramfs ]; do :; done
say() { echo "@@$1=$2"; }
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then say "$name" yes; else say "$name" no; fi; }
say uid "$(id -u)"
say environment "$(export -p | while read -r line; do case $line in *PWD*) ;; *) echo "$line";; esac; done)"
say pid "$$"
try see_processes ls /proc/1
try list_root_home ls /root
try list_home ls /home
try read_secret cat DIR/home/secret
try list_home_of_test ls DIR/home
try read_handles cat DIR/vm/handles.json
try make_file sh -c 'echo > DIR/vm/new'
( echo changed > DIR/vm/handles.json ) 2>/dev/null && say write_handles yes || say write_handles no
( echo changed > DIR/vm/kernel ) 2>/dev/null && say write_kernel yes || say write_kernel no
( echo changed > DIR/vm/system.img ) 2>/dev/null && say write_disk yes || say write_disk no
( echo x > /etc/new ) 2>/dev/null && say write_etc yes || say write_etc no
try read_kernel cat DIR/vm/kernel
try read_shadow cat /etc/shadow
try read_passwd cat /etc/passwd
try read_kvm cat /sys/module/kvm/parameters/halt_poll_ns
try kill_other kill -9 PID
try run_su /bin/su --help
say directory "$(pwd)"
"#;

/// Not a test: runs in the cage, and says how each attempt ended.
#[test]
#[ignore = "a part of the other tests"]
#[expect(unsafe_code, reason = "the system calls that must fail have no safe wrappers")]
fn inside() {
    let skip = std::env::args().find_map(|a| a.strip_prefix("--skip=fd")?.parse::<i32>().ok());
    let Some(number) = skip else { return };
    // SAFETY: the launcher gave us this descriptor and nobody else here knows it.
    let mut told = unsafe { fs::File::from_raw_fd(number) };
    let mut text = String::new();
    std::io::Read::read_to_string(&mut told, &mut text).unwrap();
    drop(told);
    let mut lines = text.lines();
    let (dir, pid) = (lines.next().unwrap(), lines.next().unwrap().parse::<i32>().unwrap());
    let disk = std::ffi::CString::new(format!("{dir}/vm/system.img")).unwrap();
    let say = |name: &str, value: &str| println!("\n@@call_{name}={value}");
    // SAFETY: it only asks whether a descriptor of this number is open.
    let open: Vec<i32> = (3..4096).filter(|n| unsafe { libc::fcntl(*n, libc::F_GETFD) } >= 0).collect();
    say("descriptors", &format!("{open:?}"));
    let call = |name: &str, result: i64| {
        let error = std::io::Error::last_os_error();
        let word = match error.raw_os_error() {
            _ if result >= 0 => "done",
            Some(libc::EPERM) => "EPERM",
            Some(libc::EACCES) => "EACCES",
            Some(libc::ESRCH) => "ESRCH",
            Some(libc::ENOENT) => "ENOENT",
            Some(libc::ENOSYS) => "ENOSYS",
            Some(libc::ECONNREFUSED) => "ECONNREFUSED",
            _ => "another error",
        };
        say(name, word);
    };
    let nothing = std::ptr::null::<u8>();
    // SAFETY: each of these either fails before it looks at its arguments, or gets valid ones: null where a pointer
    // may be null, C strings that live long enough. Those that could succeed change nothing that this program uses.
    unsafe {
        call("ptrace", libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0));
        call("ptrace_other", libc::syscall(libc::SYS_ptrace, libc::PTRACE_SEIZE, pid, 0, 0));
        call("read_memory", libc::syscall(libc::SYS_process_vm_readv, pid, nothing, 0, nothing, 0, 0));
        call("kill_all", libc::kill(-1, 0).into());
        call("kill_other", libc::kill(pid, 0).into());
        call("new_user", libc::unshare(libc::CLONE_NEWUSER).into());
        call("clone_user", libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0));
        call("clone3", libc::syscall(libc::SYS_clone3, nothing, 0));
        call("setuid", libc::syscall(libc::SYS_setuid, 0));
        let (none, root) = (c"none".as_ptr(), c"/".as_ptr());
        call("mount", libc::mount(none, root, c"tmpfs".as_ptr(), 0, std::ptr::null()).into());
        call("chroot", libc::chroot(root).into());
        call("bpf", libc::syscall(libc::SYS_bpf, 0, nothing, 0));
        call("keyctl", libc::syscall(libc::SYS_keyctl, 0, 0, 0, 0, 0));
        call("inet", libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0).into());
        call("datagram", libc::socket(libc::AF_INET6, libc::SOCK_DGRAM, 0).into());
        call("netlink", libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0).into());
        call("unix", libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).into());
        call("set_time", libc::utimensat(libc::AT_FDCWD, disk.as_ptr(), std::ptr::null(), 0).into());
        let mut data = [0_u32; 6];
        let mut header = [0x2008_0522_u32, 0];
        libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr());
        say("capabilities", &format!("{}", data.iter().any(|d| *d != 0)));
        say("no_new_privs", &libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0).to_string());
        say("seccomp", &libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0).to_string());
        say("parent", &libc::getppid().to_string());
        say("session", if libc::getsid(0) == libc::getpid() { "own" } else { "another's" });
    }
    let core = rustix::process::getrlimit(rustix::process::Resource::Core);
    say("core", &format!("{:?}", core.maximum));
    let address = rustix::net::SocketAddrUnix::new_abstract_name(NAME_OF_SOCKET.as_bytes()).unwrap();
    let kind = rustix::net::SocketType::STREAM;
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None).unwrap();
    let connected = rustix::net::connect(&socket, &address);
    say("abstract", if connected.is_ok() { "done" } else { "refused" });
    let secret = fs::read(Path::new(dir).join("home/secret"));
    say("secret", if secret.is_ok() { "done" } else { "refused" });
    let link = std::os::unix::fs::symlink("/", Path::new(dir).join("vm/link"));
    say("link", if link.is_ok() { "done" } else { "refused" });
}

/// What must hold in every situation, whatever the host denies.
fn always(said: &Said) {
    said.is("environment", &[""]);
    // It has closed the one that it was given.
    said.is("call_descriptors", &["[]"]);
    said.is("victim", &["alive"]);
    for refused in [
        "see_processes",
        "list_root_home",
        "list_home",
        "read_secret",
        "list_home_of_test",
        "read_handles",
        "make_file",
        "write_handles",
        "write_kernel",
        "write_etc",
        "read_shadow",
        "read_passwd",
        "read_kvm",
        "kill_other",
        "run_su",
    ] {
        said.is(refused, &["no"]);
    }
    for granted in ["write_disk", "read_kernel"] {
        said.is(granted, &["yes"]);
    }
    for call in [
        "ptrace",
        "ptrace_other",
        "read_memory",
        "new_user",
        "clone_user",
        "setuid",
        "mount",
        "chroot",
        "bpf",
        "keyctl",
        "inet",
        "datagram",
        "netlink",
        "set_time",
    ] {
        said.is(&format!("call_{call}"), &["EPERM"]);
    }
    said.is("call_clone3", &["ENOSYS"]);
    said.is("call_kill_other", &["ESRCH", "EPERM"]);
    said.is("call_unix", &["done"]);
    said.is("call_capabilities", &["false"]);
    said.is("call_no_new_privs", &["1"]);
    said.is("call_seccomp", &["2"]);
    said.is("call_session", &["own"]);
    said.is("call_core", &["Some(0)"]);
    for refused in ["abstract", "secret", "link"] {
        said.is(&format!("call_{refused}"), &["refused"]);
    }
    said.is("seen_from_outside", &["true"]);
    let security = said.security();
    for layer in [
        Layer::Session,
        Layer::Descriptors,
        Layer::Environment,
        Layer::NoNewPrivs,
        Layer::Capabilities,
        Layer::Limits,
        Layer::Landlock,
        Layer::Seccomp,
    ] {
        assert!(security.has(layer), "{layer} in {security:?}");
    }
}

/// What namespaces add.
fn alone(said: &Said) {
    said.is("pid", &["1"]);
    said.is("call_parent", &["0"]);
    said.is("call_kill_all", &["ESRCH"]);
    said.is("call_kill_other", &["ESRCH"]);
    let security = said.security();
    for layer in [Layer::Namespaces, Layer::Network, Layer::Root] {
        assert!(security.has(layer), "{layer} in {security:?}");
    }
}

#[test]
fn a_caged_shell_sees_no_process_no_home_no_network_and_no_descriptor_but_its_own() {
    let bench = Bench::new();
    let said = bench.run(Situation::Here, "").unwrap();
    always(&said);
    alone(&said);
    said.is("uid", &["1000"]);
    said.is("directory", &[bench.path("vm").to_str().unwrap()]);
}

#[test]
fn firecrackers_cage_holds_what_qemus_does() {
    for situation in [Situation::Here, Situation::OrdinaryUser] {
        let bench = Bench::new();
        let Some(said) = bench.run_as("firecracker", situation, "namespaces,network,root,landlock,seccomp")
        else {
            continue;
        };
        always(&said);
        alone(&said);
    }
}

#[test]
fn an_ordinary_user_gets_the_same_cage() {
    let bench = Bench::new();
    let Some(said) = bench.run(Situation::OrdinaryUser, "namespaces,root,landlock,seccomp") else { return };
    always(&said);
    alone(&said);
}

#[test]
fn where_namespaces_are_denied_landlock_and_seccomp_hold_and_it_is_said() {
    let bench = Bench::new();
    let Some(said) = bench.run(Situation::Denied, "") else { return };
    always(&said);
    let missing: Vec<Layer> = said.security().missing.iter().map(|m| m.layer).collect();
    for layer in [Layer::Namespaces, Layer::Network, Layer::Root] {
        assert!(missing.contains(&layer), "{said:#?}");
    }
    let why = &said.security().missing[0].why;
    assert!(why.contains("max_user_namespaces"), "{why}");
}

#[test]
fn root_without_user_namespaces_still_gets_the_others_and_keeps_no_capability() {
    let bench = Bench::new();
    let Some(said) = bench.run(Situation::DeniedRoot, "") else { return };
    always(&said);
    alone(&said);
}

#[test]
fn a_required_layer_that_is_missing_keeps_the_program_from_starting() {
    let bench = Bench::new();
    let Some(said) = bench.run(Situation::Denied, "landlock,namespaces") else { return };
    said.is("refused", &["namespaces"]);
    assert!(!said.0.contains_key("write_disk"), "{said:#?}");
}
