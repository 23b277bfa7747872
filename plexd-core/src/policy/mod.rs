//! Policy: from the rules of the control plane to what nftables enforces. Pure: nothing here touches the kernel.
//!
//! - [`PolicySet`]: the rules
//! - [`Context`]: who this node is, and which addresses belong to whom
//! - [`evaluate()`]: what the rules mean; [`visible`]: which peers they let this node know
//! - [`judge()`]: what they decide, and why; [`shadows()`]: which of them never do
//! - [`compile()`]: the same as a [`Table`], whose cost does not grow with the rules; [`export`]: that as nft text

mod compile;
mod context;
mod evaluate;
pub mod export;
mod index;
mod judge;
mod rules;
mod shadow;
pub mod table;
#[cfg(test)]
mod tests;

pub use compile::{CompileError, MAX_ENTRIES, MAX_LOOKUPS, MAX_RULES, compile, compile_plainly};
pub use context::Context;
pub use evaluate::{Decision, Flow, evaluate, visible};
pub use judge::{Judge, Judgement, Outcome, Question, judge};
pub use rules::{Action, Policy, PolicySet, Rule, Selector, Service};
pub use shadow::{Nobody, Shadow, shadows};
pub use table::Table;

pub(crate) use evaluate::{ICMP, ICMP_V6, TCP, UDP};
