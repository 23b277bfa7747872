//! `proof.sock`: how the sidecar shows plexd-core the clients that it reads secrets for. Core decides by the client's own
//! socket, which is passed here as a descriptor, and not by what the sidecar says of it.
//!
//! Core greets each connection with a [`Ticket`], 16 random bytes. The sidecar names it in a stream of `ReadSecrets`, which
//! takes the connection over: from then on the two belong to each other, and end together. For each read of a client of the
//! Unix socket, in the order in which the stream names them, the connection carries one message with one descriptor, sent
//! before the read. So a proof has been received by the kernel when the read that it is for arrives: core waits for none, and
//! takes none for another read than the one whose id it bears.
//!
//! All messages are of fixed size. Whatever is not as it must be ends the conversation.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::AsyncReadExt;

/// What every message begins with; the last digit is the version.
const MAGIC: [u8; 8] = *b"plexdpf1";

/// Bytes of a ticket.
const TICKET: usize = 16;

/// Bytes of a greeting: the magic and the ticket.
pub const GREETING: usize = MAGIC.len() + TICKET;

/// Bytes of a message that carries a descriptor: the magic, and the id of the read, least significant byte first.
pub const MESSAGE: usize = MAGIC.len() + size_of::<u64>();

/// Names a connection to `proof.sock`; random, and known to nobody but core and who made the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket([u8; TICKET]);

impl Ticket {
    /// Makes one of random bytes.
    pub fn new(random: [u8; TICKET]) -> Self {
        Self(random)
    }

    /// Reads one from the field of a message.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Returns its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the greeting that tells it.
    pub fn greeting(&self) -> [u8; GREETING] {
        joined(self.0)
    }
}

/// Returns the message about the read `id`.
pub fn message(id: u64) -> [u8; MESSAGE] {
    joined(id.to_le_bytes())
}

/// Returns the id of the read in a message, if it is one.
pub fn parse_message(bytes: &[u8]) -> Option<u64> {
    rest(bytes).and_then(|id| id.try_into().ok()).map(u64::from_le_bytes)
}

/// Returns the ticket in a greeting, if it is one.
pub fn parse_greeting(bytes: &[u8]) -> Option<Ticket> {
    rest(bytes).and_then(Ticket::parse)
}

fn joined<const N: usize, const M: usize>(rest: [u8; N]) -> [u8; M] {
    const { assert!(M == MAGIC.len() + N) };
    let mut bytes = [0; M];
    bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
    bytes[MAGIC.len()..].copy_from_slice(&rest);
    bytes
}

fn rest(bytes: &[u8]) -> Option<&[u8]> {
    bytes.strip_prefix(&MAGIC)
}

/// The sidecar's end of a connection.
#[derive(Debug)]
pub struct Prover {
    stream: UnixStream,
    ticket: Ticket,
}

impl Prover {
    /// Connects to `socket`, inside a tokio runtime, and hears the ticket.
    ///
    /// # Errors
    /// If there is no core, or what is there does not speak this protocol.
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        let mut stream = tokio::net::UnixStream::connect(socket).await?;
        let mut greeting = [0; GREETING];
        stream.read_exact(&mut greeting).await?;
        let ticket = parse_greeting(&greeting)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a greeting of proof.sock"))?;
        // No longer known to the runtime, which would be woken by each message that core takes.
        Ok(Self { stream: stream.into_std()?, ticket })
    }

    /// Returns the ticket.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Sends `client`'s socket as proof for the read `id`, without waiting. Returns whether there was room for it.
    ///
    /// # Errors
    /// If core has closed the connection.
    pub fn send(&self, id: u64, client: &impl AsFd) -> io::Result<bool> {
        let bytes = message(id);
        let descriptors = [client.as_fd().as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(self.stream.as_raw_fd(), &[IoSlice::new(&bytes)], &rights, flags, None) {
            Ok(sent) if sent == bytes.len() => Ok(true),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            // ETOOMANYREFS: more descriptors are under way than this process may have open.
            Err(Errno::EAGAIN | Errno::ETOOMANYREFS | Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// Nothing has arrived.
    #[error("no message")]
    Nothing,
    /// It is no message of this protocol with one descriptor.
    #[error("{bytes} bytes with {descriptors} descriptors are no message of proof.sock", descriptors = .descriptors.len())]
    NotAMessage {
        /// How many bytes arrived.
        bytes: usize,
        /// What arrived with them. Closing what a stranger passes may take its time.
        descriptors: Vec<OwnedFd>,
    },
    /// The system call failed.
    #[error("cannot receive: {0}")]
    System(#[source] io::Error),
}

/// Takes the next message from core's end of a connection, without waiting: the id of the read and the descriptor. After
/// any error the connection is of no more use.
pub fn receive(stream: &impl AsFd) -> Result<(u64, OwnedFd), ReceiveError> {
    // A message with a descriptor is never read together with another (unix(7)).
    let mut buffer = [0; MESSAGE];
    let received = plexd_sys::receive(stream, &mut buffer).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => ReceiveError::Nothing,
        _ => ReceiveError::System(error),
    })?;
    let plexd_sys::Received { bytes, mut descriptors, truncated } = received;
    match parse_message(&buffer[..bytes]) {
        Some(id) if !truncated && descriptors.len() == 1 => match descriptors.pop() {
            Some(descriptor) => Ok((id, descriptor)),
            None => Err(ReceiveError::NotAMessage { bytes, descriptors }),
        },
        _ => Err(ReceiveError::NotAMessage { bytes, descriptors }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_greetings_read_as_they_were_written_and_nothing_else_reads() {
        for id in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            assert_eq!(parse_message(&message(id)), Some(id));
        }
        let ticket = Ticket::new([7; TICKET]);
        assert_eq!(parse_greeting(&ticket.greeting()), Some(ticket));
        let good = message(5);
        for end in 0..MESSAGE {
            assert_eq!(parse_message(&good[..end]), None);
        }
        assert_eq!(parse_message(&[&good[..], b"x"].concat()), None);
        assert_eq!(parse_message(&ticket.greeting()), None);
        assert_eq!(parse_greeting(&good), None);
        for at in 0..MAGIC.len() {
            let mut bad = good;
            bad[at] ^= 1;
            assert_eq!(parse_message(&bad), None);
        }
    }

    fn pair() -> (Prover, UnixStream) {
        let (stream, core) = UnixStream::pair().expect("a pair");
        (Prover { stream, ticket: Ticket::new([0; TICKET]) }, core)
    }

    #[test]
    fn each_message_comes_by_itself_in_order_with_its_own_descriptor() {
        let (prover, core) = pair();
        let (one, two) = UnixStream::pair().expect("a pair");
        assert!(prover.send(1, &one).is_ok_and(|sent| sent));
        assert!(prover.send(2, &two).is_ok_and(|sent| sent));
        let inode = |file: &dyn AsFd| nix::sys::stat::fstat(file.as_fd()).map(|stat| stat.st_ino);
        for (id, sent) in [(1, &one), (2, &two)] {
            let received = receive(&core);
            let Ok((found, descriptor)) = received else { panic!("{received:?}") };
            assert_eq!((found, inode(&descriptor)), (id, inode(sent)));
        }
        assert!(matches!(receive(&core), Err(ReceiveError::Nothing)));
        drop(prover);
        assert!(matches!(receive(&core), Err(ReceiveError::NotAMessage { bytes: 0, .. })), "the end is none");
    }

    #[test]
    fn what_is_no_message_with_one_descriptor_is_refused() {
        let (one, _two) = UnixStream::pair().expect("a pair");
        let fd = one.as_raw_fd();
        let good = message(1);
        let table: [(&[u8], &[i32]); 6] = [
            (&good, &[]),
            (&good, &[fd, fd]),
            (&good, &[fd; 200]),
            (&good[..15], &[fd]),
            (b"GET / HTTP/1.1\r\n", &[fd]),
            (&[0; MESSAGE], &[fd]),
        ];
        for (bytes, descriptors) in table {
            let (prover, core) = pair();
            let rights = [ControlMessage::ScmRights(descriptors)];
            let control = if descriptors.is_empty() { &[][..] } else { &rights };
            let sent = sendmsg::<()>(
                prover.stream.as_raw_fd(),
                &[IoSlice::new(bytes)],
                control,
                MsgFlags::empty(),
                None,
            );
            assert_eq!(sent, Ok(bytes.len()));
            assert!(matches!(receive(&core), Err(ReceiveError::NotAMessage { .. })), "{bytes:?}");
        }
    }

    #[test]
    fn a_full_connection_says_so_and_a_closed_one_is_an_error() {
        let (prover, core) = pair();
        let (client, _other) = UnixStream::pair().expect("a pair");
        let mut count = 0_u64;
        while prover.send(count, &client).expect("open") {
            count += 1;
        }
        for expected in 0..count {
            assert!(receive(&core).is_ok_and(|(id, _)| id == expected));
        }
        assert!(prover.send(count, &client).is_ok_and(|sent| sent), "there is room again");
        drop(core);
        assert!(prover.send(count, &client).is_err());
    }
}
