//! What a node does while its control plane misbehaves, fault by fault: the last good state stays enforced, the Local Node
//! API answers, memory is bounded; and after the fault the node has what the control plane wants. Each fault twice: for a
//! few seconds in `make test`, for minutes in `make test-long`, which prints a line per fault.
//!
//! [`catalogue`] has the faults, [`trial`] what each is put through.

mod bad_events;
mod catalogue;
mod trial;

use trial::{Length, Trial};

macro_rules! faults {
    (both: $($fault:ident)* ; long: $($slow:ident)*) => {
        mod the_node_outlives {
            $(
                #[test]
                fn $fault() {
                    super::Trial::run(&super::catalogue::$fault(super::Length::Short));
                }
            )*
        }

        mod long_the_node_outlives {
            $(faults!(@long $fault);)*
            $(faults!(@long $slow);)*
        }
    };
    (@long $fault:ident) => {
                #[test]
                #[ignore = "takes minutes: make test-long"]
                fn $fault() {
                    super::Trial::run(&super::catalogue::$fault(super::Length::Long));
                }
    };
}

faults! {
    both:
    refused_connections
    closed_connections
    a_black_hole
    latency
    server_errors
    a_refused_identity
    rate_limits_in_seconds
    rate_limits_by_date
    garbage
    json_cut_short
    connections_that_end_within_an_answer
    wrong_content_types
    gzip_bombs
    states_that_are_too_large
    streams_cut_within_a_character
    events_that_are_too_large
    forged_events
    stale_events
    events_from_the_future
    replayed_events
    reordered_events
    renewed_certificates
    a_strangers_certificate
    a_control_plane_killed_and_restarted
    ;
    // A debug build needs half a minute to wipe 64 MiB that it has read.
    long:
    states_as_large_as_they_may_be
    states_full_of_data
}
