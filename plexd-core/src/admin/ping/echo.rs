//! ICMP echoes on a socket for which no privilege is needed (`ping_group_range` in icmp(7)), through the mesh interface
//! and no other. Knows nothing of peers and policy.

use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::{sock_extended_err, sockaddr_in6};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::Instant;

/// How long an echo is waited for; the contract of `Ping` says so, too.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of an ICMP header.
const HEADER: usize = 8;

/// Random bytes that an echo carries, by which its answer is known. With the headers of ICMP and IPv4 it has 84 bytes, as
/// those of ping(8).
const PAYLOAD: usize = 56;

/// Longest message that is read; what is longer is no answer.
const LONGEST: usize = 512;

/// What became of an echo.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It was answered, after this long.
    Answered(Duration),
    /// Nothing came within [`PATIENCE`].
    Timeout,
    /// It could not be sent, or somebody said that it does not arrive.
    Unreachable(io::Error),
}

/// A socket that exchanges echoes with one address.
#[derive(Debug)]
pub(super) struct EchoSocket {
    socket: UdpSocket,
    types: Types,
}

/// Types of messages of one family.
#[derive(Debug, Clone, Copy)]
struct Types {
    request: u8,
    reply: u8,
}

/// RFC 792.
const V4: Types = Types { request: 8, reply: 0 };
/// RFC 4443, section 4.
const V6: Types = Types { request: 128, reply: 129 };

/// An echo: the kernel puts the identifier of the socket and the checksum in.
struct Echo {
    sequence: u16,
    payload: [u8; PAYLOAD],
}

/// A message of the socket.
#[derive(Debug, PartialEq, Eq)]
enum Received {
    /// An ICMP message.
    Message(Vec<u8>),
    /// An echo that did not arrive, as far as it was quoted, and why.
    Refused(Vec<u8>, i32),
}

impl EchoSocket {
    /// Opens a socket for echoes from this node's address `from` to `to`, of the same family, through `interface`.
    ///
    /// # Errors
    /// `PermissionDenied` where the process is in none of the groups of `net.ipv4.ping_group_range`.
    pub(super) fn open(interface: &str, from: IpAddr, to: IpAddr) -> io::Result<Self> {
        let (domain, protocol, types) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, V4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, V6),
        };
        let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
        // Allowed without CAP_NET_RAW as long as the socket is bound to none (Linux 5.7).
        setsockopt(&socket, sockopt::BindToDevice, &OsString::from(interface))?;
        // Without it an unreachable peer is known only by silence.
        match to {
            IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
            IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
        }
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect(&SocketAddr::new(to, 0).into())?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, types })
    }

    /// Sends an echo and waits for its answer.
    pub(super) async fn echo(&self, sequence: u16) -> Outcome {
        let mut payload = [0; PAYLOAD];
        if let Err(error) = getrandom::fill(&mut payload) {
            return Outcome::Unreachable(io::Error::other(error));
        }
        let echo = Echo { sequence, payload };
        // What is left of an echo before would be taken for a failure to send this one.
        let _ = self.socket.take_error();
        let sent = Instant::now();
        if let Err(error) = self.socket.send(&echo.request(self.types)).await {
            return Outcome::Unreachable(error);
        }
        match tokio::time::timeout_at(sent + PATIENCE, self.answer(&echo)).await {
            Ok(Ok(())) => Outcome::Answered(sent.elapsed()),
            Ok(Err(error)) => Outcome::Unreachable(error),
            Err(_) => Outcome::Timeout,
        }
    }

    /// Waits for the answer of `echo`, or for the news that there will be none.
    async fn answer(&self, echo: &Echo) -> io::Result<()> {
        loop {
            // A message in the error queue is signalled as an error only.
            let interest = Interest::READABLE | Interest::ERROR;
            match self.socket.async_io(interest, || receive(&self.socket)).await? {
                Received::Message(message) if echo.is_answered_by(&message, self.types) => return Ok(()),
                Received::Refused(quoted, errno) if echo.is_quoted_by(&quoted, self.types) => {
                    return Err(io::Error::from_raw_os_error(errno));
                }
                // Of an echo before, or somebody's invention.
                Received::Message(_) | Received::Refused(..) => {}
            }
        }
    }
}

impl Echo {
    fn request(&self, types: Types) -> [u8; HEADER + PAYLOAD] {
        let mut message = [0; HEADER + PAYLOAD];
        message[0] = types.request;
        message[6..HEADER].copy_from_slice(&self.sequence.to_be_bytes());
        message[HEADER..].copy_from_slice(&self.payload);
        message
    }

    fn is_answered_by(&self, message: &[u8], types: Types) -> bool {
        let Some((header, payload)) = message.split_at_checked(HEADER) else { return false };
        header[..2] == [types.reply, 0]
            && header[6..] == self.sequence.to_be_bytes()
            && payload == self.payload
    }

    /// Of what did not arrive no more than the header has to be quoted (RFC 792).
    fn is_quoted_by(&self, quoted: &[u8], types: Types) -> bool {
        quoted.len() >= HEADER
            && quoted[..2] == [types.request, 0]
            && quoted[6..HEADER] == self.sequence.to_be_bytes()
    }
}

/// Takes a message: what was refused first, as it makes the socket return an error.
fn receive(socket: &impl AsFd) -> io::Result<Received> {
    match read(socket, MsgFlags::MSG_ERRQUEUE) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => read(socket, MsgFlags::empty()),
        result => result,
    }
}

fn read(socket: &impl AsFd, queue: MsgFlags) -> io::Result<Received> {
    let mut buffer = [0; LONGEST];
    let mut control = cmsg_space!(sock_extended_err, sockaddr_in6);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = queue | MsgFlags::MSG_DONTWAIT;
    let fd = socket.as_fd().as_raw_fd();
    let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), flags)?;
    let errno = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            i32::try_from(error.ee_errno).ok()
        }
        _ => None,
    });
    let length = message.bytes;
    let bytes = buffer[..length].to_vec();
    if queue.contains(MsgFlags::MSG_ERRQUEUE) {
        return Ok(Received::Refused(bytes, errno.unwrap_or(Errno::EHOSTUNREACH as i32)));
    }
    Ok(Received::Message(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECHO: Echo = Echo { sequence: 0x0102, payload: [7; PAYLOAD] };

    #[test]
    fn an_answer_is_known_by_its_type_sequence_and_payload() {
        for types in [V4, V6] {
            let mut reply = ECHO.request(types);
            assert!(!ECHO.is_answered_by(&reply, types), "the echo itself");
            reply[0] = types.reply;
            // The kernel's.
            reply[2..6].copy_from_slice(&[1, 2, 3, 4]);
            assert!(ECHO.is_answered_by(&reply, types));
            for (position, what) in [(0, "type"), (1, "code"), (7, "sequence"), (63, "payload")] {
                let mut other = reply;
                other[position] ^= 1;
                assert!(!ECHO.is_answered_by(&other, types), "{what}");
            }
            for length in [0, 7, 8, 63] {
                assert!(!ECHO.is_answered_by(&reply[..length], types), "{length}");
            }
        }
    }

    /// Runs `test` in a network namespace with a loopback interface, whose processes may all send echoes.
    fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            run("ip link set lo up && echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test());
        });
        thread.join().unwrap();
    }

    fn run(line: &str) {
        let status = std::process::Command::new("sh").args(["-c", line]).status().unwrap();
        assert!(status.success(), "{line}");
    }

    #[test]
    fn root_echoes_are_answered_refused_dropped_or_in_vain_in_both_families() {
        in_namespace(|| async {
            let addresses: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
            let sockets = addresses.map(|address| EchoSocket::open("lo", address, address).unwrap());
            let errno = async |socket: &EchoSocket, sequence| match socket.echo(sequence).await {
                Outcome::Unreachable(error) => error.raw_os_error().map(Errno::from_raw),
                outcome => panic!("{outcome:?}"),
            };
            let is_answered = async |socket: &EchoSocket, sequence| matches!(socket.echo(sequence).await, Outcome::Answered(after) if after < PATIENCE);
            for socket in &sockets {
                assert!(is_answered(socket, 1).await && is_answered(socket, 2).await);
            }
            run("nft 'add table inet t; add chain inet t c { type filter hook input priority 0; }'");
            run("nft 'add rule inet t c icmp type echo-request reject with icmp type host-unreachable'");
            run("nft 'add rule inet t c icmpv6 type echo-request reject with icmpv6 type addr-unreachable'");
            for socket in &sockets {
                assert_eq!(errno(socket, 3).await, Some(Errno::EHOSTUNREACH));
                assert_eq!(errno(socket, 4).await, Some(Errno::EHOSTUNREACH));
            }
            run("nft 'flush chain inet t c; add rule inet t c drop'");
            assert!(matches!(sockets[0].echo(5).await, Outcome::Timeout));
            run("nft 'add chain inet t o { type filter hook output priority 0; policy drop; }'");
            assert_eq!(errno(&sockets[0], 6).await, Some(Errno::EPERM));
            // Of IPv6 the kernel does not tell (ping_v6_sendmsg, as of Linux 6.18).
            assert!(matches!(sockets[1].echo(6).await, Outcome::Timeout));
            // What was refused before is no answer to what comes after.
            run("nft delete table inet t");
            for socket in &sockets {
                assert!(is_answered(socket, 7).await);
            }
        });
    }

    #[test]
    fn root_without_the_right_group_the_socket_is_refused_as_not_permitted() {
        in_namespace(|| async {
            run("echo 1 0 > /proc/sys/net/ipv4/ping_group_range");
            for address in ["127.0.0.1", "::1"] {
                let address = address.parse().unwrap();
                let error = EchoSocket::open("lo", address, address).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            }
            run("echo 0 0 > /proc/sys/net/ipv4/ping_group_range");
            let address = "127.0.0.1".parse().unwrap();
            let missing = EchoSocket::open("plexd0", address, address).unwrap_err();
            assert_eq!(missing.raw_os_error(), Some(Errno::ENODEV as i32));
        });
    }

    #[test]
    fn a_refused_echo_is_known_by_what_must_be_quoted() {
        let quoted = ECHO.request(V4);
        assert!(ECHO.is_quoted_by(&quoted[..HEADER], V4));
        assert!(!ECHO.is_quoted_by(&quoted[..HEADER - 1], V4));
        assert!(!ECHO.is_quoted_by(&quoted, V6));
        assert!(!Echo { sequence: 3, ..ECHO }.is_quoted_by(&quoted, V4));
    }
}
