//! Hears of changes that somebody else makes to the table `inet plexd`.

use std::io;

use futures_util::FutureExt;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::numbers::{attribute, message};
use super::socket::{DATAGRAM, RECEIVE_BUFFER};
use super::wire::{Message, Messages, NFPROTO_INET, nft};
use crate::kernel::KernelError;
use crate::policy::Table;

/// Multicast group of nftables' changes (`NFNLGRP_NFTABLES`).
const GROUP: u32 = 7;

/// A subscription to the changes of the ruleset.
pub struct Monitor {
    socket: TokioSocket,
    /// Port of the socket by which we make changes ourselves.
    own: u32,
}

impl Monitor {
    /// Subscribes, in the network namespace of the calling thread; changes made by port `own` are not told.
    pub(super) fn open(own: u32) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        socket.socket_ref().add_membership(GROUP)?;
        Ok(Self { socket, own })
    }

    /// Waits until somebody else changed the table `inet plexd`, or until notifications were lost, which may be one of
    /// those. Changes that were made by then are told once. Cancelling it loses nothing: no notification is read
    /// without being told at once.
    ///
    /// # Errors
    /// The socket failed; there will be no more notifications.
    pub async fn changed(&mut self) -> Result<(), KernelError> {
        let failed = |error| KernelError::new("watch", "nftables", error);
        while !self.next().await.map_err(failed)? {}
        // The table is going to be compared whole: what else is waiting adds nothing.
        while let Some(more) = self.next().now_or_never() {
            more.map_err(failed)?;
        }
        Ok(())
    }

    /// Waits for the next notification and returns whether it matters.
    async fn next(&mut self) -> io::Result<bool> {
        let mut buffer = Vec::with_capacity(DATAGRAM);
        match self.socket.recv_from(&mut buffer).await {
            Ok(from) => {
                let told = Messages(&buffer).any(|message| is_ours_by_others(&message, self.own));
                Ok(from.port_number() == 0 && (told || buffer.len() >= DATAGRAM))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

fn is_ours_by_others(message: &Message<'_>, own: u32) -> bool {
    let is_nftables = message.kind & 0xff00 == nft(0);
    is_nftables
        && message.kind != nft(message::NEWGEN)
        && message.port != own
        && message.family() == NFPROTO_INET
        && message.attributes().text(attribute::TABLE).as_deref() == Some(Table::NAME)
}
