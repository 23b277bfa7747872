//! The allowed IPs of a peer. What is wanted, what is set and what is observed are mostly the same ones, and there are
//! thousands of peers with one each, so that copies share them and a single one takes little room.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use ipnet::IpNet;

/// A set of networks, in order. A copy costs nothing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct AllowedIps(Arc<[IpNet]>);

impl AllowedIps {
    /// Returns whether exactly this network is one of them.
    pub fn contains(&self, net: &IpNet) -> bool {
        self.0.binary_search(net).is_ok()
    }

    /// Adds a network, or does nothing if it is there.
    pub fn insert(&mut self, net: IpNet) {
        if let Err(at) = self.0.binary_search(&net) {
            let (before, after) = self.0.split_at(at);
            self.0 = [before, &[net], after].concat().into();
        }
    }

    /// Keeps those for which `keep` holds.
    pub fn retain(&mut self, keep: impl Fn(&IpNet) -> bool) {
        if !self.0.iter().all(&keep) {
            self.0 = self.0.iter().copied().filter(keep).collect();
        }
    }
}

impl Deref for AllowedIps {
    type Target = [IpNet];

    fn deref(&self) -> &[IpNet] {
        &self.0
    }
}

impl FromIterator<IpNet> for AllowedIps {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let mut nets: Vec<IpNet> = nets.into_iter().collect();
        nets.sort_unstable();
        nets.dedup();
        Self(nets.into())
    }
}

impl<const COUNT: usize> From<[IpNet; COUNT]> for AllowedIps {
    fn from(nets: [IpNet; COUNT]) -> Self {
        Self::from_iter(nets)
    }
}

impl Extend<IpNet> for AllowedIps {
    fn extend<I: IntoIterator<Item = IpNet>>(&mut self, nets: I) {
        *self = self.0.iter().copied().chain(nets).collect();
    }
}

impl<'a> IntoIterator for &'a AllowedIps {
    type Item = &'a IpNet;
    type IntoIter = std::slice::Iter<'a, IpNet>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Debug for AllowedIps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ipnet::Ipv4Net;
    use proptest::prelude::*;

    use super::*;

    fn net() -> impl Strategy<Value = IpNet> {
        (0_u32..6, 30_u8..=32).prop_map(|(bits, length)| Ipv4Net::new(bits.into(), length).unwrap().into())
    }

    proptest! {
        #[test]
        fn it_is_a_set(first in proptest::collection::vec(net(), 0..8), more in proptest::collection::vec(net(), 0..8), other in net()) {
            let (mut nets, mut set): (AllowedIps, BTreeSet<IpNet>) =
                (first.iter().copied().collect(), first.iter().copied().collect());
            let copy = nets.clone();
            let before = set.clone();
            nets.extend(more.iter().copied());
            set.extend(more);
            prop_assert_eq!(nets.contains(&other), set.contains(&other));
            nets.insert(other);
            set.insert(other);
            prop_assert!(nets.iter().eq(&set));
            nets.retain(|net| *net != other);
            set.remove(&other);
            prop_assert!(nets.iter().eq(&set) && copy.iter().eq(&before));
            prop_assert_eq!(nets, set.into_iter().collect::<AllowedIps>());
        }
    }
}
