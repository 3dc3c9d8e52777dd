//! The arguments as the parser sees them.

use std::ffi::OsString;

use clap::{CommandFactory as _, Parser as _};

use super::{Cli, Command, vm};

fn parse(line: &[&str]) -> Cli {
    Cli::try_parse_from(std::iter::once(&"banger").chain(line)).unwrap()
}

#[test]
fn the_tree_has_no_contradictions() {
    Cli::command().debug_assert();
}

#[test]
fn only_run_and_exec_keep_their_hands_off_status_1() {
    for (line, status) in [
        (&["run"][..], 125),
        (&["vm", "run"], 125),
        (&["exec", "v", "c"], 125),
        (&["vm", "exec", "v", "c"], 125),
        (&["shell", "v"], 1),
        (&["ps"], 1),
        (&["vm", "create"], 1),
    ] {
        assert_eq!(parse(line).command.failure_status(), status, "{line:?}");
    }
}

#[test]
fn json_and_quiet_go_anywhere_before_the_command_of_the_guest() {
    for line in [&["--json", "ps"][..], &["vm", "--json", "list"], &["vm", "list", "--json"]] {
        assert!(parse(line).json, "{line:?}");
    }
    let cli = parse(&["run", "--", "cmd", "--json", "-q"]);
    assert!(!cli.json && !cli.quiet);
}

#[test]
fn what_follows_the_vm_is_the_command_with_or_without_dashes() {
    for line in [
        &["exec", "-i", "web", "--", "ls", "-l", "--", "x"][..],
        &["exec", "web", "-i", "--", "ls", "-l", "--", "x"],
        &["exec", "-i", "web", "ls", "-l", "--", "x"],
    ] {
        let Command::Exec(args) = parse(line).command else { panic!("{line:?}") };
        assert_eq!(args.command(), ["ls", "-l", "--", "x"].map(OsString::from), "{line:?}");
        assert!(args.interactive(), "{line:?}");
    }
    let Command::Vm(vm::VmCommand::Exec(args)) = parse(&["vm", "exec", "web", "--", "-odd"]).command else {
        panic!()
    };
    assert_eq!(args.command(), ["-odd"].map(OsString::from));
}
