//! How the state's values look on disk: JSON of its own, independent of the wire. Private keys of peers are in here:
//! the database is 0600 in a 0700 directory.

use std::borrow::Cow;
use std::net::IpAddr;
use std::num::NonZeroU16;

use bytes::Bytes;
use ipnet::IpNet;
use serde::ser::Error as _;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::model::{DataEntry, OwnKey, Peer, SecretRef, SigningKeys};
use super::payload::Texts;
use crate::policy::{Action, Policy, PolicySet, Rule, Selector, Service};
use crate::types::{PresharedKey, PublicKey, SigningPublicKey};

/// A value that can be kept on disk.
pub trait OnDisk: Sized {
    /// Returns whether its text is on disk and not in memory.
    fn is_left_to_disk(&self) -> bool {
        false
    }
    /// Keeps what of it is long in the blocks of `texts`.
    #[must_use]
    fn gathered(self, _texts: &mut Texts) -> Self {
        self
    }
    /// Returns its text, which is in memory.
    fn to_disk(&self) -> serde_json::Result<Zeroizing<Vec<u8>>>;
    /// Parses its text; `None` if it is not what was written.
    fn from_disk(text: &[u8]) -> Option<Self>;
}

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Option<T> {
    serde_json::from_slice(text).ok()
}

fn render(value: &impl Serialize) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    serde_json::to_vec(value).map(Zeroizing::new)
}

#[derive(Serialize, Deserialize)]
struct PeerOnDisk {
    id: String,
    public_key: String,
    mesh_ip: IpAddr,
    endpoint: Option<String>,
    allowed_ips: Vec<IpNet>,
    psk: Option<Zeroizing<String>>,
}

impl OnDisk for Peer {
    fn to_disk(&self) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        render(&PeerOnDisk {
            id: self.id.to_string(),
            public_key: self.public_key.to_string(),
            mesh_ip: self.mesh_ip,
            endpoint: self.endpoint.as_ref().map(ToString::to_string),
            allowed_ips: self.allowed_ips.iter().copied().collect(),
            psk: self.psk.as_ref().map(PresharedKey::to_base64),
        })
    }

    fn from_disk(text: &[u8]) -> Option<Self> {
        let peer: PeerOnDisk = parse(text)?;
        Some(Self {
            id: peer.id.parse().ok()?,
            public_key: PublicKey::from_base64(&peer.public_key).ok()?,
            mesh_ip: peer.mesh_ip,
            endpoint: peer.endpoint.map(|endpoint| endpoint.parse()).transpose().ok()?,
            allowed_ips: peer.allowed_ips.into_iter().collect(),
            psk: peer.psk.map(|psk| PresharedKey::from_base64(&psk)).transpose().ok()?,
        })
    }
}

/// Beginning of a data entry's text.
#[derive(Serialize, Deserialize)]
struct DataOnDisk<'a> {
    key: Cow<'a, str>,
    content_type: Cow<'a, str>,
    version: i64,
    updated_at: Cow<'a, str>,
}

/// What follows it, before the payload and a brace.
const PAYLOAD: &[u8] = b",\"payload\":";

impl OnDisk for DataEntry {
    fn is_left_to_disk(&self) -> bool {
        self.payload.in_memory().is_none()
    }

    fn gathered(self, texts: &mut Texts) -> Self {
        let payload = self.payload.in_memory().map(|text| texts.payload(&text));
        Self { payload: payload.unwrap_or(self.payload), ..self }
    }

    fn to_disk(&self) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        let payload = self
            .payload
            .in_memory()
            .ok_or_else(|| serde_json::Error::custom("its payload is not in memory"))?;
        let mut text = render(&DataOnDisk {
            key: self.key.as_str().into(),
            content_type: self.content_type.as_str().into(),
            version: self.version,
            updated_at: self.updated_at.as_str().into(),
        })?;
        text.pop();
        text.extend_from_slice(PAYLOAD);
        text.extend_from_slice(&payload);
        text.push(b'}');
        Ok(text)
    }

    fn from_disk(text: &[u8]) -> Option<Self> {
        let (mut head, payload) = divided(text)?;
        head.push(b'}');
        let entry: DataOnDisk<'_> = parse(&head)?;
        Some(Self {
            key: entry.key.into_owned(),
            content_type: entry.content_type.into_owned(),
            payload: Bytes::copy_from_slice(payload).into(),
            version: entry.version,
            updated_at: entry.updated_at.into_owned(),
        })
    }
}

/// Returns the payload within the text of a data entry.
pub(super) fn payload_on_disk(text: &[u8]) -> Option<&[u8]> {
    divided(text).map(|(_, payload)| payload)
}

/// Divides the text of a data entry before and behind what names the payload, which is the last of it. It is one JSON
/// value, as it was checked when it came, and nothing has to look at all its bytes again. Within a text there are no
/// quotes without a backslash.
fn divided(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let at = text.windows(PAYLOAD.len()).position(|part| part == PAYLOAD)?;
    let payload = text[at + PAYLOAD.len()..].strip_suffix(b"}")?;
    (!payload.is_empty()).then(|| (text[..at].to_vec(), payload))
}

#[derive(Serialize, Deserialize)]
struct SecretRefOnDisk {
    key: String,
    version: i64,
}

impl OnDisk for SecretRef {
    fn to_disk(&self) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        render(&SecretRefOnDisk { key: self.key.clone(), version: self.version })
    }

    fn from_disk(text: &[u8]) -> Option<Self> {
        let SecretRefOnDisk { key, version } = parse(text)?;
        Some(Self { key, version })
    }
}

#[derive(Serialize, Deserialize)]
struct SigningKeysOnDisk {
    current: String,
    previous: Option<String>,
    transition_expires: Option<String>,
}

impl OnDisk for SigningKeys {
    fn to_disk(&self) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        render(&SigningKeysOnDisk {
            current: self.current.to_string(),
            previous: self.previous.map(|key| key.to_string()),
            transition_expires: self.transition_expires.map(|time| time.to_string()),
        })
    }

    fn from_disk(text: &[u8]) -> Option<Self> {
        let keys: SigningKeysOnDisk = parse(text)?;
        let key = |text: &str| SigningPublicKey::from_base64(text).ok();
        Some(Self {
            current: key(&keys.current)?,
            previous: match keys.previous {
                Some(text) => Some(key(&text)?),
                None => None,
            },
            transition_expires: keys.transition_expires.map(|time| time.parse()).transpose().ok()?,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct OwnKeyOnDisk {
    rotation_wanted: bool,
    confirmed: Option<String>,
}

impl OnDisk for OwnKey {
    fn to_disk(&self) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        render(&OwnKeyOnDisk {
            rotation_wanted: self.rotation_wanted,
            confirmed: self.confirmed.map(|key| key.to_string()),
        })
    }

    fn from_disk(text: &[u8]) -> Option<Self> {
        let OwnKeyOnDisk { rotation_wanted, confirmed } = parse(text)?;
        let confirmed = confirmed.map(|key| PublicKey::from_base64(&key)).transpose().ok()?;
        Some(Self { rotation_wanted, confirmed })
    }
}

#[derive(Serialize, Deserialize)]
struct PolicyOnDisk {
    id: String,
    rules: Vec<RuleOnDisk>,
}

#[derive(Serialize, Deserialize)]
struct RuleOnDisk {
    src: String,
    dst: String,
    protocol: Option<ProtocolOnDisk>,
    port: Option<NonZeroU16>,
    allow: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ProtocolOnDisk {
    Tcp,
    Udp,
}

impl OnDisk for PolicySet {
    fn to_disk(&self) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        let policies = self.policies.iter().map(|policy| PolicyOnDisk {
            id: policy.id.clone(),
            rules: policy.rules.iter().map(rule_to_disk).collect(),
        });
        render(&policies.collect::<Vec<_>>())
    }

    fn from_disk(text: &[u8]) -> Option<Self> {
        let policies: Vec<PolicyOnDisk> = parse(text)?;
        let policy = |policy: PolicyOnDisk| {
            let rules = policy.rules.into_iter().map(rule_from_disk).collect::<Option<_>>()?;
            Some(Policy { id: policy.id, rules })
        };
        Some(Self { policies: policies.into_iter().map(policy).collect::<Option<_>>()? })
    }
}

fn rule_to_disk(rule: &Rule) -> RuleOnDisk {
    let (protocol, port) = match rule.service {
        Service::Any => (None, None),
        Service::Tcp(port) => (Some(ProtocolOnDisk::Tcp), port),
        Service::Udp(port) => (Some(ProtocolOnDisk::Udp), port),
    };
    RuleOnDisk {
        src: rule.src.to_string(),
        dst: rule.dst.to_string(),
        protocol,
        port,
        allow: rule.action == Action::Allow,
    }
}

fn rule_from_disk(rule: RuleOnDisk) -> Option<Rule> {
    Some(Rule {
        src: selector(&rule.src)?,
        dst: selector(&rule.dst)?,
        service: match (rule.protocol, rule.port) {
            (Some(ProtocolOnDisk::Tcp), port) => Service::Tcp(port),
            (Some(ProtocolOnDisk::Udp), port) => Service::Udp(port),
            (None, None) => Service::Any,
            (None, Some(_)) => return None,
        },
        action: if rule.allow { Action::Allow } else { Action::Deny },
    })
}

fn selector(text: &str) -> Option<Selector> {
    if text == "*" {
        return Some(Selector::Any);
    }
    // A node id begins with a letter, a network does not (contract, section 5); an IPv6 network has a colon and a slash.
    match text.parse::<IpNet>() {
        Ok(net) => Some(Selector::Net(net)),
        Err(_) => text.parse().ok().map(Selector::Node),
    }
}
