//! A machine's device state out of one QEMU and into another, without its memory: that is read from
//! outside, and is in a file that the other begins with. Must never have QEMU open a path: its cage has none for this.

use std::os::fd::{OwnedFd, RawFd};

use serde_json::{Value, json};

use super::heard::Heard;
use super::qmp::{Qmp, QmpError};

/// Takes in the state behind a descriptor that QEMU was started with. The machine stands still then.
pub(super) async fn load(qmp: &Qmp, fd: RawFd) -> Result<(), QmpError> {
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    qmp.execute_with("migrate-set-capabilities", events).await?;
    qmp.execute_with("migrate-incoming", json!({ "uri": format!("fd:{fd}") })).await?;
    completed(qmp).await
}

async fn completed(qmp: &Qmp) -> Result<(), QmpError> {
    let end = qmp.until(Heard::migration).await?;
    if end == "completed" { Ok(()) } else { Err(QmpError::Refused(format!("the migration {end}"))) }
}

/// QEMU's version, as its own answer has it.
pub(super) async fn version(qmp: &Qmp) -> Result<String, QmpError> {
    let answer = qmp.execute("query-version").await?;
    let number = |key: &str| answer.get("qemu").and_then(|v| v.get(key)).and_then(Value::as_u64);
    match (number("major"), number("minor"), number("micro")) {
        (Some(major), Some(minor), Some(micro)) => Ok(format!("{major}.{minor}.{micro}")),
        _ => Err(QmpError::Refused("it does not say its version".to_owned())),
    }
}

/// Writes the state of all devices, but not the memory, to a file: QEMU may open none that it was not
/// started with, so it is given this one. The machine is to stand still.
pub(super) async fn save(qmp: &Qmp, file: OwnedFd) -> Result<(), QmpError> {
    let set = qmp.give(file).await?;
    let to = format!("/dev/fdset/{set}");
    // 'live' would take its disks from it.
    let saved = qmp.patiently("xen-save-devices-state", json!({ "filename": to, "live": false })).await;
    let taken = qmp.execute_with("remove-fd", json!({ "fdset-id": set })).await;
    saved.and(taken).map(drop)
}

/// Where in QEMU's own memory the guest's begins. It is one piece there, whatever the guest sees.
pub(super) async fn memory_address(qmp: &Qmp) -> Result<u64, QmpError> {
    let ask = json!({ "command-line": "gpa2hva 0" });
    let answer = qmp.execute_with("human-monitor-command", ask).await?;
    let text = answer.as_str().unwrap_or_default().trim();
    let address = text.rsplit_once(" is 0x").and_then(|(_, hex)| u64::from_str_radix(hex, 16).ok());
    address.ok_or_else(|| QmpError::Refused(format!("it does not say where its memory is: '{text}'")))
}
