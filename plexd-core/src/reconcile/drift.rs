//! Corrections: what had to be put right, in the words of the drift report (contract, section 3).

/// What kind of thing was put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A peer was missing from WireGuard.
    PeerAdded,
    /// A peer was there that should not be.
    PeerRemoved,
    /// A peer was there with other settings.
    PeerUpdated,
    /// A peer of the control plane could not be taken over.
    PeerRejected,
    /// Policy was missing.
    PolicyRuleAdded,
    /// Policy was there that should not be.
    PolicyRuleRemoved,
    /// A policy set of the control plane was refused.
    PolicyRejected,
    /// The nftables table was gone or edited.
    PolicyRestored,
    /// The mesh address was missing, or another one was there.
    AddressRestored,
    /// A route was missing.
    RouteAdded,
    /// A route was there that should not be.
    RouteRemoved,
    /// The interface was gone, down, or had other settings.
    InterfaceRestored,
    /// Signing keys differed.
    SigningKeysUpdated,
    /// Metadata differed.
    MetadataUpdated,
    /// Data entries differed.
    DataUpdated,
    /// Secret names or versions differed.
    SecretRefsUpdated,
}

impl Kind {
    /// Returns whether it concerns what local applications read, and nothing of the mesh.
    pub fn is_local_state(self) -> bool {
        matches!(self, Self::MetadataUpdated | Self::DataUpdated | Self::SecretRefsUpdated)
    }

    /// Returns the type as on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PeerAdded => "peer_added",
            Self::PeerRemoved => "peer_removed",
            Self::PeerUpdated => "peer_updated",
            Self::PeerRejected => "peer_rejected",
            Self::PolicyRuleAdded => "policy_rule_added",
            Self::PolicyRuleRemoved => "policy_rule_removed",
            Self::PolicyRejected => "policy_rejected",
            Self::PolicyRestored => "policy_restored",
            Self::AddressRestored => "address_restored",
            Self::RouteAdded => "route_added",
            Self::RouteRemoved => "route_removed",
            Self::InterfaceRestored => "interface_restored",
            Self::SigningKeysUpdated => "signing_keys_updated",
            Self::MetadataUpdated => "metadata_updated",
            Self::DataUpdated => "data_updated",
            Self::SecretRefsUpdated => "secret_refs_updated",
        }
    }
}

/// Something that was put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Correction {
    /// What kind of thing.
    pub kind: Kind,
    /// What exactly, for people.
    pub detail: String,
}

impl Correction {
    /// Creates a correction.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}
