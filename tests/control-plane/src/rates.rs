//! How many connections and requests came in each second: what a fleet of nodes asks of a control plane.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

/// Seconds that are remembered.
const MOST: usize = 3_600;

/// What came, by the second it came in.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    seconds: Mutex<BTreeMap<i64, Second>>,
}

/// What came in one second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Second {
    connections: u64,
    requests: BTreeMap<&'static str, u64>,
}

impl Rates {
    /// Counts a connection, whatever becomes of it.
    pub(crate) fn connection(&self) {
        self.change(|second| second.connections += 1);
    }

    /// Counts a request to one of the 17 endpoints, whatever it is answered.
    pub(crate) fn request(&self, endpoint: &'static str) {
        self.change(|second| *second.requests.entry(endpoint).or_default() += 1);
    }

    /// What came since the start or within the last hour in which anything did, by Unix time; seconds in which nothing
    /// came are left out.
    pub(crate) fn shown(&self) -> BTreeMap<i64, Second> {
        self.seconds.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, count: impl FnOnce(&mut Second)) {
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        count(seconds.entry(Timestamp::now().as_second()).or_default());
        while seconds.len() > MOST {
            seconds.pop_first();
        }
    }
}
