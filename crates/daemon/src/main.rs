//! `bangerd`: arguments, and nothing else.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use clap::Parser;

/// The banger daemon. The `banger` command starts it by itself.
#[derive(Debug, Parser)]
#[command(name = "bangerd", version)]
struct Arguments {
    /// Write one line of JSON to this descriptor when ready, or why not.
    #[arg(long, value_name = "FD")]
    ready_fd: Option<RawFd>,
    /// Print the names of all steps of all operations, and end. For tests: see CONTRIBUTING.md, "Fault points".
    #[arg(long)]
    list_steps: bool,
    /// Say what a start would do to the database, touch nothing, and end: 0 when it can be used, 1 when not.
    #[arg(long)]
    check_migrations: bool,
    /// Print the checks of `banger doctor` as JSON, touch nothing, and end.
    #[arg(long)]
    doctor: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list_steps {
        return print(&banger_daemon::steps().iter().map(|step| format!("{step}\n")).collect::<String>());
    }
    if arguments.check_migrations {
        return match banger_daemon::check_migrations(|key| std::env::var_os(key)) {
            Ok(text) => print(&text),
            Err(error) => {
                let hint = error.hint.as_ref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
                complain(format!("{error}{hint}"))
            }
        };
    }
    if arguments.doctor {
        return match banger_daemon::doctor_report(|key| std::env::var_os(key)) {
            Ok(checks) => print(&checks),
            Err(error) => complain(error),
        };
    }
    let ready = match arguments.ready_fd.map(inherited).transpose() {
        Ok(ready) => ready,
        Err(message) => return complain(message),
    };
    match banger_daemon::run(ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(error),
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(error),
    }
}

fn inherited(fd: RawFd) -> Result<File, String> {
    if fd <= 2 || std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_err() {
        return Err(format!("--ready-fd {fd} is not a descriptor we were given"));
    }
    #[expect(unsafe_code, reason = "the only way to own a descriptor that the parent passed by number")]
    // SAFETY: checked above to be open and above the standard three, and nothing else in this
    // process has been told of it: this is the first thing main does.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC).map_err(|e| e.to_string())?;
    Ok(File::from(owned))
}

#[expect(clippy::print_stderr, reason = "the last words of a daemon that has no client to tell")]
fn complain(error: impl std::fmt::Display) -> ExitCode {
    eprintln!("bangerd: {error}");
    ExitCode::FAILURE
}
