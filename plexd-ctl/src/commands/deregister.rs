//! `plexd-ctl deregister`: gives the node's identity up. Asks for no confirmation, as scripts call it; says in one line
//! what was done.

use jiff::Timestamp;
use plexd_proto::admin::v1 as wire;
use serde::Serialize;

use crate::cli::{Deregister, Global};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Terminal, View, known, one_line};

/// The identity is given up. Its fields are the stable JSON shape.
#[derive(Debug, Serialize)]
struct Deregistered {
    /// The id the node had; null if it had none.
    node_id: Option<String>,
    /// What the control plane had to do with it: `confirmed`, `unknown` (it did not know the node any more), `not_asked`.
    control_plane: &'static str,
    /// Whether the data directory was emptied, too.
    purged: bool,
    /// What could not be removed, each with the reason.
    remains: Vec<String>,
}

impl Deregistered {
    fn new(response: wire::DeregisterResponse, arguments: &Deregister) -> Self {
        let control_plane = match response.farewell() {
            wire::Farewell::Confirmed => "confirmed",
            wire::Farewell::Unknown => "unknown",
            wire::Farewell::NotAsked | wire::Farewell::Unspecified => "not_asked",
        };
        Self {
            node_id: known(response.node_id),
            control_plane,
            purged: arguments.purge,
            remains: response.remains,
        }
    }
}

impl View for Deregistered {
    fn render(&self, _terminal: &Terminal) -> String {
        let identity = match (self.node_id.as_deref().map(one_line), self.control_plane) {
            (None, _) => "this node had no identity".to_owned(),
            (Some(node), "confirmed") => format!("{node} is deregistered"),
            (Some(node), "unknown") => {
                format!("{node} is deregistered; the control plane did not know it any more")
            }
            (Some(node), _) => {
                format!(
                    "{node} is given up on this node only; the control plane still lists it: remove it there"
                )
            }
        };
        let purged = if self.purged { "; the data directory is emptied" } else { "" };
        format!("{identity}{purged}; to enrol again: plexd-ctl join\n")
    }
}

/// Gives the identity up.
pub(crate) async fn run(client: Client, arguments: &Deregister, global: &Global) -> Result<(), Failure> {
    let request = wire::DeregisterRequest { purge: arguments.purge, force: arguments.force };
    let deregistered = Deregistered::new(client.deregister(request).await?, arguments);
    output::print(&deregistered, global, Timestamp::now())?;
    if deregistered.remains.is_empty() { Ok(()) } else { Err(Failure::Remains(deregistered.remains)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Colours;

    fn told(node_id: &str, farewell: wire::Farewell, purge: bool) -> String {
        let response = wire::DeregisterResponse {
            node_id: node_id.into(),
            farewell: farewell.into(),
            remains: Vec::new(),
        };
        let terminal = Terminal { now: Timestamp::UNIX_EPOCH, colours: Colours::Plain };
        Deregistered::new(response, &Deregister { purge, force: false }).render(&terminal)
    }

    #[test]
    fn one_line_says_what_was_done_and_what_is_left_to_do() {
        let cases = [
            (
                ("n_1", wire::Farewell::Confirmed, false),
                "n_1 is deregistered; to enrol again: plexd-ctl join\n",
            ),
            (
                ("n_1", wire::Farewell::Unknown, true),
                "n_1 is deregistered; the control plane did not know it any more; the data directory is emptied; to enrol \
                 again: plexd-ctl join\n",
            ),
            (
                ("n_1\u{1b}[2J", wire::Farewell::NotAsked, false),
                "n_1\\u{1b}[2J is given up on this node only; the control plane still lists it: remove it there; to enrol \
                 again: plexd-ctl join\n",
            ),
            (
                ("", wire::Farewell::NotAsked, true),
                "this node had no identity; the data directory is emptied; to enrol again: plexd-ctl join\n",
            ),
        ];
        for ((node_id, farewell, purge), expected) in cases {
            assert_eq!(told(node_id, farewell, purge), expected);
        }
    }
}
