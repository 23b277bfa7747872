//! Connections by the thousand: up to the limit they cost little, one more is told so, and others live on.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use plexd_e2e::wait_until;

use super::crowd::{Crowd, FIRST};
use super::memory::{Before, FULL_CONNECTION, IDLE_CONNECTION, SLACK};
use crate::bystander::{Bystander, TCP};
use crate::support::{SOON, Single};

/// Connections in all, of one user, and over TCP.
const LIMITS: (usize, usize, usize) = (4096, 512, 1024);

/// What whoever is one too many hears.
const TOO_MANY: &str = r#"'HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 32\r\nconnection: close\r\n\r\n{"error":"too many connections"}'"#;

/// A node that may open as many files as it takes, and its API's other client.
#[track_caller]
fn roomy() -> (Single, Bystander) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    let wanted = 8192;
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).expect("root may open files");
    let single = Single::new(TCP).with_the_guides_state();
    let bystander = Bystander::reading_and_writing(&single.a.node);
    (single, bystander)
}

/// Fills all places: TCP's, of which the other client has one, and those of as many users as it takes; root's are that
/// client's other one. Returns how many there are beside its two.
#[track_caller]
fn fill(crowd: &mut Crowd) -> usize {
    let (all, per_user, tcp) = LIMITS;
    assert_eq!(crowd.come("tcp", tcp - 1), tcp - 1);
    assert_eq!(crowd.hear("tcp"), TOO_MANY, "one more over TCP");
    let mut left = all - tcp - 1;
    for user in (FIRST..).map(|user| user.to_string()) {
        let count = left.min(per_user);
        assert_eq!(crowd.come(&user, count), count, "user {user}");
        if count == per_user {
            assert_eq!(crowd.hear(&user), TOO_MANY, "one more of user {user}");
        }
        left -= count;
        if left == 0 {
            break;
        }
    }
    for who in ["tcp", "61998", "0"] {
        assert_eq!(crowd.hear(who), TOO_MANY, "one more than all: {who}");
    }
    all - 2
}

/// Waits until there are places again, for users and over TCP.
#[track_caller]
fn wait_places(crowd: &mut Crowd) {
    for who in ["61999", "tcp"] {
        wait_until(SOON, "a place", || crowd.come(who, 1) == 1);
    }
}

#[test]
fn four_thousand_idle_connections_cost_little_one_more_is_told_and_places_are_given_back() {
    let (mut single, bystander) = roomy();
    let before = Before::of("plexd-api", single.a.node.api());
    let mut crowd = Crowd::gather(&single.a.node);
    let count = fill(&mut crowd);
    assert_eq!(crowd.ask(), count, "those who are in are answered");
    let bound = LIMITS.0 as u64 * IDLE_CONNECTION + SLACK;
    before.has_grown_by_at_most(bound, single.a.node.api());
    crowd.go();
    wait_places(&mut crowd);
    bystander.finish();
}

#[test]
#[ignore = "with the time that a head has: `make test-long`"]
fn long_four_thousand_heads_of_30_kilobytes_cost_what_is_documented() {
    let (mut single, bystander) = roomy();
    let before = Before::of("plexd-api", single.a.node.api());
    let mut crowd = Crowd::gather(&single.a.node);
    let count = fill(&mut crowd);
    assert_eq!(crowd.say(30_000), count);
    // They have ten seconds.
    wait_places(&mut crowd);
    let bound = LIMITS.0 as u64 * FULL_CONNECTION + SLACK;
    before.has_grown_by_at_most(bound, single.a.node.api());
    bystander.finish();
}
