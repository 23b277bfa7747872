//! plexd-core: the privileged half of plexd. One way through: [`control`] hears the control plane, [`state`] keeps what
//! it wants, [`reconcile`] compares that with what the [`kernel`] has and changes what differs.
//!
//! - [`control`]: speaking to the control plane
//! - [`state`]: what it wants
//! - [`types`]: validated values
//! - [`policy`]: rules to nftables, pure
//! - [`kernel`]: the seam to the kernel

pub mod control;
pub mod kernel;
pub mod policy;
pub mod state;
pub mod types;
