//! Fuzz targets: whatever the control plane sends, nothing panics, grows or is applied that should not be, and no error
//! shows a key (contract, section 2); whatever an application sends is answered as the reference has it, and read in one
//! way only (section 6). A target is a function of bytes; the smoke run (`tests/smoke.rs`, part of
//! `make test`) and the guided fuzzer (`src/bin/guided.rs`, `make fuzz`) call the same ones.
//!
//! - [`targets`]: the targets, and what they check in common
//! - [`mod@reference`]: second implementations to compare with, as plain as possible
//! - [`planted`]: key material to be looked for in what is shown
//! - [`corpus`], [`mutate`]: inputs in the tree, and what the smoke run makes of them

pub mod corpus;
pub mod mutate;
pub mod planted;
pub mod reference;
pub mod targets;

/// A fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in `corpus`.
    pub name: &'static str,
    /// Does with the bytes what plexd-core or plexd-api does with them; panics if that breaks a rule.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "sse", run: targets::sse::stream },
    Target { name: "envelope", run: targets::envelope::envelope },
    Target { name: "event", run: targets::event::events },
    Target { name: "state", run: targets::state::states },
    Target { name: "register", run: targets::answers::register },
    Target { name: "rotate", run: targets::answers::rotate },
    Target { name: "heartbeat", run: targets::answers::heartbeat },
    Target { name: "endpoint", run: targets::answers::endpoint },
    Target { name: "secret", run: targets::answers::secret },
    Target { name: "refusal", run: targets::answers::refusal },
    Target { name: "policy", run: targets::policy::policies },
    Target { name: "texts", run: targets::texts::texts },
    Target { name: "config", run: targets::texts::config },
    Target { name: "connection", run: targets::connection::connection },
    Target { name: "path", run: targets::requests::path },
    Target { name: "conditions", run: targets::requests::conditions },
    Target { name: "report", run: targets::requests::report },
    Target { name: "rewriting", run: targets::requests::rewriting },
    Target { name: "proof", run: targets::proof::proof },
];

/// Returns the target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}

/// Parts of an input that are to be seen one after the other: what is between bytes 0xff, which no UTF-8 text has. At
/// most 16.
pub(crate) fn parts(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split(|byte| *byte == 0xff).take(16)
}
