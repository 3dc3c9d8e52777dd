//! A machine's device state out of one QEMU and into another, without its memory: that is in a file
//! which both have. Must never have QEMU open a path: its cage has none for this.

use std::os::fd::{OwnedFd, RawFd};

use serde_json::{Value, json};

use super::qmp::{Heard, Qmp, QmpError};

/// What QEMU calls the file that it is given.
const STATE: &str = "state";

/// Leaves the memory where it is, and says how it goes. On both sides, before anything else.
async fn enable(qmp: &Qmp) -> Result<(), QmpError> {
    let capability = |name: &str| json!({ "capability": name, "state": true });
    let both = json!({ "capabilities": [capability("x-ignore-shared"), capability("events")] });
    qmp.execute_with("migrate-set-capabilities", both).await.map(drop)
}

/// Takes in the state behind a descriptor that QEMU was started with. The machine stands still then.
pub(super) async fn load(qmp: &Qmp, fd: RawFd) -> Result<(), QmpError> {
    enable(qmp).await?;
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

/// Writes the state to a file: QEMU may open none that it was not started with, so it is given this one.
pub(super) async fn save(qmp: &Qmp, file: OwnedFd) -> Result<(), QmpError> {
    enable(qmp).await?;
    qmp.forget_migration();
    qmp.give(STATE, file).await?;
    qmp.execute_with("migrate", json!({ "uri": format!("fd:{STATE}") })).await?;
    completed(qmp).await
}
