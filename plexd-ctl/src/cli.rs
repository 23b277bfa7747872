//! The arguments of plexd-ctl. Parses; decides nothing.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Exit codes, for `--help`.
const EXIT_CODES: &str = "\
Exit codes:
  0  fine
  1  failed
  2  wrong usage
  3  the node is not enrolled
  4  plexd-core cannot be reached
  5  not permitted
  6  degraded (only where a command checks)";

/// Administers plexd-core.
#[derive(Debug, Parser)]
#[command(name = "plexd-ctl", version, about, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Socket of plexd-core
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/plexd/admin.sock")]
    pub(crate) socket: PathBuf,
    /// How to print: a table for people, or JSON for programs (stable; times in RFC 3339)
    #[arg(short = 'o', long = "output", global = true, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// The same as `-o json`
    #[arg(long, global = true, conflicts_with = "output")]
    json: bool,
    /// Print without colours; so does the variable `NO_COLOR`
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
}

impl Global {
    /// Returns how to print.
    pub(crate) fn format(&self) -> Format {
        if self.json { Format::Json } else { self.output }
    }
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what the node is, how it does, and what to do about what is wrong
    #[command(after_help = "Examples:\n  plexd-ctl status\n  plexd-ctl status -o json | jq .mesh.peers_up")]
    Status,
    /// List the peers, as WireGuard and the kernel's routes have them
    #[command(
        after_help = "Examples:\n  plexd-ctl peers\n  plexd-ctl peers -o json | jq '.peers[] | select(.state != \"up\")'\n  \
        plexd-ctl peers -o json | jq '.peers[] | select(.routes != \"routed\") | .unrouted'"
    )]
    Peers,
    /// Measure how long echoes (ICMP) to a peer take through the tunnel
    #[command(
        after_help = "plexd-core sends the echoes, as far as net.ipv4.ping_group_range lets its group; policy of both nodes \
        has to allow them. The exit code is 0 if at least one is answered.\n\nExamples:\n  plexd-ctl ping n_7c9e\n  \
        plexd-ctl ping 10.100.0.2 -c 10 -i 0.2\n  plexd-ctl ping n_7c9e --json | jq .rtt_us.avg"
    )]
    Ping(Ping),
    /// List the policies in force, with their rules and counters; say what they do, and test them
    #[command(
        after_help = "Without a subcommand the policies are listed. A rule that can never match is marked: earlier rules \
        decide all that it matches, or it matches nobody. A packet that several rules decide alike counts for any of \
        them, so that a marked rule may show packets.\n\nExamples:\n  plexd-ctl policies\n  \
        plexd-ctl policies -o json | jq .denied_packets\n  \
        plexd-ctl policies explain --src n_a --dst n_b --proto tcp --port 443"
    )]
    Policies {
        #[command(subcommand)]
        command: Option<Policies>,
    },
    /// Enrol the node with a one-time token
    #[command(
        after_help = "The token is asked for without echo, or read from standard input if that is not a \
        terminal.\n\nExamples:\n  plexd-ctl join\n  plexd-ctl join --token-file /etc/plexd/bootstrap-token\n  \
        get-token | plexd-ctl join -"
    )]
    Join(Join),
    /// Give the node's identity up, at the control plane and here; the mesh is taken down
    #[command(
        after_help = "Keys, identity, peers and policies are removed; what applications reported stays, unless --purge \
        is given. plexd-core goes on running: `plexd-ctl join` enrols the node again, as a new one.\n\nExamples:\n  \
        plexd-ctl deregister\n  plexd-ctl deregister --purge\n  plexd-ctl deregister --force   # the control plane is gone"
    )]
    Deregister(Deregister),
    /// Show the newest events of the control plane, and what became of each; never what is in them
    #[command(
        after_help = "With JSON, each line is one event.\n\nExamples:\n  plexd-ctl events\n  plexd-ctl events --follow\n  \
        plexd-ctl events -n 1000 --json | jq -r 'select(.outcome == \"rejected\") | .reason'"
    )]
    Events(Events),
}

/// What to do with the policies.
#[derive(Debug, Subcommand)]
pub(crate) enum Policies {
    /// Say what the policy in force decides on a connection, by which rule, and why on this node
    #[command(
        after_help = "A node id stands for the node's mesh address. Without --port or --proto the answer may depend on them; \
        it then names the rules. The exit code is 0 whatever the answer is.\n\nExamples:\n  \
        plexd-ctl policies explain --src n_a --dst n_b --proto tcp --port 443\n  \
        plexd-ctl policies explain --src 10.100.0.2 --dst 10.7.0.9 --proto icmp\n  \
        plexd-ctl policies explain --src n_a --dst n_b --json | jq -r .verdict"
    )]
    Explain(Explain),
    /// Hold the policy in force against a file of expectations
    #[command(
        after_help = "One expectation per line, as `allow` or `deny`, a protocol (tcp, udp, icmp or a number; none is any), \
        the source, `->`, the destination with a port (of tcp and udp; none is any). Ends are node ids or addresses; an IPv6 \
        address stands in brackets before a port. What follows a `#` is a comment; 10,000 lines are possible.\n\n  \
        # who may reach the web server\n  allow tcp n_a -> n_web:443\n  deny  tcp n_a -> n_web:22\n  \
        deny  n_guest -> n_web              # whatever the protocol and port\n  \
        allow udp fd00::1 -> [fd00::2]:53\n\nEach expectation that fails is told with the rule that decides. The exit code \
        is 0 if all hold, 1 if some fail, 2 if the file is wrong; a pipeline needs no more.\n\nExamples:\n  \
        plexd-ctl policies test expectations.txt\n  generate-expectations | plexd-ctl policies test -"
    )]
    Test(Test),
    /// Print the table of the policy in force as text that `nft -f` loads
    #[command(
        after_help = "Each entry is followed by the rule it is for. Its lines are nft's; with JSON they are one value, \
        `text`.\n\nExamples:\n  plexd-ctl policies export > plexd.nft\n  plexd-ctl policies export | nft -c -f -"
    )]
    Export,
}

/// Arguments of `policies explain`.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Who opens the connection: a node id or an address
    #[arg(long, value_name = "WHO")]
    pub(crate) src: String,
    /// To whom: a node id or an address
    #[arg(long, value_name = "WHO")]
    pub(crate) dst: String,
    /// tcp, udp, icmp or a number from 0 to 255; none is any
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    pub(crate) proto: Option<String>,
    /// Destination port, of tcp or udp; none is any
    #[arg(long, value_name = "PORT", requires = "proto", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
}

/// Arguments of `policies test`.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// The file of expectations; `-` is standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// Takes the name or the number of a protocol, as plexd-core does.
pub(crate) fn protocol(text: &str) -> Result<String, &'static str> {
    let is_known = ["tcp", "udp", "icmp"].contains(&text) || text.parse::<u8>().is_ok();
    if is_known { Ok(text.to_owned()) } else { Err("must be tcp, udp, icmp or a number from 0 to 255") }
}

/// Arguments of `join`.
#[derive(Debug, Args)]
pub(crate) struct Join {
    /// Read the token from FILE and delete it once the node is enrolled, or if it is already; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// `-`: read the token from standard input. A token itself is refused here: every user could see it in `ps`
    #[arg(value_name = "-", conflicts_with = "token_file")]
    pub(crate) stdin: Option<String>,
}

/// Arguments of `deregister`.
#[derive(Debug, Args)]
pub(crate) struct Deregister {
    /// Also empty the data directory: reports, with their versions and what of them is unsent
    #[arg(long)]
    pub(crate) purge: bool,
    /// Act on this node alone, without asking the control plane, which then goes on listing the node
    #[arg(long)]
    pub(crate) force: bool,
}

/// Arguments of `events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Go on with those that come, until interrupted
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How many of those that came before; plexd-core remembers 1000 since its start
    #[arg(short = 'n', long = "lines", value_name = "N", default_value_t = 50)]
    pub(crate) recent: u32,
}

/// Arguments of `ping`.
#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// Id of the peer, or its address in the mesh
    pub(crate) peer: String,
    /// How many echoes, 1 to 100
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) count: u32,
    /// Seconds from one echo to the next, 0.1 to 60
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Interval,
}

impl Ping {
    /// Returns the milliseconds from one echo to the next.
    pub(crate) fn interval_ms(&self) -> u32 {
        self.interval.milliseconds
    }
}

/// The time from one echo to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Interval {
    milliseconds: u32,
}

fn interval(text: &str) -> Result<Interval, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if !(0.1..=60.0).contains(&seconds) {
        return Err("must be 0.1 to 60 seconds".to_owned());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "100 to 60000")]
    let milliseconds = (seconds * 1000.0).round() as u32;
    Ok(Interval { milliseconds })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_follow_the_command() {
        for arguments in [
            ["plexd-ctl", "--socket", "/s", "-o", "json", "--no-color", "peers"],
            ["plexd-ctl", "peers", "--socket", "/s", "-o", "json", "--no-color"],
        ] {
            let cli = Cli::try_parse_from(arguments).unwrap();
            assert_eq!(cli.global.socket, PathBuf::from("/s"));
            assert_eq!(cli.global.format(), Format::Json);
            assert!(cli.global.no_color && matches!(cli.command, Command::Peers));
        }
    }

    #[test]
    fn json_can_be_asked_for_in_one_way_or_the_other() {
        let format = |arguments: &[&str]| Cli::try_parse_from(arguments).map(|cli| cli.global.format()).ok();
        assert_eq!(format(&["plexd-ctl", "events", "--json"]), Some(Format::Json));
        assert_eq!(format(&["plexd-ctl", "--json", "status"]), Some(Format::Json));
        assert_eq!(format(&["plexd-ctl", "events", "--json", "-o", "table"]), None);
    }

    #[test]
    fn pings_are_bounded() {
        let ping = |more: &[&str]| {
            let parsed = Cli::try_parse_from([&["plexd-ctl", "ping", "n_b"], more].concat()).ok()?;
            let Command::Ping(ping) = parsed.command else { return None };
            Some((ping.count, ping.interval_ms()))
        };
        assert_eq!(ping(&[]), Some((4, 1000)));
        assert_eq!(ping(&["-c", "100", "-i", "0.1"]), Some((100, 100)));
        assert_eq!(ping(&["--interval", "60"]), Some((4, 60_000)));
        for refused in [["-c", "0"], ["-c", "101"], ["-i", "0.09"], ["-i", "61"], ["-i", "NaN"], ["-i", "x"]]
        {
            assert_eq!(ping(&refused), None, "{refused:?}");
        }
    }

    #[test]
    fn policies_are_listed_unless_something_else_is_asked() {
        let parse = |more: &[&str]| {
            let parsed = Cli::try_parse_from([&["plexd-ctl", "policies"], more].concat()).ok()?;
            let Command::Policies { command } = parsed.command else { return None };
            Some(command)
        };
        assert!(matches!(parse(&[]), Some(None)));
        assert!(matches!(parse(&["export"]), Some(Some(Policies::Export))));
        assert!(matches!(parse(&["test", "-"]), Some(Some(Policies::Test(_)))));
        let ends = ["explain", "--src", "n_a", "--dst", "n_b"];
        let explain =
            |more: &[&str]| matches!(parse(&[&ends, more].concat()), Some(Some(Policies::Explain(_))));
        for good in
            [&[][..], &["--proto", "icmp"], &["--proto", "47"], &["--proto", "tcp", "--port", "65535"]]
        {
            assert!(explain(good), "{good:?}");
        }
        for bad in [
            &["--port", "443"][..],
            &["--proto", "sctp"],
            &["--proto", "256"],
            &["--proto", "tcp", "--port", "0"],
        ] {
            assert!(!explain(bad), "{bad:?}");
        }
        assert!(parse(&["explain", "--src", "n_a"]).is_none() && parse(&["test"]).is_none());
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let cli = Cli::try_parse_from(["plexd-ctl", "status"]).unwrap();
        assert_eq!(cli.global.socket, PathBuf::from("/run/plexd/admin.sock"));
        assert_eq!(cli.global.format(), Format::Table);
        assert!(!cli.global.no_color);
    }
}
