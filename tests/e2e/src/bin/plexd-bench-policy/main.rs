//! What of policy can be counted: how soon it is back when somebody flushed the ruleset, and what passes that must not. As
//! root.

mod gap;

fn main() {
    gap::measure();
}
