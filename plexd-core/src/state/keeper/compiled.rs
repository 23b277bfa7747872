//! Which policies compile, as the reconciler says: until that is known of the newest, the set before them is kept, on disk
//! too, so that a set that is refused leaves the old one in force over a restart.

use std::sync::Arc;

use super::{Keeper, Request, State};
use crate::policy::PolicySet;

impl State {
    /// Notes that these policies, the newest or those just before them, can be enforced. Does not wait until that is
    /// durable: whoever starts without it tries the newest first.
    pub async fn compiled(&self, policies: Arc<PolicySet>) {
        // A keeper that has stopped keeps nothing any more.
        let _ = self.requests.send(Request::Compiled(policies)).await;
    }
}

impl Keeper {
    pub(super) fn on_compiled(&mut self, policies: &Arc<PolicySet>) {
        // Those of an identity that was given up meanwhile are nobody's.
        let is_known = Arc::ptr_eq(policies, &self.desired.policies)
            || self.replaced.as_ref().is_some_and(|replaced| Arc::ptr_eq(policies, replaced));
        if let Some(next) = self.desired.with_compiled(policies).filter(|_| is_known) {
            self.publish(Arc::new(next), None);
        }
    }
}
