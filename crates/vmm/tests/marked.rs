//! Finding a VM's processes by their mark, while they do what hides it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use banger_model::VmId;
use banger_vmm::process::{find_marked, mark};

#[test]
fn a_process_is_found_also_in_the_middle_of_becoming_another_program() {
    // Given a session leader that does nothing but execute itself again, which takes its command line away for a moment
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let script = dir.path().join("again");
    fs::write(&script, "#!/bin/sh\nexec \"$0\" \"$1\"\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let id = VmId::from_random([0xee, 0, 0, 0, 0, std::process::id() as u8]);
    let mut command = Command::new("setsid");
    let mut child = command.arg(&script).arg(mark(&id)).stdin(Stdio::null()).spawn().unwrap();
    while find_marked(&id).unwrap().is_empty() {
        std::thread::yield_now();
    }
    // Then every look finds it
    let missed = (0..2000).filter(|_| find_marked(&id).unwrap().is_empty()).count();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(missed, 0);
}
