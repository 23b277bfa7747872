//! Rules that can never match are found, and none is named that can.

use std::time::{Duration, Instant};

use super::*;

/// Returns why each rule can never match: numbers of rules from 1, or words.
fn told(policies: &PolicySet, context: &Context) -> Vec<String> {
    let told = |shadow: Option<Shadow>| match shadow {
        None => String::new(),
        Some(Shadow::Covered(by)) => {
            by.iter().map(|position| (position + 1).to_string()).collect::<Vec<_>>().join(" ")
        }
        Some(Shadow::Nobody(nobody)) => nobody.to_string(),
    };
    shadows(policies, context).into_iter().map(told).collect()
}

#[test]
fn a_rule_that_earlier_ones_decide_is_named_with_them() {
    let cases: &[(&[&str], &str)] = &[
        // One earlier rule, by each of its parts, whatever its action.
        (&["allow n_a n_here", "deny n_a n_here"], "1"),
        (&["allow n_a n_here", "deny n_a n_here tcp 22"], "1"),
        (&["deny * *", "allow n_a n_here tcp 22"], "1"),
        (&["allow 10.0.0.0/8 *", "allow 10.0.0.4/30 n_here"], "1"),
        (&["allow n_b *", "allow 10.0.0.6 10.0.0.1"], "1"),
        (&["allow 10.0.0.0/29 *", "allow fd00::/64 *", "allow n_b *"], "1 2"),
        (&["allow n_a * tcp 0", "allow n_a * tcp 80"], "1"),
        (&["allow fd00::/64 fd00::/64", "deny n_six fd00::1"], "1"),
        // Both families of `*`, where the other side has but one.
        (&["allow * n_here", "allow 0.0.0.0/0 n_here"], "1"),
        (&["allow 0.0.0.0/0 n_here", "allow * n_here"], "1"),
        // The one that covers alone, rather than those that share.
        (&["allow 10.0.0.3 *", "allow n_b *", "allow n_b n_a"], "2"),
        // Several: address by address, and halves of networks, of either side.
        (&["allow 10.0.0.3 *", "deny 10.0.0.4/30 *", "allow fd00::4/126 *", "allow n_b *"], "1 2 3"),
        (&["allow 10.0.0.0/9 *", "deny 10.128.0.0/9 *", "allow 10.0.0.0/8 * udp 53"], "1 2"),
        (&["allow * 10.0.0.0/32", "deny * 10.0.0.1", "allow * 10.0.0.2/31", "deny n_a 10.0.0.0/30"], "1 2 3"),
        (
            &[
                "allow 10.0.0.0/9 10.0.0.0/9",
                "allow 10.128.0.0/9 10.0.0.0/9",
                "allow 10.0.0.0/8 10.128.0.0/9",
                "allow 10.0.0.0/8 10.0.0.0/8",
            ],
            "1 2 3",
        ),
        // Nobody.
        (&["allow n_nobody *"], "there is no node n_nobody"),
        (&["allow * n_nobody tcp 80"], "there is no node n_nobody"),
        (&["allow n_none n_a"], "n_none has no address of its own"),
        (&["allow n_six n_here"], "source and destination are of different address families"),
        (&["allow 10.0.0.0/8 fd00::/64"], "source and destination are of different address families"),
        // It may match.
        (&["allow n_a n_here"], ""),
        (&["allow n_here n_a", "allow n_a n_here"], ""),
        (&["allow n_a n_here tcp 22", "allow n_a n_here"], ""),
        (&["allow n_a n_here tcp 22", "allow n_a n_here udp 22"], ""),
        (&["allow n_a n_here tcp 0", "allow n_a n_here udp 0", "allow n_a n_here"], ""),
        (&["allow 10.0.0.4/30 *", "allow n_b *"], ""),
        (&["allow 10.0.0.0/9 *", "allow 10.0.0.0/8 *"], ""),
        (&["allow 10.0.0.0/9 *", "deny 11.0.0.0/9 *", "allow 10.0.0.0/8 *"], ""),
        (
            &[
                "allow 10.0.0.0/9 10.0.0.0/9",
                "allow 10.128.0.0/9 10.128.0.0/9",
                "allow 10.0.0.0/8 10.0.0.0/8",
            ],
            "",
        ),
        (&["allow 0.0.0.0/0 *", "allow * *"], ""),
        (&["allow n_nobody *", "allow n_a *"], ""),
    ];
    let mut context = context();
    context.members.insert("n_none".parse().unwrap(), BTreeSet::new());
    for (rules, expected) in cases {
        assert_eq!(told(&policy(rules), &context).last().unwrap(), expected, "{rules:?}");
    }
    let disabled = Context { enabled: false, ..context };
    assert_eq!(told(&policy(&["deny * *", "allow * *"]), &disabled), ["", ""]);
}

#[test]
fn every_rule_that_one_covers_is_found_among_twenty_thousand() {
    let address = |n: u32| Ipv4Addr::from(0x0a00_0000 + n * 7);
    let half = u32::try_from(MAX_RULES / 2).unwrap();
    let first = (0..half).map(|n| match n % 4 {
        0 => rule(&format!("allow {} n_here", address(n))),
        1 => rule(&format!("deny n_a {} tcp {}", address(n), 1 + n % 50)),
        2 => {
            rule(&format!("allow {}/28 10.0.0.0/{} udp 0", Ipv4Addr::from(0x0b00_0000 + n * 16), 8 + n % 20))
        }
        _ => rule(&format!("allow fd00::{n:x}/120 fd00::/{} tcp 443", 16 + n % 64)),
    });
    // The same again, each a part of what was there: of one port, or as they were.
    let again = first.clone().map(|rule| match rule.service {
        Service::Any => Rule { service: Service::Udp(NonZeroU16::new(9)), ..rule },
        _ => rule,
    });
    let policies = set(first.chain(again));
    let begun = Instant::now();
    let found = shadows(&policies, &context());
    let took = begun.elapsed();
    let of_second_half = &found[MAX_RULES / 2..];
    assert!(of_second_half.iter().all(|shadow| matches!(shadow, Some(Shadow::Covered(_)))));
    // A fraction of a second where it is optimised; a walk through all pairs takes long anywhere.
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn a_set_that_would_take_too_long_is_given_up_and_none_is_named_wrongly() {
    let spread = |n: u32| IpNet::from(IpAddr::from(Ipv4Addr::from(0x0a02_0000 + 2 * n)));
    let mut context = context();
    context.members.insert("n_wide".parse().unwrap(), (0..200).map(spread).collect());
    let rules = (0..100).map(|port| rule(&format!("allow n_wide n_wide tcp {}", 1 + port)));
    let found = shadows(&set(rules), &context);
    assert_eq!(found.len(), 100);
    assert!(found.iter().all(Option::is_none));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn no_flow_is_ever_decided_by_a_rule_that_is_called_shadowed(
        rules in vec(any_rule(), 0..80),
        context in any_context(),
        flows in vec(any_flow(), 60),
    ) {
        let policies = set(rules);
        let found = shadows(&policies, &context);
        for flow in flows {
            if let Some(rule) = evaluate(&policies, &context, &flow).rule {
                prop_assert_eq!(&found[rule], &None, "rule {} decides {:?}", rule, flow);
            }
        }
    }

    #[test]
    fn a_rule_within_an_earlier_one_is_always_found(
        rules in vec(any_rule(), 1..40),
        context in any_context(),
        at in any::<proptest::sample::Index>(),
        service in any_service(),
        narrower in network(),
    ) {
        // A copy of some rule, narrowed: to a network in place of `*`, or a service in place of any.
        let mut copy = at.get(&rules).clone();
        if copy.src == Selector::Any {
            copy.src = Selector::Net(narrower);
        }
        if copy.service == Service::Any {
            copy.service = service;
        }
        let policies = set(rules.into_iter().chain([copy]));
        let found = shadows(&policies, &context);
        prop_assert!(found.last().unwrap().is_some(), "{policies:?}");
        for (position, shadow) in found.iter().enumerate() {
            if let Some(Shadow::Covered(by)) = shadow {
                prop_assert!(!by.is_empty() && by.iter().all(|by| *by < position));
            }
        }
    }
}
