//! A netlink socket of the netfilter subsystem: sends a request or a transaction and reads its answers, with a deadline.
//! What the messages mean is not known here.

use std::fmt;
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::wire::{
    Attributes, Head, Message, Messages, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NLM_F_ACK, NLM_F_DUMP,
    NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, write_message,
};

/// How long to wait for an answer. The kernel has it ready when the request returns: this is for the case that it is lost.
const DEADLINE_SECONDS: i64 = 10;
/// Receive buffer, in bytes: the answers to a dump, or the notifications of a large change.
pub(super) const RECEIVE_BUFFER: usize = 8 << 20;
/// The kernel answers dumps in pieces of 32 KiB at most.
pub(super) const DATAGRAM: usize = 128 << 10;

/// A request failed.
#[derive(Debug)]
pub(super) struct Refusal<S> {
    /// What it was about; `None` if that is not known (the transaction as a whole, or the socket).
    pub(super) subject: Option<S>,
    /// Why.
    pub(super) source: io::Error,
}

impl<S> Refusal<S> {
    /// Returns the kernel's error number.
    pub(super) fn errno(&self) -> Option<i32> {
        let told = self.source.get_ref().and_then(|inner| inner.downcast_ref::<Told>());
        told.map(|told| told.errno).or(self.source.raw_os_error())
    }
}

impl<S> From<io::Error> for Refusal<S> {
    fn from(source: io::Error) -> Self {
        Self { subject: None, source }
    }
}

/// An error number with the kernel's own words.
#[derive(Debug)]
struct Told {
    errno: i32,
    words: String,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", io::Error::from_raw_os_error(self.errno), self.words)
    }
}

impl std::error::Error for Told {}

fn os_error(errno: i32, words: Option<String>) -> io::Error {
    let plain = io::Error::from_raw_os_error(errno);
    match words {
        Some(words) => io::Error::new(plain.kind(), Told { errno, words }),
        None => plain,
    }
}

/// Messages that take effect together or not at all; each is about a subject, for the error that names it.
pub(super) struct Transaction<S> {
    bytes: Vec<u8>,
    first: u32,
    subjects: Vec<S>,
    /// Where the flags of the last message are: it alone is to be acknowledged.
    last: usize,
}

impl<S> Transaction<S> {
    /// Adds a message.
    pub(super) fn add(&mut self, subject: S, message: u16, flags: u16, attributes: &Attributes) {
        self.subjects.push(subject);
        self.last = self.bytes.len();
        let head = Head::nft(message, flags, self.sequence());
        write_message(&mut self.bytes, head, attributes);
    }

    /// Returns the number of the message added last, or of the beginning.
    fn sequence(&self) -> u32 {
        let count =
            u32::try_from(self.subjects.len()).expect("a transaction has a bounded number of messages");
        self.first.wrapping_add(count)
    }
}

/// How objects were listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listed {
    /// In one piece, or without a change meanwhile.
    Undisturbed,
    /// In pieces, and between two of them something was changed, perhaps in another table. The kernel goes on by the number
    /// of objects that it has listed.
    WithChangesBetween,
}

/// The socket.
pub(super) struct Channel {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    /// Opens a socket in the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let port = socket.bind_auto()?.port_number();
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(DEADLINE_SECONDS))?;
        Ok(Self { socket, port, sequence: 1, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Returns the socket's port, by which the kernel says who made a change.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Begins a transaction.
    pub(super) fn transaction<S>(&mut self) -> Transaction<S> {
        let mut bytes = Vec::new();
        write_message(&mut bytes, Head::batch(NFNL_MSG_BATCH_BEGIN, self.sequence), &Attributes::default());
        Transaction { bytes, first: self.sequence, subjects: Vec::new(), last: 0 }
    }

    /// Sends a transaction and waits for its outcome.
    ///
    /// # Errors
    /// The first message that the kernel refused; nothing took effect then. Without a subject, the transaction as a whole.
    pub(super) fn commit<S>(&mut self, mut transaction: Transaction<S>) -> Result<(), Refusal<S>> {
        let end = transaction.sequence();
        self.sequence = end.wrapping_add(2);
        acknowledge(&mut transaction.bytes, transaction.last);
        write_message(
            &mut transaction.bytes,
            Head::batch(NFNL_MSG_BATCH_END, end.wrapping_add(1)),
            &Attributes::default(),
        );
        self.send(&transaction.bytes)?;
        let first = transaction.first;
        let mut refused: Option<(u32, io::Error)> = None;
        loop {
            let mut done = false;
            self.receive(|message| {
                let nth = message.sequence.wrapping_sub(first);
                if message.kind != NLMSG_ERROR || nth > end.wrapping_sub(first) {
                    return;
                }
                let (errno, words) = message.outcome();
                if errno != 0 && refused.is_none() {
                    refused = Some((nth, os_error(errno, words)));
                }
                // The beginning is answered only if all of it fails, the last message always.
                done |= nth == 0 || message.sequence == end;
            })?;
            if done {
                break;
            }
        }
        let Some((nth, source)) = refused else { return Ok(()) };
        let subject = (nth > 0).then(|| transaction.subjects.into_iter().nth(nth as usize - 1)).flatten();
        Err(Refusal { subject, source })
    }

    /// Sends a request for one object and passes the answer on; `None` if there is no such object.
    pub(super) fn get<T>(
        &mut self,
        message: u16,
        attributes: &Attributes,
        mut read: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let sequence = self.request(message, NLM_F_ACK, attributes)?;
        let (mut found, mut outcome) = (None, None);
        while outcome.is_none() {
            self.receive(|answer| {
                if answer.sequence != sequence {
                } else if answer.kind == NLMSG_ERROR {
                    outcome = Some(answer.outcome());
                } else {
                    found = read(answer);
                }
            })?;
        }
        match outcome.unwrap_or_default() {
            (0, _) => Ok(found),
            (libc::ENOENT, _) => Ok(None),
            (errno, words) => Err(os_error(errno, words)),
        }
    }

    /// Sends a request for all objects of a kind and passes every answer on.
    pub(super) fn dump(
        &mut self,
        message: u16,
        attributes: &Attributes,
        mut read: impl FnMut(&Message<'_>),
    ) -> io::Result<Listed> {
        let sequence = self.request(message, NLM_F_DUMP, attributes)?;
        let (mut outcome, mut interrupted, mut pieces) = (None, false, 0);
        while outcome.is_none() {
            let mut is_piece = false;
            self.receive(|answer| {
                if answer.sequence != sequence {
                    return;
                }
                interrupted |= answer.flags & NLM_F_DUMP_INTR != 0;
                match answer.kind {
                    NLMSG_ERROR | NLMSG_DONE => outcome = Some(answer.outcome()),
                    _ => {
                        is_piece = true;
                        read(answer);
                    }
                }
            })?;
            pieces += usize::from(is_piece);
        }
        match outcome.unwrap_or_default() {
            (0, _) if interrupted && pieces > 1 => Ok(Listed::WithChangesBetween),
            (0, _) => Ok(Listed::Undisturbed),
            (errno, words) => Err(os_error(errno, words)),
        }
    }

    fn request(&mut self, message: u16, flags: u16, attributes: &Attributes) -> io::Result<u32> {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        write_message(&mut bytes, Head::nft(message, flags, sequence), attributes);
        self.send(&bytes)?;
        Ok(sequence)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        // A transaction is one datagram; the kernel counts some overhead with it.
        setsockopt(&self.socket, sockopt::SndBufForce, &(bytes.len() + (64 << 10)))?;
        let kernel = SocketAddr::new(0, 0);
        let sent = retry(|| self.socket.send_to(bytes, &kernel, 0))?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn receive(&mut self, each: impl FnMut(&Message<'_>)) -> io::Result<()> {
        self.buffer.clear();
        let received = retry(|| self.socket.recv_from(&mut self.buffer, libc::MSG_TRUNC));
        let (length, from) = received.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })?;
        if length > self.buffer.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer was cut off"));
        }
        // Only the kernel has port 0.
        if from.port_number() == 0 {
            let mut each = each;
            Messages(&self.buffer).for_each(|message| each(&message));
        }
        Ok(())
    }
}

/// Asks for an acknowledgement of the message at this place.
fn acknowledge(bytes: &mut [u8], message: usize) {
    if let Some(flags) = bytes.get_mut(message + 6..).and_then(<[u8]>::first_chunk_mut) {
        *flags = (u16::from_ne_bytes(*flags) | NLM_F_ACK).to_ne_bytes();
    }
}

/// Tries again when a signal came in between.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
