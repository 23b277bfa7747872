//! The control plane of a lab, as a host across the bridge sees it. Needs root and plexd-devcp.

use plexd_e2e::{ControlPlane, Host, Lab, Output};
use serde_json::json;

/// A public key as a node would send it: 32 bytes, base64.
const PUBLIC_KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

fn register(from: &Host, control_plane: &ControlPlane, token: &str) -> Output {
    from.write("/etc/plexd/ca.pem", 0o644, control_plane.ca_pem());
    let body = json!({ "token": token, "public_key": PUBLIC_KEY, "hostname": from.name(), "metadata": {} });
    let url = format!("{}/v1/register", control_plane.url());
    let line = ["curl", "-sS", "--max-time", "20", "--cacert", "/etc/plexd/ca.pem", "-w", "\n%{http_code}"];
    from.run(&[&line[..], &["-H", "Content-Type: application/json", "-d", &body.to_string(), &url]].concat())
}

#[test]
fn a_node_registers_over_tls_once_per_token_and_is_remembered() {
    let lab = Lab::new(&["cp", "a"]);
    let mut control_plane = ControlPlane::start(lab.host("cp"));
    let token = control_plane.token();

    let first = register(lab.host("a"), &control_plane, &token).succeeded();
    assert!(first.stdout.ends_with("\n201"), "{first}");
    let refused = register(lab.host("a"), &control_plane, "plx_enroll_never_made").succeeded();
    assert!(refused.stdout.ends_with("\n401"), "{refused}");

    let nodes = control_plane.admin("GET", "/admin/nodes", None);
    control_plane.stop();
    assert_eq!(register(lab.host("a"), &control_plane, &token).code, Some(7), "nobody listens");
    control_plane.start_again();
    assert_eq!(control_plane.admin("GET", "/admin/nodes", None), nodes);
    assert!(nodes.to_string().contains(PUBLIC_KEY), "{nodes}");
}

#[test]
fn a_lab_knows_nothing_of_another_labs_control_plane() {
    let (one, two) = (Lab::new(&["cp"]), Lab::new(&["cp"]));
    let (one, two) = (ControlPlane::start(one.host("cp")), ControlPlane::start(two.host("cp")));
    assert_ne!(one.ca_pem(), two.ca_pem());
}
