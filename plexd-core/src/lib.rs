//! plexd-core: the privileged half of plexd. One way through: [`control`] hears the control plane, [`state`] keeps what
//! it wants, [`reconcile`] compares that with what the [`kernel`] has and changes what differs.
//!
//! - [`types`]: validated values
//! - [`policy`]: rules to nftables, pure
//! - [`kernel`]: the seam to the kernel

pub mod kernel;
pub mod policy;
pub mod types;
