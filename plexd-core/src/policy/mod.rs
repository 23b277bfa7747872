//! Policy: from the rules of the control plane to what nftables enforces. Pure: nothing here touches the kernel.

mod rules;

pub use rules::{Action, Policy, PolicySet, Rule, Selector, Service};
