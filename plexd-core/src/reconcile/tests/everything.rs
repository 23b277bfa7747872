//! A peer that has everything, with the reconciler around it.

use super::*;
use crate::kernel::fake::UIDS;
use crate::kernel::rules::{Family, OwnTable};

const ALL: OwnTable = OwnTable { family: Family::V4, length: 0 };

/// Started, with a peer that has everything.
async fn with_gateway() -> Rig {
    let mut rig = started(ALLOW).await;
    rig.change(|desired| {
        let mut gateway = peer("n_b", 2, Some("192.0.2.2:51820"));
        gateway.allowed_ips.extend(nets(&["0.0.0.0/0"]));
        desired.peers.insert(gateway.id.clone(), Arc::new(gateway));
    });
    rig.reconciler.reconcile(Cause::Change).await;
    rig
}

#[tokio::test]
async fn a_peer_that_has_everything_is_routed_by_rules_that_come_back_and_go_with_it() {
    let mut rig = with_gateway().await;
    assert_eq!(rig.kernel.take_calls(), ["apply peers", "add rules", "add apart"]);
    assert_eq!(rig.kernel.state().link().apart, nets(&["0.0.0.0/0"]));
    assert_eq!(rig.kernel.state().rules, ALL.rules(UIDS).into_iter().collect());
    assert_eq!(rig.check().await, [""; 0]);
    assert_eq!(rig.told(), [""; 0]);

    rig.kernel.state().rules.pop_first();
    rig.kernel.state().link().apart.clear();
    assert_eq!(rig.check().await, ["add rules", "add apart"]);
    let told: Vec<String> = rig.drift.try_recv().unwrap().into_iter().map(|one| one.detail).collect();
    assert_eq!(told, ["routing rule 11712 (IPv4) was missing", "route 0.0.0.0/0 was missing"]);

    rig.change(|desired| drop(desired.peers.insert("n_b".parse().unwrap(), Arc::new(peer("n_b", 2, None)))));
    rig.reconciler.reconcile(Cause::Change).await;
    assert_eq!(rig.kernel.take_calls(), ["apply peers", "remove rules", "remove apart"]);
    assert!(rig.kernel.state().rules.is_empty());
}

#[tokio::test]
async fn the_mark_of_the_tunnel_is_restored() {
    let mut rig = started(ALLOW).await;
    rig.kernel.state().device.as_mut().unwrap().mark = 0;
    assert_eq!(rig.check().await, ["configure"]);
    assert_eq!(rig.told(), ["interface_restored"]);
}

#[tokio::test]
async fn what_stands_in_the_way_is_a_problem_until_it_is_gone() {
    let mut rig = with_gateway().await;
    rig.kernel.take_calls();
    rig.kernel.state().taken.insert(ALL, "routing rule 11713 is somebody else's".to_owned());
    assert_eq!(rig.check().await, ["remove rules", "remove apart"]);
    assert!(rig.problems().starts_with("0.0.0.0/0 not routed: routing rule 11713"), "{}", rig.problems());
    rig.kernel.state().taken.clear();
    rig.kernel.state().strict.insert("eth0".to_owned());
    assert_eq!(rig.check().await, ["add rules", "add apart"]);
    assert!(rig.problems().contains("net.ipv4.conf.eth0.rp_filter=2"), "{}", rig.problems());
    rig.kernel.state().strict.clear();
    rig.check().await;
    assert!(!rig.board.is_degraded(), "{}", rig.problems());
}

#[tokio::test]
async fn a_route_in_which_the_control_plane_is_found_is_kept_apart() {
    let mut rig = started(ALLOW).await;
    let (outside, watched) = watch::channel(Arc::default());
    rig.reconciler = rig.reconciler.keeping_outside(watched);
    assert_eq!(rig.check().await, [""; 0]);
    outside.send_replace(Arc::new(BTreeSet::from([IpAddr::from([10, 100, 0, 3])])));
    rig.reconciler.reconcile(Cause::Change).await;
    assert_eq!(rig.kernel.take_calls(), ["add rules", "add apart", "remove routes"]);
    assert_eq!(rig.kernel.state().link().apart, nets(&["10.100.0.3/32"]));
}

#[tokio::test]
async fn what_is_taken_down_leaves_no_rule_and_one_that_stays_is_told_once_the_policy_is_gone() {
    for failing in [false, true] {
        let mut rig = with_gateway().await;
        rig.kernel.take_calls();
        if failing {
            rig.kernel.state().failing.insert("remove rules");
        }
        rig.identity.send_replace(None);
        assert_eq!(rig.reconciler.take_down().await.is_err(), failing);
        assert_eq!(rig.kernel.take_calls(), ["remove interface", "remove rules", "remove table"]);
        assert!(rig.kernel.state().rules.is_empty() || failing);
    }
}
