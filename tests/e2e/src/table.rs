//! plexd's nftables table, as `nft` shows it from outside.

use crate::Host;

/// Prints what is another after each replacement: the numbers that the kernel gave the table and its rules.
const IDENTIFY: &str = r#"
nft -j list tables | jq --exit-status '.nftables[].table | select(.family == "inet" and .name == "plexd").handle' &&
    nft --handle list chain inet plexd input"#;

/// Returns what tells the table that is in place from one that it replaced, or that replaces it; `None` without one.
#[track_caller]
pub fn table_id(host: &Host) -> Option<String> {
    let output = host.shell(None, IDENTIFY);
    output.is_success().then_some(output.stdout)
}
