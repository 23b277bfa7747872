//! Certificates and dates on a node whose clock is wrong, against a server whose certificate is of 2027 alone.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use plexd_core::clock::{Kept, NodeClock, Source};
use plexd_core::control::client::{Client, ClientError};
use plexd_core::types::Clock;
use rcgen::{CertificateParams, date_time_ymd};

use crate::server::{Answer, Server, answer, who};

const BUILT: &str = "2026-06-01T00:00:00Z";

/// A machine whose clock stands, and that is up as long as it is.
#[derive(Debug)]
struct Stopped(Timestamp);

impl Source for Stopped {
    fn wall(&self) -> Timestamp {
        self.0
    }

    fn uptime(&self) -> Duration {
        Duration::from_secs(100)
    }
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn machine(wall: &str) -> (Arc<Stopped>, Arc<NodeClock>) {
    let machine = Arc::new(Stopped(time(wall)));
    let clock = Arc::new(NodeClock::new(Arc::clone(&machine) as _, time(BUILT)));
    (machine, clock)
}

/// A server that gives these statuses and dates.
async fn server(answers: &[(&str, &str)]) -> Server {
    let mut certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    (certificate.not_before, certificate.not_after) = (date_time_ymd(2027, 1, 1), date_time_ymd(2028, 1, 1));
    let text = |(status, date): &(&str, &str)| {
        let header = if date.is_empty() { String::new() } else { format!("Date: {date}\r\n") };
        Answer::Text(answer(status, &header, ""))
    };
    Server::certified(certificate, answers.iter().map(text).collect()).await
}

async fn ask(client: &Client) -> Result<(), ClientError> {
    client.deregister(&who()).await
}

#[tokio::test]
async fn a_machine_without_a_clock_connects_by_what_was_known_and_takes_the_time_from_the_answer() {
    let server = server(&[("200 OK", "Tue, 15 Jun 2027 12:00:00 GMT"), ("200 OK", "")]).await;
    let (_, clock) = machine("1970-01-01T00:00:03Z");
    let known = Some(time("2027-03-01T00:00:00Z"));
    clock.remember(&Kept { known, ..Kept::default() });
    let client = server.client_by(&clock);
    ask(&client).await.unwrap();
    assert_eq!(clock.now(), time("2027-06-15T12:00:00.5Z"));
    // An answer without a date changes nothing.
    ask(&client).await.unwrap();
    assert_eq!(clock.now(), time("2027-06-15T12:00:00.5Z"));
    assert!(clock.view().skew.unwrap() < SignedDuration::from_hours(-24 * 365 * 57));
}

#[tokio::test]
async fn a_certificate_is_judged_by_the_nodes_time_and_the_refusal_says_by_which() {
    for (wall, text) in [
        (
            "1970-01-01T00:00:03Z",
            "it is valid from 2027-01-01T00:00:00Z on, and this node takes it to be 2026-06-01T00:00:00Z",
        ),
        (
            "2099-01-01T00:00:00Z",
            "it expired at 2028-01-01T00:00:00Z, and this node takes it to be 2099-01-01T00:00:00Z",
        ),
    ] {
        let server = server(&[("200 OK", "")]).await;
        let (_, clock) = machine(wall);
        let error = ask(&server.client_by(&clock)).await.unwrap_err();
        assert!(matches!(error, ClientError::Certificate { .. }), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[tokio::test]
async fn a_date_for_which_the_certificate_is_not_valid_is_not_believed() {
    let lies =
        ["Sun, 02 Jan 2028 00:00:00 GMT", "Thu, 31 Dec 2026 00:00:00 GMT", "Wed, 01 Jan 2070 00:00:00 GMT"];
    for lie in lies {
        let server = server(&[("200 OK", lie), ("200 OK", "Fri, 31 Dec 2027 00:00:00 GMT")]).await;
        let (_, clock) = machine("2027-06-15T12:00:00Z");
        let client = server.client_by(&clock);
        ask(&client).await.unwrap();
        assert_eq!((clock.now(), clock.view().skew), (time("2027-06-15T12:00:00Z"), None), "{lie}");
        assert!(clock.view().disbelieved.is_some());
        ask(&client).await.unwrap();
        assert_eq!(clock.now(), time("2027-12-31T00:00:00.5Z"));
    }
}

#[tokio::test]
async fn only_an_answer_that_accepts_the_credential_tells_the_time() {
    let date = "Tue, 15 Jun 2027 12:10:00 GMT";
    for status in
        ["401 Unauthorized", "403 Forbidden", "404 Not Found", "302 Found", "503 Service Unavailable"]
    {
        let server = server(&[(status, date)]).await;
        let (_, clock) = machine("2027-06-15T12:00:00Z");
        ask(&server.client_by(&clock)).await.unwrap_err();
        assert_eq!((clock.now(), clock.view().skew), (time("2027-06-15T12:00:00Z"), None), "{status}");
    }
}

#[tokio::test]
async fn a_time_that_the_certificate_of_today_does_not_know_is_given_up_after_one_refusal() {
    for wrong in ["2026-12-01T00:00:00Z", "2035-01-01T00:00:00Z"] {
        let server = server(&[("200 OK", ""), ("200 OK", "Tue, 15 Jun 2027 12:00:00 GMT")]).await;
        let (machine, clock) = machine("2027-06-15T12:00:00Z");
        // As of a control plane with another certificate.
        clock.answered(time(wrong), clock.uptime(), |_| true);
        let client = server.client_by(&clock);
        let error = ask(&client).await.unwrap_err();
        assert!(error.to_string().contains(&format!("takes it to be {wrong}")), "{error}");
        ask(&client).await.unwrap();
        assert_eq!(clock.now(), machine.wall());
    }
}

#[tokio::test]
async fn a_wrong_time_on_which_both_had_agreed_is_not_forgotten_and_the_refusal_says_it() {
    let server = server(&[("200 OK", ""), ("200 OK", "")]).await;
    let (_, clock) = machine("2027-06-15T12:00:00Z");
    let known = Some(time("2035-01-01T00:00:00Z"));
    clock.remember(&Kept { known, ..Kept::default() });
    let client = server.client_by(&clock);
    for _ in 0..2 {
        let error = ask(&client).await.unwrap_err();
        assert!(error.to_string().contains("takes it to be 2035-01-01T00:00:00Z"), "{error}");
    }
}
