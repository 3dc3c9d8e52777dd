//! Which driver and accelerator a VM gets. A pure function of what was asked for and what works.

use banger_model::{Accel, DriverChoice, DriverKind};

use crate::kvm::KvmStatus;
use crate::{Result, VmmError};

/// What a VM gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The driver.
    pub driver: DriverKind,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// One line to tell the user, when the choice is not the fast one.
    pub notice: Option<String>,
}

/// Chooses. `able` are the drivers that can be used here, and can do all that this VM wants: `auto` takes none but
/// these.
///
/// # Errors
/// `unavailable` when KVM is asked for (or needed by the driver) and does not work, `unsupported` for a combination
/// that cannot be. Firecracker may be asked for where KVM is an emulation: only then is it seen how far a guest comes.
pub fn choose(
    driver: DriverChoice,
    accel: Option<Accel>,
    able: &[DriverKind],
    kvm: &KvmStatus,
) -> Result<Choice> {
    let works = matches!(kvm, KvmStatus::Works);
    if accel == Some(Accel::Kvm) && driver != DriverChoice::Firecracker {
        kvm.require("KVM was asked for and")?;
    }
    let fast = able.contains(&DriverKind::Firecracker) && works && accel != Some(Accel::Tcg);
    match driver {
        DriverChoice::Firecracker => firecracker(accel, kvm),
        DriverChoice::Auto if fast => {
            Ok(Choice { driver: DriverKind::Firecracker, accel: Accel::Kvm, notice: None })
        }
        DriverChoice::Auto | DriverChoice::Qemu => Ok(qemu(accel, kvm)),
    }
}

fn firecracker(accel: Option<Accel>, kvm: &KvmStatus) -> Result<Choice> {
    if accel == Some(Accel::Tcg) {
        return Err(VmmError::DriverUnavailable { driver: "firecracker without KVM" });
    }
    let notice = match kvm {
        KvmStatus::Emulated { detail } => Some(format!(
            "KVM is emulated here ({detail}): no stock kernel survives that for long, in Firecracker or elsewhere"
        )),
        other => {
            other.require("Firecracker needs KVM, which")?;
            None
        }
    };
    Ok(Choice { driver: DriverKind::Firecracker, accel: Accel::Kvm, notice })
}

fn qemu(accel: Option<Accel>, kvm: &KvmStatus) -> Choice {
    let (accel, notice) = match accel {
        Some(accel) => (accel, None),
        None if matches!(kvm, KvmStatus::Works) => (Accel::Kvm, None),
        None => (
            Accel::Tcg,
            Some(format!(
                "KVM does not work here ({}): the guest runs in QEMU's software emulation, which is slow",
                kvm.detail()
            )),
        ),
    };
    Choice { driver: DriverKind::Qemu, accel, notice }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_model::ErrorCode;

    const QEMU: &[DriverKind] = &[DriverKind::Qemu];
    const BOTH: &[DriverKind] = &[DriverKind::Qemu, DriverKind::Firecracker];

    fn emulated() -> KvmStatus {
        KvmStatus::Emulated { detail: "cmpxchg16b fails".into() }
    }

    #[test]
    fn auto_takes_the_fastest_that_truly_works() {
        let pick = |registered, kvm: &KvmStatus| {
            let c = choose(DriverChoice::Auto, None, registered, kvm).unwrap();
            (c.driver, c.accel, c.notice.is_some())
        };
        assert_eq!(pick(BOTH, &KvmStatus::Works), (DriverKind::Firecracker, Accel::Kvm, false));
        assert_eq!(pick(QEMU, &KvmStatus::Works), (DriverKind::Qemu, Accel::Kvm, false));
        assert_eq!(pick(BOTH, &emulated()), (DriverKind::Qemu, Accel::Tcg, true));
    }

    #[test]
    fn the_notice_says_why_it_will_be_slow() {
        let notice = choose(DriverChoice::Auto, None, QEMU, &emulated()).unwrap().notice.unwrap();
        assert!(notice.contains("cmpxchg16b fails") && !notice.contains('\n'), "{notice}");
    }

    #[test]
    fn what_is_asked_for_and_does_not_work_is_an_error() {
        let code = |driver, accel, kvm: &KvmStatus| {
            let error: banger_model::Error = choose(driver, accel, BOTH, kvm).unwrap_err().into();
            assert!(error.hint.is_some(), "{error}");
            error.code
        };
        let (kvm, tcg) = (Some(Accel::Kvm), Some(Accel::Tcg));
        assert_eq!(code(DriverChoice::Firecracker, None, &KvmStatus::NoModule), ErrorCode::Unavailable);
        let error = choose(DriverChoice::Firecracker, None, BOTH, &KvmStatus::NoModule).unwrap_err();
        assert!(error.to_string().starts_with("Firecracker needs KVM, which does not work here"), "{error}");
        assert_eq!(code(DriverChoice::Qemu, kvm, &emulated()), ErrorCode::Unavailable);
        assert_eq!(code(DriverChoice::Auto, kvm, &KvmStatus::NoModule), ErrorCode::Unavailable);
        assert_eq!(code(DriverChoice::Firecracker, tcg, &KvmStatus::Works), ErrorCode::Unsupported);
    }

    #[test]
    fn firecracker_can_be_asked_for_where_kvm_is_emulated_and_it_is_said() {
        let choice = choose(DriverChoice::Firecracker, None, QEMU, &emulated()).unwrap();
        assert_eq!((choice.driver, choice.accel), (DriverKind::Firecracker, Accel::Kvm));
        let notice = choice.notice.unwrap();
        assert!(notice.contains("emulated") && notice.contains("cmpxchg16b fails"), "{notice}");
    }

    #[test]
    fn software_emulation_can_be_asked_for_where_kvm_works() {
        let choice = choose(DriverChoice::Auto, Some(Accel::Tcg), BOTH, &KvmStatus::Works).unwrap();
        assert_eq!((choice.driver, choice.accel, choice.notice), (DriverKind::Qemu, Accel::Tcg, None));
    }
}
