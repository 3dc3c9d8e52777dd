//! Keeps the answer for the rest of this boot. A cache that cannot be read or written is no cache.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::KvmStatus;
use crate::process::boot_id;

/// Changes whenever the trial's own code does, so that an upgrade asks again.
const TRIAL: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Kept {
    trial: u32,
    boot_id: String,
    kvm: KvmStatus,
}

pub(super) fn read(path: &Path) -> Option<KvmStatus> {
    let kept: Kept = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (kept.trial == TRIAL && kept.boot_id == boot_id().ok()?).then_some(kept.kvm)
}

pub(super) fn write(path: &Path, kvm: &KvmStatus) {
    let Ok(boot_id) = boot_id() else { return };
    let kept = Kept { trial: TRIAL, boot_id, kvm: kvm.clone() };
    if let Err(error) = replace(path, &kept) {
        tracing::debug!(%error, path = %path.display(), "the answer about KVM could not be kept");
    }
}

/// Whole or not at all: another process may read at any moment.
fn replace(path: &Path, kept: &Kept) -> std::io::Result<()> {
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(&serde_json::to_vec(kept)?)?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_for_this_boot_and_this_trial_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvm.json");
        assert_eq!(read(&path), None);
        let answer = KvmStatus::Emulated { detail: "x".into() };
        write(&path, &answer);
        assert_eq!(read(&path), Some(answer.clone()));

        let of_another_boot = Kept { trial: TRIAL, boot_id: "0".repeat(36), kvm: answer.clone() };
        replace(&path, &of_another_boot).unwrap();
        assert_eq!(read(&path), None);
        let of_an_older_trial = Kept { trial: TRIAL - 1, boot_id: boot_id().unwrap(), kvm: answer };
        replace(&path, &of_an_older_trial).unwrap();
        assert_eq!(read(&path), None);

        fs::write(&path, "{").unwrap();
        assert_eq!(read(&path), None);
    }
}
