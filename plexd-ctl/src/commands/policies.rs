//! `plexd-ctl policies`: the policies in force, which of their rules can never match, and whether a newer set was refused;
//! by its subcommands what they decide, whether that is what is expected, and the table they make.

mod expectations;
mod explain;
mod export;
mod test;

use jiff::Timestamp;
use plexd_proto::admin::v1 as wire;
use serde::Serialize;

use crate::cli::{self, Global};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Terminal, Tone, View, counted, known, one_line, table};

/// Rules that shadow another that the table shows; JSON has more.
const TOLD: usize = 2;

/// The policies in force, in their order: the first rule that matches decides. Its fields are the stable JSON shape;
/// null is what is not known.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the names are the JSON members")]
pub(crate) struct Policies {
    state: PolicyState,
    policies: Vec<Policy>,
    /// Packets that a rule or the default denied since the table was made.
    denied_packets: Option<u64>,
    /// Packets dropped since then as they belong to no connection.
    invalid_packets: Option<u64>,
}

/// The policy as a whole.
#[derive(Debug, Serialize)]
pub(crate) struct PolicyState {
    enabled: bool,
    /// What becomes of a packet that no rule matches: `allow` or `deny`.
    default_action: Option<String>,
    policies: u32,
    rules: u32,
    /// Why the newest set was refused; null when it is in force.
    rejected: Option<String>,
}

/// A policy.
#[derive(Debug, Serialize)]
struct Policy {
    id: String,
    rules: Vec<Rule>,
}

/// A rule of a policy.
#[derive(Debug, Serialize)]
struct Rule {
    /// `allow` or `deny`.
    action: String,
    /// CIDR, address, node id or `*`.
    src: String,
    /// CIDR, address, node id or `*`.
    dst: String,
    /// `tcp` or `udp`; null is any.
    protocol: Option<String>,
    /// Null is any.
    port: Option<u32>,
    /// Packets that the rule decided; null where the kernel does not count them apart.
    packets: Option<u64>,
    /// Its number in the policy, from 1.
    number: u32,
    /// Earlier rules that decide all that it matches, so that it never does: the first 4.
    shadowed_by: Vec<RuleReference>,
    /// How many there are of them.
    shadowed_by_total: u32,
    /// Why it matches nothing as nodes and addresses are now; null if it does.
    matches_nobody: Option<String>,
}

/// A rule, by its place.
#[derive(Debug, Serialize)]
struct RuleReference {
    /// Id of the policy.
    policy: String,
    /// Number of the rule in it, from 1.
    rule: u32,
    /// As `allow tcp n_a -> n_b:443`.
    text: String,
}

/// Does what is asked of the policies; without a command, lists them.
pub(crate) async fn run(
    client: Client,
    command: Option<cli::Policies>,
    global: &Global,
) -> Result<(), Failure> {
    match command {
        None => {
            let response = client.policies().await?;
            output::print(&Policies::new(response), global, Timestamp::now())
        }
        Some(cli::Policies::Explain(arguments)) => explain::run(client, &arguments, global).await,
        Some(cli::Policies::Test(arguments)) => test::run(client, &arguments, global).await,
        Some(cli::Policies::Export) => export::run(client, global).await,
    }
}

impl RuleReference {
    fn new(reference: wire::RuleReference) -> Self {
        let wire::RuleReference { policy, rule, text } = reference;
        Self { policy, rule, text }
    }

    /// Says it in one line.
    fn text(&self) -> String {
        format!("rule {} of policy {} ({})", self.rule, self.policy, self.text)
    }
}

fn references(references: Vec<wire::RuleReference>) -> Vec<RuleReference> {
    references.into_iter().map(RuleReference::new).collect()
}

/// Names a verdict in JSON.
fn verdict(verdict: wire::Verdict) -> &'static str {
    match verdict {
        wire::Verdict::Allow => "allow",
        wire::Verdict::Deny => "deny",
        wire::Verdict::Depends | wire::Verdict::Unspecified => "depends",
    }
}

impl Policies {
    /// Creates the view of an answer.
    pub(crate) fn new(response: wire::ListPoliciesResponse) -> Self {
        Self {
            state: PolicyState::new(response.state.unwrap_or_default()),
            policies: response.policies.into_iter().map(Policy::new).collect(),
            denied_packets: response.denied_packets,
            invalid_packets: response.invalid_packets,
        }
    }
}

impl PolicyState {
    /// Creates the view of the policy as a whole.
    pub(crate) fn new(state: wire::PolicyState) -> Self {
        Self {
            enabled: state.enabled,
            default_action: known(state.default_action),
            policies: state.policies,
            rules: state.rules,
            rejected: known(state.rejected),
        }
    }

    /// Says it in one line.
    pub(crate) fn line(&self) -> String {
        if !self.enabled {
            return "disabled: every packet may pass".into();
        }
        let default = self.default_action.as_deref().unwrap_or("unknown");
        let rejected =
            self.rejected.as_deref().map(|why| format!("; newest set refused: {why}")).unwrap_or_default();
        let (policies, rules) =
            (counted(self.policies, "policy", "policies"), counted(self.rules, "rule", "rules"));
        format!("{policies}, {rules}, default {default}{rejected}")
    }
}

impl Policy {
    fn new(policy: wire::Policy) -> Self {
        Self { id: policy.id, rules: policy.rules.into_iter().map(Rule::new).collect() }
    }
}

impl Rule {
    fn new(rule: wire::PolicyRule) -> Self {
        Self {
            action: rule.action,
            src: rule.src,
            dst: rule.dst,
            protocol: known(rule.protocol),
            port: (rule.port != 0).then_some(rule.port),
            packets: rule.packets,
            number: rule.number,
            shadowed_by: references(rule.shadowed_by),
            shadowed_by_total: rule.shadowed_by_total,
            matches_nobody: known(rule.matches_nobody),
        }
    }

    /// Says why it can never match, if it cannot.
    fn shadow(&self) -> String {
        if let Some(why) = &self.matches_nobody {
            return format!("matches nobody now: {why}");
        }
        let place = |rule: &RuleReference| format!("{} rule {}", rule.policy, rule.rule);
        let mut told: Vec<String> = self.shadowed_by.iter().take(TOLD).map(place).collect();
        let more = self.shadowed_by_total.saturating_sub(u32::try_from(told.len()).unwrap_or(u32::MAX));
        if more > 0 {
            told.push(format!("{more} more"));
        }
        told.join(", ")
    }

    fn row(&self, policy: &str) -> [String; 9] {
        [
            policy.into(),
            self.number.to_string(),
            self.action.clone(),
            self.src.clone(),
            self.dst.clone(),
            self.protocol.clone().unwrap_or_else(|| "any".into()),
            self.port.map_or_else(|| "any".into(), |port| port.to_string()),
            self.packets.map_or_else(|| "-".into(), |packets| packets.to_string()),
            self.shadow(),
        ]
    }
}

impl View for Policies {
    fn render(&self, terminal: &Terminal) -> String {
        let rows =
            self.policies.iter().flat_map(|policy| policy.rules.iter().map(|rule| rule.row(&policy.id)));
        let mut text = String::new();
        if self.policies.iter().any(|policy| !policy.rules.is_empty()) {
            let header = [
                "POLICY",
                "RULE",
                "ACTION",
                "SOURCE",
                "DESTINATION",
                "PROTOCOL",
                "PORT",
                "PACKETS",
                "SHADOWED BY",
            ];
            text = table(header, rows);
            text.push('\n');
        }
        let line = one_line(&self.state.line());
        let wrong = !self.state.enabled || self.state.rejected.is_some();
        text += &if wrong { terminal.paint(Tone::Bad, &line) } else { line };
        let (denied, invalid) =
            (packets(self.denied_packets, "denied"), packets(self.invalid_packets, "invalid"));
        text + &format!("\n{denied}; {invalid}\n")
    }
}

/// Says how many packets met the fate `fate`.
fn packets(number: Option<u64>, fate: &str) -> String {
    number.map_or_else(
        || format!("packets {fate}: unknown"),
        |number| format!("{} {fate}", counted(number, "packet", "packets")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Colours, json};

    const TERMINAL: Terminal = Terminal { now: Timestamp::UNIX_EPOCH, colours: Colours::Plain };

    fn response() -> wire::ListPoliciesResponse {
        let shadow = |rule| wire::RuleReference { policy: "base".into(), rule, text: "allow * -> *".into() };
        let web = wire::PolicyRule {
            src: "*".into(),
            dst: "n-a1".into(),
            port: 8080,
            protocol: "tcp".into(),
            action: "allow".into(),
            packets: Some(42),
            number: 1,
            ..wire::PolicyRule::default()
        };
        let rest = wire::PolicyRule {
            src: "10.100.0.0/16".into(),
            dst: "*".into(),
            port: 0,
            protocol: String::new(),
            action: "deny".into(),
            packets: None,
            number: 2,
            shadowed_by: vec![shadow(1), shadow(2), shadow(3)],
            shadowed_by_total: 20,
            ..wire::PolicyRule::default()
        };
        let nobody = wire::PolicyRule {
            src: "n-gone".into(),
            dst: "*".into(),
            action: "allow".into(),
            number: 3,
            matches_nobody: "there is no node n-gone".into(),
            ..wire::PolicyRule::default()
        };
        wire::ListPoliciesResponse {
            state: Some(wire::PolicyState {
                enabled: true,
                default_action: "deny".into(),
                policies: 1,
                rules: 3,
                rejected: String::new(),
            }),
            policies: vec![wire::Policy { id: "web".into(), rules: vec![web, rest, nobody] }],
            denied_packets: Some(7),
            invalid_packets: Some(1),
        }
    }

    #[test]
    fn the_table_shows_rules_in_order_and_what_was_denied() {
        let expected = "\
POLICY  RULE  ACTION  SOURCE         DESTINATION  PROTOCOL  PORT  PACKETS  SHADOWED BY
web     1     allow   *              n-a1         tcp       8080  42
web     2     deny    10.100.0.0/16  *            any       any   -        base rule 1, base rule 2, 18 more
web     3     allow   n-gone         *            any       any   -        matches nobody now: there is no node n-gone

1 policy, 3 rules, default deny
7 packets denied; 1 packet invalid
";
        assert_eq!(Policies::new(response()).render(&TERMINAL), expected);
    }

    #[test]
    fn counters_that_cannot_be_read_are_unknown_and_not_zero() {
        let policies = Policies::new(wire::ListPoliciesResponse {
            denied_packets: None,
            invalid_packets: None,
            ..response()
        });
        assert!(
            policies.render(&TERMINAL).ends_with("\npackets denied: unknown; packets invalid: unknown\n")
        );
        assert!(json(&policies).unwrap().contains("\"denied_packets\": null"));
    }

    #[test]
    fn a_refused_set_is_told_with_its_reason() {
        let mut response = response();
        response.policies.clear();
        response.state.as_mut().unwrap().rejected = "policy \"web\", rule 2: unknown action \"drop\"".into();
        let text = Policies::new(response).render(&TERMINAL);
        assert_eq!(
            text,
            "1 policy, 3 rules, default deny; newest set refused: policy \"web\", rule 2: unknown action \
             \"drop\"\n7 packets denied; 1 packet invalid\n"
        );
    }

    #[test]
    fn a_disabled_policy_is_told_first_thing() {
        let mut response = response();
        response.state.as_mut().unwrap().enabled = false;
        assert!(Policies::new(response).render(&TERMINAL).contains("disabled: every packet may pass"));
    }

    #[test]
    fn the_json_has_its_documented_shape() {
        let expected = r#"{
  "state": {
    "enabled": true,
    "default_action": "deny",
    "policies": 1,
    "rules": 3,
    "rejected": null
  },
  "policies": [
    {
      "id": "web",
      "rules": [
        {
          "action": "allow",
          "src": "*",
          "dst": "n-a1",
          "protocol": "tcp",
          "port": 8080,
          "packets": 42,
          "number": 1,
          "shadowed_by": [],
          "shadowed_by_total": 0,
          "matches_nobody": null
        },
        {
          "action": "allow",
          "src": "n-gone",
          "dst": "*",
          "protocol": null,
          "port": null,
          "packets": null,
          "number": 3,
          "shadowed_by": [],
          "shadowed_by_total": 0,
          "matches_nobody": "there is no node n-gone"
        }
      ]
    }
  ],
  "denied_packets": 7,
  "invalid_packets": 1
}
"#;
        let mut response = response();
        let mut shadowed = response.policies[0].rules.remove(1);
        assert_eq!(json(&Policies::new(response)).unwrap(), expected);
        shadowed.shadowed_by.truncate(1);
        let expected = r#"[{"policy":"base","rule":1,"text":"allow * -> *"}]"#;
        assert_eq!(serde_json::to_string(&Rule::new(shadowed).shadowed_by).unwrap(), expected);
    }
}
