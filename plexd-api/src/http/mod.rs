//! The Local Node API over HTTP/1.1: routes and answers (the guide; contract, section 6), and the connections they
//! come over.

mod bodies;
mod body;
mod conditional;
mod connection;
mod error;
mod key;
mod message;
mod metrics;
mod openapi;
pub mod parts;
mod read;
mod report;
mod routes;
mod secret;
mod watch;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use bodies::Bodies;
pub use connection::{Limits, Server};
pub use error::ApiError;
pub use metrics::Metrics;
pub use watch::Told;

use crate::auth::Rules;
use crate::core_client::Core;
use crate::mirror::{Mirror, Snapshot};

/// What every route answers from.
#[derive(Debug)]
pub struct Api {
    /// The copy of the state, for reads.
    pub mirror: Arc<Mirror>,
    /// The way to plexd-core, for secrets and writes.
    pub core: Core,
    /// Who may ask for what.
    pub rules: Rules,
    /// Largest body of a report, in bytes.
    pub max_report_bytes: usize,
    /// Room for the bodies of requests.
    pub bodies: Bodies,
    /// What watchers were told last.
    pub told: Told,
    /// What is counted; `None` if nobody is to read it.
    pub metrics: Option<Metrics>,
    /// Ends watches when the process stops.
    pub shutdown: CancellationToken,
}

impl Api {
    /// Returns the state of a registered node.
    fn state(&self) -> Result<Arc<Snapshot>, ApiError> {
        let snapshot = self.mirror.snapshot().ok_or(ApiError::CoreUnavailable)?;
        if snapshot.registered() { Ok(snapshot) } else { Err(ApiError::NodeNotRegistered) }
    }
}
