//! The cage that every machine monitor and every network process runs in: what one may have is
//! data ([`Policy`]), and one place applies it, a small program of ours (`banger-cage`) that the launcher
//! starts, which builds the cage around itself and becomes the program.
//!
//! Owns the layers and the report of which hold. Must never leave a layer out without saying so, and never need root.

mod advice;
mod description;
mod gaps;
pub mod group;
pub mod inside;
mod launch;
mod lend;
mod libraries;

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use banger_model::{Layer, Mib, Security};
use serde::{Deserialize, Serialize};

pub use advice::advice;
pub(crate) use gaps::Inside;
use group::{Groups, Limits};
pub(crate) use launch::{describe, report};

use crate::{Result, Standalone, VmmError};

const NAME: &str = "banger-cage";
/// Why a program is in no control group, where nobody has asked for one.
const NO_GROUP: &str = "it was given no control group";

/// How programs are caged on this host. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cage {
    /// Our program that builds the cage; `None`: programs run as they are.
    builder: Option<PathBuf>,
    required: Vec<Layer>,
    /// The control groups of VMs, or why there are none.
    groups: std::result::Result<Groups, String>,
}

/// What one program may have. Everything else is out of its reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What the process is found by, whether or not anybody wrote it down: see [`crate::process::mark`].
    pub mark: String,
    /// Files and directories it may read and run. The program and its libraries need not be named.
    pub read: Vec<PathBuf>,
    /// Files it may also write.
    pub write: Vec<PathBuf>,
    /// Directories of its own, in which it may make files and sockets. Nobody may trust what is in them.
    pub rooms: Vec<PathBuf>,
    /// Empty directories that its root has, whatever else is in it: the program mounts something there.
    pub mount_points: Vec<PathBuf>,
    /// Device nodes.
    pub devices: Vec<PathBuf>,
    /// Whether it sees the host's network.
    pub hosts_network: bool,
    /// Whether it goes on to build a cage of its own inside (passt does): then landlock leaves files to the root
    /// directory, and the system calls for that stay.
    pub nests: bool,
    /// A file that it opens for writing, though all it does is read: it gets a descriptor for reading.
    pub lent: Option<PathBuf>,
    /// The most descriptors it may have open.
    pub descriptors: u64,
    /// A network device in its own, otherwise empty network. Not together with the host's.
    pub tap: Option<Tap>,
}

/// A tap device, for a monitor that takes nothing else: what it writes there comes out of a stream socket, and the other
/// way round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tap {
    /// The largest packet, without its ethernet header.
    pub mtu: u32,
    /// The stream socket's number, as [`Standalone::give`] says it. Frames are on it behind their length, 32 bits,
    /// big-endian. The program itself does not get it.
    pub network: RawFd,
}

impl Tap {
    /// The device's name, in every cage the same.
    pub const NAME: &str = "tap0";
}

impl Policy {
    /// A policy that gives nothing but the null and random devices.
    #[must_use]
    pub fn nothing(mark: String) -> Self {
        Self {
            mark,
            read: Vec::new(),
            write: Vec::new(),
            rooms: Vec::new(),
            mount_points: Vec::new(),
            devices: ["/dev/null", "/dev/urandom"].map(PathBuf::from).into(),
            hosts_network: false,
            nests: false,
            lent: None,
            descriptors: 4096,
            tap: None,
        }
    }
}

impl Cage {
    /// No cage: for measuring what it costs.
    #[must_use]
    pub fn none() -> Self {
        Self { builder: None, required: Vec::new(), groups: Err(NO_GROUP.to_owned()) }
    }

    /// The cage as `banger-cage` in this directory builds it. A program of which one of the `required` layers does not
    /// hold is not started.
    #[must_use]
    pub fn beside(companions: &Path, required: Vec<Layer>) -> Self {
        Self { builder: Some(companions.join(NAME)), required, ..Self::none() }
    }

    /// Puts each program into the control group of its VM, where there are such groups: the one of its policy's mark,
    /// which the caller makes and removes.
    #[must_use]
    pub fn with_groups(self, groups: std::result::Result<Groups, String>) -> Self {
        Self { groups, ..self }
    }

    /// The control groups of VMs.
    #[must_use]
    pub fn groups(&self) -> Option<&Groups> {
        self.groups.as_ref().ok()
    }

    /// The layers without which nothing is started.
    #[must_use]
    pub fn required(&self) -> &[Layer] {
        &self.required
    }

    /// The builder, when there is a cage.
    pub(crate) fn builder(&self) -> Option<&Path> {
        self.builder.as_deref()
    }

    /// Which layers hold on this host: builds a cage like a machine monitor's around a program that does nothing.
    /// Blocks for some milliseconds, and leaves nothing.
    ///
    /// # Errors
    /// When the builder is missing or fails, or a required layer does not hold.
    pub fn probe(&self) -> Result<Security> {
        let Some(builder) = self.builder() else { return Ok(Security::default()) };
        let mark = format!("{NAME}-{}", std::process::id());
        let limits = Limits { memory: Mib(64), vcpu: 1 };
        let group =
            self.groups().map(|groups| groups.make(&mark, limits).map(|()| groups.of(&mark))).transpose()?;
        let program = Standalone::new(builder, Path::new("/dev/null"), Path::new("/")).args([inside::IDLE]);
        let spawned = program.caged(self, Policy::nothing(mark)).spawn();
        // It ends with this.
        let found = spawned.map(|spawned| spawned.security().clone());
        group.map(|group| group::remove(&group)).transpose()?;
        found
    }
}

/// Why the builder could not be started.
pub(crate) fn missing(builder: &Path, source: std::io::Error) -> VmmError {
    if source.kind() == std::io::ErrorKind::NotFound {
        VmmError::CageMissing { looked: builder.to_owned() }
    } else {
        VmmError::Spawn { program: builder.to_owned(), source }
    }
}
