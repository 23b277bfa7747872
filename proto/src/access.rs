//! Who may call which RPC: a table per socket, refused by default. The connection is authenticated by the kernel
//! ([`PeerCredentials`]); this layer looks every request's path up in the table before any service sees it.

use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::transport::PeerCredentials;

/// One row of a socket's table: an RPC path such as `/plexd.admin.v1.Admin/Status`, and who may call it.
#[derive(Debug, Clone, Copy)]
pub struct Rule<W: 'static> {
    /// Path of the RPC, as on the wire.
    pub rpc: &'static str,
    /// Who may call it.
    pub who: W,
}

/// Decides whether a peer belongs to those a rule names.
pub trait Permit<W>: Clone + Send + Sync + 'static {
    /// Returns whether `peer` is one of `who`.
    fn permits(&self, peer: &PeerCredentials, who: W) -> bool;
}

/// The layer that enforces a table of [`Rule`]s; what the table does not name is refused.
#[derive(Debug, Clone)]
pub struct Gate<W: 'static, P> {
    rules: &'static [Rule<W>],
    permit: P,
}

impl<W: Copy, P: Permit<W>> Gate<W, P> {
    /// Creates the layer from the socket's table and the one who knows the users and groups in it.
    pub fn new(rules: &'static [Rule<W>], permit: P) -> Self {
        Self { rules, permit }
    }

    /// Returns whether `peer` may call `rpc`.
    pub fn allows(&self, peer: &PeerCredentials, rpc: &str) -> bool {
        self.rules.iter().find(|rule| rule.rpc == rpc).is_some_and(|rule| self.permit.permits(peer, rule.who))
    }
}

impl<S, W: Copy, P: Permit<W>> Layer<S> for Gate<W, P> {
    type Service = Gated<S, W, P>;

    fn layer(&self, inner: S) -> Self::Service {
        Gated { inner, gate: self.clone() }
    }
}

/// A service behind a [`Gate`].
#[derive(Debug, Clone)]
pub struct Gated<S, W: 'static, P> {
    inner: S,
    gate: Gate<W, P>,
}

impl<S, W, P> Service<http::Request<Body>> for Gated<S, W, P>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    W: Copy,
    P: Permit<W>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = futures_util::future::Either<S::Future, std::future::Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let allowed = request
            .extensions()
            .get::<PeerCredentials>()
            .is_some_and(|peer| self.gate.allows(peer, request.uri().path()));
        if allowed {
            return futures_util::future::Either::Left(self.inner.call(request));
        }
        let refusal = Status::permission_denied("this caller may not make this call").into_http();
        futures_util::future::Either::Right(std::future::ready(Ok(refusal)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    enum Who {
        Root,
        Anyone,
    }

    #[derive(Clone)]
    struct ByUid;

    impl Permit<Who> for ByUid {
        fn permits(&self, peer: &PeerCredentials, who: Who) -> bool {
            match who {
                Who::Root => peer.uid == 0,
                Who::Anyone => true,
            }
        }
    }

    const RULES: &[Rule<Who>] =
        &[Rule { rpc: "/a.B/Open", who: Who::Anyone }, Rule { rpc: "/a.B/Root", who: Who::Root }];

    #[test]
    fn what_the_table_does_not_name_is_refused_even_to_root() {
        let gate = Gate::new(RULES, ByUid);
        let root = PeerCredentials { uid: 0, gid: 0, pid: 1, groups: Vec::new() };
        let user = PeerCredentials { uid: 1000, ..root.clone() };
        assert!(gate.allows(&root, "/a.B/Open") && gate.allows(&user, "/a.B/Open"));
        assert!(gate.allows(&root, "/a.B/Root") && !gate.allows(&user, "/a.B/Root"));
        assert!(!gate.allows(&root, "/a.B/Unknown") && !gate.allows(&root, "/a.B/Open/"));
    }
}
