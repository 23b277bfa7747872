//! The event stream as items: read chunk by chunk, parsed, and given up when nothing comes for too long.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Response;
use tokio::time::{Instant, timeout_at};

use super::super::sse::{Item, Parser};
use super::ClientError;
use super::endpoints::EVENTS;
use super::error::transport;

/// How long a stream may be silent; comments count as life (contract, section 2).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// An open event stream.
#[derive(Debug)]
pub struct EventStream {
    response: Response,
    ca_file: Option<PathBuf>,
    parser: Parser,
    items: VecDeque<Item>,
    idle_deadline: Instant,
}

impl EventStream {
    pub(super) fn new(response: Response, ca_file: Option<PathBuf>) -> Self {
        Self {
            response,
            ca_file,
            parser: Parser::new(),
            items: VecDeque::new(),
            idle_deadline: Instant::now() + IDLE_TIMEOUT,
        }
    }

    /// Returns the next item, or `None` when the control plane ended the stream; calls `heard` whenever bytes came,
    /// comments included. Cancelling it loses nothing: what was
    /// read is kept, and silence is counted from the last bytes.
    ///
    /// # Errors
    /// [`ClientError::Network`] if the connection broke, [`ClientError::Timeout`] after [`IDLE_TIMEOUT`] of silence.
    pub async fn next(&mut self, heard: &(impl Fn() + Sync)) -> Result<Option<Item>, ClientError> {
        loop {
            if let Some(item) = self.items.pop_front() {
                return Ok(Some(item));
            }
            let chunk = timeout_at(self.idle_deadline, self.response.chunk())
                .await
                .map_err(|_| ClientError::Timeout { call: EVENTS, limit: IDLE_TIMEOUT })?
                .map_err(|error| transport(EVENTS, &error, IDLE_TIMEOUT, self.ca_file.as_deref()))?;
            let Some(chunk) = chunk else {
                return Ok(None);
            };
            self.idle_deadline = Instant::now() + IDLE_TIMEOUT;
            heard();
            let items = &mut self.items;
            self.parser.feed(&chunk, &mut |item| items.push_back(item));
        }
    }
}
