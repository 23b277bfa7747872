//! What registers and maps hold: values and verdicts, as the kernel writes them.

use super::numbers::attribute;
use super::wire::{Attributes, Reader};
use crate::policy::table::Verdict;

/// `NF_ACCEPT`, `NF_DROP`, `NFT_JUMP`, `NFT_GOTO`.
const ACCEPT: i32 = 1;
const DROP: i32 = 0;
const JUMP: i32 = -3;
const GOTO: i32 = -4;
/// `NFT_CONTINUE`: the rule goes on.
const CONTINUE: i32 = -1;

/// A value or a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Data {
    /// Bytes.
    Value(Vec<u8>),
    /// The kernel's code, and the chain it names.
    Verdict(i32, Option<String>),
}

impl Data {
    /// The verdict by which a rule goes on with its next step.
    pub(super) const CONTINUE: Self = Self::Verdict(CONTINUE, None);

    /// Reads what is in an attribute; `None` if there is neither a value nor a verdict.
    pub(super) fn parse(data: Reader<'_>) -> Option<Self> {
        if let Some(value) = data.get(attribute::DATA_VALUE) {
            return Some(Self::Value(value.to_vec()));
        }
        let verdict = data.get(attribute::DATA_VERDICT).map(Reader)?;
        let code = verdict.u32(attribute::VERDICT_CODE)?.cast_signed();
        Some(Self::Verdict(code, verdict.text(attribute::VERDICT_CHAIN)))
    }

    /// Returns it as attributes.
    pub(super) fn attributes(&self) -> Attributes {
        match self {
            Self::Value(bytes) => value(bytes),
            Self::Verdict(code, chain) => verdict(*code, chain.as_deref()),
        }
    }
}

impl From<&Verdict> for Data {
    fn from(verdict: &Verdict) -> Self {
        let (code, chain) = match verdict {
            Verdict::Accept => (ACCEPT, None),
            Verdict::Drop => (DROP, None),
            Verdict::Jump(chain) => (JUMP, Some(chain)),
            Verdict::Goto(chain) => (GOTO, Some(chain)),
        };
        Self::Verdict(code, chain.cloned())
    }
}

/// Returns a value as attributes.
pub(super) fn value(bytes: &[u8]) -> Attributes {
    let mut data = Attributes::default();
    data.bytes(attribute::DATA_VALUE, bytes);
    data
}

fn verdict(code: i32, chain: Option<&str>) -> Attributes {
    let mut inner = Attributes::default();
    inner.bytes(attribute::VERDICT_CODE, &code.to_be_bytes());
    if let Some(chain) = chain {
        inner.text(attribute::VERDICT_CHAIN, chain);
    }
    let mut data = Attributes::default();
    data.nest(attribute::DATA_VERDICT, &inner);
    data
}
