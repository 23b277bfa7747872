//! Tables of what is there against what should be, and the property that a plan leads where it should and ends there.

use std::collections::BTreeSet;
use std::num::NonZeroU16;

use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;

use super::*;
use crate::kernel::fake::{State, UIDS};
use crate::kernel::rules::OwnTable;
use crate::kernel::{Counters, DeviceConfig};
use crate::policy::Table;
use crate::reconcile::ownership::Ownership;
use crate::reconcile::tests::{ips, key, nets};
use crate::types::{PresharedKey, PrivateKey};

/// Plans from all that was observed.
pub(in crate::reconcile) fn plan(
    wanted: &Wanted,
    observed: &Observed,
    memory: &Memory,
    now: SystemTime,
) -> Plan {
    super::plan(wanted, observed, Prospect::of(wanted, &observed.device, memory, now))
}

const NOW: Duration = Duration::from_secs(1_000_000);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + NOW
}

fn private(seed: u8) -> PrivateKey {
    use base64::Engine as _;
    PrivateKey::from_base64(&base64::engine::general_purpose::STANDARD.encode([seed; 32])).unwrap()
}

fn same() -> ObservedTable {
    ObservedTable::Same { counters: Counters::default() }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Two peers, one with everything, and what the kernel has when all of it is done.
pub(in crate::reconcile) fn settled() -> (Wanted, Observed) {
    let config = |seed, psk: Option<u8>, endpoint: Option<&str>, allowed: &[&str]| PeerConfig {
        public_key: key(seed),
        preshared_key: psk.map(|psk| PresharedKey::from_bytes([psk; 32])),
        endpoint: endpoint.map(at),
        allowed_ips: ips(allowed),
        persistent_keepalive: NonZeroU16::new(25),
    };
    let peers = [
        ("n_b", config(2, Some(9), Some("192.0.2.2:51820"), &["10.100.0.2/32", "10.7.0.0/16"])),
        ("n_c", config(3, None, None, &["10.100.0.3/32"])),
    ];
    let wanted = Wanted {
        device: DeviceConfig { private_key: private(1), listen_port: 51820 },
        mtu: 1420,
        address: "10.100.0.1/32".parse().unwrap(),
        peers: peers
            .map(|(id, config)| (config.public_key, WantedPeer { id: id.parse().unwrap(), config }))
            .into(),
        routes: nets(&["10.100.0.2/32", "10.7.0.0/16", "10.100.0.3/32"]),
        outside: BTreeSet::new(),
        reached: BTreeSet::new(),
        table: Some(Table::default()),
        problems: BTreeMap::new(),
        ownership: Ownership::default(),
    };
    let device = ObservedDevice {
        public_key: Some(wanted.device.private_key.public()),
        listen_port: 51820,
        mark: MARK,
        peers: wanted.peers.iter().map(|(key, peer)| (*key, as_observed(&peer.config))).collect(),
    };
    let link = ObservedLink {
        up: true,
        mtu: 1420,
        addresses: BTreeSet::from([wanted.address]),
        routes: wanted.routes.clone(),
        apart: BTreeSet::new(),
    };
    let device = Reading::There(device);
    (wanted, Observed { table: Some(same()), device, link: Reading::There(link), rules: rules([]) })
}

/// What is observed of routing rules, with nobody else in the way.
pub(in crate::reconcile) fn rules(there: impl IntoIterator<Item = Rule>) -> Reading<ObservedRules> {
    Reading::There(ObservedRules {
        rules: there.into_iter().collect(),
        taken: BTreeMap::new(),
        uids: UIDS,
        strict: BTreeSet::new(),
    })
}

fn as_observed(config: &PeerConfig) -> ObservedPeer {
    ObservedPeer {
        preshared_key: config.preshared_key.clone(),
        endpoint: config.endpoint,
        allowed_ips: config.allowed_ips.clone(),
        persistent_keepalive: config.persistent_keepalive,
        ..ObservedPeer::default()
    }
}

/// A memory of where a peer was last wanted.
fn last_wanted(key: PublicKey, endpoint: Option<SocketAddr>) -> Memory {
    Memory { endpoints: endpoint.map(|at| (key, at)).into_iter().collect(), ..Memory::default() }
}

impl Observed {
    fn device(&mut self) -> &mut ObservedDevice {
        match &mut self.device {
            Reading::There(device) => device,
            _ => panic!("no device"),
        }
    }

    fn link(&mut self) -> &mut ObservedLink {
        match &mut self.link {
            Reading::There(link) => link,
            _ => panic!("no link"),
        }
    }
}

fn steps(wanted: &Wanted, observed: &Observed) -> Vec<Step> {
    plan(wanted, observed, &Memory::default(), now()).steps.into_iter().map(|planned| planned.step).collect()
}

fn kinds(wanted: &Wanted, observed: &Observed) -> Vec<&'static str> {
    let plan = plan(wanted, observed, &Memory::default(), now());
    plan.steps
        .iter()
        .flat_map(|planned| &planned.corrections)
        .map(|correction| correction.kind.as_str())
        .collect()
}

#[test]
fn where_nothing_differs_nothing_is_done() {
    let (wanted, mut observed) = settled();
    assert_eq!(steps(&wanted, &observed), []);
    // What peers did is theirs.
    let peer = observed.device().peers.get_mut(&key(3)).unwrap();
    peer.endpoint = Some(at("198.51.100.1:1"));
    (peer.rx_bytes, peer.tx_bytes) = (5, 6);
    assert_eq!(steps(&wanted, &observed), []);
}

#[test]
fn on_an_empty_kernel_policy_comes_first_then_the_interface_and_it_is_up_before_its_routes() {
    let (wanted, _) = settled();
    let observed = Observed { table: Some(ObservedTable::Absent), rules: rules([]), ..Observed::default() };
    let peers = wanted.peers.values().map(|peer| PeerChange::Set(peer.config.clone())).collect();
    let expected = [
        Step::ReplacePolicy,
        Step::CreateInterface,
        Step::Configure,
        Step::Peers(peers),
        Step::AddAddress(wanted.address),
        Step::BringUp,
        Step::AddRoutes(wanted.routes.iter().copied().collect()),
    ];
    assert_eq!(steps(&wanted, &observed), expected);
    assert_eq!(
        kinds(&wanted, &observed),
        [
            "policy_restored",
            "interface_restored",
            "peer_added",
            "peer_added",
            "address_restored",
            "interface_restored",
            "route_added",
            "route_added",
            "route_added"
        ]
    );
}

#[test]
fn policy_is_put_in_place_unless_it_is_there_and_taken_away_when_it_is_disabled() {
    let differs = Some(ObservedTable::Differs { what: "chain input".to_owned() });
    for (enabled, table, step, kinds_expected) in [
        (true, Some(same()), None, &[][..]),
        (true, Some(ObservedTable::Absent), Some(Step::ReplacePolicy), &["policy_restored"]),
        (true, differs.clone(), Some(Step::ReplacePolicy), &["policy_restored"]),
        // Unreadable is no drift, and no reason to carry packets without policy either.
        (true, None, Some(Step::ReplacePolicy), &[]),
        (false, Some(ObservedTable::Absent), None, &[]),
        (false, None, None, &[]),
        (false, Some(same()), Some(Step::RemovePolicy), &["policy_rule_removed"]),
        (false, differs, Some(Step::RemovePolicy), &["policy_rule_removed"]),
    ] {
        let (mut wanted, mut observed) = settled();
        wanted.table = enabled.then(Table::default);
        observed.table = table;
        assert_eq!(steps(&wanted, &observed), step.into_iter().collect::<Vec<_>>(), "{observed:?}");
        assert_eq!(kinds(&wanted, &observed), kinds_expected, "{observed:?}");
    }
}

#[test]
fn what_cannot_be_read_is_left_as_it_is() {
    let (wanted, settled_kernel) = settled();
    let unreadable = Observed {
        table: None,
        device: Reading::Unreadable,
        link: Reading::Unreadable,
        rules: Reading::Unreadable,
    };
    assert_eq!(steps(&wanted, &unreadable), [Step::ReplacePolicy]);
    let mut link_unreadable = Observed { link: Reading::Unreadable, ..settled_kernel };
    assert_eq!(steps(&wanted, &link_unreadable), []);
    link_unreadable.device().listen_port = 1;
    assert_eq!(steps(&wanted, &link_unreadable), [Step::Configure]);
}

#[test]
fn a_missing_key_or_another_port_is_set_without_touching_peers() {
    for change in
        [(|observed: &mut Observed| observed.device().public_key = None) as fn(&mut Observed), |observed| {
            observed.device().listen_port = 51821;
        }]
    {
        let (wanted, mut observed) = settled();
        change(&mut observed);
        assert_eq!(steps(&wanted, &observed), [Step::Configure]);
        assert_eq!(kinds(&wanted, &observed), ["interface_restored"]);
    }
}

#[test]
fn a_peer_that_differs_is_changed_in_place_and_keeps_its_endpoint() {
    for change in [
        (|peer: &mut ObservedPeer| peer.preshared_key = None) as fn(&mut ObservedPeer),
        |peer| peer.preshared_key = Some(PresharedKey::from_bytes([1; 32])),
        |peer| peer.allowed_ips = ips(&["10.100.0.2/32"]),
        |peer| peer.allowed_ips.extend(nets(&["10.9.0.0/16"])),
        |peer| peer.persistent_keepalive = None,
    ] {
        let (wanted, mut observed) = settled();
        let peer = observed.device().peers.get_mut(&key(2)).unwrap();
        peer.endpoint = Some(at("198.51.100.9:9"));
        peer.last_handshake = Some(now());
        change(peer);
        let config = PeerConfig { endpoint: None, ..wanted.peers[&key(2)].config.clone() };
        assert_eq!(steps(&wanted, &observed), [Step::Peers(vec![PeerChange::Set(config)])]);
        assert_eq!(kinds(&wanted, &observed), ["peer_updated"]);
    }
}

#[test]
fn peers_are_added_and_removed_in_one_step() {
    let (wanted, mut observed) = settled();
    let device = observed.device();
    let gone = device.peers.remove(&key(3)).unwrap();
    device.peers.insert(key(4), gone);
    let changes = vec![PeerChange::Remove(key(4)), PeerChange::Set(wanted.peers[&key(3)].config.clone())];
    assert_eq!(steps(&wanted, &observed), [Step::Peers(changes)]);
    assert_eq!(kinds(&wanted, &observed), ["peer_removed", "peer_added"]);
}

#[test]
fn a_peer_that_roamed_is_left_alone_until_it_falls_silent_or_the_control_plane_moves_it() {
    let wanted_at = Some("192.0.2.2:51820");
    let elsewhere = Some("198.51.100.9:9");
    let seconds = |seconds| Some(now() - Duration::from_secs(seconds));
    for (what, actual, handshake, last, is_set) in [
        ("in place", wanted_at, None, wanted_at, false),
        ("in place, and the control plane just said so", wanted_at, None, elsewhere, false),
        ("roamed, heard now", elsewhere, seconds(0), wanted_at, false),
        ("roamed, heard just within", elsewhere, seconds(179), wanted_at, false),
        ("roamed, fell silent", elsewhere, seconds(180), wanted_at, true),
        ("roamed, never heard", elsewhere, None, wanted_at, true),
        ("nowhere yet", None, None, wanted_at, true),
        ("nowhere, yet heard", None, seconds(1), wanted_at, false),
        ("moved by the control plane", elsewhere, seconds(1), elsewhere, true),
        ("roamed, this process just started", elsewhere, seconds(1), None, false),
        ("silent, this process just started", elsewhere, seconds(999), None, true),
        ("the clock was set back", elsewhere, Some(now() + Duration::from_secs(9)), wanted_at, false),
    ] {
        let (wanted, mut observed) = settled();
        let peer = observed.device().peers.get_mut(&key(2)).unwrap();
        peer.endpoint = actual.map(at);
        peer.last_handshake = handshake;
        let plan = plan(&wanted, &observed, &last_wanted(key(2), last.map(at)), now());
        let expected =
            is_set.then(|| Step::Peers(vec![PeerChange::Set(wanted.peers[&key(2)].config.clone())]));
        assert_eq!(plan.steps.into_iter().map(|planned| planned.step).next(), expected, "{what}");
    }
}

#[test]
fn address_mtu_and_state_of_the_interface_are_put_right() {
    let (wanted, mut observed) = settled();
    let foreign: IpNet = "192.168.0.1/24".parse().unwrap();
    observed.link().addresses = BTreeSet::from([foreign]);
    observed.link().up = false;
    assert_eq!(
        steps(&wanted, &observed),
        [Step::RemoveAddress(foreign), Step::AddAddress(wanted.address), Step::BringUp]
    );
    let (wanted, mut observed) = settled();
    observed.link().mtu = 1280;
    assert_eq!(steps(&wanted, &observed), [Step::BringUp]);
    assert_eq!(kinds(&wanted, &observed), ["interface_restored"]);
}

#[test]
fn routes_are_added_and_removed_in_bulk() {
    let (wanted, mut observed) = settled();
    observed.link().routes = nets(&["10.7.0.0/16", "10.1.0.0/16", "10.2.0.0/16"]);
    assert_eq!(
        steps(&wanted, &observed),
        [
            Step::AddRoutes(nets(&["10.100.0.2/32", "10.100.0.3/32"]).into_iter().collect()),
            Step::RemoveRoutes(nets(&["10.1.0.0/16", "10.2.0.0/16"]).into_iter().collect()),
        ]
    );
    assert_eq!(kinds(&wanted, &observed), ["route_added", "route_added", "route_removed", "route_removed"]);
}

#[test]
fn no_correction_tells_a_secret() {
    let (wanted, mut observed) = settled();
    observed.device().public_key = None;
    observed.device().peers.get_mut(&key(2)).unwrap().preshared_key = None;
    let plan = plan(&wanted, &observed, &Memory::default(), now());
    let psk = wanted.peers[&key(2)].config.preshared_key.as_ref().unwrap().to_base64();
    for shown in
        plan.steps.iter().flat_map(|planned| &planned.corrections).map(|correction| &correction.detail)
    {
        assert!(!shown.contains(psk.as_str()) && !shown.contains(private(1).to_base64().as_str()), "{shown}");
    }
}

#[test]
fn another_private_key_and_its_peers_are_one_step() {
    let (wanted, mut observed) = settled();
    let device = observed.device();
    device.public_key = Some(key(77));
    device.listen_port = 1;
    assert_eq!(steps(&wanted, &observed), [Step::Rekey(Vec::new())]);
    observed.device().peers.get_mut(&key(2)).unwrap().preshared_key = None;
    let config = PeerConfig { endpoint: None, ..wanted.peers[&key(2)].config.clone() };
    assert_eq!(steps(&wanted, &observed), [Step::Rekey(vec![PeerChange::Set(config)])]);
    assert_eq!(kinds(&wanted, &observed), ["interface_restored", "peer_updated"]);
}

#[test]
fn a_peer_with_another_key_takes_the_place_of_the_old_one_where_that_was_heard() {
    let roamed = at("198.51.100.7:4242");
    let wished = at("192.0.2.2:51820");
    let fresh = Some(now() - Duration::from_mins(1));
    let stale = Some(now() - FRESH);
    for (handshake, last, endpoint) in [
        (fresh, None, roamed),
        (fresh, Some(wished), roamed),
        // The control plane says that it is somewhere else.
        (fresh, Some(at("192.0.2.9:51820")), wished),
        (stale, Some(wished), wished),
        (None, None, wished),
    ] {
        let (wanted, mut observed) = settled();
        let peers = &mut observed.device().peers;
        let mut old = peers.remove(&key(2)).unwrap();
        old.endpoint = Some(roamed);
        old.last_handshake = handshake;
        peers.insert(key(50), old);
        peers.insert(key(51), ObservedPeer::default());
        let new = PeerConfig { endpoint: Some(endpoint), ..wanted.peers[&key(2)].config.clone() };
        let changes = vec![PeerChange::Remove(key(51)), PeerChange::Remove(key(50)), PeerChange::Set(new)];
        let mut first = plan(&wanted, &observed, &last_wanted(key(50), last), now());
        let memory = Memory::default().after(&mut first, &wanted);
        let after = simulate(&wanted, &observed, first.clone());
        let second = plan(&wanted, &after, &memory, now());
        assert_eq!(second.steps, [], "it is left where it was put, unheard under its new key as it is");
        let gone = now() + FRESH;
        let moved = plan(&wanted, &after, &memory, gone).steps;
        assert_eq!(moved.is_empty(), endpoint == wished, "until it should have been heard: {moved:?}");
        assert_eq!(
            first.steps.into_iter().map(|planned| planned.step).collect::<Vec<_>>(),
            [Step::Peers(changes)]
        );
    }
}

/// Takes the steps as the kernel would.
pub(in crate::reconcile) fn simulate(wanted: &Wanted, observed: &Observed, plan: Plan) -> Observed {
    let mut state = State::default();
    if let Reading::There(rules) = &observed.rules {
        state.rules.clone_from(&rules.rules);
    }
    if let Reading::There(device) = &observed.device {
        state.device = Some(device.clone());
        state.link = Some(ObservedLink::default());
    }
    if let Reading::There(link) = &observed.link {
        state.link = Some(link.clone());
    }
    let mut table = observed.table.clone();
    for Planned { step, .. } in plan.steps {
        match step {
            Step::ReplacePolicy => table = Some(same()),
            Step::RemovePolicy => table = Some(ObservedTable::Absent),
            Step::CreateInterface => {
                state.device = Some(ObservedDevice::default());
                state.link = Some(ObservedLink::default());
            }
            Step::Configure => {
                let device = state.device.as_mut().unwrap();
                device.public_key = Some(wanted.device.private_key.public());
                device.listen_port = wanted.device.listen_port;
                device.mark = MARK;
            }
            Step::Rekey(changes) => {
                let device = state.device.as_mut().unwrap();
                device.public_key = Some(wanted.device.private_key.public());
                device.listen_port = wanted.device.listen_port;
                device.mark = MARK;
                state.apply(&changes).unwrap();
            }
            Step::Peers(changes) => state.apply(&changes).unwrap(),
            Step::AddAddress(address) => assert!(state.link().addresses.insert(address)),
            Step::RemoveAddress(address) => assert!(state.link().addresses.remove(&address)),
            Step::BringUp => {
                state.link().up = true;
                state.link().mtu = wanted.mtu;
            }
            Step::AddRoutes(routes) => assert_eq!(state.add_routes(&routes), Some(Vec::new())),
            Step::RemoveRoutes(routes) => state.link().routes.retain(|route| !routes.contains(route)),
            Step::AddRules(rules) => state.rules.extend(rules),
            Step::RemoveRules(rules) => state.rules.retain(|rule| !rules.contains(rule)),
            Step::AddApart(routes) => state.link().apart.extend(routes),
            Step::RemoveApart(routes) => state.link().apart.retain(|route| !routes.contains(route)),
        }
    }
    let rules = match &observed.rules {
        Reading::There(there) => Reading::There(ObservedRules { rules: state.rules, ..there.clone() }),
        unknown => unknown.clone(),
    };
    Observed {
        table,
        device: state.device.map_or(Reading::Absent, Reading::There),
        link: state.link.map_or(Reading::Absent, Reading::There),
        rules,
    }
}

pub(in crate::reconcile) fn net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (0_u8..12).prop_map(|host| IpNet::from(std::net::IpAddr::from([10, 100, 0, host]))),
        (0_u8..4).prop_map(|net| format!("10.{net}.0.0/16").parse().unwrap()),
        (0_u8..4).prop_map(|net| format!("fd00:{net}::/32").parse().unwrap()),
        proptest::sample::select(vec![
            "0.0.0.0/0",
            "0.0.0.0/1",
            "128.0.0.0/1",
            "::/0",
            "2000::/3",
            "192.0.2.0/24"
        ])
        .prop_map(|net| net.parse().unwrap()),
        (1_u8..4).prop_map(|host| IpNet::from(std::net::IpAddr::from([192, 0, 2, host]))),
    ]
}

fn endpoint() -> impl Strategy<Value = Option<SocketAddr>> {
    proptest::option::of((1_u8..4).prop_map(|host| SocketAddr::from(([192, 0, 2, host], 51820))))
}

fn psk() -> impl Strategy<Value = Option<PresharedKey>> {
    proptest::option::of((0_u8..3).prop_map(|psk| PresharedKey::from_bytes([psk; 32])))
}

/// Gives each allowed IP to one peer only, as WireGuard does.
fn apart(peers: BTreeMap<u8, BTreeSet<IpNet>>) -> BTreeMap<u8, BTreeSet<IpNet>> {
    let mut taken = BTreeSet::new();
    let own = |nets: BTreeSet<IpNet>| nets.into_iter().filter(|net| taken.insert(*net)).collect();
    let (seeds, sets): (Vec<_>, Vec<_>) = peers.into_iter().unzip();
    seeds.into_iter().zip(sets.into_iter().map(own)).collect()
}

prop_compose! {
    pub(in crate::reconcile) fn any_wanted()(
        peers in btree_map(2_u8..8, btree_set(net(), 0..4), 0..5),
        details in proptest::collection::vec((psk(), endpoint(), 0_u16..2), 8),
        (port, mtu, address, policy) in (1_u16..3, 1280_u32..1282, 0_u8..3, any::<bool>()),
    ) -> Wanted {
        let peers = apart(peers);
        Wanted {
            device: DeviceConfig { private_key: private(1), listen_port: port },
            mtu,
            address: IpNet::from(std::net::IpAddr::from([10, 200, 0, address])),
            routes: peers.values().flatten().copied().collect(),
            peers: peers.into_iter().zip(details).map(|((seed, allowed_ips), (preshared_key, endpoint, keepalive))| {
                let config = PeerConfig {
                    public_key: key(seed),
                    preshared_key,
                    endpoint,
                    allowed_ips: allowed_ips.into_iter().collect(),
                    persistent_keepalive: NonZeroU16::new(keepalive),
                };
                (key(seed), WantedPeer { id: format!("n_{seed}").parse().unwrap(), config })
            }).collect(),
            outside: BTreeSet::new(),
            reached: BTreeSet::new(),
            table: policy.then(Table::default),
            problems: BTreeMap::new(),
            ownership: Ownership::default(),
        }
    }
}

prop_compose! {
    pub(in crate::reconcile) fn any_observed()(
        peers in btree_map(2_u8..8, btree_set(net(), 0..4), 0..5),
        details in proptest::collection::vec((psk(), endpoint(), 0_u16..2, proptest::option::of(0_u64..360)), 8),
        (is_there, own_key, port, table) in (any::<bool>(), proptest::option::of(0_u8..3), 1_u16..3, 0_u8..4),
        (up, mtu, addresses, routes) in
            (any::<bool>(), 1280_u32..1282, btree_set(0_u8..3, 0..3), btree_set(net(), 0..6)),
        (apart_there, led_to, mark) in (btree_set(net(), 0..4), btree_set(net(), 0..3), 0_u32..2),
    ) -> Observed {
        let table = match table {
            0 => None,
            1 => Some(ObservedTable::Absent),
            2 => Some(ObservedTable::Differs { what: "x".to_owned() }),
            _ => Some(same()),
        };
        if !is_there {
            return Observed { table, rules: rules([]), ..Observed::default() };
        }
        let peers = apart(peers).into_iter().zip(details).map(
            |((seed, allowed_ips), (preshared_key, endpoint, keepalive, handshake))| {
                let peer = ObservedPeer {
                    preshared_key,
                    endpoint,
                    allowed_ips: allowed_ips.into_iter().collect(),
                    persistent_keepalive: NonZeroU16::new(keepalive),
                    last_handshake: handshake.map(|age| now() - Duration::from_secs(age)),
                    ..ObservedPeer::default()
                };
                (key(seed), peer)
            });
        let device = ObservedDevice {
            public_key: own_key.map(|seed| private(seed).public()),
            listen_port: port,
            mark: mark * MARK,
            peers: peers.collect(),
        };
        let addresses =
            addresses.into_iter().map(|host| IpNet::from(std::net::IpAddr::from([10, 200, 0, host]))).collect();
        let link = ObservedLink { up, mtu, addresses, routes, apart: apart_there };
        // Of some tables not all rules, of some one that was changed.
        let there = led_to.iter().flat_map(|net| OwnTable::of(net).rules(UIDS)).enumerate().map(|(number, rule)| {
            Rule { is_plain: number % 4 != 3, ..rule }
        });
        let there = rules(there.skip(1));
        Observed { table, device: Reading::There(device), link: Reading::There(link), rules: there }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_leads_to_what_is_wanted_and_there_is_nothing_left_to_plan(
        wanted in any_wanted(), observed in any_observed()
    ) {
        let mut first = plan(&wanted, &observed, &Memory::default(), now());
        let memory = Memory::default().after(&mut first, &wanted);
        let after = simulate(&wanted, &observed, first);
        let second = plan(&wanted, &after, &memory, now());
        // A table that nobody can read and nobody wants stays out of reach.
        prop_assert_eq!(second.steps, Vec::new());
        let Reading::There(device) = after.device else { panic!("no device") };
        prop_assert_eq!(device.peers.keys().collect::<Vec<_>>(), wanted.peers.keys().collect::<Vec<_>>());
    }

    #[test]
    fn every_plan_starts_with_policy_if_it_has_any_to_set(wanted in any_wanted(), observed in any_observed()) {
        let steps = steps(&wanted, &observed);
        let policy = steps.iter().position(|step| *step == Step::ReplacePolicy);
        prop_assert!(policy.is_none_or(|position| position == 0));
        let position = |of: fn(&Step) -> bool| steps.iter().position(of);
        if let (Some(up), Some(routes)) =
            (position(|step| *step == Step::BringUp), position(|step| matches!(step, Step::AddRoutes(_))))
        {
            prop_assert!(up < routes);
        }
    }
}
