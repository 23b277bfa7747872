//! The few system calls plexd needs that no safe crate offers, behind a safe interface: the supplementary groups of
//! a Unix-socket peer, descriptors passed over such a socket, the TUN request, and what memory a process keeps. This is the only crate of the workspace that holds
//! `unsafe` code; each block carries its argument, and nothing else is put here.

mod memory;
mod passing;
mod peer_groups;
mod tun;

pub use memory::{give_back, keep_little, let_go_of_code};
pub use passing::{Received, bound_file, receive, refuse_descriptors};
pub use peer_groups::peer_groups;
pub use tun::attach_tun;
