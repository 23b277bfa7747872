//! The UDP side of gotatun: its own dual-stack socket, wrapped for four things it does not do, wait for a port that it
//! is just giving up itself, be ready to send at once, survive an error of `recvmmsg(2)`, and have a peer woken that calls.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gotatun::packet::{Packet, PacketBufPool};
use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams};

use super::dormant::Call;
use super::gate::Gate;
use super::initiation::is_initiation;

/// How often binding is tried while the port is in use.
const ATTEMPTS: u32 = 250;

/// How long to wait between attempts.
const BIND_PAUSE: Duration = Duration::from_millis(2);

/// How long to wait after receiving failed.
const PAUSE: Duration = Duration::from_millis(10);

/// Initiations read in a second. Whoever knows the public key can make some that pass the first mac, and reading one
/// costs a key exchange, here as in gotatun (which asks for cookies by source address, and those can be forged). What
/// cannot be authenticated here never reaches gotatun, so that a flood costs less with this than without it. Enough for
/// 10,000 peers that all call at once, and again every 5 s until they are answered.
const INITIATIONS: u32 = 2_000;

/// Makes the UDP socket.
pub(super) struct Sockets {
    factory: UdpSocketFactory,
    gate: Arc<Gate>,
}

impl Sockets {
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        Self { factory: UdpSocketFactory::default(), gate }
    }
}

impl UdpTransportFactory for Sockets {
    type Send = UdpSocket;
    type Recv = Receiver;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(Self::Send, Self::Recv)> {
        let mut attempt = 1;
        loop {
            match self.factory.bind(params).await {
                Ok((sender, receiver)) => {
                    until_writable(&sender).await;
                    return Ok((sender, Receiver::new(receiver, Arc::clone(&self.gate))));
                }
                // gotatun binds anew when its key changes, and does not wait for the task that holds the old socket.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(BIND_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Waits until tokio knows that the socket can be written to, which it learns only when it asks the kernel next. A first
/// initiation of [`Shared::initiate`](super::Shared::initiate), which does not wait, would be lost, and the next one
/// follows 5 s later. Linux refuses to send to port 0 (`udp_sendmsg`), so nothing leaves.
async fn until_writable(sender: &UdpSocket) {
    let _refused = sender.send_to(Packet::copy_from(&[]), (Ipv6Addr::LOCALHOST, 0).into()).await;
}

/// How many more initiations may be read in this second.
#[derive(Debug)]
struct Budget {
    left: u32,
    since: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { left: INITIATIONS, since: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        let taken = self.left.checked_sub(1);
        self.left = taken.unwrap_or(0);
        taken.is_some()
    }
}

/// The receiving end of the socket. gotatun stops for good at the first error, so none is passed on.
pub(super) struct Receiver {
    socket: UdpSocket,
    gate: Arc<Gate>,
    budget: Budget,
}

impl Receiver {
    fn new(socket: UdpSocket, gate: Arc<Gate>) -> Self {
        Self { socket, gate, budget: Budget::new(Instant::now()) }
    }

    /// Wakes those who call in `packets`, and empties what is no initiation of anybody: gotatun drops it. While no peer
    /// may sleep, gotatun sees to all of that by itself.
    async fn answer(&mut self, packets: &mut [(Packet, SocketAddr)]) {
        if !self.gate.watches() {
            return;
        }
        for (packet, _) in packets.iter_mut().filter(|(packet, _)| is_initiation(packet)) {
            if !self.may_pass(packet).await {
                packet.truncate(0);
            }
        }
    }

    async fn may_pass(&mut self, initiation: &[u8]) -> bool {
        let Some(responder) = self.gate.responder() else { return true };
        if !responder.is_meant(initiation) || !self.budget.take(Instant::now()) {
            return false;
        }
        match self.gate.call(&responder, initiation) {
            Call::Refused => false,
            Call::Expected => true,
            Call::Wakes(key) => {
                self.gate.wake(key).await;
                true
            }
        }
    }
}

impl UdpRecv for Receiver {
    type RecvManyBuf = <UdpSocket as UdpRecv>::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        loop {
            match self.socket.recv_from(pool).await {
                Ok(received) => {
                    let mut received = [received];
                    self.answer(&mut received).await;
                    let [received] = received;
                    return Ok(received);
                }
                Err(error) => rest(&error).await,
            }
        }
    }

    async fn recv_many_from(
        &mut self,
        buffers: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        loop {
            let old = packets.len();
            match self.socket.recv_many_from(buffers, pool, packets).await {
                Ok(()) => {
                    self.answer(&mut packets[old..]).await;
                    return Ok(());
                }
                Err(error) => rest(&error).await,
            }
        }
    }

    fn enable_udp_gro(&self) -> io::Result<()> {
        self.socket.enable_udp_gro()
    }
}

async fn rest(error: &io::Error) {
    tracing::debug!(%error, "receiving from the UDP socket failed");
    tokio::time::sleep(PAUSE).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_initiations_are_read_in_a_second_and_no_more() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for _ in 0..3 {
            assert_eq!((0..5_000).filter(|_| budget.take(start)).count(), 2_000);
            budget.since -= Duration::from_secs(1);
        }
    }
}
