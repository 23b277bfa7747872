//! Policy: from the rules of the control plane to what nftables enforces. Pure: nothing here touches the kernel.
//!
//! - [`PolicySet`]: the rules
//! - [`Context`]: who this node is, and which addresses belong to whom
//! - [`evaluate()`]: what the rules mean; [`visible`]: which peers they let this node know
//! - [`compile()`]: the same as a [`Table`], whose cost does not grow with the rules

mod compile;
mod context;
mod evaluate;
mod rules;
pub mod table;
#[cfg(test)]
mod tests;

pub use compile::{CompileError, MAX_ENTRIES, MAX_RULES, compile, compile_plainly};
pub use context::Context;
pub use evaluate::{Decision, Flow, evaluate, visible};
pub use rules::{Action, Policy, PolicySet, Rule, Selector, Service};
pub use table::Table;

pub(crate) use evaluate::{TCP, UDP};
