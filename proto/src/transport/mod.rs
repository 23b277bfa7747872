//! The Unix-socket transport of plexd: sockets that exist with the right owner, group and mode or not at all
//! ([`acquire()`], [`bind`]), accepted connections that carry what the kernel says of their peer ([`Incoming`]), and the client's
//! end ([`connect()`]). Decides nothing about who may do what; that is [`crate::access`].

mod acquire;
mod connect;
mod connection;
mod listen;
mod peer;

pub use acquire::{AcquireError, acquire};
pub use connect::connect;
pub use connection::{ClientSocket, Connection};
pub use listen::{BindError, Incoming, SocketOwner, bind};
pub use peer::PeerCredentials;
