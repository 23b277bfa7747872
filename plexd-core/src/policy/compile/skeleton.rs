//! What every table has around its rules: the hooks, what is refused before any rule, the default, the end of what is denied.

use crate::policy::table::{Chain, Expr, Family, Hook, Table, Verdict};
use crate::policy::{Action, Context};

/// Chain that counts and drops.
const DENY: &str = "deny";
/// Chain that every packet of the mesh interface goes to.
const JUDGE: &str = "judge";
/// Counter of what a rule or the default denied.
const DENIED: &str = "denied";
/// Counter of what belongs to no connection that was seen to open.
const INVALID: &str = "invalid";
/// Prefix of the log (contract, section 5).
const LOG_PREFIX: &str = "plexd-denied ";

/// Returns the chain with the rules for a family.
fn family_chain(family: Family) -> &'static str {
    match family {
        Family::V4 => "rules4",
        Family::V6 => "rules6",
    }
}

/// Returns what is done with a packet of which a rule says so.
pub(super) fn verdict(action: Action) -> Verdict {
    match action {
        Action::Allow => Verdict::Accept,
        Action::Deny => Verdict::Goto(DENY.to_owned()),
    }
}

/// Returns the table with these rules for IPv4 and IPv6, and without the maps that they look up.
pub(super) fn skeleton(context: &Context, rules: [Vec<Vec<Expr>>; 2]) -> Table {
    let regular = |name: &str, rules| Chain { name: name.to_owned(), hook: None, rules };
    let base = |name: &str, hook, rules| Chain { name: name.to_owned(), hook: Some(hook), rules };
    let to_judge = || Expr::Verdict(Verdict::Goto(JUDGE.to_owned()));
    let incoming = || vec![Expr::InputInterface(context.interface.clone()), to_judge()];
    let outgoing = || vec![Expr::OutputInterface(context.interface.clone()), to_judge()];

    let mut deny = Vec::new();
    if context.log_denied {
        let limit = Expr::Limit { per_second: 5, burst: 20 };
        deny.push(vec![limit, Expr::Log { prefix: LOG_PREFIX.to_owned() }]);
    }
    deny.push(vec![Expr::Count(DENIED.to_owned()), Expr::Verdict(Verdict::Drop)]);

    let of_family = |family: Family| {
        vec![Expr::Family(family), Expr::Verdict(Verdict::Jump(family_chain(family).to_owned()))]
    };
    let [rules4, rules6] = rules;
    let invalid = |what| vec![what, Expr::Count(INVALID.to_owned()), Expr::Verdict(Verdict::Drop)];
    let judge = vec![
        invalid(Expr::Untracked),
        // A connection that was opened while there was no table could be taken for one in the other direction.
        invalid(Expr::MidStream),
        of_family(Family::V4),
        of_family(Family::V6),
        // Whatever the default: what allows is in maps.
        vec![Expr::Verdict(verdict(Action::Deny))],
    ];
    Table {
        counters: vec![DENIED.to_owned(), INVALID.to_owned()],
        classes: Vec::new(),
        maps: Vec::new(),
        rule_names: Vec::new(),
        chains: vec![
            regular(DENY, deny),
            regular(family_chain(Family::V4), rules4),
            regular(family_chain(Family::V6), rules6),
            regular(JUDGE, judge),
            base("input", Hook::Input, vec![incoming()]),
            base("forward", Hook::Forward, vec![incoming(), outgoing()]),
            base("output", Hook::Output, vec![outgoing()]),
        ],
    }
}
