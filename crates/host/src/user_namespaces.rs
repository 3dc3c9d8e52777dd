//! Whether this host lets this user make user namespaces, and which of its switches does not. Every sandbox around a
//! VM is built in one, and so is an image.

use std::fs;
use std::path::Path;

/// A host's refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, half a sentence.
    pub why: String,
    /// What to type, or do.
    pub hint: String,
}

/// A switch of the host's, by which user namespaces are denied.
struct Switch {
    /// Below /proc/sys.
    file: &'static str,
    /// Its value when they are.
    denies: &'static str,
    /// Whether root is denied them too.
    root: bool,
    why: &'static str,
    hint: &'static str,
}

const SWITCHES: [Switch; 3] = [
    Switch {
        file: "user/max_user_namespaces",
        denies: "0",
        root: true,
        why: "the sysctl user.max_user_namespaces is 0",
        hint: "sudo sysctl user.max_user_namespaces=15000",
    },
    Switch {
        file: "kernel/unprivileged_userns_clone",
        denies: "0",
        root: false,
        why: "the sysctl kernel.unprivileged_userns_clone is 0",
        hint: "sudo sysctl kernel.unprivileged_userns_clone=1",
    },
    Switch {
        file: "kernel/apparmor_restrict_unprivileged_userns",
        denies: "1",
        root: false,
        why: "AppArmor denies them to programs without a profile, as Ubuntu does since 23.10",
        hint: "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    },
];

/// SELinux's switch, in its own file system.
const SELINUX_ENFORCES: &str = "/sys/fs/selinux/enforce";

/// Why this host denies user namespaces, for a process that was denied one.
#[must_use]
pub fn why_denied() -> Refusal {
    let root = rustix::process::geteuid().is_root();
    let read = |path: &Path| fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
    refusal(
        root,
        |file| read(&Path::new("/proc/sys").join(file)),
        read(Path::new(SELINUX_ENFORCES)).as_deref(),
    )
}

fn refusal(root: bool, sysctl: impl Fn(&str) -> Option<String>, selinux: Option<&str>) -> Refusal {
    let set =
        |switch: &&Switch| (!root || switch.root) && sysctl(switch.file).as_deref() == Some(switch.denies);
    if let Some(switch) = SWITCHES.iter().find(set) {
        return Refusal { why: switch.why.to_owned(), hint: switch.hint.to_owned() };
    }
    if selinux == Some("1") {
        return Refusal {
            why: "SELinux is enforcing and probably denies them".to_owned(),
            hint:
                "look for the denial with 'sudo ausearch -m avc -ts recent', and allow user_namespace create"
                    .to_owned(),
        };
    }
    Refusal {
        why: "no switch of the host's explains it".to_owned(),
        hint: "allow user namespaces where banger runs; a container's system call filter often denies them"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_that_denies_is_named_with_the_way_to_set_it() {
        let with = |root: bool, file: &'static str, value: &'static str| {
            refusal(root, move |asked| (asked == file).then(|| value.to_owned()), None)
        };
        for switch in &SWITCHES {
            let denied = with(false, switch.file, switch.denies);
            assert_eq!((denied.why.as_str(), denied.hint.as_str()), (switch.why, switch.hint));
        }
        assert!(with(true, "kernel/unprivileged_userns_clone", "0").why.contains("no switch"));
        assert!(with(true, "user/max_user_namespaces", "0").hint.contains("15000"));
        assert!(with(false, "user/max_user_namespaces", "63000").hint.contains("container"));
        assert!(refusal(false, |_| None, Some("1")).why.contains("SELinux"));
        assert!(refusal(false, |_| None, Some("0")).why.contains("no switch"));
    }
}
