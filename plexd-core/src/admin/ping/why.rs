//! Why an echo cannot be sent or was not answered, in one line with the way out. Pure: judges policy and what is known of the
//! peer.

use std::io;

use ipnet::IpNet;
use nix::errno::Errno;

use crate::policy::{self, Action, Context, Flow, ICMP, ICMP_V6, PolicySet};
use crate::reconcile::{FRESH, PeerStatus, Routes};
use crate::types::NodeId;

/// Returns how policy of this node denies an echo to the peer; `None` if it does not. An answer needs no rule of its own:
/// packets are judged by who opened their connection.
pub(super) fn denied(policies: &PolicySet, context: &Context, peer: &PeerStatus) -> Option<String> {
    let protocol = if peer.mesh_ip.is_ipv4() { ICMP } else { ICMP_V6 };
    let flow = Flow { source: context.mesh_ip, destination: peer.mesh_ip, protocol, port: 0 };
    let decision = policy::evaluate(policies, context, &flow);
    if decision.action == Action::Allow {
        return None;
    }
    let whom = format!("policy denies icmp to {} ({})", peer.id, peer.mesh_ip);
    let out = way_out(&context.node, &peer.id);
    let Some((policy, number)) = decision.rule.and_then(|position| policies.locate(position)) else {
        return Some(format!("{whom}: no rule allows it, and the default is deny; {out}"));
    };
    Some(format!("{whom}: rule {number} of policy {} denies it; before it, {out}", policy.id))
}

fn way_out(node: &NodeId, peer: &NodeId) -> String {
    format!("allow it by a rule from {node} to {peer} without protocol and port")
}

/// Returns why no echo can go to the peer at all, whatever policy says of ICMP; `None` if one can.
pub(super) fn unconfigured(node: &NodeId, peer: &PeerStatus) -> Option<String> {
    let PeerStatus { id, .. } = peer;
    if peer.routes == Routes::Hidden {
        let out = way_out(node, id);
        return Some(format!("policy hides {id}: no rule lets this node and {id} talk; {out}"));
    }
    if peer.configured {
        return None;
    }
    let why = peer.problem.as_deref().unwrap_or("see: plexd-ctl status");
    Some(format!("{id} is not configured in WireGuard: {why}"))
}

/// Returns what an answer does not show: that what applications send takes another way.
pub(super) fn remark(peer: &PeerStatus) -> Option<String> {
    let Routes::Incomplete(unrouted) = &peer.routes else { return None };
    let own = unrouted.iter().find(|unrouted| unrouted.network == IpNet::from(peer.mesh_ip))?;
    Some(format!("{own}: echoes go through the tunnel all the same, what applications send does not"))
}

/// Returns why no echo of several was answered, as far as this node can tell.
pub(super) fn unanswered(node: &NodeId, peer: &PeerStatus) -> String {
    let id = &peer.id;
    let Some(age) = peer.handshake_age else {
        return match &peer.endpoint {
            Some(endpoint) => format!(
                "{id} never had a handshake with this node: check that it is up, that it knows this node, and that UDP to \
                 {endpoint} passes"
            ),
            None => format!(
                "{id} never had a handshake with this node, and no endpoint of it is known: it has to begin; check that \
                 it is up and knows this node"
            ),
        };
    };
    let seconds = age.as_secs();
    if age >= FRESH {
        let endpoint = peer.endpoint.as_deref().unwrap_or("its endpoint");
        return format!(
            "the last handshake with {id} was {seconds} s ago: check that it is up, and that UDP to {endpoint} passes"
        );
    }
    format!(
        "the last handshake with {id} was {seconds} s ago: it is down since, or drops the echo; its policy, too, has to \
         allow icmp from {node}"
    )
}

/// Returns what to set where the kernel lets this process, in group `gid`, open no socket for echoes, `range` being
/// `net.ipv4.ping_group_range`.
pub(super) fn not_permitted(range: &str, gid: u32) -> String {
    let bounds: Vec<u32> = range.split_whitespace().filter_map(|bound| bound.parse().ok()).collect();
    // Nobody is in a range like "1 0".
    let (low, high) = match bounds[..] {
        [low, high] if low <= high => (low.min(gid), high.max(gid)),
        _ => (gid, gid),
    };
    let shown =
        if bounds.len() == 2 { format!("{} {}", bounds[0], bounds[1]) } else { "unreadable".to_owned() };
    format!(
        "plexd-core may send no echo: its group {gid} is outside net.ipv4.ping_group_range ({shown}); set: sysctl -w \
         net.ipv4.ping_group_range=\"{low} {high}\""
    )
}

/// Returns why an echo was not sent or did not arrive.
pub(super) fn unreachable(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => "a firewall on this node drops it".to_owned(),
        // What WireGuard of the kernel says of a packet it cannot send (wg_xmit).
        Some(Errno::ENOKEY) => "WireGuard has no peer with this address".to_owned(),
        Some(Errno::EDESTADDRREQ) => "no endpoint of the peer is known".to_owned(),
        Some(errno) => errno.desc().to_lowercase(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::policy::Action::{Allow, Deny};
    use crate::policy::{Policy, Rule, Selector, Service};
    use crate::reconcile::{Unrouted, Why};
    use crate::types::PublicKey;

    fn node() -> NodeId {
        "n_a".parse().unwrap()
    }

    fn peer(endpoint: Option<&str>, age: Option<u64>) -> PeerStatus {
        PeerStatus {
            id: "n_b".parse().unwrap(),
            public_key: PublicKey::from_bytes([2; 32]),
            mesh_ip: [10, 100, 0, 2].into(),
            endpoint: endpoint.map(str::to_owned),
            allowed_ips: ["10.100.0.2/32".parse().unwrap()].into(),
            configured: true,
            problem: None,
            handshake_age: age.map(Duration::from_secs),
            rx_bytes: 0,
            tx_bytes: 0,
            routes: Routes::Routed,
        }
    }

    fn context(default: Action) -> Context {
        Context {
            node: node(),
            mesh_ip: [10, 100, 0, 1].into(),
            members: BTreeMap::from([("n_b".parse().unwrap(), ["10.100.0.2/32".parse().unwrap()].into())]),
            interface: "plexd0".to_owned(),
            default,
            enabled: true,
            log_denied: false,
        }
    }

    fn rule(src: &str, dst: &str, service: Service, action: Action) -> Rule {
        let selector = |id: &str| if id == "*" { Selector::Any } else { Selector::Node(id.parse().unwrap()) };
        Rule { src: selector(src), dst: selector(dst), service, action }
    }

    #[test]
    fn a_denial_names_the_rule_or_the_default_and_the_way_out() {
        let policy = |id: &str, rules| Policy { id: id.to_owned(), rules };
        let tcp = rule("n_a", "n_b", Service::Tcp(None), Allow);
        let out = "allow it by a rule from n_a to n_b without protocol and port";
        let of = |policies, default| {
            denied(&PolicySet { policies }, &context(default), &peer(None, None)).unwrap_or_default()
        };
        let by_default = format!(
            "policy denies icmp to n_b (10.100.0.2): no rule allows it, and the default is deny; {out}"
        );
        assert_eq!(of(vec![], Deny), by_default);
        assert_eq!(of(vec![policy("web", vec![tcp.clone()])], Deny), by_default);
        // From there to here is another thing.
        let back = rule("n_b", "n_a", Service::Any, Allow);
        assert_eq!(of(vec![policy("web", vec![back])], Deny), by_default);
        let deny = rule("*", "n_b", Service::Any, Deny);
        let two = vec![policy("web", vec![tcp.clone()]), policy("rest", vec![tcp, deny])];
        let by_rule = "policy denies icmp to n_b (10.100.0.2): rule 2 of policy rest denies it; before it, ";
        assert_eq!(of(two, Allow), format!("{by_rule}{out}"));
        assert_eq!(of(vec![policy("all", vec![rule("n_a", "n_b", Service::Any, Allow)])], Deny), "");
        assert_eq!(of(vec![], Allow), "");
    }

    #[test]
    fn a_peer_that_is_not_configured_says_why() {
        let mut peer = peer(None, None);
        assert_eq!(unconfigured(&node(), &peer), None);
        peer.configured = false;
        peer.problem = Some("has this node's own id or key".to_owned());
        peer.routes = Routes::NotRouted;
        let told = unconfigured(&node(), &peer).unwrap();
        assert_eq!(told, "n_b is not configured in WireGuard: has this node's own id or key");
        peer.routes = Routes::Hidden;
        let told = unconfigured(&node(), &peer).unwrap();
        assert!(
            told.starts_with("policy hides n_b: no rule lets this node and n_b talk; allow it by"),
            "{told}"
        );
    }

    #[test]
    fn an_answer_is_not_all_where_the_route_to_the_peer_is_somebody_elses() {
        let mut peer = peer(None, None);
        assert_eq!(remark(&peer), None);
        let unrouted = |network: &str, why| Unrouted { network: network.parse().unwrap(), why };
        let other = unrouted("10.7.0.0/16", Why::Missing);
        peer.routes = Routes::Incomplete(vec![other.clone()]);
        assert_eq!(remark(&peer), None);
        let own = unrouted("10.100.0.2/32", Why::Route(Some("eth1".to_owned())));
        peer.routes = Routes::Incomplete(vec![other, own]);
        let told = remark(&peer).unwrap();
        assert!(
            told.starts_with("10.100.0.2/32 belongs to eth1: echoes go through the tunnel all the same"),
            "{told}"
        );
    }

    #[test]
    fn silence_is_explained_by_the_last_handshake() {
        let of = |endpoint, age| unanswered(&node(), &peer(endpoint, age));
        for (endpoint, age, expected) in [
            (Some("192.0.2.2:51820"), None, "never had a handshake with this node: check that it is up"),
            (Some("192.0.2.2:51820"), None, "UDP to 192.0.2.2:51820 passes"),
            (None, None, "no endpoint of it is known"),
            (
                Some("192.0.2.2:51820"),
                Some(180),
                "was 180 s ago: check that it is up, and that UDP to 192.0.2.2:51820",
            ),
            (None, Some(179), "was 179 s ago: it is down since, or drops the echo"),
        ] {
            let told = of(endpoint, age);
            assert!(told.contains(expected) && told.contains("n_b") && !told.contains('\n'), "{told}");
        }
    }

    #[test]
    fn what_to_set_keeps_the_groups_that_are_in_the_range() {
        for (range, set) in [
            ("1\t0\n", "(1 0); set: sysctl -w net.ipv4.ping_group_range=\"987 987\""),
            ("0\t100\n", "(0 100); set: sysctl -w net.ipv4.ping_group_range=\"0 987\""),
            ("1000\t2000\n", "(1000 2000); set: sysctl -w net.ipv4.ping_group_range=\"987 2000\""),
            ("", "(unreadable); set: sysctl -w net.ipv4.ping_group_range=\"987 987\""),
        ] {
            let told = not_permitted(range, 987);
            assert!(told.contains("its group 987 is outside") && told.ends_with(set), "{told}");
        }
    }

    #[test]
    fn errors_are_told_without_their_numbers() {
        let of = |errno: Errno| unreachable(&io::Error::from_raw_os_error(errno as i32));
        assert_eq!(of(Errno::EPERM), "a firewall on this node drops it");
        assert_eq!(of(Errno::ENOKEY), "WireGuard has no peer with this address");
        assert_eq!(of(Errno::EHOSTUNREACH), "no route to host");
    }
}
