//! What makes a guest that was restored from a copied memory a machine of its own. Owns the order: all that a process could
//! see is other before any process goes on. Must never leave half an identity to a guest that goes on.

mod hooks;
mod host_keys;
mod machine_id;

use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use banger_model::{Error, ErrorCode};
use banger_protocol::agent::{HostHello, Identity};

use crate::boot::{self, Connection};
use host_keys::KeyKind;

/// The connections to other machines that there were when everything last stood still: in a copy they lead nowhere.
static CONNECTIONS: Mutex<Vec<Connection>> = Mutex::new(Vec::new());
/// How much of a file is looked at ahead.
const LOOK: u64 = 1 << 20;

/// What is left to do once processes run again.
#[derive(Debug)]
pub(crate) struct Remaining {
    identity: Identity,
    keys: Vec<KeyKind>,
    old_id: Option<String>,
}

/// Takes an identity on; `received` is when the host's word came. Blocks. Nothing in the guest may run but the agent.
///
/// # Errors
/// `invalid_argument` for an identity that is none, before anything is changed; a sentence for what the kernel refuses.
pub(crate) fn take_on(hello: &HostHello, identity: Identity, received: Instant) -> Result<Remaining, Error> {
    check(&identity)?;
    let root = Path::new("/");
    // One after the other, and on the thread that was asked: what runs first in a restored guest is slow, and a second
    // thread with all that the kernel does for it takes longer than it saves.
    boot::renew_random_numbers(&hello.entropy)?;
    let (keys, old_id) = write_files(root, &identity);
    identity.network.as_ref().map_or(Ok(()), boot::configure_network)?;
    // Last, since the others take a moment.
    set_clock(hello.unix_ns, received)?;
    Ok(Remaining { identity, keys, old_id })
}

fn write_files(root: &Path, identity: &Identity) -> (Vec<KeyKind>, Option<String>) {
    boot::rename(root, &identity.hostname);
    match &identity.machine_id {
        Some(id) => (host_keys::remove(root), machine_id::replace(root, id)),
        None => (Vec::new(), None),
    }
}

/// Reads what [`take_on`] reads, so that it is in memory when that is copied.
pub(crate) fn look_ahead() {
    let root = Path::new("/");
    for path in ["etc/hostname", "etc/hosts", "etc/machine-id", "var/lib/dbus/machine-id"] {
        let Ok(file) = std::fs::File::open(root.join(path)) else { continue };
        let _ = std::io::copy(&mut file.take(LOOK), &mut std::io::sink());
    }
    host_keys::found(root);
    hooks::are_any(root);
    // Loads the kernel's module for that, too.
    let _ = boot::foreign_connections();
}

/// Notes what is there and will not be a copy's. Everything stands still.
pub(crate) fn take_stock() -> Result<(), Error> {
    *lock(&CONNECTIONS) = boot::foreign_connections()?;
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the clock to what the host said, and the time since then.
pub(crate) fn set_clock(unix_ns: i64, received: Instant) -> Result<(), Error> {
    let since = i64::try_from(received.elapsed().as_nanos()).unwrap_or_default();
    Ok(boot::set_time(unix_ns.saturating_add(since))?)
}

fn check(identity: &Identity) -> Result<(), Error> {
    let bad = |what: &str, value: &str| {
        Err(Error::new(ErrorCode::InvalidArgument, format!("'{}' is no {what}", value.escape_debug())))
    };
    let name = &identity.hostname;
    let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fine) {
        return bad("hostname", name);
    }
    match &identity.machine_id {
        Some(id) if !machine_id::is_one(id) => bad("machine id", id),
        _ => Ok(()),
    }
}

impl Remaining {
    /// Whether somebody may wait for it. Where nobody does, what follows the first answer goes first: usually the user's
    /// command.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.keys.is_empty() || hooks::are_any(Path::new("/"))
    }

    /// Makes the host keys anew and runs the image's hooks. Blocks for as long as those take; what they say and what fails
    /// goes to the console.
    pub(crate) fn finish(self, log: impl Fn(&str)) {
        let root = Path::new("/");
        log(&format!("restored as {}", self.identity.hostname));
        if let (Some(old), Some(id)) = (&self.old_id, &self.identity.machine_id) {
            machine_id::rename_journal(root, old, id);
        }
        if self.identity.network.is_some() {
            let ended = boot::end_connections(&lock(&CONNECTIONS));
            for error in [ended, boot::renew_ipv6()].into_iter().filter_map(Result::err) {
                log(&error.to_string());
            }
        }
        host_keys::generate(root, &self.keys, &self.identity.hostname, &log);
        hooks::run(root, &self.identity, &log);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_checked_before_anything_is_changed() {
        let good = Identity {
            hostname: "calm-otter".into(),
            machine_id: Some("0a".repeat(16)),
            network: None,
            rehearsal: false,
        };
        check(&good).unwrap();
        check(&Identity { machine_id: None, ..good.clone() }).unwrap();
        for hostname in ["", "a b", "a\nb", &"a".repeat(65), "../a"] {
            let error = check(&Identity { hostname: hostname.into(), ..good.clone() }).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument, "{hostname}");
        }
        for id in ["", "0a", &"0A".repeat(16), &"0g".repeat(16), &"00".repeat(16)] {
            let error = check(&Identity { machine_id: Some(id.into()), ..good.clone() }).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument, "{id}");
        }
    }
}
