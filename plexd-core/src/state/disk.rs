//! How the state's values look on disk: JSON of its own, independent of the wire. Private keys of peers are in here:
//! the database is 0600 in a 0700 directory.

use std::net::IpAddr;
use std::num::NonZeroU16;

use bytes::Bytes;
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::model::{DataEntry, OwnKey, Peer, SecretRef, SigningKeys};
use crate::policy::{Action, Policy, PolicySet, Rule, Selector, Service};
use crate::types::{PresharedKey, PublicKey, SigningPublicKey};

/// A value that can be kept on disk.
pub trait OnDisk: Sized {
    /// Returns its text.
    fn to_disk(&self) -> serde_json::Result<Zeroizing<Vec<u8>>>;
    /// Parses its text; `None` if it is not what was written.
    fn from_disk(text: &[u8]) -> Option<Self>;
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Option<T> {
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

#[derive(Serialize, Deserialize)]
struct DataOnDisk {
    key: String,
    content_type: String,
    version: i64,
    updated_at: String,
    payload: Box<RawValue>,
}

impl OnDisk for DataEntry {
    fn to_disk(&self) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        render(&DataOnDisk {
            key: self.key.clone(),
            content_type: self.content_type.clone(),
            version: self.version,
            updated_at: self.updated_at.clone(),
            payload: serde_json::from_slice(&self.payload)?,
        })
    }

    fn from_disk(text: &[u8]) -> Option<Self> {
        let entry: DataOnDisk = parse(text)?;
        Some(Self {
            key: entry.key,
            content_type: entry.content_type,
            payload: Bytes::from(Box::<str>::from(entry.payload).into_string()),
            version: entry.version,
            updated_at: entry.updated_at,
        })
    }
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
