//! What a set may cost, and that one which costs more is refused as a whole, the same every time.

use std::time::{Duration, Instant};

use super::*;

/// Rules that allow and deny in turn, each crossed by all that do the other.
fn alternating(count: u32, service: impl Fn(u32) -> &'static str) -> PolicySet {
    set((0..count).map(|n| {
        let (peer, service) = (Ipv4Addr::from(0x0a01_0000 + n), service(n));
        rule(&if n % 2 == 0 { format!("allow {peer} *{service}") } else { format!("deny * {peer}{service}") })
    }))
}

/// Rules between networks of so many lengths on either side, each around the one before.
fn nested(lengths: u8, services: &[&str], action: impl Fn(usize) -> &'static str) -> PolicySet {
    let nets = |host: &'static str| (0..lengths).map(move |short| format!("{host}/{}", 128 - short));
    let pairs = nets("fd00::1").flat_map(|src| nets("fd00::2").map(move |dst| format!("{src} {dst}")));
    let texts = pairs.flat_map(|pair| services.iter().map(move |service| format!("{pair}{service}")));
    set(texts.take(MAX_RULES).enumerate().map(|(n, text)| {
        let mut rule = rule(&format!("{} {text}", action(n)));
        for side in [&mut rule.src, &mut rule.dst] {
            let Selector::Net(net) = side else { panic!() };
            *net = net.trunc();
        }
        rule
    }))
}

/// Returns how many lookups and entries there are.
fn size(table: &Table) -> (usize, usize) {
    let entries: usize = table.maps.iter().map(|map| map.entries.len()).sum();
    (table.maps.len(), entries + table.classes.iter().map(|classes| classes.starts.len()).sum::<usize>())
}

#[test]
fn what_would_need_too_many_entries_takes_more_lookups_instead() {
    for (rules, most) in [(1_500, 30), (20_000, 1_024)] {
        let policies = alternating(rules, |_| "");
        let table = compile(&policies, &context()).unwrap().unwrap();
        let (lookups, entries) = size(&table);
        assert!((3..most).contains(&lookups), "{lookups}");
        assert!(entries <= MAX_ENTRIES, "{entries}");
        if rules < 20_000 {
            assert_eq!(compile(&policies, &context()), Ok(Some(table)));
        }
    }
}

#[test]
fn a_set_that_takes_too_many_lookups_is_refused_and_says_from_which_rule_on() {
    let policies = alternating(20_000, |n| ["", " tcp 0", " tcp 80"][n as usize / 2 % 3]);
    let refused = compile(&policies, &context()).unwrap_err();
    let CompileError::TooManyLookups { most: MAX_LOOKUPS, policy, rule } = &refused else {
        panic!("{refused:?}")
    };
    assert!(policy == "p_1" && (10_000..20_000).contains(rule), "{refused}");
    // Written out, each pair of lengths is a lookup.
    let many_lengths = nested(65, &[""], |_| "allow");
    assert!(size(&compile(&many_lengths, &context()).unwrap().unwrap()).0 <= MAX_LOOKUPS);
    let refused = compile_plainly(&many_lengths, &context());
    let most = 2 * MAX_LOOKUPS;
    assert_eq!(refused, Err(CompileError::TooManyLookups { most, policy: "p_1".to_owned(), rule: most + 1 }));
}

#[test]
fn classes_and_what_matches_everything_count_as_entries() {
    // Of 199,809 pairs of networks of two lengths there is room for no class.
    let spread = |n: u32| {
        let length = 32 - u8::try_from(n % 2).unwrap();
        IpNet::from(ipnet::Ipv4Net::new(Ipv4Addr::from(0x0a02_0000 + 8 * n), length).unwrap())
    };
    let mut context = context();
    context.members.insert("n_wide".parse().unwrap(), (0..447).map(spread).collect());
    let allow = Context { default: Action::Allow, ..context.clone() };
    let fitting = compile(&policy(&["deny n_wide n_wide"]), &allow).unwrap().unwrap();
    assert_eq!(size(&fitting), (4 + 2, 447 * 447 + 4));
    let entries = (0..).map(|n| format!("allow 10.9.0.{n} n_here")).take(MAX_ENTRIES - 447 * 447);
    let mut rules = vec!["allow n_wide n_wide".to_owned()];
    rules.extend(entries);
    let full: Vec<_> = rules.iter().map(String::as_str).collect();
    assert_eq!(size(&compile(&policy(&full), &context).unwrap().unwrap()).1, MAX_ENTRIES);
    // Those for everything are two, of a rule and of the default.
    assert!(compile(&policy(&full), &allow).is_err());
    let everything = [&full[..full.len() - 1], &["allow 0.0.0.0/0 0.0.0.0/0"]].concat();
    assert!(compile(&policy(&everything), &context).is_err());
}

#[test]
fn pairs_of_different_families_are_not_counted() {
    let both = (0..230_u16).flat_map(|n| {
        let [high, low] = (2 * n).to_be_bytes();
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, 2 * n);
        [IpAddr::from([10, 7, high, low]), v6.into()].map(IpNet::from)
    });
    let mut context = context();
    context.members.insert("n_both".parse().unwrap(), both.collect());
    let table = compile(&policy(&["allow n_both n_both"]), &context).unwrap().unwrap();
    assert_eq!(size(&table), (2, 2 * 230 * 230));
}

#[test]
#[ignore = "minutes where nothing is optimised; make test-long"]
fn long_sets_that_nobody_writes_do_not_hold_core_up() {
    let services = [" tcp 80", " tcp 0", ""];
    let sets = [
        nested(82, &services, |_| "allow"),
        nested(82, &services, |n| if n % 2 == 0 { "allow" } else { "deny" }),
        alternating(20_000, |_| ""),
        alternating(20_000, |n| services[n as usize / 2 % 3]),
    ];
    for policies in sets {
        for by in [compile, compile_plainly] {
            let begun = Instant::now();
            let size = by(&policies, &context()).map(|table| size(&table.unwrap()));
            let took = begun.elapsed();
            #[expect(clippy::print_stdout, reason = "shown by --no-capture")]
            {
                println!("{took:?}: {size:?}");
            }
            // Half a minute alone on a machine, and a tenth of it optimised: no figure to hold, but what once took an hour
            // does not come back.
            assert!(took < Duration::from_mins(10), "{took:?}");
        }
    }
}

#[test]
fn sets_that_are_too_large_are_refused() {
    let many = |count: usize| set(std::iter::repeat_with(|| rule("allow n_a n_here")).take(count));
    assert!(compile(&many(MAX_RULES), &context()).is_ok());
    assert_eq!(
        compile(&many(MAX_RULES + 1), &context()),
        Err(CompileError::TooManyRules { rules: MAX_RULES + 1 })
    );
    let mut context = context();
    let spread = |n: u32| IpNet::from(IpAddr::from(Ipv4Addr::from(0x0a02_0000 + 2 * n)));
    context.members.insert("n_wide".parse().unwrap(), (0..400).map(spread).collect());
    let wide = policy(&["allow n_wide n_wide", "allow n_a *", "allow n_wide n_wide tcp 1"]);
    let refused = compile(&wide, &context);
    assert_eq!(refused, Err(CompileError::TooManyEntries { policy: "p_1".to_owned(), rule: 3 }));
    // Rules that add nothing take time all the same: 12 of 400 by 400 addresses are enough.
    let repeated = set(std::iter::repeat_with(|| rule("allow n_wide n_wide")).take(MAX_RULES));
    let refused = compile(&repeated, &context);
    assert_eq!(refused, Err(CompileError::TooManyEntries { policy: "p_1".to_owned(), rule: 13 }));
    let name = "sixteen-bytes-it".to_owned();
    let long = Context { interface: name.clone(), ..context };
    assert_eq!(compile(&policy(&[]), &long), Err(CompileError::Interface(name)));
}
