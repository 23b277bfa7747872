//! Links, addresses and routes over rtnetlink. Touches the main routing table and only routes through the interface it
//! is given; never replaces a route.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::rtnl::{self, Link, Rtnl, into_io, within};
use super::{KernelError, Network, ObservedLink, RouteConflict};

/// `rtm_protocol` of the routes plexd adds, by which an administrator tells them from others (`ip route show proto
/// 112`). 112 is `p`; `/etc/iproute2/rt_protos` gives it to nobody.
pub const ROUTE_PROTOCOL: u8 = 112;

/// Requests under way at a time. The kernel's answers wait in the socket's receive buffer, which holds some 270.
const IN_FLIGHT: usize = 64;

/// Addresses that are asked for one by one; for more, all routes are read.
const FEW: usize = 16;

/// [`Network`] of the kernel, in the network namespace of the thread that created it.
#[derive(Debug)]
pub struct RtNetlink {
    rtnl: Rtnl,
}

impl RtNetlink {
    /// Opens the rtnetlink connection, inside a tokio runtime.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn new() -> Result<Self, KernelError> {
        let rtnl = Rtnl::new().map_err(|error| KernelError::new("open", "an rtnetlink socket", error))?;
        Ok(Self { rtnl })
    }

    /// Returns the netlink port that changes are asked for from, which the kernel tells whoever follows them.
    pub fn port(&self) -> u32 {
        self.rtnl.port()
    }

    /// Looks the interface up for `operation`, for which it must be there.
    async fn require(&self, operation: &'static str, interface: &str) -> Result<Link, KernelError> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "there is no such interface");
        let link = self.rtnl.link(interface).await.and_then(|link| link.ok_or_else(missing));
        link.map_err(|error| KernelError::new(operation, interface, error))
    }

    async fn addresses(&self, index: u32) -> io::Result<BTreeSet<IpNet>> {
        let mut request = self.rtnl.handle()?.address().get().set_link_index_filter(index);
        request.message_mut().header.index = index;
        let messages: Vec<AddressMessage> =
            within(async { request.execute().try_collect().await.map_err(into_io) }).await?;
        let addresses = messages.iter().filter_map(address_of);
        Ok(addresses.filter(|address| !is_link_local(address)).collect())
    }

    /// Dumps the main routing table of one address family, of one interface or of all.
    async fn routes(&self, family: AddressFamily, through: Option<u32>) -> io::Result<Vec<RouteMessage>> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        filter.header.table = RouteHeader::RT_TABLE_MAIN;
        filter.attributes.extend(through.map(RouteAttribute::Oif));
        let request = self.rtnl.handle()?.route().get(filter);
        let mut routes: Vec<RouteMessage> =
            within(async { request.execute().try_collect().await.map_err(into_io) }).await?;
        // A kernel without IPv6 answers a dump of its routes with all it has.
        routes.retain(|route| {
            route.header.address_family == family && table_of(route) == u32::from(RouteHeader::RT_TABLE_MAIN)
        });
        Ok(routes)
    }

    async fn own_routes(&self, index: u32) -> io::Result<BTreeSet<IpNet>> {
        let mut own = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let routes = self.routes(family, Some(index)).await?;
            own.extend(routes.iter().filter(|route| is_own(route, index)).filter_map(destination_of));
        }
        Ok(own)
    }

    /// Maps those of `destinations` to which a route leads that does not go through the interface `index` to the
    /// interface of that route, if it has one. Whatever its metric: ours would override it, or lose to it in silence.
    async fn foreign(&self, index: u32, destinations: &[IpNet]) -> io::Result<BTreeMap<IpNet, Option<u32>>> {
        let mut foreign = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let destinations: BTreeSet<IpNet> = destinations
                .iter()
                .filter(|destination| family_of(destination) == family)
                .map(IpNet::trunc)
                .collect();
            if !destinations.is_empty() {
                let mut routes = self.routes(family, None).await?;
                routes.retain(|route| {
                    !route.attributes.contains(&RouteAttribute::Oif(index))
                        && destination_of(route).is_some_and(|to| destinations.contains(&to))
                });
                foreign.extend(owners_of(&routes));
            }
        }
        Ok(foreign)
    }

    /// As [`RtNetlink::foreign`], by one question for each destination where they are few and single addresses: that costs
    /// the same however many routes there are.
    async fn foreign_to(
        &self,
        index: u32,
        destinations: &[IpNet],
    ) -> io::Result<BTreeMap<IpNet, Option<u32>>> {
        if destinations.len() > FEW || !destinations.iter().all(is_host) {
            return self.foreign(index, destinations).await;
        }
        let mut foreign = BTreeMap::new();
        for destination in destinations {
            let request = self.rtnl.handle()?.route().get(route_to_match(destination));
            let answer = within(async { pin!(request.execute()).try_next().await.map_err(into_io) }).await;
            let route = match answer {
                Ok(route) => route,
                Err(error) if rtnl::is(&error, Errno::ENETUNREACH) => None,
                // Perhaps a route that leads nowhere, of which the kernel says no more.
                Err(_) => return self.foreign(index, destinations).await,
            };
            let is_foreign = |route: &RouteMessage| {
                table_of(route) == u32::from(RouteHeader::RT_TABLE_MAIN)
                    && destination_of(route) == Some(*destination)
                    && !route.attributes.contains(&RouteAttribute::Oif(index))
            };
            if let Some(route) = route.filter(is_foreign) {
                foreign.insert(*destination, interface_of(&route));
            }
        }
        Ok(foreign)
    }

    /// Names the owners of the destinations in `taken`.
    async fn conflicts(&self, taken: BTreeMap<IpNet, Option<u32>>) -> io::Result<Vec<RouteConflict>> {
        let mut conflicts = Vec::new();
        for (destination, owner) in taken {
            let owner = match owner {
                Some(owner) => self.rtnl.link_by_index(owner).await?.map(|link| link.name),
                None => None,
            };
            conflicts.push(RouteConflict { destination, owner });
        }
        Ok(conflicts)
    }

    async fn add_route(&self, index: u32, destination: IpNet) -> io::Result<()> {
        let request = self.rtnl.handle()?.route().add(route_to_add(&destination, index));
        within(async { request.execute().await.map_err(into_io) }).await
    }

    async fn remove_route(&self, index: u32, destination: IpNet) -> io::Result<()> {
        let request = self.rtnl.handle()?.route().del(route_to_remove(&destination, index));
        match within(async { request.execute().await.map_err(into_io) }).await {
            Err(error) if rtnl::is(&error, Errno::ESRCH) => Ok(()),
            result => result,
        }
    }
}

#[async_trait]
impl Network for RtNetlink {
    async fn observe(&self, interface: &str) -> Result<Option<ObservedLink>, KernelError> {
        let failed = |error| KernelError::new("read", interface, error);
        let Some(link) = self.rtnl.link(interface).await.map_err(failed)? else { return Ok(None) };
        Ok(Some(ObservedLink {
            up: link.up,
            mtu: link.mtu,
            addresses: self.addresses(link.index).await.map_err(failed)?,
            routes: self.own_routes(link.index).await.map_err(failed)?,
        }))
    }

    async fn bring_up(&self, interface: &str, mtu: u32) -> Result<(), KernelError> {
        let failed = |error| KernelError::new("set the MTU of and bring up", interface, error);
        let link = self.require("bring up", interface).await?;
        let change = LinkUnspec::new_with_index(link.index).mtu(mtu).up().build();
        let request = self.rtnl.handle().map_err(failed)?.link().change(change);
        within(async { request.execute().await.map_err(into_io) }).await.map_err(failed)
    }

    async fn bring_down(&self, interface: &str) -> Result<(), KernelError> {
        let failed = |error| KernelError::new("take down", interface, error);
        let Some(link) = self.rtnl.link(interface).await.map_err(failed)? else { return Ok(()) };
        let change = LinkUnspec::new_with_index(link.index).down().build();
        let request = self.rtnl.handle().map_err(failed)?.link().change(change);
        match within(async { request.execute().await.map_err(into_io) }).await {
            Err(error) if rtnl::is(&error, Errno::ENODEV) => Ok(()),
            result => result.map_err(failed),
        }
    }

    async fn add_address(&self, interface: &str, address: IpNet) -> Result<(), KernelError> {
        let failed = |error| KernelError::new("add address", format!("{address} to {interface}"), error);
        let link = self.require("add an address to", interface).await?;
        let handle = self.rtnl.handle().map_err(failed)?;
        let request = handle.address().add(link.index, address.addr(), address.prefix_len());
        match within(async { request.execute().await.map_err(into_io) }).await {
            // IPv6 says so as well for the same address with another prefix length, which is not what was asked for.
            Err(error) if rtnl::is(&error, Errno::EEXIST) => {
                let there = self.addresses(link.index).await.map_err(failed)?;
                if there.contains(&address) { Ok(()) } else { Err(failed(error)) }
            }
            result => result.map_err(failed),
        }
    }

    async fn remove_address(&self, interface: &str, address: IpNet) -> Result<(), KernelError> {
        let failed = |error| KernelError::new("remove address", format!("{address} from {interface}"), error);
        let Some(link) = self.rtnl.link(interface).await.map_err(failed)? else { return Ok(()) };
        let mut message = AddressMessage::default();
        message.header.family = family_of(&address);
        message.header.prefix_len = address.prefix_len();
        message.header.index = link.index;
        message.attributes.push(AddressAttribute::Local(address.addr()));
        let request = self.rtnl.handle().map_err(failed)?.address().del(message);
        match within(async { request.execute().await.map_err(into_io) }).await {
            Err(error) if rtnl::is(&error, Errno::EADDRNOTAVAIL) => Ok(()),
            result => result.map_err(failed),
        }
    }

    async fn add_routes(&self, interface: &str, routes: &[IpNet]) -> Result<Vec<RouteConflict>, KernelError> {
        let index = self.require("add routes through", interface).await?.index;
        let failed = |error| KernelError::new("read the routes that conflict with", interface, error);
        let mut taken = self.foreign_to(index, routes).await.map_err(failed)?;
        let free: Vec<IpNet> =
            routes.iter().filter(|route| !taken.contains_key(&route.trunc())).copied().collect();
        let mut results = stream::iter(free)
            .map(|destination| async move { (destination, self.add_route(index, destination).await) })
            .buffer_unordered(IN_FLIGHT);
        let mut there = Vec::new();
        let mut first_error = None;
        // One route that cannot be added keeps none of the others out.
        while let Some((destination, result)) = results.next().await {
            match result {
                Ok(()) => {}
                Err(error) if rtnl::is(&error, Errno::EEXIST) => there.push(destination),
                Err(error) => {
                    first_error.get_or_insert((destination, error));
                }
            }
        }
        if let Some((destination, error)) = first_error {
            let object = format!("{destination} through {interface}");
            return Err(KernelError::new("add route", object, error));
        }
        if !there.is_empty() {
            // Through our interface, unless somebody added one since.
            taken.extend(self.foreign(index, &there).await.map_err(failed)?);
        }
        self.conflicts(taken).await.map_err(failed)
    }

    async fn remove_routes(&self, interface: &str, routes: &[IpNet]) -> Result<(), KernelError> {
        let link = self.rtnl.link(interface).await;
        let link = link.map_err(|error| KernelError::new("remove routes through", interface, error))?;
        // The routes went with the interface.
        let Some(Link { index, .. }) = link else { return Ok(()) };
        let mut results = stream::iter(routes.iter().copied())
            .map(|destination| async move { (destination, self.remove_route(index, destination).await) })
            .buffer_unordered(IN_FLIGHT);
        let mut first_error = None;
        while let Some((destination, result)) = results.next().await {
            if let Err(error) = result {
                first_error.get_or_insert((destination, error));
            }
        }
        let Some((destination, error)) = first_error else { return Ok(()) };
        Err(KernelError::new("remove route", format!("{destination} through {interface}"), error))
    }
}

fn family_of(net: &IpNet) -> AddressFamily {
    match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

fn address_of(message: &AddressMessage) -> Option<IpNet> {
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

fn is_link_local(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(address) if address.addr().is_unicast_link_local())
}

fn table_of(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or_else(|| u32::from(route.header.table))
}

/// Destination of a route, with no host bits; the default route of its family if it has none.
fn destination_of(route: &RouteMessage) -> Option<IpNet> {
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
fn interface_of(route: &RouteMessage) -> Option<u32> {
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
fn is_own(route: &RouteMessage, index: u32) -> bool {
    route.header.kind == RouteType::Unicast
        && route.header.protocol != RouteProtocol::Kernel
        && route.attributes.contains(&RouteAttribute::Oif(index))
        && destination_of(route).is_some_and(|destination| !is_link_local(&destination))
}

/// Maps each destination to the interface of its route, the preferred one where there are several.
fn owners_of(routes: &[RouteMessage]) -> BTreeMap<IpNet, Option<u32>> {
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

fn route_through(destination: &IpNet, index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(destination);
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.attributes =
        vec![RouteAttribute::Destination(destination.network().into()), RouteAttribute::Oif(index)];
    message
}

fn route_to_add(destination: &IpNet, index: u32) -> RouteMessage {
    let mut message = route_through(destination, index);
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = match destination {
        IpNet::V4(_) => RouteScope::Link,
        IpNet::V6(_) => RouteScope::Universe,
    };
    message
}

/// Whether it is a single address.
fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// Asks for the route that leads to an address, as it is in its table.
fn route_to_match(destination: &IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(destination);
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.flags = RouteFlags::FibMatch;
    message.attributes = vec![RouteAttribute::Destination(destination.addr().into())];
    message
}

/// Matches whatever route goes there through the interface: scope "nowhere" and kind 0 are the kernel's "any".
fn route_to_remove(destination: &IpNet, index: u32) -> RouteMessage {
    let mut message = route_through(destination, index);
    message.header.scope = RouteScope::NoWhere;
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn route(destination: &str, index: u32, metric: u32) -> RouteMessage {
        let mut message = route_to_add(&net(destination), index);
        message.attributes.push(RouteAttribute::Priority(metric));
        message
    }

    #[test]
    fn host_bits_do_not_reach_the_kernel() {
        for (destination, expected) in
            [("10.1.2.3/16", "10.1.0.0/16"), ("fd00::1/64", "fd00::/64"), ("0.0.0.0/0", "0.0.0.0/0")]
        {
            assert_eq!(destination_of(&route_to_add(&net(destination), 3)), Some(net(expected)));
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
