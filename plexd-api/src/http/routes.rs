//! The routes, and what each asks of its caller: one table, from which the router is made. There is no other way in,
//! and what the table does not name is not found, by those who may ask.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};

use super::error::ApiError;
use super::{Api, metrics, openapi, read, report, secret, watch};
use crate::auth::{Caller, Need, bearer};

/// One row of the table.
pub(super) struct Route {
    /// Pattern of the path; `{key}` is one segment.
    pub(super) path: &'static str,
    /// What the caller needs, whatever the method.
    pub(super) need: Need,
    methods: fn() -> MethodRouter<Arc<Api>>,
}

/// The routes.
pub(super) static ROUTES: [Route; 14] = [
    Route { path: "/v1/state", need: Need::Access, methods: || get(read::summary) },
    Route { path: "/v1/state/watch", need: Need::Access, methods: || get(watch::watch) },
    Route { path: "/v1/state/metadata", need: Need::Access, methods: || get(read::metadata) },
    Route { path: "/v1/state/metadata/{key}", need: Need::Access, methods: || get(read::metadata_value) },
    Route { path: "/v1/state/data", need: Need::Access, methods: || get(read::data_list) },
    Route { path: "/v1/state/data/{key}", need: Need::Access, methods: || get(read::data_entry) },
    Route { path: "/v1/state/secrets", need: Need::Access, methods: || get(read::secret_list) },
    Route { path: "/v1/state/secrets/{key}", need: Need::Secrets, methods: || get(secret::value) },
    Route { path: "/v1/state/report", need: Need::Access, methods: || get(read::report_list) },
    Route {
        path: "/v1/state/report/{key}",
        need: Need::Access,
        methods: || get(read::report_entry).put(report::put).delete(report::delete),
    },
    Route { path: "/v1/openapi.json", need: Need::Access, methods: || get(openapi::document) },
    Route { path: "/healthz", need: Need::Access, methods: || get(read::alive) },
    Route { path: "/readyz", need: Need::Access, methods: || get(read::has_state) },
    Route { path: "/metrics", need: Need::Access, methods: || get(metrics::scrape) },
];

/// What the table does not name.
static OTHER: Route = Route { path: "other", need: Need::Access, methods: MethodRouter::new };

/// Makes the router of the table.
pub(super) fn router(api: &Arc<Api>) -> Router {
    let gated = |route: &'static Route| middleware::from_fn_with_state((Arc::clone(api), route), gate);
    let mut router = Router::new();
    for route in &ROUTES {
        let methods = || (route.methods)().fallback(method_not_allowed).layer(gated(route));
        router = router.route(route.path, methods());
        // The empty key: the pattern does not match it, and it is not an unknown path but an invalid key.
        if let Some(path) = route.path.strip_suffix("{key}") {
            router = router.route(path, methods());
        }
    }
    router.fallback_service(not_found.layer(gated(&OTHER)).with_state(())).with_state(Arc::clone(api))
}

/// Lets a request pass if its caller has what the route needs, and counts what became of it.
async fn gate(
    State((api, route)): State<(Arc<Api>, &'static Route)>,
    request: Request,
    next: Next,
) -> Response {
    let counted = api.metrics.as_ref().map(|metrics| (metrics, request.method().clone(), Instant::now()));
    let response = match admit(&api, route.need, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            tracing::debug!(method = %request.method(), path = request.uri().path(), ?error, "refused");
            if route.need == Need::Secrets {
                secret::refused(&api, &request, error);
            }
            error.into_response()
        }
    };
    if let Some((metrics, method, begun)) = counted {
        metrics.answered(route.path, &method, response.status(), begun.elapsed());
    }
    response
}

fn admit(api: &Api, need: Need, request: &Request) -> Result<(), ApiError> {
    match request.extensions().get::<Caller>() {
        Some(Caller::Local(peer)) => api.rules.local(peer, need)?,
        Some(Caller::Tcp) => {
            let presented = bearer(request.headers()).ok_or(ApiError::Unauthorized)?;
            // Whether it is the token is not known before core was heard.
            let state = api.mirror.snapshot().ok_or(ApiError::CoreUnavailable)?;
            api.rules.tcp(presented, state.token_sha256(), need)?;
        }
        // No connection is served without; were it, nobody is let in.
        None => return Err(ApiError::Forbidden),
    }
    Ok(())
}

fn not_found() -> std::future::Ready<ApiError> {
    std::future::ready(ApiError::NotFound)
}

fn method_not_allowed() -> std::future::Ready<ApiError> {
    std::future::ready(ApiError::MethodNotAllowed)
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use axum::body::Body;
    use http::header::AUTHORIZATION;
    use http::{Method, StatusCode};
    use plexd_proto::transport::PeerCredentials;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::auth::Rules;
    use crate::core_client::Core;
    use crate::http::{Bodies, Told};
    use crate::mirror::Mirror;

    const METHODS: [Method; 6] =
        [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::POST, Method::OPTIONS];

    /// A router whose core is away and whose mirror is empty: whoever is let in finds nothing, with 400, 404, 405 or
    /// 503.
    fn api() -> Router {
        let mirror = Arc::new(Mirror::new());
        let core = Core::new(Path::new("/nonexistent/core.sock"), Arc::clone(&mirror));
        let rules = Rules { socket_gid: 900, secrets_gid: 901, tcp_secrets: true };
        let shutdown = CancellationToken::new();
        router(&Arc::new(Api {
            mirror,
            core,
            rules,
            max_report_bytes: 1000,
            bodies: Bodies::new(1000),
            told: Told::default(),
            metrics: None,
            shutdown,
        }))
    }

    async fn answer(router: &Router, caller: Option<&Caller>, method: &Method, path: &str) -> Response {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = method.clone();
        request.headers_mut().insert(AUTHORIZATION, http::HeaderValue::from_static("Bearer guess"));
        if let Ok(uri) = path.parse() {
            *request.uri_mut() = uri;
        }
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller.clone());
        }
        let Ok(response) = tower::Service::call(&mut router.clone(), request).await;
        response
    }

    async fn status(router: &Router, caller: Option<&Caller>, method: &Method, path: &str) -> StatusCode {
        answer(router, caller, method, path).await.status()
    }

    /// Returns the methods that `path` has, as the router says that refuses another.
    pub(in crate::http) async fn allowed(path: &str) -> Vec<String> {
        let path = path.replace("{key}", "k");
        let refused = answer(&api(), Some(&local(&[900, 901])), &Method::OPTIONS, &path).await;
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let allow = refused.headers()[http::header::ALLOW].to_str().unwrap();
        allow.split(',').map(str::to_owned).collect()
    }

    fn local(groups: &[u32]) -> Caller {
        Caller::Local(Arc::new(PeerCredentials { uid: 1000, gid: 1000, pid: 1, groups: groups.to_vec() }))
    }

    #[tokio::test]
    async fn every_route_and_method_is_refused_to_who_lacks_what_it_needs() {
        let router = api();
        let paths = ROUTES.iter().map(|route| (route.path.replace("{key}", "k"), route.need));
        let empty_keys = ROUTES
            .iter()
            .filter_map(|route| route.path.strip_suffix("{key}").map(|path| (path.to_owned(), route.need)));
        let unknown = [("/".to_owned(), Need::Access), ("/v1/nothing".to_owned(), Need::Access)];
        for (path, need) in paths.chain(empty_keys).chain(unknown) {
            for method in &METHODS {
                let of = async |caller: Option<&Caller>| status(&router, caller, method, &path).await;
                let about = format!("{method} {path}");
                assert_eq!(of(None).await, StatusCode::FORBIDDEN, "nobody: {about}");
                assert_eq!(of(Some(&local(&[]))).await, StatusCode::FORBIDDEN, "no group: {about}");
                assert_eq!(
                    of(Some(&local(&[901]))).await,
                    StatusCode::FORBIDDEN,
                    "secrets group alone: {about}"
                );
                assert_eq!(of(Some(&Caller::Tcp)).await, StatusCode::SERVICE_UNAVAILABLE, "TCP: {about}");
                let member = of(Some(&local(&[900]))).await;
                assert_eq!(member == StatusCode::FORBIDDEN, need == Need::Secrets, "member: {about}");
                assert_ne!(
                    of(Some(&local(&[900, 901]))).await,
                    StatusCode::FORBIDDEN,
                    "both groups: {about}"
                );
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
