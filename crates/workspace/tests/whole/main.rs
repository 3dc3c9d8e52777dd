//! The whole way of a repository into a guest and back, without a VM.

#[cfg(test)]
mod again;
#[cfg(test)]
mod apply;
#[cfg(test)]
mod apply_again;
#[cfg(test)]
mod apply_branch;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod modes;
#[cfg(test)]
mod random;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod round_trip;
#[cfg(test)]
mod situations;
#[cfg(test)]
mod situations_more;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod support;
