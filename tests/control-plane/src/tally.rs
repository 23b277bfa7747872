//! How many requests came to each endpoint since the start, whatever became of them: also those that a fault answered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::faults::ENDPOINTS;

/// The counts, in the order of [`ENDPOINTS`].
#[derive(Debug, Default)]
pub(crate) struct Tally([AtomicU64; ENDPOINTS.len()]);

impl Tally {
    /// Counts a request to `endpoint`.
    pub(crate) fn count(&self, endpoint: &str) {
        let counts = ENDPOINTS.iter().zip(&self.0);
        if let Some((_, count)) = counts.into_iter().find(|(name, _)| **name == endpoint) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counts by endpoint.
    pub(crate) fn shown(&self) -> BTreeMap<&'static str, u64> {
        ENDPOINTS.iter().zip(&self.0).map(|(name, count)| (*name, count.load(Ordering::Relaxed))).collect()
    }
}
