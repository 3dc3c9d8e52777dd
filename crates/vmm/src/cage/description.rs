//! What the launcher tells the builder, and what that answers: JSON over descriptors.

use std::ffi::OsString;
use std::os::fd::RawFd;

use banger_model::{Layer, Security};
use serde::{Deserialize, Serialize};

/// The cage that is wanted, and what is to run in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Description {
    /// The program, an absolute path.
    pub program: OsString,
    /// Its arguments, the name for itself first.
    pub argv: Vec<OsString>,
    /// Its working directory.
    pub directory: OsString,
    /// Descriptors it gets, besides the standard three.
    pub keep: Vec<RawFd>,
    /// What of the file system it gets, parents before children.
    pub places: Vec<Place>,
    /// See [`super::Policy`].
    pub mount_points: Vec<OsString>,
    /// See [`super::Policy`].
    pub hosts_network: bool,
    /// See [`super::Policy`].
    pub nests: bool,
    /// Whether it is lent a file: see [`super::Policy`].
    pub borrows: bool,
    /// See [`super::Policy`].
    pub descriptors: u64,
    /// See [`super::Policy`].
    pub tap: Option<super::Tap>,
    /// The control group that it goes into, or why there is none.
    pub group: Result<OsString, String>,
    /// Nothing runs without these.
    pub required: Vec<Layer>,
}

/// A path, the same inside and outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub path: OsString,
    pub access: Access,
}

/// What may be done at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Access {
    /// Read and run.
    Read,
    /// Read and write a file.
    Write,
    /// Make files and sockets in a directory.
    Room,
    /// Use a device.
    Device,
}

/// A place that is missing in the cage, with the system's error number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeftOut {
    pub path: OsString,
    pub errno: i32,
}

/// One line of the builder's answer. It ends with the start of the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// The pid that the program has outside.
    Pid(u32),
    /// Places that the program does not get: what is not there, or not for this user.
    LeftOut(Vec<LeftOut>),
    /// What holds around it.
    Caged(Security),
    /// A required layer does not hold.
    Refused {
        /// Which.
        layer: Layer,
        /// Why.
        why: String,
    },
    /// The program cannot be run, or a layer that always holds does not.
    Failed {
        /// Doing what.
        what: String,
        /// The system's error number.
        errno: i32,
    },
}
