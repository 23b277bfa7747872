//! Which peer an address belongs to: that of the longest allowed IP in which it lies, over all peers, asleep or not. A
//! hash table with one question for each prefix length that occurs, which in a mesh are one or two. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::types::PublicKey;

/// Allowed IPs and their owners: one at most for each, as in the kernel.
#[derive(Debug, Default)]
pub(super) struct Owners {
    nets: HashMap<IpNet, PublicKey>,
    v4: Lengths,
    v6: Lengths,
}

/// The prefix lengths that occur, longest first, and how often.
#[derive(Debug, Default)]
struct Lengths(Vec<(u8, usize)>);

impl Lengths {
    fn add(&mut self, length: u8) {
        match self.0.binary_search_by(|(known, _)| length.cmp(known)) {
            Ok(at) => self.0[at].1 += 1,
            Err(at) => self.0.insert(at, (length, 1)),
        }
    }

    fn remove(&mut self, length: u8) {
        let Ok(at) = self.0.binary_search_by(|(known, _)| length.cmp(known)) else { return };
        self.0[at].1 -= 1;
        if self.0[at].1 == 0 {
            self.0.remove(at);
        }
    }
}

impl Owners {
    /// Gives `net`, which has no host bits, to `owner`, and returns who had it.
    pub(super) fn insert(&mut self, net: IpNet, owner: PublicKey) -> Option<PublicKey> {
        let previous = self.nets.insert(net, owner);
        if previous.is_none() {
            self.lengths(net).add(net.prefix_len());
        }
        previous
    }

    /// Takes `net` from `owner`; from another one it is not taken.
    pub(super) fn remove(&mut self, net: &IpNet, owner: &PublicKey) {
        if self.nets.get(net) == Some(owner) {
            self.nets.remove(net);
            self.lengths(*net).remove(net.prefix_len());
        }
    }

    /// Returns whom `address` belongs to.
    pub(super) fn find(&self, address: IpAddr) -> Option<&PublicKey> {
        let lengths = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let net = |length| IpNet::new(address, length).ok().map(|net| net.trunc());
        lengths.0.iter().find_map(|(length, _)| self.nets.get(&net(*length)?))
    }

    fn lengths(&mut self, net: IpNet) -> &mut Lengths {
        match net {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    /// Few bits that differ, so that networks lie in each other.
    fn net() -> impl Strategy<Value = IpNet> {
        let v4 =
            (0_u32..16, 26_u8..=32).prop_map(|(host, length)| (Ipv4Addr::from(host << 2).into(), length));
        let v6 =
            (0_u128..16, 120_u8..=128).prop_map(|(host, length)| (Ipv6Addr::from(host << 4).into(), length));
        let ends =
            prop_oneof![Just((Ipv4Addr::UNSPECIFIED.into(), 0)), Just((Ipv6Addr::UNSPECIFIED.into(), 0))];
        prop_oneof![4 => v4, 4 => v6, 1 => ends]
            .prop_map(|(address, length): (IpAddr, u8)| IpNet::new(address, length).unwrap().trunc())
    }

    fn naive(nets: &BTreeMap<IpNet, PublicKey>, address: IpAddr) -> Option<&PublicKey> {
        let around = nets.iter().filter(|(net, _)| net.contains(&address));
        around.max_by_key(|(net, _)| net.prefix_len()).map(|(_, owner)| owner)
    }

    proptest! {
        #[test]
        fn the_longest_one_wins(steps in proptest::collection::vec((net(), 0_u8..4, any::<bool>()), 0..60)) {
            let (mut owners, mut nets) = (Owners::default(), BTreeMap::new());
            for (net, owner, inserts) in steps {
                if inserts {
                    prop_assert_eq!(owners.insert(net, key(owner)), nets.insert(net, key(owner)));
                } else {
                    owners.remove(&net, &key(owner));
                    if nets.get(&net) == Some(&key(owner)) {
                        nets.remove(&net);
                    }
                }
            }
            for address in (0_u32..80).map(|bits| IpAddr::from(Ipv4Addr::from(bits))) {
                prop_assert_eq!(owners.find(address), naive(&nets, address));
            }
            for address in (0_u128..280).map(|bits| IpAddr::from(Ipv6Addr::from(bits))) {
                prop_assert_eq!(owners.find(address), naive(&nets, address));
            }
        }
    }
}
