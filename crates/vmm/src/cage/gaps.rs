//! What a program that failed in its cage may have missed there: files that the cage lacks, by the program's own words
//! and by what the cage left out. Must never guess: each line names something that was looked at.

use std::io;
use std::path::{Path, PathBuf};

use super::description::{Description, LeftOut};

/// Lines of an explanation.
const LINES: usize = 3;

/// What of the file system a program has in its cage. Empty for one that is in none.
#[derive(Debug, Default)]
pub(crate) struct Inside {
    places: Vec<PathBuf>,
    left_out: Vec<LeftOut>,
}

impl Inside {
    pub(super) fn of(description: &Description) -> Self {
        let places = description.places.iter().map(|place| PathBuf::from(&place.path));
        let empty = description.mount_points.iter().map(PathBuf::from);
        Self { places: places.chain(empty).collect(), left_out: Vec::new() }
    }

    pub(super) fn leave_out(&mut self, places: Vec<LeftOut>) {
        self.left_out = places;
    }

    /// Explains a failure of the program, whose last words are `log`.
    pub(crate) fn explain(&self, log: &[String]) -> Vec<String> {
        let absent =
            self.left_out.iter().filter(|place| mentioned(log, Path::new(&place.path))).map(|place| {
                let path = Path::new(&place.path).display();
                format!("its sandbox lacks {path}: {}", io::Error::from_raw_os_error(place.errno))
            });
        let hidden = paths_in(log).filter(|path| !self.places.is_empty() && self.hides(path));
        let hidden =
            hidden.map(|path| format!("{} is there on this host, but not in its sandbox", path.display()));
        absent.chain(hidden).take(LINES).collect()
    }

    /// Whether a path of the host's is outside of what the program has.
    fn hides(&self, path: &Path) -> bool {
        path.exists() && !self.places.iter().any(|place| path.starts_with(place) || place.starts_with(path))
    }
}

fn mentioned(log: &[String], path: &Path) -> bool {
    paths_in(log).any(|named| named == path)
}

/// The absolute paths in a text.
fn paths_in(log: &[String]) -> impl Iterator<Item = PathBuf> {
    let words = log.iter().flat_map(|line| line.split(|c: char| c.is_whitespace() || "'\"`()=".contains(c)));
    words
        .map(|word| word.trim_end_matches([':', ',', ';', '.']))
        .filter(|word| word.len() > 1 && word.starts_with('/'))
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside() -> Inside {
        let left_out = vec![LeftOut { path: "/etc/resolv.conf".into(), errno: libc::ENOENT }];
        Inside { places: ["/usr/lib", "/proc/self", "/etc/resolv.conf"].map(Into::into).into(), left_out }
    }

    #[test]
    fn a_file_that_the_program_names_and_the_cage_lacks_is_said() {
        let explain = |line: &str| inside().explain(&[line.to_owned()]);
        assert_eq!(
            explain("cannot open /etc/resolv.conf: No such file or directory"),
            ["its sandbox lacks /etc/resolv.conf: No such file or directory (os error 2)"]
        );
        // Hidden, though the host has it; with what stands around paths in messages.
        assert_eq!(
            explain("open(\"/etc/passwd\"): No such file"),
            ["/etc/passwd is there on this host, but not in its sandbox"]
        );
    }

    #[test]
    fn what_is_in_the_cage_or_nowhere_is_not_blamed() {
        for line in
            ["no memory", "cannot read /usr/lib/x", "cannot read /no/such/file", "/ is full", "a /proc b"]
        {
            assert!(inside().explain(&[line.to_owned()]).is_empty(), "{line}");
        }
        assert!(Inside::default().explain(&["/etc/passwd".to_owned()]).is_empty());
    }
}
