//! Too much of everything, against the real plexd-api: connections, bytes, slowness, writes without a control plane, a
//! large change amid reads. What it takes of memory is bounded by what the reference limits ([`memory`]), and another
//! client is answered throughout.

mod connections;
mod crowd;
mod floods;
mod memory;
mod slow;
mod update;
mod writes;
