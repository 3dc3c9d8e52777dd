//! What opening the database would do, for people who want to know before they install another version. Must never
//! make, change or lock anything.

use std::ffi::OsString;
use std::fmt::Write as _;

use banger_model::{Result, state_dir_from};
use banger_store::{Inspection, inspect};

/// Looks at the database of the installation that these variables name, and says in a few lines what a start of the
/// daemon would make of it.
///
/// # Errors
/// What would keep the daemon from starting: a database of a newer version, or a damaged one.
pub fn check_migrations(env: impl Fn(&str) -> Option<OsString>) -> Result<String> {
    Ok(describe(&inspect(&state_dir_from(env)?.database())?))
}

fn describe(found: &Inspection) -> String {
    let path = found.path.display();
    let Some(schema) = found.schema else {
        return format!("{path}: not there yet; the daemon makes it with schema {}\n", found.known);
    };
    if found.pending.is_empty() {
        return format!("{path}: schema {schema}, nothing to do\n");
    }
    let mut text = format!("{path}: schema {schema}, would become {}\n", found.known);
    for step in &found.pending {
        let _ = writeln!(text, "  {}: {}", step.version, step.about);
    }
    if let Some(copy) = &found.backup {
        let _ = writeln!(text, "a copy would be kept first: {}", copy.display());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_store::{SCHEMA_VERSION, Store};

    #[test]
    fn a_database_is_described_before_and_after_it_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let look =
            || check_migrations(|key| (key == "BANGER_STATE_DIR").then(|| state.clone().into())).unwrap();
        // Nothing is there, and nothing is made
        assert!(look().contains("not there yet"), "{}", look());
        assert!(!state.exists());
        std::fs::create_dir(&state).unwrap();
        drop(Store::open(&state.join("banger.db")).unwrap());
        assert!(look().contains(&format!("schema {SCHEMA_VERSION}, nothing to do")), "{}", look());
    }
}
