//! Where the directories of a sandbox lie: a parameter of the suite, `BANGER_TEST_PLACE`.
//!
//! Owns the directories of each sandbox. Each is a login of its own of the sandbox's owner, and all of it has the same
//! name, `bt-` and six letters, by which what belongs to it is known.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::account::{self, Account};
use crate::habitat::SANDBOX_PREFIX;
use crate::test_run;

/// Part of a path of which two make a state directory longer than a socket's name may be (108 bytes, unix(7)).
const DEEP: &str = "a-directory-with-quite-a-long-name-as-they-come-with-some-build-systems";
/// A name with a space and a letter that takes two bytes.
const SPACE: &str = "Zoë Home";

/// A choice of directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A home and a runtime directory as a login has them, and no variable of banger's or of XDG's besides.
    Home,
    /// Everything below /tmp, by banger's own variables.
    Tmp,
    /// As `Home`, with a home so deep that no socket could be bound below it.
    Deep,
    /// As `Home`, with a home whose path has a space and a letter that is not ASCII.
    Space,
}

impl Place {
    /// That of this run.
    ///
    /// # Panics
    /// When there is none of that name.
    pub(crate) fn of_this_run() -> Self {
        match std::env::var("BANGER_TEST_PLACE").unwrap_or_default().as_str() {
            "" | "home" => Self::Home,
            "tmp" => Self::Tmp,
            "deep" => Self::Deep,
            "space" => Self::Space,
            other => panic!("BANGER_TEST_PLACE={other}: there are home, tmp, deep and space"),
        }
    }
}

/// The directories of one sandbox.
#[derive(Debug)]
pub(crate) struct Directories {
    /// What all else but the runtime directory lies below, and what has the sandbox's name.
    pub(crate) root: PathBuf,
    /// The user's home.
    pub(crate) home: PathBuf,
    /// Banger's state directory. An ordinary user's first command makes it.
    pub(crate) state: PathBuf,
    /// Banger's runtime directory.
    pub(crate) runtime: PathBuf,
    /// Banger's configuration file.
    pub(crate) config: PathBuf,
    /// For the test's own files.
    pub(crate) work: PathBuf,
    /// For everybody's temporary files.
    pub(crate) tmp: PathBuf,
    /// What a login sets as `XDG_RUNTIME_DIR`.
    login: PathBuf,
    place: Place,
}

impl Directories {
    /// Makes those of a new sandbox, of this thread's user.
    ///
    /// # Panics
    /// When they cannot be made.
    pub(crate) fn make() -> Self {
        let (place, owner) = (Place::of_this_run(), account::of_this_thread());
        let parent = if place == Place::Tmp { Path::new("/tmp") } else { &owner.home };
        let root = tempfile::Builder::new().prefix(SANDBOX_PREFIX).tempdir_in(parent);
        let root = root.unwrap_or_else(|e| panic!("no sandbox in {}: {e}", parent.display())).keep();
        let all =
            if place == Place::Tmp { Self::below_tmp(root) } else { Self::of_login(root, place, owner) };
        for dir in [&all.home, &all.login, &all.work, &all.tmp] {
            private(dir);
        }
        if place == Place::Tmp {
            private(&all.root.join("config"));
        }
        for dir in [&all.root, &all.login] {
            fs::write(dir.join("owner"), std::process::id().to_string()).expect("a file");
            fs::write(dir.join("run-of"), test_run()).expect("a file");
        }
        all
    }

    fn below_tmp(root: PathBuf) -> Self {
        Self {
            home: root.join("home"),
            state: root.join("state"),
            runtime: root.join("run"),
            config: root.join("config/config.toml"),
            work: root.join("work"),
            tmp: root.join("tmp"),
            login: root.join("login"),
            root,
            place: Place::Tmp,
        }
    }

    fn of_login(root: PathBuf, place: Place, owner: &Account) -> Self {
        let home = match place {
            Place::Deep => root.join(DEEP).join(DEEP),
            Place::Space => root.join(SPACE),
            Place::Home | Place::Tmp => root.clone(),
        };
        let login = owner.runtime.join(root.file_name().expect("a name"));
        Self {
            state: home.join(".local/state/banger"),
            runtime: login.join("banger"),
            config: home.join(".config/banger/config.toml"),
            work: home.join("work"),
            tmp: home.join("tmp"),
            root,
            home,
            login,
            place,
        }
    }

    /// The variables that make an installation this one: those of a login, and in /tmp banger's own.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.to_str().expect("a path that is text").to_owned();
        let owner = account::of_this_thread();
        let mut all = vec![
            ("HOME", text(&self.home)),
            ("USER", owner.name.clone()),
            ("LOGNAME", owner.name.clone()),
            ("XDG_RUNTIME_DIR", text(&self.login)),
            ("TMPDIR", text(&self.tmp)),
            ("LANG", "C.UTF-8".to_owned()),
        ];
        if self.place == Place::Tmp {
            all.extend([
                ("BANGER_STATE_DIR", text(&self.state)),
                ("BANGER_RUNTIME_DIR", text(&self.runtime)),
                ("BANGER_CONFIG", text(&self.root.join("config"))),
                ("XDG_STATE_HOME", text(&self.home)),
                ("XDG_CONFIG_HOME", text(&self.root.join("config"))),
                ("XDG_CACHE_HOME", text(&self.root.join("cache"))),
            ]);
        }
        all
    }

    /// Removes them.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.login);
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Makes a directory that is its owner's alone, and those above it.
pub(crate) fn private(dir: &Path) {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).expect("a directory");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_home_is_too_long_for_sockets_and_its_runtime_directory_is_not() {
        let owner = account::of_this_thread();
        let all = Directories::of_login(owner.home.join("bt-123456"), Place::Deep, owner);
        assert!(all.state.as_os_str().len() > 108, "{}", all.state.display());
        assert!(all.runtime.as_os_str().len() < 60, "{}", all.runtime.display());
    }
}
