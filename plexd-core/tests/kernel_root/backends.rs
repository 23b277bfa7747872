//! The choice of the backend, and the kernel's where there is one.

use caps::{CapSet, Capability};
use plexd_core::kernel::rules::MARK;
use plexd_core::kernel::wireguard::kernel::{KernelWireGuard, available};
use plexd_core::kernel::wireguard::{BackendChoice, prepare};
use plexd_core::kernel::{Backend, DeviceConfig, Ensured, PeerChange, PeerConfig, WireGuard};
use plexd_core::types::{PresharedKey, PrivateKey, PublicKey};

use crate::namespace::{Namespace, run_command};

#[test]
fn root_what_is_prepared_as_root_works_with_cap_net_admin_alone() {
    Namespace::new().run(|| async {
        let prepared = prepare(BackendChoice::Userspace, "plexd0", 1420).unwrap();
        let keep = [Capability::CAP_NET_ADMIN].into();
        for set in [CapSet::Effective, CapSet::Permitted] {
            caps::set(None, set, &keep).unwrap();
        }
        let chosen = prepared.start().unwrap();
        assert_eq!(chosen.backend, Backend::Userspace);
        assert_eq!(chosen.reason, "mesh.backend is userspace");
        assert_eq!(chosen.wireguard.ensure().await.unwrap(), Ensured::Created);
        assert_eq!(chosen.wireguard.ensure().await.unwrap(), Ensured::Existing);
        chosen.wireguard.remove().await.unwrap();
    });
}

#[test]
fn root_the_choice_follows_what_the_kernel_has() {
    let has_wireguard = available().unwrap();
    let auto = Namespace::new().run(|| async {
        let chosen = prepare(BackendChoice::Auto, "plexd0", 1420).unwrap().start().unwrap();
        chosen.backend
    });
    assert_eq!(auto, if has_wireguard { Backend::Kernel } else { Backend::Userspace });
    assert_eq!(prepare(BackendChoice::Kernel, "plexd0", 1420).is_ok(), has_wireguard);
}

#[test]
fn root_a_second_process_for_the_same_interface_has_a_mesh_without_wg_show() {
    Namespace::new().run(|| async {
        let first = prepare(BackendChoice::Userspace, "plexd0", 1420).unwrap();
        let second = prepare(BackendChoice::Userspace, "plexd0", 1420).unwrap();
        drop((first, second));
        run_command("test -S /run/wireguard/plexd0.sock");
        let mode = run_command("stat -c %U:%G:%a /run/wireguard/plexd0.sock");
        assert_eq!(mode, "root:root:600\n");
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: run it in a VM, with --run-ignored only"]
fn root_kernel_wireguard_does_what_it_is_told() {
    Namespace::new().run(|| async {
        assert!(available().unwrap(), "this kernel has no WireGuard");
        let wireguard = KernelWireGuard::new("plexd0").unwrap();
        assert!(wireguard.observe().await.unwrap().is_none());
        assert_eq!(wireguard.ensure().await.unwrap(), Ensured::Created);
        assert_eq!(wireguard.ensure().await.unwrap(), Ensured::Existing);
        let private_key = PrivateKey::generate().unwrap();
        let public_key = private_key.public();
        wireguard.configure(&DeviceConfig { private_key, listen_port: 51820 }).await.unwrap();
        let peer = PeerConfig {
            public_key: PublicKey::from_bytes([7; 32]),
            preshared_key: Some(PresharedKey::from_bytes([8; 32])),
            endpoint: Some("192.0.2.2:51820".parse().unwrap()),
            allowed_ips: (0..1_000_u32)
                .map(|number| ipnet::Ipv4Net::new((0x0a64_0000 + number).into(), 32).unwrap().into())
                .collect(),
            persistent_keepalive: std::num::NonZeroU16::new(25),
        };
        wireguard.apply(&[PeerChange::Set(peer.clone())]).await.unwrap();
        let device = wireguard.observe().await.unwrap().unwrap();
        assert_eq!((device.public_key, device.listen_port), (Some(public_key), 51820));
        assert_eq!(device.mark, MARK);
        let observed = &device.peers[&peer.public_key];
        assert_eq!(observed.preshared_key, peer.preshared_key);
        assert_eq!(observed.endpoint, peer.endpoint);
        assert_eq!(observed.allowed_ips, peer.allowed_ips);
        assert_eq!(observed.persistent_keepalive, peer.persistent_keepalive);
        let bare = PeerConfig {
            preshared_key: None,
            persistent_keepalive: None,
            allowed_ips: ["10.0.0.1/32".parse().unwrap()].into(),
            ..peer
        };
        wireguard.apply(&[PeerChange::Set(bare.clone())]).await.unwrap();
        let device = wireguard.observe().await.unwrap().unwrap();
        let observed = &device.peers[&bare.public_key];
        assert_eq!((&observed.preshared_key, &observed.allowed_ips), (&None, &bare.allowed_ips));
        wireguard.apply(&[PeerChange::Remove(bare.public_key)]).await.unwrap();
        assert!(wireguard.observe().await.unwrap().unwrap().peers.is_empty());
        wireguard.remove().await.unwrap();
        assert!(wireguard.observe().await.unwrap().is_none());
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: run it in a VM, with --run-ignored only"]
fn root_kernel_wireguard_refuses_an_interface_of_another_kind() {
    Namespace::new().run(|| async {
        run_command("ip link add plexd0 type bridge");
        let wireguard = KernelWireGuard::new("plexd0").unwrap();
        let error = wireguard.ensure().await.unwrap_err().to_string();
        assert!(error.contains("a bridge interface"), "{error}");
        assert!(wireguard.remove().await.is_err());
        run_command("ip link show plexd0");
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: run it in a VM, with --run-ignored only"]
fn root_kernel_wireguard_does_not_go_on_under_another_name() {
    Namespace::new().run(|| async {
        let wireguard = KernelWireGuard::new("plexd0").unwrap();
        let rename = || run_command("ip link set plexd0 down; ip link set plexd0 name other0");
        for by_ensuring in [true, false] {
            wireguard.ensure().await.unwrap();
            rename();
            assert!(wireguard.observe().await.unwrap().is_none());
            if by_ensuring {
                assert_eq!(wireguard.ensure().await.unwrap(), Ensured::Created);
            } else {
                wireguard.remove().await.unwrap();
            }
            assert!(!run_command("ip link show").contains("other0"));
        }
        // One of another kind that was given the index since is somebody else's.
        wireguard.ensure().await.unwrap();
        let shown = run_command("ip -o link show plexd0");
        let index = shown.split(':').next().unwrap();
        run_command(&format!("ip link del plexd0; ip link add other0 index {index} type bridge"));
        wireguard.ensure().await.unwrap();
        run_command("ip link show other0");
    });
}
