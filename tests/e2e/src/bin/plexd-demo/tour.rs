//! The order of the steps, and the last line.

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::process::ExitCode;
use std::sync::Mutex;

use nix::sys::signal::SigSet;
use plexd_e2e::{ControlPlane, Lab, Node};

use crate::stage::{remark, say, step};
use crate::supervise::Keep;
use crate::{mesh, nodes, state};

/// What the first panic said.
static FAILURE: Mutex<Option<String>> = Mutex::new(None);

/// All that runs. Fields are dropped in this order.
pub(crate) struct Demo {
    pub(crate) a: Node,
    pub(crate) b: Node,
    pub(crate) a_id: String,
    pub(crate) b_id: String,
    /// Address of `b` in the mesh.
    pub(crate) b_address: String,
    pub(crate) control_plane: ControlPlane,
    pub(crate) lab: Lab,
}

/// Runs the steps.
pub(crate) fn steps(keep: Keep) -> ExitCode {
    // The parent waits for signals and has them blocked; here, and in what is started from here, they are as usual.
    if let Err(error) = SigSet::all().thread_unblock() {
        say(&format!("demo: cannot unblock signals: {error}"));
        return ExitCode::FAILURE;
    }
    set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("an unknown failure").to_owned();
        if let Ok(mut failure) = FAILURE.lock() {
            failure.get_or_insert(message);
        }
    }));
    let shown = catch_unwind(AssertUnwindSafe(|| show(keep)));
    if shown.is_ok() {
        say(&format!("\ndemo: {} steps passed", step()));
        return ExitCode::SUCCESS;
    }
    let failure = FAILURE.lock().ok().and_then(|mut failure| failure.take()).unwrap_or_default();
    // The last line is one line; what a command printed comes before it.
    let (first, rest) = failure.split_once('\n').unwrap_or((&failure, ""));
    say(&format!("\n{}\ndemo: step {} failed: {first}", rest.trim_end(), step()));
    ExitCode::FAILURE
}

fn show(keep: Keep) {
    let (lab, control_plane) = nodes::lay_the_ground();
    let mut demo = nodes::enrol(lab, control_plane);
    nodes::show_processes(&mut demo);
    mesh::show_handshake(&demo);
    let servers = mesh::show_policed_http(&demo);
    mesh::show_ciphertext(&demo);
    mesh::show_policy_change(&demo);
    mesh::show_table(&demo);
    state::show_reads(&demo);
    state::show_secrets(&demo);
    state::show_reports(&demo);
    state::show_sync(&demo);
    state::show_deletion(&demo);
    state::show_tcp(&demo);
    state::show_outsiders(&demo);
    if keep == Keep::Yes {
        servers.into_iter().for_each(plexd_e2e::Daemon::leave);
        leave(demo);
    }
}

/// Leaves everything running and says how to look around.
fn leave(demo: Demo) {
    let Demo { a, b, a_id, b_address, control_plane, lab, .. } = demo;
    say("");
    say("It is left running. To look around, as root:");
    for host in [a.host(), b.host(), control_plane.host()] {
        remark(&format!("{}   # into host {}", host.enter(), host.name()));
    }
    say("On a:");
    for line in [
        "plexd-ctl status",
        "plexd-ctl peers",
        "plexd-ctl policies",
        "wg show plexd0",
        "nft list table inet plexd",
        "curl -s --unix-socket /var/run/plexd/api.sock http://localhost/v1/state | jq .",
        &format!("curl -s http://{b_address}:9090/"),
    ] {
        remark(line);
    }
    say("On cp, the control plane:");
    remark("curl -s http://127.0.0.1:8444/admin/nodes | jq .");
    remark(&format!("curl -s http://127.0.0.1:8444/admin/nodes/{a_id}/received | jq .reports_current"));
    say(&format!("Logs: {}", a.host().directory().with_file_name("*/*.log").display()));
    say("To remove it all: make demo-down");
    a.leave();
    b.leave();
    control_plane.leave();
    lab.leave();
}
