//! The routes, and what each asks of its caller: one table, by which requests are answered. There is no other way in, and
//! what the table does not name is not found, by those who may ask.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::ALLOW;
use http::{HeaderValue, Method};
use http_body_util::BodyExt;

use super::error::ApiError;
use super::message::{BodyError, Later, Request, RequestBody, Response};
use super::{Api, metrics, openapi, read, report, secret, watch};
use crate::auth::{Caller, Need, bearer};

/// One row of the table.
pub(super) struct Route {
    /// Pattern of the path; `{key}` is one segment, the last.
    pub(super) path: &'static str,
    /// What the caller needs, whatever the method.
    pub(super) need: Need,
    /// `GET` and `HEAD`, of which the latter's body is not sent.
    get: Get,
    put: Option<Handler>,
    delete: Option<Handler>,
}

/// How a read is answered.
enum Get {
    /// At once.
    Now(fn(&Arc<Api>, &Request) -> Result<Response, ApiError>),
    /// By who has to wait for something.
    Later(Handler),
}

type Handler = fn(Arc<Api>, Request, RequestBody) -> Later;

impl Route {
    const fn now(
        path: &'static str,
        need: Need,
        get: fn(&Arc<Api>, &Request) -> Result<Response, ApiError>,
    ) -> Self {
        Self { path, need, get: Get::Now(get), put: None, delete: None }
    }

    const fn later(path: &'static str, need: Need, get: Handler) -> Self {
        Self { path, need, get: Get::Later(get), put: None, delete: None }
    }

    /// Returns whether this is the route of `path`, as it was sent. The empty key is a key, and an invalid one.
    fn is_of(&self, path: &str) -> bool {
        match self.path.strip_suffix("{key}") {
            Some(folder) => path.strip_prefix(folder).is_some_and(|key| !key.contains('/')),
            None => path == self.path,
        }
    }

    /// Returns the methods, as `Allow` lists them.
    fn allow(&self) -> HeaderValue {
        HeaderValue::from_static(match (self.put, self.delete) {
            (None, None) => "GET,HEAD",
            (Some(_), None) => "GET,HEAD,PUT",
            (None, Some(_)) => "GET,HEAD,DELETE",
            (Some(_), Some(_)) => "GET,HEAD,PUT,DELETE",
        })
    }
}

/// The routes. Of two that match, the first counts.
pub(super) static ROUTES: [Route; 14] = [
    Route::now("/v1/state", Need::Access, read::summary),
    Route::now("/v1/state/watch", Need::Access, watch::watch),
    Route::now("/v1/state/metadata", Need::Access, read::metadata),
    Route::now("/v1/state/metadata/{key}", Need::Access, read::metadata_value),
    Route::now("/v1/state/data", Need::Access, read::data_list),
    Route::now("/v1/state/data/{key}", Need::Access, read::data_entry),
    Route::now("/v1/state/secrets", Need::Access, read::secret_list),
    Route::later("/v1/state/secrets/{key}", Need::Secrets, |api, request, _| {
        Box::pin(secret::value(api, request))
    }),
    Route::now("/v1/state/report", Need::Access, read::report_list),
    Route {
        put: Some(|api, request, body| Box::pin(report::put(api, request, body))),
        delete: Some(|api, request, _| Box::pin(report::delete(api, request))),
        ..Route::now("/v1/state/report/{key}", Need::Access, read::report_entry)
    },
    Route::now("/v1/openapi.json", Need::Access, openapi::document),
    Route::now("/healthz", Need::Access, read::alive),
    Route::now("/readyz", Need::Access, read::has_state),
    Route::later("/metrics", Need::Access, |api, request, _| Box::pin(metrics::scrape(api, request))),
];

/// What the table does not name.
static OTHER: Route = Route::now("other", Need::Access, |_, _| Err(ApiError::NotFound));

/// Returns the route of a path, as it was sent.
pub(super) fn of(path: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|route| route.is_of(path))
}

/// An answer, or what it comes of.
pub(super) enum Outcome {
    /// It is there.
    Now(Response),
    /// It has to be waited for.
    Later(BoxFuture<'static, Response>),
}

/// Answers a request of `caller` if the caller has what its route needs, and counts what became of it. Gives the body
/// back if nobody reads it.
pub(super) fn answer<B>(api: &Arc<Api>, caller: &Caller, request: http::Request<B>) -> (Outcome, Option<B>)
where
    B: hyper::body::Body<Data = Bytes, Error: Into<BodyError>> + Send + 'static,
{
    let (parts, body) = request.into_parts();
    let request = Request { parts, caller: caller.clone() };
    let route = of(request.path()).unwrap_or(&OTHER);
    let counted = api.metrics.clone().map(|metrics| (metrics, request.method().clone(), Instant::now()));
    let count = move |response: &Response| {
        if let Some((metrics, method, begun)) = counted {
            metrics.answered(route.path, &method, response.status(), begun.elapsed());
        }
    };
    let answered = match admitted(api, route, &request) {
        Ok(Step::Done(response)) => Ok(response),
        Ok(Step::Handler(handler)) => {
            let body = body.map_err(Into::into).boxed_unsync();
            let answered = handler(Arc::clone(api), request, body);
            let counted = async move {
                let response = answered.await.unwrap_or_else(ApiError::into_response);
                count(&response);
                response
            };
            return (Outcome::Later(Box::pin(counted)), None);
        }
        Err(error) => Err(error),
    };
    let response = answered.unwrap_or_else(ApiError::into_response);
    count(&response);
    (Outcome::Now(response), Some(body))
}

/// What follows once a caller is let in.
enum Step {
    /// Nothing: this is the answer.
    Done(Response),
    /// The answer is this one's.
    Handler(Handler),
}

/// Lets a request pass to its handler if its caller has what the route needs.
fn admitted(api: &Arc<Api>, route: &Route, request: &Request) -> Result<Step, ApiError> {
    if let Err(error) = admit(api, route.need, request) {
        tracing::debug!(method = %request.method(), path = request.path(), ?error, "refused");
        if route.need == Need::Secrets {
            secret::refused(api, request, error);
        }
        return Err(error);
    }
    let handler = match *request.method() {
        Method::GET | Method::HEAD => match route.get {
            Get::Now(get) => return get(api, request).map(Step::Done),
            Get::Later(get) => Some(get),
        },
        Method::PUT => route.put,
        Method::DELETE => route.delete,
        _ => None,
    };
    match handler {
        Some(handler) => Ok(Step::Handler(handler)),
        None if std::ptr::eq(route, &raw const OTHER) => Err(ApiError::NotFound),
        None => {
            let mut response = ApiError::MethodNotAllowed.into_response();
            response.headers_mut().insert(ALLOW, route.allow());
            Ok(Step::Done(response))
        }
    }
}

fn admit(api: &Api, need: Need, request: &Request) -> Result<(), ApiError> {
    match &request.caller {
        Caller::Local(client) => api.rules.local(&client.peer, need)?,
        Caller::Tcp => {
            let presented = bearer(request.headers()).ok_or(ApiError::Unauthorized)?;
            // Whether it is the token is not known before core was heard.
            let state = api.mirror.snapshot().ok_or(ApiError::CoreUnavailable)?;
            api.rules.tcp(presented, state.token_sha256(), need)?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use http::StatusCode;
    use http::header::AUTHORIZATION;
    use http_body_util::Empty;
    use plexd_proto::settings::CoreSockets;
    use plexd_proto::transport::{ClientSocket, PeerCredentials};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::auth::{LocalClient, Rules};
    use crate::core_client::Core;
    use crate::http::{Bodies, Told};
    use crate::mirror::Mirror;

    const METHODS: [Method; 6] =
        [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::POST, Method::OPTIONS];

    /// An API whose core is away and whose mirror is empty: whoever is let in finds nothing, with 400, 404, 405 or 503.
    fn api() -> Arc<Api> {
        let mirror = Arc::new(Mirror::new());
        let sockets = CoreSockets::within(Path::new("/nonexistent"));
        let (core, _) = Core::new(&sockets, Arc::clone(&mirror));
        let rules = Rules { socket_gid: 900, secrets_gid: 901, tcp_secrets: true };
        let shutdown = CancellationToken::new();
        Arc::new(Api {
            mirror,
            core,
            rules,
            max_report_bytes: 1000,
            bodies: Bodies::new(1000),
            told: Told::default(),
            metrics: None,
            shutdown,
        })
    }

    async fn answer(api: &Arc<Api>, caller: &Caller, method: &Method, path: &str) -> Response {
        let mut request = http::Request::new(Empty::<Bytes>::new());
        *request.method_mut() = method.clone();
        request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("Bearer guess"));
        if let Ok(uri) = path.parse() {
            *request.uri_mut() = uri;
        }
        match super::answer(api, caller, request).0 {
            Outcome::Now(response) => response,
            Outcome::Later(response) => response.await,
        }
    }

    async fn status(api: &Arc<Api>, caller: &Caller, method: &Method, path: &str) -> StatusCode {
        answer(api, caller, method, path).await.status()
    }

    /// Returns the methods that `path` has, as the refusal of another says.
    pub(in crate::http) async fn allowed(path: &str) -> Vec<String> {
        let path = path.replace("{key}", "k");
        let refused = answer(&api(), &local(&[900, 901]), &Method::OPTIONS, &path).await;
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let allow = refused.headers()[http::header::ALLOW].to_str().unwrap();
        allow.split(',').map(str::to_owned).collect()
    }

    fn local(groups: &[u32]) -> Caller {
        let peer = PeerCredentials { uid: 1000, gid: 1000, pid: 1, groups: groups.to_vec() };
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        Caller::Local(Arc::new(LocalClient { peer, socket: ClientSocket::new(socket) }))
    }

    #[tokio::test]
    async fn every_route_and_method_is_refused_to_who_lacks_what_it_needs() {
        let api = api();
        let paths = ROUTES.iter().map(|route| (route.path.replace("{key}", "k"), route.need));
        let empty_keys = ROUTES
            .iter()
            .filter_map(|route| route.path.strip_suffix("{key}").map(|path| (path.to_owned(), route.need)));
        let unknown = [("/".to_owned(), Need::Access), ("/v1/nothing".to_owned(), Need::Access)];
        for (path, need) in paths.chain(empty_keys).chain(unknown) {
            for method in &METHODS {
                let of = async |caller: &Caller| status(&api, caller, method, &path).await;
                let about = format!("{method} {path}");
                assert_eq!(of(&local(&[])).await, StatusCode::FORBIDDEN, "no group: {about}");
                assert_eq!(of(&local(&[901])).await, StatusCode::FORBIDDEN, "secrets group alone: {about}");
                assert_eq!(of(&Caller::Tcp).await, StatusCode::SERVICE_UNAVAILABLE, "TCP: {about}");
                let member = of(&local(&[900])).await;
                assert_eq!(member == StatusCode::FORBIDDEN, need == Need::Secrets, "member: {about}");
                assert_ne!(of(&local(&[900, 901])).await, StatusCode::FORBIDDEN, "both groups: {about}");
            }
        }
    }

    #[tokio::test]
    async fn the_reference_has_every_route_and_no_other() {
        let reference = include_str!("../../../docs/local-node-api.md");
        let (_, section) = reference.split_once("\n## Routes\n").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        let documented: Vec<String> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `/"))
            .map(|line| line.split(" | ").take(3).collect::<Vec<_>>().join(" "))
            .collect();
        let mut served = Vec::new();
        for route in &ROUTES {
            let methods: Vec<String> =
                allowed(route.path).await.into_iter().filter(|method| method != "HEAD").collect();
            let need = match route.need {
                Need::Access => "access",
                Need::Secrets => "secrets",
            };
            served.push(format!("{}` {} {need}", &route.path[1..], methods.join(", ")));
        }
        assert_eq!(documented, served);
    }

    #[test]
    fn only_secret_values_need_more_than_access() {
        let more: Vec<_> =
            ROUTES.iter().filter(|route| route.need == Need::Secrets).map(|route| route.path).collect();
        assert_eq!(more, ["/v1/state/secrets/{key}"]);
    }
}
