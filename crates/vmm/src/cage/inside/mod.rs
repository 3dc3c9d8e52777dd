//! What `banger-cage` does: reads the description, builds the cage around itself layer by layer, says which layers
//! hold, and becomes the program. One thread, started for one program, with nothing of the daemon's in it: whatever goes
//! wrong here ends this process and no other.
//!
//! Must never run the program when a required layer does not hold.

mod landlock;
mod lend;
mod namespaces;
mod privileges;
mod root;
mod seccomp;
mod shuttle;
mod tap;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use banger_model::{Layer, MissingLayer, Security};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::description::{Answer, Description};

/// The argument with which the builder itself is a program that does nothing, for [`super::Cage::probe`].
pub const IDLE: &str = "--idle";

/// A step that ends everything: what was being done, and the system's answer.
type Fatal = (String, io::Error);

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    if words == [IDLE] {
        // Ended by whoever probes, as soon as it has started; and by itself, should that one be gone.
        std::thread::sleep(Duration::from_secs(10));
        return ExitCode::SUCCESS;
    }
    let [description, answer] = words.as_slice() else {
        return complain("bangerd starts it, with two descriptors");
    };
    let (Some(description), Some(answer)) = (given(description), given(answer)) else {
        return complain("these are not descriptors that were given to it");
    };
    let mut answer = File::from(answer);
    let mut text = Vec::new();
    let read = File::from(description).read_to_end(&mut text);
    let description = match read.and_then(|_| Ok(serde_json::from_slice::<Description>(&text)?)) {
        Ok(description) => description,
        Err(error) => return complain(&error.to_string()),
    };
    let (what, error) = match become_caged(&description, &mut answer) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(fatal) => fatal,
    };
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    say(&mut answer, &Answer::Failed { what, errno });
    ExitCode::FAILURE
}

/// Returns only when there is nothing left to do: the program runs in another process, or is not to run.
fn become_caged(description: &Description, answer: &mut File) -> Result<(), Fatal> {
    let mut cage = Built::default();
    // The launcher made these hold before it started us: a session, no descriptors but those given, no environment.
    cage.hold(Layer::Session);
    cage.hold(Layer::Environment);

    let grouped = join(&description.group);
    let mut packets = None;
    let entered = match namespaces::enter(description.hosts_network)? {
        Ok(entered) => {
            cage.hold(Layer::Namespaces);
            if !description.hosts_network {
                cage.hold(Layer::Network);
            }
            Some(entered)
        }
        Err(why) => {
            cage.miss(Layer::Namespaces, &why);
            if !description.hosts_network {
                cage.miss(Layer::Network, &why);
            }
            cage.miss(Layer::Root, &why);
            None
        }
    };
    privileges::limit(description.descriptors, entered.is_some()).map_err(during("set limits"))?;
    cage.hold(Layer::Limits);
    if entered.is_some() {
        // The namespace of processes is that of our children. The one that goes on is our sister: it stays a child of
        // the launcher's, which so hears of its end, and we go.
        match namespaces::fork_sister().map_err(during("start a process in it"))? {
            Some(pid) => {
                say(answer, &Answer::Pid(pid));
                return Ok(());
            }
            None => {
                rustix::process::setsid().map_err(io::Error::from).map_err(during("begin a session"))?;
                // Its device node is the host's; and it takes rights over the namespace that go below.
                let made = description.tap.as_ref().map(tap::make).transpose();
                packets =
                    made.map_err(during("make a tap device (is /dev/net/tun there, and for this user?)"))?;
                let changed = root::change(description)?;
                if let Ok(left_out) = &changed {
                    say(answer, &Answer::LeftOut(left_out.clone()));
                }
                cage.tell(Layer::Root, changed.map(drop));
            }
        }
    } else {
        say(answer, &Answer::Pid(std::process::id()));
        if description.tap.is_some() {
            return Err((
                "a network device needs a network namespace, which this host denies".to_owned(),
                denied(),
            ));
        }
    }
    rustix::thread::set_no_new_privs(true)
        .map_err(io::Error::from)
        .map_err(during("give up gaining privileges"))?;
    cage.hold(Layer::NoNewPrivs);
    cage.tell(Layer::Capabilities, privileges::drop_all());
    cage.tell(Layer::Landlock, landlock::restrict(description));
    // What the shuttle carries to is nothing for the program.
    let network = description.tap.as_ref().map(|tap| tap.network);
    let keep: Vec<RawFd> = description.keep.iter().copied().filter(|fd| Some(*fd) != network).collect();
    keep_only(&keep).map_err(during("close descriptors"))?;
    cage.hold(Layer::Descriptors);
    cage.tell(Layer::Seccomp, seccomp::restrict(description));
    cage.tell(Layer::Cgroup, grouped);

    if let Some(missing) = cage.0.missing.iter().find(|m| description.required.contains(&m.layer)) {
        say(answer, &Answer::Refused { layer: missing.layer, why: missing.why.clone() });
        return Ok(());
    }
    if let (Some(packets), Some(network)) = (packets, network.and_then(open)) {
        shuttle::start(packets, network).map_err(during("start what carries its network's frames"))?;
    }
    let listener = match description.borrows {
        true => Some(lend::hold().map_err(during("hold its calls"))?),
        false => None,
    };
    say_with(answer, &Answer::Caged(cage.0), listener.as_ref());
    let (name, args) = description.argv.split_first().ok_or_else(|| (String::new(), invalid()))?;
    let mut program = Command::new(&description.program);
    Err((String::new(), program.arg0(name).args(args).env_clear().exec()))
}

/// What holds so far.
#[derive(Default)]
struct Built(Security);

impl Built {
    fn hold(&mut self, layer: Layer) {
        self.0.layers.push(layer);
    }

    fn miss(&mut self, layer: Layer, why: &str) {
        self.0.missing.push(MissingLayer { layer, why: why.to_owned() });
    }

    fn tell(&mut self, layer: Layer, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.hold(layer),
            Err(why) => self.miss(layer, &why),
        }
    }
}

fn during(what: &'static str) -> impl FnOnce(io::Error) -> Fatal {
    move |error| (format!("cannot {what}"), error)
}

fn denied() -> io::Error {
    io::Error::from_raw_os_error(libc::EPERM)
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// Everything but the standard three and these is closed when the program starts.
fn keep_only(keep: &[RawFd]) -> io::Result<()> {
    // Nothing is closed now, only marked to be closed by exec.
    close_range(3, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC)?;
    #[expect(unsafe_code, reason = "fcntl on bare numbers has no safe wrapper")]
    // SAFETY: plain system calls on descriptor numbers.
    unsafe {
        for fd in keep {
            if libc::fcntl(*fd, libc::F_SETFD, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Closes descriptors, or marks them. The caller makes sure that nobody uses those that are closed.
fn close_range(from: RawFd, to: RawFd, flags: libc::c_uint) -> io::Result<()> {
    #[expect(unsafe_code, reason = "close_range has no safe wrapper")]
    // SAFETY: a plain system call on descriptor numbers.
    let failed = unsafe { libc::syscall(libc::SYS_close_range, from, to, flags) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Goes into its control group, while that can still be seen.
fn join(group: &Result<OsString, String>) -> Result<(), String> {
    let group = Path::new(group.as_ref().map_err(String::clone)?);
    // This very process, whatever its number is where the file is read.
    std::fs::write(group.join("cgroup.procs"), "0")
        .map_err(|e| format!("its control group {} does not take it: {e}", group.display()))
}

/// The descriptor with this number, if it is one that was given to us.
fn given(number: &str) -> Option<OwnedFd> {
    open(number.parse().ok()?)
}

fn open(number: RawFd) -> Option<OwnedFd> {
    let number = Some(number).filter(|n| *n > 2)?;
    #[expect(unsafe_code, reason = "descriptors that a parent gives are known by number only")]
    // SAFETY: it is open, as fcntl has just seen, and beyond the standard three; nothing in this process owns a
    // descriptor yet, and each number is taken once.
    unsafe {
        (libc::fcntl(number, libc::F_GETFD) >= 0).then(|| OwnedFd::from_raw_fd(number))
    }
}

fn say(answer: &mut File, what: &Answer) {
    say_with(answer, what, None);
}

/// Says it, and hands over a descriptor.
fn say_with(answer: &mut File, what: &Answer, with: Option<&OwnedFd>) {
    let Ok(mut line) = serde_json::to_vec(what) else { return };
    line.push(b'\n');
    let fds: Vec<_> = with.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        beside.push(SendAncillaryMessage::ScmRights(&fds));
    }
    // At once, so that lines of two processes do not mix. Nobody listens any more: then nobody waits for the program
    // either, and it does not matter.
    let _ = sendmsg(answer, &[IoSlice::new(&line)], &mut beside, SendFlags::NOSIGNAL);
}

fn complain(what: &str) -> ExitCode {
    complain_of("it was started in vain", &io::Error::other(what));
    ExitCode::from(2)
}

#[expect(clippy::print_stderr, reason = "its log, or the terminal of who starts it by hand")]
fn complain_of(what: &str, why: &io::Error) {
    eprintln!("banger-cage: {what}: {why}");
}
