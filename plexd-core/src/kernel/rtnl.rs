//! The rtnetlink connection that links, addresses and routes go through, with a deadline on every operation. Decides
//! nothing and knows nothing of what is desired.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, LinkWireguard};
use tokio_util::task::AbortOnDropHandle;

/// How long one operation may take. The kernel answers at once unless something holds its `rtnl` lock.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// A network interface, as far as plexd looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Kind of a virtual interface, as `ip link add type` has it.
    pub(crate) kind: Option<InfoKind>,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
}

/// An rtnetlink connection that is opened again when it has failed.
#[derive(Debug)]
pub(crate) struct Rtnl {
    connection: Mutex<Connection>,
}

#[derive(Debug)]
struct Connection {
    handle: Handle,
    /// Carries messages between the handle and the socket; ends only if the socket fails.
    task: AbortOnDropHandle<()>,
    /// The socket's port, by which the kernel says who asked for a change.
    port: u32,
}

impl Connection {
    fn open() -> io::Result<Self> {
        // Strict checking makes the kernel filter dumps by interface and table, since Linux 4.20.
        let (mut connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        // Bound at once: the kernel would give it a port with the first request only.
        let address = connection.socket_mut().socket_mut().bind_auto()?;
        Ok(Self {
            port: address.port_number(),
            handle,
            task: AbortOnDropHandle::new(tokio::spawn(connection)),
        })
    }
}

impl Rtnl {
    /// Opens the connection, inside a tokio runtime, in the network namespace of the calling thread.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { connection: Mutex::new(Connection::open()?) })
    }

    /// Returns a handle of a connection that works.
    pub(crate) fn handle(&self) -> io::Result<Handle> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.task.is_finished() {
            *connection = Connection::open()?;
        }
        Ok(connection.handle.clone())
    }

    /// Returns the port that changes are asked for from.
    pub(crate) fn port(&self) -> u32 {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).port
    }

    /// Looks up the interface `name`; `None` if there is none.
    pub(crate) async fn link(&self, name: &str) -> io::Result<Option<Link>> {
        let request = self.handle()?.link().get().match_name(name);
        first_link(request.execute()).await
    }

    /// Looks up the interface with `index`; `None` if there is none.
    pub(crate) async fn link_by_index(&self, index: u32) -> io::Result<Option<Link>> {
        let request = self.handle()?.link().get().match_index(index);
        first_link(request.execute()).await
    }

    /// Makes a kernel WireGuard interface.
    pub(crate) async fn add_wireguard(&self, name: &str) -> io::Result<()> {
        let request = self.handle()?.link().add(LinkWireguard::new(name).build());
        within(async { request.execute().await.map_err(into_io) }).await
    }

    /// Removes an interface; one that is not there is no error.
    pub(crate) async fn delete(&self, index: u32) -> io::Result<()> {
        let request = self.handle()?.link().del(index);
        match within(async { request.execute().await.map_err(into_io) }).await {
            Err(error) if is(&error, nix::errno::Errno::ENODEV) => Ok(()),
            result => result,
        }
    }
}

/// Gives `operation` up after [`DEADLINE`].
pub(crate) async fn within<T>(operation: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(DEADLINE, operation).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer within 10 s")),
    }
}

/// Whether `error` is the kernel's `errno`.
pub(crate) fn is(error: &io::Error, errno: nix::errno::Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// Keeps of an rtnetlink error what the kernel said.
pub(crate) fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(error) => error.to_io(),
        rtnetlink::Error::RequestFailed => {
            io::Error::new(io::ErrorKind::BrokenPipe, "the rtnetlink connection is gone")
        }
        _ => io::Error::new(io::ErrorKind::InvalidData, "the kernel answered something unexpected"),
    }
}

async fn first_link(
    links: impl Stream<Item = Result<LinkMessage, rtnetlink::Error>>,
) -> io::Result<Option<Link>> {
    let mut links = std::pin::pin!(links);
    match within(async { links.try_next().await.map_err(into_io) }).await {
        Ok(message) => Ok(message.map(|message| link_from(&message))),
        Err(error) if is(&error, nix::errno::Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn link_from(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_operation_without_an_answer_times_out() {
        let error = within(std::future::pending::<io::Result<()>>()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn what_plexd_looks_at_is_taken_from_the_message() {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName("plexd0".into()),
            LinkAttribute::Mtu(1420),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Tun)]),
        ];
        let link = link_from(&message);
        let expected =
            Link { index: 7, name: "plexd0".into(), kind: Some(InfoKind::Tun), up: true, mtu: 1420 };
        assert_eq!(link, expected);
    }

    #[test]
    fn an_unexpected_answer_is_not_shown() {
        let error = into_io(rtnetlink::Error::InvalidNla("bytes of somebody".into()));
        assert!(!error.to_string().contains("bytes of somebody"));
    }
}
