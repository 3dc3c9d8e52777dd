//! Durable records in SQLite: VMs and image names.
//!
//! Owns the schema and every SQL statement. Must never store what is only true right now (pids,
//! sockets, liveness), and never touch a database it does not understand.

mod backup;
mod error;
mod images;
mod inspect;
mod migrations;
mod open;
mod row;
mod vms;

pub use error::StoreError;
pub use inspect::{Inspection, inspect, peek_images};
pub use migrations::{Pending, SCHEMA_VERSION};
pub use open::Store;
