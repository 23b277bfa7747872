//! The unprivileged half of plexd: serves the Local Node API to applications, from a copy of the state that
//! plexd-core streams to it. Holds no key, no credential of the control plane and no file of the data directory.
//!
//! - [`cli`], [`config`], [`run`]: arguments; the configuration's part that concerns this process; start, drop, stop
//! - [`mirror`]: the copy of the state, with every body rendered once
//! - [`core_client`]: the one connection to plexd-core: the stream that feeds the mirror, secrets, writes
//! - [`auth`]: who may ask for what
//! - [`http`]: routes, answers, connections

pub mod auth;
pub mod cli;
pub mod config;
pub mod core_client;
pub mod http;
pub mod mirror;
pub mod run;
mod sockets;
