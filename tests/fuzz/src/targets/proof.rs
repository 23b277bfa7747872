//! What plexd-core takes from `proof.sock`, through a real socket: bytes with any number of descriptors, cut anyhow.

use std::io::{self, IoSlice, Read as _};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use plexd_proto::proof::{self, MESSAGE, Ticket};

use crate::parts;

/// Most descriptors of one part.
const MOST: u8 = 6;

/// Each part is sent by itself, with as many descriptors as its first byte says.
pub fn proof(data: &[u8]) {
    texts(data);
    let (sidecar, core) = UnixStream::pair().expect("a pair");
    let (passed, mut other) = UnixStream::pair().expect("a pair");
    let mut descriptors_sent = 0;
    let mut whole = Vec::new();
    for part in parts(data) {
        let [count, bytes @ ..] = part else { continue };
        let bytes = &bytes[..bytes.len().min(2 * MESSAGE)];
        if bytes.is_empty() {
            continue;
        }
        let descriptors: Vec<RawFd> = vec![passed.as_raw_fd(); usize::from(count % MOST)];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &rights };
        sendmsg::<()>(sidecar.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), None)
            .expect("few and short");
        descriptors_sent += descriptors.len();
        whole.push((descriptors.len() == 1).then(|| proof::parse_message(bytes)).flatten());
    }
    drop(sidecar);
    let mut taken = Vec::new();
    while let Ok((id, descriptor)) = proof::receive(&core) {
        drop(descriptor);
        taken.push(id);
    }
    assert!(taken.len() <= descriptors_sent);
    // Up to the first that is none, each is taken as it was sent.
    let good: Vec<u64> = whole.iter().map_while(|id| *id).collect();
    assert!(taken.starts_with(&good), "{taken:?} of {whole:?}");
    assert!(taken == good || good.len() < whole.len(), "{taken:?} of {whole:?}");
    // Whatever came, nothing of it is open any more.
    drop((core, passed));
    other.set_nonblocking(true).expect("a socket");
    let end = other.read(&mut [0]);
    assert!(
        matches!(end, Ok(0)),
        "a descriptor is still open: {:?}",
        end.map_err(|error: io::Error| error.kind())
    );
}

/// A message and a greeting are read in one way only.
fn texts(data: &[u8]) {
    if let Some(id) = proof::parse_message(data) {
        assert_eq!(proof::message(id), data);
    }
    if let Some(ticket) = proof::parse_greeting(data) {
        assert_eq!(ticket.greeting(), data);
        assert_eq!(Ticket::parse(ticket.as_bytes()), Some(ticket));
    }
}
