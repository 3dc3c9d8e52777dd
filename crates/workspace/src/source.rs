//! Which repository a path means.
