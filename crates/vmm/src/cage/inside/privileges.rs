//! Limits and capabilities: what this process, and the program it becomes, may take and do.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Threads that a machine monitor may have: one for each vCPU, and a pool for its disks.
const THREADS: u64 = 512;

/// Sets limits. That on processes and threads is counted in a user namespace of our own; without one it would count
/// all of the user's.
pub(super) fn limit(descriptors: u64, own_user: bool) -> io::Result<()> {
    set(Resource::Core, 0)?;
    set(Resource::Nofile, descriptors)?;
    set(Resource::Msgqueue, 0)?;
    set(Resource::Rtprio, 0)?;
    set(Resource::Memlock, 8 << 20)?;
    if own_user {
        set(Resource::Nproc, THREADS)?;
    }
    Ok(())
}

/// Lowers a limit for good; one that is lower already stays.
fn set(resource: Resource, most: u64) -> io::Result<()> {
    let most = getrlimit(resource).maximum.map_or(most, |now| now.min(most));
    Ok(setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// Gives up every capability, and the ways to get one.
pub(super) fn drop_all() -> Result<(), String> {
    // Only who has CAP_SETPCAP may; who has not gets none by a program's start either, having no new privileges.
    for capability in 0..=63 {
        #[expect(unsafe_code, reason = "the wrapper knows only the capabilities of its own day")]
        // SAFETY: prctl with these arguments reads and writes no memory.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == 0;
        if !dropped {
            break;
        }
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    // The ambient set goes with the permitted one.
    rustix::thread::set_capabilities(None, none).map_err(|e| e.to_string())?;
    #[expect(unsafe_code, reason = "as above")]
    // SAFETY: as above.
    let bounded = unsafe { libc::prctl(libc::PR_CAPBSET_READ, 0, 0, 0, 0) } == 0;
    if rustix::process::geteuid().is_root() && !bounded {
        return Err("root's capabilities come back at the start of a program".to_owned());
    }
    Ok(())
}
