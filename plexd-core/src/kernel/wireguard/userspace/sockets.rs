//! The UDP side of gotatun: its own dual-stack socket, wrapped for five things it does not do, wait for a port that it
//! is just giving up itself, be ready to send at once, survive an error of `recvmmsg(2)`, have a peer woken that calls, and
//! demand a cookie before a flood of calls costs anything ([`Door`]).

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use gotatun::packet::{Packet, PacketBufPool};
use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams};
use tokio::time::Instant;

use super::door::{Door, Verdict};
use super::dormant::Call;
use super::gate::Gate;
use super::initiation::Message;

/// How often binding is tried while the port is in use.
const ATTEMPTS: u32 = 250;

/// How long to wait between attempts.
const BIND_PAUSE: Duration = Duration::from_millis(2);

/// How long to wait after receiving failed.
const PAUSE: Duration = Duration::from_millis(10);

/// Handshake messages judged before other tasks have their turn.
const AT_ONCE: usize = 8;

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

/// The receiving end of the socket. gotatun stops for good at the first error, so none is passed on.
pub(super) struct Receiver {
    socket: UdpSocket,
    gate: Arc<Gate>,
    /// That of the key with which the device was called last.
    door: Option<Door>,
}

impl Receiver {
    fn new(socket: UdpSocket, gate: Arc<Gate>) -> Self {
        Self { socket, gate, door: None }
    }

    /// Wakes those who call in `packets`, from the one at `first` on, and removes what is no handshake of anybody and what
    /// has to show a cookie first.
    async fn answer(&mut self, packets: &mut Vec<(Packet, SocketAddr)>, first: usize) {
        let mut judged = 0;
        let mut refused = false;
        for (packet, sender) in packets.iter_mut().skip(first) {
            let Some(message) = Message::of(packet) else { continue };
            if !self.may_pass(message, packet, *sender).await {
                packet.truncate(0);
                refused = true;
            }
            judged += 1;
            if judged % AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
        }
        if refused {
            packets.retain(|(packet, _)| !packet.is_empty());
        }
    }

    async fn may_pass(&mut self, message: Message, packet: &Packet, sender: SocketAddr) -> bool {
        let Some(responder) = self.gate.responder() else { return true };
        let now = Instant::now();
        let door = self.door.get_or_insert_with(|| Door::new(Arc::clone(&responder), now));
        if !door.is_of(&responder) {
            *door = Door::new(Arc::clone(&responder), now);
        }
        match door.judge(message, packet, sender, now) {
            Verdict::Refused => return false,
            Verdict::Demanded(demand) => {
                // Not waited for: one that does not fit is lost as any datagram, and asked for again.
                let _sent = tokio::task::unconstrained(self.socket.send_to(demand, sender)).now_or_never();
                return false;
            }
            Verdict::Heard if message == Message::Response => return true,
            Verdict::Heard => {}
        }
        match self.gate.call(&responder, packet) {
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
                    let mut received = vec![received];
                    self.answer(&mut received, 0).await;
                    if let Some(received) = received.pop() {
                        return Ok(received);
                    }
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
                    self.answer(packets, old).await;
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
mod tests;
