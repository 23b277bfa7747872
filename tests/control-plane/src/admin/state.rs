//! `PUT /admin/nodes/{id}/state`: sets the given members of a node's state and sends the events that announce them.
//! Everything is checked before anything is stored.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::unknown_node;
use crate::reply::{self, Refusal, Reply};
use crate::server::App;
use crate::store::Model;
use crate::store::node::{Node, raw};

/// Sections that one event announces whole.
const SECTIONS: [(&str, &str); 4] = [
    ("bridge_config", "bridge_config_updated"),
    ("user_access_config", "user_access_config_updated"),
    ("ingress_config", "ingress_config_updated"),
    ("site_to_site_config", "site_to_site_config_updated"),
];
/// Announced session by session: the documents have no event for the section.
const RELAY: &str = "relay_config";

type Members = BTreeMap<String, Box<RawValue>>;
type Announcement = (&'static str, Box<RawValue>);

#[derive(Serialize)]
struct NodeState<'a> {
    metadata: &'a RawValue,
    data: &'a [Box<RawValue>],
}

#[derive(Serialize)]
struct Policies<'a> {
    policies: &'a RawValue,
}

#[derive(Serialize)]
struct PeerRemoved {
    peer_id: String,
}

#[derive(Serialize)]
struct EndpointChanged {
    peer_id: String,
    endpoint: String,
}

#[derive(Serialize)]
struct SessionRevoked {
    session_id: String,
}

#[derive(Serialize)]
struct Sent {
    events: Vec<String>,
}

pub(super) fn put(app: &App, id: &str, body: &[u8]) -> Result<Reply, Refusal> {
    let members: Members = reply::object(body)?;
    check(&members)?;
    let mut model = app.store.lock();
    let peers_before = model.shown_peers(id);
    let node = model.node_mut(id).ok_or_else(unknown_node)?;
    let relay_before = sessions(node);
    store(node, &members)?;
    node.write_desired()?;
    let mut announcements = announcements(node, &members, &relay_before);
    if members.contains_key("peers") {
        announcements.extend(peer_changes(&peers_before, &model.shown_peers(id)));
    }
    send(&mut model, id, &announcements)
}

fn send(model: &mut Model, id: &str, announcements: &[Announcement]) -> Result<Reply, Refusal> {
    let mut events = Vec::with_capacity(announcements.len());
    for (event_type, payload) in announcements {
        events.extend(model.emit(id, event_type, payload)?);
    }
    Ok(reply::ok(&Sent { events }))
}

/// Only what has to be taken apart is checked; the rest may be as wrong as a test wants it.
fn check(members: &Members) -> Result<(), Refusal> {
    for (name, value) in members {
        let wanted = match name.as_str() {
            "metadata" => '{',
            "policies" | "data" | "peers" => '[',
            "secret_refs" => {
                return Err(Refusal::bad_request("secret_refs follow the secrets: PUT …/secrets/{key}"));
            }
            "signing_keys" => {
                return Err(Refusal::bad_request(
                    "signing_keys follow the key: POST /admin/signing-key/rotate",
                ));
            }
            RELAY => continue,
            section if SECTIONS.iter().any(|(name, _)| *name == section) => continue,
            other => {
                return Err(Refusal::bad_request(format!("unknown state member {other}")));
            }
        };
        if !value.get().starts_with(wanted) && value.get() != "null" {
            let kind = if wanted == '{' { "an object" } else { "an array" };
            return Err(Refusal::bad_request(format!("{name} must be {kind}, or null to unset it")));
        }
    }
    Ok(())
}

fn store(node: &mut Node, members: &Members) -> Result<(), Refusal> {
    // First what can be refused.
    if let Some(data) = members.get("data") {
        let entries: Option<Vec<Box<RawValue>>> = reply::parse(data.get().as_bytes())?;
        node.desired.set_data(entries.unwrap_or_default()).map_err(Refusal::bad_request)?;
    }
    if let Some(peers) = members.get("peers") {
        node.desired.peers = reply::parse(peers.get().as_bytes())?;
    }
    for (name, value) in members {
        let value = (value.get() != "null").then(|| value.clone());
        match name.as_str() {
            "data" | "peers" => {}
            "metadata" => node.desired.metadata = value,
            "policies" => node.desired.policies = value,
            section => match value {
                Some(value) => drop(node.desired.sections.insert(section.to_owned(), value)),
                None => drop(node.desired.sections.remove(section)),
            },
        }
    }
    Ok(())
}

fn announcements(
    node: &Node,
    members: &Members,
    relay_before: &BTreeMap<String, Box<RawValue>>,
) -> Vec<Announcement> {
    let (empty_object, empty_list, null) = (raw(&Members::new()), raw::<[(); 0]>(&[]), raw(&()));
    let mut announcements = Vec::new();
    if members.contains_key("metadata") || members.contains_key("data") {
        let metadata = node.desired.metadata.as_deref().unwrap_or(&empty_object);
        let payload = raw(&NodeState { metadata, data: &node.desired.data });
        announcements.push(("node_state_updated", payload));
    }
    if members.contains_key("policies") {
        let policies = node.desired.policies.as_deref().unwrap_or(&empty_list);
        announcements.push(("policy_updated", raw(&Policies { policies })));
    }
    for (section, event_type) in SECTIONS {
        if members.contains_key(section) {
            let payload = node.desired.sections.get(section).unwrap_or(&null);
            announcements.push((event_type, payload.clone()));
        }
    }
    if members.contains_key(RELAY) {
        announcements.extend(relay_changes(relay_before, &sessions(node)));
    }
    announcements
}

/// The relay sessions by id; those that are no objects with an id are not announced.
fn sessions(node: &Node) -> BTreeMap<String, Box<RawValue>> {
    #[derive(Deserialize)]
    struct RelayConfig {
        sessions: Vec<Box<RawValue>>,
    }
    #[derive(Deserialize)]
    struct Session {
        session_id: String,
    }
    let config = node.desired.sections.get(RELAY);
    let sessions = config.and_then(|config| serde_json::from_str::<RelayConfig>(config.get()).ok());
    sessions
        .map_or_else(Vec::new, |config| config.sessions)
        .into_iter()
        .filter_map(|session| {
            Some((serde_json::from_str::<Session>(session.get()).ok()?.session_id, session))
        })
        .collect()
}

fn relay_changes(
    before: &BTreeMap<String, Box<RawValue>>,
    after: &BTreeMap<String, Box<RawValue>>,
) -> Vec<Announcement> {
    let revoked = before
        .keys()
        .filter(|id| !after.contains_key(*id))
        .map(|id| ("relay_session_revoked", raw(&SessionRevoked { session_id: id.clone() })));
    let assigned = after
        .iter()
        .filter(|(id, session)| before.get(*id).is_none_or(|old| old.get() != session.get()))
        .map(|(_, session)| ("relay_session_assigned", session.clone()));
    revoked.chain(assigned).collect()
}

/// A peer as given: its members, when it is an object at all.
type PeerMembers = BTreeMap<String, serde_json::Value>;

/// What tells a reader of `before` about `after`. Peers without an id are announced whenever their text is new.
fn peer_changes(before: &[Box<RawValue>], after: &[Box<RawValue>]) -> Vec<Announcement> {
    let known: BTreeMap<String, &RawValue> =
        before.iter().filter_map(|peer| Some((peer_id(&members_of(peer))?, &**peer))).collect();
    let kept: BTreeSet<String> = after.iter().filter_map(|peer| peer_id(&members_of(peer))).collect();
    let mut changes: Vec<Announcement> = known
        .keys()
        .filter(|id| !kept.contains(*id))
        .map(|id| ("peer_removed", raw(&PeerRemoved { peer_id: id.clone() })))
        .collect();
    let texts: BTreeSet<&str> = before.iter().map(|peer| peer.get()).collect();
    for peer in after.iter().filter(|peer| !texts.contains(peer.get())) {
        let members = members_of(peer);
        let old = peer_id(&members).and_then(|id| known.get(&id)).map(|old| members_of(old));
        let moved = old.and_then(|old| moved_only(old, members));
        changes.push(moved.unwrap_or_else(|| ("peer_added", peer.clone())));
    }
    changes
}

/// The announcement when nothing but the endpoint differs.
fn moved_only(mut old: PeerMembers, mut new: PeerMembers) -> Option<Announcement> {
    old.remove("endpoint");
    let endpoint = new.remove("endpoint")?.as_str()?.to_owned();
    let peer_id = peer_id(&new)?;
    (old == new).then(|| ("peer_endpoint_changed", raw(&EndpointChanged { peer_id, endpoint })))
}

fn members_of(peer: &RawValue) -> PeerMembers {
    serde_json::from_str(peer.get()).unwrap_or_default()
}

fn peer_id(members: &PeerMembers) -> Option<String> {
    members.get("id")?.as_str().map(str::to_owned)
}
