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

/// Chooses. `registered` are the drivers this daemon has.
///
/// # Errors
/// `unsupported` for a driver that is not registered, `unavailable` when KVM is asked for (or
/// needed by the driver) and does not work.
pub fn choose(
    driver: DriverChoice,
    accel: Option<Accel>,
    registered: &[DriverKind],
    kvm: &KvmStatus,
) -> Result<Choice> {
    let firecracker = registered.contains(&DriverKind::Firecracker);
    let works = matches!(kvm, KvmStatus::Works);
    if accel == Some(Accel::Kvm) {
        kvm.require()?;
    }
    let driver = match driver {
        DriverChoice::Firecracker if !firecracker => {
            return Err(VmmError::DriverUnavailable { driver: DriverKind::Firecracker.as_str() });
        }
        DriverChoice::Firecracker => {
            kvm.require()?;
            DriverKind::Firecracker
        }
        DriverChoice::Auto if firecracker && works && accel != Some(Accel::Tcg) => DriverKind::Firecracker,
        DriverChoice::Auto | DriverChoice::Qemu => DriverKind::Qemu,
    };
    if !registered.contains(&driver) {
        return Err(VmmError::DriverUnavailable { driver: driver.as_str() });
    }
    let (accel, notice) = match accel {
        Some(Accel::Tcg) => (Accel::Tcg, None),
        Some(Accel::Kvm) => (Accel::Kvm, None),
        None if works => (Accel::Kvm, None),
        None => (
            Accel::Tcg,
            Some(format!(
                "KVM does not work here ({}): the guest runs in QEMU's software emulation, which is slow",
                kvm.detail()
            )),
        ),
    };
    if driver == DriverKind::Firecracker && accel == Accel::Tcg {
        return Err(VmmError::DriverUnavailable { driver: "firecracker without KVM" });
    }
    Ok(Choice { driver, accel, notice })
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
        let code = |driver, accel, registered, kvm: &KvmStatus| {
            let error: banger_model::Error = choose(driver, accel, registered, kvm).unwrap_err().into();
            assert!(error.hint.is_some(), "{error}");
            error.code
        };
        assert_eq!(code(DriverChoice::Firecracker, None, QEMU, &KvmStatus::Works), ErrorCode::Unsupported);
        assert_eq!(code(DriverChoice::Firecracker, None, BOTH, &emulated()), ErrorCode::Unavailable);
        assert_eq!(code(DriverChoice::Qemu, Some(Accel::Kvm), QEMU, &emulated()), ErrorCode::Unavailable);
        assert_eq!(
            code(DriverChoice::Auto, Some(Accel::Kvm), QEMU, &KvmStatus::NoModule),
            ErrorCode::Unavailable
        );
        assert_eq!(
            code(DriverChoice::Firecracker, Some(Accel::Tcg), BOTH, &KvmStatus::Works),
            ErrorCode::Unsupported
        );
    }

    #[test]
    fn software_emulation_can_be_asked_for_where_kvm_works() {
        let choice = choose(DriverChoice::Auto, Some(Accel::Tcg), BOTH, &KvmStatus::Works).unwrap();
        assert_eq!((choice.driver, choice.accel, choice.notice), (DriverKind::Qemu, Accel::Tcg, None));
    }
}
