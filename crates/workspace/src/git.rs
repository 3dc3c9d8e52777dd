//! The one sealed wrapper of host git.
