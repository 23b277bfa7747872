//! What the kernel does, asked of the kernel: each test in network and mount namespaces of its own. Needs root.
#![expect(clippy::unwrap_used, reason = "tests")]

mod backends;
mod changes;
mod dormant;
mod namespace;
mod network;
mod node;
mod rules;
mod tunnel;
