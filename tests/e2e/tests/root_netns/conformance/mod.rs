//! The documents' endpoints, status codes and events, as the running node meets them at `plexd-devcp`; the JSON is the
//! documents' own, from plexd-core's `tests/fixtures`.
//!
//! - [`statuses`]: what each status of each endpoint that the node uses does to it, seen from outside;
//! - [`bodies`]: what the node sends and takes is what the documents' examples are;
//! - [`events`]: each of the 24 events, signed, and its effect.
//!
//! Deregistration is with the life of a node (`lifecycle.rs`). What the node does not use yet (endpoint, ack, result,
//! metrics, logs, audit, artifacts) has only the client's half: plexd-core's `tests/endpoints` puts all 17 through every
//! status.

mod bodies;
mod events;
mod statuses;

use serde_json::Value;

use crate::support::Single;

/// Returns an example of the documents.
#[track_caller]
fn fixture(name: &str) -> Value {
    let path = format!("{}/../../plexd-core/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

impl Single {
    /// Makes it with a node that is well and has no token left: what is refused stays refused.
    #[track_caller]
    fn settled(more: &str) -> Self {
        let single = Self::new(more);
        let token = single.a.node.host().path("/etc/plexd/bootstrap-token");
        std::fs::remove_file(token).expect("it enrolled by a token file");
        single.wait_well();
        single
    }

    /// Ends plexd-core as a crash would, and starts it again.
    #[track_caller]
    fn restart_core(&mut self) {
        self.a.node.take_core().kill9();
        self.a.node.start_core();
    }

    /// Waits until nothing is wrong with the node.
    #[track_caller]
    fn wait_well(&self) {
        self.a.wait_status("health", |status| {
            status["health"] == "healthy" && status["control_plane"]["stream"] == "connected"
        });
    }
}
