//! A wall clock that a test may set: that of one sandbox's programs, in place of the host's, which others need. Must never
//! change how time goes by: only what time of day it is.

use std::fs;
use std::path::PathBuf;

/// Where Debian puts it, whatever the architecture.
const LIBRARY: &str = "/usr/$LIB/faketime/libfaketimeMT.so.1";

/// A clock that goes like the host's, some seconds ahead of it.
#[derive(Debug)]
pub(crate) struct OwnClock {
    /// What the library reads each time somebody asks for the time.
    file: PathBuf,
}

impl OwnClock {
    /// One that is the host's until it is set.
    pub(crate) fn new(file: PathBuf) -> Self {
        let clock = Self { file };
        clock.step(0.0);
        clock
    }

    pub(crate) fn step(&self, seconds: f64) {
        let next = self.file.with_extension("next");
        fs::write(&next, format!("{seconds:+}\n")).expect("a file");
        fs::rename(&next, &self.file).expect("its place");
    }

    pub(crate) fn ahead(&self) -> f64 {
        fs::read_to_string(&self.file).expect("a file").trim().parse().expect("a number")
    }

    /// What a program needs to go by it.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let file = self.file.to_string_lossy().into_owned();
        [
            ("LD_PRELOAD", LIBRARY),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_DISABLE_SHM", "1"),
            ("NO_FAKE_STAT", "1"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }
}
