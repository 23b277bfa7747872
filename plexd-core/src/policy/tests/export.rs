//! The text of a table; that nft loads it, and that it is the same table then, is shown in `tests/nft_kernel.rs`.

use super::*;

fn text(rules: &[&str], context: &Context) -> String {
    let mut policies = policy(rules);
    policies.policies[0].id = "web\n\"x\"".to_owned();
    let table = compile_plainly(&policies, context).unwrap().unwrap();
    crate::policy::export::text(&table, &policies).collect()
}

#[test]
fn the_text_has_each_entry_with_its_rule() {
    let rules = [
        "allow n_a n_here tcp 443",
        "deny 10.0.0.0/24 * udp 0",
        "allow fd00::/64 fd00::8 udp 53",
        "deny * 0.0.0.0/0",
        "allow * *",
    ];
    let expected = r#"add table inet plexd
delete table inet plexd

table inet plexd {
	counter denied {
	}

	counter invalid {
	}

	map v4_s32_d32_port_1 {
		type ipv4_addr . ipv4_addr . inet_proto . inet_service : verdict
		size 1
		counter
		elements = {
			10.0.0.2 . 10.0.0.1 . tcp . 443 : accept # policy "web\n\"x\"", rule 1
		}
	}

	map v4_s24_d0_proto_1 {
		type ipv4_addr . inet_proto : verdict
		size 1
		counter
		elements = {
			10.0.0.0 . udp : goto deny # policy "web\n\"x\"", rule 2
		}
	}

	map v6_s64_d128_port_1 {
		type ipv6_addr . ipv6_addr . inet_proto . inet_service : verdict
		size 1
		counter
		elements = {
			fd00:: . fd00::8 . udp . 53 : accept # policy "web\n\"x\"", rule 3
		}
	}

	map v6_s1_d0_any_1 {
		type ipv6_addr : verdict
		size 2
		counter
		elements = {
			:: : accept, # policy "web\n\"x\"", rule 5
			8000:: : accept # policy "web\n\"x\"", rule 5
		}
	}

	chain input {
		type filter hook input priority 0; policy accept;
		iifname "plexd0" goto judge
	}

	chain forward {
		type filter hook forward priority 0; policy accept;
		iifname "plexd0" goto judge
		oifname "plexd0" goto judge
	}

	chain output {
		type filter hook output priority 0; policy accept;
		oifname "plexd0" goto judge
	}

	chain deny {
		limit rate 5/second burst 20 packets log prefix "plexd-denied "
		counter name "denied" drop
	}

	chain rules4 {
		meta nfproto ipv4 ct protocol tcp ct original ip saddr . ct original ip daddr . ct protocol . ct original proto-dst vmap @v4_s32_d32_port_1
		ct original ip saddr & 255.255.255.0 . ct protocol vmap @v4_s24_d0_proto_1
		counter goto deny # policy "web\n\"x\"", rule 4
	}

	chain rules6 {
		meta nfproto ipv6 ct protocol udp ct original ip6 saddr & ffff:ffff:ffff:ffff:: . ct original ip6 daddr . ct protocol . ct original proto-dst vmap @v6_s64_d128_port_1
		ct original ip6 saddr & 8000:: vmap @v6_s1_d0_any_1
	}
"#;
    let text = text(&rules, &context());
    assert!(text.starts_with(expected), "{text}");
    assert!(text.ends_with("\t\tgoto deny\n\t}\n\n}\n"), "{text}");
}

#[test]
fn every_entry_and_rule_of_a_table_is_in_its_text() {
    let rules = ["allow n_b *", "allow n_a n_b tcp 0", "deny n_a * udp 5", "deny n_b n_a tcp 5"];
    let text = text(&rules, &Context { log_denied: false, ..context() });
    let table = compile_plainly(&policy(&rules), &context()).unwrap().unwrap();
    let entries = table.maps.iter().map(|map| map.entries.len()).sum::<usize>();
    assert_eq!(text.lines().filter(|line| line.contains(" # policy")).count(), entries);
    assert!(!text.contains("log prefix"));
    assert_eq!(text.matches("chain ").count(), table.chains.len());
}
