//! The addresses of endpoints that are names. Lookups run beside reconciliations, which never wait for them: a name
//! server that does not answer must not keep a flushed policy away. A name that is known is asked for again only while
//! its peer cannot be heard.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::task::{JoinError, JoinSet};

use super::wanted::Resolved;
use crate::state::Desired;
use crate::types::{Endpoint, PublicKey};

/// How long one lookup may take.
const DEADLINE: Duration = Duration::from_secs(3);

/// Looks an endpoint's name up.
type Lookup = Arc<dyn Fn(Endpoint) -> BoxFuture<'static, Option<SocketAddr>> + Send + Sync>;

/// What is known of the names, and what is being asked.
pub(super) struct Names {
    lookup: Lookup,
    resolved: Resolved,
    /// Names that were asked for at least once.
    asked: BTreeSet<Endpoint>,
    under_way: BTreeSet<Endpoint>,
    /// Each ends by itself within [`DEADLINE`], and all of them with this.
    lookups: JoinSet<(Endpoint, Option<SocketAddr>)>,
}

/// What lookups that ended brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// An address is new, or another one.
    Changed,
    /// Nothing new.
    Same,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").field("resolved", &self.resolved).finish_non_exhaustive()
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::new(Arc::new(|endpoint| Box::pin(resolve(endpoint))))
    }
}

impl Names {
    pub(super) fn new(lookup: Lookup) -> Self {
        Self {
            lookup,
            resolved: Resolved::new(),
            asked: BTreeSet::new(),
            under_way: BTreeSet::new(),
            lookups: JoinSet::new(),
        }
    }

    /// Returns the addresses known by now.
    pub(super) fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// Starts a lookup of each peer's name that was never asked for, or for which `again` says so; forgets names that no
    /// peer has any more.
    pub(super) fn ask_for(&mut self, desired: &Desired, again: impl Fn(&PublicKey) -> bool) {
        let mut wanted = BTreeSet::new();
        for peer in desired.peers.values() {
            let Some(name @ Endpoint::Name { .. }) = &peer.endpoint else { continue };
            wanted.insert(name);
            let is_due = !self.asked.contains(name) || again(&peer.public_key);
            if is_due && self.under_way.insert(name.clone()) {
                self.asked.insert(name.clone());
                let (name, lookup) = (name.clone(), (self.lookup)(name.clone()));
                self.lookups.spawn(async move {
                    (name, tokio::time::timeout(DEADLINE, lookup).await.ok().flatten())
                });
            }
        }
        self.asked.retain(|name| wanted.contains(name));
        self.resolved.retain(|name, _| wanted.contains(name));
    }

    /// Waits until lookups end, and takes their addresses over; a lookup that failed changes nothing. Cancel safe: what
    /// ended and was not taken over yet is there the next time.
    pub(super) async fn found(&mut self) -> Found {
        let Some(first) = self.lookups.join_next().await else { return std::future::pending().await };
        let mut found = self.take_over(first);
        while let Some(next) = self.lookups.try_join_next() {
            if self.take_over(next) == Found::Changed {
                found = Found::Changed;
            }
        }
        found
    }

    fn take_over(&mut self, ended: Result<(Endpoint, Option<SocketAddr>), JoinError>) -> Found {
        // None panics, and none is aborted before this is dropped.
        let Ok((name, address)) = ended else { return Found::Same };
        self.under_way.remove(&name);
        // A name that nobody has any more is not to be remembered.
        let Some(address) = address.filter(|_| self.asked.contains(&name)) else { return Found::Same };
        if self.resolved.insert(name, address) == Some(address) { Found::Same } else { Found::Changed }
    }
}

async fn resolve(endpoint: Endpoint) -> Option<SocketAddr> {
    let Endpoint::Name { host, port } = endpoint else { return None };
    tokio::net::lookup_host((&*host, port)).await.ok()?.next()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::reconcile::tests::{desired, key, peer};

    const NAME: &str = "vpn.example.com:51820";

    /// Names whose answers are taken one by one from a list.
    fn names(answers: &[Option<&str>]) -> Names {
        let answers: Vec<Option<SocketAddr>> =
            answers.iter().rev().map(|text| text.map(|text| text.parse().unwrap())).collect();
        let answers = Mutex::new(answers);
        Names::new(Arc::new(move |_| Box::pin(std::future::ready(answers.lock().unwrap().pop().flatten()))))
    }

    #[tokio::test]
    async fn a_name_is_asked_for_once_and_again_while_its_peer_is_not_heard() {
        let desired = desired([peer("n_b", 2, Some(NAME))]);
        let mut names =
            names(&[Some("192.0.2.1:51820"), Some("192.0.2.2:51820"), None, Some("192.0.2.2:51820")]);
        names.ask_for(&desired, |_| false);
        names.ask_for(&desired, |_| false);
        assert_eq!(names.found().await, Found::Changed);
        names.ask_for(&desired, |peer| *peer != key(2));
        assert!(names.lookups.is_empty());
        for found in [Found::Changed, Found::Same, Found::Same] {
            names.ask_for(&desired, |_| true);
            assert_eq!(names.found().await, found);
            assert_eq!(names.resolved().values().next().unwrap().to_string(), "192.0.2.2:51820");
        }
    }

    #[tokio::test]
    async fn a_name_that_no_peer_has_any_more_is_forgotten_even_while_it_is_asked_for() {
        let mut names = names(&[Some("192.0.2.1:51820"), Some("192.0.2.1:51820")]);
        let with_name = desired([peer("n_b", 2, Some(NAME))]);
        names.ask_for(&with_name, |_| false);
        names.ask_for(&desired([]), |_| false);
        assert_eq!(names.found().await, Found::Same);
        assert!(names.resolved().is_empty());
        names.ask_for(&with_name, |_| false);
        assert_eq!(names.found().await, Found::Changed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_never_ends_is_given_up_and_can_be_asked_again() {
        let mut names = Names::new(Arc::new(|_| Box::pin(std::future::pending())));
        let desired = desired([peer("n_b", 2, Some(NAME))]);
        for _ in 0..2 {
            names.ask_for(&desired, |_| true);
            let started = tokio::time::Instant::now();
            assert_eq!(names.found().await, Found::Same);
            assert!(started.elapsed() >= DEADLINE);
        }
    }
}
