//! The reconciler against a kernel in memory: what it repairs, what it reports as drift, what it says of failures.

mod everything;

use std::collections::BTreeSet;

use ipnet::IpNet;
use tokio::task::JoinHandle;

use super::*;
use crate::kernel::AddressConflict;
use crate::kernel::fake::{CHANGE, FakeKernel, OBSERVE};
use crate::policy::{Action, MAX_RULES, Policy, Rule, Selector, Service};
use crate::state::Peer;
use crate::types::{AllowedIps, NodeSecretKey, PrivateKey, PublicKey, SigningPublicKey};

pub(crate) fn key(seed: u8) -> PublicKey {
    PublicKey::from_bytes([seed; 32])
}

pub(crate) fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

pub(crate) fn ips(texts: &[&str]) -> AllowedIps {
    texts.iter().map(|text| text.parse::<IpNet>().unwrap()).collect()
}

/// A peer with its mesh address as only allowed IP; its key and address follow from `seed`.
pub(crate) fn peer(id: &str, seed: u8, endpoint: Option<&str>) -> Peer {
    let mesh_ip = [10, 100, 0, seed].into();
    Peer {
        id: id.parse().unwrap(),
        public_key: key(seed),
        mesh_ip,
        endpoint: endpoint.map(|text| text.parse().unwrap()),
        allowed_ips: [IpNet::from(mesh_ip)].into(),
        psk: None,
    }
}

pub(crate) fn desired(peers: impl IntoIterator<Item = Peer>) -> Desired {
    let peers = peers.into_iter().map(|peer| (peer.id.clone(), Arc::new(peer))).collect();
    Desired { peers, ..Desired::default() }
}

pub(crate) fn policies(rules: &[(&str, &str, Action)]) -> Arc<PolicySet> {
    let selector = |text: &str| match (text, text.parse()) {
        ("*", _) => Selector::Any,
        (_, Ok(net)) => Selector::Net(net),
        (id, Err(_)) => Selector::Node(id.parse().unwrap()),
    };
    let rules = rules.iter().map(|(src, dst, action)| Rule {
        src: selector(src),
        dst: selector(dst),
        service: Service::Any,
        action: *action,
    });
    Arc::new(PolicySet { policies: vec![Policy { id: "pol".to_owned(), rules: rules.collect() }] })
}

impl Desired {
    fn without_b(&mut self) {
        self.peers.remove("n_b");
    }
}

/// Node `n_a` with address 10.100.0.1.
pub(crate) fn identity() -> Identity {
    Identity {
        node_id: "n_a".parse().unwrap(),
        mesh_ip: [10, 100, 0, 1].into(),
        secret_key: NodeSecretKey::parse("FfxsQVb4qzEtMrwtB9h1FuRCqcLEShg6onJZXHGwlGo=").unwrap(),
        signing_key: SigningPublicKey::from_base64("lzfsfTYabt3dAJLEqKxeoFMirl7fTCM4vI7skRAuuHA=").unwrap(),
        private_key: PrivateKey::from_base64("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=").unwrap(),
    }
}

pub(crate) fn config(more: &str) -> Config {
    Config::from_text(&format!("api: https://cp.example\n{more}")).unwrap()
}

/// A reconciler and everything around it.
struct Rig {
    kernel: Arc<FakeKernel>,
    reconciler: Reconciler,
    mesh: Mesh,
    desired: watch::Sender<Arc<Desired>>,
    identity: watch::Sender<Option<Arc<Identity>>>,
    kernel_changes: mpsc::Sender<KernelChange>,
    drift: mpsc::Receiver<Vec<Correction>>,
    board: Board,
}

const ALLOW: &str = "policy:\n  default: allow\n";

fn rig(settings: &str) -> Rig {
    let kernel = FakeKernel::new();
    let two = desired([peer("n_b", 2, Some("192.0.2.2:51820")), peer("n_c", 3, None)]);
    let (desired, desired_seen) = watch::channel(Arc::new(two));
    let (identity, identity_seen) = watch::channel(Some(Arc::new(identity())));
    let (kernel_changes, changes) = mpsc::channel(1);
    let (drift_sender, drift) = mpsc::channel(8);
    let board = Board::default();
    let wiring = Wiring {
        desired: desired_seen,
        identity: identity_seen,
        kernel_changes: changes,
        drift: drift_sender,
        board: board.clone(),
    };
    let handle = Kernel { wireguard: kernel.clone(), network: kernel.clone(), firewall: kernel.clone() };
    let (mesh, reconciler) = Reconciler::new(Arc::new(config(settings)), handle, "asked for".into(), wiring);
    Rig { kernel, reconciler, mesh, desired, identity, kernel_changes, drift, board }
}

async fn started(settings: &str) -> Rig {
    let mut rig = rig(settings);
    rig.reconciler.start().await;
    rig.kernel.take_calls();
    rig
}

impl Rig {
    async fn check(&mut self) -> Vec<&'static str> {
        self.reconciler.reconcile(Cause::Check).await;
        self.kernel.take_calls()
    }

    fn told(&mut self) -> Vec<&'static str> {
        let told = self.drift.try_recv().unwrap_or_default();
        assert!(self.drift.try_recv().is_err());
        told.iter().map(|correction| correction.kind.as_str()).collect()
    }

    fn change(&self, change: impl FnOnce(&mut Desired)) {
        let mut next = Desired::clone(&self.desired.borrow());
        change(&mut next);
        self.desired.send_replace(Arc::new(next));
    }

    fn problems(&self) -> String {
        self.board.problems().into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("\n")
    }

    fn run(self) -> (Running, Shutdown, JoinHandle<anyhow::Result<()>>) {
        let Self { kernel, reconciler, mesh, desired, identity, kernel_changes, drift, board: _ } = self;
        let shutdown = Shutdown::new();
        let task = tokio::spawn(reconciler.run(shutdown.clone()));
        (Running { kernel, mesh, desired, identity, kernel_changes, drift }, shutdown, task)
    }
}

/// What is around a reconciler that runs.
struct Running {
    kernel: Arc<FakeKernel>,
    mesh: Mesh,
    desired: watch::Sender<Arc<Desired>>,
    identity: watch::Sender<Option<Arc<Identity>>>,
    kernel_changes: mpsc::Sender<KernelChange>,
    drift: mpsc::Receiver<Vec<Correction>>,
}

#[tokio::test]
async fn a_start_brings_everything_up_and_is_no_drift() {
    let mut rig = rig(ALLOW);
    rig.reconciler.start().await;
    assert_eq!(rig.kernel.take_calls(), CHANGE);
    assert_eq!(rig.check().await, [""; 0]);
    assert_eq!(rig.told(), [""; 0]);
    assert!(!rig.board.is_degraded(), "{}", rig.problems());
    let state = rig.kernel.state();
    let device = state.device.as_ref().unwrap();
    assert_eq!(device.public_key, Some(identity().private_key.public()));
    assert_eq!(device.peers.keys().copied().collect::<Vec<_>>(), [key(2), key(3)]);
    assert_eq!(state.link.as_ref().unwrap().routes, nets(&["10.100.0.2/32", "10.100.0.3/32"]));
}

fn come(rig: &Rig, id: &str, seed: u8) {
    let peer = peer(id, seed, None);
    rig.change(|desired| drop(desired.peers.insert(peer.id.clone(), peer.into())));
}

#[tokio::test]
async fn a_peer_that_comes_or_goes_is_all_that_is_touched_and_nothing_else_is_looked_at() {
    let mut rig = started(ALLOW).await;
    rig.kernel.state().failing.extend(OBSERVE);
    come(&rig, "n_d", 4);
    rig.reconciler.follow().await;
    assert_eq!(rig.kernel.take_calls(), ["apply peers", "add routes"]);
    rig.change(Desired::without_b);
    rig.reconciler.follow().await;
    assert_eq!(rig.kernel.take_calls(), ["apply peers", "remove routes"]);
    // What is not the kernel's concern does not reach it.
    rig.change(|desired| desired.metadata = Arc::new([("region".to_owned(), "eu".to_owned())].into()));
    rig.reconciler.follow().await;
    assert_eq!(rig.kernel.take_calls(), [""; 0]);
    assert!(!rig.board.is_degraded(), "{}", rig.problems());
    assert_eq!(rig.told(), [""; 0]);
    rig.kernel.state().failing.clear();
    assert_eq!(rig.check().await, [""; 0]);
    assert_eq!(rig.kernel.state().link().routes, nets(&["10.100.0.3/32", "10.100.0.4/32"]));
}

#[tokio::test]
async fn everything_is_looked_at_where_the_kernel_may_not_be_as_it_should() {
    // Somebody changed the kernel, and it is about to be looked at.
    let mut rig = started(ALLOW).await;
    rig.kernel.state().table = None;
    rig.kernel_changes.try_send(KernelChange::Policy).unwrap();
    come(&rig, "n_d", 4);
    rig.reconciler.follow().await;
    assert_eq!(rig.kernel.take_calls(), ["replace table", "apply peers", "add routes"]);
    // The last change did not work.
    let mut rig = started(ALLOW).await;
    rig.kernel.state().failing.insert("apply peers");
    come(&rig, "n_d", 4);
    rig.reconciler.follow().await;
    assert!(rig.problems().contains("apply peers"), "{}", rig.problems());
    rig.kernel.state().failing.clear();
    rig.kernel.take_calls();
    come(&rig, "n_e", 5);
    rig.reconciler.follow().await;
    assert_eq!(rig.kernel.take_calls(), ["apply peers", "add routes"]);
    assert_eq!(rig.kernel.state().device.as_ref().unwrap().peers.len(), 4);
    assert!(!rig.board.is_degraded(), "{}", rig.problems());
    // Another policy is more than a peer.
    let mut rig = started("").await;
    rig.change(|desired| desired.policies = policies(&[("*", "*", Action::Allow)]));
    rig.reconciler.follow().await;
    assert_eq!(rig.kernel.take_calls(), ["replace table", "apply peers", "add routes"]);
}

#[tokio::test]
async fn without_an_identity_nothing_is_touched() {
    let mut rig = rig(ALLOW);
    rig.identity.send_replace(None);
    rig.reconciler.start().await;
    assert_eq!(rig.check().await, [""; 0]);
    rig.identity.send_replace(Some(Arc::new(identity())));
    rig.reconciler.reconcile(Cause::Start).await;
    assert_eq!(rig.kernel.take_calls(), CHANGE);
    assert_eq!(rig.told(), [""; 0]);
}

#[tokio::test]
async fn each_failing_step_is_named_and_the_next_pass_repairs_what_is_missing() {
    // A failed step, and whether those after it are taken all the same.
    for failing in CHANGE {
        let mut rig = rig(ALLOW);
        rig.kernel.state().failing.insert(failing);
        rig.reconciler.start().await;
        let ends_the_pass = ["replace table", "create interface", "configure"].contains(&failing);
        let position = CHANGE.iter().position(|call| *call == failing).unwrap();
        let calls = rig.kernel.take_calls();
        match failing {
            _ if ends_the_pass => assert_eq!(calls, CHANGE[..=position], "{failing}"),
            _ => assert_eq!(calls, CHANGE, "{failing}"),
        }
        if failing == "replace table" {
            assert!(rig.kernel.state().link.is_none(), "brought up without policy");
        }
        assert!(rig.problems().contains(&format!("cannot {failing} fake")), "{}", rig.problems());
        assert!(rig.reconciler.last_success.is_none());

        rig.kernel.state().failing.clear();
        rig.check().await;
        assert!(!rig.board.is_degraded(), "{failing}: {}", rig.problems());
        assert!(rig.reconciler.last_success.is_some());
        assert_eq!(rig.check().await, [""; 0], "{failing}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_named_and_neither_changed_nor_reported_as_drift() {
    for failing in OBSERVE {
        let mut rig = started(ALLOW).await;
        rig.kernel.state().failing.insert(failing);
        let expected: &[&str] = if failing == "observe table" { &["replace table"] } else { &[] };
        assert_eq!(rig.check().await, expected, "{failing}");
        assert_eq!(rig.told(), [""; 0], "{failing}");
        assert!(rig.problems().contains(&format!("cannot {failing}")), "{}", rig.problems());
        rig.kernel.state().failing.clear();
        assert_eq!(rig.check().await, [""; 0], "{failing}");
        assert!(!rig.board.is_degraded());
    }
}

#[tokio::test]
async fn a_table_that_cannot_be_read_or_replaced_keeps_the_interface_down() {
    let mut rig = rig(ALLOW);
    rig.kernel.state().failing.extend(["observe table", "replace table"]);
    rig.reconciler.start().await;
    assert_eq!(rig.kernel.take_calls(), ["replace table"]);
    assert!(rig.kernel.state().device.is_none());
}

#[tokio::test]
async fn an_interface_that_is_up_goes_down_while_there_is_no_policy_and_none_can_be_put_in_place() {
    for unreadable in [false, true] {
        let mut rig = started(ALLOW).await;
        rig.kernel.state().table = None;
        rig.kernel.state().failing.insert("replace table");
        if unreadable {
            rig.kernel.state().failing.insert("observe table");
        }
        assert_eq!(rig.check().await, ["replace table", "bring down"]);
        assert!(!rig.kernel.state().link().up);
        assert!(rig.problems().contains("cannot replace table"), "{}", rig.problems());
        assert_eq!(rig.check().await, ["replace table"], "it is down already");
        rig.kernel.state().failing.clear();
        assert_eq!(rig.check().await, ["replace table", "bring up", "add routes"]);
        assert!(rig.kernel.state().link().up && !rig.board.is_degraded());
        assert_eq!(rig.check().await, [""; 0]);
    }
}

#[tokio::test]
async fn a_failure_to_take_the_interface_down_is_told_and_tried_again() {
    let mut rig = started(ALLOW).await;
    rig.kernel.state().table = None;
    rig.kernel.state().failing.extend(["replace table", "bring down"]);
    for _ in 0..2 {
        assert_eq!(rig.check().await, ["replace table", "bring down"]);
        assert!(rig.problems().contains("cannot bring down"), "{}", rig.problems());
    }
}

#[tokio::test]
async fn an_interface_stays_up_behind_a_policy_that_filters_and_cannot_be_replaced() {
    let mut rig = started(ALLOW).await;
    rig.kernel.state().edited = Some("chain input".to_owned());
    rig.kernel.state().failing.insert("replace table");
    assert_eq!(rig.check().await, ["replace table"]);
    assert!(rig.kernel.state().link().up);
}

#[tokio::test]
async fn an_interface_that_is_not_known_to_be_ours_is_not_taken_down() {
    let mut rig = started(ALLOW).await;
    rig.kernel.state().table = None;
    rig.kernel.state().failing.extend(["replace table", "observe device"]);
    assert_eq!(rig.check().await, ["replace table"]);
}

#[tokio::test]
async fn a_peer_that_is_gone_loses_its_tunnel_even_where_policy_cannot_be_put_in_place() {
    let mut rig = started(ALLOW).await;
    rig.kernel.state().table = None;
    rig.kernel.state().failing.insert("replace table");
    rig.change(|desired| {
        desired.without_b();
        desired.peers.insert("n_d".parse().unwrap(), Arc::new(peer("n_d", 4, None)));
    });
    rig.reconciler.reconcile(Cause::Change).await;
    let peers: Vec<PublicKey> = rig.kernel.state().device.as_ref().unwrap().peers.keys().copied().collect();
    assert_eq!(peers, [key(3)], "n_b is gone, and n_d not added");
    assert_eq!(rig.kernel.take_calls(), ["replace table", "bring down", "apply peers", "remove routes"]);
}

#[tokio::test]
async fn what_a_check_puts_right_is_reported_in_order() {
    let mut rig = started(ALLOW).await;
    {
        let mut state = rig.kernel.state();
        state.edited = Some("chain input".to_owned());
        state.device.as_mut().unwrap().peers.remove(&key(2));
        state.peer(key(3)).persistent_keepalive = None;
        state.link().addresses.clear();
        state.link().routes = nets(&["10.100.0.2/32", "10.9.0.0/16"]);
        state.link().up = false;
    }
    rig.check().await;
    assert_eq!(
        rig.told(),
        [
            "policy_restored",
            "peer_added",
            "peer_updated",
            "address_restored",
            "interface_restored",
            "route_added",
            "route_removed"
        ]
    );
}

#[tokio::test]
async fn a_failed_correction_is_not_reported_until_it_worked() {
    let mut rig = started(ALLOW).await;
    rig.kernel.state().device.as_mut().unwrap().peers.clear();
    rig.kernel.state().link().addresses.clear();
    rig.kernel.state().failing.insert("apply peers");
    rig.check().await;
    assert_eq!(rig.told(), ["address_restored"]);
    rig.kernel.state().failing.clear();
    rig.check().await;
    assert_eq!(rig.told(), ["peer_added", "peer_added"]);
}

#[tokio::test]
async fn a_route_of_somebody_else_is_left_alone_told_and_no_drift() {
    let mut rig = started(ALLOW).await;
    let foreign: IpNet = "10.100.0.3/32".parse().unwrap();
    {
        let mut state = rig.kernel.state();
        state.link().routes.clear();
        state.foreign_routes.insert(foreign, "eth0".to_owned());
    }
    rig.check().await;
    let told = rig.drift.try_recv().unwrap();
    assert_eq!(told, [Correction::new(drift::Kind::RouteAdded, "route 10.100.0.2/32 was missing")]);
    assert_eq!(rig.problems(), "route 10.100.0.3/32 belongs to eth0 and is left alone");
    rig.check().await;
    assert_eq!(rig.told(), [""; 0]);
    rig.kernel.state().foreign_routes.clear();
    rig.check().await;
    assert_eq!(rig.told(), ["route_added"]);
    assert!(!rig.board.is_degraded());
}

#[tokio::test]
async fn what_belongs_to_somebody_else_is_told_with_the_names_and_the_rest_is_up() {
    let mut rig = rig(ALLOW);
    let net: IpNet = "10.7.0.0/16".parse().unwrap();
    rig.change(|desired| {
        for id in ["n_b", "n_c"] {
            Arc::make_mut(desired.peers.get_mut(id).unwrap()).allowed_ips.insert(net);
        }
    });
    {
        let mut state = rig.kernel.state();
        state.foreign_routes.insert(net, "eth1".to_owned());
        let (address, interface) = ("10.100.0.1/24".parse().unwrap(), "dummy0".to_owned());
        state.foreign_addresses.push(AddressConflict { address, interface });
    }
    rig.reconciler.start().await;
    for told in [
        "route 10.7.0.0/16 belongs to eth1",
        "allowed IP 10.7.0.0/16 of n_c already belongs to n_b",
        "mesh address 10.100.0.1 is in use on dummy0, too; remove it there: ip address del 10.100.0.1/24 dev dummy0",
    ] {
        assert!(rig.problems().contains(told), "{}", rig.problems());
    }
    assert_eq!(rig.kernel.take_calls(), CHANGE);
    assert_eq!(rig.told(), ["peer_rejected"]);
    rig.check().await;
    assert_eq!(rig.told(), [""; 0], "once");
    assert_eq!(rig.kernel.state().link().routes, nets(&["10.100.0.2/32", "10.100.0.3/32"]));
    assert!(rig.reconciler.last_success.is_some());
    let unrouted = |why| Routes::Incomplete(vec![Unrouted { network: net, why }]);
    let routes = async |rig: &Rig| {
        let peers = rig.reconciler.status().await.peers;
        peers.into_iter().map(|peer| peer.routes).collect::<Vec<_>>()
    };
    let expected =
        [unrouted(Why::Route(Some("eth1".to_owned()))), unrouted(Why::Node("n_b".parse().unwrap()))];
    assert_eq!(routes(&rig).await, expected);

    rig.kernel.state().foreign_routes.clear();
    rig.kernel.state().foreign_addresses.clear();
    rig.change(|desired| {
        Arc::make_mut(desired.peers.get_mut("n_c").unwrap()).allowed_ips.retain(|kept| *kept != net);
    });
    rig.reconciler.reconcile(Cause::Change).await;
    rig.check().await;
    assert!(!rig.board.is_degraded(), "{}", rig.problems());
    assert_eq!(routes(&rig).await, [Routes::Routed, Routes::Routed]);
}

#[tokio::test]
async fn news_is_no_drift_even_where_a_check_comes_first() {
    let mut rig = started(ALLOW).await;
    rig.change(Desired::without_b);
    assert_eq!(rig.check().await, [""; 0]);
    assert!(rig.reconciler.wiring.desired.has_changed().unwrap());
    rig.reconciler.reconcile(Cause::Change).await;
    assert_eq!(rig.kernel.take_calls(), ["apply peers", "remove routes",]);
    assert_eq!(rig.told(), [""; 0]);
}

#[tokio::test]
async fn a_set_that_cannot_be_compiled_leaves_the_one_before_in_force() {
    let mut rig = started("").await;
    rig.change(|desired| desired.policies = policies(&[("*", "*", Action::Allow)]));
    rig.reconciler.reconcile(Cause::Change).await;
    assert_eq!(rig.kernel.state().device.as_ref().unwrap().peers.len(), 2);
    let table = rig.kernel.state().table.clone();
    let rule = ("*", "*", Action::Deny);
    rig.change(|desired| desired.policies = policies(&vec![rule; MAX_RULES + 1]));
    rig.reconciler.reconcile(Cause::Change).await;
    assert_eq!(rig.kernel.state().table, table);
    assert_eq!(rig.kernel.state().device.as_ref().unwrap().peers.len(), 2);
    assert!(rig.problems().contains("the one before stays in force"), "{}", rig.problems());
    let status = rig.reconciler.status().await;
    assert_eq!(status.policies.rules().count(), 1);
    assert!(status.refused.unwrap().contains("more than 20000"));
    assert_eq!(rig.told(), ["policy_rejected"], "told once, not with every pass");
    // Peers go on under the old set.
    rig.change(Desired::without_b);
    rig.reconciler.reconcile(Cause::Change).await;
    assert_eq!(rig.kernel.state().device.as_ref().unwrap().peers.len(), 1);
    rig.change(|desired| desired.policies = policies(&[rule]));
    rig.reconciler.reconcile(Cause::Change).await;
    assert!(!rig.board.is_degraded());
    assert!(rig.kernel.state().device.as_ref().unwrap().peers.is_empty());
}

#[tokio::test]
async fn a_set_that_cannot_be_compiled_at_start_denies_everything() {
    let mut rig = rig("");
    rig.change(|desired| desired.policies = policies(&vec![("*", "*", Action::Allow); MAX_RULES + 1]));
    rig.reconciler.start().await;
    assert!(rig.kernel.state().table.is_some());
    assert!(rig.kernel.state().device.as_ref().unwrap().peers.is_empty());
    assert!(rig.problems().contains("none is in force"), "{}", rig.problems());
}

#[tokio::test]
async fn a_set_that_cannot_be_compiled_leaves_the_one_before_in_force_over_restarts_too() {
    use crate::state::{FullState, State};
    use crate::types::SystemClock;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let open = || {
        let (state, keeper) = State::open(&path, Arc::new(SystemClock), Board::default(), None).unwrap();
        let shutdown = Shutdown::new();
        (state, tokio::spawn(keeper.run(shutdown.clone())), shutdown)
    };
    // A process that starts with what is on disk, after the given pulls; returns what it enforces and says.
    let process = async |pulls: Vec<Arc<PolicySet>>| {
        let (state, task, shutdown) = open();
        let mut rig = rig("");
        rig.reconciler.wiring.desired = state.desired();
        rig.reconciler = rig.reconciler.telling(state.clone());
        rig.reconciler.start().await;
        for policies in pulls {
            let peers = vec![peer("n_b", 2, None), peer("n_c", 3, None)];
            let full = FullState { peers, policies: Ok(PolicySet::clone(&policies)), ..FullState::default() };
            let ticket = state.begin_pull().await.unwrap();
            state.pulled(ticket, full).await.unwrap();
            rig.reconciler.follow().await;
        }
        shutdown.cancel();
        task.await.unwrap().unwrap();
        let rules = rig.reconciler.status().await.policies.rules().count();
        let peers = rig.kernel.state().device.as_ref().unwrap().peers.len();
        let told = std::iter::from_fn(|| rig.drift.try_recv().ok()).flatten();
        let told: Vec<_> = told.map(|correction| correction.kind.as_str()).collect();
        (rules, peers, rig.problems(), told)
    };
    let good = policies(&[("n_a", "n_b", Action::Allow), ("n_c", "*", Action::Deny)]);
    let bad = |rules| policies(&vec![("*", "*", Action::Allow); MAX_RULES + rules]);
    assert_eq!(process(vec![good]).await, (2, 1, String::new(), Vec::new()));
    for (pulls, told) in [(vec![bad(1), bad(2)], 2), (Vec::new(), 1), (vec![bad(3)], 2)] {
        let (rules, peers, problems, drift) = process(pulls).await;
        assert_eq!((rules, peers), (2, 1));
        assert!(problems.contains("the one before stays in force"), "{problems}");
        assert_eq!(drift, vec!["policy_rejected"; told]);
    }
    let better = policies(&[("*", "*", Action::Allow)]);
    assert_eq!(process(vec![better]).await.0, 1);
    assert_eq!(process(Vec::new()).await, (1, 2, String::new(), Vec::new()));
}

#[tokio::test]
async fn the_policy_in_force_is_told_with_what_it_is_read_against() {
    let mut rig = started("").await;
    rig.change(|desired| desired.policies = policies(&[("n_b", "*", Action::Allow)]));
    rig.reconciler.reconcile(Cause::Change).await;
    let rule = ("*", "*", Action::Deny);
    rig.change(|desired| desired.policies = policies(&vec![rule; MAX_RULES + 1]));
    rig.reconciler.reconcile(Cause::Change).await;
    let in_force = rig.reconciler.in_force().unwrap();
    assert_eq!(in_force.policies.rules().count(), 1);
    assert!(in_force.refused.as_ref().unwrap().contains("more than 20000") && in_force.settled);
    assert_eq!(in_force.context.members.len(), 3);
    let addresses: Vec<_> =
        in_force.addresses.iter().map(|(id, address)| format!("{id} {address}")).collect();
    assert_eq!(addresses, ["n_a 10.100.0.1", "n_b 10.100.0.2", "n_c 10.100.0.3"]);
    let tunnel = |address: &str| in_force.tunnel(&address.parse().unwrap()).map(|(_, peer)| peer.as_str());
    assert_eq!((tunnel("10.100.0.2"), tunnel("10.100.0.3")), (Some("n_b"), None));
    assert!(in_force.hides(&"n_c".parse().unwrap()) && !in_force.hides(&"n_b".parse().unwrap()));
    rig.identity.send_replace(None);
    rig.reconciler.take_down().await.unwrap();
    assert!(rig.reconciler.in_force().is_none());
}

#[tokio::test]
async fn the_status_is_the_kernels_now() {
    let mut rig = started("").await;
    rig.change(|desired| desired.policies = policies(&[("n_b", "*", Action::Allow)]));
    rig.reconciler.reconcile(Cause::Change).await;
    {
        let mut state = rig.kernel.state();
        let peer = state.peer(key(2));
        peer.endpoint = Some("198.51.100.1:7".parse().unwrap());
        peer.last_handshake = Some(SystemTime::now());
        (peer.rx_bytes, peer.tx_bytes) = (10, 20);
    }
    let status = rig.reconciler.status().await;
    assert_eq!((status.peers_up(), rig.reconciler.counters().await.is_some()), (1, true));
    let [up, hidden] = status.peers.as_slice() else { panic!("{:?}", status.peers) };
    assert_eq!((up.id.as_str(), up.endpoint.as_deref()), ("n_b", Some("198.51.100.1:7")));
    assert!(up.configured && up.problem.is_none() && (up.rx_bytes, up.tx_bytes) == (10, 20));
    assert_eq!((hidden.configured, hidden.problem.as_deref()), (false, Some(wanted::HIDDEN)));
    rig.kernel.state().peer(key(2)).last_handshake = Some(SystemTime::now() - plan::FRESH);
    rig.kernel.state().edited = Some("x".to_owned());
    let status = rig.reconciler.status().await;
    assert_eq!((status.peers_up(), rig.reconciler.counters().await.is_none()), (0, true));
    rig.kernel.state().failing.extend(OBSERVE);
    let status = rig.reconciler.status().await;
    assert_eq!((status.peers.len(), status.peers_up()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_running_reconciler_follows_the_state_the_kernel_requests_and_time() {
    let (mut around, shutdown, task) = started(ALLOW).await.run();
    // A change in the kernel is put right and reported.
    around.kernel.state().table = None;
    around.kernel_changes.send(KernelChange::Policy).await.unwrap();
    assert_eq!(around.drift.recv().await.unwrap()[0].kind.as_str(), "policy_restored");
    // So is what nobody tells, when asked for and in time.
    around.kernel.state().device.as_mut().unwrap().peers.clear();
    around.mesh.reconcile();
    assert_eq!(around.drift.recv().await.unwrap()[0].kind.as_str(), "peer_added");
    around.kernel.state().device.as_mut().unwrap().peers.clear();
    let before = Instant::now();
    assert_eq!(around.drift.recv().await.unwrap()[0].kind.as_str(), "peer_added");
    assert!(before.elapsed() <= Duration::from_mins(1));
    // News of the state, and another identity, are applied and no drift.
    around.desired.send_replace(Arc::new(desired([peer("n_c", 3, None)])));
    while around.mesh.status().await.unwrap().peers.len() != 1
        || around.kernel.state().device.as_ref().unwrap().peers.len() != 1
    {}
    around.identity.send_replace(Some(Arc::new(Identity { mesh_ip: [10, 100, 0, 9].into(), ..identity() })));
    while around.kernel.state().link().addresses != nets(&["10.100.0.9/32"]) {
        around.mesh.status().await.unwrap();
    }
    assert!(around.drift.try_recv().is_err());
    shutdown.cancel();
    task.await.unwrap().unwrap();
    assert!(around.kernel.state().device.is_some(), "kept by default");
    assert!(around.mesh.status().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_name_server_that_does_not_answer_delays_nothing_and_its_answer_is_applied() {
    let mut rig = rig(ALLOW);
    let (answer, answered) = watch::channel(None);
    rig.reconciler.names = Names::new(Arc::new(move |_| {
        let mut answered = answered.clone();
        Box::pin(async move { *answered.wait_for(Option::is_some).await.unwrap() })
    }));
    rig.change(|desired| *desired = tests::desired([peer("n_b", 2, Some("vpn.example.com:51820"))]));
    let before = Instant::now();
    rig.reconciler.start().await;
    rig.kernel.state().table = None;
    rig.check().await;
    assert!(rig.kernel.state().table.is_some() && before.elapsed().is_zero());
    let (around, shutdown, task) = rig.run();
    let address = "192.0.2.5:51820".parse().unwrap();
    answer.send_replace(Some(address));
    while around.kernel.state().peer(key(2)).endpoint != Some(address) {
        around.mesh.status().await.unwrap();
    }
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_ordered_stop_takes_everything_down_only_where_that_is_asked_for() {
    let rig = started("policy:\n  default: allow\non_stop: teardown\n").await;
    let (around, shutdown, task) = rig.run();
    shutdown.cancel();
    task.await.unwrap().unwrap();
    let state = around.kernel.state();
    assert!(state.device.is_none() && state.table.is_none());
}

#[tokio::test]
async fn a_stop_that_cannot_remove_the_interface_leaves_its_policy_too() {
    let rig = started("policy:\n  default: allow\non_stop: teardown\n").await;
    rig.kernel.state().failing.insert("remove interface");
    let (around, shutdown, task) = rig.run();
    shutdown.cancel();
    task.await.unwrap().unwrap();
    let state = around.kernel.state();
    assert!(state.device.is_some() && state.table.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_somebody_changed_is_put_right_at_once_unless_it_is_changed_all_the_time() {
    let (mut around, shutdown, task) = started(ALLOW).await.run();
    let mut took = Vec::new();
    for change in [KernelChange::Policy, KernelChange::Policy, KernelChange::Links] {
        let before = Instant::now();
        around.kernel.state().table = None;
        around.kernel_changes.send(change).await.unwrap();
        assert_eq!(around.drift.recv().await.unwrap()[0].kind.as_str(), "policy_restored");
        took.push(before.elapsed());
    }
    assert_eq!(took, [Duration::ZERO, SETTLE, SETTLE]);
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_node_whose_identity_is_given_up_is_taken_down_and_comes_back_with_the_next_one() {
    let mut rig = started(ALLOW).await;
    rig.kernel.state().failing.insert("apply peers");
    rig.change(Desired::without_b);
    rig.reconciler.reconcile(Cause::Change).await;
    assert!(rig.board.is_degraded());
    let (kernel, board) = (Arc::clone(&rig.kernel), rig.board.clone());
    let (running, shutdown, task) = rig.run();
    running.identity.send_replace(None);
    running.desired.send_replace(Arc::default());
    running.mesh.take_down().await.unwrap().unwrap();
    let gone = |kernel: &FakeKernel| kernel.state().device.is_none() && kernel.state().table.is_none();
    assert!(gone(&kernel) && !board.is_degraded());
    let status = running.mesh.status().await.unwrap();
    assert!(status.peers.is_empty() && status.last_success.is_none());
    // Neither asking nor a change in the kernel brings it back.
    running.mesh.reconcile();
    running.kernel_changes.send(KernelChange::Policy).await.unwrap();
    running.mesh.take_down().await.unwrap().unwrap();
    assert!(gone(&kernel));

    kernel.state().failing.clear();
    running.desired.send_replace(Arc::new(desired([peer("n_b", 2, None)])));
    running.identity.send_replace(Some(Arc::new(identity())));
    crate::control::dev::until("the mesh", async || (!gone(&kernel)).then_some(())).await;
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_interface_that_cannot_be_removed_keeps_its_policy_and_is_named() {
    let mut rig = started(ALLOW).await;
    rig.identity.send_replace(None);
    rig.kernel.state().failing.insert("remove interface");
    let error = rig.reconciler.take_down().await.unwrap_err().to_string();
    assert!(error.contains("remove interface"), "{error}");
    assert!(rig.kernel.state().table.is_some());
}
