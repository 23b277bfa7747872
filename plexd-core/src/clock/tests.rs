//! What counts as the time, on a machine whose clocks stand until they are moved.

use super::standing::Standing;
use super::*;

const BUILT: &str = "2026-06-01T00:00:00Z";
const NOW: &str = "2026-11-21T12:00:00.5Z";

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn clock(wall: &str) -> (Arc<Standing>, NodeClock) {
    let machine = Standing::at(time(wall));
    let clock = NodeClock::new(Arc::clone(&machine) as _, time(BUILT));
    (machine, clock)
}

/// A clock of another process, on a machine whose clock says `wall`.
fn restarted(before: &NodeClock, wall: &str) -> NodeClock {
    let (_, clock) = clock(wall);
    clock.remember(&before.view().kept);
    clock
}

/// An answer that comes at once, with the date at the begin of its second, from whom the certificate allows any.
fn answer(clock: &NodeClock, date: &str) {
    clock.answered(time(date), clock.uptime(), |_| true);
}

fn says(clock: &NodeClock, expected: &str) {
    assert_eq!(clock.now().to_string(), expected);
}

#[test]
fn without_an_answer_the_machines_clock_counts_but_never_before_the_build() {
    let (machine, clock) = clock(NOW);
    says(&clock, "2026-11-21T12:00:00.5Z");
    machine.set(-1_000_000_000);
    says(&clock, "2026-06-01T00:00:00Z");
    machine.pass(5);
    says(&clock, "2026-06-01T00:00:05Z");
    assert_eq!((clock.view().kept, clock.view().skew), (Kept::default(), None));
    let (_, unset) = super::tests::clock("1970-01-01T00:00:09Z");
    says(&unset, "2026-06-01T00:00:00Z");
}

#[test]
fn an_answer_gives_the_time_whatever_becomes_of_the_machines_clock() {
    let (machine, clock) = clock(NOW);
    answer(&clock, "2026-11-21T12:10:00Z");
    says(&clock, "2026-11-21T12:10:00.5Z");
    assert_eq!(clock.view().skew, Some(SignedDuration::from_mins(-10)));
    for change in [3600, -7200, 600, -1_000_000_000] {
        machine.set(change);
        says(&clock, "2026-11-21T12:10:00.5Z");
    }
    machine.pass(30);
    says(&clock, "2026-11-21T12:10:30.5Z");
    answer(&clock, "2026-11-21T12:05:00Z");
    says(&clock, "2026-11-21T12:05:00.5Z");
}

#[test]
fn what_cannot_be_told_from_none_is_no_skew() {
    for (date, round_trip, skew) in [
        ("2026-11-21T12:00:00Z", 0, 0),
        ("2026-11-21T12:00:02Z", 0, 0),
        ("2026-11-21T11:59:58Z", 0, 0),
        ("2026-11-21T12:00:03Z", 0, -3),
        ("2026-11-21T11:59:57Z", 0, 3),
        // Written at an unknown moment of the ten seconds that it took.
        ("2026-11-21T11:59:57Z", 10, 0),
        ("2026-11-21T11:59:50Z", 10, 0),
        ("2026-11-21T11:59:40Z", 10, 15),
    ] {
        let (machine, clock) = clock(NOW);
        machine.set(-round_trip);
        let sent = clock.uptime();
        machine.pass(round_trip.unsigned_abs());
        clock.answered(time(date), sent, |_| true);
        assert_eq!(clock.view().skew, Some(SignedDuration::from_secs(skew)), "{date} {round_trip}");
        if skew == 0 {
            says(&clock, NOW.trim_end_matches('0'));
        }
    }
}

#[test]
fn a_date_outside_of_the_certificate_or_before_the_build_is_not_believed() {
    let (_, clock) = clock(NOW);
    let begin = time("2026-01-01T00:00:00Z")..=time("2027-01-01T00:00:00Z");
    let allows = |time| begin.contains(&time);
    for lie in ["2027-01-01T00:00:00Z", "2025-12-31T00:00:00Z", "2026-05-31T00:00:00Z"] {
        clock.answered(time(lie), clock.uptime(), allows);
        says(&clock, NOW);
        assert_eq!((clock.view().disbelieved, clock.view().skew), (Some(time(lie)), None));
    }
    clock.answered(time("2026-12-31T23:00:00Z"), clock.uptime(), allows);
    says(&clock, "2026-12-31T23:00:00.5Z");
    assert_eq!(clock.view().disbelieved, None);
    // Small steps do not lead out of it.
    for second in 0..=9 {
        let date = later(time("2026-12-31T23:59:58Z"), Duration::from_secs(second));
        clock.answered(date, clock.uptime(), allows);
    }
    says(&clock, "2026-12-31T23:59:59.5Z");
    // What was believed stays when the next is not.
    clock.answered(time("2027-12-31T23:00:00Z"), clock.uptime(), allows);
    says(&clock, "2026-12-31T23:59:59.5Z");
    // Nor do machine and control plane together lead before the build.
    let (_, early) = super::tests::clock("2026-05-31T00:00:00.5Z");
    answer(&early, "2026-05-31T00:00:00Z");
    says(&early, "2026-06-01T00:00:00Z");
}

#[test]
fn a_time_on_which_machine_and_control_plane_agree_is_the_floor_of_later_processes() {
    let (machine, clock) = clock(NOW);
    answer(&clock, "2026-11-21T12:00:00Z");
    machine.pass(3600);
    for early in ["1970-01-01T00:00:00Z", "2026-11-21T12:59:00Z"] {
        let later = restarted(&clock, early);
        says(&later, "2026-11-21T13:00:00.5Z");
        assert!(!later.view().is_told);
    }
    says(&restarted(&clock, "2026-11-21T13:00:01Z"), "2026-11-21T13:00:01Z");
    // A day apart is a wrong time zone; the earlier of the two is safe.
    let (_, behind) = super::tests::clock("2026-11-20T13:00:00Z");
    answer(&behind, "2026-11-21T12:00:00Z");
    says(&restarted(&behind, "1970-01-01T00:00:00Z"), "2026-11-20T13:00:00Z");
}

#[test]
fn a_machine_without_a_clock_goes_on_from_what_the_control_plane_said() {
    let (machine, clock) = clock("1970-01-01T00:00:00Z");
    answer(&clock, "2026-11-21T12:00:00Z");
    machine.pass(60);
    let later = restarted(&clock, "1970-01-01T00:00:05Z");
    says(&later, "2026-11-21T12:01:00.5Z");
    // Once its clock may be right it counts.
    says(&restarted(&clock, "2026-11-21T12:00:00Z"), "2026-11-21T12:00:00Z");
}

#[test]
fn a_far_future_that_only_one_of_the_two_claims_does_not_outlast_it() {
    let (_, machine_wrong) = clock("2099-01-01T00:00:00Z");
    answer(&machine_wrong, "2026-11-21T12:00:00Z");
    says(&machine_wrong, "2026-11-21T12:00:00.5Z");
    says(&restarted(&machine_wrong, "2026-11-21T12:00:09Z"), "2026-11-21T12:00:09Z");

    let (_, plane_wrong) = clock(NOW);
    answer(&plane_wrong, "2035-01-01T00:00:00Z");
    says(&plane_wrong, "2035-01-01T00:00:00.5Z");
    says(&restarted(&plane_wrong, "2026-11-21T12:00:09Z"), "2026-11-21T12:00:09Z");
    answer(&plane_wrong, "2026-11-21T12:00:00Z");
    says(&plane_wrong, NOW);
}

#[test]
fn a_wrong_time_on_which_both_agreed_is_undone_when_both_agree_on_another() {
    let (_, clock) = clock("2035-01-01T00:00:00.5Z");
    answer(&clock, "2035-01-01T00:00:00Z");
    let later = restarted(&clock, NOW);
    says(&later, "2035-01-01T00:00:00.5Z");
    answer(&later, "2026-11-21T12:00:00Z");
    says(&later, NOW);
    says(&restarted(&later, NOW), NOW);
}

#[test]
fn a_time_for_which_the_certificate_is_refused_is_given_up() {
    let (machine, clock) = clock(NOW);
    answer(&clock, "2026-11-21T12:00:00Z");
    // The machine was stored for a month, and a time service set its clock right.
    machine.set(30 * 86_400);
    says(&clock, NOW);
    clock.distrust();
    says(&clock, "2026-12-21T12:00:00.5Z");
    machine.set(-60 * 86_400);
    says(&clock, NOW);
}

#[tokio::test]
async fn an_answer_wakes_who_waits_for_it() {
    let (_, clock) = clock(NOW);
    answer(&clock, "2026-11-21T12:00:00Z");
    clock.changed().await;
}
