//! The keys of maps: which parts of the original tuple, in which registers, in which bytes.

use std::net::IpAddr;

use ipnet::IpNet;

use super::numbers::{ct, datatype};
use crate::policy::table::{Detail, Family, Key, Part as Looked, Shape};
use crate::policy::{Service, TCP, UDP};

/// How the key of a map lies in registers: in order source, destination, protocol, port, those that count.
pub(super) struct Layout(Shape);

/// A part of a key.
pub(super) struct Part {
    /// What connection tracking is asked for.
    pub(super) key: u32,
    /// Of which direction, where directions differ.
    pub(super) direction: Option<u8>,
    /// Registers of 32 bits.
    pub(super) words: u32,
    /// What becomes of it before it is looked up.
    pub(super) cut: Cut,
    /// Number of the type in `nft`, which alone reads it.
    datatype: u32,
}

/// What becomes of a part of the tuple before it is looked up.
pub(super) enum Cut {
    /// All of it counts.
    Nothing,
    /// These bits of it count.
    Bits(Vec<u8>),
    /// The class counts that it has in the [`Classes`](crate::policy::table::Classes) at this position.
    Class(usize),
}

impl Layout {
    /// Returns the layout of a map's keys.
    pub(super) fn of(shape: Shape) -> Self {
        Self(shape)
    }

    /// Returns the parts in order.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> {
        let Shape { family, source, destination, service } = self.0;
        let (source_key, destination_key) = match family {
            Family::V4 => (ct::SOURCE_V4, ct::DESTINATION_V4),
            Family::V6 => (ct::SOURCE_V6, ct::DESTINATION_V6),
        };
        let address = move |key, part| {
            let words = match family {
                Family::V4 => 1,
                Family::V6 => 4,
            };
            let cut = match part {
                Looked::Bits(0) => return None,
                Looked::Bits(bits) => prefix_mask(family, bits).map_or(Cut::Nothing, Cut::Bits),
                Looked::Class(position) => Cut::Class(position),
            };
            let datatype = address_type(family);
            Some(Part { key, direction: Some(ct::ORIGINAL), words, cut, datatype })
        };
        let number =
            |key, direction, datatype| Part { key, direction, words: 1, cut: Cut::Nothing, datatype };
        let protocol =
            (service >= Detail::Protocol).then(|| number(ct::PROTOCOL, None, datatype::INET_PROTOCOL));
        let port = (service == Detail::Port)
            .then(|| number(ct::PORT_DESTINATION, Some(ct::ORIGINAL), datatype::INET_SERVICE));
        [address(source_key, source), address(destination_key, destination), protocol, port]
            .into_iter()
            .flatten()
    }

    /// Returns the bytes of a key.
    pub(super) fn key_length(&self) -> u32 {
        if self.is_protocol_alone() { 1 } else { self.parts().map(|part| part.words * 4).sum() }
    }

    /// Returns whether a key is a protocol and nothing else: then it is one byte, as nothing beside it begins at a register,
    /// and `nft` (1.0.6) ends with a failed assertion over one of four.
    fn is_protocol_alone(&self) -> bool {
        let Shape { source, destination, service, .. } = self.0;
        source.is_nothing() && destination.is_nothing() && service == Detail::Protocol
    }

    /// Returns the type of a key for `nft`, which packs those of its parts, six bits each.
    pub(super) fn key_type(&self) -> u32 {
        self.parts().fold(0, |packed, part| concatenated(packed, part.datatype))
    }
}

/// Returns a class as it lies in registers: a word of no meaning and the address that names it.
pub(super) fn class_bytes(class: IpAddr) -> Vec<u8> {
    [vec![0; 4], address_bytes(class)].concat()
}

/// Returns the number of classes as a type in `nft`.
pub(super) fn class_type(family: Family) -> u32 {
    concatenated(datatype::MARK, address_type(family))
}

fn concatenated(types: u32, datatype: u32) -> u32 {
    types << 6 | datatype
}

/// Returns the number of addresses as a type in `nft`.
pub(super) fn address_type(family: Family) -> u32 {
    match family {
        Family::V4 => datatype::IPV4_ADDRESS,
        Family::V6 => datatype::IPV6_ADDRESS,
    }
}

/// Returns an address as it lies in registers.
pub(super) fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Returns the address that lies in registers like this; `None` if none does.
pub(super) fn address_from(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Returns the mask of a prefix; `None` where all bits count.
fn prefix_mask(family: Family, bits: u8) -> Option<Vec<u8>> {
    match family {
        Family::V4 if bits < 32 => Some((!(u32::MAX >> bits)).to_be_bytes().to_vec()),
        Family::V6 if bits < 128 => Some((!(u128::MAX >> bits)).to_be_bytes().to_vec()),
        Family::V4 | Family::V6 => None,
    }
}

/// Returns a key as it lies in the registers.
pub(super) fn key_bytes(key: &Key, shape: Shape) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    let mut address = |net: &IpNet| bytes.extend_from_slice(&address_bytes(net.network()));
    if !shape.source.is_nothing() {
        address(&key.source);
    }
    if !shape.destination.is_nothing() {
        address(&key.destination);
    }
    let (protocol, port) = match key.service {
        Service::Any => return bytes,
        Service::Tcp(port) => (TCP, port),
        Service::Udp(port) => (UDP, port),
    };
    if Layout::of(shape).is_protocol_alone() {
        return vec![protocol];
    }
    bytes.extend_from_slice(&[protocol, 0, 0, 0]);
    if let Some(port) = port {
        bytes.extend_from_slice(&port.get().to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
    }
    bytes
}
