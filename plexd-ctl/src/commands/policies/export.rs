//! `plexd-ctl policies export`: the table of the policy in force as text that nft loads, printed as it comes.

use serde::Serialize;

use crate::cli::{Format, Global};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Reader};

/// The table. Its fields are the stable JSON shape.
#[derive(Debug, Serialize)]
struct Exported {
    /// For `nft -f`.
    text: String,
}

/// Prints the table; one that breaks off is a failure.
pub(super) async fn run(client: Client, global: &Global) -> Result<(), Failure> {
    let mut pieces = client.export().await?;
    let mut whole = String::new();
    while let Some(text) = pieces.next().await? {
        match global.format() {
            Format::Json => whole += &text,
            Format::Table if output::write(&text)? == Reader::Gone => return Ok(()),
            Format::Table => {}
        }
    }
    if global.format() == Format::Json {
        output::write(&output::json(&Exported { text: whole })?)?;
    }
    Ok(())
}
