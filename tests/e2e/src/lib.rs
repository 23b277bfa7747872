//! The harness of the end-to-end tests: a [`Lab`] of [`Host`]s (network namespaces with directories of their own,
//! joined by a bridge), [`Daemon`]s in them, a [`ControlPlane`] and [`Node`]s of the real programs, and ways to look at
//! them from outside. Needs root and the programs of `packaging/apt-dependencies`, and says so.
//!
//! For tests only: what goes wrong panics at the caller's line, with the command, what it printed and the logs of the
//! daemons. What a lab made is gone when it is dropped, also after a panic; what a killed test left, [`sweep()`] removes,
//! as every new lab does first.

mod barrage;
mod binaries;
mod control_plane;
mod daemon;
mod figures;
mod flow;
pub mod guide;
mod host;
mod http;
mod lab;
mod node;
mod output;
mod requirements;
mod sweep;
mod table;
mod users;
mod wait;
mod wire;

pub use barrage::Barrage;
pub use control_plane::ControlPlane;
pub use daemon::{Daemon, Memory};
pub use figures::median;
pub use flow::{Flow, Loss};
pub use host::{As, Host};
pub use http::HttpAnswer;
pub use lab::Lab;
pub use node::Node;
pub use output::Output;
pub use requirements::require_root_and_tools;
pub use sweep::{remove, sweep};
pub use table::table_id;
pub use users::ensure_users;
pub use wait::{Attempt, patient, wait_until};
pub use wire::Wire;
