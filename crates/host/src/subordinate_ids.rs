//! The ids that an ordinary user may map into a user namespace, which an image build needs (subuid(5)).

use std::fs;

use banger_model::Error;

use crate::programs;

/// As many as a root file system has: ids of 16 bits.
const WANTED: u64 = 65536;
const FILES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];

/// Checks that a user has a range of subordinate ids, and the program that maps them. Root needs neither.
///
/// # Errors
/// `unavailable`, with what to type.
pub fn check(uid: u32) -> Result<(), Error> {
    if uid == 0 {
        return Ok(());
    }
    programs::find("newuidmap")?;
    let number = uid.to_string();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = name_in(&passwd, &number);
    for file in FILES {
        let text = fs::read_to_string(file).unwrap_or_default();
        if !has_range(&text, name, &number) {
            let user = name.unwrap_or(&number);
            let message = format!("user {user} has no subordinate ids in {file}, which an image build needs");
            let hint = format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}");
            return Err(Error::unavailable(message).with_hint(hint));
        }
    }
    Ok(())
}

/// The name of a user in a passwd(5).
fn name_in<'a>(passwd: &'a str, number: &str) -> Option<&'a str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then_some(name)
    })
}

/// subuid(5): `owner:first:count`, the owner by name or number.
fn has_range(text: &str, name: Option<&str>, number: &str) -> bool {
    text.lines().any(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [owner, _, count] = fields[..] else { return false };
        (Some(owner) == name || owner == number) && count.trim().parse::<u64>().is_ok_and(|n| n >= WANTED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_count_by_name_or_number_and_only_in_useful_amounts() {
        assert!(has_range("me:100000:65536\n", Some("me"), "1000"));
        assert!(has_range("1000:100000:65536", None, "1000"));
        assert!(!has_range("you:100000:65536", Some("me"), "1000"));
        assert!(!has_range("me:100000:10", Some("me"), "1000"));
        assert!(!has_range("", Some("me"), "1000"));
        assert_eq!(name_in("root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/:/bin/sh\n", "1000"), Some("me"));
        check(0).unwrap();
    }
}
