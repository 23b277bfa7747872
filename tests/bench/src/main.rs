//! What the Local Node API does, by the real programs in network namespaces, beside a bare handler that has the same bytes
//! in memory, and beside what the agent of old did (`go.rs`).
//!
//! `plexd-bench-api [--entries N[,N...]] [PART...]`, as root; the parts are `idle`, `start`, `reads`, `secrets` and `puts`.
//! The program is also two others, for itself: `bare`, the handler, and `start`, which times a start from within the host.

mod answer;
mod bare;
mod door;
mod exchange;
mod findings;
mod go;
mod idle;
mod load;
mod plan;
mod processes;
mod puts;
mod reads;
mod scene;
mod secrets;
mod start;

use std::env;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [bare::WORD, socket, answers] => bare::serve(socket, answers),
        [start::WORD, core, api, config, socket, length] => {
            start::time_one([core, api], config, socket, length);
        }
        _ => plan::Plan::of(&words).carry_out(),
    }
}
