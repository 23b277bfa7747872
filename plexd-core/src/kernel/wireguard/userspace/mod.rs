//! The embedded WireGuard: gotatun on a TUN device that was opened before privileges were dropped. The interface lives
//! as long as the process; its sessions survive changes of peers and even the removal of the interface.
//!
//! gotatun holds some 25 KB for each peer it knows, so that it is told only of those that somebody speaks with: the others
//! are asleep ([`dormant`]), and woken by the first packet in either direction ([`gate`], where it is told why that goes
//! well). Whoever looks at the device sees no difference.

#[cfg(test)]
mod caller;
mod convert;
mod door;
mod dormant;
mod gate;
mod initiation;
mod known;
mod owners;
mod service;
mod sockets;
mod tend;
mod tun;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use gotatun::device::configure::DeviceWrite;
use gotatun::device::{self, DeviceBuilder};
use gotatun::x25519;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rtnetlink::packet_route::link::InfoKind;
use tokio::sync::watch;
use tokio::task::unconstrained;
use tokio::time::Instant;

use self::convert::{carry_out, into_io};
use self::dormant::Roster;
use self::gate::Gate;
use self::tun::{Attachment, Reader, Writer};
use crate::kernel::rtnl::{Link, Rtnl};
use crate::kernel::rules::MARK;
use crate::kernel::{Backend, DeviceConfig, Ensured, KernelError, ObservedDevice, PeerChange, WireGuard};
use crate::types::PublicKey;

pub use self::service::UserspaceService;
pub use self::tun::MAX_MTU;

type Transports = (sockets::Sockets, Writer, Reader);
type Device = device::Device<Transports>;

/// Edits of gotatun at a time: packets wait meanwhile, and each is work that grows with all peers that are awake.
const EDITS: usize = 64;

/// Changes applied at a time, of peers that are asleep for the most part.
const CHANGES: usize = 1_024;

/// Handshakes begun at a time: each costs two key exchanges.
const INITIATIONS: usize = 16;

/// [`WireGuard`] by gotatun. Calls that change something are made by one caller, the reconciler, one after the other.
pub struct UserspaceWireGuard {
    shared: Arc<Shared>,
}

struct Shared {
    interface: String,
    rtnl: Rtnl,
    /// The open `/dev/net/tun`, attached to the interface while there is one. Never closed: after the drop of
    /// privileges it could not be opened again.
    tun: OwnedFd,
    attachment: watch::Sender<Attachment>,
    mtu: watch::Sender<u16>,
    state: Mutex<State>,
    /// Held while peers are put to sleep and while the key or the port changes: gotatun without peers resumes without a
    /// socket.
    changing: tokio::sync::Mutex<()>,
    /// How long a peer has to be silent before it may sleep.
    idle: Duration,
}

#[derive(Default)]
struct State {
    /// Index of the interface that was made, which tells it from a later one of the same name.
    index: Option<u32>,
    device: Option<Running>,
    public_key: Option<PublicKey>,
    /// Whether the UDP socket is open.
    bound: bool,
}

/// A device and its gate.
#[derive(Clone)]
struct Running {
    device: Arc<Device>,
    gate: Arc<Gate>,
}

impl UserspaceWireGuard {
    /// Takes over `tun`, an open `/dev/net/tun` that is attached to nothing yet, for the interface `interface`. `mtu`
    /// counts until the interface's own MTU is read; at most [`MAX_MTU`]. Called inside a tokio runtime.
    ///
    /// # Errors
    /// If the kernel refuses an rtnetlink socket.
    pub fn new(interface: &str, tun: OwnedFd, mtu: u16) -> Result<Self, KernelError> {
        Self::with_idle(interface, tun, mtu, dormant::IDLE)
    }

    /// As [`new`](Self::new), with another time than 180 s that a peer has to be silent before it may sleep. Tests cannot
    /// wait for it; below 180 s, sessions end with it that would have gone on.
    ///
    /// # Errors
    /// As those of [`new`](Self::new).
    pub fn with_idle(interface: &str, tun: OwnedFd, mtu: u16, idle: Duration) -> Result<Self, KernelError> {
        let failed = |error| KernelError::new("prepare the interface", interface, error);
        let flags =
            OFlag::from_bits_retain(fcntl(&tun, FcntlArg::F_GETFL).map_err(io::Error::from).map_err(failed)?);
        fcntl(&tun, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(io::Error::from).map_err(failed)?;
        Ok(Self {
            shared: Arc::new(Shared {
                interface: interface.to_owned(),
                rtnl: Rtnl::new().map_err(failed)?,
                tun,
                attachment: watch::Sender::new(None),
                mtu: watch::Sender::new(mtu.min(MAX_MTU)),
                state: Mutex::new(State::default()),
                changing: tokio::sync::Mutex::default(),
                idle,
            }),
        })
    }
}

impl UserspaceWireGuard {
    /// Returns how many peers are awake: those that cost memory.
    pub async fn awake(&self) -> usize {
        match self.shared.device() {
            Ok(running) => {
                running.device.read(async |device| unconstrained(device.peers()).await.len()).await
            }
            Err(_) => 0,
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> KernelError {
        move |error| KernelError::new(operation, &self.interface, error)
    }

    /// Returns the interface if it is there; one of its name that was not made here is an error, so that nobody looks for
    /// addresses and routes on it.
    async fn link(&self) -> io::Result<Option<Link>> {
        let Some(link) = self.rtnl.link(&self.interface).await? else { return Ok(None) };
        let index = self.state().index;
        if Some(link.index) != index {
            return Err(foreign(&link));
        }
        self.follow_mtu(link.mtu);
        Ok(Some(link))
    }

    fn follow_mtu(&self, mtu: u32) {
        let mtu = u16::try_from(mtu).map_or(MAX_MTU, |mtu| mtu.min(MAX_MTU));
        self.mtu.send_if_modified(|known| std::mem::replace(known, mtu) != mtu);
    }

    fn device(&self) -> io::Result<Running> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "the interface has not been made yet");
        self.state().device.clone().ok_or_else(missing)
    }

    /// Makes the interface, and attaches it to the device that is there.
    async fn attach(&self) -> io::Result<()> {
        self.attachment.send_replace(None);
        let previous = self.state().index;
        if let Some(index) = previous {
            // Ours, renamed: a descriptor attached to it could not be attached to another. Of another kind, it is somebody
            // else's, made with the same index since ours was removed.
            let link = self.rtnl.link_by_index(index).await?;
            if link.is_some_and(|link| link.kind == Some(InfoKind::Tun)) {
                self.rtnl.delete(index).await?;
            }
            self.state().index = None;
        }
        plexd_sys::attach_tun(&self.tun, &self.interface)?;
        self.state().index = Some(nix::net::if_::if_nametoindex(self.interface.as_str())?);
        self.attachment.send_replace(tun::attachment(self.tun.as_fd().try_clone_to_owned()?)?);
        Ok(())
    }

    fn is_attached(&self) -> bool {
        self.attachment.borrow().is_some()
    }

    /// Builds the device, without a key and therefore without a socket.
    async fn build(&self) -> Result<Running, device::Error> {
        let gate = Arc::new(Gate::new());
        let reader = Reader::new(self.attachment.subscribe(), self.mtu.subscribe(), Arc::clone(&gate));
        let writer = Writer::new(self.attachment.subscribe(), Arc::clone(&gate));
        let device = DeviceBuilder::new()
            .with_udp(sockets::Sockets::new(Arc::clone(&gate)))
            .with_ip_pair(writer, reader)
            .with_fwmark(MARK)
            .build()
            .await?;
        let device = Arc::new(device);
        gate.lead_to(&device);
        Ok(Running { device, gate })
    }

    /// Reads the device; `None` if there is no such interface.
    async fn observe(&self) -> io::Result<Option<ObservedDevice>> {
        if self.link().await?.is_none() {
            return Ok(None);
        }
        let Running { device, gate } = self.device()?;
        let read = device.read(async |device| {
            // Unconstrained, as it would give way every 128 peers, with the device's lock held.
            let awake = convert::observed(unconstrained(device.peers()).await);
            // Under the same lock, so that nobody is both awake and asleep.
            let peers = gate.observe(awake, Instant::now());
            (device.listen_port(), device.fwmark(), peers)
        });
        let (port, mark, peers) = read.await;
        let state = self.state();
        Ok(Some(ObservedDevice {
            public_key: state.public_key,
            listen_port: if state.bound { port } else { 0 },
            mark: mark.unwrap_or(0),
            peers,
        }))
    }

    /// Applies changes of peers, a part of them at a time.
    async fn edit(&self, running: &Running, mut changes: &[PeerChange]) -> io::Result<()> {
        while !changes.is_empty() {
            let part = async |device: &mut DeviceWrite<'_, Transports>| {
                unconstrained(edit_some(device, &running.gate, changes)).await
            };
            let done = running.device.write(part).await.map_err(into_io)?;
            changes = &changes[done..];
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Sets key and port. Under [`Self::changing`].
    async fn configure(&self, config: &DeviceConfig) -> Result<(), KernelError> {
        let Running { device, gate } = self.device().map_err(self.failed("configure"))?;
        let private_key = x25519::StaticSecret::from(*config.private_key.as_bytes());
        // Not bound until the write is through: a device that lost its socket opens it only when something changes.
        let bound = std::mem::take(&mut self.state().bound);
        let port = config.listen_port;
        let result = device
            .write(async |device: &mut DeviceWrite<'_, Transports>| {
                gate.answer_to(&config.private_key);
                unconstrained(device.set_private_key(private_key)).await;
                if !bound {
                    device.set_listen_port(!port);
                }
                if port != 0 || !bound {
                    device.set_listen_port(port);
                }
            })
            .await;
        self.configured(config, result)
    }

    /// Notes the key that was set, and whether the socket is open.
    fn configured(
        &self,
        config: &DeviceConfig,
        result: Result<(), device::Error>,
    ) -> Result<(), KernelError> {
        let mut state = self.state();
        state.public_key = Some(config.private_key.public());
        state.bound = result.is_ok();
        result.map_err(|error| {
            let object = format!("UDP port {} for {}", config.listen_port, self.interface);
            KernelError::new("listen on", object, into_io(error))
        })
    }

    /// Returns the device for a change of its peers, which takes a private key.
    fn device_with_key(&self) -> io::Result<Running> {
        let device = self.device()?;
        if self.state().public_key.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has no private key yet"));
        }
        Ok(device)
    }
}

#[async_trait]
impl WireGuard for UserspaceWireGuard {
    fn backend(&self) -> Backend {
        Backend::Userspace
    }

    async fn ensure(&self) -> Result<Ensured, KernelError> {
        let shared = &*self.shared;
        let link = shared.rtnl.link(&shared.interface).await.map_err(shared.failed("look up"))?;
        match link {
            Some(link) if Some(link.index) != shared.state().index => {
                return Err(shared.failed("make")(foreign(&link)));
            }
            Some(_) if shared.is_attached() => return Ok(Ensured::Existing),
            _ => {}
        }
        shared.attach().await.map_err(shared.failed("make"))?;
        if shared.state().device.is_none() {
            let device = shared.build().await.map_err(into_io).map_err(shared.failed("make"))?;
            shared.state().device = Some(device);
        }
        Ok(Ensured::Created)
    }

    async fn observe(&self) -> Result<Option<ObservedDevice>, KernelError> {
        self.shared.observe().await.map_err(self.shared.failed("read"))
    }

    async fn configure(&self, config: &DeviceConfig) -> Result<(), KernelError> {
        let _changing = self.shared.changing.lock().await;
        self.shared.configure(config).await
    }

    async fn apply(&self, changes: &[PeerChange]) -> Result<(), KernelError> {
        let shared = &*self.shared;
        let failed = || shared.failed("change the peers of");
        let running = shared.device_with_key().map_err(failed())?;
        shared.edit(&running, changes).await.map_err(failed())?;
        let kept_alive: Vec<PublicKey> = changes.iter().filter_map(kept_alive).collect();
        if kept_alive.len() > EDITS {
            // Nobody waits for thousands of handshakes; the task ends by itself, or with the device.
            let shared = Arc::downgrade(&self.shared);
            tokio::spawn(async move {
                for keys in kept_alive.chunks(EDITS) {
                    let Some(shared) = shared.upgrade() else { return };
                    shared.initiate(keys).await;
                }
            });
        } else {
            shared.initiate(&kept_alive).await;
        }
        Ok(())
    }

    /// The peers go first: a preshared key counts from the next handshake on, and the sessions live until the key is
    /// replaced. Meanwhile the device is suspended: gotatun opens its socket anew for a new key, and a handshake that
    /// the old socket's tasks began with the new key would fail, and be begun again after 5 s only.
    async fn rekey(&self, config: &DeviceConfig, changes: &[PeerChange]) -> Result<(), KernelError> {
        let shared = &*self.shared;
        let failed = || shared.failed("change the peers of");
        let running = shared.device_with_key().map_err(failed())?;
        shared.edit(&running, changes).await.map_err(failed())?;
        let Running { device, gate } = running;
        let _changing = shared.changing.lock().await;
        if gate.read(Roster::awake) == 0 {
            // Without peers gotatun would resume without a socket.
            return shared.configure(config).await;
        }
        shared.state().bound = false;
        device.suspend().await;
        let private_key = x25519::StaticSecret::from(*config.private_key.as_bytes());
        let replaced = device
            .write(async |device: &mut DeviceWrite<'_, Transports>| {
                gate.answer_to(&config.private_key);
                unconstrained(device.set_private_key(private_key)).await;
                if config.listen_port != 0 {
                    device.set_listen_port(config.listen_port);
                }
            })
            .await;
        let resumed = device.resume().await;
        shared.configured(config, replaced.and(resumed))?;
        let kept_alive = gate.read(Roster::kept_alive);
        shared.initiate(&kept_alive).await;
        Ok(())
    }

    async fn remove(&self) -> Result<(), KernelError> {
        let shared = &*self.shared;
        let state = std::mem::take(&mut *shared.state());
        shared.attachment.send_replace(None);
        // gotatun stops the device's tasks once the last reference is gone.
        drop(state.device);
        match state.index {
            Some(index) => shared.rtnl.delete(index).await.map_err(shared.failed("remove")),
            None => Ok(()),
        }
    }
}

/// Applies the first of `changes`, [`CHANGES`] or as many as take [`EDITS`] of gotatun, and returns how many.
async fn edit_some(device: &mut DeviceWrite<'_, Transports>, gate: &Gate, changes: &[PeerChange]) -> usize {
    let (mut done, mut touched) = (0, 0);
    for change in changes.iter().take(CHANGES) {
        let edits = gate.change(|roster| roster.edits(change, Instant::now()));
        (done, touched) = (done + 1, touched + edits.len());
        for edit in edits {
            carry_out(device, edit).await;
        }
        if touched >= EDITS {
            break;
        }
    }
    done
}

/// Returns the key of a peer that is set and to be kept alive.
fn kept_alive(change: &PeerChange) -> Option<PublicKey> {
    match change {
        PeerChange::Set(peer) => peer.persistent_keepalive.map(|_| peer.public_key),
        PeerChange::Remove(_) => None,
    }
}

/// The error of an interface that has the name and is somebody else's.
fn foreign(link: &Link) -> io::Error {
    let kind = link.kind.as_ref().map_or_else(|| "physical".to_owned(), ToString::to_string);
    let reason = format!(
        "a {kind} interface of that name exists and is not this process's; remove it or set mesh.interface"
    );
    io::Error::new(io::ErrorKind::AlreadyExists, reason)
}
