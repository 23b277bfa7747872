//! The narrow seam to the kernel: a few small traits, each with one real implementation (two for WireGuard) and a fake
//! for tests. Only the reconciler calls them. Nothing here decides anything.

pub mod changes;
#[cfg(test)]
pub(crate) mod fake;
pub mod network;
pub mod nft;
mod route;
mod rtnl;
pub mod rules;
pub mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::SystemTime;

use async_trait::async_trait;
use ipnet::IpNet;

use crate::policy::Table;
use crate::types::{AllowedIps, PresharedKey, PrivateKey, PublicKey};

use rules::{ObservedRules, OwnTable, Rule};

/// A kernel operation failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {object}: {source}")]
pub struct KernelError {
    /// What was tried, as in "add route".
    pub operation: &'static str,
    /// On what: an interface, an address, a public key. Never a secret.
    pub object: String,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl KernelError {
    /// Creates the error of `operation` on `object`.
    pub fn new(operation: &'static str, object: impl fmt::Display, source: io::Error) -> Self {
        Self { operation, object: object.to_string(), source }
    }
}

/// Which WireGuard does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's.
    Kernel,
    /// The embedded one, on a TUN device.
    Userspace,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        })
    }
}

/// What belongs to the WireGuard device as a whole.
#[derive(Debug, Clone)]
pub struct DeviceConfig {
    /// The node's private key.
    pub private_key: PrivateKey,
    /// UDP port to listen on.
    pub listen_port: u16,
}

/// How a peer is to be configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// The peer's key, which names it.
    pub public_key: PublicKey,
    /// The preshared key; `None` clears it.
    pub preshared_key: Option<PresharedKey>,
    /// Where to send to; `None` leaves what is there (a peer may have roamed).
    pub endpoint: Option<SocketAddr>,
    /// Exactly these.
    pub allowed_ips: AllowedIps,
    /// Seconds between keepalives; `None` for none.
    pub persistent_keepalive: Option<NonZeroU16>,
}

/// A change of one peer. A change of an existing peer keeps its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerChange {
    /// Add it, or change it in place until it is exactly this.
    Set(PeerConfig),
    /// Remove it.
    Remove(PublicKey),
}

/// The WireGuard device as it is.
#[derive(Debug, Clone, Default)]
pub struct ObservedDevice {
    /// Public key of the device's private key; `None` while it has none.
    pub public_key: Option<PublicKey>,
    /// UDP port it listens on.
    pub listen_port: u16,
    /// The mark that its packets bear; [`rules::MARK`] once it is configured.
    pub mark: u32,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, ObservedPeer>,
}

/// A WireGuard peer as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedPeer {
    /// The preshared key, if it has one.
    pub preshared_key: Option<PresharedKey>,
    /// Where it was last heard, or was set to be.
    pub endpoint: Option<SocketAddr>,
    /// Its allowed IPs.
    pub allowed_ips: AllowedIps,
    /// Seconds between keepalives.
    pub persistent_keepalive: Option<NonZeroU16>,
    /// When its last handshake was.
    pub last_handshake: Option<SystemTime>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
}

/// Whether an interface had to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ensured {
    /// It was there.
    Existing,
    /// It was made now.
    Created,
}

/// The WireGuard device of the mesh.
#[async_trait]
pub trait WireGuard: Send + Sync {
    /// Returns which backend this is.
    fn backend(&self) -> Backend;
    /// Makes the interface if it is not there. One of that name that is not WireGuard is an error, and left alone.
    async fn ensure(&self) -> Result<Ensured, KernelError>;
    /// Reads the device; `None` if there is no such interface.
    async fn observe(&self) -> Result<Option<ObservedDevice>, KernelError>;
    /// Sets what belongs to the device as a whole, and that its packets bear [`rules::MARK`]. Peers are not touched.
    async fn configure(&self, config: &DeviceConfig) -> Result<(), KernelError>;
    /// Applies changes of peers, in order, in as few messages as possible.
    async fn apply(&self, changes: &[PeerChange]) -> Result<(), KernelError>;
    /// Gives a device that has a key another one, and applies the changes of peers that belong to it, with as little time
    /// between the two as the backend allows. Every session ends with the old key; new ones are initiated at once.
    async fn rekey(&self, config: &DeviceConfig, changes: &[PeerChange]) -> Result<(), KernelError> {
        self.configure(config).await?;
        self.apply(changes).await
    }
    /// Removes the interface; one that is not there is no error.
    async fn remove(&self) -> Result<(), KernelError>;
}

/// A network interface as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedLink {
    /// Whether it is administratively up.
    pub up: bool,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Its addresses with their prefix lengths; host bits as they are. IPv6 link-local ones are left out.
    pub addresses: BTreeSet<IpNet>,
    /// Routes of the main table through it that the kernel did not make by itself.
    pub routes: BTreeSet<IpNet>,
    /// Those of plexd's own tables.
    pub apart: BTreeSet<IpNet>,
}

/// A route that could not be added because somebody else's is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteConflict {
    /// The destination.
    pub destination: IpNet,
    /// Name of the interface of the route that is there, if it has one.
    pub owner: Option<String>,
}

/// An address of the mesh that another interface has as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressConflict {
    /// The address as it is there, with its prefix length.
    pub address: IpNet,
    /// Name of the interface.
    pub interface: String,
}

/// Links, addresses and routes.
#[async_trait]
pub trait Network: Send + Sync {
    /// Reads the interface, its addresses and routes; `None` if there is no such interface.
    async fn observe(&self, interface: &str) -> Result<Option<ObservedLink>, KernelError>;
    /// Sets the MTU and brings the interface up.
    async fn bring_up(&self, interface: &str, mtu: u32) -> Result<(), KernelError>;
    /// Takes the interface down, with its routes; one that is not there is no error.
    async fn bring_down(&self, interface: &str) -> Result<(), KernelError>;
    /// Adds an address; one that is there is no error.
    async fn add_address(&self, interface: &str, address: IpNet) -> Result<(), KernelError>;
    /// Removes an address; one that is not there is no error.
    async fn remove_address(&self, interface: &str, address: IpNet) -> Result<(), KernelError>;
    /// Returns the interfaces that have the address, but for this one.
    async fn address_conflicts(
        &self,
        interface: &str,
        address: IpAddr,
    ) -> Result<Vec<AddressConflict>, KernelError>;
    /// Adds routes through the interface and returns those that somebody else owns, which are left alone.
    async fn add_routes(&self, interface: &str, routes: &[IpNet]) -> Result<Vec<RouteConflict>, KernelError>;
    /// Removes routes through the interface; one that is not there is no error.
    async fn remove_routes(&self, interface: &str, routes: &[IpNet]) -> Result<(), KernelError>;
    /// Reads plexd's routing rules; whether `tables` can be had; and which interfaces towards the addresses in `towards`
    /// would not take answers from there while those tables lead elsewhere.
    async fn observe_rules(
        &self,
        interface: &str,
        tables: &BTreeSet<OwnTable>,
        towards: &[IpAddr],
    ) -> Result<ObservedRules, KernelError>;
    /// Adds routing rules; one that is there is no error.
    async fn add_rules(&self, rules: &[Rule]) -> Result<(), KernelError>;
    /// Removes routing rules of plexd's; one that is not there is no error.
    async fn remove_rules(&self, rules: &[Rule]) -> Result<(), KernelError>;
    /// Adds routes through the interface to plexd's own tables; one that is there is no error.
    async fn add_apart(&self, interface: &str, routes: &[IpNet]) -> Result<(), KernelError>;
    /// Removes routes through the interface from plexd's own tables; one that is not there is no error.
    async fn remove_apart(&self, interface: &str, routes: &[IpNet]) -> Result<(), KernelError>;
}

/// The table `inet plexd` as it is, compared with what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObservedTable {
    /// There is none.
    Absent,
    /// There is one, but not the expected one.
    Differs {
        /// The first difference, for people.
        what: String,
    },
    /// It is exactly the expected one.
    Same {
        /// What it counted.
        counters: Counters,
    },
}

/// What the table counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// By name of the counter: `denied` (by a rule or the default) and `invalid` (belongs to no connection that was seen to open; dropped).
    pub named: BTreeMap<String, Count>,
    /// By position of the rule among all rules of the policy; rules that matched nothing yet may be absent. Where rules
    /// of the same action overlap, either may have counted.
    pub rules: BTreeMap<usize, Count>,
}

/// Packets and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

/// How much of a table the kernel took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// All of it.
    Complete,
    /// All but the logging of denied packets, for which the kernel lacks a module (`nft_log`, `nft_limit`).
    WithoutLog,
}

/// The table `inet plexd`, and no other.
#[async_trait]
pub trait Firewall: Send + Sync {
    /// Reads the table and compares it with the expected one.
    async fn observe(&self, expected: &Table) -> Result<ObservedTable, KernelError>;
    /// Puts the table in place of whatever is there, in one transaction. Counters go on where a rule stays the same.
    async fn replace(&self, table: &Table) -> Result<Applied, KernelError>;
    /// Removes the table; one that is not there is no error.
    async fn remove(&self) -> Result<(), KernelError>;
}
