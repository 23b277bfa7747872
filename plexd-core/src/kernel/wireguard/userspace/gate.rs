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
//!   Those hold no lock of the device (`BufferedIpRecv`, `BufferedUdpReceive`; the first holds the mutex of its reader).
//!   Who holds the device lock never waits for them: `handle_incoming`, `handle_outgoing` and `handle_timers` hold it for
//!   reading while they wait for queues that lead *out*, to the socket and to the TUN interface, and those are emptied by
//!   tasks without locks. `Connection::set_up` and `Device::suspend` hold it for writing while the tasks are *aborted*, the
//!   two readers among them: a reader that waits for the lock is dropped where it waits, which is before anything was
//!   changed, as what is done under the lock does not wait. Then `set_up` waits for the mutex of the TUN reader, still with
//!   the lock held; that mutex is free, as the task that had it has ended.
//! - *The packet that wakes is not lost.* One from the TUN interface stays with its [`Reader`](super::tun::Reader) until its
//!   peer is awake, and the reader outlives the task that is aborted. (Those that such a task had handed on already are lost
//!   with it, as they are without a gate.) A peer without a session queues packets in gotatun. An initiation may be lost, as
//!   any datagram; who sent it repeats it.
//! - *No packet goes astray.* gotatun judges addresses by the peers that it knows. A packet to a peer that is asleep is not
//!   handed on before it is awake, and one from an address that belongs to a peer that is asleep is dropped. One that another
//!   peer, with a network around that address, sent just before is not, if the peer wakes while it is on its way to the TUN
//!   interface: by then gotatun has taken it, and nothing shows from whom.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use gotatun::device::configure::DeviceWrite;
use tokio::time::Instant;

use super::convert::peer_from;
use super::dormant::{Call, Roster, Way};
use super::initiation::Responder;
use super::{Device, Transports};
use crate::kernel::ObservedPeer;
use crate::types::{PrivateKey, PublicKey};

/// Peers looked at while the roster is locked: packets may wait for it.
const AT_ONCE: usize = 256;

/// Addresses of packets that went past lately, and the [`Gate::version`] of that time: flows ask once each.
#[derive(Debug, Default)]
pub(super) struct Passed([Option<(IpAddr, u64)>; 16]);

impl Passed {
    fn slot(&mut self, address: IpAddr) -> &mut Option<(IpAddr, u64)> {
        let last = match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        &mut self.0[usize::from(last) % 16]
    }
}

/// The roster of a device, and what the packets need of it.
pub(super) struct Gate {
    roster: RwLock<Roster>,
    /// That of the roster, for who does not lock it.
    version: AtomicU64,
    /// Whether any peer may sleep: if none may, no packet is looked at.
    watches: AtomicBool,
    responder: Mutex<Option<Arc<Responder>>>,
    device: OnceLock<Weak<Device>>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            roster: RwLock::default(),
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

    /// Reads the roster.
    pub(super) fn read<T>(&self, use_it: impl FnOnce(&Roster) -> T) -> T {
        use_it(&self.roster.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the roster. Where gotatun's peers change with it, inside [`Device::write`].
    pub(super) fn change<T>(&self, use_it: impl FnOnce(&mut Roster) -> T) -> T {
        let mut roster = self.roster.write().unwrap_or_else(PoisonError::into_inner);
        let result = use_it(&mut roster);
        self.version.store(roster.version(), Ordering::Release);
        self.watches.store(roster.has_sleepers(), Ordering::Release);
        result
    }

    /// Returns all peers as they are, given those that gotatun knows. Inside [`Device::read`], so that nobody falls asleep or
    /// wakes meanwhile.
    pub(super) fn observe(
        &self,
        mut awake: BTreeMap<PublicKey, ObservedPeer>,
        now: Instant,
    ) -> BTreeMap<PublicKey, ObservedPeer> {
        let mut seen: Vec<(&PublicKey, &mut ObservedPeer)> = awake.iter_mut().collect();
        let agrees = self.read(|roster| roster.awake() == seen.len())
            && seen
                .chunks(AT_ONCE)
                .all(|some| self.read(|roster| some.iter().all(|(key, peer)| roster.agrees(key, peer))));
        if !agrees {
            drop(seen);
            self.change(|roster| roster.correct(&awake, now));
            seen = awake.iter_mut().collect();
        }
        for some in seen.chunks_mut(AT_ONCE) {
            self.change(|roster| some.iter_mut().for_each(|(key, peer)| roster.complete(key, peer, now)));
        }
        drop(seen);
        let (mut peers, mut last) = (BTreeMap::new(), None);
        loop {
            let some = self.read(|roster| roster.asleep(last, AT_ONCE, now));
            last = some.last;
            peers.extend(some.peers);
            if last.is_none() {
                break;
            }
        }
        peers.append(&mut awake);
        peers
    }

    /// Looks at the peers that gotatun knows, and returns those that may fall asleep. Inside [`Device::read`].
    pub(super) fn look(
        &self,
        awake: &BTreeMap<PublicKey, ObservedPeer>,
        now: Instant,
        idle: Duration,
    ) -> Vec<PublicKey> {
        let awake: Vec<(&PublicKey, &ObservedPeer)> = awake.iter().collect();
        let look = |some: &[_]| self.change(|roster| roster.look(some.iter().copied(), now, idle));
        awake.chunks(AT_ONCE).flat_map(look).collect()
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

    /// Asks the roster about `address` unless it was one of the last that passed and nothing has changed since.
    fn unless_passed(&self, address: IpAddr, passed: &mut Passed, ask: impl FnOnce(&Roster) -> bool) -> bool {
        if !self.watches.load(Ordering::Acquire) {
            return true;
        }
        // Read before the roster: what changes in between makes the next packet ask again.
        let now = (address, self.version.load(Ordering::Acquire));
        let passed = passed.slot(address);
        if *passed == Some(now) {
            return true;
        }
        let may = self.read(ask);
        *passed = may.then_some(now);
        may
    }

    /// Returns who reads the initiations, once there is a key.
    pub(super) fn responder(&self) -> Option<Arc<Responder>> {
        self.responder.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether an initiation that the [door](super::door::Door) let pass may go on to gotatun, and who is to be woken
    /// first. Costs at most what it would cost gotatun: what is not authentic is refused at the same step as there, and goes
    /// no further. Initiations of peers that are awake as well, and while nobody sleeps: their times are to be known when
    /// they fall asleep.
    pub(super) fn call(&self, responder: &Responder, initiation: &[u8]) -> Call {
        let Some(caller) = responder.caller(initiation) else { return Call::Refused };
        if !self.read(|roster| roster.contains(&caller.public_key)) {
            return Call::Refused;
        }
        let Some(stamp) = responder.stamp(&caller, initiation) else { return Call::Refused };
        self.change(|roster| roster.call(&caller.public_key, stamp, Instant::now()))
    }

    /// Wakes a peer; one that is awake stays so, one that is gone stays gone. May be dropped while it waits: then nothing
    /// has happened. Boxed, as the compiler cannot see through a device whose transports hold its own futures.
    pub(super) fn wake(&self, key: PublicKey) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let Some(device) = self.device.get().and_then(Weak::upgrade) else { return };
            let woken = device
                .write(async |device: &mut DeviceWrite<'_, Transports>| {
                    if let Some(config) = self.change(|roster| roster.wake(&key, Instant::now())) {
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
