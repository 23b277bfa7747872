//! What administrators ask about, as policy understands it: ids of nodes become addresses, names of protocols numbers. Pure.

use std::net::IpAddr;
use std::num::NonZeroU16;

use plexd_proto::admin::v1;
use tonic::Status;

use crate::policy::{ICMP, ICMP_V6, Question, TCP, UDP};
use crate::reconcile::InForce;
use crate::types::NodeId;

/// Characters of what is no address and no id that are shown.
const SHOWN: usize = 64;

/// Why something cannot be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AskError {
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// It names a node that is not there.
    #[error(
        "there is no node {0} now, so it has no address; rules that name it match nothing until it appears; for the ids \
         there are: plexd-ctl peers"
    )]
    NoNode(NodeId),
}

impl From<AskError> for Status {
    fn from(error: AskError) -> Self {
        let message = error.to_string();
        match error {
            AskError::Invalid(_) => Self::invalid_argument(message),
            AskError::NoNode(_) => Self::not_found(message),
        }
    }
}

/// Returns the question that a flow is.
pub(super) fn question(in_force: &InForce, flow: &v1::Flow) -> Result<Question, AskError> {
    let source = address(in_force, &flow.source)?;
    let destination = address(in_force, &flow.destination)?;
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(AskError::Invalid(format!(
            "{} and {} are of two address families: no packet goes from one to the other",
            shown(&flow.source, &source),
            shown(&flow.destination, &destination)
        )));
    }
    let protocol = protocol(&flow.protocol, &source)?;
    let port = u16::try_from(flow.port)
        .map(NonZeroU16::new)
        .map_err(|_| AskError::Invalid(format!("port {} is not between 1 and 65535", flow.port)))?;
    if let (Some(port), false) = (port, matches!(protocol, Some(TCP | UDP))) {
        return Err(AskError::Invalid(format!("port {port} needs a protocol that has ports, tcp or udp")));
    }
    Ok(Question { source, destination, protocol, port })
}

fn address(in_force: &InForce, text: &str) -> Result<IpAddr, AskError> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let id: NodeId = text.parse().map_err(|_| {
        let shown: String = text.chars().take(SHOWN).collect();
        AskError::Invalid(format!("{shown:?} is neither an address nor the id of a node"))
    })?;
    in_force.addresses.get(&id).copied().ok_or(AskError::NoNode(id))
}

/// Shows an end as it was asked for, with its address.
fn shown(text: &str, address: &IpAddr) -> String {
    if text.parse::<IpAddr>().is_ok() { address.to_string() } else { format!("{text} ({address})") }
}

fn protocol(text: &str, address: &IpAddr) -> Result<Option<u8>, AskError> {
    let number = match text {
        "" => return Ok(None),
        "tcp" => TCP,
        "udp" => UDP,
        "icmp" if address.is_ipv4() => ICMP,
        "icmp" => ICMP_V6,
        number => number.parse().map_err(|_| {
            let shown: String = number.chars().take(SHOWN).collect();
            AskError::Invalid(format!("protocol {shown:?} is not tcp, udp, icmp or a number from 0 to 255"))
        })?,
    };
    Ok(Some(number))
}

/// Names protocol and port of what was asked.
pub(super) fn service_text(question: &Question) -> String {
    let protocol = match question.protocol {
        None => return "any protocol".to_owned(),
        Some(TCP) => "tcp".to_owned(),
        Some(UDP) => "udp".to_owned(),
        Some(ICMP | ICMP_V6) => "icmp".to_owned(),
        Some(number) => format!("protocol {number}"),
    };
    question.port.map_or_else(|| protocol.clone(), |port| format!("{protocol} port {port}"))
}
