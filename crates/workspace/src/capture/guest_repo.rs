//! The small files of the guest's `.git`: what it says of itself, of its origin and of its user.
//!
//! Owns which settings travel: those that decide how contents are read and who commits. Must never
//! let one travel that names a program, a credential or a path of the host.

use std::path::{Path, PathBuf};

use super::history::History;
use crate::Result;
use crate::source::{Source, path_of};

/// Settings that decide what git makes of the same bytes.
const TRAVELLING: [&str; 9] = [
    "core.autocrlf",
    "core.eol",
    "core.safecrlf",
    "core.bigfilethreshold",
    "core.commentchar",
    "core.sparsecheckout",
    "core.sparsecheckoutcone",
    "user.name",
    "user.email",
];

/// State of a merge, cherry-pick or revert in progress: plain text that git reads.
const IN_PROGRESS: [&str; 6] =
    ["MERGE_HEAD", "MERGE_MSG", "MERGE_MODE", "SQUASH_MSG", "CHERRY_PICK_HEAD", "REVERT_HEAD"];

/// The largest of these files that is copied, bytes.
const CAP: u64 = 16 << 20;

/// What the guest's repository shall be.
pub(crate) struct Head<'a> {
    /// The branch checked out.
    pub(crate) branch: Option<&'a str>,
    /// The commit checked out.
    pub(crate) commit: Option<&'a str>,
    /// Whether the source's work in progress goes along.
    pub(crate) overlay: bool,
}

/// Commits that an operation in progress refers to.
pub(crate) fn heads_in_progress(source: &Source) -> Result<Vec<String>> {
    let mut heads = Vec::new();
    for name in IN_PROGRESS.iter().filter(|n| n.ends_with("_HEAD")) {
        let text = std::fs::read_to_string(source.git_path(name)?).unwrap_or_default();
        heads.extend(text.lines().filter_map(|line| crate::source::object_id(line.as_bytes())));
    }
    Ok(heads)
}

/// Names below `.git` and contents.
pub(crate) fn files(
    source: &Source,
    head: &Head<'_>,
    history: &History,
) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut files = vec![("config", config(source, head)?)];
    let mut refs = b"# pack-refs with: peeled fully-peeled sorted \n".to_vec();
    let pointer = match (head.branch, head.commit) {
        (Some(branch), commit) => {
            if let Some(commit) = commit {
                refs.extend_from_slice(format!("{commit} refs/heads/{branch}\n").as_bytes());
            }
            format!("ref: refs/heads/{branch}\n")
        }
        (None, Some(commit)) => format!("{commit}\n"),
        (None, None) => "ref: refs/heads/main\n".to_owned(),
    };
    files.push(("HEAD", pointer.into_bytes()));
    files.push(("packed-refs", refs));
    if !history.shallow.is_empty() {
        let text: String = history.shallow.iter().flat_map(|id| [id, "\n"]).collect();
        files.push(("shallow", text.into_bytes()));
    }
    files.push(("info/exclude", excludes(source)?));
    for name in ["info/attributes", "info/sparse-checkout"] {
        files.extend(read(&source.git_path(name)?).map(|text| (name, text)));
    }
    if head.overlay {
        for name in IN_PROGRESS {
            files.extend(read(&source.git_path(name)?).map(|text| (name, text)));
        }
    }
    Ok(files)
}

/// The user's own ignore rules, then the repository's: the later line wins, as it does at home.
fn excludes(source: &Source) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let own = source.git.query(&["config", "-z", "--type=path", "--get", "core.excludesFile"], 1 << 16)?;
    let own = own.map(|mut value| {
        value.pop();
        source.top.join(path_of(value))
    });
    for file in own.or_else(default_excludes).into_iter().chain([source.git_path("info/exclude")?]) {
        text.extend(read(&file).unwrap_or_default());
        if text.last().is_some_and(|b| *b != b'\n') {
            text.push(b'\n');
        }
    }
    Ok(text)
}

fn default_excludes() -> Option<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME").filter(|d| !d.is_empty()).map(PathBuf::from);
    let config = config.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))?;
    Some(config.join("git/ignore"))
}

fn read(file: &Path) -> Option<Vec<u8>> {
    let meta = std::fs::metadata(file).ok()?;
    if meta.is_file() && meta.len() <= CAP { std::fs::read(file).ok() } else { None }
}

fn config(source: &Source, head: &Head<'_>) -> Result<Vec<u8>> {
    let mut out = Config::default();
    let is_sha256 = source.object_format == "sha256";
    let is_partial = source.is_partial()?;
    out.section("core", None);
    out.set("repositoryformatversion", if is_sha256 || is_partial { b"1" } else { b"0" });
    for (key, value) in [
        ("filemode", "true"),
        ("bare", "false"),
        ("logallrefupdates", "true"),
        // Inode numbers and change times are not the host's; size and whole seconds are.
        ("checkStat", "minimal"),
        ("trustctime", "false"),
    ] {
        out.set(key, value.as_bytes());
    }
    if is_sha256 {
        out.section("extensions", None);
        out.set("objectFormat", b"sha256");
    }
    for name in TRAVELLING {
        if let (Some((section, key)), Some(value)) = (name.split_once('.'), source.setting(name)?) {
            out.section(section, None);
            out.set(key, &value);
        }
    }
    if is_partial {
        out.section("extensions", None);
        out.set("partialClone", b"origin");
    }
    if let Some(url) = source.setting("remote.origin.url")? {
        out.section("remote", Some("origin"));
        out.set("url", &without_credentials(&url));
        out.set("fetch", b"+refs/heads/*:refs/remotes/origin/*");
        if is_partial {
            out.set("promisor", b"true");
        }
        if let Some(branch) = head.branch
            && source.setting(&format!("branch.{branch}.remote"))?.as_deref() == Some(b"origin")
            && let Some(merge) = source.setting(&format!("branch.{branch}.merge"))?
        {
            out.section("branch", Some(branch));
            out.set("remote", b"origin");
            out.set("merge", &merge);
        }
    }
    Ok(out.text)
}

/// A git configuration file (git-config(1), "Syntax"), every value quoted.
#[derive(Default)]
struct Config {
    text: Vec<u8>,
}

impl Config {
    fn section(&mut self, name: &str, sub: Option<&str>) {
        let sub = sub.map(|s| format!(" \"{}\"", s.replace('\\', "\\\\").replace('"', "\\\"")));
        self.text.extend(format!("[{name}{}]\n", sub.unwrap_or_default()).into_bytes());
    }

    fn set(&mut self, key: &str, value: &[u8]) {
        self.text.extend(format!("\t{key} = \"").into_bytes());
        for byte in value {
            match byte {
                b'\n' => self.text.extend(b"\\n"),
                b'"' | b'\\' => self.text.extend([b'\\', *byte]),
                _ => self.text.push(*byte),
            }
        }
        self.text.extend(b"\"\n");
    }
}

/// A remote's address without a password; over HTTP the user name can be a token, so it goes too.
fn without_credentials(url: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(url);
    let Some((scheme, rest)) = text.split_once("://") else { return url.to_vec() };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let Some((user, host)) = host.rsplit_once('@') else { return url.to_vec() };
    let user = user.split(':').next().unwrap_or_default();
    if scheme.to_ascii_lowercase().starts_with("http") || user.is_empty() {
        format!("{scheme}://{host}{path}").into_bytes()
    } else {
        format!("{scheme}://{user}@{host}{path}").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_their_secrets_and_nothing_else() {
        for (given, then) in [
            ("https://me:secret@example.org/a.git", "https://example.org/a.git"),
            ("https://token@example.org:8443/a@b", "https://example.org:8443/a@b"),
            ("ssh://git:secret@example.org/a", "ssh://git@example.org/a"),
            ("ssh://git@example.org/a", "ssh://git@example.org/a"),
            ("git@example.org:a/b.git", "git@example.org:a/b.git"),
            ("/srv/git/a@b:c.git", "/srv/git/a@b:c.git"),
        ] {
            assert_eq!(String::from_utf8(without_credentials(given.as_bytes())).unwrap(), then);
        }
    }
}
