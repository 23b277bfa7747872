//! Room for the bodies of requests: what all of them together may hold, and what those of one caller may, from before a
//! body is read until its request is answered. Who finds no room waits for it, without keeping others from theirs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::Caller;

/// Bytes that the bodies of all callers may hold together.
const TOTAL: usize = 32 * 1024 * 1024;
/// Bytes that the bodies of one caller may hold together: of one user, or of all who come by TCP.
const PER_CALLER: usize = 8 * 1024 * 1024;

/// The room there is. It is never less than the largest body.
#[derive(Debug)]
pub struct Bodies {
    all: Arc<Semaphore>,
    per_caller: usize,
    /// Shares that somebody holds something of or waits for, by user id.
    shares: Mutex<HashMap<Option<u32>, Weak<Semaphore>>>,
}

/// Room for one body, until dropped.
#[derive(Debug)]
pub(super) struct Room {
    _own: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    /// Creates the room for bodies of at most `largest` bytes each.
    pub fn new(largest: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(TOTAL.max(largest))),
            per_caller: PER_CALLER.max(largest),
            shares: Mutex::default(),
        }
    }

    /// Waits for room for a body of `bytes` from `caller`; there never is any for more than the largest.
    pub(super) async fn room(&self, caller: &Caller, bytes: usize) -> Room {
        let uid = match caller {
            Caller::Local(client) => Some(client.peer.uid),
            Caller::Tcp => None,
        };
        // The caller's own share first: who waits for it holds nothing of what is for all.
        let own = acquire(self.share(uid), bytes).await;
        let all = acquire(Arc::clone(&self.all), bytes).await;
        Room { _own: own, _all: all }
    }

    fn share(&self, uid: Option<u32>) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&uid).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.per_caller));
        shares.insert(uid, Arc::downgrade(&share));
        share
    }
}

/// Takes `bytes` from `semaphore`, which nobody closes.
async fn acquire(semaphore: Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    semaphore.acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).await.ok()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use plexd_proto::transport::{ClientSocket, PeerCredentials};

    use super::*;
    use crate::auth::LocalClient;

    fn user(uid: u32) -> Caller {
        let peer = PeerCredentials { uid, gid: uid, pid: 1, groups: Vec::new() };
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        Caller::Local(Arc::new(LocalClient { peer, socket: ClientSocket::new(socket) }))
    }

    /// Returns the room, if there is some at once.
    fn now(bodies: &Bodies, caller: &Caller, bytes: usize) -> Option<Room> {
        bodies.room(caller, bytes).now_or_never()
    }

    #[test]
    fn who_fills_its_own_share_keeps_nobody_else_waiting() {
        let bodies = Bodies::new(1024);
        let held = now(&bodies, &user(1), PER_CALLER).unwrap();
        assert!(now(&bodies, &user(1), 1).is_none());
        assert!(now(&bodies, &user(2), PER_CALLER).is_some() && now(&bodies, &Caller::Tcp, 1).is_some());
        drop(held);
        assert!(now(&bodies, &user(1), PER_CALLER).is_some(), "given back");
    }

    #[test]
    fn all_together_hold_no_more_than_there_is() {
        let bodies = Bodies::new(1024);
        let mut held: Vec<_> = (1..=4).map(|uid| now(&bodies, &user(uid), PER_CALLER).unwrap()).collect();
        assert!(now(&bodies, &Caller::Tcp, 1).is_none());
        held.pop();
        assert!(now(&bodies, &Caller::Tcp, 1).is_some());
    }

    #[test]
    fn the_largest_body_always_finds_room_at_last_and_shares_are_forgotten() {
        let largest = 64 * 1024 * 1024;
        let bodies = Bodies::new(largest);
        for uid in 0..100 {
            assert!(now(&bodies, &user(uid), largest).is_some());
        }
        assert_eq!(bodies.shares.lock().unwrap().len(), 1);
    }
}
