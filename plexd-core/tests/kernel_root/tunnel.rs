//! Two nodes with the embedded WireGuard and a tunnel between them.

use std::sync::Arc;
use std::time::SystemTime;

use plexd_core::kernel::{DeviceConfig, Ensured, PeerChange, PeerConfig, WireGuard};
use plexd_core::types::{PresharedKey, PrivateKey};

use crate::node::{INTERFACE, Node, PORT, pair};

fn handshake(node: &Node, other: &Node) -> SystemTime {
    node.observe_peer(other.key.public()).last_handshake.unwrap()
}

#[test]
fn root_two_nodes_reach_each_other_and_see_it() {
    let (first, second) = pair();
    first.reaches(&second);
    second.reaches(&first);
    // As large as the MTU of 1420 lets it be.
    first.namespace.command(&format!("ping -n -c 1 -w 5 -M do -s 1392 {}", second.mesh_ip()));
    let device = first.observe().unwrap();
    assert_eq!((device.public_key, device.listen_port), (Some(first.key.public()), PORT));
    let peer = &device.peers[&second.key.public()];
    let desired = first.peer(&second);
    assert_eq!(peer.preshared_key, desired.preshared_key);
    assert_eq!(peer.endpoint, desired.endpoint);
    assert_eq!(peer.allowed_ips, desired.allowed_ips);
    assert!(peer.last_handshake.is_some() && peer.rx_bytes > 0 && peer.tx_bytes > 0);
}

#[test]
fn root_the_tunnel_goes_over_ipv6_and_carries_ipv6() {
    let (first, second) = pair();
    for (node, cable, number) in [(&first, "cable0", 1), (&second, "cable1", 2)] {
        node.namespace.command(&format!("ip address add fd01::{number}/64 dev {cable} nodad"));
        node.namespace.command(&format!("ip address add fd02::{number}/64 dev plexd0 nodad"));
    }
    for (node, other, number) in [(&first, &second, 2), (&second, &first, 1)] {
        let peer = PeerConfig {
            endpoint: Some(format!("[fd01::{number}]:{PORT}").parse().unwrap()),
            allowed_ips: [format!("fd02::{number}/128").parse().unwrap()].into(),
            ..node.peer(other)
        };
        node.apply(vec![PeerChange::Set(peer)]);
    }
    first.namespace.command("ping -n -c 1 -w 10 fd02::2");
    let endpoint = second.observe_peer(first.key.public()).endpoint.unwrap();
    assert_eq!(endpoint.to_string(), format!("[fd01::1]:{PORT}"));
}

#[test]
fn root_a_peer_that_roams_is_followed() {
    let (first, second) = pair();
    first.reaches(&second);
    first.namespace.command("ip address add 192.0.2.9/24 dev cable0");
    first.namespace.command("ip address del 192.0.2.1/24 dev cable0");
    first.namespace.command("ip address replace 192.0.2.9/24 dev cable0");
    first.reaches(&second);
    let endpoint = second.observe_peer(first.key.public()).endpoint.unwrap();
    assert_eq!(endpoint.to_string(), format!("192.0.2.9:{PORT}"));
    // Applying the rest of its configuration leaves where it is.
    second.apply(vec![PeerChange::Set(PeerConfig { endpoint: None, ..second.peer(&first) })]);
    assert_eq!(second.observe_peer(first.key.public()).endpoint, Some(endpoint));
}

#[test]
fn root_another_preshared_key_lets_nothing_through() {
    let (first, second) = pair();
    let wrong = PresharedKey::from_bytes([0x55; 32]);
    second.apply(vec![
        PeerChange::Remove(first.key.public()),
        PeerChange::Set(PeerConfig { preshared_key: Some(wrong), ..second.peer(&first) }),
    ]);
    let target = second.mesh_ip();
    let lost = first.namespace.command(&format!("ping -n -c 1 -w 2 {target} || true"));
    assert!(lost.contains("100% packet loss"), "{lost}");
}

#[test]
fn root_changing_a_peer_loses_no_packet_and_makes_no_handshake() {
    let (first, second) = pair();
    first.reaches(&second);
    let before = handshake(&first, &second);
    let wireguard = Arc::clone(&first.wireguard);
    let peer = first.peer(&second);
    let target = second.mesh_ip();
    let pinged = first.namespace.run(move || async move {
        let ping = format!("ping -n -q -i 0.005 -c 300 -W 1 {target}");
        let ping = tokio::task::spawn_blocking(move || crate::namespace::run_command(&ping));
        let mut round = 0_u8;
        while !ping.is_finished() {
            round = round.wrapping_add(1);
            let mut changed = peer.clone();
            changed.preshared_key = Some(PresharedKey::from_bytes([round; 32]));
            changed.allowed_ips.insert(format!("10.7.{round}.0/24").parse().unwrap());
            changed.persistent_keepalive = std::num::NonZeroU16::new(u16::from(round));
            wireguard.apply(&[PeerChange::Set(changed)]).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        wireguard.apply(&[PeerChange::Set(peer)]).await.unwrap();
        ping.await.unwrap()
    });
    assert!(pinged.contains("300 received, 0% packet loss"), "{pinged}");
    assert_eq!(handshake(&first, &second), before);
    let observed = first.observe_peer(second.key.public());
    let desired = first.peer(&second);
    assert_eq!(observed.preshared_key, desired.preshared_key);
    assert_eq!(observed.allowed_ips, desired.allowed_ips);
    assert_eq!(observed.persistent_keepalive, desired.persistent_keepalive);
}

#[test]
fn root_a_removed_peer_is_heard_no_more() {
    let (first, second) = pair();
    first.reaches(&second);
    first.apply(vec![PeerChange::Remove(second.key.public())]);
    assert!(first.observe().unwrap().peers.is_empty());
    let target = first.mesh_ip();
    let lost = second.namespace.command(&format!("ping -n -c 1 -w 2 {target} || true"));
    assert!(lost.contains("100% packet loss"), "{lost}");
    first.apply(vec![PeerChange::Set(first.peer(&second))]);
    first.reaches(&second);
}

#[test]
fn root_a_deleted_interface_is_seen_and_comes_back_with_its_sessions() {
    let (first, second) = pair();
    first.reaches(&second);
    let before = handshake(&first, &second);
    for _ in 0..3 {
        first.namespace.command("ip link del plexd0");
        assert!(first.observe().is_none());
        let wireguard = Arc::clone(&first.wireguard);
        let ensured = first.namespace.run(|| async move { wireguard.ensure().await.unwrap() });
        assert_eq!(ensured, Ensured::Created);
        first.set_up_network();
        assert_eq!(first.observe().unwrap().peers.len(), 1);
        first.reaches(&second);
    }
    assert_eq!(handshake(&first, &second), before);
}

#[test]
fn root_a_renamed_interface_is_made_anew() {
    let (first, second) = pair();
    first.namespace.command("ip link set plexd0 down");
    first.namespace.command("ip link set plexd0 name gone0");
    assert!(first.observe().is_none());
    let wireguard = Arc::clone(&first.wireguard);
    first.namespace.run(|| async move { wireguard.ensure().await.unwrap() });
    first.set_up_network();
    first.reaches(&second);
    assert!(!first.namespace.command("ip link show").contains("gone0"));
}

#[test]
fn root_a_later_interface_with_the_index_of_ours_is_left_alone() {
    let (first, second) = pair();
    let shown = first.namespace.command("ip -o link show plexd0");
    let index = shown.split(':').next().unwrap().to_owned();
    first.namespace.command("ip link del plexd0");
    first.namespace.command(&format!("ip link add other0 index {index} type bridge"));
    let wireguard = Arc::clone(&first.wireguard);
    first.namespace.run(|| async move { wireguard.ensure().await.unwrap() });
    first.set_up_network();
    first.reaches(&second);
    assert!(first.namespace.command("ip -o link show").contains(&format!("{index}: other0")));
}

#[test]
fn root_removing_ends_it_and_it_can_be_made_again() {
    let (first, second) = pair();
    first.reaches(&second);
    let wireguard = Arc::clone(&first.wireguard);
    first.namespace.run(|| async move {
        wireguard.remove().await.unwrap();
        wireguard.remove().await.unwrap();
    });
    assert!(!first.namespace.command("ip link show").contains(INTERFACE));
    assert!(first.observe().is_none());
    first.set_up();
    assert!(first.observe().unwrap().peers.is_empty());
    first.apply(vec![PeerChange::Set(first.peer(&second))]);
    first.reaches(&second);
}

#[test]
fn root_a_new_private_key_keeps_the_peers() {
    let (mut first, second) = pair();
    first.reaches(&second);
    let old = first.key.public();
    first.key = PrivateKey::generate().unwrap();
    let config = DeviceConfig { private_key: first.key.clone(), listen_port: PORT };
    let wireguard = Arc::clone(&first.wireguard);
    first.namespace.run(|| async move { wireguard.configure(&config).await.unwrap() });
    second.apply(vec![PeerChange::Remove(old), PeerChange::Set(second.peer(&first))]);
    first.reaches(&second);
    assert_eq!(first.observe().unwrap().public_key, Some(first.key.public()));
}

/// Whichever of the two is first: the other one initiates, and nobody waits the 5 s until a lost initiation is repeated.
#[test]
fn root_a_node_with_a_new_key_and_its_peer_speak_again_at_once() {
    let (mut first, second) = pair();
    first.reaches(&second);
    for round in 1..=8_u8 {
        let old = first.key.public();
        first.key = PrivateKey::generate().unwrap();
        let shared = |peer| PeerConfig {
            preshared_key: Some(PresharedKey::from_bytes([round; 32])),
            persistent_keepalive: std::num::NonZeroU16::new(25),
            ..peer
        };
        let config = DeviceConfig { private_key: first.key.clone(), listen_port: PORT };
        let change = PeerChange::Set(shared(first.peer(&second)));
        let wireguard = Arc::clone(&first.wireguard);
        let rekey = || {
            first.namespace.run(move || async move { wireguard.rekey(&config, &[change]).await.unwrap() });
        };
        let follow = || {
            second.apply(vec![PeerChange::Remove(old), PeerChange::Set(shared(second.peer(&first)))]);
        };
        let start = std::time::Instant::now();
        if round % 2 == 0 {
            rekey();
            follow();
        } else {
            follow();
            rekey();
        }
        let key = first.key.public();
        second.eventually("handshake", |second| second.observe_peer(key).last_handshake.is_some());
        first.reaches(&second);
        second.reaches(&first);
        assert!(start.elapsed() < std::time::Duration::from_secs(4), "round {round}: {:?}", start.elapsed());
        assert_eq!(first.observe().unwrap().public_key, Some(key));
        assert_eq!(second.observe().unwrap().peers.len(), 1);
    }
}

#[test]
fn root_a_new_key_without_peers_listens_and_takes_peers() {
    let (mut first, second) = pair();
    first.reaches(&second);
    first.apply(vec![PeerChange::Remove(second.key.public())]);
    let old = first.key.public();
    first.key = PrivateKey::generate().unwrap();
    let config = DeviceConfig { private_key: first.key.clone(), listen_port: PORT };
    let wireguard = Arc::clone(&first.wireguard);
    first.namespace.run(|| async move { wireguard.rekey(&config, &[]).await.unwrap() });
    assert_eq!(first.observe().unwrap().listen_port, PORT);
    first.apply(vec![PeerChange::Set(first.peer(&second))]);
    second.apply(vec![PeerChange::Remove(old), PeerChange::Set(second.peer(&first))]);
    second.reaches(&first);
}

#[test]
fn root_the_listen_port_can_change_and_one_in_use_is_explained() {
    let node = Node::new(1);
    node.set_up();
    let (wireguard, key) = (Arc::clone(&node.wireguard), node.key.clone());
    node.namespace.run(|| async move {
        let taken = std::net::UdpSocket::bind("[::]:4500").unwrap();
        let configure = |listen_port| DeviceConfig { private_key: key.clone(), listen_port };
        let error = wireguard.configure(&configure(4500)).await.unwrap_err().to_string();
        assert!(error.contains("UDP port 4500") && error.contains("mesh.listen_port"), "{error}");
        assert_eq!(wireguard.observe().await.unwrap().unwrap().listen_port, 0);
        drop(taken);
        for port in [4500, 4501, 4500, PORT] {
            wireguard.configure(&configure(port)).await.unwrap();
            assert_eq!(wireguard.observe().await.unwrap().unwrap().listen_port, port);
        }
    });
}

#[test]
fn root_a_keepalive_makes_the_handshake_without_traffic() {
    let (first, second) = pair();
    let keepalive = PeerConfig { persistent_keepalive: std::num::NonZeroU16::new(25), ..first.peer(&second) };
    first.apply(vec![PeerChange::Set(keepalive)]);
    first.eventually("handshake", |first| first.observe_peer(second.key.public()).last_handshake.is_some());
}

#[test]
fn root_wg_show_tells_all_but_the_secrets() {
    let (first, second) = pair();
    first.reaches(&second);
    let shown = first.namespace.command("wg show plexd0 dump");
    let mut lines = shown.lines();
    let device: Vec<&str> = lines.next().unwrap().split('\t').collect();
    assert_eq!(device, ["(none)", "(none)", "51820", "0x1000"]);
    let peer: Vec<&str> = lines.next().unwrap().split('\t').collect();
    assert_eq!(peer[0], second.key.public().to_string());
    assert_eq!(&peer[1..4], ["(none)", "192.0.2.2:51820", "10.100.0.2/32"]);
    assert!(peer[4].parse::<u64>().unwrap() > 1_700_000_000);
    assert!(peer[5].parse::<u64>().unwrap() > 0 && peer[6].parse::<u64>().unwrap() > 0);
    assert_eq!(peer[7], "off");
    assert_eq!(lines.next(), None);
    assert!(first.namespace.command("wg show").contains("latest handshake"));
    let refused = first.namespace.command("wg set plexd0 listen-port 1 2>&1 || true");
    assert!(refused.contains("Operation not permitted"), "{refused}");
}

#[test]
fn root_an_interface_of_somebody_else_is_refused_and_left_alone() {
    for (made, kind) in [
        ("ip link add plexd0 type veth peer name far0", "veth"),
        ("ip tuntap add mode tun name plexd0", "tun"),
        ("ip link add plexd0 type bridge", "bridge"),
    ] {
        let node = Node::new(1);
        node.namespace.command(made);
        let wireguard = Arc::clone(&node.wireguard);
        let errors = node.namespace.run(|| async move {
            // Not as if there were none: somebody else's addresses and routes are nothing to reconcile.
            let read = wireguard.observe().await.unwrap_err().to_string();
            let made = wireguard.ensure().await.unwrap_err().to_string();
            wireguard.remove().await.unwrap();
            [read, made]
        });
        for error in errors {
            assert!(error.contains(&format!("a {kind} interface")), "{error}");
        }
        assert!(node.namespace.command("ip link show").contains("plexd0"));
    }
}

#[test]
fn root_a_thousand_peers_are_applied() {
    let node = Node::new(1);
    node.set_up();
    let peer = node.peer(&Node::new(2));
    let changes: Vec<PeerChange> = (0..1_000_u32)
        .map(|number| {
            let mut config = peer.clone();
            let mut key = [0; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            config.public_key = plexd_core::types::PublicKey::from_bytes(key);
            let address = std::net::Ipv4Addr::from(0x0a64_0100 + number);
            config.allowed_ips = [ipnet::Ipv4Net::new(address, 32).unwrap().into()].into();
            PeerChange::Set(config)
        })
        .collect();
    node.apply(changes.clone());
    assert_eq!(node.observe().unwrap().peers.len(), 1_000);
    node.apply(changes);
    assert_eq!(node.observe().unwrap().peers.len(), 1_000);
}
