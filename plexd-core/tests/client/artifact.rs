//! Downloads that do not come to their end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use plexd_core::control::client::{Artifact, ArtifactError, ClientError};
use tempfile::TempDir;

use crate::server::{Answer, Server, who};

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 8\r\n\r\n";

fn wanted() -> Artifact<'static> {
    Artifact { version: "1.5.0", os: "linux", arch: "amd64", checksum: [0; 32].into() }
}

fn destination() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("plexd-core");
    (directory, path)
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}

#[tokio::test]
async fn a_download_that_breaks_off_leaves_nothing_behind() {
    for text in [
        format!("{HEAD}four"),
        HEAD.replace("Content-Length: 8", "Transfer-Encoding: chunked") + "4\r\nfour\r\n",
        "HTTP/1.1 206 Partial Content\r\nConnection: close\r\n\r\nfour".to_owned(),
    ] {
        let server = Server::answering(text).await;
        let (directory, path) = destination();
        let error = server.client().artifact(&who(), &wanted(), &path).await.unwrap_err();
        let is_incomplete =
            matches!(error, ArtifactError::Call(ClientError::Network { .. } | ClientError::Protocol { .. }));
        assert!(is_incomplete, "{error}");
        assert!(is_empty(directory.path()));
        let request = server.request();
        assert!(request.starts_with("GET /v1/artifacts/plexd/1.5.0/linux/amd64 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("authorization: Bearer "), "{request}");
    }
}

#[tokio::test]
async fn a_download_that_stands_still_is_given_up_after_60_seconds_and_leaves_nothing_behind() {
    let server = Server::start("127.0.0.1", vec![Answer::Hang(format!("{HEAD}four"))]).await;
    let (directory, path) = destination();
    let client = server.client();
    let download = tokio::spawn(async move { client.artifact(&who(), &wanted(), &path).await });
    while is_empty(directory.path()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::pause();
    let error = download.await.unwrap().unwrap_err();
    assert!(
        matches!(error, ArtifactError::Call(ClientError::Timeout { limit, .. }) if limit.as_secs() == 60),
        "{error}"
    );
    assert!(is_empty(directory.path()));
}

#[tokio::test]
async fn a_cancelled_download_leaves_nothing_behind() {
    let server = Server::start("127.0.0.1", vec![Answer::Hang(format!("{HEAD}four"))]).await;
    let (directory, path) = destination();
    let client = server.client();
    let download = tokio::spawn(async move { client.artifact(&who(), &wanted(), &path).await });
    while is_empty(directory.path()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    download.abort();
    assert!(download.await.unwrap_err().is_cancelled());
    // What a thread is at is finished first.
    while !is_empty(directory.path()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
