//! Floods of strangers, and those who call honestly meanwhile.

use std::net::Ipv4Addr;

use super::super::caller::{Caller, forge, forged};
use super::*;
use crate::types::{PrivateKey, PublicKey};

const SECOND: Duration = Duration::from_secs(1);

struct Rig {
    door: Door,
    key: PublicKey,
    now: Instant,
    /// Number of the next forged message.
    next: u32,
}

impl Rig {
    fn new() -> Self {
        let private_key = PrivateKey::generate().unwrap();
        let now = Instant::now();
        let door = Door::new(Arc::new(Responder::new(&private_key)), now);
        Self { door, key: private_key.public(), now, next: 0 }
    }

    fn judge(&mut self, message: &[u8], sender: SocketAddr) -> Verdict {
        let kind = Message::of(message).unwrap();
        self.door.judge(kind, &Packet::copy_from(message), sender, self.now)
    }

    fn hears(&mut self, message: &[u8], sender: SocketAddr) -> bool {
        matches!(self.judge(message, sender), Verdict::Heard)
    }

    /// Forged initiations from addresses given by their number, for so long; returns how many were heard.
    fn flood(&mut self, time: Duration, each: u32, from: impl Fn(u32) -> SocketAddr) -> u32 {
        let mut heard = 0;
        for _ in 0..each {
            self.now += time / each;
            let message = forged(self.next, self.key);
            heard += u32::from(self.hears(&message, from(self.next)));
            self.next += 1;
        }
        heard
    }

    /// Calls until it is heard, and returns how often it had to.
    fn calls(&mut self, caller: &mut Caller, sender: SocketAddr) -> usize {
        (1..10)
            .find(|_| match self.judge(&caller.call(), sender) {
                Verdict::Heard => true,
                Verdict::Refused => panic!("refused"),
                Verdict::Demanded(demand) => {
                    caller.takes(&demand);
                    false
                }
            })
            .unwrap()
    }

    fn caller(&self) -> Caller {
        Caller::new(&PrivateKey::generate().unwrap(), self.key)
    }
}

fn anywhere(number: u32) -> SocketAddr {
    (Ipv4Addr::from(0x0a00_0000 + number), 7).into()
}

fn home(_: u32) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, 1), 51820).into()
}

#[test]
fn without_a_flood_everybody_is_heard_at_once() {
    let mut rig = Rig::new();
    for number in 0..200 {
        let mut caller = rig.caller();
        assert_eq!(rig.calls(&mut caller, home(number)), 1);
    }
}

#[test]
fn of_forged_initiations_from_anywhere_a_bounded_number_is_heard() {
    let mut rig = Rig::new();
    assert!((200..=400).contains(&rig.flood(SECOND, 2_000, anywhere)));
    for _ in 0..3 {
        assert!((100..=200).contains(&rig.flood(SECOND, 2_000, anywhere)));
    }
    assert!(rig.door.strange_addresses.0.len() <= 400);
}

#[test]
fn who_calls_honestly_during_a_flood_is_heard_at_the_second_attempt() {
    for from in [anywhere, home] {
        let mut rig = Rig::new();
        rig.flood(SECOND, 1_000, from);
        let mut caller = rig.caller();
        assert_eq!(rig.calls(&mut caller, home(0)), 2);
        for _ in 0..3 {
            // With the cookie that it has, 5 s later and during the same flood, from its own address perhaps.
            rig.flood(5 * SECOND, 2_000, from);
            assert_eq!(rig.calls(&mut caller, home(0)), 1);
        }
    }
}

#[test]
fn a_cookie_is_of_one_address() {
    let mut rig = Rig::new();
    rig.flood(SECOND, 1_000, anywhere);
    let mut caller = rig.caller();
    rig.calls(&mut caller, home(0));
    let elsewhere = (Ipv4Addr::new(192, 0, 2, 2), 51820).into();
    rig.flood(SECOND, 1_000, anywhere);
    assert!(matches!(rig.judge(&caller.call(), elsewhere), Verdict::Demanded(_)));
}

#[test]
fn copies_of_an_initiation_use_up_nothing() {
    let mut rig = Rig::new();
    let message = rig.caller().call();
    let heard = (0..1_000).filter(|number| rig.hears(&message, anywhere(*number))).count();
    assert_eq!(heard, 1);
    assert_eq!(rig.flood(SECOND, 100, anywhere), 100);
    // With a cookie neither: who has it is heard after a thousand copies of its own.
    rig.flood(SECOND, 1_000, anywhere);
    let mut caller = rig.caller();
    assert_eq!(rig.calls(&mut caller, home(0)), 2);
    let mut message = caller.call();
    for _ in 0..100 {
        rig.hears(&message, home(0));
    }
    message = caller.call();
    assert!(rig.hears(&message, home(0)));
}

#[test]
fn an_address_with_a_cookie_is_heard_so_often_and_does_not_hinder_others() {
    let mut rig = Rig::new();
    rig.flood(SECOND, 1_000, anywhere);
    let (mut greedy, mut other) = (rig.caller(), rig.caller());
    rig.calls(&mut greedy, home(0));
    let heard = (0..500).filter(|_| rig.hears(&greedy.call(), home(0))).count();
    assert!((30..100).contains(&heard), "{heard}");
    assert!(rig.calls(&mut other, anywhere(1)) <= 2);
}

#[test]
fn one_address_alone_does_not_use_up_what_there_is_for_all() {
    let mut rig = Rig::new();
    rig.flood(SECOND, 1_000, home);
    rig.flood(SECOND, 1_000, home);
    let mut caller = rig.caller();
    assert_eq!(rig.calls(&mut caller, anywhere(1)), 1);
}

#[test]
fn of_one_address_gotatun_sees_less_than_it_would_demand_a_cookie_for() {
    let mut rig = Rig::new();
    let mut caller = rig.caller();
    rig.flood(SECOND, 1_000, anywhere);
    rig.calls(&mut caller, home(0));
    rig.flood(2 * SECOND, 1_000, anywhere);
    for _ in 0..8 {
        let end = rig.now + Duration::from_millis(1_250);
        let mut seen = 0;
        while rig.now < end {
            let mut response = vec![3; 92];
            response[..8].copy_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0]);
            response[8..12].copy_from_slice(&rig.next.to_be_bytes());
            forge(&mut response, rig.key);
            seen += u32::from(rig.hears(&response, home(0)));
            seen += u32::from(rig.hears(&caller.call(), home(0)));
            seen += rig.flood(Duration::from_millis(2), 1, home);
            rig.flood(Duration::from_millis(3), 2, anywhere);
        }
        assert!((20..=100).contains(&seen), "{seen}");
    }
}

#[test]
fn responses_are_limited_during_a_flood_only_and_pass_with_a_cookie() {
    let mut rig = Rig::new();
    let response = |number: u32, key| {
        let mut response = vec![0; 92];
        response[0] = 2;
        response[8..12].copy_from_slice(&number.to_be_bytes());
        forge(&mut response, key);
        response
    };
    let key = rig.key;
    assert!((0..1_000).all(|number| rig.hears(&response(number, key), home(0))));
    rig.flood(SECOND, 1_000, anywhere);
    let heard = (0..1_000).filter(|number| rig.hears(&response(*number, key), home(0))).count();
    assert_eq!(heard, 35);
    assert!(matches!(rig.judge(&response(0, key), home(0)), Verdict::Demanded(_)));
    assert!(rig.hears(&response(0, key), anywhere(1)));
    rig.now += LOADED;
    assert!((0..1_000).all(|number| rig.hears(&response(number, key), home(0))));
}

#[test]
fn what_is_meant_for_another_key_is_not_answered() {
    let mut rig = Rig::new();
    let other = PrivateKey::generate().unwrap().public();
    for number in 0..1_000 {
        assert!(matches!(rig.judge(&forged(number, other), home(0)), Verdict::Refused));
    }
    assert_eq!(rig.flood(SECOND, 100, anywhere), 100);
}

#[test]
fn a_network_of_64_bits_counts_as_one_address() {
    let (mut addresses, now) = (Addresses::default(), Instant::now());
    let address = |network: u128, host: u128| {
        (Ipv6Addr::from_bits((0x2001_0db8 << 96) | (network << 64) | host), 1).into()
    };
    let taken = (0..1_000).filter(|host| addresses.take(address(1, *host), now)).count();
    assert_eq!(taken, 35);
    assert!(addresses.take(address(2, 1), now));
}

#[test]
fn no_more_than_so_many_addresses_are_told_apart_and_they_are_forgotten() {
    let (mut addresses, now) = (Addresses::default(), Instant::now());
    let taken = (0..20_000).filter(|number| addresses.take(anywhere(*number), now)).count();
    assert_eq!(taken, ADDRESSES);
    assert!(addresses.take(anywhere(0), now) && !addresses.take(anywhere(19_999), now));
    addresses.sweep(now + SECOND);
    assert_eq!(addresses.0.capacity(), 0);
}

#[test]
fn cookies_end_once_they_have_not_been_demanded_for_long() {
    let mut rig = Rig::new();
    rig.flood(SECOND, 1_000, anywhere);
    let mut caller = rig.caller();
    assert_eq!(rig.calls(&mut caller, home(0)), 2);
    rig.now += QUIET;
    rig.flood(SECOND, 1_000, anywhere);
    assert_eq!(rig.calls(&mut caller, home(0)), 2);
}
