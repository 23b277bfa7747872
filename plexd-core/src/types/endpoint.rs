//! Where a peer is reached.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// The UDP address of a peer: an address, or a DNS name to be resolved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// Address and port.
    Address(SocketAddr),
    /// DNS name and port.
    Name {
        /// Host name: letters, digits, `-`, `_` and dots.
        host: Box<str>,
        /// UDP port, not 0.
        port: u16,
    },
}

/// The text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("endpoint {0:?} is not HOST:PORT (port 1 to 65535; IPv6 addresses in brackets)")]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || EndpointError(text.chars().take(300).collect());
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(error()) } else { Ok(Self::Address(address)) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(error)?;
        if is_host_name(host) { Ok(Self::Name { host: host.into(), port }) } else { Err(error()) }
    }
}

fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    // A name whose last label is a number would be an address written wrongly.
    let last_is_number = host
        .trim_end_matches('.')
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= 253
        && host.parse::<IpAddr>().is_err()
        && !last_is_number
        && host.trim_end_matches('.').split('.').all(label)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_endpoints() {
        for good in ["203.0.113.10:51820", "[2001:db8::1]:51820", "vpn.example.com:1", "localhost:65535"] {
            assert_eq!(good.parse::<Endpoint>().map(|endpoint| endpoint.to_string()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn what_cannot_be_reached_is_no_endpoint() {
        for bad in
            ["", "host", "host:0", "host:99999", "1.2.3.4:0", "1.2.3:5", "a b:1", "-:x", "2001:db8::1:5"]
        {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
