//! The development control plane of plexd: all 17 endpoints of the control-plane documents over real TLS, and an
//! admin API on loopback that drives them. Written from the documents, on purpose without any type of the agent,
//! so that a wrong guess on one side shows. It is for development and tests and refuses to be more: its admin API
//! has no authentication and it listens for it on loopback only.
//!
//! - [`cli`], [`server`]: arguments and exit codes; listeners and connections
//! - [`ca`], [`envelope`], [`secrets`]: certificates, signed events, secrets under the node's key
//! - `store`: what is known and kept on disk, and the changes that announce themselves
//! - `wire`, `sse`: the 17 endpoints; `admin`, `faults`, `certificates`: what drives them; `rates`: how much came

pub mod ca;
pub mod cli;
pub mod envelope;
pub mod secrets;
pub mod server;

mod admin;
mod certificates;
mod encoding;
mod faults;
mod rates;
mod reply;
mod sse;
mod store;
mod wire;
