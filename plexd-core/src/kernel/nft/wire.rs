//! The bytes of nfnetlink: messages, attributes written and read. Knows no table.

/// Bytes of a netlink header.
const HEADER: usize = 16;
/// Bytes of a netlink header and the netfilter header after it.
const HEADERS: usize = HEADER + 4;
/// The bits of an attribute's type that are its type.
const TYPE_MASK: u16 = 0x3fff;
/// Marks an attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// Subsystem of nftables messages, in the upper byte of the type.
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// Family `inet`: IPv4 and IPv6.
pub(super) const NFPROTO_INET: u8 = 1;

/// Message types of netlink itself.
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
/// First and last message of a transaction.
pub(super) const NFNL_MSG_BATCH_BEGIN: u16 = 16;
pub(super) const NFNL_MSG_BATCH_END: u16 = 17;

/// Flags of a message.
pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;
/// In an acknowledgement: the request is not repeated, and attributes follow.
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
/// The attribute of an acknowledgement that says in words what is wrong.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Returns the netlink type of an nftables message.
pub(super) const fn nft(message: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message
}

/// Attributes, being written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// Adds an attribute with these bytes.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len());
        let length =
            length.expect("an attribute fits 64 KiB: entries are split over messages, all else is small");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a text, which the kernel wants to end with a zero.
    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds a number of 32 bits, as netfilter has them: big-endian.
    pub(super) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a number of 64 bits.
    pub(super) fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds attributes within an attribute.
    pub(super) fn nest(&mut self, kind: u16, inner: &Self) -> &mut Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// Returns them as bytes.
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// Returns how many bytes they take.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// What a message begins with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    /// Type.
    pub(super) kind: u16,
    /// Flags.
    pub(super) flags: u16,
    /// Number of the request.
    pub(super) sequence: u32,
    /// Address family.
    pub(super) family: u8,
    /// Subsystem that a transaction is for; 0 elsewhere.
    pub(super) resource: u16,
}

impl Head {
    /// Returns the head of an nftables message of family `inet`.
    pub(super) fn nft(message: u16, flags: u16, sequence: u32) -> Self {
        let flags = NLM_F_REQUEST | flags;
        Self { kind: nft(message), flags, sequence, family: NFPROTO_INET, resource: 0 }
    }

    /// Returns the head of the first or last message of an nftables transaction.
    pub(super) fn batch(kind: u16, sequence: u32) -> Self {
        Self { kind, flags: NLM_F_REQUEST, sequence, family: 0, resource: NFNL_SUBSYS_NFTABLES }
    }
}

/// Writes a message at the end of `buffer`.
pub(super) fn write_message(buffer: &mut Vec<u8>, head: Head, attributes: &Attributes) {
    let length = u32::try_from(HEADERS + attributes.len());
    let length = length.expect("a message holds a bounded number of attributes of 64 KiB at most");
    buffer.extend_from_slice(&length.to_ne_bytes());
    buffer.extend_from_slice(&head.kind.to_ne_bytes());
    buffer.extend_from_slice(&head.flags.to_ne_bytes());
    buffer.extend_from_slice(&head.sequence.to_ne_bytes());
    // The kernel knows who asks: the port of the socket.
    buffer.extend_from_slice(&0_u32.to_ne_bytes());
    buffer.push(head.family);
    buffer.push(0);
    buffer.extend_from_slice(&head.resource.to_be_bytes());
    buffer.extend_from_slice(attributes.as_slice());
}

/// A received message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    /// Type.
    pub(super) kind: u16,
    /// Flags.
    pub(super) flags: u16,
    /// Number of the request it answers.
    pub(super) sequence: u32,
    /// Port of the socket that asked, or that made the change that is announced.
    pub(super) port: u32,
    /// All after the netlink header.
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Returns the address family.
    pub(super) fn family(&self) -> u8 {
        self.body.first().copied().unwrap_or(0)
    }

    /// Returns the attributes after the netfilter header.
    pub(super) fn attributes(&self) -> Reader<'a> {
        Reader(self.body.get(HEADERS - HEADER..).unwrap_or_default())
    }

    /// Returns what an error message, or the end of a dump, says: an error number, 0 for none, and words if there are any.
    pub(super) fn outcome(&self) -> (i32, Option<String>) {
        let code = fixed(self.body).map_or(0, i32::from_ne_bytes);
        let words = (self.flags & NLM_F_ACK_TLVS != 0)
            .then(|| Reader(self.body.get(self.answered_length()..).unwrap_or_default()))
            .and_then(|attributes| attributes.text(NLMSGERR_ATTR_MSG));
        (-code, words)
    }

    /// Returns how much of an error message precedes its attributes: the code and the request, or its header only.
    fn answered_length(&self) -> usize {
        let request = self.body.get(4..).and_then(fixed).map_or(0, u32::from_ne_bytes);
        let request = if self.flags & NLM_F_CAPPED != 0 { HEADER } else { request as usize };
        if self.kind == NLMSG_ERROR { 4 + request.next_multiple_of(4) } else { 4 }
    }
}

/// Reads messages; ends at the first that is cut off.
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let data = self.0;
        let length = u32::from_ne_bytes(fixed(data)?) as usize;
        let body = data.get(HEADER..length)?;
        self.0 = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes(fixed(&data[4..])?),
            flags: u16::from_ne_bytes(fixed(&data[6..])?),
            sequence: u32::from_ne_bytes(fixed(&data[8..])?),
            port: u32::from_ne_bytes(fixed(&data[12..])?),
            body,
        })
    }
}

/// Reads attributes; ends at the first that is cut off.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// Returns every attribute's type and value.
    pub(super) fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let length = usize::from(u16::from_ne_bytes(fixed(left)?));
            let kind = u16::from_ne_bytes(fixed(left.get(2..)?)?) & TYPE_MASK;
            let value = left.get(4..length)?;
            left = left.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    /// Returns the value of the first attribute of this type.
    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// Returns the attributes within an attribute; none if there is no such attribute.
    pub(super) fn within(self, kind: u16) -> Reader<'a> {
        Reader(self.get(kind).unwrap_or_default())
    }

    /// Returns a text.
    pub(super) fn text(self, kind: u16) -> Option<String> {
        self.get(kind).map(|value| text(value).into_owned())
    }

    /// Returns a number of 32 bits.
    pub(super) fn u32(self, kind: u16) -> Option<u32> {
        self.get(kind).and_then(fixed).map(u32::from_be_bytes)
    }

    /// Returns a number of 64 bits.
    pub(super) fn u64(self, kind: u16) -> Option<u64> {
        self.get(kind).and_then(fixed).map(u64::from_be_bytes)
    }
}

fn text(value: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default())
}

/// Returns the first bytes of a value.
fn fixed<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    value.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut inner = Attributes::default();
        inner.text(1, "name").u32(2, 7);
        let mut attributes = Attributes::default();
        attributes.u64(3, 1 << 40).nest(4, &inner).bytes(5, &[1, 2, 3]);
        let mut buffer = Vec::new();
        write_message(&mut buffer, Head::nft(6, NLM_F_ACK, 42), &attributes);
        write_message(&mut buffer, Head::batch(NFNL_MSG_BATCH_END, 43), &Attributes::default());

        let messages: Vec<_> = Messages(&buffer).collect();
        assert_eq!(messages.len(), 2);
        assert_eq!((messages[0].kind, messages[0].flags, messages[0].sequence), (nft(6), 5, 42));
        assert_eq!(messages[0].family(), NFPROTO_INET);
        let read = messages[0].attributes();
        assert_eq!(read.u64(3), Some(1 << 40));
        assert_eq!(read.within(4).text(1).as_deref(), Some("name"));
        assert_eq!(read.within(4).u32(2), Some(7));
        assert_eq!(read.get(5), Some(&[1, 2, 3][..]));
        assert_eq!(read.get(6), None);
    }

    #[test]
    fn what_is_cut_off_is_not_read() {
        let mut attributes = Attributes::default();
        attributes.u32(1, 1).u32(2, 2);
        let mut buffer = Vec::new();
        write_message(&mut buffer, Head::nft(0, 0, 1), &attributes);
        for length in 0..buffer.len() {
            assert_eq!(Messages(&buffer[..length]).count(), 0, "{length}");
        }
        assert_eq!(Reader(&attributes.as_slice()[..12]).iter().count(), 1);
        assert_eq!(Reader(&[2, 0, 1, 0]).iter().count(), 0, "a length below that of the header");
        assert_eq!(Messages(&[3; 16]).count(), 0, "a length beyond the end");
    }
}
