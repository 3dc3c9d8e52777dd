//! Landlock: the same places as the root directory's, enforced by another part of the kernel, which needs no namespace.
//! Besides, where the kernel's landlock has it: no TCP, no signals to and no abstract sockets of processes outside.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

use super::super::description::{Access, Description};

/// The newest that we know; what an older kernel lacks of it is left out.
const KNOWN: ABI = ABI::V6;

/// Restricts this process, and what it becomes.
pub(super) fn restrict(description: &Description) -> Result<(), String> {
    match build(description) {
        Ok(RulesetStatus::NotEnforced) => {
            Err("this kernel has no landlock, or it is switched off".to_owned())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn build(description: &Description) -> Result<RulesetStatus, RulesetError> {
    let mut rules = Ruleset::default().scope(Scope::from_all(KNOWN))?;
    if !description.nests {
        // A process whose files landlock restricts may not mount anything: one that builds a root of its own cannot
        // be under it.
        rules = rules.handle_access(AccessFs::from_all(KNOWN))?;
    }
    if !description.hosts_network {
        rules = rules.handle_access(AccessNet::from_all(KNOWN))?;
    }
    let mut rules = rules.create()?;
    for place in description.places.iter().filter(|_| !description.nests) {
        let path = Path::new(&place.path);
        let Ok(fd) = PathFd::new(path) else { continue };
        let all = if path.is_dir() { AccessFs::from_all(KNOWN) } else { AccessFs::from_file(KNOWN) };
        rules = rules.add_rule(PathBeneath::new(fd, all & rights(place.access)))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

fn rights(access: Access) -> BitFlags<AccessFs> {
    let file = AccessFs::ReadFile | AccessFs::WriteFile;
    match access {
        Access::Read => AccessFs::from_read(KNOWN),
        Access::Write => file | AccessFs::Truncate,
        Access::Device => file | AccessFs::IoctlDev,
        Access::Room => {
            let no = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
            AccessFs::from_all(KNOWN) & !no
        }
    }
}
