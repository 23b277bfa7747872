//! Links, addresses and routes over rtnetlink. Touches the main routing table and plexd's own ([`super::rules`]), and only
//! routes through the interface it is given; never replaces a route.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::pin::pin;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};

use super::route::{
    MAIN, address_of, destination_of, family_of, interface_of, is_host, is_link_local, is_own, owners_of,
    route_to_add, route_to_match, route_to_remove, table_of,
};
use super::rtnl::{self, Link, Rtnl, into_io, within};
use super::rules::{ObservedRules, OwnTable, Rule, Uids};
use super::{AddressConflict, KernelError, Network, ObservedLink, RouteConflict};

pub use super::route::ROUTE_PROTOCOL;

/// Requests under way at a time. The kernel's answers wait in the socket's receive buffer, which holds some 270.
const IN_FLIGHT: usize = 64;

/// Addresses that are asked for one by one; for more, all routes are read.
const FEW: usize = 16;

/// [`Network`] of the kernel, in the network namespace of the thread that created it.
#[derive(Debug)]
pub struct RtNetlink {
    pub(super) rtnl: Rtnl,
    /// Whom rules leave out: the user that this process is when it creates this.
    pub(super) uids: Uids,
}

impl RtNetlink {
    /// Opens the rtnetlink connection, inside a tokio runtime.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn new() -> Result<Self, KernelError> {
        let rtnl = Rtnl::new().map_err(|error| KernelError::new("open", "an rtnetlink socket", error))?;
        let uids =
            Uids::of_process().map_err(|error| KernelError::new("read", "/proc/self/uid_map", error))?;
        Ok(Self { rtnl, uids })
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

    /// Dumps the routes of one address family that `filter` lets the kernel tell.
    async fn dump(&self, family: AddressFamily, filter: &[RouteAttribute]) -> io::Result<Vec<RouteMessage>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.attributes = filter.to_vec();
        let request = self.rtnl.handle()?.route().get(message);
        let mut routes: Vec<RouteMessage> =
            within(async { request.execute().try_collect().await.map_err(into_io) }).await?;
        // A kernel without IPv6 answers a dump of its routes with all it has.
        routes.retain(|route| route.header.address_family == family);
        Ok(routes)
    }

    /// Dumps a routing table of one address family.
    pub(super) async fn table(&self, family: AddressFamily, table: u32) -> io::Result<Vec<RouteMessage>> {
        match self.dump(family, &[RouteAttribute::Table(table)]).await {
            Ok(mut routes) => {
                routes.retain(|route| table_of(route) == table);
                Ok(routes)
            }
            // A table is made with its first route.
            Err(error) if rtnl::is(&error, Errno::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Returns the destinations of the interface's routes, those of the main table and those of plexd's own.
    async fn own_routes(&self, index: u32) -> io::Result<(BTreeSet<IpNet>, BTreeSet<IpNet>)> {
        let (mut main, mut apart) = (BTreeSet::new(), BTreeSet::new());
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let routes = self.dump(family, &[RouteAttribute::Oif(index)]).await?;
            for route in routes.iter().filter(|route| is_own(route, index)) {
                let Some(destination) = destination_of(route) else { continue };
                let table = table_of(route);
                if table == MAIN {
                    main.insert(destination);
                } else if table == OwnTable::of(&destination).number() {
                    apart.insert(destination);
                }
            }
        }
        Ok((main, apart))
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
                let mut routes = self.table(family, MAIN).await?;
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
                table_of(route) == MAIN
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

    /// Looks `address` up on every interface but `interface`. The prefix length does not matter.
    async fn others_with(&self, interface: &str, address: IpAddr) -> io::Result<Vec<AddressConflict>> {
        let request = self.rtnl.handle()?.address().get();
        let messages: Vec<AddressMessage> =
            within(async { request.execute().try_collect().await.map_err(into_io) }).await?;
        let mut conflicts = Vec::new();
        for message in messages {
            let Some(found) = address_of(&message).filter(|found| found.addr() == address) else { continue };
            // One that went meanwhile is no conflict.
            let link = self.rtnl.link_by_index(message.header.index).await?;
            if let Some(link) = link.filter(|link| link.name != interface) {
                conflicts.push(AddressConflict { address: found, interface: link.name });
            }
        }
        Ok(conflicts)
    }

    async fn add_route(&self, index: u32, destination: IpNet, table: u32) -> io::Result<()> {
        let request = self.rtnl.handle()?.route().add(route_to_add(&destination, index, table));
        within(async { request.execute().await.map_err(into_io) }).await
    }

    async fn remove_route(&self, index: u32, destination: IpNet, table: u32) -> io::Result<()> {
        let request = self.rtnl.handle()?.route().del(route_to_remove(&destination, index, table));
        match within(async { request.execute().await.map_err(into_io) }).await {
            Err(error) if rtnl::is(&error, Errno::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// Adds routes, each to the table that `table` says, and returns those that were there already. One that cannot be
    /// added keeps none of the others out.
    async fn add_each(
        &self,
        (interface, index): (&str, u32),
        routes: Vec<IpNet>,
        table: impl Fn(&IpNet) -> u32,
    ) -> Result<Vec<IpNet>, KernelError> {
        let table = &table;
        let mut results = stream::iter(routes)
            .map(|to| async move { (to, self.add_route(index, to, table(&to)).await) })
            .buffer_unordered(IN_FLIGHT);
        let mut there = Vec::new();
        let mut first_error = None;
        while let Some((destination, result)) = results.next().await {
            match result {
                Ok(()) => {}
                Err(error) if rtnl::is(&error, Errno::EEXIST) => there.push(destination),
                Err(error) => {
                    first_error.get_or_insert((destination, error));
                }
            }
        }
        let Some((destination, error)) = first_error else { return Ok(there) };
        Err(KernelError::new("add route", format!("{destination} through {interface}"), error))
    }

    /// Removes routes, each from the table that `table` says.
    async fn remove_each(
        &self,
        interface: &str,
        routes: &[IpNet],
        table: impl Fn(&IpNet) -> u32,
    ) -> Result<(), KernelError> {
        let link = self.rtnl.link(interface).await;
        let link = link.map_err(|error| KernelError::new("remove routes through", interface, error))?;
        // The routes went with the interface.
        let Some(Link { index, .. }) = link else { return Ok(()) };
        let table = &table;
        let mut results = stream::iter(routes.iter().copied())
            .map(|to| async move { (to, self.remove_route(index, to, table(&to)).await) })
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

/// Returns the number of plexd's own table for a route.
fn own_table(destination: &IpNet) -> u32 {
    OwnTable::of(destination).number()
}

/// Runs a change for each rule; one that fails keeps none of the others out. Returns the first error.
async fn each<'a, F>(
    operation: &'static str,
    rules: &'a [Rule],
    change: impl Fn(&'a Rule) -> F,
) -> Result<(), KernelError>
where
    F: Future<Output = io::Result<()>>,
{
    let mut first_error = None;
    for rule in rules {
        if let Err(error) = change(rule).await {
            first_error.get_or_insert(KernelError::new(operation, rule, error));
        }
    }
    first_error.map_or(Ok(()), Err)
}

#[async_trait]
impl Network for RtNetlink {
    async fn observe(&self, interface: &str) -> Result<Option<ObservedLink>, KernelError> {
        let failed = |error| KernelError::new("read", interface, error);
        let Some(link) = self.rtnl.link(interface).await.map_err(failed)? else { return Ok(None) };
        let addresses = self.addresses(link.index).await.map_err(failed)?;
        let (routes, apart) = self.own_routes(link.index).await.map_err(failed)?;
        Ok(Some(ObservedLink { up: link.up, mtu: link.mtu, addresses, routes, apart }))
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

    async fn address_conflicts(
        &self,
        interface: &str,
        address: IpAddr,
    ) -> Result<Vec<AddressConflict>, KernelError> {
        let failed = |error| KernelError::new("look up who has address", address, error);
        self.others_with(interface, address).await.map_err(failed)
    }

    async fn add_routes(&self, interface: &str, routes: &[IpNet]) -> Result<Vec<RouteConflict>, KernelError> {
        let index = self.require("add routes through", interface).await?.index;
        let failed = |error| KernelError::new("read the routes that conflict with", interface, error);
        let mut taken = self.foreign_to(index, routes).await.map_err(failed)?;
        let free: Vec<IpNet> =
            routes.iter().filter(|route| !taken.contains_key(&route.trunc())).copied().collect();
        let there = self.add_each((interface, index), free, |_| MAIN).await?;
        if !there.is_empty() {
            // Through our interface, unless somebody added one since.
            taken.extend(self.foreign(index, &there).await.map_err(failed)?);
        }
        self.conflicts(taken).await.map_err(failed)
    }

    async fn remove_routes(&self, interface: &str, routes: &[IpNet]) -> Result<(), KernelError> {
        self.remove_each(interface, routes, |_| MAIN).await
    }

    async fn observe_rules(
        &self,
        interface: &str,
        tables: &BTreeSet<OwnTable>,
        towards: &[IpAddr],
    ) -> Result<ObservedRules, KernelError> {
        let rules = self.read_rules(interface, tables, towards).await;
        rules.map_err(|error| KernelError::new("read", "the routing rules", error))
    }

    async fn add_rules(&self, rules: &[Rule]) -> Result<(), KernelError> {
        each("add routing rule", rules, |rule| self.add_rule(rule)).await
    }

    async fn remove_rules(&self, rules: &[Rule]) -> Result<(), KernelError> {
        each("remove routing rule", rules, |rule| self.remove_rule(rule)).await
    }

    async fn add_apart(&self, interface: &str, routes: &[IpNet]) -> Result<(), KernelError> {
        let index = self.require("add routes through", interface).await?.index;
        self.add_each((interface, index), routes.to_vec(), own_table).await.map(|_there| ())
    }

    async fn remove_apart(&self, interface: &str, routes: &[IpNet]) -> Result<(), KernelError> {
        self.remove_each(interface, routes, own_table).await
    }
}
