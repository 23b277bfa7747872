//! `plexd-ctl policies explain`: what the policy in force decides on a connection, by which rule, and why on this node.

use jiff::Timestamp;
use plexd_proto::admin::v1 as wire;
use serde::Serialize;

use super::{PolicyState, RuleReference, references, verdict};
use crate::cli::{Explain, Global};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Terminal, Tone, View, known, one_line};

/// What the policy says of a connection. Its fields are the stable JSON shape; null is what there is none of.
#[derive(Debug, Serialize)]
struct Explained {
    /// `allow`, `deny`, or `depends`: on the protocol or port that was not named.
    verdict: &'static str,
    /// The rule that decides all that those of `depends_on` do not; null is the default.
    decided_by: Option<RuleReference>,
    default_action: Option<String>,
    /// Rules that decide a protocol or port of their own; the first 16.
    depends_on: Vec<RuleReference>,
    depends_on_total: u32,
    source: End,
    destination: End,
    protocol: Option<String>,
    port: Option<u16>,
    /// `out` (this node opens it), `in` (to this node), `through` or `local`.
    direction: &'static str,
    /// Whether such packets come by the mesh interface of this node, where alone policy judges them.
    crosses_mesh: bool,
    /// Rules before the one that decides, for the same ends, but another protocol or port; the first 16.
    nearly: Vec<Near>,
    nearly_total: u32,
    /// What else there is to know.
    remarks: Vec<String>,
}

/// An end of the connection.
#[derive(Debug, Serialize)]
struct End {
    /// As it was asked for.
    asked: String,
    /// The address that was judged.
    address: String,
    /// The node whose it is.
    node: Option<String>,
}

/// A rule that nearly matches.
#[derive(Debug, Serialize)]
struct Near {
    rule: RuleReference,
    /// Why it does not.
    why: String,
}

/// Asks and prints the answer.
pub(super) async fn run(client: Client, arguments: &Explain, global: &Global) -> Result<(), Failure> {
    let has_ports = |protocol: &str| ["tcp", "udp", "6", "17"].contains(&protocol);
    if arguments.port.is_some() && !arguments.proto.as_deref().is_some_and(has_ports) {
        return Err(Failure::Usage("--port needs a protocol that has ports: --proto tcp or --proto udp"));
    }
    let flow = wire::Flow {
        source: arguments.src.clone(),
        destination: arguments.dst.clone(),
        protocol: arguments.proto.clone().unwrap_or_default(),
        port: arguments.port.unwrap_or_default().into(),
    };
    let response = client.explain(wire::ExplainPolicyRequest { flow: Some(flow) }).await?;
    output::print(&Explained::new(response, arguments), global, Timestamp::now())
}

impl Explained {
    fn new(response: wire::ExplainPolicyResponse, arguments: &Explain) -> Self {
        let (outcome, direction) = (response.verdict(), response.direction());
        let state = PolicyState::new(response.state.unwrap_or_default());
        let near = |near: wire::NearRule| Near {
            rule: RuleReference::new(near.rule.unwrap_or_default()),
            why: near.why,
        };
        Self {
            verdict: verdict(outcome),
            decided_by: response.decided_by.map(RuleReference::new),
            default_action: state.default_action,
            depends_on: references(response.depends_on),
            depends_on_total: response.depends_on_total,
            source: End::new(&arguments.src, response.source),
            destination: End::new(&arguments.dst, response.destination),
            protocol: arguments.proto.clone(),
            port: arguments.port,
            direction: match direction {
                wire::Direction::Out => "out",
                wire::Direction::In => "in",
                wire::Direction::Local => "local",
                wire::Direction::Through | wire::Direction::Unspecified => "through",
            },
            crosses_mesh: response.crosses_mesh,
            nearly: response.nearly.into_iter().map(near).collect(),
            nearly_total: response.nearly_total,
            remarks: response.remarks,
        }
    }

    /// Says what was asked in one line.
    fn question(&self) -> String {
        let service = match (&self.protocol, self.port) {
            (None, _) => "any protocol".to_owned(),
            (Some(protocol), None) => protocol.clone(),
            (Some(protocol), Some(port)) => format!("{protocol} port {port}"),
        };
        let way = match self.direction {
            "out" => "this node opens it",
            "in" => "it comes to this node",
            "local" => "it stays on this node",
            _ => "neither end is this node",
        };
        format!("{} -> {}, {service}; {way}", self.source.text(), self.destination.text())
    }

    fn answer(&self) -> String {
        let default = || {
            format!("no rule matches, the default is {}", self.default_action.as_deref().unwrap_or("unknown"))
        };
        let by = self.decided_by.as_ref().map_or_else(default, RuleReference::text);
        match (self.verdict, self.depends_on.is_empty()) {
            (verdict, true) => format!("{verdict}: {by}"),
            ("depends", false) => format!("it depends on what is not named; otherwise: {by}"),
            (verdict, false) => format!("{verdict}, whatever is not named; otherwise than below: {by}"),
        }
    }
}

impl End {
    fn new(asked: &str, end: Option<wire::FlowEnd>) -> Self {
        let wire::FlowEnd { address, node } = end.unwrap_or_default();
        Self { asked: asked.to_owned(), address, node: known(node) }
    }

    fn text(&self) -> String {
        let Self { asked, address, node } = self;
        match node {
            _ if asked.parse::<std::net::IpAddr>().is_err() => format!("{asked} ({address})"),
            Some(node) => format!("{address} (of {node})"),
            None => address.clone(),
        }
    }
}

impl View for Explained {
    fn render(&self, terminal: &Terminal) -> String {
        let mut text = one_line(&self.question()) + "\n";
        let tone = match self.verdict {
            "allow" => Some(Tone::Good),
            "deny" => Some(Tone::Bad),
            _ => None,
        };
        let answer = one_line(&self.answer());
        text += &tone.map_or_else(|| answer.clone(), |tone| terminal.paint(tone, &answer));
        text.push('\n');
        let mut lines: Vec<String> =
            self.depends_on.iter().map(|rule| format!("part of it: {}", rule.text())).collect();
        lines.extend(more(self.depends_on_total, self.depends_on.len()));
        lines.extend(self.nearly.iter().map(|near| format!("not by {}: {}", near.rule.text(), near.why)));
        lines.extend(more(self.nearly_total, self.nearly.len()));
        lines.extend(self.remarks.iter().map(|remark| format!("note: {remark}")));
        text.extend(lines.iter().flat_map(|line| ["  ".to_owned(), one_line(line), "\n".to_owned()]));
        text
    }
}

/// Says how many rules there are besides those shown.
fn more(total: u32, shown: usize) -> Option<String> {
    let more = total.saturating_sub(u32::try_from(shown).unwrap_or(u32::MAX));
    (more > 0).then(|| format!("and {more} more such rules"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Colours, json};

    const TERMINAL: Terminal = Terminal { now: Timestamp::UNIX_EPOCH, colours: Colours::Plain };

    fn rule(number: u32, text: &str) -> wire::RuleReference {
        wire::RuleReference { policy: "web".into(), rule: number, text: text.into() }
    }

    fn arguments(proto: Option<&str>, port: Option<u16>) -> Explain {
        Explain { src: "n_a".into(), dst: "10.100.0.2".into(), proto: proto.map(str::to_owned), port }
    }

    fn response() -> wire::ExplainPolicyResponse {
        let near = wire::NearRule {
            rule: Some(rule(1, "allow udp n_a -> n_b")),
            why: "it is for udp, this is tcp port 443".into(),
        };
        let mut response = wire::ExplainPolicyResponse {
            decided_by: Some(rule(2, "allow tcp n_a -> n_b:443")),
            nearly: vec![near],
            nearly_total: 3,
            source: Some(wire::FlowEnd { address: "10.100.0.1".into(), node: "n_a".into() }),
            destination: Some(wire::FlowEnd { address: "10.100.0.2".into(), node: "n_b".into() }),
            crosses_mesh: true,
            remarks: vec!["a newer set\nof policies is refused".into()],
            state: Some(wire::PolicyState { default_action: "deny".into(), ..wire::PolicyState::default() }),
            ..wire::ExplainPolicyResponse::default()
        };
        response.set_verdict(wire::Verdict::Allow);
        response.set_direction(wire::Direction::Out);
        response
    }

    #[test]
    fn the_answer_comes_with_the_rule_and_those_that_nearly_match() {
        let text = Explained::new(response(), &arguments(Some("tcp"), Some(443))).render(&TERMINAL);
        let expected = "\
n_a (10.100.0.1) -> 10.100.0.2 (of n_b), tcp port 443; this node opens it
allow: rule 2 of policy web (allow tcp n_a -> n_b:443)
  not by rule 1 of policy web (allow udp n_a -> n_b): it is for udp, this is tcp port 443
  and 2 more such rules
  note: a newer set of policies is refused
";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_answer_that_depends_names_the_rules_it_depends_on() {
        let mut response = response();
        response.set_verdict(wire::Verdict::Depends);
        (response.decided_by, response.nearly, response.nearly_total) = (None, Vec::new(), 0);
        response.depends_on = vec![rule(2, "allow tcp n_a -> n_b:443")];
        response.depends_on_total = 1;
        response.remarks.clear();
        let text = Explained::new(response, &arguments(Some("tcp"), None)).render(&TERMINAL);
        let expected = "\
n_a (10.100.0.1) -> 10.100.0.2 (of n_b), tcp; this node opens it
it depends on what is not named; otherwise: no rule matches, the default is deny
  part of it: rule 2 of policy web (allow tcp n_a -> n_b:443)
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_json_has_its_documented_shape() {
        let expected = r#"{
  "verdict": "allow",
  "decided_by": {
    "policy": "web",
    "rule": 2,
    "text": "allow tcp n_a -> n_b:443"
  },
  "default_action": "deny",
  "depends_on": [],
  "depends_on_total": 0,
  "source": {
    "asked": "n_a",
    "address": "10.100.0.1",
    "node": "n_a"
  },
  "destination": {
    "asked": "10.100.0.2",
    "address": "10.100.0.2",
    "node": "n_b"
  },
  "protocol": "tcp",
  "port": 443,
  "direction": "out",
  "crosses_mesh": true,
  "nearly": [
    {
      "rule": {
        "policy": "web",
        "rule": 1,
        "text": "allow udp n_a -> n_b"
      },
      "why": "it is for udp, this is tcp port 443"
    }
  ],
  "nearly_total": 3,
  "remarks": [
    "a newer set\nof policies is refused"
  ]
}
"#;
        let explained = Explained::new(response(), &arguments(Some("tcp"), Some(443)));
        assert_eq!(json(&explained).unwrap(), expected);
    }
}
