//! What the control plane wants of this node.

mod model;

pub use model::*;
