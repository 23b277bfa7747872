//! The gate between gotatun and its peers: packets go past it on their way into gotatun and out of it, and a peer that is
//! asleep is woken, which is to say added to gotatun, before the packet that is for it or from it goes on.
//!
//! # Why nothing goes wrong
//!
//! - *One order.* Who is asleep changes only inside [`Device::write`], together with gotatun's peers, or in a step that
//!   leaves gotatun as it is: edits, waking and falling asleep happen one after the other, and who reads gotatun's peers
//!   ([`Device::read`]) finds the roster to match. The roster's own lock is held for one call of it and never across an
//!   await, and is the last one taken. A peer that was removed while somebody waited to wake it is not in the roster any
//!   more when its turn comes.
//! - *No deadlock.* Waking waits for gotatun's device lock, in the two tasks that read the TUN interface and the socket.
//!   Those hold no lock of the device (`BufferedIpRecv`, `BufferedUdpReceive`; the first holds the mutex of its reader,
//!   which only the next such task waits for). Who holds the device lock never waits for them: `handle_incoming`,
//!   `handle_outgoing` and `handle_timers` hold it for reading while they wait for queues that lead *out*, to the socket and
//!   to the TUN interface, and those are emptied by tasks without locks. `Connection::set_up` and `Device::suspend` hold
//!   it for writing while the tasks are *aborted*, the two readers among them: a reader that waits for the lock is
//!   dropped where it waits, which is before anything was changed, as what is done under the lock does not wait.
//! - *No packet is lost.* A packet from the TUN interface stays with its [`Reader`](super::tun::Reader) until its peer is
//!   awake, and the reader outlives the task that is aborted. A peer without a session queues packets in gotatun. An
//!   initiation may be lost, as any datagram; who sent it repeats it.
//! - *No packet goes astray.* gotatun judges addresses by the peers that it knows. A packet to a peer that is asleep is not
//!   handed on before it is awake, and one from an address that belongs to a peer that is asleep is dropped.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use gotatun::device::configure::DeviceWrite;
use tokio::time::Instant;

use super::convert::peer_from;
use super::dormant::{Call, Roster, Way};
use super::initiation::Responder;
use super::{Device, Transports};
use crate::types::{PrivateKey, PublicKey};

/// The address of the packet that went past last, and the [`Gate::version`] of that time: one flow asks once.
#[derive(Debug, Default)]
pub(super) struct Passed(Option<(IpAddr, u64)>);

/// The roster of a device, and what the packets need of it.
pub(super) struct Gate {
    roster: Mutex<Roster>,
    /// Counts what could make of a packet that may pass one that may not.
    version: AtomicU64,
    /// Whether any peer may sleep: if none may, nothing is looked at.
    watches: AtomicBool,
    responder: Mutex<Option<Arc<Responder>>>,
    device: OnceLock<Weak<Device>>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            roster: Mutex::default(),
            version: AtomicU64::new(0),
            watches: AtomicBool::new(false),
            responder: Mutex::default(),
            device: OnceLock::new(),
        }
    }

    /// Says which device this is the gate of, once.
    pub(super) fn lead_to(&self, device: &Arc<Device>) {
        let _ = self.device.set(Arc::downgrade(device));
    }

    /// Says with which key the device is called from now on.
    pub(super) fn answer_to(&self, private_key: &PrivateKey) {
        let responder = Arc::new(Responder::new(private_key));
        *self.responder.lock().unwrap_or_else(PoisonError::into_inner) = Some(responder);
    }

    /// Reads or changes the roster. Where gotatun's peers change with it, inside [`Device::write`].
    pub(super) fn roster<T>(&self, use_it: impl FnOnce(&mut Roster) -> T) -> T {
        let mut roster = self.lock();
        let result = use_it(&mut roster);
        self.version.fetch_add(1, Ordering::Release);
        self.watches.store(roster.has_sleepers(), Ordering::Release);
        result
    }

    fn lock(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns where a packet to `destination` may go.
    pub(super) fn way(&self, destination: IpAddr, passed: &mut Passed) -> Way {
        let mut way = Way::Open;
        self.unless_passed(destination, passed, |roster| {
            way = roster.way(destination);
            way == Way::Open
        });
        way
    }

    /// Returns whether a packet that gotatun took may be from `source`.
    pub(super) fn may_send(&self, source: IpAddr, passed: &mut Passed) -> bool {
        self.unless_passed(source, passed, |roster| roster.may_send(source))
    }

    /// Asks the roster about `address` unless it was the last one that passed and nothing has changed since.
    fn unless_passed(&self, address: IpAddr, passed: &mut Passed, ask: impl FnOnce(&Roster) -> bool) -> bool {
        if !self.watches.load(Ordering::Acquire) {
            return true;
        }
        // Read before the roster: what changes in between makes the next packet ask again.
        let now = (address, self.version.load(Ordering::Acquire));
        if passed.0 == Some(now) {
            return true;
        }
        let may = ask(&self.lock());
        passed.0 = may.then_some(now);
        may
    }

    /// Returns whether initiations are to be looked at.
    pub(super) fn watches(&self) -> bool {
        self.watches.load(Ordering::Acquire)
    }

    /// Returns who reads the initiations, once there is a key.
    pub(super) fn responder(&self) -> Option<Arc<Responder>> {
        self.responder.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether an initiation may go on to gotatun, and who is to be woken first. Costs what it would cost gotatun:
    /// what is not authentic is refused at the same step as there, and goes no further.
    pub(super) fn call(&self, responder: &Responder, initiation: &[u8]) -> Call {
        let Some(caller) = responder.caller(initiation) else { return Call::Refused };
        if !self.lock().contains(&caller.public_key) {
            return Call::Refused;
        }
        let Some(stamp) = responder.stamp(&caller, initiation) else { return Call::Refused };
        self.lock().call(&caller.public_key, stamp, Instant::now())
    }

    /// Wakes a peer; one that is awake stays so, one that is gone stays gone. May be dropped while it waits: then nothing
    /// has happened. Boxed, as the compiler cannot see through a device whose transports hold its own futures.
    pub(super) fn wake(&self, key: PublicKey) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let Some(device) = self.device.get().and_then(Weak::upgrade) else { return };
            let woken = device
                .write(async |device: &mut DeviceWrite<'_, Transports>| {
                    if let Some(config) = self.roster(|roster| roster.wake(&key, Instant::now())) {
                        device.add_peer(peer_from(&config));
                        tracing::debug!(peer = %key, "peer woken");
                    }
                })
                .await;
            if let Err(error) = woken {
                tracing::debug!(%error, peer = %key, "waking failed");
            }
        })
    }
}
