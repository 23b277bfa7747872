//! Policy sets that are wrong: told with the reason and the rule, as degraded and as drift, and the set before stays enforced,
//! untouched in the kernel.

use std::time::Duration;

use plexd_e2e::{table_id, wait_until};
use serde_json::{Value, json};

use super::{allow_tcp, corrections, wait_replaced};
use crate::support::{SOON, Single};

/// How long a set of megabytes may take to be refused.
const LARGE: Duration = Duration::from_mins(1);

/// A rule like one that is valid, but for these members, and words of why it is refused.
fn wrong_rules() -> Vec<(Value, &'static str)> {
    vec![
        (json!({ "action": "drop" }), r#"action "drop" is neither allow nor deny"#),
        (json!({ "action": "" }), r#"action "" is neither"#),
        (json!({ "action": null }), "action"),
        (json!({ "action": "Allow" }), r#"action "Allow""#),
        (json!({ "protocol": "icmp" }), r#"protocol "icmp" is not tcp, udp or empty"#),
        (json!({ "protocol": "TCP" }), r#"protocol "TCP""#),
        (json!({ "protocol": "" }), "port 443 needs a protocol"),
        (json!({ "protocol": null }), "port 443 needs a protocol"),
        (json!({ "protocol": 6 }), "expected a string"),
        (json!({ "port": 65_536 }), "port 65536 is not between 0 and 65535"),
        (json!({ "port": -1 }), "port -1 is not between"),
        (json!({ "port": 0.5 }), "expected i64"),
        (json!({ "port": "443" }), "expected i64"),
        (json!({ "src": "" }), "src is empty"),
        (json!({ "dst": "" }), "dst is empty"),
        (json!({ "src": null }), "src"),
        (json!({ "src": "10.100.0.300" }), "src"),
        (json!({ "src": "10.100.0.0/33" }), "src"),
        (json!({ "dst": "fd00::1/129" }), "dst"),
        (json!({ "dst": "10.100.0" }), "dst"),
        (json!({ "dst": "fd00:::1" }), "dst"),
        (json!({ "src": "10.100.0.1-10.100.0.9" }), "src"),
        (json!({ "src": "**" }), "src"),
        (json!({ "src": "bad id" }), "src"),
        (json!({ "src": ["*"] }), "expected a string"),
    ]
}

fn rule(changes: &Value) -> Value {
    let mut rule = json!({ "src": "*", "dst": "*", "port": 443, "protocol": "tcp", "action": "allow" });
    for (name, value) in changes.as_object().into_iter().flatten() {
        if value.is_null() {
            rule.as_object_mut().into_iter().for_each(|rule| drop(rule.remove(name)));
        } else {
            rule[name] = value.clone();
        }
    }
    rule
}

/// A node with a policy in force, to be given worse ones.
struct Enforcing {
    single: Single,
    table: String,
    id: Option<String>,
}

impl Enforcing {
    fn new() -> Self {
        let single = Single::new("");
        let host = single.a.node.host();
        let id = table_id(host);
        single.control_plane.set_state(&single.a.id, &json!({ "policies": good() }));
        let id = wait_replaced(host, id.as_deref());
        let table = single.a.table();
        Self { single, table, id }
    }

    /// Gives it a set that is refused for a reason that has all of `words`, with nothing changed in the kernel.
    #[track_caller]
    fn refuses(&self, policies: &Value, words: &[&str], deadline: Duration) {
        let Single { a, control_plane, .. } = &self.single;
        let before = corrections(control_plane, a, "policy_rejected").len();
        control_plane.set_state(&a.id, &json!({ "policies": policies }));
        let says = |text: &str| words.iter().all(|word| text.contains(word));
        wait_until(deadline, &format!("a refusal that says {words:?}"), || {
            let status = a.node.status();
            let rejected = status["policy"]["rejected"].as_str().unwrap_or_default();
            if status["health"] == "degraded" && says(rejected) { Ok(()) } else { Err(status.to_string()) }
        });
        wait_until(SOON, &format!("drift that says {words:?}"), || {
            let told = corrections(control_plane, a, "policy_rejected");
            let new = told.get(before..).unwrap_or_default();
            if new.iter().any(|detail| says(detail)) { Ok(()) } else { Err(new.join("; ")) }
        });
        assert_eq!(table_id(a.node.host()), self.id, "{words:?}: the table was put in place anew");
    }

    /// Gives it the good set again, which ends the refusal.
    #[track_caller]
    fn recovers(&self) {
        let Single { a, control_plane, .. } = &self.single;
        control_plane.set_state(&a.id, &json!({ "policies": good() }));
        a.wait_status("the end of the refusal", |status| {
            status["policy"]["rejected"].is_null() && status["health"] == "healthy"
        });
        assert_eq!(a.table(), self.table, "what was in force all the time");
        assert_eq!(table_id(a.node.host()), self.id, "the table was put in place anew");
        let policies = a.node.ctl_json(&["policies"]).to_string();
        assert!(policies.contains("10.77.0.1"), "{policies}");
    }
}

fn good() -> Value {
    let rules =
        json!([rule(&json!({ "src": "10.77.0.1" })), rule(&json!({ "action": "deny" })), allow_tcp(8080)]);
    json!([{ "id": "good", "rules": rules }])
}

#[test]
fn every_kind_of_wrong_rule_is_refused_with_its_set_and_named() {
    let node = Enforcing::new();
    for (number, (changes, reason)) in (1_usize..).zip(wrong_rules()) {
        // What is right about the set is not applied either. Its place tells the refusals apart.
        let mut rules = vec![rule(&json!({ "src": "10.66.0.1" })); number];
        rules.push(rule(&changes));
        let policies =
            json!([{ "id": "first", "rules": [rule(&json!({}))] }, { "id": "second", "rules": rules }]);
        let place = format!(r#"policy "second", rule {}: "#, number + 1);
        node.refuses(&policies, &[&place, reason], SOON);
    }
    node.recovers();
}

#[test]
fn sets_that_are_wrong_as_a_whole_are_refused_and_an_empty_one_denies_everything() {
    let node = Enforcing::new();
    let one = |id: &str| json!({ "id": id, "rules": [rule(&json!({}))] });
    let sets = [
        (json!([one("twice"), one("once"), one("twice")]), r#"policy "twice" occurs twice"#),
        (json!([one("")]), "policy number 1 has an empty id"),
        (json!([one("a"), { "rules": [] }]), "policy number 2"),
        (json!([one("a"), "b"]), "policy number 2"),
        (json!([{ "id": "a", "rules": {} }]), "policy number 1"),
    ];
    for (policies, reason) in sets {
        node.refuses(&policies, &[reason], SOON);
    }
    let many = |count: u32| {
        let rules: Vec<_> = (0..count)
            .map(|n| rule(&json!({ "src": format!("10.{}.{}.1", 128 + n / 250, n % 250) })))
            .collect();
        json!([{ "id": "many", "rules": rules }])
    };
    node.refuses(&many(20_001), &[r#"policy "many""#, "20000 rules"], LARGE);
    node.recovers();

    let Single { a, control_plane, .. } = &node.single;
    let before = corrections(control_plane, a, "policy_rejected").len();
    control_plane.set_state(&a.id, &json!({ "policies": [] }));
    wait_replaced(a.node.host(), node.id.as_deref());
    assert!(!a.table().contains("10.77.0.1"), "{}", a.table());
    let status = a.wait_status("no policies", |status| status["policy"]["policies"] == 0);
    assert_eq!(
        (&status["health"], &status["policy"]["rejected"]),
        (&json!("healthy"), &Value::Null),
        "{status}"
    );
    assert_eq!(corrections(control_plane, a, "policy_rejected").len(), before);
}

#[test]
fn a_set_that_needs_too_many_entries_is_refused_before_anything_is_applied() {
    let node = Enforcing::new();
    let Single { a, control_plane, .. } = &node.single;
    // Addresses that cannot be merged, each allowed to reach each.
    let spread = |network: u32| -> Vec<_> {
        (0..450).map(|n| format!("10.{network}.{}.{}/32", n / 100, 2 * (n % 100))).collect()
    };
    let peer = |id: &str, network: u32| {
        json!({
            "id": id, "mesh_ip": format!("10.{network}.0.0"), "allowed_ips": spread(network),
            "public_key": format!("plexdTestNobodysKey{network}{:A>20}A=", ""),
        })
    };
    control_plane.set_state(&a.id, &json!({ "peers": [peer("n_wide", 210), peer("n_broad", 211)] }));
    a.wait_status("the peers", |status| status["mesh"]["peers_desired"] == 2);
    let between = |src: &str, dst: &str| json!({ "src": src, "dst": dst, "action": "allow" });
    let rules = [rule(&json!({ "src": "10.66.0.1" })), between("n_wide", "n_broad")];
    node.refuses(
        &json!([{ "id": "wide", "rules": rules }]),
        &[r#"policy "wide""#, "rule 2", "200000"],
        LARGE,
    );
    node.recovers();
}
