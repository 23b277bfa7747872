//! plexd from outside: the real daemons under their real users, each test in namespaces of its own. Needs root and all
//! programs of the workspace, built.

mod access;
mod api;
mod background;
mod bad_input;
mod bystander;
mod conformance;
mod control_plane;
mod deregister;
mod dice;
mod drift;
mod durability;
mod endpoints;
mod events;
mod everything;
mod faults;
mod hostile;
mod lifecycle;
mod malformed;
mod mesh;
mod mirror;
mod offline;
mod openapi;
mod overload;
mod ping;
mod policies;
mod policy;
#[expect(clippy::unwrap_used, reason = "helpers of tests")]
mod privileges;
mod restart;
mod rotation;
mod secrets;
mod support;
