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
        /// The group that may, if it has a name.
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
            Self::NoPermission { group: Some(group) } if group != "root" => {
                Some(format!("'sudo usermod -aG {group} $USER', then log out and in"))
            }
            // Nobody should become a member of root's own group for this.
            Self::NoPermission { .. } => {
                Some("let this user open it, until the next boot: 'sudo setfacl -m u:$USER:rw /dev/kvm'".to_owned())
            }
            Self::Emulated { .. } => Some(
                "nothing is wrong with banger: without '--accel kvm' it uses QEMU's software emulation".to_owned(),
            ),
            Self::Works => None,
        }
    }

    /// Fails unless it works.
    ///
    /// # Errors
    /// `unavailable`, with the reason and a hint.
    pub fn require(&self) -> Result<()> {
        match self {
            Self::Works => Ok(()),
            other => {
                Err(VmmError::KvmUnavailable { why: other.detail(), hint: other.hint().unwrap_or_default() })
            }
        }
    }
}

/// The name of the group that owns a file, from /etc/group (group(5)).
pub(super) fn group_of(path: &Path) -> Option<String> {
    let gid = fs::metadata(path).ok()?.gid();
    group_name(&fs::read_to_string("/etc/group").ok()?, gid)
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

    #[test]
    fn the_hint_names_the_group_that_owns_the_device() {
        let groups = "root:x:0:\nkvm:x:104:me\nvirt:x:105:\n";
        assert_eq!(group_name(groups, 105).as_deref(), Some("virt"));
        assert_eq!(group_name(groups, 7), None);
        let status = KvmStatus::NoPermission { group: Some("virt".into()) };
        assert_eq!(status.hint().unwrap(), "'sudo usermod -aG virt $USER', then log out and in");
    }

    #[test]
    fn only_working_kvm_satisfies_a_demand() {
        assert!(KvmStatus::Works.require().is_ok());
        let error: banger_model::Error =
            KvmStatus::Emulated { detail: "int3 fails".into() }.require().unwrap_err().into();
        assert_eq!(error.code, banger_model::ErrorCode::Unavailable);
        assert!(error.message.contains("int3 fails"), "{error}");
    }
}
