//! What the kernel does with policy. Needs root, `nft` and `iptables-restore`.

#![expect(clippy::unwrap_used, reason = "tests")]

mod agreement;
mod classes;
mod coexistence;
mod connections;
mod counters;
mod edits;
mod export;
mod no_gap;
mod raw;
mod support;
mod table;
