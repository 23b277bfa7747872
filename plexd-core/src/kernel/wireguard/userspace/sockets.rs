//! The UDP side of gotatun: its own dual-stack socket, wrapped for three things it does not do, wait for a port that it
//! is just giving up itself, be ready to send at once, and survive an error of `recvmmsg(2)`.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use gotatun::packet::{Packet, PacketBufPool};
use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams};

/// How often binding is tried while the port is in use.
const ATTEMPTS: u32 = 250;

/// How long to wait between attempts.
const BIND_PAUSE: Duration = Duration::from_millis(2);

/// How long to wait after receiving failed.
const PAUSE: Duration = Duration::from_millis(10);

/// Makes the UDP socket.
pub(super) struct Sockets(UdpSocketFactory);

impl Sockets {
    pub(super) fn new() -> Self {
        Self(UdpSocketFactory::default())
    }
}

impl UdpTransportFactory for Sockets {
    type Send = UdpSocket;
    type Recv = Receiver;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(Self::Send, Self::Recv)> {
        let mut attempt = 1;
        loop {
            match self.0.bind(params).await {
                Ok((sender, receiver)) => {
                    until_writable(&sender).await;
                    return Ok((sender, Receiver(receiver)));
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
pub(super) struct Receiver(UdpSocket);

impl UdpRecv for Receiver {
    type RecvManyBuf = <UdpSocket as UdpRecv>::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        loop {
            match self.0.recv_from(pool).await {
                Ok(received) => return Ok(received),
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
            match self.0.recv_many_from(buffers, pool, packets).await {
                Ok(()) => return Ok(()),
                Err(error) => rest(&error).await,
            }
        }
    }

    fn enable_udp_gro(&self) -> io::Result<()> {
        self.0.enable_udp_gro()
    }
}

async fn rest(error: &io::Error) {
    tracing::debug!(%error, "receiving from the UDP socket failed");
    tokio::time::sleep(PAUSE).await;
}
