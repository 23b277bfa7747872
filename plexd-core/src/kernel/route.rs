//! Addresses and routes as messages of rtnetlink: what is asked for, and what an answer says. Sends nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

/// `rtm_protocol` of the routes plexd adds, by which an administrator tells them from others (`ip route show proto
/// 112`). 112 is `p`; `/etc/iproute2/rt_protos` gives it to nobody.
pub const ROUTE_PROTOCOL: u8 = 112;

/// Number of the main routing table.
pub(super) const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// Returns the address family of a network.
pub(super) fn family_of(net: &IpNet) -> AddressFamily {
    match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

/// Returns an interface's own address, with its prefix length.
pub(super) fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let attributes = message.attributes.iter();
    // On a point-to-point link IFA_ADDRESS is the other end's, IFA_LOCAL always ours; IPv6 leaves the latter out.
    let local = attributes.clone().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        attributes.clone().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    IpNet::new(address, message.header.prefix_len).ok()
}

/// Whether the kernel made it for the link alone.
pub(super) fn is_link_local(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(address) if address.addr().is_unicast_link_local())
}

/// Returns the number of the table a route is in.
pub(super) fn table_of(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or_else(|| u32::from(route.header.table))
}

/// Destination of a route, with no host bits; the default route of its family if it has none.
pub(super) fn destination_of(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    });
    let address = address.unwrap_or(match route.header.address_family {
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    });
    IpNet::new(address, route.header.destination_prefix_length).ok()
}

/// Interface a route goes through, the first one of several.
pub(super) fn interface_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    })
}

fn metric_of(route: &RouteMessage) -> u32 {
    let metric = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    metric.unwrap_or(0)
}

/// Whether the route goes through the interface `index` alone and was not made by the kernel itself.
pub(super) fn is_own(route: &RouteMessage, index: u32) -> bool {
    route.header.kind == RouteType::Unicast
        && route.header.protocol != RouteProtocol::Kernel
        && route.attributes.contains(&RouteAttribute::Oif(index))
        && destination_of(route).is_some_and(|destination| !is_link_local(&destination))
}

/// Maps each destination to the interface of its route, the preferred one where there are several.
pub(super) fn owners_of(routes: &[RouteMessage]) -> BTreeMap<IpNet, Option<u32>> {
    let mut preferred: BTreeMap<IpNet, (u32, Option<u32>)> = BTreeMap::new();
    for route in routes {
        let Some(destination) = destination_of(route) else { continue };
        let candidate = (metric_of(route), interface_of(route));
        preferred
            .entry(destination)
            .and_modify(|known| {
                if candidate.0 < known.0 {
                    *known = candidate;
                }
            })
            .or_insert(candidate);
    }
    preferred.into_iter().map(|(destination, (_, interface))| (destination, interface)).collect()
}

fn route_through(destination: &IpNet, index: u32, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(destination);
    message.header.destination_prefix_length = destination.prefix_len();
    message.attributes = vec![
        RouteAttribute::Destination(destination.network().into()),
        RouteAttribute::Oif(index),
        RouteAttribute::Table(table),
    ];
    message
}

/// Asks for a route of plexd's to be added.
pub(super) fn route_to_add(destination: &IpNet, index: u32, table: u32) -> RouteMessage {
    let mut message = route_through(destination, index, table);
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = match destination {
        IpNet::V4(_) => RouteScope::Link,
        IpNet::V6(_) => RouteScope::Universe,
    };
    message
}

/// Whether it is a single address.
pub(super) fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// Asks for the route that leads to an address, as it is in its table.
pub(super) fn route_to_match(destination: &IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(destination);
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.flags = RouteFlags::FibMatch;
    message.attributes = vec![RouteAttribute::Destination(destination.addr().into())];
    message
}

/// Matches whatever route goes there through the interface: scope "nowhere" and kind 0 are the kernel's "any".
pub(super) fn route_to_remove(destination: &IpNet, index: u32, table: u32) -> RouteMessage {
    let mut message = route_through(destination, index, table);
    message.header.scope = RouteScope::NoWhere;
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rules::OwnTable;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn route(destination: &str, index: u32, metric: u32) -> RouteMessage {
        let mut message = route_to_add(&net(destination), index, MAIN);
        message.attributes.push(RouteAttribute::Priority(metric));
        message
    }

    #[test]
    fn host_bits_do_not_reach_the_kernel() {
        for (destination, expected) in
            [("10.1.2.3/16", "10.1.0.0/16"), ("fd00::1/64", "fd00::/64"), ("0.0.0.0/0", "0.0.0.0/0")]
        {
            assert_eq!(
                destination_of(&route_to_add(&net(destination), 3, OwnTable::of(&net(destination)).number())),
                Some(net(expected))
            );
        }
    }

    #[test]
    fn a_default_route_has_no_destination_attribute() {
        for (family, expected) in [(AddressFamily::Inet, "0.0.0.0/0"), (AddressFamily::Inet6, "::/0")] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            assert_eq!(destination_of(&message), Some(net(expected)));
        }
    }

    #[test]
    fn routes_of_the_kernel_of_others_and_link_local_ones_are_not_own() {
        assert!(is_own(&route("10.0.0.0/24", 3, 0), 3));
        assert!(!is_own(&route("10.0.0.0/24", 4, 0), 3));
        assert!(!is_own(&route("fe80::/64", 3, 0), 3));
        let mut by_kernel = route("10.0.0.0/24", 3, 0);
        by_kernel.header.protocol = RouteProtocol::Kernel;
        assert!(!is_own(&by_kernel, 3));
        let mut blackhole = route("10.0.0.0/24", 3, 0);
        blackhole.header.kind = RouteType::BlackHole;
        assert!(!is_own(&blackhole, 3));
    }

    #[test]
    fn the_preferred_route_owns_a_destination() {
        let routes = [route("10.0.0.0/24", 5, 100), route("10.0.0.0/24", 6, 0), route("10.0.0.0/24", 7, 50)];
        assert_eq!(owners_of(&routes), BTreeMap::from([(net("10.0.0.0/24"), Some(6))]));
    }

    #[test]
    fn a_route_without_an_interface_owns_its_destination_all_the_same() {
        let mut blackhole = RouteMessage::default();
        blackhole.header.address_family = AddressFamily::Inet;
        blackhole.header.destination_prefix_length = 32;
        blackhole.attributes.push(RouteAttribute::Destination(RouteAddress::Inet([10, 0, 0, 9].into())));
        assert_eq!(owners_of(&[blackhole]), BTreeMap::from([(net("10.0.0.9/32"), None)]));
    }

    #[test]
    fn the_local_address_of_a_point_to_point_link_is_ours() {
        let mut message = AddressMessage::default();
        message.header.prefix_len = 32;
        message.attributes = vec![
            AddressAttribute::Address("10.0.0.2".parse().unwrap()),
            AddressAttribute::Local("10.0.0.1".parse().unwrap()),
        ];
        assert_eq!(address_of(&message), Some(net("10.0.0.1/32")));
    }
}
