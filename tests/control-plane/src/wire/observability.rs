//! Batches of what a node observed, always gzip: `POST …/metrics` (a JSON array), `…/logs` and `…/audit` (NDJSON).

use std::io::Read as _;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, StatusCode, header};
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{content_type, fields, node_mut};
use crate::encoding;
use crate::reply::{self, Refusal, Reply};
use crate::server::App;
use crate::store::node::raw;
use crate::store::received::Kind;

/// Largest batch, bytes after decompression; the compressed one may not be larger either.
const LIMIT: usize = 4 << 20;

/// A record that says when it is from.
trait Timed: DeserializeOwned {
    fn timestamp(&self) -> &str;
}

#[derive(Deserialize)]
struct MetricPoint {
    timestamp: String,
    #[serde(rename = "group")]
    _group: String,
    #[serde(default, rename = "peer_id")]
    _peer_id: Option<String>,
    #[serde(rename = "data")]
    _data: Box<RawValue>,
}

#[derive(Deserialize)]
struct LogEntry {
    timestamp: String,
    #[serde(rename = "source")]
    _source: String,
    #[serde(rename = "unit")]
    _unit: String,
    #[serde(rename = "message")]
    _message: String,
    #[serde(rename = "severity")]
    _severity: String,
    #[serde(rename = "hostname")]
    _hostname: String,
}

#[derive(Deserialize)]
struct AuditEntry {
    timestamp: String,
    #[serde(rename = "source")]
    _source: String,
    #[serde(rename = "event_type")]
    _event_type: String,
    #[serde(rename = "subject")]
    _subject: Box<RawValue>,
    #[serde(rename = "object")]
    _object: Box<RawValue>,
    #[serde(rename = "action")]
    _action: String,
    #[serde(rename = "result")]
    _result: String,
    #[serde(rename = "hostname")]
    _hostname: String,
    #[serde(rename = "raw")]
    _raw: String,
}

impl Timed for MetricPoint {
    fn timestamp(&self) -> &str {
        &self.timestamp
    }
}

impl Timed for LogEntry {
    fn timestamp(&self) -> &str {
        &self.timestamp
    }
}

impl Timed for AuditEntry {
    fn timestamp(&self) -> &str {
        &self.timestamp
    }
}

pub(super) async fn metrics(
    app: &App,
    id: &str,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Reply, Refusal> {
    let text = batch(headers, body, "application/json").await?;
    let points: Vec<Box<RawValue>> = reply::parse(text.as_bytes())?;
    accept::<MetricPoint>(app, id, Kind::Metrics, &points)
}

pub(super) async fn logs(app: &App, id: &str, headers: &HeaderMap, body: Incoming) -> Result<Reply, Refusal> {
    let text = batch(headers, body, "application/x-ndjson").await?;
    accept::<LogEntry>(app, id, Kind::Logs, &lines(&text)?)
}

pub(super) async fn audit(
    app: &App,
    id: &str,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Reply, Refusal> {
    let text = batch(headers, body, "application/x-ndjson").await?;
    accept::<AuditEntry>(app, id, Kind::Audit, &lines(&text)?)
}

async fn batch(headers: &HeaderMap, body: Incoming, wanted: &str) -> Result<String, Refusal> {
    content_type(headers, wanted)?;
    if headers
        .get(header::CONTENT_ENCODING)
        .is_none_or(|value| !value.as_bytes().eq_ignore_ascii_case(b"gzip"))
    {
        return Err(Refusal::bad_request("Content-Encoding must be gzip"));
    }
    decode(&reply::read(body, LIMIT).await?)
}

/// Never decodes more than one byte past the limit, whatever the batch claims to be.
fn decode(compressed: &Bytes) -> Result<String, Refusal> {
    let mut text = Vec::new();
    MultiGzDecoder::new(compressed.as_ref())
        .take(LIMIT as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|error| Refusal::bad_request(format!("body is not gzip: {error}")))?;
    if text.len() > LIMIT {
        return Err(Refusal::too_large());
    }
    String::from_utf8(text).map_err(|_| Refusal::bad_request("body is not UTF-8"))
}

fn lines(text: &str) -> Result<Vec<Box<RawValue>>, Refusal> {
    text.lines().filter(|line| !line.trim().is_empty()).map(|line| reply::parse(line.as_bytes())).collect()
}

fn accept<T: Timed>(app: &App, id: &str, kind: Kind, records: &[Box<RawValue>]) -> Result<Reply, Refusal> {
    for record in records {
        if encoding::parse_time(fields::<T>(record)?.timestamp()).is_none() {
            return Err(Refusal::bad_request("timestamp must be RFC 3339"));
        }
    }
    node_mut(&mut app.store.lock(), id)?.received.push(kind, raw(&records))?;
    Ok(reply::json(StatusCode::ACCEPTED, &serde_json::Map::new()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use bytes::Bytes;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use http::StatusCode;

    use super::{LIMIT, decode};

    fn gzip(bytes: &[u8]) -> Bytes {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        Bytes::from(encoder.finish().unwrap())
    }

    #[test]
    fn a_batch_is_bounded_after_decompression() {
        assert_eq!(decode(&gzip(&vec![b' '; LIMIT])).unwrap().len(), LIMIT);
        assert_eq!(decode(&gzip(&vec![b' '; LIMIT + 1])).unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[test]
    fn what_is_not_gzip_or_not_text_is_refused() {
        for bad in [Bytes::from_static(b"[]"), gzip(b"[]").slice(..12), gzip(b"\xff")] {
            assert_eq!(decode(&bad).unwrap_err().status, StatusCode::BAD_REQUEST);
        }
    }
}
