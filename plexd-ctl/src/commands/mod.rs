//! The commands: each asks plexd-core one thing and turns the answer into a view of its own, whose JSON shape does not
//! depend on the wire.

mod deregister;
mod events;
mod join;
mod peers;
mod ping;
mod policies;
mod status;

pub(crate) use join::TokenError;

use jiff::Timestamp;

use crate::cli::{Cli, Command};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

/// Does what the arguments ask.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Failure::Local { operation: "start", source })?;
    runtime.block_on(dispatch(cli))
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let client = Client::new(&cli.global.socket);
    match cli.command {
        Command::Status => {
            let response = client.status().await?;
            let now = Timestamp::now();
            output::print(&status::Status::new(response, now), &cli.global, now)
        }
        Command::Peers => {
            let response = client.peers().await?;
            let now = Timestamp::now();
            output::print(&peers::Peers::new(response, now), &cli.global, now)
        }
        Command::Policies { command } => policies::run(client, command, &cli.global).await,
        Command::Join(arguments) => join::run(client, arguments, &cli.global).await,
        Command::Deregister(arguments) => deregister::run(client, &arguments, &cli.global).await,
        Command::Ping(arguments) => ping::run(client, &arguments, &cli.global).await,
        Command::Events(arguments) => events::run(client, &arguments, &cli.global).await,
    }
}
