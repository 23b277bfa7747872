//! Messages to nftables that `nft` does not send, and changes that come faster than it starts.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// `NFT_MSG_*`.
pub(super) const NEWTABLE: u16 = 0;
pub(super) const NEWCHAIN: u16 = 3;
pub(super) const DELCHAIN: u16 = 5;
pub(super) const NEWSETELEM: u16 = 12;
pub(super) const DELSETELEM: u16 = 14;

/// `NFPROTO_INET`.
pub(super) const INET: u8 = 1;

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_CREATE`.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;

/// Returns an attribute.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Returns a text as an attribute.
pub(super) fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

/// Returns attributes within an attribute.
pub(super) fn nest(kind: u16, inner: &[Vec<u8>]) -> Vec<u8> {
    attribute(0x8000 | kind, &inner.concat())
}

/// A message of a transaction: type, family, attributes.
pub(super) type Request = (u16, u8, Vec<Vec<u8>>);

/// A socket of nftables, in the network namespace of the thread that made it.
pub(super) struct Raw(Socket);

impl Raw {
    pub(super) fn open() -> Self {
        let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
        socket.bind_auto().unwrap();
        Self(socket)
    }

    /// Makes changes, all of them or none.
    pub(super) fn commit(&self, requests: &[Request]) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut add = |kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]| {
            let length = u32::try_from(20 + body.len()).unwrap();
            bytes.extend_from_slice(&length.to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
            bytes.extend_from_slice(&[0; 8]);
            bytes.extend_from_slice(&[family, 0]);
            bytes.extend_from_slice(&resource.to_be_bytes());
            bytes.extend_from_slice(body);
        };
        // `NFNL_MSG_BATCH_BEGIN` and `END`, of subsystem nftables.
        add(16, 0, 0, 10, &[]);
        for (kind, family, attributes) in requests {
            let create = if matches!(*kind, NEWTABLE | NEWCHAIN | NEWSETELEM) { CREATE } else { 0 };
            add(10 << 8 | kind, ACK | create, *family, 0, &attributes.concat());
        }
        add(17, 0, 0, 10, &[]);
        self.0.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        // Each is answered; the first refusal is told.
        let mut outcome = Ok(());
        let mut left = requests.len();
        while left > 0 {
            let (answer, _) = self.0.recv_from_full()?;
            let mut rest = &answer[..];
            while rest.len() >= 20 {
                let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
                assert_eq!(u16::from_ne_bytes(rest[4..6].try_into().unwrap()), NLMSG_ERROR);
                let errno = -i32::from_ne_bytes(rest[16..20].try_into().unwrap());
                if errno != 0 && outcome.is_ok() {
                    outcome = Err(io::Error::from_raw_os_error(errno));
                }
                left = left.saturating_sub(1);
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
        outcome
    }
}

/// Changes of another table, one after the other without a pause, as long as `work` takes; it can ask how many were made.
/// The other table, `inet other`, has now one chain more and now one less.
pub(super) fn while_others_change<T>(work: impl FnOnce(&dyn Fn() -> u64) -> T) -> T {
    let (changes, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let chain = |kind, name: &str| (kind, INET, vec![text(1, "other"), text(3, name)]);
    Raw::open().commit(&[(NEWTABLE, INET, vec![text(1, "other")]), chain(NEWCHAIN, "stays")]).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let raw = Raw::open();
            while !is_over.load(Ordering::Relaxed) {
                for kind in [NEWCHAIN, DELCHAIN] {
                    raw.commit(&[chain(kind, "comes_and_goes")]).unwrap();
                    changes.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let guard = Over(&is_over);
        let done = work(&|| changes.load(Ordering::Relaxed));
        drop(guard);
        done
    })
}

/// Ends the changes also where a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
