//! What memory a process keeps that it does not use.

use std::time::Duration;

pub use plexd_sys::{give_back, keep_little};

/// How long what a start does takes at most, as a rule.
const START: Duration = Duration::from_secs(10);

/// Lets go of what only the start needed, once it is over.
pub async fn after_the_start() {
    // There is no moment at which a start is over: the mesh comes up, and the first snapshot is taken, at the pace of others.
    tokio::time::sleep(START).await;
    plexd_sys::let_go_of_code();
    give_back();
}
