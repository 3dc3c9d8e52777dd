//! The guest agent: /init of our initramfs, and the server on the agent channel.

pub mod archive;
pub mod boot;
mod exec;
mod port;
pub mod scan;
mod server;
mod vsock;
mod watch;

pub use server::{serve_guest, serve_hosted, serve_socket};
