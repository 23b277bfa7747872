//! What the kernel does with policy. Needs root, `nft` and `iptables-restore`.

#![expect(clippy::unwrap_used, reason = "tests")]

mod agreement;
mod classes;
mod coexistence;
mod connections;
mod export;
mod no_gap;
mod support;
mod table;
