//! The answer about KVM, and what a user can do about it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Result, VmmError};

/// What KVM is worth on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum KvmStatus {
    /// There is no /dev/kvm.
    NoModule,
    /// This user may not open it.
    NoPermission {
        /// The group that may and that an ordinary user can join, if there is one.
        group: Option<String>,
    },
    /// It opens, but cannot run what a stock kernel needs.
    Emulated {
        /// What failed.
        detail: String,
    },
    /// Guest code ran and did what hardware does.
    Works,
}

impl KvmStatus {
    /// Why it does not work, in a few words; empty when it does.
    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::NoModule => "there is no /dev/kvm".to_owned(),
            Self::NoPermission { .. } => "this user may not open /dev/kvm".to_owned(),
            Self::Emulated { detail } => detail.clone(),
            Self::Works => String::new(),
        }
    }

    /// What to type, when something can be done.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoModule => Some(
                "turn on virtualisation in the firmware, then 'sudo modprobe kvm_intel' or 'sudo modprobe kvm_amd'; \
                 in a cloud VM, choose a type with nested virtualisation"
                    .to_owned(),
            ),
            Self::NoPermission { group: Some(group) } => {
                Some(format!("'sudo usermod -aG {group} $USER', then log out and in"))
            }
            Self::NoPermission { group: None } => Some(
                "'sudo chown root:kvm /dev/kvm && sudo chmod 660 /dev/kvm', then 'sudo usermod -aG kvm $USER', then log \
                 out and in"
                    .to_owned(),
            ),
            Self::Emulated { .. } => Some(
                "nothing is wrong with banger: without '--accel kvm' it uses QEMU's software emulation".to_owned(),
            ),
            Self::Works => None,
        }
    }

    /// Fails unless it works, for a reason that begins the message: "Firecracker needs KVM, which".
    ///
    /// # Errors
    /// `unavailable`, with the reason and a hint.
    pub(crate) fn require(&self, reason: &'static str) -> Result<()> {
        match self {
            Self::Works => Ok(()),
            other => Err(VmmError::KvmUnavailable {
                reason,
                why: other.detail(),
                hint: other.hint().unwrap_or_default(),
            }),
        }
    }
}

/// The name, from /etc/group (group(5)), of the group that may read and write a file. Root's group is none: to be in it is to
/// be nearly root.
pub(super) fn group_of(path: &Path) -> Option<String> {
    const READ_AND_WRITE: u32 = 0o060;
    let meta = fs::metadata(path).ok()?;
    let joined = meta.gid() != 0 && meta.mode() & READ_AND_WRITE == READ_AND_WRITE;
    joined.then(|| group_name(&fs::read_to_string("/etc/group").ok()?, meta.gid()))?
}

fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_hint_names_the_group_that_owns_the_device() {
        let groups = "root:x:0:\nkvm:x:104:me\nvirt:x:105:\n";
        assert_eq!(group_name(groups, 105).as_deref(), Some("virt"));
        assert_eq!(group_name(groups, 7), None);
        let status = KvmStatus::NoPermission { group: Some("virt".into()) };
        assert_eq!(status.hint().unwrap(), "'sudo usermod -aG virt $USER', then log out and in");
    }

    #[test]
    fn nobody_is_told_to_join_roots_group_or_one_that_may_not_open_the_device() {
        assert_eq!(group_of(Path::new("/dev/null")), None, "it is root's");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(group_of(file.path()), None);
        let hint = KvmStatus::NoPermission { group: None }.hint().unwrap();
        assert!(hint.contains("chmod 660 /dev/kvm") && hint.contains("-aG kvm"), "{hint}");
    }

    #[test]
    fn only_working_kvm_satisfies_a_demand() {
        assert!(KvmStatus::Works.require("it").is_ok());
        let emulated = KvmStatus::Emulated { detail: "int3 fails".into() };
        let error: banger_model::Error = emulated.require("this test needs KVM, which").unwrap_err().into();
        assert_eq!(error.code, banger_model::ErrorCode::Unavailable);
        assert_eq!(error.message, "this test needs KVM, which does not work here: int3 fails");
    }
}
