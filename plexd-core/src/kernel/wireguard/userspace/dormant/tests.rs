//! The roster against a model that does not sleep: whatever happens, who looks sees the same.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;

use super::*;
use crate::types::PresharedKey;

const MINUTE: Duration = Duration::from_mins(1);

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, 1), port).into()
}

fn config(number: u8) -> PeerConfig {
    PeerConfig {
        public_key: key(number),
        preshared_key: Some(PresharedKey::from_bytes([number; 32])),
        endpoint: Some(at(1)),
        allowed_ips: [IpNet::from(address(number))].into(),
        persistent_keepalive: None,
    }
}

/// gotatun, as far as it is told of peers.
#[derive(Debug, Default)]
struct Device(BTreeMap<PublicKey, ObservedPeer>);

impl Device {
    fn add(&mut self, config: PeerConfig) {
        let peer = ObservedPeer {
            preshared_key: config.preshared_key,
            endpoint: config.endpoint,
            allowed_ips: config.allowed_ips,
            persistent_keepalive: config.persistent_keepalive,
            ..ObservedPeer::default()
        };
        assert!(self.0.insert(config.public_key, peer).is_none(), "added twice");
    }

    fn carry_out(&mut self, edit: Edit) {
        match edit {
            Edit::Add(config) => self.add(config),
            Edit::Remove(key) => assert!(self.0.remove(&key).is_some()),
            Edit::Modify(modification) => {
                let peer = self.0.get_mut(&modification.public_key).expect("only those that are there");
                if let Member::Set(preshared_key) = modification.preshared_key {
                    peer.preshared_key = preshared_key;
                }
                if let Member::Set(endpoint) = modification.endpoint {
                    peer.endpoint = Some(endpoint);
                }
                if let Member::Set(allowed_ips) = modification.allowed_ips {
                    peer.allowed_ips = allowed_ips;
                }
                if let Member::Set(keepalive) = modification.persistent_keepalive {
                    peer.persistent_keepalive = keepalive;
                }
            }
        }
    }
}

/// Roster and device, in step.
#[derive(Default)]
struct Rig {
    roster: Roster,
    device: Device,
}

impl Rig {
    fn apply(&mut self, change: &PeerChange, now: Instant) {
        for edit in self.roster.edits(change, now) {
            self.device.carry_out(edit);
        }
    }

    fn wake(&mut self, key: &PublicKey, now: Instant) {
        if let Some(config) = self.roster.wake(key, now) {
            self.device.add(config);
        }
    }

    fn tend(&mut self, now: Instant) {
        for key in self.roster.look(&self.device.0, now, IDLE) {
            if self.roster.fall_asleep(&key, &self.device.0[&key]) {
                self.device.0.remove(&key);
            }
        }
    }

    /// As the gate does.
    fn observe(&mut self, now: Instant) -> BTreeMap<PublicKey, ObservedPeer> {
        let mut peers = self.device.0.clone();
        let agrees = |(key, peer)| self.roster.agrees(key, peer);
        if self.roster.awake() != peers.len() || !peers.iter().all(agrees) {
            self.roster.correct(&peers, now);
        }
        for (key, peer) in &mut peers {
            self.roster.complete(key, peer, now);
        }
        let mut last = None;
        loop {
            let some = self.roster.asleep(last, 2, now);
            peers.extend(some.peers);
            last = some.last;
            if last.is_none() {
                return peers;
            }
        }
    }

    /// Looks, and has changes applied before those that are tired fall asleep.
    fn tend_slowly(&mut self, changes: &[PeerChange], now: Instant) {
        let seen = self.device.0.clone();
        let tired = self.roster.look(&seen, now, IDLE);
        for change in changes {
            self.apply(change, now);
        }
        for key in tired {
            if self.roster.fall_asleep(&key, &seen[&key]) {
                self.device.0.remove(&key);
            }
        }
    }

    /// Looks as often as it takes a peer that is idle to fall asleep.
    fn pass(&mut self, now: Instant) -> Instant {
        self.tend(now + IDLE);
        self.tend(now + IDLE + MINUTE);
        now + IDLE + MINUTE
    }

    fn awake(&self) -> Vec<PublicKey> {
        self.device.0.keys().copied().collect()
    }
}

#[test]
fn a_peer_is_asleep_until_a_packet_is_for_it_and_again_once_it_is_idle() {
    let (mut rig, now) = (Rig::default(), Instant::now());
    rig.apply(&PeerChange::Set(config(1)), now);
    assert_eq!((rig.awake(), rig.roster.way(address(1))), (vec![], Way::Wake(key(1))));
    rig.wake(&key(1), now);
    assert_eq!((rig.awake(), rig.roster.way(address(1))), (vec![key(1)], Way::Open));
    rig.tend(now + IDLE - MINUTE);
    assert_eq!(rig.roster.way(address(1)), Way::Open);
    rig.tend(now + IDLE);
    // Drowsy: to be woken, and still able to send.
    assert_eq!((rig.awake(), rig.roster.way(address(1))), (vec![key(1)], Way::Wake(key(1))));
    assert!(rig.roster.may_send(address(1)));
    rig.tend(now + IDLE + MINUTE);
    assert_eq!((rig.awake(), rig.roster.way(address(1))), (vec![], Way::Wake(key(1))));
    assert!(!rig.roster.may_send(address(1)));
}

#[test]
fn whatever_is_counted_and_any_session_keeps_a_peer_awake() {
    let (mut rig, now) = (Rig::default(), Instant::now());
    rig.apply(&PeerChange::Set(config(1)), now);
    rig.wake(&key(1), now);
    let handshake = |rig: &mut Rig, time| rig.device.0.get_mut(&key(1)).unwrap().last_handshake = time;
    handshake(&mut rig, Some(SystemTime::now()));
    let now = rig.pass(now);
    assert_eq!(rig.awake(), [key(1)]);
    handshake(&mut rig, None);
    rig.tend(now);
    // On its way when the peer became drowsy.
    rig.device.0.get_mut(&key(1)).unwrap().tx_bytes += 148;
    rig.tend(now + MINUTE);
    rig.tend(now + IDLE);
    assert_eq!((rig.awake(), rig.roster.way(address(1))), (vec![key(1)], Way::Open));
    rig.pass(now + MINUTE);
    assert!(rig.awake().is_empty());
    assert!(rig.observe(now)[&key(1)].last_handshake.is_some(), "gotatun forgot it, the roster does not");
}

#[test]
fn what_is_counted_between_two_looks_at_a_drowsy_peer_keeps_it_awake() {
    let (mut rig, now) = (Rig::default(), Instant::now());
    rig.apply(&PeerChange::Set(config(1)), now);
    rig.wake(&key(1), now);
    rig.tend(now + IDLE);
    let tired = rig.roster.look(&rig.device.0, now + IDLE + MINUTE, IDLE);
    assert_eq!(tired, [key(1)]);
    rig.device.0.get_mut(&key(1)).unwrap().tx_bytes += 148;
    assert!(!rig.roster.fall_asleep(&key(1), &rig.device.0[&key(1)]));
    rig.wake(&key(1), now);
    assert!(!rig.roster.fall_asleep(&key(1), &rig.device.0[&key(1)]));
}

#[test]
fn what_is_changed_of_a_peer_that_is_just_falling_asleep_keeps_it_awake_and_counts() {
    let kept = PeerConfig { persistent_keepalive: NonZeroU16::new(25), ..config(1) };
    let moved = PeerConfig { endpoint: Some(at(2)), ..config(1) };
    let secret = PeerConfig { preshared_key: None, ..config(1) };
    for changed in [kept, moved, secret] {
        let (mut rig, now) = (Rig::default(), Instant::now());
        rig.apply(&PeerChange::Set(PeerConfig { endpoint: None, ..config(1) }), now);
        rig.apply(&PeerChange::Set(config(1)), now);
        rig.wake(&key(1), now);
        rig.tend(now + IDLE);
        let later = now + IDLE + MINUTE;
        rig.tend_slowly(&[PeerChange::Set(changed.clone())], later);
        assert_eq!((rig.awake(), rig.roster.way(address(1))), (vec![key(1)], Way::Open));
        let seen = rig.observe(later).remove(&key(1)).unwrap();
        assert_eq!((seen.endpoint, seen.preshared_key), (changed.endpoint, changed.preshared_key));
        // It is idle from now on, and not since it was before.
        rig.tend(later + MINUTE);
        rig.tend(later + 2 * MINUTE);
        assert_eq!(rig.awake(), [key(1)]);
    }
}

#[test]
fn who_has_to_stay_awake_does_not_fall_asleep_whatever_was_seen_before() {
    let (mut rig, now) = (Rig::default(), Instant::now());
    rig.apply(&PeerChange::Set(config(1)), now);
    rig.wake(&key(1), now);
    rig.tend(now + IDLE);
    let kept = PeerConfig { persistent_keepalive: NonZeroU16::new(25), ..config(1) };
    rig.roster.known.edits(&PeerChange::Set(kept));
    assert!(!rig.roster.fall_asleep(&key(1), &rig.device.0[&key(1)]));
}

#[test]
fn what_can_only_let_more_packets_pass_makes_none_ask_again() {
    let (mut rig, now) = (Rig::default(), Instant::now());
    rig.apply(&PeerChange::Set(config(1)), now);
    let version = rig.roster.version();
    rig.observe(now);
    rig.roster.call(&key(1), Stamp::of(1), now);
    rig.wake(&key(1), now);
    rig.observe(now);
    rig.tend(now);
    rig.apply(&PeerChange::Remove(key(2)), now);
    assert_eq!(rig.roster.version(), version);
    for later in [IDLE, IDLE + MINUTE] {
        let before = rig.roster.version();
        rig.tend(now + later);
        assert_ne!(rig.roster.version(), before);
    }
    let version = rig.roster.version();
    rig.apply(&PeerChange::Remove(key(1)), now);
    assert_ne!(rig.roster.version(), version);
}

#[test]
fn a_handshake_stays_where_it_was_when_the_clock_is_set() {
    let (now, wall) = (Instant::now(), SystemTime::now());
    let said = wall - Duration::from_secs(30);
    let handshake = Handshake::new(said, now);
    assert_eq!(handshake.time(now), said);
    assert!(handshake.is(&Handshake::new(said + Duration::from_millis(300), now)));
    assert!(!handshake.is(&Handshake::new(said + Duration::from_secs(3), now)));
    // It was said when the clock was an hour ahead.
    let ahead = Handshake { said: said + Duration::from_hours(1), ..handshake };
    let difference = said.duration_since(ahead.time(now)).unwrap_or_else(|error| error.duration());
    assert!(difference < Duration::from_secs(1) && ahead.is(&handshake));
}

#[test]
fn who_is_to_be_kept_alive_is_awake_as_soon_as_it_is_known_where_it_is() {
    let (mut rig, now) = (Rig::default(), Instant::now());
    let kept = PeerConfig { persistent_keepalive: NonZeroU16::new(25), ..config(1) };
    rig.apply(&PeerChange::Set(PeerConfig { endpoint: None, ..kept.clone() }), now);
    assert_eq!((rig.awake(), rig.roster.way(address(1))), (vec![], Way::Closed));
    rig.apply(&PeerChange::Set(kept.clone()), now);
    assert_eq!(rig.awake(), [key(1)]);
    let now = rig.pass(now);
    assert_eq!((rig.awake(), rig.roster.way(address(1))), (vec![key(1)], Way::Open));
    rig.apply(&PeerChange::Set(PeerConfig { persistent_keepalive: None, ..kept }), now);
    rig.pass(now);
    assert!(rig.awake().is_empty());
}

#[test]
fn only_a_later_initiation_of_a_peer_counts_asleep_or_not() {
    let (mut rig, now) = (Rig::default(), Instant::now());
    assert_eq!(rig.roster.call(&key(1), Stamp::of(1), now), Call::Refused);
    rig.apply(&PeerChange::Set(config(1)), now);
    assert_eq!(rig.roster.call(&key(1), Stamp::of(2), now), Call::Wakes(key(1)));
    rig.wake(&key(1), now);
    assert_eq!(rig.roster.call(&key(1), Stamp::of(2), now), Call::Refused);
    assert_eq!(rig.roster.call(&key(1), Stamp::of(3), now), Call::Expected);
    let now = rig.pass(now);
    assert_eq!(rig.roster.call(&key(1), Stamp::of(3), now), Call::Refused);
    assert_eq!(rig.roster.call(&key(1), Stamp::of(4), now), Call::Wakes(key(1)));
    rig.apply(&PeerChange::Remove(key(1)), now);
    rig.wake(&key(1), now);
    assert!(rig.awake().is_empty());
}

#[test]
fn a_change_that_was_broken_off_is_made_up_for() {
    let (mut rig, now) = (Rig::default(), Instant::now());
    let kept = PeerConfig { persistent_keepalive: NonZeroU16::new(25), ..config(1) };
    // Told, and never carried out.
    rig.roster.edits(&PeerChange::Set(kept.clone()), now);
    assert!(rig.observe(now).is_empty());
    rig.apply(&PeerChange::Set(kept), now);
    assert_eq!(rig.awake(), [key(1)]);
    rig.roster.edits(&PeerChange::Remove(key(1)), now);
    assert_eq!(rig.observe(now).len(), 1);
    rig.apply(&PeerChange::Remove(key(1)), now);
    assert!(rig.observe(now).is_empty() && rig.awake().is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Set(PeerConfig),
    Remove(u8),
    /// A packet to an address.
    Packet(u8),
    /// An initiation, from an endpoint.
    Call(u8, u16),
    /// Bytes of a peer, if it is awake.
    Bytes(u8),
    Wait,
    /// Waiting, and a change between the look at the peers and the moment at which they fall asleep.
    WaitAndSet(PeerConfig),
}

fn step() -> impl Strategy<Value = Step> {
    let nets = proptest::collection::btree_set((0_u8..8, 29_u8..=32), 0..3);
    let set = (0_u8..4, 0_u8..2, proptest::option::of(1_u16..3), nets, proptest::option::of(Just(25)));
    let set = set.prop_map(|(number, secret, port, nets, keepalive)| PeerConfig {
        public_key: key(number),
        preshared_key: Some(PresharedKey::from_bytes([secret; 32])),
        endpoint: port.map(at),
        allowed_ips: nets
            .into_iter()
            .map(|(last, length)| Ipv4Net::new(Ipv4Addr::new(10, 0, 0, last), length).unwrap().trunc().into())
            .collect(),
        persistent_keepalive: keepalive.and_then(NonZeroU16::new),
    });
    prop_oneof![
        2 => set.clone().prop_map(Step::WaitAndSet),
        4 => set.prop_map(Step::Set),
        1 => (0_u8..4).prop_map(Step::Remove),
        4 => (0_u8..8).prop_map(Step::Packet),
        2 => (0_u8..4, 3_u16..5).prop_map(|(number, port)| Step::Call(number, port)),
        2 => (0_u8..4).prop_map(Step::Bytes),
        5 => Just(Step::Wait),
    ]
}

/// The peers of a device that knows all of them always.
#[derive(Debug, Default)]
struct Sleepless(BTreeMap<PublicKey, ObservedPeer>);

impl Sleepless {
    fn set(&mut self, config: &PeerConfig) {
        for (_, other) in self.0.iter_mut().filter(|(key, _)| **key != config.public_key) {
            other.allowed_ips.retain(|net| !config.allowed_ips.contains(net));
        }
        let peer = self.0.entry(config.public_key).or_default();
        peer.preshared_key.clone_from(&config.preshared_key);
        peer.endpoint = config.endpoint.or(peer.endpoint);
        peer.allowed_ips.clone_from(&config.allowed_ips);
        peer.persistent_keepalive = config.persistent_keepalive;
    }

    fn owner(&self, address: IpAddr) -> Option<PublicKey> {
        let nets = self.0.iter().flat_map(|(key, peer)| peer.allowed_ips.iter().map(move |net| (net, key)));
        let around = nets.filter(|(net, _)| net.contains(&address));
        around.max_by_key(|(net, _)| net.prefix_len()).map(|(_, key)| *key)
    }
}

proptest! {
    #[test]
    fn nobody_sees_who_sleeps(steps in proptest::collection::vec(step(), 1..60)) {
        let (mut rig, mut model, mut now) = (Rig::default(), Sleepless::default(), Instant::now());
        for (second, step) in (1_u8..).zip(steps) {
            match step {
                Step::Set(config) => {
                    model.set(&config);
                    let before: BTreeSet<PublicKey> = rig.awake().into_iter().collect();
                    rig.apply(&PeerChange::Set(config.clone()), now);
                    let endpoint = model.0[&config.public_key].endpoint;
                    let woken = rig.awake().into_iter().filter(|key| !before.contains(key));
                    for key in woken {
                        prop_assert!(key == config.public_key && stays_awake(&config, endpoint));
                    }
                }
                Step::Remove(number) => {
                    model.0.remove(&key(number));
                    rig.apply(&PeerChange::Remove(key(number)), now);
                }
                Step::Packet(last) => {
                    let owner = model.owner(address(last));
                    match rig.roster.way(address(last)) {
                        Way::Wake(key) => {
                            prop_assert_eq!(Some(key), owner);
                            rig.wake(&key, now);
                        }
                        Way::Closed => prop_assert!(model.0[&owner.unwrap()].endpoint.is_none()),
                        Way::Open => prop_assert!(owner.is_none_or(|key| rig.device.0.contains_key(&key))),
                    }
                }
                Step::Call(number, port) => match rig.roster.call(&key(number), Stamp::of(second), now) {
                    Call::Refused => prop_assert!(!model.0.contains_key(&key(number))),
                    call => {
                        if let Call::Wakes(key) = call {
                            rig.wake(&key, now);
                        }
                        for peers in [&mut rig.device.0, &mut model.0] {
                            let peer = peers.get_mut(&key(number)).unwrap();
                            peer.endpoint = Some(at(port));
                            peer.rx_bytes += 148;
                        }
                    }
                },
                Step::Bytes(number) => if let Some(peer) = rig.device.0.get_mut(&key(number)) {
                    for peer in [peer, model.0.get_mut(&key(number)).unwrap()] {
                        peer.rx_bytes += 1;
                        peer.tx_bytes += 2;
                    }
                },
                Step::Wait => {
                    now += MINUTE;
                    rig.tend(now);
                }
                Step::WaitAndSet(config) => {
                    now += MINUTE;
                    model.set(&config);
                    rig.tend_slowly(&[PeerChange::Set(config)], now);
                }
            }
            for (key, peer) in model.0.iter().filter(|(_, peer)| peer.persistent_keepalive.is_some()) {
                prop_assert!(peer.endpoint.is_none() || rig.device.0.contains_key(key));
            }
            for last in 0..8 {
                let awake = model.owner(address(last)).is_none_or(|key| rig.device.0.contains_key(&key));
                prop_assert_eq!(rig.roster.may_send(address(last)), awake);
            }
            prop_assert_eq!(rig.observe(now), model.0.clone());
        }
    }
}
