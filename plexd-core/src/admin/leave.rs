//! How `Deregister` is asked for and answered.

use std::time::Duration;

use plexd_proto::admin::v1;
use tonic::Status;

use crate::identity::{Consent, Extent, Farewell, Leave, LeaveError, LeaveRequests, Left};

/// How long a deregistration may take, and waiting for a registration before it.
const DEADLINE: Duration = Duration::from_secs(80);

/// Has the identity given up, as `request` asks.
pub(super) async fn answer(
    requests: &LeaveRequests,
    request: v1::DeregisterRequest,
) -> Result<v1::DeregisterResponse, Status> {
    let leave = Leave {
        extent: if request.purge { Extent::Everything } else { Extent::Identity },
        consent: if request.force { Consent::Waived } else { Consent::Required },
    };
    // Whoever does it goes on, whether anybody waits or not.
    let left = tokio::time::timeout(DEADLINE, requests.leave(leave)).await.map_err(|_| {
        Status::deadline_exceeded("the deregistration takes long and goes on; see: plexd-ctl status")
    })?;
    left.map(response).map_err(|error| match error {
        LeaveError::NotEnrolled => Status::failed_precondition(error.to_string()),
        LeaveError::Busy => Status::aborted(error.to_string()),
        LeaveError::NotConfirmed { .. } | LeaveError::Stopping => Status::unavailable(error.to_string()),
    })
}

fn response(left: Left) -> v1::DeregisterResponse {
    let farewell = match left.farewell {
        Farewell::Confirmed => v1::Farewell::Confirmed,
        Farewell::Unknown => v1::Farewell::Unknown,
        Farewell::NotAsked => v1::Farewell::NotAsked,
    };
    v1::DeregisterResponse {
        node_id: left.node_id.map(|id| id.to_string()).unwrap_or_default(),
        farewell: farewell.into(),
        remains: left.remains,
    }
}
