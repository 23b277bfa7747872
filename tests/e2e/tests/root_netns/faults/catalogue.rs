//! The faults, in the order of the list: how each begins, goes on and ends.

use std::time::Duration;

use plexd_e2e::wait_until;
use serde_json::json;

use super::bad_events;
use super::trial::{Change, Fault, LARGE, Length, SMALL, Trial};
use crate::support::{Mesh, wait_problem};

/// Largest state that is read (contract, section 2), in bytes.
const LIMIT: usize = 64 << 20;

/// A fault of no name, with no effect; each below says what is different.
fn fault(name: &'static str, length: Length) -> Fault {
    Fault {
        name,
        lasts: length.pick(Duration::from_secs(4), Duration::from_secs(90)),
        change: Change::Blocked,
        memory: SMALL,
        configuration: "",
        begin: |_| {},
        keep: |_, _| {},
        end: |trial| trial.mesh.control_plane.clear_faults(),
    }
}

/// Filters what comes to the control plane's port, and what leaves it.
fn filter(trial: &Trial, incoming: &str, outgoing: &str) {
    let script = format!(
        "add table inet fault
         add chain inet fault in {{ type filter hook input priority -300; }}
         add chain inet fault out {{ type filter hook output priority -300; }}
         add rule inet fault in tcp dport 8443 {incoming}
         add rule inet fault out tcp sport 8443 {outgoing}"
    );
    trial.mesh.control_plane.host().run(&["nft", &script]).expect_success();
}

fn unfilter(trial: &mut Trial) {
    trial.mesh.control_plane.host().run(&["nft", "delete table inet fault"]).expect_success();
}

pub(super) fn refused_connections(length: Length) -> Fault {
    Fault {
        begin: |trial| filter(trial, "reject with tcp reset", "tcp flags & rst == 0 drop"),
        end: unfilter,
        ..fault("refused connections", length)
    }
}

pub(super) fn closed_connections(length: Length) -> Fault {
    Fault {
        begin: |trial| trial.mesh.control_plane.set_faults(&json!({ "refuse_connections": true })),
        ..fault("closed connections", length)
    }
}

pub(super) fn a_black_hole(length: Length) -> Fault {
    Fault {
        begin: |trial| filter(trial, "drop", "drop"),
        end: unfilter,
        // Longer than a stream may be silent.
        lasts: length.pick(Duration::from_secs(4), Duration::from_mins(2)),
        ..fault("black hole", length)
    }
}

pub(super) fn latency(length: Length) -> Fault {
    Fault {
        begin: match length {
            Length::Short => |trial| {
                trial.mesh.control_plane.set_faults(&json!({ "latency_ms": 5_000, "drop_streams": true }));
            },
            Length::Long => |trial| {
                trial.mesh.control_plane.set_faults(&json!({ "latency_ms": 30_000, "drop_streams": true }));
            },
        },
        lasts: length.pick(Duration::from_secs(4), Duration::from_mins(2)),
        ..fault(length.pick("latency of 5 s", "latency of 30 s"), length)
    }
}

pub(super) fn server_errors(length: Length) -> Fault {
    Fault {
        begin: |trial| trial.mesh.control_plane.set_faults(&json!({ "status": 500, "drop_streams": true })),
        ..fault("status 500", length)
    }
}

pub(super) fn a_refused_identity(length: Length) -> Fault {
    Fault {
        begin: |trial| trial.mesh.control_plane.set_faults(&json!({ "status": 401, "drop_streams": true })),
        ..fault("status 401", length)
    }
}

pub(super) fn rate_limits_in_seconds(length: Length) -> Fault {
    Fault {
        begin: |trial| {
            let rule = json!({ "status": 429, "retry_after": { "seconds": 5 }, "drop_streams": true });
            trial.mesh.control_plane.set_faults(&rule);
        },
        ..fault("status 429, seconds", length)
    }
}

pub(super) fn rate_limits_by_date(length: Length) -> Fault {
    Fault {
        begin: |trial| {
            let rule = json!({ "status": 429, "retry_after": { "date": 5 }, "drop_streams": true });
            trial.mesh.control_plane.set_faults(&rule);
        },
        ..fault("status 429, date", length)
    }
}

pub(super) fn garbage(length: Length) -> Fault {
    Fault {
        begin: |trial| trial.mesh.control_plane.set_faults(&json!({ "garbage": true, "drop_streams": true })),
        ..fault("garbage", length)
    }
}

pub(super) fn json_cut_short(length: Length) -> Fault {
    Fault {
        begin: |trial| {
            trial.mesh.control_plane.set_faults(&json!({ "truncate": "clean", "drop_streams": true }));
        },
        ..fault("truncated JSON", length)
    }
}

pub(super) fn connections_that_end_within_an_answer(length: Length) -> Fault {
    Fault {
        begin: |trial| {
            trial.mesh.control_plane.set_faults(&json!({ "truncate": "broken", "drop_streams": true }));
        },
        ..fault("connection ends within the JSON", length)
    }
}

/// A stream that is called a web page is none. What is JSON by content is taken, whatever it is called.
pub(super) fn wrong_content_types(length: Length) -> Fault {
    Fault {
        begin: |trial| {
            // Cuts the open streams; the rule for all does not.
            trial.mesh.control_plane.set_faults(&json!({ "endpoint": "events", "drop_streams": true }));
            trial.mesh.control_plane.set_faults(&json!({ "endpoint": "events", "wrong_type": true }));
            trial.mesh.control_plane.set_faults(&json!({ "wrong_type": true }));
        },
        ..fault("wrong content type", length)
    }
}

pub(super) fn gzip_bombs(length: Length) -> Fault {
    Fault {
        begin: |trial| {
            trial.mesh.control_plane.set_faults(&json!({ "gzip_bomb": true, "drop_streams": true }));
        },
        ..fault("gzip bomb", length)
    }
}

pub(super) fn states_that_are_too_large(length: Length) -> Fault {
    Fault {
        begin: |trial| {
            let control_plane = &trial.mesh.control_plane;
            control_plane.set_faults(&json!({ "endpoint": "events", "drop_streams": true }));
            control_plane.set_faults(&json!({ "endpoint": "state", "pad_to": LIMIT + 1 }));
        },
        lasts: length.pick(Duration::from_secs(4), Duration::from_mins(1)),
        memory: LARGE,
        ..fault("state of 64 MiB + 1", length)
    }
}

/// No fault, but as near to one as it gets.
pub(super) fn states_as_large_as_they_may_be(length: Length) -> Fault {
    Fault {
        begin: |trial| {
            let control_plane = &trial.mesh.control_plane;
            control_plane.set_faults(&json!({ "endpoint": "events", "drop_streams": true }));
            control_plane.set_faults(&json!({ "endpoint": "state", "pad_to": LIMIT }));
        },
        end: |trial| {
            // A debug build needs half a minute to wipe what it has read.
            wait_until(Duration::from_mins(2), "the change, from such a state", || trial.is_changed());
            trial.mesh.control_plane.clear_faults();
        },
        change: Change::MayArrive,
        memory: LARGE,
        ..fault("state of 64 MiB", length)
    }
}

pub(super) fn streams_cut_within_a_character(length: Length) -> Fault {
    Fault {
        begin: |trial| {
            trial.mesh.control_plane.set_faults(&json!({ "endpoint": "events", "tear_streams": true }));
        },
        change: Change::MayArrive,
        ..fault("stream cut within a character", length)
    }
}

pub(super) fn events_that_are_too_large(length: Length) -> Fault {
    Fault {
        keep: bad_events::send_too_large,
        change: Change::AfterIt,
        ..fault("events of more than 8 MiB", length)
    }
}

pub(super) fn forged_events(length: Length) -> Fault {
    Fault { keep: bad_events::send_forged, change: Change::AfterIt, ..fault("forged events", length) }
}

pub(super) fn stale_events(length: Length) -> Fault {
    Fault { keep: bad_events::send_stale, change: Change::AfterIt, ..fault("stale events", length) }
}

pub(super) fn events_from_the_future(length: Length) -> Fault {
    Fault {
        keep: bad_events::send_from_the_future,
        change: Change::AfterIt,
        ..fault("future events", length)
    }
}

pub(super) fn replayed_events(length: Length) -> Fault {
    Fault {
        begin: bad_events::send_what_is_replayed,
        keep: bad_events::send_again,
        change: Change::AfterIt,
        ..fault("replayed events", length)
    }
}

/// They are genuine, and applied in the order received (contract, section 2): the next pull puts things right.
pub(super) fn reordered_events(length: Length) -> Fault {
    Fault {
        keep: bad_events::send_reversed,
        change: Change::MayArrive,
        configuration: length.pick("reconcile:\n  interval: 10s\n", ""),
        ..fault("reordered events", length)
    }
}

pub(super) fn renewed_certificates(length: Length) -> Fault {
    Fault {
        keep: |trial, _| trial.mesh.control_plane.swap_certificate("own"),
        change: Change::MayArrive,
        ..fault("renewed certificates", length)
    }
}

pub(super) fn a_strangers_certificate(length: Length) -> Fault {
    Fault {
        begin: |trial| trial.mesh.control_plane.swap_certificate("stranger"),
        end: |trial| {
            wait_problem(&trial.mesh.a.node, &["certificate", "api_ca_file"]);
            trial.mesh.control_plane.swap_certificate("own");
        },
        ..fault("certificate of another authority", length)
    }
}

pub(super) fn a_control_plane_killed_and_restarted(length: Length) -> Fault {
    Fault {
        begin: |trial| trial.mesh.control_plane.stop(),
        // Down for ten rounds, up for five.
        keep: |trial, round| match round % 15 {
            10 => trial.mesh.control_plane.start_again(),
            0 => trial.mesh.control_plane.stop(),
            _ => {}
        },
        end: |trial| {
            trial.mesh.control_plane.stop();
            trial.mesh.control_plane.start_again();
        },
        change: Change::AfterIt,
        ..fault("control plane killed and restarted", length)
    }
}

/// A state whose content, not white space, makes it large: a fault only to those who keep too many copies of it. What
/// plexd-devcp takes within the 30 s of the harness, in a debug build.
pub(super) fn states_full_of_data(length: Length) -> Fault {
    Fault {
        begin: |trial| {
            let Mesh { a, control_plane, .. } = &trial.mesh;
            let node = control_plane.admin("GET", &format!("/admin/nodes/{}", a.id), None);
            let mut data = node["state"]["data"].as_array().cloned().unwrap_or_default();
            let text = "x".repeat(1 << 20);
            data.extend((0..32).map(|number| {
                json!({ "key": format!("large-{number}"), "content_type": "text/plain", "payload": text })
            }));
            control_plane.set_state(&a.id, &json!({ "data": data }));
            wait_until(Duration::from_mins(2), "a state of 32 MiB", || {
                let answer = a.node.curl_unix("/v1/state", &[]);
                if answer.body.contains("large-31") { Ok(()) } else { Err(answer) }
            });
        },
        change: Change::AfterIt,
        memory: LARGE,
        ..fault("32 MiB of data", length)
    }
}
