//! A kernel in memory for tests, with fault injection: each operation can be made to fail by its name. Keeps the rules
//! that plans depend on: an allowed IP belongs to one peer, routes need an interface that is up, a route that somebody
//! else owns is not replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use ipnet::IpNet;

use super::rules::{MARK, ObservedRules, OwnTable, Rule, Uids};
use super::{
    AddressConflict, Applied, Backend, Counters, DeviceConfig, Ensured, Firewall, KernelError, Network,
    ObservedDevice, ObservedLink, ObservedPeer, ObservedTable, PeerChange, RouteConflict, WireGuard,
};
use crate::policy::Table;
use crate::types::PublicKey;

/// Whom the fake's rules leave out.
pub(crate) const UIDS: Uids = Uids { own: 994, last: Uids::LAST };

/// Operations that can be made to fail.
pub(crate) const OBSERVE: [&str; 4] = ["observe table", "observe device", "observe link", "observe rules"];
/// Operations that change something, in the order of a first plan.
pub(crate) const CHANGE: [&str; 7] = [
    "replace table",
    "create interface",
    "configure",
    "apply peers",
    "add address",
    "bring up",
    "add routes",
];

/// What the kernel has.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) table: Option<Table>,
    /// What somebody changed in the table.
    pub(crate) edited: Option<String>,
    pub(crate) device: Option<ObservedDevice>,
    pub(crate) link: Option<ObservedLink>,
    /// Routes through other interfaces.
    pub(crate) foreign_routes: BTreeMap<IpNet, String>,
    /// Addresses of other interfaces.
    pub(crate) foreign_addresses: Vec<AddressConflict>,
    pub(crate) rules: BTreeSet<Rule>,
    /// Tables that somebody else uses.
    pub(crate) taken: BTreeMap<OwnTable, String>,
    /// Interfaces that judge by the way back.
    pub(crate) strict: BTreeSet<String>,
    /// Operations that fail.
    pub(crate) failing: BTreeSet<&'static str>,
    /// Operations that changed something, or tried to.
    pub(crate) calls: Vec<&'static str>,
}

/// The kernel.
#[derive(Debug, Default)]
pub(crate) struct FakeKernel(Mutex<State>);

impl FakeKernel {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Looks at what is there, or changes it behind the reconciler's back.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Returns the changing operations since the last call.
    pub(crate) fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state().calls)
    }

    fn reading(&self, operation: &'static str) -> Result<MutexGuard<'_, State>, KernelError> {
        let state = self.state();
        if state.failing.contains(operation) {
            return Err(injected(operation));
        }
        Ok(state)
    }

    fn change(&self, operation: &'static str) -> Result<MutexGuard<'_, State>, KernelError> {
        self.state().calls.push(operation);
        self.reading(operation)
    }
}

fn injected(operation: &'static str) -> KernelError {
    KernelError::new(operation, "fake", io::Error::from_raw_os_error(nix::errno::Errno::EIO as i32))
}

fn no_device(operation: &'static str) -> KernelError {
    KernelError::new(operation, "fake", io::Error::from_raw_os_error(nix::errno::Errno::ENODEV as i32))
}

impl State {
    /// Does what the kernel does with changes of peers.
    pub(crate) fn apply(&mut self, changes: &[PeerChange]) -> Option<()> {
        let peers = &mut self.device.as_mut()?.peers;
        for change in changes {
            match change {
                PeerChange::Remove(key) => {
                    peers.remove(key);
                }
                PeerChange::Set(config) => {
                    for other in peers.values_mut() {
                        other.allowed_ips.retain(|net| !config.allowed_ips.contains(net));
                    }
                    let peer: &mut ObservedPeer = peers.entry(config.public_key).or_default();
                    peer.preshared_key.clone_from(&config.preshared_key);
                    peer.endpoint = config.endpoint.or(peer.endpoint);
                    peer.allowed_ips.clone_from(&config.allowed_ips);
                    peer.persistent_keepalive = config.persistent_keepalive;
                }
            }
        }
        Some(())
    }

    /// Adds routes and returns the conflicts; `None` if the interface is missing or down.
    pub(crate) fn add_routes(&mut self, routes: &[IpNet]) -> Option<Vec<RouteConflict>> {
        let link = self.link.as_mut().filter(|link| link.up)?;
        let mut conflicts = Vec::new();
        for route in routes {
            match self.foreign_routes.get(route) {
                Some(owner) => {
                    conflicts.push(RouteConflict { destination: *route, owner: Some(owner.clone()) });
                }
                None => {
                    link.routes.insert(*route);
                }
            }
        }
        Some(conflicts)
    }

    /// Returns the peer of that key.
    pub(crate) fn peer(&mut self, key: PublicKey) -> &mut ObservedPeer {
        self.device.as_mut().unwrap().peers.get_mut(&key).unwrap()
    }

    pub(crate) fn link(&mut self) -> &mut ObservedLink {
        self.link.as_mut().unwrap()
    }
}

#[async_trait]
impl WireGuard for FakeKernel {
    fn backend(&self) -> Backend {
        Backend::Kernel
    }

    async fn ensure(&self) -> Result<Ensured, KernelError> {
        let mut state = self.change("create interface")?;
        if state.device.is_some() {
            return Ok(Ensured::Existing);
        }
        state.device = Some(ObservedDevice::default());
        state.link = Some(ObservedLink { mtu: 1420, ..ObservedLink::default() });
        Ok(Ensured::Created)
    }

    async fn observe(&self) -> Result<Option<ObservedDevice>, KernelError> {
        Ok(self.reading("observe device")?.device.clone())
    }

    async fn configure(&self, config: &DeviceConfig) -> Result<(), KernelError> {
        let mut state = self.change("configure")?;
        let device = state.device.as_mut().ok_or_else(|| no_device("configure"))?;
        device.public_key = Some(config.private_key.public());
        device.listen_port = config.listen_port;
        device.mark = MARK;
        Ok(())
    }

    async fn apply(&self, changes: &[PeerChange]) -> Result<(), KernelError> {
        self.change("apply peers")?.apply(changes).ok_or_else(|| no_device("apply peers"))
    }

    async fn remove(&self) -> Result<(), KernelError> {
        let mut state = self.change("remove interface")?;
        state.device = None;
        state.link = None;
        Ok(())
    }
}

#[async_trait]
impl Network for FakeKernel {
    async fn observe(&self, _: &str) -> Result<Option<ObservedLink>, KernelError> {
        Ok(self.reading("observe link")?.link.clone())
    }

    async fn bring_up(&self, _: &str, mtu: u32) -> Result<(), KernelError> {
        let mut state = self.change("bring up")?;
        let link = state.link.as_mut().ok_or_else(|| no_device("bring up"))?;
        link.up = true;
        link.mtu = mtu;
        Ok(())
    }

    async fn bring_down(&self, _: &str) -> Result<(), KernelError> {
        if let Some(link) = self.change("bring down")?.link.as_mut() {
            link.up = false;
            link.routes.clear();
            link.apart.clear();
        }
        Ok(())
    }

    async fn add_address(&self, _: &str, address: IpNet) -> Result<(), KernelError> {
        let mut state = self.change("add address")?;
        state.link.as_mut().ok_or_else(|| no_device("add address"))?.addresses.insert(address);
        Ok(())
    }

    async fn remove_address(&self, _: &str, address: IpNet) -> Result<(), KernelError> {
        let mut state = self.change("remove address")?;
        state.link.as_mut().ok_or_else(|| no_device("remove address"))?.addresses.remove(&address);
        Ok(())
    }

    async fn address_conflicts(&self, _: &str, address: IpAddr) -> Result<Vec<AddressConflict>, KernelError> {
        let conflicts = self.state().foreign_addresses.clone();
        Ok(conflicts.into_iter().filter(|conflict| conflict.address.addr() == address).collect())
    }

    async fn add_routes(&self, _: &str, routes: &[IpNet]) -> Result<Vec<RouteConflict>, KernelError> {
        self.change("add routes")?.add_routes(routes).ok_or_else(|| no_device("add routes"))
    }

    async fn remove_routes(&self, _: &str, routes: &[IpNet]) -> Result<(), KernelError> {
        let mut state = self.change("remove routes")?;
        let link = state.link.as_mut().ok_or_else(|| no_device("remove routes"))?;
        link.routes.retain(|route| !routes.contains(route));
        Ok(())
    }

    async fn observe_rules(
        &self,
        _: &str,
        tables: &BTreeSet<OwnTable>,
        towards: &[IpAddr],
    ) -> Result<ObservedRules, KernelError> {
        let state = self.reading("observe rules")?;
        Ok(ObservedRules {
            rules: state.rules.clone(),
            taken: state
                .taken
                .iter()
                .filter(|(table, _)| tables.contains(table))
                .map(|(k, v)| (*k, v.clone()))
                .collect(),
            uids: UIDS,
            strict: if towards.is_empty() { BTreeSet::new() } else { state.strict.clone() },
        })
    }

    async fn add_rules(&self, rules: &[Rule]) -> Result<(), KernelError> {
        self.change("add rules")?.rules.extend(rules.iter().cloned());
        Ok(())
    }

    async fn remove_rules(&self, rules: &[Rule]) -> Result<(), KernelError> {
        self.change("remove rules")?.rules.retain(|rule| !rules.contains(rule));
        Ok(())
    }

    async fn add_apart(&self, _: &str, routes: &[IpNet]) -> Result<(), KernelError> {
        let mut state = self.change("add apart")?;
        let link = state.link.as_mut().filter(|link| link.up).ok_or_else(|| no_device("add apart"))?;
        link.apart.extend(routes);
        Ok(())
    }

    async fn remove_apart(&self, _: &str, routes: &[IpNet]) -> Result<(), KernelError> {
        let mut state = self.change("remove apart")?;
        let link = state.link.as_mut().ok_or_else(|| no_device("remove apart"))?;
        link.apart.retain(|route| !routes.contains(route));
        Ok(())
    }
}

#[async_trait]
impl Firewall for FakeKernel {
    async fn observe(&self, expected: &Table) -> Result<ObservedTable, KernelError> {
        let state = self.reading("observe table")?;
        Ok(match (&state.table, &state.edited) {
            (None, _) => ObservedTable::Absent,
            (Some(_), Some(what)) => ObservedTable::Differs { what: what.clone() },
            (Some(table), None) if table == expected => ObservedTable::Same { counters: Counters::default() },
            (Some(_), None) => ObservedTable::Differs { what: "it is another one".to_owned() },
        })
    }

    async fn replace(&self, table: &Table) -> Result<Applied, KernelError> {
        let mut state = self.change("replace table")?;
        state.table = Some(table.clone());
        state.edited = None;
        Ok(Applied::Complete)
    }

    async fn remove(&self) -> Result<(), KernelError> {
        self.change("remove table")?.table = None;
        Ok(())
    }
}
