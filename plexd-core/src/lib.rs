//! plexd-core: the privileged half of plexd. One way through: [`control`] hears the control plane, [`state`] keeps what
//! it wants, [`reconcile`] compares that with what the [`kernel`] has and changes what differs.
//!
//! - [`cli`], [`run`], [`supervisor`]: from the command line to running tasks and back
//! - [`config`]: the configuration, checked
//! - [`types`]: validated values
//! - [`clock`]: what time it is
//! - [`storage`]: how files are kept
//! - [`status`]: what the node knows of its own health
//! - [`identity`]: token, enrolment, keys
//! - [`control`]: speaking to the control plane
//! - [`state`]: what it wants
//! - [`policy`]: rules to nftables, pure
//! - [`reconcile`]: observe, plan, apply
//! - [`kernel`]: the seam to the kernel
//! - [`reports`]: reports of applications, durable
//! - [`node_state`]: what the sidecar is served
//! - [`admin`]: what administrators are served

pub mod admin;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod identity;
pub mod kernel;
pub mod node_state;
pub mod policy;
pub mod reconcile;
pub mod reports;
pub mod run;
pub mod state;
pub mod status;
pub mod storage;
pub mod supervisor;
pub mod types;
