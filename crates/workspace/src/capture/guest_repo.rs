//! The small files of the guest's `.git`: what it says of itself, of its origin and of its user.
//!
//! Owns which settings travel: those that decide how contents are read and who commits. Must never
//! let one travel that names a program, a credential or a path of the host.

use std::path::{Path, PathBuf};

use banger_model::WorkspaceMode;

use super::part::Part;
use crate::Result;
use crate::settings::Settings;
use crate::source::{Source, path_of};
use crate::watch::read_regular;

/// Settings that decide what git makes of the same bytes, and what its status says.
const TRAVELLING: [&str; 18] = [
    "core.autocrlf",
    "core.eol",
    "core.safecrlf",
    "core.symlinks",
    "core.bigfilethreshold",
    "core.commentchar",
    "core.quotepath",
    "core.sparsecheckout",
    "core.sparsecheckoutcone",
    "diff.renames",
    "diff.renamelimit",
    "diff.ignoresubmodules",
    "status.renames",
    "status.renamelimit",
    "status.relativepaths",
    "status.showuntrackedfiles",
    "user.name",
    "user.email",
];

/// State of a merge, cherry-pick or revert in progress: plain text that git reads.
const IN_PROGRESS: [&str; 6] =
    ["MERGE_HEAD", "MERGE_MSG", "MERGE_MODE", "SQUASH_MSG", "CHERRY_PICK_HEAD", "REVERT_HEAD"];

/// The user's attributes for all repositories, below the git directory.
const ATTRIBUTES: &str = "info/attributes-of-user";

/// The largest of these files that is copied, bytes.
const CAP: u64 = 16 << 20;

/// A name below the git directory, and its content.
pub(crate) type GitFile = (String, Vec<u8>);

/// Commits that an operation in progress refers to.
pub(crate) fn heads_in_progress(source: &Source) -> Result<Vec<String>> {
    let mut heads = Vec::new();
    for name in IN_PROGRESS.iter().filter(|n| n.ends_with("_HEAD")) {
        let text = read_regular(&source.git_dir.join(name), CAP)?.unwrap_or_default();
        heads.extend(text.split(|b| *b == b'\n').filter_map(crate::source::object_id));
    }
    Ok(heads)
}

/// What `HEAD` says in the guest.
pub(crate) fn head(part: &Part) -> String {
    match (&part.start.branch, &part.start.commit) {
        (Some(branch), _) => format!("ref: refs/heads/{branch}\n"),
        (None, Some(commit)) => format!("{commit}\n"),
        (None, None) => "ref: refs/heads/main\n".to_owned(),
    }
}

/// The small files of a repository, but for its packed refs. `inner` are the names of submodules.
pub(crate) fn files<'a>(part: &Part, inner: impl Iterator<Item = &'a [u8]>) -> Result<Vec<GitFile>> {
    let (source, settings) = (&part.source, &part.settings);
    let attributes = user_file(settings, "core.attributesfile", "attributes").and_then(read);
    let mut files = vec![
        ("HEAD".to_owned(), head(part).into_bytes()),
        ("config".to_owned(), config(part, inner, attributes.is_some())),
    ];
    for (name, target) in &part.refs.symbolic {
        files.push((name.clone(), format!("ref: {target}\n").into_bytes()));
    }
    if !part.history.shallow.is_empty() {
        let text: String = part.history.shallow.iter().flat_map(|id| [id, "\n"]).collect();
        files.push(("shallow".into(), text.into_bytes()));
    }
    files.push(("info/exclude".into(), excludes(source, settings)));
    files.extend(attributes.map(|text| (ATTRIBUTES.to_owned(), text)));
    files.extend(read(source.common_dir.join("info/attributes")).map(|t| ("info/attributes".into(), t)));
    let sparse = match part.mode {
        // The pattern of a sparse checkout that has nothing.
        WorkspaceMode::MetadataOnly => Some(b"!/*\n".to_vec()),
        _ => read(source.git_dir.join("info/sparse-checkout")),
    };
    files.extend(sparse.map(|text| ("info/sparse-checkout".into(), text)));
    for name in IN_PROGRESS.iter().filter(|_| part.start.overlay) {
        files.extend(read(source.git_dir.join(name)).map(|text| ((*name).to_owned(), text)));
    }
    Ok(files)
}

/// The user's own ignore rules, then the repository's: the later line wins, as it does at home.
fn excludes(source: &Source, settings: &Settings) -> Vec<u8> {
    let mut text = Vec::new();
    let own = user_file(settings, "core.excludesfile", "ignore").map(|file| source.top.join(file));
    for file in own.into_iter().chain([source.common_dir.join("info/exclude")]) {
        text.extend(read(file).unwrap_or_default());
        if text.last().is_some_and(|b| *b != b'\n') {
            text.push(b'\n');
        }
    }
    text
}

/// A file that a setting names, or that is at git's own place for the user.
fn user_file(settings: &Settings, setting: &str, default: &str) -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(PathBuf::from);
    if let Some(named) = settings.get(setting) {
        return match named.strip_prefix(b"~/") {
            Some(below) => Some(home()?.join(path_of(below.to_vec()))),
            None => Some(path_of(named.to_vec())),
        };
    }
    let config = std::env::var_os("XDG_CONFIG_HOME").filter(|d| !d.is_empty()).map(PathBuf::from);
    Some(config.or_else(|| Some(home()?.join(".config")))?.join("git").join(default))
}

/// A file's text; what cannot be read git does not read either.
fn read(file: impl AsRef<Path>) -> Option<Vec<u8>> {
    read_regular(file.as_ref(), CAP).ok().flatten()
}

fn config<'a>(part: &Part, inner: impl Iterator<Item = &'a [u8]>, has_attributes: bool) -> Vec<u8> {
    let (source, settings) = (&part.source, &part.settings);
    let mut out = Config::default();
    let is_sha256 = source.object_format == "sha256";
    let is_partial = settings.is_partial();
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
    if part.place.is_submodule() {
        out.set("worktree", &part.place.work_tree());
    }
    if has_attributes {
        // git works in the top directory of the files.
        out.set("attributesFile", &[&up_to(part)[..], ATTRIBUTES.as_bytes()].concat());
    }
    for name in TRAVELLING {
        if let (Some((section, key)), Some(value)) = (name.split_once('.'), settings.get(name)) {
            out.section(section, None);
            out.set(key, value);
        }
    }
    if part.mode == WorkspaceMode::MetadataOnly {
        out.section("core", None);
        out.set("sparseCheckout", b"true");
        out.set("sparseCheckoutCone", b"false");
    }
    if is_sha256 {
        out.section("extensions", None);
        out.set("objectFormat", b"sha256");
    }
    if is_partial {
        out.section("extensions", None);
        out.set("partialClone", b"origin");
    }
    origin(&mut out, part, is_partial);
    for name in inner {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        out.section("submodule", Some(name));
        for key in ["active", "ignore", "branch"] {
            if let Some(value) = settings.get(&format!("submodule.{name}.{key}")) {
                out.set(key, value);
            }
        }
        if let Some(url) = settings.get(&format!("submodule.{name}.url")).and_then(address) {
            out.set("url", &url);
        }
    }
    out.text
}

/// The git directory, from the top directory of the files.
fn up_to(part: &Part) -> Vec<u8> {
    let pointer = part.place.pointer();
    let path = pointer.strip_prefix(b"gitdir: ").unwrap_or_default().trim_ascii_end();
    [path, b"/"].concat()
}

fn origin(out: &mut Config, part: &Part, is_partial: bool) {
    let settings = &part.settings;
    let url = settings.get("remote.origin.url").and_then(address);
    if let Some(url) = &url {
        out.section("remote", Some("origin"));
        out.set("url", url);
        out.set("fetch", b"+refs/heads/*:refs/remotes/origin/*");
        if is_partial {
            out.set("promisor", b"true");
        }
    }
    let Some(branch) = part.start.branch.as_deref().filter(|_| !part.start.is_new) else { return };
    let get = |key: &str| settings.get(&format!("branch.{branch}.{key}"));
    if let (Some(remote), Some(merge)) = (get("remote"), get("merge"))
        && (remote == b"." || (remote == b"origin" && url.is_some()))
    {
        out.section("branch", Some(branch));
        out.set("remote", remote);
        out.set("merge", merge);
    }
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

/// A remote's address as it may travel; none when it names a program (`ext::…`) or is an option.
fn address(url: &[u8]) -> Option<Vec<u8>> {
    let helper = url.windows(2).position(|w| w == b"::").map(|at| &url[..at]);
    let is_word = |name: &[u8]| name.iter().all(|b| b.is_ascii_alphanumeric() || b"+-._".contains(b));
    if helper.is_some_and(is_word) || url.starts_with(b"-") { None } else { Some(without_credentials(url)) }
}

/// A remote's address without a password; over HTTP the user name can be a token, so it goes too,
/// and so does a query.
fn without_credentials(url: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(url);
    let Some((scheme, rest)) = text.split_once("://") else { return url.to_vec() };
    let is_http = scheme.to_ascii_lowercase().starts_with("http");
    let rest = if is_http { rest.split(['?', '#']).next().unwrap_or_default() } else { rest };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let Some((user, host)) = host.rsplit_once('@') else {
        return format!("{scheme}://{rest}").into_bytes();
    };
    let user = user.split(':').next().unwrap_or_default();
    if is_http || user.is_empty() {
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
            ("https://example.org/a.git?private_token=secret", "https://example.org/a.git"),
            ("HTTPS://me:secret@example.org?x", "HTTPS://example.org"),
            ("/srv/git/a@b:c.git", "/srv/git/a@b:c.git"),
        ] {
            assert_eq!(String::from_utf8(without_credentials(given.as_bytes())).unwrap(), then);
        }
    }

    #[test]
    fn an_address_that_names_a_program_stays_at_home() {
        for url in ["ext::sh -c 'touch x'", "foo::https://example.org/a", "--upload-pack=x"] {
            assert_eq!(address(url.as_bytes()), None, "{url}");
        }
        for url in ["https://example.org/a::b", "git@[::1]:a", "/srv/a"] {
            assert_eq!(address(url.as_bytes()), Some(url.as_bytes().to_vec()));
        }
    }
}
