//! How many connections there may be: in all, of one user, and over TCP, where nobody is known at first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bounds on connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub total: usize,
    /// Of one user id, on the Unix socket.
    pub per_uid: usize,
    /// Over TCP, with a token or without: whoever has none must not keep users of the Unix socket away.
    pub tcp: usize,
}

impl Default for Limits {
    /// The contract's 4,096 in all and 512 per uid; 1,024 of those in all over TCP.
    fn default() -> Self {
        Self { total: 4096, per_uid: 512, tcp: 1024 }
    }
}

/// The places for connections.
#[derive(Debug)]
pub(super) struct Slots {
    limits: Limits,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    tcp: usize,
    by_uid: HashMap<u32, usize>,
}

/// A place, until dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    uid: Option<u32>,
}

impl Slots {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, taken: Mutex::default() })
    }

    /// Takes a place for a connection of the user `uid`; without one, over TCP.
    pub(super) fn take(self: &Arc<Self>, uid: Option<u32>) -> Option<Slot> {
        let mut taken = self.lock();
        if taken.total >= self.limits.total {
            return None;
        }
        if let Some(uid) = uid {
            let of_user = taken.by_uid.entry(uid).or_default();
            if *of_user >= self.limits.per_uid {
                return None;
            }
            *of_user += 1;
        } else {
            if taken.tcp >= self.limits.tcp {
                return None;
            }
            taken.tcp += 1;
        }
        taken.total += 1;
        Some(Slot { slots: Arc::clone(self), uid })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
        taken.total -= 1;
        let Some(uid) = self.uid else {
            taken.tcp -= 1;
            return;
        };
        if let Some(of_user) = taken.by_uid.get_mut(&uid) {
            *of_user -= 1;
            if *of_user == 0 {
                taken.by_uid.remove(&uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_per_user_and_in_all_and_given_back() {
        let slots = Slots::new(Limits { total: 4, per_uid: 2, tcp: 1 });
        let mut first = vec![slots.take(Some(1)), slots.take(Some(1))];
        assert!(first.iter().all(Option::is_some));
        assert!(slots.take(Some(1)).is_none(), "a third of the same user");
        let others = [slots.take(None), slots.take(Some(2))];
        assert!(others.iter().all(Option::is_some));
        assert!(slots.take(Some(3)).is_none(), "a fifth in all");
        first.pop();
        assert!(slots.take(Some(1)).is_some());
        drop((first, others));
        let taken = slots.lock();
        assert!(taken.total == 0 && taken.tcp == 0 && taken.by_uid.is_empty());
    }

    #[test]
    fn tcp_connections_leave_room_for_users() {
        let slots = Slots::new(Limits { total: 4, per_uid: 2, tcp: 2 });
        let mut tcp = vec![slots.take(None), slots.take(None)];
        assert!(tcp.iter().all(Option::is_some));
        assert!(slots.take(None).is_none(), "a third over TCP");
        let _user = slots.take(Some(1)).unwrap();
        tcp.pop();
        assert!(slots.take(None).is_some());
    }
}
