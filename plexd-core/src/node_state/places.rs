//! Places for fetches of secrets: a bounded number in all, and of these a share for each who asks, so that one user's slow
//! reads leave room for the others'. Whoever finds none waits, in the order of arrival.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Places in all.
const ALL: usize = 32;

/// Places of one requester.
const EACH: usize = 8;

/// Who asks, as far as callers are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Requester {
    /// A user on the Unix socket.
    Uid(u32),
    /// All who come by TCP.
    Tcp,
    /// All of whom nothing is known.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Places {
    all: Semaphore,
    /// The shares in use, and how many hold or wait for a place of each.
    shares: Mutex<BTreeMap<Requester, (Arc<Semaphore>, usize)>>,
}

/// A place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    _all: SemaphorePermit<'a>,
    _own: OwnedSemaphorePermit,
    _share: Share<'a>,
}

/// A claim on a share, which is forgotten with the last claim.
#[derive(Debug)]
struct Share<'a> {
    places: &'a Places,
    requester: Requester,
}

impl Places {
    pub(super) fn new() -> Self {
        Self { all: Semaphore::new(ALL), shares: Mutex::default() }
    }

    /// Waits for a place; `None` cannot happen, as places are never taken away.
    pub(super) async fn take(&self, requester: Requester) -> Option<Place<'_>> {
        let (own, share) = self.claim(requester);
        // First the own: who waits for that holds none of those for all.
        let own = own.acquire_owned().await.ok()?;
        let all = self.all.acquire().await.ok()?;
        Some(Place { _all: all, _own: own, _share: share })
    }

    fn claim(&self, requester: Requester) -> (Arc<Semaphore>, Share<'_>) {
        let mut shares = self.shares();
        let (own, claims) = shares.entry(requester).or_insert_with(|| (Arc::new(Semaphore::new(EACH)), 0));
        *claims += 1;
        (Arc::clone(own), Share { places: self, requester })
    }

    fn shares(&self) -> MutexGuard<'_, BTreeMap<Requester, (Arc<Semaphore>, usize)>> {
        // Nothing that can panic is called while it is held.
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut shares = self.places.shares();
        if let Some((_, claims)) = shares.get_mut(&self.requester) {
            *claims -= 1;
            if *claims == 0 {
                shares.remove(&self.requester);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn now(places: &Places, requester: Requester) -> Option<Place<'_>> {
        places.take(requester).now_or_never().flatten()
    }

    #[test]
    fn one_user_takes_a_share_and_leaves_the_rest_to_others() {
        let places = Places::new();
        let taken: Vec<_> = (0..EACH).map(|_| now(&places, Requester::Uid(1)).unwrap()).collect();
        assert!(now(&places, Requester::Uid(1)).is_none());
        let others = [Requester::Uid(2), Requester::Tcp, Requester::Uid(0)];
        let rest: Vec<_> = others
            .into_iter()
            .flat_map(|who| std::iter::repeat_n(who, EACH))
            .map(|who| now(&places, who).unwrap())
            .collect();
        assert!(now(&places, Requester::Tcp).is_none() && now(&places, Requester::Uid(3)).is_none());
        drop(taken);
        assert!(now(&places, Requester::Uid(3)).is_some() && now(&places, Requester::Tcp).is_none());
        drop(rest);
        assert!(places.shares().is_empty(), "nothing is kept of who asked once");
        assert_eq!(places.all.available_permits(), ALL);
    }

    #[test]
    fn who_gives_up_waiting_leaves_nothing_behind() {
        let places = Places::new();
        let taken: Vec<_> = (0..EACH).map(|_| now(&places, Requester::Tcp)).collect();
        let mut waits = Box::pin(places.take(Requester::Tcp));
        assert!((&mut waits).now_or_never().is_none());
        drop(waits);
        drop(taken);
        assert!(places.shares().is_empty());
        assert!(now(&places, Requester::Tcp).is_some());
    }
}
