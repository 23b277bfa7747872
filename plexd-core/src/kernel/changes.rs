//! Tells when an interface, its addresses, its routes or plexd's routing rules changed, so that it can be looked at at once.
//! Says that something changed, never what: the looking is done by those who read.

use std::io;

use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

/// What of the interface is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// The interface itself: that it is there, up, its MTU.
    Link,
    /// Its addresses and routes, and plexd's routing rules, as well.
    Everything,
}

impl Watched {
    fn groups(self) -> &'static [MulticastGroup] {
        match self {
            Self::Link => &[MulticastGroup::Link],
            Self::Everything => &[
                MulticastGroup::Link,
                MulticastGroup::Ipv4Ifaddr,
                MulticastGroup::Ipv6Ifaddr,
                MulticastGroup::Ipv4Route,
                MulticastGroup::Ipv6Route,
                MulticastGroup::Ipv4Rule,
                MulticastGroup::Ipv6Rule,
            ],
        }
    }
}

/// Longest datagram the kernel sends, in bytes.
const DATAGRAM: usize = 64 * 1024;

/// Changes of one interface, in the network namespace of the thread that created this.
pub struct LinkChanges {
    socket: TokioSocket,
    buffer: Vec<u8>,
    interface: Interface,
    is_own: IsOwn,
}

/// Tells by the netlink port of who asked for a change whether it is not to be told.
type IsOwn = Box<dyn Fn(u32) -> bool + Send + Sync>;

/// An interface and the index it has at the moment.
struct Interface {
    name: String,
    index: Option<u32>,
}

impl LinkChanges {
    /// Starts listening, inside a tokio runtime. The interface need not exist.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn new(interface: &str, watched: Watched) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let groups = watched.groups().iter().fold(0, |groups, group| groups | 1 << (*group as u32 - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        // After the subscription, so that no change falls between the two.
        let index = nix::net::if_::if_nametoindex(interface).ok();
        let interface = Interface { name: interface.to_owned(), index };
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM), interface, is_own: Box::new(|_| false) })
    }

    /// Leaves out changes of addresses, routes and rules that were asked for from a netlink port that `is_own`.
    #[must_use]
    pub fn by_others(mut self, is_own: impl Fn(u32) -> bool + Send + Sync + 'static) -> Self {
        self.is_own = Box::new(is_own);
        self
    }

    /// Waits for a change. Several may be told as one. Cancelling the wait loses nothing.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer).await {
                Ok(_) if self.interface.is_concerned_by_any(&self.buffer, &self.is_own) => return Ok(()),
                Ok(_) => {}
                // The kernel had more to say than the receive buffer holds: what, nobody knows.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    self.interface.index = nix::net::if_::if_nametoindex(self.interface.name.as_str()).ok();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Interface {
    fn is_concerned_by_any(&mut self, datagram: &[u8], is_own: &dyn Fn(u32) -> bool) -> bool {
        let mut rest = datagram;
        let mut concerned = false;
        while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
            // Every message is looked at: the index is learned from them.
            concerned |= self.is_concerned_by(&message.payload)
                && !(is_part(&message.payload) && is_own(message.header.port_number));
            let length = (message.header.length as usize).next_multiple_of(4);
            let Some(next) = rest.get(length..).filter(|next| length > 0 && !next.is_empty()) else { break };
            rest = next;
        }
        concerned
    }

    fn is_concerned_by(&mut self, payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
        let NetlinkPayload::InnerMessage(message) = payload else { return false };
        match message {
            RouteNetlinkMessage::NewLink(link) => self.follow(link),
            RouteNetlinkMessage::DelLink(link) => {
                let concerned = self.is_index(link.header.index);
                if concerned {
                    self.index = None;
                }
                concerned
            }
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
                self.is_index(address.header.index)
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                interface_of(route).is_some_and(|index| self.is_index(index))
            }
            RouteNetlinkMessage::NewRule(rule) | RouteNetlinkMessage::DelRule(rule) => {
                super::rules::concerns(rule)
            }
            _ => false,
        }
    }

    fn is_index(&self, index: u32) -> bool {
        self.index == Some(index)
    }

    /// Learns the index from a link that appeared or changed, its name perhaps.
    fn follow(&mut self, link: &LinkMessage) -> bool {
        let named = link.attributes.contains(&LinkAttribute::IfName(self.name.clone()));
        let concerned = named || self.is_index(link.header.index);
        if concerned {
            self.index = named.then_some(link.header.index);
        }
        concerned
    }
}

/// Whether it is about an address, a route or a routing rule. The kernel says of links that it changed them itself, whoever
/// asked for it.
fn is_part(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    use RouteNetlinkMessage::{DelAddress, DelRoute, DelRule, NewAddress, NewRoute, NewRule};
    let NetlinkPayload::InnerMessage(message) = payload else { return false };
    matches!(message, NewAddress(_) | DelAddress(_) | NewRoute(_) | DelRoute(_) | NewRule(_) | DelRule(_))
}

fn interface_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::address::AddressMessage;

    use super::*;

    fn link(index: u32, name: &str) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::IfName(name.into()));
        message
    }

    fn datagram(messages: Vec<RouteNetlinkMessage>) -> Vec<u8> {
        let mut datagram = Vec::new();
        for message in messages {
            let mut message = NetlinkMessage::from(message);
            message.finalize();
            let start = datagram.len();
            datagram.resize(start + message.buffer_len(), 0);
            message.serialize(&mut datagram[start..]);
        }
        datagram
    }

    #[test]
    fn the_interface_is_followed_from_its_making_to_its_end() {
        let mut interface = Interface { name: "plexd0".into(), index: None };
        let mut route = RouteMessage::default();
        route.attributes.push(RouteAttribute::Oif(7));
        let route = || RouteNetlinkMessage::DelRoute(route.clone());
        let steps = [
            (vec![route()], false, None),
            (vec![RouteNetlinkMessage::NewLink(link(7, "plexd1"))], false, None),
            (vec![RouteNetlinkMessage::NewLink(link(7, "plexd0"))], true, Some(7)),
            (vec![RouteNetlinkMessage::NewLink(link(8, "eth0")), route()], true, Some(7)),
            (vec![RouteNetlinkMessage::NewLink(link(8, "eth0"))], false, Some(7)),
            (vec![RouteNetlinkMessage::DelLink(link(7, "plexd0"))], true, None),
            (vec![route()], false, None),
        ];
        for (number, (messages, concerned, index)) in steps.into_iter().enumerate() {
            assert_eq!(
                interface.is_concerned_by_any(&datagram(messages), &|_| false),
                concerned,
                "step {number}"
            );
            assert_eq!(interface.index, index, "step {number}");
        }
    }

    #[test]
    fn what_was_asked_for_from_an_own_port_concerns_nobody_unless_it_is_the_link() {
        let mut interface = Interface { name: "plexd0".into(), index: Some(7) };
        let mut route = RouteMessage::default();
        route.attributes.push(RouteAttribute::Oif(7));
        let mut address = AddressMessage::default();
        address.header.index = 7;
        let messages = [
            (RouteNetlinkMessage::NewRoute(route), false),
            (RouteNetlinkMessage::DelAddress(address), false),
            (RouteNetlinkMessage::NewLink(link(7, "plexd0")), true),
        ];
        // The port of a message that no port is written into is 0.
        for (message, concerned) in messages {
            let datagram = datagram(vec![message]);
            assert_eq!(interface.is_concerned_by_any(&datagram, &|port| port == 0), concerned);
            assert!(interface.is_concerned_by_any(&datagram, &|port| port == 4711));
        }
    }

    #[test]
    fn a_renamed_interface_concerns_once_and_is_gone() {
        let mut interface = Interface { name: "plexd0".into(), index: Some(7) };
        let renamed = datagram(vec![RouteNetlinkMessage::NewLink(link(7, "other0"))]);
        assert!(interface.is_concerned_by_any(&renamed, &|_| true));
        assert!(!interface.is_concerned_by_any(&renamed, &|_| true));
    }

    #[test]
    fn garbage_concerns_nobody() {
        let mut interface = Interface { name: "plexd0".into(), index: Some(7) };
        for garbage in [[].as_slice(), &[0; 16], &[0xff; 100]] {
            assert!(!interface.is_concerned_by_any(garbage, &|_| false));
        }
    }
}
