//! Figures for Prometheus, as OpenMetrics text: how requests went, how many connections there are, how old the state is
//! and what core has still to report. Labels come from the routes and from lists here, never from a request, so that no
//! client makes more series.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use plexd_proto::node::v1::CountReportsResponse;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::Api;
use super::error::ApiError;
use super::message::{self, Request, Response};
use crate::auth::Caller;

/// Upper bounds of the latency's buckets, in seconds: reads take tens of microseconds, writes a sync of the disk,
/// secrets a request to the control plane.
const BUCKETS: [f64; 10] = [0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0];

const TEXT: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// What is counted for as long as the process lives.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<Outcome, Counter>,
    seconds: Family<OfRoute, Histogram, fn() -> Histogram>,
    connections: Gauge,
    turned_away: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    method: &'static str,
    route: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRoute {
    route: &'static str,
}

/// A connection that is counted as open until this is dropped.
#[derive(Debug)]
pub(super) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        let requests = Family::default();
        let seconds = Family::new_with_constructor(histogram);
        let (connections, turned_away) = (Gauge::default(), Counter::default());
        let mut registry = Registry::with_prefix("plexd_api");
        registry.register("requests", "Requests answered", requests.clone());
        registry.register_with_unit(
            "request_duration",
            "Time from the head of a request to the head of its answer",
            Unit::Seconds,
            seconds.clone(),
        );
        registry.register("connections", "Connections open now", connections.clone());
        registry.register(
            "connections_turned_away",
            "Connections answered 503 as there were too many",
            turned_away.clone(),
        );
        Self { registry: Arc::new(registry), requests, seconds, connections, turned_away }
    }
}

impl Metrics {
    /// Counts an answer.
    pub(super) fn answered(&self, route: &'static str, method: &Method, status: StatusCode, took: Duration) {
        let method = method_label(method);
        self.requests.get_or_create(&Outcome { method, route, status: status.as_u16() }).inc();
        self.seconds.get_or_create(&OfRoute { route }).observe(took.as_secs_f64());
    }

    /// Counts a connection for as long as it is open.
    pub(super) fn opened(&self) -> Open {
        self.connections.inc();
        Open(self.connections.clone())
    }

    /// Counts a connection that found no place.
    pub(super) fn turned_away(&self) {
        self.turned_away.inc();
    }

    /// Writes all there is to tell.
    fn text(
        &self,
        age: Option<Duration>,
        reports: Option<CountReportsResponse>,
    ) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &now(age, reports))?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// Returns the figures that are those of this moment; what nobody knows is left out.
fn now(age: Option<Duration>, reports: Option<CountReportsResponse>) -> Registry {
    let mut registry = Registry::with_prefix("plexd_api");
    if let Some(age) = age {
        let gauge = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
        gauge.set(age.as_secs_f64());
        registry.register_with_unit(
            "state_age",
            "For how long plexd-core has not been heard; 0 while it is",
            Unit::Seconds,
            gauge,
        );
    }
    if let Some(CountReportsResponse { entries, pending, conflicted }) = reports {
        for (name, help, value) in [
            ("reports", "Report entries held", entries),
            ("reports_pending", "Changes of reports that the control plane has not confirmed", pending),
            (
                "reports_conflicted",
                "Report entries that the control plane refused for their version",
                conflicted,
            ),
        ] {
            let gauge: Gauge = Gauge::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            registry.register(name, help, gauge);
        }
    }
    registry
}

/// Answers a scrape: over TCP, and if there are to be figures.
pub(super) async fn scrape(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let metrics =
        api.metrics.as_ref().filter(|_| matches!(request.caller, Caller::Tcp)).ok_or(ApiError::NotFound)?;
    let age = api.mirror.snapshot().map(|_| api.mirror.age().unwrap_or_default());
    // Without core there is nobody to ask, and the rest is worth as much.
    let reports = api.core.count_reports().await.ok();
    let text = metrics.text(age, reports).map_err(|error| {
        tracing::error!(%error, "figures cannot be written");
        ApiError::NotFound
    })?;
    let mut response = message::answer(StatusCode::OK, text.into());
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    Ok(response)
}

fn method_label(method: &Method) -> &'static str {
    const KNOWN: [(Method, &str); 4] =
        [(Method::GET, "GET"), (Method::HEAD, "HEAD"), (Method::PUT, "PUT"), (Method::DELETE, "DELETE")];
    KNOWN.iter().find(|(known, _)| known == method).map_or("other", |(_, label)| label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_as_openmetrics() {
        let metrics = Metrics::default();
        let took = Duration::from_micros(200);
        metrics.answered("/v1/state", &Method::GET, StatusCode::OK, took);
        metrics.answered("/v1/state", &Method::GET, StatusCode::OK, took);
        metrics.answered("other", &Method::from_bytes(b"BREW").unwrap(), StatusCode::NOT_FOUND, took);
        let open = metrics.opened();
        drop(metrics.opened());
        metrics.turned_away();
        let reports = CountReportsResponse { entries: 3, pending: 2, conflicted: 1 };
        let text = metrics.text(Some(Duration::from_millis(1500)), Some(reports)).unwrap();
        for line in [
            "# TYPE plexd_api_requests counter",
            r#"plexd_api_requests_total{method="GET",route="/v1/state",status="200"} 2"#,
            r#"plexd_api_requests_total{method="other",route="other",status="404"} 1"#,
            r#"plexd_api_request_duration_seconds_bucket{le="0.0001",route="/v1/state"} 0"#,
            r#"plexd_api_request_duration_seconds_bucket{le="0.0005",route="/v1/state"} 2"#,
            r#"plexd_api_request_duration_seconds_count{route="/v1/state"} 2"#,
            "plexd_api_connections 1",
            "plexd_api_connections_turned_away_total 1",
            "plexd_api_state_age_seconds 1.5",
            "plexd_api_reports 3",
            "plexd_api_reports_pending 2",
            "plexd_api_reports_conflicted 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        drop(open);
    }

    #[test]
    fn what_nobody_knows_is_left_out() {
        let text = Metrics::default().text(None, None).unwrap();
        assert!(!text.contains("state_age") && !text.contains("reports"), "{text}");
    }
}
