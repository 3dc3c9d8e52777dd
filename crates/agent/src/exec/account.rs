//! Users and groups from the guest's own files, without the C library's name service, which a
//! static program does not have. Never writes.

use std::path::Path;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: Vec<u8>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, with the primary one.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Vec<u8>,
    pub(crate) shell: Vec<u8>,
}

/// Finds a user by name or number in the files below `etc`. A number need not be in them, and root
/// exists without any file.
pub(crate) fn find(etc: &Path, user: &str) -> Option<Account> {
    let passwd = std::fs::read(etc.join("passwd")).unwrap_or_default();
    let number = user.parse::<u32>().ok();
    let mut account = entries(&passwd)
        .find(|f| f.first().is_some_and(|name| *name == user.as_bytes()))
        .or_else(|| {
            entries(&passwd).find(|f| number.is_some() && f.get(2).and_then(|id| parse(id)) == number)
        })
        .and_then(|f| from_fields(&f))
        .or_else(|| unlisted(if user == "root" { Some(0) } else { number }))?;
    let group = std::fs::read(etc.join("group")).unwrap_or_default();
    account.groups.extend(memberships(&group, &account.name));
    account.groups.sort_unstable();
    account.groups.dedup();
    Some(account)
}

/// An account that is in no file: a bare number, or root itself.
fn unlisted(uid: Option<u32>) -> Option<Account> {
    // (uid_t)-1 means "leave it" to the kernel.
    let uid = uid.filter(|uid| *uid != u32::MAX)?;
    let root = uid == 0;
    Some(Account {
        name: if root { b"root".to_vec() } else { uid.to_string().into_bytes() },
        uid,
        gid: uid,
        groups: vec![uid],
        home: if root && Path::new("/root").is_dir() { b"/root".to_vec() } else { b"/".to_vec() },
        shell: b"/bin/sh".to_vec(),
    })
}

/// passwd(5): name:password:uid:gid:comment:home:shell
fn from_fields(f: &[&[u8]]) -> Option<Account> {
    let or = |field: Option<&&[u8]>, default: &[u8]| match field {
        Some(f) if !f.is_empty() => f.to_vec(),
        _ => default.to_vec(),
    };
    let (uid, gid) = (parse(f.get(2)?)?, parse(f.get(3)?)?);
    Some(Account {
        name: f.first()?.to_vec(),
        uid,
        gid,
        groups: vec![gid],
        home: or(f.get(5), b"/"),
        shell: or(f.get(6), b"/bin/sh"),
    })
}

/// group(5): name:password:gid:member,member
fn memberships<'a>(group: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = u32> + 'a {
    entries(group)
        .filter(move |f| f.get(3).is_some_and(|members| members.split(|b| *b == b',').any(|m| m == name)))
        .filter_map(|f| parse(f.get(2)?))
}

fn entries(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| line.split(|b| *b == b':').collect())
}

fn parse(number: &[u8]) -> Option<u32> {
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/bash\n# comment\nbroken:x\ndev:x:1000:100:,,,:/home/dev:\n42:x:7:7::/seven:/bin/zsh\n";
        std::fs::write(dir.path().join("passwd"), passwd).unwrap();
        std::fs::write(
            dir.path().join("group"),
            "root:x:0:\nsudo:x:27:other,dev\ndocker:x:999:dev\nvide:x:44:devil\n",
        )
        .unwrap();
        dir
    }

    #[test]
    fn names_come_before_numbers_and_groups_are_gathered() {
        let etc = etc();
        let dev = find(etc.path(), "dev").unwrap();
        assert_eq!((dev.uid, dev.gid, dev.groups.as_slice()), (1000, 100, &[27, 100, 999][..]));
        assert_eq!((dev.home.as_slice(), dev.shell.as_slice()), (&b"/home/dev"[..], &b"/bin/sh"[..]));
        assert_eq!(find(etc.path(), "1000").unwrap(), dev);
        assert_eq!(find(etc.path(), "42").unwrap().uid, 7, "a name made of digits is a name");
    }

    #[test]
    fn numbers_without_an_entry_work_and_names_do_not() {
        let etc = etc();
        let bare = find(etc.path(), "31337").unwrap();
        assert_eq!((bare.uid, bare.gid, bare.home.as_slice()), (31337, 31337, &b"/"[..]));
        assert_eq!(find(etc.path(), "nobody-here"), None);
        assert_eq!(find(etc.path(), "broken"), None);
        assert_eq!(find(etc.path(), "4294967295"), None);
        assert_eq!(find(etc.path(), "-1"), None);
    }

    #[test]
    fn root_needs_no_file() {
        let root = find(Path::new("/nonexistent"), "root").unwrap();
        assert_eq!((root.uid, root.gid, root.shell.as_slice()), (0, 0, &b"/bin/sh"[..]));
    }
}
