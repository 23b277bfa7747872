//! What a policy says of a connection agrees with the reference, whether all of it is named or not.

use super::*;

fn question(source: &str, destination: &str, protocol: Option<u8>, port: u16) -> Question {
    Question {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol,
        port: NonZeroU16::new(port),
    }
}

#[test]
fn an_answer_names_the_rule_and_what_it_depends_on() {
    let policies = policy(&[
        "deny n_a n_here tcp 22",
        "allow n_a n_here tcp 80",
        "allow n_a n_here udp 0",
        "deny n_a n_here udp 53",
        "allow n_b n_here",
        "allow n_a n_here tcp 80",
        "deny n_a * tcp 0",
    ]);
    let (allow, deny) = (Outcome::Always(Action::Allow), Outcome::Always(Action::Deny));
    for (protocol, port, outcome, rule, parts, near) in [
        (Some(TCP), 22, deny, Some(0), &[][..], &[][..]),
        (Some(TCP), 80, allow, Some(1), &[], &[0]),
        (Some(TCP), 443, deny, Some(6), &[], &[0, 1, 2, 3, 5]),
        (Some(TCP), 0, Outcome::Depends, Some(6), &[0, 1], &[2, 3]),
        (Some(UDP), 53, allow, Some(2), &[], &[0, 1]),
        (Some(UDP), 0, allow, Some(2), &[], &[0, 1]),
        (Some(ICMP), 0, deny, None, &[], &[0, 1, 2, 3, 5, 6]),
        (None, 0, Outcome::Depends, None, &[0, 1, 2, 6], &[]),
    ] {
        let question = question("10.0.0.2", "10.0.0.1", protocol, port);
        let expected = Judgement { outcome, rule, parts: parts.to_vec(), near: near.to_vec() };
        assert_eq!(judge(&policies, &context(), &question), expected, "{question:?}");
    }
    // A port without a protocol is of either, and of no rule for another one.
    let port = question("10.0.0.2", "10.0.0.1", None, 80);
    let expected = Judgement { outcome: Outcome::Depends, rule: None, parts: vec![1, 2], near: vec![0, 3] };
    assert_eq!(judge(&policies, &context(), &port), expected);
    // Where all of them agree, the answer is one.
    let any = question("10.0.0.3", "10.0.0.1", None, 0);
    assert_eq!(judge(&policies, &context(), &any).outcome, allow);
    let disabled = Context { enabled: false, ..context() };
    let judgement = judge(&policies, &disabled, &any);
    assert_eq!((judgement.outcome, judgement.rule), (allow, None));
}

#[test]
fn rules_have_a_text_and_a_place() {
    for (line, text) in [
        ("allow n_a n_here tcp 443", "allow tcp n_a -> n_here:443"),
        ("deny * *", "deny * -> *"),
        ("deny 10.0.0.0/8 n_here udp 0", "deny udp 10.0.0.0/8 -> n_here"),
        ("allow fd00::1 fd00::/64 tcp 22", "allow tcp fd00::1/128 -> [fd00::/64]:22"),
    ] {
        assert_eq!(rule(line).to_string(), text);
    }
    let of = |id: &str, count| Policy { id: id.to_owned(), rules: vec![rule("deny * *"); count] };
    let policies = PolicySet { policies: vec![of("one", 2), of("none", 0), of("two", 1)] };
    let places: Vec<_> =
        (0..4).map(|at| policies.locate(at).map(|(policy, number)| (policy.id.as_str(), number))).collect();
    assert_eq!(places, [Some(("one", 1)), Some(("one", 2)), Some(("two", 1)), None]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn a_judgement_is_the_references_also_where_many_are_made(
        rules in vec(any_rule(), 0..60),
        context in any_context(),
        flows in vec(any_flow(), 40),
    ) {
        let policies = set(rules);
        let mut many = Judge::new(&policies, &context);
        for flow in flows {
            let ports = flow.protocol == TCP || flow.protocol == UDP;
            let question = Question {
                source: flow.source,
                destination: flow.destination,
                protocol: Some(flow.protocol),
                port: NonZeroU16::new(flow.port).filter(|_| ports),
            };
            let meant = evaluate(&policies, &context, &flow);
            for judgement in [judge(&policies, &context, &question), many.judge(&question)] {
                prop_assert_eq!(judgement.outcome, Outcome::Always(meant.action));
                prop_assert_eq!(judgement.rule, meant.rule);
            }
            // What is left open contains each case of it.
            for protocol in [None, Some(flow.protocol)] {
                let open = Question { protocol, port: None, ..question };
                let (walked, looked_up) = (judge(&policies, &context, &open), many.judge(&open));
                prop_assert_eq!(walked.outcome, looked_up.outcome);
                prop_assert!(
                    walked.outcome == Outcome::Depends || walked.outcome == Outcome::Always(meant.action)
                );
                let named = meant.rule == walked.rule || meant.rule.is_some_and(|rule| walked.parts.contains(&rule));
                prop_assert!(named, "{:?} {:?} {:?}", meant, walked, open);
            }
        }
    }
}
