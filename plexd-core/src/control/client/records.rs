//! Metrics, logs and audit records: each written as JSON once, sent many at a time, always compressed (contract,
//! section 2). A batch is taken whole or not at all.

use std::fmt;
use std::io::{self, Write as _};
use std::marker::PhantomData;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use super::super::wire::{AuditEntry, LogEntry, MetricPoint};
use super::endpoints::{self, Call};
use super::{Client, ClientError, Credential, Credentials};

/// How the records of a batch are put together (endpoints, "Observability").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// One JSON array.
    Array,
    /// One line each.
    Lines,
}

impl Framing {
    fn content_type(self) -> &'static str {
        match self {
            Self::Array => "application/json",
            Self::Lines => "application/x-ndjson",
        }
    }
}

/// What is observed on a node and sent in batches.
pub trait Observed: Serialize + Send + Sync + 'static {
    /// Name for people, in the plural.
    const NAME: &'static str;
    /// Endpoint that takes them.
    const CALL: Call;
    /// How they are put together.
    const FRAMING: Framing;
}

impl Observed for MetricPoint {
    const NAME: &'static str = "metrics";
    const CALL: Call = endpoints::METRICS;
    const FRAMING: Framing = Framing::Array;
}

impl Observed for LogEntry {
    const NAME: &'static str = "log entries";
    const CALL: Call = endpoints::LOGS;
    const FRAMING: Framing = Framing::Lines;
}

impl Observed for AuditEntry {
    const NAME: &'static str = "audit records";
    const CALL: Call = endpoints::AUDIT;
    const FRAMING: Framing = Framing::Lines;
}

/// A record as the JSON it is sent as, on one line. Cheap to clone. Not shown by `Debug`: it is somebody's data.
pub struct Record<T> {
    json: Bytes,
    kind: PhantomData<fn() -> T>,
}

impl<T: Serialize> Record<T> {
    /// Writes a record.
    ///
    /// # Errors
    /// If it has no JSON form, as a map whose keys are no text.
    pub fn new(value: &T) -> Result<Self, serde_json::Error> {
        let mut json = serde_json::to_vec(value)?;
        // A payload keeps the white space it came with. Within a string JSON has line breaks escaped only, so these are
        // between tokens.
        json.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
        Ok(Self { json: json.into(), kind: PhantomData })
    }
}

impl<T> Record<T> {
    /// Returns its JSON.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// Returns the length of its JSON, in bytes.
    pub fn size(&self) -> usize {
        self.json.len()
    }
}

impl<T> Clone for Record<T> {
    fn clone(&self) -> Self {
        Self { json: self.json.clone(), kind: PhantomData }
    }
}

impl<T> fmt::Debug for Record<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({} bytes)", self.json.len())
    }
}

impl Client {
    /// `POST /v1/nodes/{node_id}/metrics`.
    pub async fn metrics(&self, who: &Credentials, batch: &[Record<MetricPoint>]) -> Result<(), ClientError> {
        self.upload(who, batch).await
    }

    /// `POST /v1/nodes/{node_id}/logs`.
    pub async fn logs(&self, who: &Credentials, batch: &[Record<LogEntry>]) -> Result<(), ClientError> {
        self.upload(who, batch).await
    }

    /// `POST /v1/nodes/{node_id}/audit`.
    pub async fn audit(&self, who: &Credentials, batch: &[Record<AuditEntry>]) -> Result<(), ClientError> {
        self.upload(who, batch).await
    }

    /// Sends a batch to the endpoint of its records; an empty one is not sent.
    pub async fn upload<T: Observed>(
        &self,
        who: &Credentials,
        batch: &[Record<T>],
    ) -> Result<(), ClientError> {
        if batch.is_empty() {
            return Ok(());
        }
        let call = T::CALL;
        let request = self.request(call, &[who.node_id.as_str()], Credential::Node(who))?;
        let records: Vec<Bytes> = batch.iter().map(|record| record.json.clone()).collect();
        // It takes milliseconds: not on a thread that serves others.
        let compressed = tokio::task::spawn_blocking(move || compress(&records, T::FRAMING)).await;
        let body = compressed.map_err(io::Error::other).flatten().map_err(|_| ClientError::Protocol {
            call,
            reason: "its request cannot be written".to_owned(),
        })?;
        self.exchange(request.gzip(T::FRAMING.content_type(), body)).await.map(drop)
    }
}

fn compress(records: &[Bytes], framing: Framing) -> io::Result<Vec<u8>> {
    let (begin, between, end): (&[u8], &[u8], &[u8]) = match framing {
        Framing::Array => (b"[", b",", b"]"),
        Framing::Lines => (b"", b"\n", b"\n"),
    };
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(begin)?;
    for (place, record) in records.iter().enumerate() {
        if place > 0 {
            gzip.write_all(between)?;
        }
        gzip.write_all(record)?;
    }
    gzip.write_all(end)?;
    gzip.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use serde_json::value::RawValue;

    use super::*;

    fn text(records: &[&str], framing: Framing) -> String {
        let records: Vec<Bytes> =
            records.iter().map(|record| Bytes::copy_from_slice(record.as_bytes())).collect();
        let mut text = String::new();
        let gzip = compress(&records, framing).unwrap();
        flate2::read::GzDecoder::new(gzip.as_slice()).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn metrics_are_one_array_and_the_others_one_line_each() {
        for (records, array, lines) in
            [(&["1"][..], "[1]", "1\n"), (&["1", "{}", "3"], "[1,{},3]", "1\n{}\n3\n")]
        {
            assert_eq!(text(records, Framing::Array), array);
            assert_eq!(text(records, Framing::Lines), lines);
        }
    }

    #[test]
    fn a_record_is_one_line_whatever_the_white_space_of_its_payload() {
        let payload: Box<RawValue> = serde_json::from_str("{\r\n  \"a\\n\":\t1\n}").unwrap();
        let record = Record::new(&payload).unwrap();
        assert_eq!(record.json, "{    \"a\\n\":\t1 }");
        assert_eq!(format!("{record:?}"), "Record(15 bytes)");
    }
}
