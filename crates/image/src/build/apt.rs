//! What the host's apt knows: where packages come from, and how they are fetched.
//! Must never name a mirror of its own: without one of the host's, mmdebstrap uses its default.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use banger_host::programs;

/// Debian's own keys, on Debian hosts and in every Debian guest (package debian-archive-keyring).
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What a release's name is followed by in the suites that belong to it. Backports are not among them:
/// nobody asked for newer packages.
const SUITES: [&str; 4] = ["", "-updates", "-security", "/updates"];
/// How apt fetches; everything else of the host's configuration is about the host.
const FETCHING: [&str; 8] = [
    "Acquire::http",
    "Acquire::https",
    "Acquire::ftp",
    "Acquire::Retries",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::ForceIPv4",
    "Acquire::ForceIPv6",
];

/// One line of `apt-get indextargets`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    uri: String,
    suite: String,
    component: String,
    /// `None` when the host has not fetched its lists yet.
    origin: Option<String>,
}

/// The host's sources for `release`, as lines of a sources.list; empty when it has none.
pub(super) fn sources(release: &str) -> Vec<String> {
    let format = "--format=$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)";
    let text = said_by("apt-get", &["indextargets", format, "Created-By: Packages"]);
    let targets: Vec<Target> = text.lines().filter_map(parse).collect();
    lines(&targets, release, Path::new(KEYRING).exists())
}

/// The host's fetching options, as text for an apt.conf: proxies, certificates, dates.
pub(super) fn fetching() -> String {
    let text = said_by("apt-config", &["dump"]);
    text.lines().filter(|line| is_fetching(line)).map(|line| format!("{line}\n")).collect()
}

/// What a program prints; nothing, where there is none.
fn said_by(program: &str, args: &[&str]) -> String {
    let run =
        |mut command: Command| command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok();
    let output = programs::command(program).ok().and_then(run);
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

fn is_fetching(line: &str) -> bool {
    FETCHING
        .iter()
        .any(|key| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(' ') || rest.starts_with("::")))
}

fn parse(line: &str) -> Option<Target> {
    let [uri, suite, component, origin] = line.split('|').collect::<Vec<_>>().try_into().ok()?;
    let clean = |s: &str| !s.is_empty() && !s.contains(|c: char| c.is_whitespace() || "[]$\"".contains(c));
    if !clean(uri) || !uri.contains("://") || !clean(suite) || !clean(component) {
        return None;
    }
    let origin = Some(origin).filter(|o| !o.is_empty() && !o.starts_with("$(")).map(str::to_owned);
    Some(Target { uri: uri.to_owned(), suite: suite.to_owned(), component: component.to_owned(), origin })
}

fn lines(targets: &[Target], release: &str, has_keyring: bool) -> Vec<String> {
    let is_debian = |target: &&Target| target.origin.as_deref().is_none_or(|origin| origin == "Debian");
    let debian: Vec<&Target> = targets.iter().filter(is_debian).collect();
    let of = |suite: &str| SUITES.iter().find(|s| suite.strip_prefix(release) == Some(**s)).copied();
    let mut chosen: Vec<(String, &Target)> =
        debian.iter().filter(|t| of(&t.suite).is_some()).map(|t| (t.suite.clone(), *t)).collect();
    if chosen.is_empty() {
        // The host has another release: the same mirrors carry this one too.
        chosen = debian
            .iter()
            .filter(|t| t.origin.is_some())
            .filter_map(|t| Some((format!("{release}{}", suffix(&t.suite, &debian)?), *t)))
            .filter(|(suite, _)| !is_rolling(release) || suite == release)
            .collect();
    }
    let mut grouped: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for (suite, target) in &chosen {
        let components = grouped.entry((&target.uri, suite)).or_default();
        if !components.contains(&target.component.as_str()) {
            components.push(&target.component);
        }
    }
    // Somebody else's repository may use Debian's release names, but has no main archive of that name.
    let signed = if has_keyring { format!("[signed-by={KEYRING}] ") } else { String::new() };
    let mut all: Vec<String> = grouped
        .iter()
        .filter(|(_, components)| components.contains(&"main"))
        .map(|((uri, suite), components)| format!("deb {signed}{uri} {suite} {}", components.join(" ")))
        .collect();
    // Updates alone are no system.
    if !grouped.keys().any(|(_, suite)| *suite == release) {
        all.clear();
    }
    all
}

/// What follows the host's release name in `suite`, when it is one of a release's suites.
fn suffix(suite: &str, all: &[&Target]) -> Option<&'static str> {
    SUITES.iter().copied().find(|s| {
        suite.strip_suffix(s).is_some_and(|base| {
            !base.is_empty() && !base.contains(['-', '/']) && all.iter().any(|t| t.suite == base)
        })
    })
}

/// These have no suites for updates.
fn is_rolling(release: &str) -> bool {
    matches!(release, "sid" | "unstable")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(text: &str) -> Vec<Target> {
        text.lines().filter_map(|line| parse(line.trim())).collect()
    }

    const HOST: &str = "http://mirror.example/debian/|bookworm|main|Debian
        http://mirror.example/debian/|bookworm|contrib|Debian
        http://mirror.example/debian/|bookworm-updates|main|Debian
        http://mirror.example/debian/|bookworm-backports|main|Debian
        http://mirror.example/security/|bookworm-security|main|Debian
        https://other.example/tools|bookworm|main|Other
        https://third.example/debian|bookworm|stable|$(ORIGIN)
        https://odd.example/x [arch=all]|bookworm|main|Debian";

    #[test]
    fn the_hosts_own_debian_mirrors_are_used_and_nobody_elses() {
        let lines = lines(&targets(HOST), "bookworm", false);
        assert_eq!(
            lines,
            [
                "deb http://mirror.example/debian/ bookworm main contrib",
                "deb http://mirror.example/debian/ bookworm-updates main",
                "deb http://mirror.example/security/ bookworm-security main",
            ]
        );
    }

    #[test]
    fn another_release_comes_from_the_same_mirrors() {
        let trixie = lines(&targets(HOST), "trixie", true);
        assert_eq!(trixie.len(), 3, "{trixie:?}");
        assert!(trixie[0].starts_with("deb [signed-by=/usr/share/keyrings/"), "{trixie:?}");
        assert!(trixie[2].ends_with(" trixie-security main"), "{trixie:?}");
        assert_eq!(
            lines(&targets(HOST), "sid", false),
            ["deb http://mirror.example/debian/ sid main contrib"]
        );
    }

    #[test]
    fn a_host_without_debian_sources_leaves_the_choice_to_mmdebstrap() {
        let ubuntu = "http://u.example/ubuntu/|noble|main|Ubuntu";
        assert!(lines(&targets(ubuntu), "bookworm", true).is_empty());
        assert!(lines(&[], "bookworm", true).is_empty());
    }

    #[test]
    fn only_the_options_about_fetching_are_taken_over() {
        assert!(is_fetching("Acquire::http::Proxy \"http://127.0.0.1:3142\";"));
        assert!(is_fetching("Acquire::Check-Valid-Until \"false\";"));
        for line in [
            "Acquire::httpx \"\";",
            "DPkg::Post-Invoke:: \"rm\";",
            "Acquire::AllowInsecureRepositories \"1\";",
        ] {
            assert!(!is_fetching(line), "{line}");
        }
    }
}
