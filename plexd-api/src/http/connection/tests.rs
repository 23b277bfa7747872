//! Whole connections, through hyper: how long they live, and that no request is answered whose length is unclear.

use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::time::Instant;

use super::*;

/// How long the slow route takes to answer.
const SLOW: Duration = Duration::from_secs(40);

/// Serves one connection, and returns the client's end of it.
fn connect() -> DuplexStream {
    let response = || Response::new(Body::Whole(Bytes::from_static(b"answer")));
    let answer = move |_: &Caller, request: Request<RequestBody>| match request.uri().path() {
        "/slow" => {
            let slow = async move {
                tokio::time::sleep(SLOW).await;
                response()
            };
            (Outcome::Later(Box::pin(slow)), Some(request.into_body()))
        }
        _ => (Outcome::Now(response()), Some(request.into_body())),
    };
    let server = Server {
        answer: Handler(Arc::new(answer)),
        metrics: None,
        slots: Slots::new(Limits::default()),
        turning_away: Arc::new(Semaphore::new(1)),
        connections: TaskTracker::new(),
        shutdown: CancellationToken::new(),
    };
    let (client, io) = tokio::io::duplex(10_000);
    server.accept(io, Caller::Tcp);
    client
}

/// Returns the statuses in what the connection has to say until it ends.
async fn statuses(client: &mut DuplexStream) -> Vec<String> {
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    text.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].to_owned()).collect()
}

/// Asks for `path`, and waits for the answer.
async fn ask(client: &mut DuplexStream, path: &str) {
    client.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"answer") {
        assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0, "cut");
    }
}

/// Returns the seconds until the silent connection is cut.
async fn silence(client: &mut DuplexStream) -> u64 {
    let start = Instant::now();
    assert_eq!(statuses(client).await, [""; 0]);
    start.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn a_connection_in_use_lives_on_and_silence_counts_from_its_last_answer() {
    let mut client = connect();
    for pause in [12, 12, 12, 12, 12, 12, 12, 70, 70, 1] {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        ask(&mut client, "/").await;
    }
    assert_eq!(silence(&mut client).await, 75);
    let mut client = connect();
    for pause in [0, 70, 70] {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        ask(&mut client, "/slow").await;
    }
    assert_eq!(silence(&mut client).await, 75);
}

#[tokio::test]
async fn no_request_with_both_lengths_is_answered_however_the_one_before_tells_its_length() {
    let spaces = " ".repeat(60);
    let zeros = "0".repeat(70);
    let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n";
    let both = format!("{chunked}Content-Length: 5\r\n\r\n0\r\n\r\n");
    let before = [
        format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length:{spaces}5\r\n\r\nGET /"),
        format!(
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length:{spaces}33\r\n\r\nGET / HTTP/1.1\r\nHost: 123456789\r\n\r\n"
        ),
        format!("{chunked}\r\n{zeros}5\r\nGET /\r\n0\r\n\r\n"),
        format!("{chunked}\r\n0\r\nT: 1\n\r\nGET / HTTP/1.1\r\n\r\n"),
        format!("{chunked}\r\n0\r\n\nGET / HTTP/1.1\r\n\r\n"),
    ];
    for before in before {
        let mut client = connect();
        client.write_all(before.as_bytes()).await.unwrap();
        client.write_all(both.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let statuses = statuses(&mut client).await;
        let last = statuses.last().map(String::as_str);
        assert!(last == Some("400") && !statuses[1..].contains(&"200".into()), "{before:?}: {statuses:?}");
    }
}
