//! nftables' numbers (`linux/netfilter/nf_tables.h`), those that are used.

/// Message types of nftables (`enum nf_tables_msg_types`).
pub(super) mod message {
    pub(in super::super) const NEWTABLE: u16 = 0;
    pub(in super::super) const GETTABLE: u16 = 1;
    pub(in super::super) const DELTABLE: u16 = 2;
    pub(in super::super) const NEWCHAIN: u16 = 3;
    pub(in super::super) const GETCHAIN: u16 = 4;
    pub(in super::super) const DELCHAIN: u16 = 5;
    pub(in super::super) const NEWRULE: u16 = 6;
    pub(in super::super) const GETRULE: u16 = 7;
    pub(in super::super) const DELRULE: u16 = 8;
    pub(in super::super) const NEWSET: u16 = 9;
    pub(in super::super) const GETSET: u16 = 10;
    pub(in super::super) const DELSET: u16 = 11;
    pub(in super::super) const NEWSETELEM: u16 = 12;
    pub(in super::super) const GETSETELEM: u16 = 13;
    pub(in super::super) const NEWGEN: u16 = 15;
    pub(in super::super) const GETGEN: u16 = 16;
    pub(in super::super) const NEWOBJ: u16 = 18;
    pub(in super::super) const GETOBJ: u16 = 19;
    pub(in super::super) const DELOBJ: u16 = 20;
    pub(in super::super) const GETFLOWTABLE: u16 = 23;
    pub(in super::super) const DELFLOWTABLE: u16 = 24;
}

/// Attribute types, by what they are of (`enum nft_*_attributes`).
pub(super) mod attribute {
    /// In messages about a table and all that is in one.
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const TABLE_FLAGS: u16 = 2;
    pub(in super::super) const TABLE_HANDLE: u16 = 4;

    pub(in super::super) const CHAIN_HANDLE: u16 = 2;
    pub(in super::super) const CHAIN_NAME: u16 = 3;
    pub(in super::super) const CHAIN_HOOK: u16 = 4;
    pub(in super::super) const CHAIN_POLICY: u16 = 5;
    pub(in super::super) const CHAIN_TYPE: u16 = 7;
    pub(in super::super) const CHAIN_FLAGS: u16 = 10;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;

    pub(in super::super) const RULE_CHAIN: u16 = 2;
    pub(in super::super) const RULE_HANDLE: u16 = 3;
    pub(in super::super) const RULE_EXPRESSIONS: u16 = 4;
    pub(in super::super) const LIST_ELEMENT: u16 = 1;
    pub(in super::super) const EXPR_NAME: u16 = 1;
    pub(in super::super) const EXPR_DATA: u16 = 2;

    pub(in super::super) const SET_NAME: u16 = 2;
    pub(in super::super) const SET_FLAGS: u16 = 3;
    pub(in super::super) const SET_KEY_TYPE: u16 = 4;
    pub(in super::super) const SET_KEY_LEN: u16 = 5;
    pub(in super::super) const SET_DATA_TYPE: u16 = 6;
    pub(in super::super) const SET_DATA_LEN: u16 = 7;
    pub(in super::super) const SET_DESC: u16 = 9;
    pub(in super::super) const SET_ID: u16 = 10;
    pub(in super::super) const SET_HANDLE: u16 = 16;
    pub(in super::super) const SET_EXPR: u16 = 17;
    pub(in super::super) const SET_EXPRESSIONS: u16 = 18;
    pub(in super::super) const DESC_SIZE: u16 = 1;

    pub(in super::super) const ELEMENTS: u16 = 3;
    pub(in super::super) const ELEMENTS_SET_ID: u16 = 4;
    pub(in super::super) const ELEMENT_KEY: u16 = 1;
    pub(in super::super) const ELEMENT_DATA: u16 = 2;
    pub(in super::super) const ELEMENT_FLAGS: u16 = 3;
    pub(in super::super) const ELEMENT_TIMEOUT: u16 = 4;
    pub(in super::super) const ELEMENT_EXPR: u16 = 7;
    pub(in super::super) const ELEMENT_OBJREF: u16 = 9;
    pub(in super::super) const ELEMENT_KEY_END: u16 = 10;
    pub(in super::super) const ELEMENT_EXPRESSIONS: u16 = 11;

    pub(in super::super) const DATA_VALUE: u16 = 1;
    pub(in super::super) const DATA_VERDICT: u16 = 2;
    pub(in super::super) const VERDICT_CODE: u16 = 1;
    pub(in super::super) const VERDICT_CHAIN: u16 = 2;

    pub(in super::super) const OBJECT_NAME: u16 = 2;
    pub(in super::super) const OBJECT_TYPE: u16 = 3;
    pub(in super::super) const OBJECT_DATA: u16 = 4;
    pub(in super::super) const OBJECT_HANDLE: u16 = 6;
    pub(in super::super) const COUNTER_BYTES: u16 = 1;
    pub(in super::super) const COUNTER_PACKETS: u16 = 2;

    pub(in super::super) const FLOWTABLE_NAME: u16 = 2;
    pub(in super::super) const FLOWTABLE_HANDLE: u16 = 5;

    pub(in super::super) const META_DREG: u16 = 1;
    pub(in super::super) const META_KEY: u16 = 2;
    pub(in super::super) const CT_DREG: u16 = 1;
    pub(in super::super) const CT_KEY: u16 = 2;
    pub(in super::super) const CT_DIRECTION: u16 = 3;
    pub(in super::super) const CMP_SREG: u16 = 1;
    pub(in super::super) const CMP_OP: u16 = 2;
    pub(in super::super) const CMP_DATA: u16 = 3;
    pub(in super::super) const PAYLOAD_DREG: u16 = 1;
    pub(in super::super) const PAYLOAD_BASE: u16 = 2;
    pub(in super::super) const PAYLOAD_OFFSET: u16 = 3;
    pub(in super::super) const PAYLOAD_LEN: u16 = 4;
    pub(in super::super) const BITWISE_SREG: u16 = 1;
    pub(in super::super) const BITWISE_DREG: u16 = 2;
    pub(in super::super) const BITWISE_LEN: u16 = 3;
    pub(in super::super) const BITWISE_MASK: u16 = 4;
    pub(in super::super) const BITWISE_XOR: u16 = 5;
    pub(in super::super) const BITWISE_OP: u16 = 6;
    pub(in super::super) const LIMIT_RATE: u16 = 1;
    pub(in super::super) const LIMIT_UNIT: u16 = 2;
    pub(in super::super) const LIMIT_BURST: u16 = 3;
    pub(in super::super) const LIMIT_TYPE: u16 = 4;
    pub(in super::super) const LIMIT_FLAGS: u16 = 5;
    pub(in super::super) const LOG_PREFIX: u16 = 2;
    pub(in super::super) const LOG_LEVEL: u16 = 5;
    pub(in super::super) const OBJREF_TYPE: u16 = 1;
    pub(in super::super) const OBJREF_NAME: u16 = 2;
    pub(in super::super) const LOOKUP_SET: u16 = 1;
    pub(in super::super) const LOOKUP_SREG: u16 = 2;
    pub(in super::super) const LOOKUP_DREG: u16 = 3;
    pub(in super::super) const LOOKUP_FLAGS: u16 = 5;
    pub(in super::super) const IMMEDIATE_DREG: u16 = 1;
    pub(in super::super) const IMMEDIATE_DATA: u16 = 2;

    pub(in super::super) const GENERATION_ID: u16 = 1;
}

/// What connection tracking is asked for (`enum nft_ct_keys`).
pub(super) mod ct {
    pub(in super::super) const STATE: u32 = 0;
    pub(in super::super) const PROTOCOL: u32 = 10;
    pub(in super::super) const PORT_DESTINATION: u32 = 12;
    pub(in super::super) const SOURCE_V4: u32 = 19;
    pub(in super::super) const DESTINATION_V4: u32 = 20;
    pub(in super::super) const SOURCE_V6: u32 = 21;
    pub(in super::super) const DESTINATION_V6: u32 = 22;

    /// `IP_CT_DIR_ORIGINAL`.
    pub(in super::super) const ORIGINAL: u8 = 0;
    /// `NF_CT_STATE_INVALID_BIT`.
    pub(in super::super) const STATE_INVALID: u32 = 1;
    /// `NF_CT_STATE_BIT(IP_CT_NEW)`: no packet of the other direction has been seen.
    pub(in super::super) const STATE_NEW: u32 = 1 << 3;
    /// `NF_CT_STATE_UNTRACKED_BIT`.
    pub(in super::super) const STATE_UNTRACKED: u32 = 1 << 6;
}

/// What of a packet is asked for (`enum nft_meta_keys`).
pub(super) mod meta {
    pub(in super::super) const IIFNAME: u32 = 6;
    pub(in super::super) const OIFNAME: u32 = 7;
    pub(in super::super) const NFPROTO: u32 = 15;
    pub(in super::super) const L4PROTO: u32 = 16;
}

/// Numbers by which only `nft` knows what a map's key is of (`enum datatypes` of its sources).
pub(super) mod datatype {
    pub(in super::super) const IPV4_ADDRESS: u32 = 7;
    pub(in super::super) const IPV6_ADDRESS: u32 = 8;
    pub(in super::super) const INET_PROTOCOL: u32 = 12;
    pub(in super::super) const INET_SERVICE: u32 = 13;
    pub(in super::super) const MARK: u32 = 19;
}

/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
pub(super) const PAYLOAD_OF_TRANSPORT: u32 = 2;
/// `NFT_CHAIN_BINDING`: a chain that belongs to a rule.
pub(super) const CHAIN_IS_BOUND: u32 = 0x4;
/// `NFT_SET_ANONYMOUS`: a set that belongs to a rule.
pub(super) const SET_IS_ANONYMOUS: u32 = 0x1;
/// `NFT_SET_INTERVAL`: an element is where something begins, or where it ends.
pub(super) const SET_IS_INTERVAL: u32 = 0x4;
/// `NFT_SET_MAP`.
pub(super) const SET_IS_MAP: u32 = 0x8;
/// `NFT_SET_ELEM_INTERVAL_END`.
pub(super) const ELEMENT_IS_END: u32 = 0x1;
/// `NFT_SET_ELEM_CATCHALL`, since Linux 5.13: it has no key and stands for what no other element has.
pub(super) const ELEMENT_IS_REST: u32 = 0x2;
/// `NFT_DATA_VERDICT`: a map's values are verdicts.
pub(super) const DATA_IS_VERDICT: u32 = 0xffff_ff00;
/// `NFT_OBJECT_COUNTER`.
pub(super) const OBJECT_IS_COUNTER: u32 = 1;
