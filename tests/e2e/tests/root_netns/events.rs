//! What an administrator sees of the events that came.

use nix::sys::signal::Signal;
use plexd_e2e::wait_until;
use serde_json::{Value, json};

use crate::support::{SOON, Single};

/// Returns the events as `plexd-ctl events` tells them.
fn events(single: &Single) -> Vec<Value> {
    let output = single.a.node.ctl(&["events", "-n", "1000", "--json"]).succeeded();
    output.stdout.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

fn of_type<'a>(events: &'a [Value], event_type: &str) -> Option<&'a Value> {
    events.iter().find(|event| event["event_type"] == event_type)
}

#[test]
fn events_show_what_became_of_each_and_never_what_is_in_it() {
    let mut single = Single::new("");
    let follow = [&single.a.node.host().program("plexd-ctl"), "events", "--follow", "-n", "0"];
    let mut following = single.a.node.host().spawn("events", &follow);
    following.wait_ready("the header", || following_log(&single).contains("EVENT ID"));
    let id = single.a.id.clone();
    let secret = json!({ "key_pem": "hunter2" });
    single.control_plane.send_event(
        &id,
        "node_state_updated",
        &json!({ "metadata": { "region": "hunter2" } }),
    );
    for event_type in ["ingress_rule_assigned", "ingress_rule_assigned", "brand_new_type", "peer_added"] {
        single.control_plane.send_event(&id, event_type, &secret);
    }
    let seen = wait_until(SOON, "the last event", || {
        let events = events(&single);
        if of_type(&events, "peer_added").is_some() { Ok(events) } else { Err(format!("{events:?}")) }
    });
    let expected = [
        ("node_state_updated", "applied", Value::Null),
        ("ingress_rule_assigned", "unsupported", Value::Null),
        ("brand_new_type", "unknown", Value::Null),
        ("peer_added", "rejected", json!("payload")),
    ];
    for (event_type, outcome, reason) in expected {
        let event = of_type(&seen, event_type).expect("it was seen");
        assert_eq!((&event["outcome"], &event["reason"]), (&json!(outcome), &reason), "{event}");
        assert!(event["event_id"].is_string() && event["issued_at"].is_string(), "{event}");
    }
    assert!(!format!("{seen:?}").contains("hunter2"));

    let status = single.a.node.ctl(&["status"]).succeeded().stdout;
    assert_eq!(status.matches("ingress_rule_assigned").count(), 1, "said once: {status}");
    assert!(status.contains("2 unsupported") || status.contains("3 unsupported"), "{status}");
    assert!(status.contains("payload 1"), "{status}");
    let table = single.a.node.host().shell(None, "plexd-ctl events | head -n 2").succeeded();
    assert_eq!((table.stdout.lines().count(), table.stderr.as_str()), (2, ""), "{table}");

    let shown = wait_until(SOON, "the last event, as it came", || {
        let log = following.log();
        if log.contains("rejected: payload") { Ok(log) } else { Err(log) }
    });
    assert_eq!(shown.matches("unsupported ").count(), 2, "{shown}");
    assert!(!shown.contains("hunter2"));
    // A core that stops does not wait for those who follow.
    let mut core = single.a.node.take_core();
    core.signal(Signal::SIGTERM);
    assert_eq!(core.wait(std::time::Duration::from_secs(5)).code(), Some(0));
    assert_eq!(following.wait(SOON).code(), Some(1));
    assert!(following.log().trim_end().ends_with("plexd-core is stopping"), "{}", following.log());
}

/// Returns what the follower printed so far.
fn following_log(single: &Single) -> String {
    std::fs::read_to_string(single.a.node.host().directory().join("events.log")).unwrap_or_default()
}
