//! Descriptors that the sidecar has passed, until they are closed. To close what a stranger made may take as long as the
//! stranger likes: a connection can be told to linger, and a Unix socket can have one in its queue. So nothing is closed where
//! others wait for it, and what is open, or cannot be closed, is bounded.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

/// How long descriptors are gathered that are then closed together.
const PACE: Duration = Duration::from_millis(5);

/// So many that wait to be closed, beside those that have places, mean that one of them cannot be.
const STUCK: usize = 64;

/// Owns what is to be closed. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Custody {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Places of sockets of clients.
    room: Arc<Semaphore>,
    closing: Mutex<Vec<Closing>>,
    news: Notify,
}

/// What is to be closed, and the place that is free then.
type Closing = (OwnedFd, Option<OwnedSemaphorePermit>);

/// A descriptor, closed some time after it is dropped.
#[derive(Debug)]
pub(super) struct Held<D: Into<OwnedFd>> {
    descriptor: Option<D>,
    place: Option<OwnedSemaphorePermit>,
    custody: Custody,
}

impl Custody {
    /// Creates it, with `room` places for sockets of clients.
    pub(super) fn new(room: usize) -> Self {
        let room = Arc::new(Semaphore::new(room));
        Self { shared: Arc::new(Shared { room, closing: Mutex::default(), news: Notify::new() }) }
    }

    /// Holds something that takes no place.
    pub(super) fn hold<D: Into<OwnedFd>>(&self, descriptor: D) -> Held<D> {
        Held { descriptor: Some(descriptor), place: None, custody: self.clone() }
    }

    /// Holds the socket of a client, if there is a place for it.
    pub(super) fn take(&self, socket: OwnedFd) -> Option<Held<OwnedFd>> {
        let place = Arc::clone(&self.shared.room).try_acquire_owned().ok();
        let held = Held { descriptor: Some(socket), place, custody: self.clone() };
        held.place.is_some().then_some(held)
    }

    /// Returns whether what was passed cannot be closed, so that nothing more is to be taken.
    pub(super) fn is_stuck(&self) -> bool {
        self.closing().iter().filter(|(_, place)| place.is_none()).count() >= STUCK
    }

    /// Returns once so little waits to be closed that more can be taken.
    pub(super) async fn unstuck(&self) {
        while self.is_stuck() {
            sleep(PACE).await;
        }
    }

    /// Closes what is to be closed, for ever, on a thread for which nobody waits but this.
    pub(super) async fn close(&self) {
        loop {
            self.shared.news.notified().await;
            let closing = std::mem::take(&mut *self.closing());
            // It does not panic.
            let _ = tokio::task::spawn_blocking(move || drop(closing)).await;
            sleep(PACE).await;
        }
    }

    fn closing(&self) -> MutexGuard<'_, Vec<Closing>> {
        // Nothing that can panic is called while it is held.
        self.shared.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Places that are free.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.shared.room.available_permits()
    }
}

impl<D: Into<OwnedFd>> Held<D> {
    /// Returns it.
    pub(super) fn get(&self) -> &D {
        self.descriptor.as_ref().expect("it is there until this is dropped")
    }
}

impl<D: Into<OwnedFd> + AsFd> AsFd for Held<D> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.get().as_fd()
    }
}

impl<D: Into<OwnedFd>> Drop for Held<D> {
    fn drop(&mut self) {
        let Some(descriptor) = self.descriptor.take() else { return };
        self.custody.closing().push((descriptor.into(), self.place.take()));
        self.custody.shared.news.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use futures_util::FutureExt;
    use socket2::SockRef;

    use super::*;

    /// Yields until it is so.
    async fn until(so: impl Fn() -> bool) {
        let waited = async {
            while !so() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waited).await.expect("it comes to be so");
    }

    #[tokio::test]
    async fn what_is_dropped_is_closed_and_its_place_free_again() {
        let custody = Custody::new(2);
        let (one, mut end) = UnixStream::pair().unwrap();
        let (two, _end) = UnixStream::pair().unwrap();
        let (three, _end) = UnixStream::pair().unwrap();
        let held = (custody.take(one.into()).unwrap(), custody.take(two.into()).unwrap());
        assert!(custody.take(three.into()).is_none());
        drop(held);
        let closes = custody.clone();
        let closing = tokio::spawn(async move { closes.close().await });
        until(|| custody.places() == 2 && custody.closing().is_empty()).await;
        assert_eq!(end.read(&mut [0]).unwrap(), 0);
        closing.abort();
    }

    #[tokio::test]
    async fn what_takes_its_time_to_be_closed_holds_up_nobody_and_nothing_more_is_taken_then() {
        let custody = Custody::new(2);
        let closes = custody.clone();
        let closing = tokio::spawn(async move { closes.close().await });
        // A connection that lingers, as the other side does not take what it has to say.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut lingers = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let silent = listener.accept().unwrap().0;
        lingers.set_nonblocking(true).unwrap();
        while lingers.write(&[0; 8_192]).is_ok() {}
        SockRef::from(&lingers).set_linger(Some(Duration::from_mins(1))).unwrap();
        drop(custody.hold(lingers));
        until(|| custody.closing().is_empty()).await;
        let (one, _end) = UnixStream::pair().unwrap();
        drop(custody.take(one.into()));
        assert_eq!(custody.places(), 1, "it waits behind that");
        for _ in 0..STUCK {
            assert!(!custody.is_stuck());
            drop(custody.hold(UnixStream::pair().unwrap().0));
        }
        assert!(custody.is_stuck() && custody.unstuck().now_or_never().is_none());
        // The other side goes, and with it all that waits.
        drop(silent);
        until(|| custody.places() == 2 && !custody.is_stuck()).await;
        custody.unstuck().await;
        closing.abort();
    }
}
