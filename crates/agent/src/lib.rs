//! The guest agent: /init of our initramfs, and the server on the agent channel.

pub mod boot;
pub mod scan;
