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
    pub(crate) output: Format,
    /// Print without colours; so does the variable `NO_COLOR`
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
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
    /// List the peers, as WireGuard has them
    #[command(
        after_help = "Examples:\n  plexd-ctl peers\n  plexd-ctl peers -o json | jq '.peers[] | select(.state != \"up\")'"
    )]
    Peers,
    /// List the policies in force, with their rules and counters
    #[command(
        after_help = "Examples:\n  plexd-ctl policies\n  plexd-ctl policies -o json | jq .denied_packets"
    )]
    Policies,
    /// Enrol the node with a one-time token
    #[command(
        after_help = "The token is asked for without echo, or read from standard input if that is not a \
        terminal.\n\nExamples:\n  plexd-ctl join\n  plexd-ctl join --token-file /etc/plexd/bootstrap-token\n  \
        get-token | plexd-ctl join -"
    )]
    Join(Join),
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
            assert_eq!(cli.global.output, Format::Json);
            assert!(cli.global.no_color && matches!(cli.command, Command::Peers));
        }
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let cli = Cli::try_parse_from(["plexd-ctl", "status"]).unwrap();
        assert_eq!(cli.global.socket, PathBuf::from("/run/plexd/admin.sock"));
        assert_eq!(cli.global.output, Format::Table);
        assert!(!cli.global.no_color);
    }
}
