//! The addresses of the control plane, or of the proxy towards it: the last ones that a name had stay known in memory, and
//! serve while it cannot be looked up. Where everything else of the machine goes through the mesh, its name server may be
//! out of reach just when the control plane is needed to put the mesh right. The certificate says whether an address still
//! is the control plane's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::watch;

/// How long a lookup may take where there are addresses to fall back to; connecting has 10 s in all.
const DEADLINE: Duration = Duration::from_secs(3);

/// Names that are remembered: the control plane's, and those of proxies.
const NAMES: usize = 8;

/// Addresses that are remembered of a name.
const ADDRESSES: usize = 16;

/// Looks a name up.
type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// The known addresses. Clones share them.
#[derive(Clone)]
pub(super) struct Addresses {
    lookup: Lookup,
    /// The one that the configuration has in place of a name.
    given: Option<IpAddr>,
    known: Arc<Mutex<BTreeMap<String, Vec<IpAddr>>>>,
    all: Arc<watch::Sender<Arc<BTreeSet<IpAddr>>>>,
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses").field("all", &self.all).finish_non_exhaustive()
    }
}

impl Addresses {
    /// Knows the address of `base` if it is one, else nothing yet.
    pub(super) fn of(base: &Url) -> Self {
        Self::looked_up_by(base, Arc::new(|host| Box::pin(look_up(host))))
    }

    fn looked_up_by(base: &Url, lookup: Lookup) -> Self {
        let host = base.host_str().unwrap_or_default();
        let given: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        let all = watch::Sender::new(Arc::new(given.into_iter().collect()));
        Self { lookup, given, known: Arc::default(), all: Arc::new(all) }
    }

    /// Tells all known addresses, and when there are others.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<BTreeSet<IpAddr>>> {
        self.all.subscribe()
    }

    async fn resolve(self, host: String) -> io::Result<Vec<IpAddr>> {
        let known = self.known(&host);
        let lookup = (self.lookup)(host.clone());
        let found = match known {
            None => lookup.await,
            Some(_) => tokio::time::timeout(DEADLINE, lookup).await.unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::TimedOut, "no name server answered within 3 s"))
            }),
        };
        match (found, known) {
            (Ok(found), _) if !found.is_empty() => {
                self.remember(host, &found);
                Ok(found)
            }
            (Err(error), Some(known)) => {
                tracing::debug!(%error, host, "name not resolved; its last addresses are used");
                Ok(known)
            }
            (Ok(_), Some(known)) => Ok(known),
            (found, None) => found,
        }
    }

    fn known(&self, host: &str) -> Option<Vec<IpAddr>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(host).cloned()
    }

    fn remember(&self, host: String, found: &[IpAddr]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= NAMES && !known.contains_key(&host) {
            return;
        }
        let found: Vec<IpAddr> = found.iter().copied().take(ADDRESSES).collect();
        known.insert(host, found);
        let next: BTreeSet<IpAddr> = known.values().flatten().copied().chain(self.given).collect();
        self.all.send_if_modified(|all| {
            let differs = **all != next;
            if differs {
                *all = Arc::new(next);
            }
            differs
        });
    }
}

impl Resolve for Addresses {
    fn resolve(&self, name: Name) -> Resolving {
        let found = self.clone().resolve(name.as_str().to_owned());
        Box::pin(async move {
            // The port is the URL's.
            let addresses: Vec<SocketAddr> = found.await?.into_iter().map(|ip| (ip, 0).into()).collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

async fn look_up(host: String) -> io::Result<Vec<IpAddr>> {
    Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses whose answers are taken one by one from a list; after it, none comes.
    fn answering(base: &str, answers: &[Result<&[&str], ()>]) -> Addresses {
        let parsed = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let answers: Vec<io::Result<Vec<IpAddr>>> = answers
            .iter()
            .rev()
            .map(|answer| answer.map(parsed).map_err(|()| io::Error::other("no such name")))
            .collect();
        let answers = Mutex::new(answers);
        let lookup: Lookup = Arc::new(move |_| match answers.lock().unwrap().pop() {
            Some(answer) => Box::pin(std::future::ready(answer)),
            None => Box::pin(std::future::pending()),
        });
        Addresses::looked_up_by(&base.parse().unwrap(), lookup)
    }

    fn shown(addresses: &[IpAddr]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_addresses_serve_while_a_name_cannot_be_looked_up() {
        let answers: [Result<&[&str], ()>; 5] =
            [Err(()), Ok(&["192.0.2.1", "2001:db8::1"]), Err(()), Ok(&[]), Ok(&["192.0.2.2"])];
        let addresses = answering("https://cp.example", &answers);
        let ask = || addresses.clone().resolve("cp.example".to_owned());
        ask().await.unwrap_err();
        for expected in [&["192.0.2.1", "2001:db8::1"][..]; 3].into_iter().chain([&["192.0.2.2"][..]; 2]) {
            assert_eq!(shown(&ask().await.unwrap()), expected);
        }
    }

    #[tokio::test]
    async fn what_is_known_is_told_and_what_was_configured_stays() {
        let answers: [Result<&[&str], ()>; 3] = [Ok(&["192.0.2.1"]), Ok(&["192.0.2.2"]), Ok(&["192.0.2.2"])];
        let addresses = answering("https://[2001:db8::9]:8443", &answers);
        let mut watched = addresses.watch();
        let told = |watched: &mut watch::Receiver<Arc<BTreeSet<IpAddr>>>| {
            shown(&watched.borrow_and_update().iter().copied().collect::<Vec<_>>())
        };
        assert_eq!(told(&mut watched), ["2001:db8::9"]);
        for expected in ["192.0.2.1", "192.0.2.2"] {
            addresses.clone().resolve("proxy.example".to_owned()).await.unwrap();
            assert_eq!(told(&mut watched), [expected, "2001:db8::9"]);
        }
        addresses.clone().resolve("proxy.example".to_owned()).await.unwrap();
        assert!(!watched.has_changed().unwrap());
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let many: Vec<String> = (0..100).map(|host| format!("192.0.2.{host}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let answers: Vec<Result<&[&str], ()>> = vec![Ok(&many); 2 * NAMES];
        let addresses = answering("https://cp.example", &answers);
        for name in 0..2 * NAMES {
            assert_eq!(addresses.clone().resolve(format!("{name}.example")).await.unwrap().len(), 100);
        }
        let known = addresses.known.lock().unwrap();
        assert_eq!((known.len(), known["0.example"].len()), (NAMES, ADDRESSES));
    }
}
