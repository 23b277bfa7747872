//! Peers of the embedded WireGuard that are asleep: what wakes them, what does not, and what is seen of them.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use gotatun::noise::Tunn;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::x25519;
use plexd_core::kernel::{DeviceConfig, PeerChange, PeerConfig, WireGuard};
use plexd_core::types::{PresharedKey, PrivateKey, PublicKey};
use tokio::task::AbortHandle;

use crate::node::{Node, PORT, joined, pair};

/// Two nodes whose peers go to sleep soon.
fn tired_pair() -> (Node, Node) {
    let idle = Duration::from_secs(2);
    joined(Node::with_idle(1, idle), Node::with_idle(2, idle))
}

fn until_asleep(nodes: [&Node; 2]) {
    for node in nodes {
        node.eventually("nobody is awake", |node| node.awake() == 0);
    }
}

/// Sends one packet and no second one.
fn pings_once(node: &Node, target: &str) {
    let pinged = node.namespace.command(&format!("ping -n -c 1 -W 10 {target}"));
    assert!(pinged.contains("1 packets transmitted, 1 received"), "{pinged}");
}

/// An initiation of `from` with `to`.
fn initiation(from: &PrivateKey, to: &Node) -> Vec<u8> {
    let limiter = RateLimiter::new(&x25519::PublicKey::from(*from.public().as_bytes()), 100);
    let (own, other) = ((*from.as_bytes()).into(), (*to.key.public().as_bytes()).into());
    let mut tunnel = Tunn::new(own, other, None, None, IndexTable::from_os_rng(), Arc::new(limiter));
    tunnel.format_handshake_initiation(true).unwrap().into_bytes().to_vec()
}

/// How long an answer that is to come may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait for one that is not to come.
const ENOUGH: Duration = Duration::from_millis(500);

/// Sends `datagram` from `port` of a node to `to`, and returns whether anything came back in time.
fn is_answered(node: &Node, port: u16, to: &Node, (datagram, time): (&[u8], Duration)) -> bool {
    let (target, datagram) = (to.reached_at(), datagram.to_vec());
    node.namespace.run(move || async move {
        let socket = tokio::net::UdpSocket::bind(("0.0.0.0", port)).await.unwrap();
        socket.send_to(&datagram, target).await.unwrap();
        let mut answer = [0; 200];
        tokio::time::timeout(time, socket.recv_from(&mut answer)).await.is_ok()
    })
}

#[test]
fn root_a_packet_wakes_both_ends_and_is_not_lost() {
    let (first, second) = pair();
    assert_eq!((first.awake(), second.awake()), (0, 0));
    pings_once(&first, &second.mesh_ip());
    assert_eq!((first.awake(), second.awake()), (1, 1));
    let seen = second.observe_peer(first.key.public());
    assert!(seen.last_handshake.is_some() && seen.rx_bytes > 0);
}

#[test]
fn root_a_peer_that_is_asleep_is_shown_as_any_other() {
    let (first, second) = pair();
    let (peer, seen) = (first.peer(&second), first.observe_peer(second.key.public()));
    assert_eq!((seen.endpoint, &seen.allowed_ips), (peer.endpoint, &peer.allowed_ips));
    assert_eq!((seen.preshared_key, seen.last_handshake), (peer.preshared_key, None));
    let shown = first.namespace.command("wg show plexd0 dump");
    let peer: Vec<&str> = shown.lines().nth(1).unwrap().split('\t').collect();
    assert_eq!(peer[0], second.key.public().to_string());
    assert_eq!(&peer[1..], ["(none)", "192.0.2.2:51820", "10.100.0.2/32", "0", "0", "0", "off"]);
    assert_eq!(first.awake(), 0);
}

#[test]
fn root_changes_of_a_peer_that_is_asleep_count_once_it_wakes() {
    let (first, second) = pair();
    let shared =
        |peer: PeerConfig| PeerConfig { preshared_key: Some(PresharedKey::from_bytes([9; 32])), ..peer };
    let wide =
        |peer: PeerConfig| PeerConfig { allowed_ips: ["10.100.0.0/24".parse().unwrap()].into(), ..peer };
    first.apply(vec![PeerChange::Set(wide(shared(first.peer(&second))))]);
    second.apply(vec![PeerChange::Set(shared(second.peer(&first)))]);
    assert_eq!((first.awake(), second.awake()), (0, 0));
    let seen = first.observe_peer(second.key.public());
    assert_eq!(seen.allowed_ips, wide(first.peer(&second)).allowed_ips);
    pings_once(&first, &second.mesh_ip());
}

#[test]
fn root_a_peer_removed_while_asleep_is_not_woken() {
    let (first, second) = pair();
    second.apply(vec![PeerChange::Remove(first.key.public())]);
    let lost = first.namespace.command(&format!("ping -n -c 1 -W 1 {} || true", second.mesh_ip()));
    assert!(lost.contains("100% packet loss"), "{lost}");
    assert_eq!((first.awake(), second.awake()), (1, 0));
    assert!(second.observe().unwrap().peers.is_empty());
    first.apply(vec![PeerChange::Remove(second.key.public())]);
    assert!(first.observe().unwrap().peers.is_empty());
    first.apply(vec![PeerChange::Set(first.peer(&second))]);
    second.apply(vec![PeerChange::Set(second.peer(&first))]);
    pings_once(&second, &first.mesh_ip());
}

#[test]
fn root_a_new_private_key_counts_for_peers_that_are_asleep() {
    let (mut first, second) = pair();
    let old = first.key.public();
    first.key = PrivateKey::generate().unwrap();
    let config = DeviceConfig { private_key: first.key.clone(), listen_port: PORT };
    let wireguard = Arc::clone(&first.wireguard);
    first.namespace.run(|| async move { wireguard.rekey(&config, &[]).await.unwrap() });
    assert_eq!(first.observe().unwrap().listen_port, PORT);
    second.apply(vec![PeerChange::Remove(old), PeerChange::Set(second.peer(&first))]);
    assert_eq!((first.awake(), second.awake()), (0, 0));
    pings_once(&second, &first.mesh_ip());
}

#[test]
fn root_who_is_to_be_kept_alive_does_not_sleep_and_others_do_again() {
    let (first, second) = tired_pair();
    let keepalive =
        |seconds| PeerConfig { persistent_keepalive: NonZeroU16::new(seconds), ..first.peer(&second) };
    first.apply(vec![PeerChange::Set(keepalive(25))]);
    assert_eq!(first.awake(), 1);
    second
        .eventually("a handshake", |second| second.observe_peer(first.key.public()).last_handshake.is_some());
    second.eventually("the other end sleeps", |second| second.awake() == 0);
    assert_eq!(first.awake(), 1);
    first.apply(vec![PeerChange::Set(keepalive(0))]);
    until_asleep([&first, &second]);
    // Nobody knows where it is, so that nothing can be sent to it either.
    first.apply(vec![
        PeerChange::Remove(second.key.public()),
        PeerChange::Set(PeerConfig { endpoint: None, ..keepalive(25) }),
    ]);
    let lost = first.namespace.command(&format!("ping -n -c 1 -W 1 {} || true", second.mesh_ip()));
    assert!(lost.contains("100% packet loss"), "{lost}");
    assert_eq!(first.awake(), 0);
    pings_once(&second, &first.mesh_ip());
    assert_eq!(first.awake(), 1);
}

#[test]
fn root_a_peer_that_slept_is_as_it_was_and_is_found_where_it_was_heard() {
    let (first, second) = tired_pair();
    first.namespace.command("ip address add 192.0.2.9/24 dev cable0");
    first.namespace.command("ip address del 192.0.2.1/24 dev cable0");
    first.namespace.command("ip address replace 192.0.2.9/24 dev cable0");
    pings_once(&first, &second.mesh_ip());
    let awake = second.observe_peer(first.key.public());
    assert_eq!(awake.endpoint.unwrap().to_string(), format!("192.0.2.9:{PORT}"));
    until_asleep([&first, &second]);
    let asleep = second.observe_peer(first.key.public());
    assert_eq!((asleep.endpoint, asleep.last_handshake), (awake.endpoint, awake.last_handshake));
    assert!(asleep.rx_bytes >= awake.rx_bytes && asleep.tx_bytes >= awake.tx_bytes);
    pings_once(&second, &first.mesh_ip());
    let again = second.observe_peer(first.key.public());
    assert!(again.rx_bytes > asleep.rx_bytes && again.tx_bytes > asleep.tx_bytes);
    assert!(again.last_handshake > asleep.last_handshake);
    assert_eq!(again.endpoint, awake.endpoint);
}

#[test]
fn root_an_initiation_wakes_once_and_a_replayed_one_nobody() {
    let (first, second) = tired_pair();
    let recorded = initiation(&first.key, &second);
    assert!(is_answered(&first, 4_000, &second, (&recorded, PATIENCE)));
    let endpoint = |second: &Node| second.observe_peer(first.key.public()).endpoint.unwrap().port();
    assert_eq!(endpoint(&second), 4_000);
    until_asleep([&second, &second]);
    let before = second.observe_peer(first.key.public());
    assert!(!is_answered(&first, 4_001, &second, (&recorded, ENOUGH)));
    assert_eq!((second.awake(), second.observe_peer(first.key.public())), (0, before));
    // Nor when the peer is awake, and gotatun does not know any more what it has taken.
    pings_once(&first, &second.mesh_ip());
    assert_eq!(endpoint(&second), PORT);
    assert!(!is_answered(&first, 4_001, &second, (&recorded, ENOUGH)));
    assert_eq!(endpoint(&second), PORT);
}

#[test]
fn root_who_is_not_a_peer_wakes_nobody_and_is_not_answered() {
    let (first, second) = pair();
    let stranger = PrivateKey::generate().unwrap();
    assert!(!is_answered(&first, 4_000, &second, (&initiation(&stranger, &second), ENOUGH)));
    let mut forged = initiation(&first.key, &second);
    forged[90] ^= 1;
    assert!(!is_answered(&first, 4_000, &second, (&forged, ENOUGH)));
    assert_eq!(second.awake(), 0);
}

#[test]
fn root_the_address_of_a_peer_that_is_asleep_is_nobody_elses() {
    let (first, second) = pair();
    let sleeper = PeerConfig {
        public_key: PrivateKey::generate().unwrap().public(),
        allowed_ips: ["10.100.0.3/32".parse().unwrap()].into(),
        ..second.peer(&first)
    };
    let around = PeerConfig { allowed_ips: ["10.100.0.0/24".parse().unwrap()].into(), ..second.peer(&first) };
    second.apply(vec![PeerChange::Set(around), PeerChange::Set(sleeper)]);
    first.namespace.command("ip address add 10.100.0.3/32 dev plexd0");
    pings_once(&first, &second.mesh_ip());
    assert_eq!(second.awake(), 1);
    let target = second.mesh_ip();
    let lost = first.namespace.command(&format!("ping -n -c 1 -W 1 -I 10.100.0.3 {target} || true"));
    assert!(lost.contains("100% packet loss"), "{lost}");
    // Had it arrived, the answer to it would have woken the sleeper.
    assert_eq!(second.awake(), 1);
}

#[test]
fn root_an_address_that_moves_wakes_the_one_who_has_it() {
    let (first, second) = pair();
    let other = PeerConfig {
        public_key: PrivateKey::generate().unwrap().public(),
        endpoint: Some("192.0.2.77:9".parse().unwrap()),
        ..first.peer(&second)
    };
    first.apply(vec![PeerChange::Set(other.clone())]);
    assert!(first.observe_peer(second.key.public()).allowed_ips.is_empty());
    first.apply(vec![PeerChange::Set(first.peer(&second))]);
    assert!(first.observe_peer(other.public_key).allowed_ips.is_empty());
    pings_once(&first, &second.mesh_ip());
    assert_eq!(first.awake(), 1);
}

/// The `number`th message of nobody for `to`, of this type and length: what is made without any private key.
fn forged((kind, length): (u8, usize), number: u32, to: PublicKey) -> Vec<u8> {
    let mut message = vec![7; length];
    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    message[8..12].copy_from_slice(&number.to_be_bytes());
    let covered = length - 32;
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(to.as_bytes()).finalize();
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(&key).unwrap();
    mac.update(&message[..covered]);
    message[covered..covered + 16].copy_from_slice(&mac.finalize_fixed());
    message
}

const INITIATION: (u8, usize) = (1, 148);
const RESPONSE: (u8, usize) = (2, 92);

/// Sends 500 messages a second, which a build without optimisation keeps up with, from `from` to `to`, each from the address that `datagram` says.
fn flood(
    from: &Node,
    to: &Node,
    datagram: impl Fn(u32) -> (Ipv4Addr, Vec<u8>) + Send + 'static,
) -> AbortHandle {
    from.namespace.command("ip route replace local 10.9.0.0/16 dev lo");
    to.namespace.command("ip route replace 10.9.0.0/16 via 192.0.2.1");
    let target = to.reached_at();
    from.namespace.run(move || async move {
        let flood = tokio::spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_millis(10));
            for number in 0.. {
                let (address, datagram) = datagram(number);
                let socket = UdpSocket::bind((address, 0)).unwrap();
                let _ = socket.send_to(&datagram, target);
                if number % 5 == 0 {
                    pace.tick().await;
                }
            }
        });
        flood.abort_handle()
    })
}

/// Waits until `to` demands cookies.
fn until_loaded(from: &Node, to: &Node) {
    let (target, key): (SocketAddr, _) = (to.reached_at(), to.key.public());
    let number = std::cell::Cell::new(1 << 30);
    from.eventually("a cookie is demanded", |from| {
        number.set(number.get() + 1);
        let datagram = forged(INITIATION, number.get(), key);
        from.namespace.run(move || async move {
            let socket = tokio::net::UdpSocket::bind("10.9.255.1:0").await.unwrap();
            socket.send_to(&datagram, target).await.unwrap();
            let mut answer = [0; 200];
            let answered = tokio::time::timeout(ENOUGH, socket.recv_from(&mut answer)).await;
            answered.is_ok_and(|answer| answer.unwrap().0 == 64) && answer[0] == 3
        })
    });
}

fn anywhere(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a09_0000 + number % 0xff00)
}

/// An attempt at a handshake is repeated every 5 s, and the first one that brings a cookie is heard. The rest of the time, and
/// more than one ping, are for datagrams that a busy machine loses.
fn wakes_in_the_flood(first: &Node, second: &Node) {
    until_loaded(first, second);
    first.namespace.command(&format!("ping -n -c 1 -w 25 {}", second.mesh_ip()));
    assert_eq!((first.awake(), second.awake()), (1, 1));
    // Who has a session notices nothing.
    first.reaches(second);
}

#[test]
fn root_a_peer_wakes_at_its_second_attempt_in_a_flood_from_anywhere() {
    let (first, second) = pair();
    let key = second.key.public();
    let recorded = initiation(&first.key, &second);
    let flood = flood(&first, &second, move |number| {
        let copy = number % 10 == 0;
        (anywhere(number), if copy { recorded.clone() } else { forged(INITIATION, number, key) })
    });
    wakes_in_the_flood(&first, &second);
    flood.abort();
}

#[test]
fn root_a_peer_wakes_at_its_second_attempt_in_a_flood_from_its_own_address() {
    let (first, second) = pair();
    let key = second.key.public();
    // Responses as well: gotatun counts them, and would demand a cookie that is not the one the peer has.
    let flood = flood(&first, &second, move |number| {
        let kind = if number % 2 == 0 { INITIATION } else { RESPONSE };
        (Ipv4Addr::new(192, 0, 2, 1), forged(kind, number, key))
    });
    let anywhere = self::flood(&first, &second, move |number| {
        (anywhere(number), forged(INITIATION, number | 1 << 31, key))
    });
    wakes_in_the_flood(&first, &second);
    flood.abort();
    anywhere.abort();
}
