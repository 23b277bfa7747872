//! `plexd-demo`: two nodes and a control plane on this machine, shown step by step and checked. Run by `make demo`.
//!
//! The steps run in a process of their own, with the harness of the end-to-end tests; this one waits for it, so that
//! whatever happens to it (a failed step, Ctrl-C) everything is taken down.

mod datagrams;
mod mesh;
mod nodes;
mod serve;
mod stage;
mod state;
mod supervise;
mod tour;

use std::env;
use std::process::ExitCode;

use stage::say;
use supervise::Keep;

/// Name of the demo's lab.
const LAB: &str = "plx-demo";

const USAGE: &str = "\
Shows plexd at work, as root: a control plane and two nodes in network namespaces.

usage: plexd-demo up [--keep]   show it, step by step; --keep leaves it running
       plexd-demo down          remove what --keep left";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["up"] => supervise::up(Keep::No),
        ["up", "--keep"] => supervise::up(Keep::Yes),
        ["down"] => supervise::down(),
        // What `up` starts.
        ["steps"] => tour::steps(Keep::No),
        ["steps", "--keep"] => tour::steps(Keep::Yes),
        ["serve", address, text] => match serve::serve(address, text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(&format!("plexd-demo: cannot serve at {address}: {error}"));
                ExitCode::FAILURE
            }
        },
        ["datagrams", own, peer, seconds] => match datagrams::exchange(own, peer, seconds) {
            Ok(figures) => {
                say(&figures.to_string());
                ExitCode::SUCCESS
            }
            Err(error) => {
                say(&format!("plexd-demo: no datagrams between {own} and {peer}: {error}"));
                ExitCode::FAILURE
            }
        },
        ["--help" | "-h" | "help"] => {
            say(USAGE);
            ExitCode::SUCCESS
        }
        _ => {
            say(USAGE);
            ExitCode::from(2)
        }
    }
}
