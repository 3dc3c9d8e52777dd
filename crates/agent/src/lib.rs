//! The guest agent: /init of our initramfs, and the server on the agent channel.

pub mod archive;
pub mod boot;
mod exec;
mod groups;
mod port;
mod restored;
pub mod scan;
mod server;
mod standstill;
mod vsock;
mod watch;

pub use server::{serve_guest, serve_hosted, serve_socket};
