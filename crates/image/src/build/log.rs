//! mmdebstrap's talk: how far it is, and what went wrong.
//! Must never fail: talk that is not understood is passed over.

use crate::error::ImageError;

/// What a line said about the way so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) stage: &'static str,
    pub(super) message: &'static str,
    pub(super) percent: Option<u8>,
}

/// mmdebstrap's announcements (its `info` lines), our stage, what it does, and at how many percent of the whole build it
/// begins. The percents are those of a build of the default image that took 54 s on two cores near a mirror, with more
/// given to the downloads, which take longer elsewhere.
const STAGES: [(&str, &str, &str, u8); 7] = [
    ("running apt-get update", "lists", "fetching the package lists", 1),
    ("downloading packages", "download", "downloading the base system", 6),
    ("extracting archives", "extract", "unpacking the base system", 12),
    ("installing essential packages", "base", "installing the base system", 20),
    ("installing remaining packages", "packages", "installing the packages", 33),
    ("cleaning package lists", "clean", "cleaning up", 82),
    ("creating tarball", "pack", "packing the image", 84),
];

/// Follows the lines.
#[derive(Debug, Default)]
pub(super) struct Log {
    stage: Option<(&'static str, &'static str)>,
    /// The percents of the whole build at which the stage begins and ends.
    span: (u8, u8),
    packages: u32,
    /// Of the stage: each package is fetched (unless cached), unpacked and set up.
    fetched: u32,
    unpacked: u32,
    set_up: u32,
    shown: Option<u8>,
}

impl Log {
    /// The step that this line tells of, if it tells of a new one.
    pub(super) fn line(&mut self, line: &str) -> Option<Step> {
        if let Some(said) = line.strip_prefix("I: ") {
            let index = STAGES.iter().position(|(prefix, ..)| said.starts_with(prefix))?;
            let (_, stage, message, begin) = STAGES.get(index)?;
            let span = (*begin, STAGES.get(index + 1).map_or(100, |next| next.3));
            // The base system's count goes on: it is downloaded in one stage and installed in another.
            let packages = if *stage == "packages" { 0 } else { self.packages };
            let shown = Some(*begin);
            *self = Self { stage: Some((stage, message)), span, packages, shown, ..Self::default() };
            return Some(Step { stage, message, percent: Some(*begin) });
        }
        let (stage, message) = self.stage?;
        self.count(line);
        let (done, of) = match stage {
            "download" => (self.fetched, self.packages),
            "base" => (self.unpacked + self.set_up, self.packages * 2),
            // Setting up begins when all is unpacked; a cached package was never fetched.
            "packages" => (self.fetched.max(self.unpacked) + self.unpacked + self.set_up, self.packages * 3),
            _ => return None,
        };
        let (begin, end) = self.span;
        let within = (done * u32::from(end - begin)).checked_div(of)?.min(u32::from(end - begin));
        let percent = u8::try_from(within).ok().map(|within| begin + within);
        if percent <= self.shown {
            return None;
        }
        self.shown = percent;
        Some(Step { stage, message, percent })
    }

    fn count(&mut self, line: &str) {
        if let Some((_, rest)) = line.split_once(" upgraded, ")
            && let Some((count, _)) = rest.split_once(" newly installed")
        {
            self.packages = count.parse().unwrap_or(0);
        } else if line.starts_with("Get:") {
            self.fetched += 1;
        } else if line.starts_with("Unpacking ") {
            self.unpacked += 1;
        } else if line.starts_with("Setting up ") {
            self.set_up += 1;
        }
    }
}

/// Why it failed, from its last lines.
pub(super) fn failure(tail: &[String], status: String, release: &str) -> ImageError {
    for line in tail {
        if let Some(package) = unknown_package(line) {
            return ImageError::UnknownPackage { package, release: release.to_owned() };
        }
        if line.contains("does not have a Release file") || line.contains("cannot find suite") {
            return ImageError::Invalid {
                message: format!("the package archive has no release '{release}'"),
                hint: Some("name a release such as bookworm, trixie or sid".to_owned()),
            };
        }
        if line.contains("No space left on device") {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return ImageError::Io { action: "build in", path: std::env::temp_dir(), source };
        }
        if ["Temporary failure resolving", "Could not resolve", "Could not connect", "Unable to connect"]
            .iter()
            .any(|said| line.contains(said))
        {
            return ImageError::HostRefuses {
                message: format!("the package archive cannot be reached: {}", bare(line)),
                hint: "check the network and the proxy of this host with: sudo apt-get update".to_owned(),
            };
        }
        if line.contains("newuidmap") || line.contains("newgidmap") {
            return ImageError::HostRefuses {
                message: format!("this host does not let you use your subordinate ids: {}", bare(line)),
                hint:
                    "install the package uidmap anew: newuidmap and newgidmap must be able to gain privileges"
                        .to_owned(),
            };
        }
        if line.contains("unshare() failed") {
            return ImageError::HostRefuses {
                message: format!("this host does not let you make a namespace: {}", bare(line)),
                hint: "run as root, or allow them: sudo sysctl -w kernel.unprivileged_userns_clone=1"
                    .to_owned(),
            };
        }
    }
    let errors: Vec<&str> = tail.iter().filter(|l| l.starts_with("E: ")).map(|l| bare(l)).collect();
    let last: Vec<&str> = tail.iter().rev().take(3).rev().map(|l| bare(l)).collect();
    let tail = if errors.is_empty() { last } else { errors };
    ImageError::ToolFailed { tool: "mmdebstrap", status, tail: tail.join("; ") }
}

fn bare(line: &str) -> &str {
    ["E: ", "W: ", "I: "].iter().find_map(|prefix| line.strip_prefix(prefix)).unwrap_or(line)
}

/// apt's three ways to say that a package does not exist.
fn unknown_package(line: &str) -> Option<String> {
    let name = if let Some((_, name)) = line.split_once("Unable to locate package ") {
        name
    } else if let Some((_, rest)) = line.split_once("Couldn't find any package by ") {
        rest.split_once('\'')?.1.split_once('\'')?.0
    } else {
        line.strip_suffix("has no installation candidate")?.split_once('\'')?.1.split_once('\'')?.0
    };
    Some(name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_is_one_of_those_that_are_told_of() {
        let told: Vec<&str> = STAGES.iter().map(|(_, stage, ..)| *stage).collect();
        assert_eq!(told, super::super::BUILD_STAGES[1..8]);
    }

    #[test]
    fn progress_rises_from_stage_to_stage_and_within_each() {
        let mut log = Log::default();
        assert_eq!(log.line("I: chroot architecture amd64 is equal"), None);
        assert_eq!(log.line("I: downloading packages with apt..."), Some(step("download", 6)));
        assert_eq!(log.line("0 upgraded, 4 newly installed, 0 to remove and 0 not upgraded."), None);
        assert_eq!(log.line("Get:1 mirror bookworm/main amd64 dash [1 kB]"), Some(step("download", 7)));
        assert_eq!(log.line("nothing known"), None);
        assert_eq!(log.line("I: installing essential packages..."), Some(step("base", 20)));
        assert_eq!(log.line("Unpacking dash (1) ..."), Some(step("base", 21)));
        assert_eq!(
            log.line("I: installing remaining packages inside the chroot...").unwrap().percent,
            Some(33)
        );
        log.line("0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.");
        assert_eq!(log.line("Unpacking jq (1) ..."), Some(step("packages", 65)));
        assert_eq!(log.line("Setting up jq (1) ..."), Some(step("packages", 82)));
        // More lines than packages do not lead into the next stage.
        assert_eq!(log.line("Setting up jq (1) ..."), None);
        assert_eq!(log.line("I: creating tarball..."), Some(step("pack", 84)));
    }

    #[test]
    fn the_stages_are_in_the_order_of_their_percents() {
        assert!(STAGES.is_sorted_by_key(|stage| stage.3));
    }

    fn step(stage: &'static str, percent: u8) -> Step {
        let message = STAGES.iter().find(|(_, s, ..)| *s == stage).unwrap().2;
        Step { stage, message, percent: Some(percent) }
    }

    #[test]
    fn a_failure_names_the_package_or_the_release() {
        let fail = |line: &str| failure(&[line.to_owned()], "exit 1".to_owned(), "bookworm").to_string();
        assert_eq!(fail("E: Unable to locate package no-such"), "bookworm has no package 'no-such'");
        assert_eq!(fail("E: Package 'gone' has no installation candidate"), "bookworm has no package 'gone'");
        assert!(
            fail("E: The repository 'x bookworm Release' does not have a Release file.")
                .contains("no release")
        );
        assert!(fail("E: apt-get failed: E: boom").ends_with("boom"));
        assert!(fail("the last word").ends_with("the last word"));
    }
}
