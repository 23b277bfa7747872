//! Being told of changes.

use std::sync::Arc;
use std::time::Duration;

use plexd_core::kernel::Network;
use plexd_core::kernel::changes::{LinkChanges, Watched};
use plexd_core::kernel::network::RtNetlink;

use crate::namespace::{Namespace, run_command};

/// Whether a change is told; if none is after a while, none will be: the kernel has told before the command returns.
pub(crate) async fn is_told(changes: &mut LinkChanges) -> bool {
    tokio::time::timeout(Duration::from_millis(200), changes.changed()).await.is_ok_and(|told| told.is_ok())
}

#[test]
fn root_changes_of_the_interface_are_told_and_those_of_others_are_not() {
    Namespace::new().run(|| async {
        let mut changes = LinkChanges::new("plexd0", Watched::Everything).unwrap();
        run_command("ip link add other0 type bridge");
        run_command("ip link set other0 up");
        run_command("ip route add 10.1.0.0/16 dev other0");
        assert!(!is_told(&mut changes).await);
        for line in [
            "ip link add plexd0 type bridge",
            "ip link set plexd0 up",
            "ip address add 10.100.0.1/32 dev plexd0",
            "ip route add 10.2.0.0/16 dev plexd0",
            "ip route del 10.2.0.0/16 dev plexd0",
            "ip -6 address add fd00::1/128 dev plexd0 nodad",
            "ip link set plexd0 mtu 1280",
            "ip link del plexd0",
            "ip link add plexd0 type bridge",
        ] {
            run_command(line);
            assert!(is_told(&mut changes).await, "{line}");
            while is_told(&mut changes).await {}
        }
        let mut changes = LinkChanges::new("plexd0", Watched::Link).unwrap();
        run_command("ip address add 10.100.0.1/32 dev plexd0");
        assert!(!is_told(&mut changes).await);
        run_command("ip link set plexd0 mtu 1280");
        assert!(is_told(&mut changes).await);
    });
}

#[test]
fn root_changes_by_an_own_port_are_not_told_unless_they_are_of_the_link() {
    let namespace = Namespace::new();
    namespace.command("ip link add plexd0 type veth peer name far0");
    namespace.command("ip link set far0 up");
    namespace.run(|| async {
        let network = Arc::new(RtNetlink::new().unwrap());
        let asked_by = Arc::clone(&network);
        let changes = LinkChanges::new("plexd0", Watched::Everything).unwrap();
        let mut changes = changes.by_others(move |port| port == asked_by.port());
        network.bring_up("plexd0", 1420).await.unwrap();
        assert!(is_told(&mut changes).await);
        // With an address the kernel makes routes of its own.
        network.add_address("plexd0", "10.100.0.1/32".parse().unwrap()).await.unwrap();
        while is_told(&mut changes).await {}
        let route = ["10.2.0.0/16".parse().unwrap()];
        network.add_routes("plexd0", &route).await.unwrap();
        network.remove_routes("plexd0", &route).await.unwrap();
        assert!(!is_told(&mut changes).await);
        run_command("ip address del 10.100.0.1/32 dev plexd0");
        assert!(is_told(&mut changes).await);
    });
}
