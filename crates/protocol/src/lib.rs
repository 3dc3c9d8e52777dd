//! banger's wire types. Three protocols, each with its own version and its own module:
//!
//! | module | between | carried by |
//! |---|---|---|
//! | [`api`] | cli and daemon | HTTP/1.1 + JSON on a unix socket |
//! | [`exec`] | cli and daemon, after an HTTP upgrade | frames on that connection |
//! | [`agent`] | daemon and guest agent | frames on the agent channel |
//!
//! Besides, [`boot`] names what the kernel command line and the initramfs say to the agent.
//! Must never do I/O. What may change in which version is in docs/protocols.md.

pub mod agent;
pub mod api;
pub mod boot;
pub mod exec;

/// A protocol's version: a peer with another major is refused, a higher minor only adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProtocolVersion {
    /// Changes when an old peer would misunderstand.
    pub major: u16,
    /// Changes when something is added that an old peer may ignore.
    pub minor: u16,
}

impl std::fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
