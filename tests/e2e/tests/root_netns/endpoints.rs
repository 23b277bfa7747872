//! Where peers are: by IPv6, inside the tunnel and outside of it, and by name.

use plexd_e2e::{Lab, wait_until};
use serde_json::{Value, json};

use crate::support::{Member, Mesh, SOON};

/// Two nodes that reconcile often, and may nothing yet: they have not heard each other.
fn mesh() -> Mesh {
    Mesh::configured(Lab::new(&["cp", "a", "b"]), "reconcile:\n  interval: 5s\n")
}

fn everything() -> Value {
    json!([{ "src": "*", "dst": "*", "action": "allow" }])
}

/// Shows `member` its only peer with other members.
fn override_peer(mesh: &Mesh, member: &Member, members: &Value) {
    let state = mesh.control_plane.admin("GET", &format!("/admin/nodes/{}", member.id), None);
    let mut peer = state["state"]["peers"][0].clone();
    for (name, value) in members.as_object().into_iter().flatten() {
        peer[name] = value.clone();
    }
    mesh.control_plane.set_state(&member.id, &json!({ "peers": [peer] }));
}

fn endpoint(member: &Member) -> String {
    member.wg("endpoints").split_whitespace().nth(1).unwrap_or_default().to_owned()
}

#[test]
fn the_mesh_and_what_it_runs_on_may_be_ipv6() {
    let mut mesh = mesh();
    mesh.set_rules(&everything());
    mesh.a.wait_peers_up(1);
    // The control plane of the tests gives IPv4 addresses only.
    let addresses = ["fd00:100::1", "fd00:100::2"];
    for (member, address) in [(&mut mesh.a, addresses[0]), (&mut mesh.b, addresses[1])] {
        member.node.take_core().terminate();
        let path = "/var/lib/plexd/identity.json";
        let host = member.node.host();
        let mut identity = host.run(&["cat", path]).succeeded().json();
        identity["mesh_ip"] = json!(address);
        host.shell(None, &format!("echo '{identity}' > {path}")).expect_success();
        member.node.start_core();
    }
    let hosts = [&mesh.a, &mesh.b].map(|member| member.node.host().ipv6());
    for (member, number) in [(&mesh.a, 1), (&mesh.b, 0)] {
        let (address, outside) = (addresses[number], hosts[number]);
        override_peer(
            &mesh,
            member,
            &json!({
                "mesh_ip": address, "allowed_ips": [format!("{address}/128")],
                "endpoint": format!("[{outside}]:51820"),
            }),
        );
    }
    for (member, number) in [(&mesh.a, 1), (&mesh.b, 0)] {
        wait_until(SOON, "a ping by IPv6", || {
            let output = member.node.host().run(&["ping", "-6", "-c1", "-W1", addresses[number]]);
            if output.is_success() { Ok(()) } else { Err(output) }
        });
        assert_eq!(endpoint(member), format!("[{}]:51820", hosts[number]));
        let routes = member.node.host().run(&["ip", "-6", "route", "show", "dev", "plexd0"]).succeeded();
        assert!(routes.stdout.contains(addresses[number]), "{routes}");
    }
    let shown = mesh.a.node.host().run(&["ip", "-4", "address", "show", "dev", "plexd0"]).succeeded();
    assert_eq!(shown.stdout, "", "the address it had is gone");
}

#[test]
fn a_peer_named_by_its_endpoint_is_found_again_where_the_name_leads_now() {
    let mesh = mesh();
    let (a, b) = (&mesh.a, &mesh.b);
    // Only `a` can begin.
    override_peer(&mesh, b, &json!({ "endpoint": "" }));
    let host = a.node.host();
    host.write("/etc/plexd/hosts", 0o644, "127.0.0.1 localhost\n192.0.2.77 b.example.test\n");
    host.run(&["mount", "--bind", "/etc/plexd/hosts", "/etc/hosts"]).expect_success();
    override_peer(&mesh, a, &json!({ "endpoint": "b.example.test:51820" }));
    mesh.set_rules(&everything());
    wait_until(SOON, "the address of the name", || {
        let at = endpoint(a);
        if at == "192.0.2.77:51820" { Ok(()) } else { Err(at) }
    });
    host.write("/etc/plexd/hosts", 0o644, format!("{} b.example.test\n", b.node.host().ipv4()));
    wait_until(SOON, "a ping of where the name leads now", || {
        let output = host.run(&["ping", "-c1", "-W1", &b.mesh_ip]);
        if output.is_success() { Ok(()) } else { Err(output) }
    });
    assert_eq!(endpoint(a), format!("{}:51820", b.node.host().ipv4()));
}
