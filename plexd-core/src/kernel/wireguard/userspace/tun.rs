//! The TUN interface as gotatun sees it: packets in, packets out. That the interface can vanish and come back is kept
//! from gotatun, so that its sessions outlive `ip link del`: while no interface is attached, reading waits and what is
//! to be written is dropped, as on a cable that is unplugged.

use std::io;
use std::iter;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::dormant::Way;
use super::gate::{Gate, Passed};

/// Largest packet that fits gotatun's buffers (4,096 bytes) with WireGuard's overhead, in bytes.
pub const MAX_MTU: u16 = 4_000;

/// How long reading rests after an error that tells nothing.
const PAUSE: Duration = Duration::from_millis(10);

/// How often it is tried to wake the peer of a packet.
const ATTEMPTS: u32 = 3;

/// The descriptor of the attached interface, if one is attached.
pub(super) type Attachment = Option<Arc<AsyncFd<OwnedFd>>>;

/// Registers `tun`, which must be attached and not blocking, with the runtime.
#[expect(
    deprecated,
    reason = "its unsafe successor asks for what an OwnedFd gives: the same open descriptor for life"
)]
pub(super) fn attachment(tun: OwnedFd) -> io::Result<Attachment> {
    let interest = Interest::READABLE | Interest::WRITABLE;
    Ok(Some(Arc::new(AsyncFd::with_interest(tun, interest)?)))
}

/// Packets that the kernel routed into the interface.
pub(super) struct Reader {
    attachment: watch::Receiver<Attachment>,
    mtu: watch::Receiver<u16>,
    gate: Arc<Gate>,
    passed: Passed,
    /// The packet that waits for its peer to be awake. Kept here, so that it outlives a call of `recv` that is dropped.
    held: Option<Packet<Ip>>,
}

impl Reader {
    pub(super) fn new(
        attachment: watch::Receiver<Attachment>,
        mtu: watch::Receiver<u16>,
        gate: Arc<Gate>,
    ) -> Self {
        Self { attachment, mtu, gate, passed: Passed::default(), held: None }
    }

    /// Returns the packet that is held, once its peer is awake; none if it may not go on.
    async fn release(&mut self) -> Option<Packet<Ip>> {
        let destination = self.held.as_ref()?.destination();
        // Again, as the address may have gone to another peer meanwhile; a few times, as that may go on for ever.
        for _ in 0..ATTEMPTS {
            match destination.map_or(Way::Open, |address| self.gate.way(address, &mut self.passed)) {
                Way::Open => return self.held.take(),
                Way::Wake(key) => self.gate.wake(key).await,
                Way::Closed => break,
            }
        }
        self.held = None;
        None
    }

    /// Waits until another interface is attached, or for ever once none will be.
    async fn replaced(&mut self) {
        if self.attachment.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl IpRecv for Reader {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        loop {
            if let Some(packet) = self.release().await {
                return Ok(iter::once(packet));
            }
            let attached = self.attachment.borrow_and_update().clone();
            let Some(tun) = attached else {
                self.replaced().await;
                continue;
            };
            let mut packet = pool.get();
            // Neither arm loses anything when the other wins: a packet is taken from the kernel only when `read` is done.
            let result = tokio::select! {
                biased;
                result = read(&tun, &mut packet) => result,
                () = self.replaced() => continue,
            };
            match result {
                // A packet that fills the buffer was cut off.
                Ok(length) if length < packet.len() => {
                    packet.truncate(length);
                    self.held = packet.try_into_ip().ok();
                }
                Ok(_) => tracing::trace!("packet longer than the buffer dropped"),
                Err(error) if is_gone(&error) => self.replaced().await,
                Err(error) => {
                    tracing::debug!(%error, "reading from the TUN interface failed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn mtu(&self) -> MtuWatcher {
        self.mtu.clone().into()
    }
}

/// Packets that peers sent, for the kernel.
pub(super) struct Writer {
    attachment: watch::Receiver<Attachment>,
    gate: Arc<Gate>,
    passed: Passed,
}

impl Writer {
    pub(super) fn new(attachment: watch::Receiver<Attachment>, gate: Arc<Gate>) -> Self {
        Self { attachment, gate, passed: Passed::default() }
    }
}

impl IpSend for Writer {
    /// Never fails: gotatun gives the whole device up for some errors, `EINVAL` among them, which a single packet of a
    /// peer must not be able to bring about.
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let attached = self.attachment.borrow().clone();
        let Some(tun) = attached else { return Ok(()) };
        if packet.source().is_some_and(|source| !self.gate.may_send(source, &mut self.passed)) {
            tracing::trace!("packet from an address of another peer dropped");
            return Ok(());
        }
        let bytes = packet.into_bytes();
        let written = tun
            .async_io(Interest::WRITABLE, |tun| nix::unistd::write(tun, &bytes).map_err(io::Error::from))
            .await;
        if let Err(error) = written {
            tracing::trace!(%error, "packet not delivered");
        }
        Ok(())
    }
}

async fn read(tun: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // When the interface is removed only an error is signalled, no readiness to read.
        let mut guard = tun.ready(Interest::READABLE | Interest::ERROR).await?;
        match nix::unistd::read(tun.get_ref(), buffer) {
            Ok(length) => return Ok(length),
            Err(Errno::EAGAIN) => guard.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::EBADFD, Errno::EBADF, Errno::ENODEV];
    gone.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}
