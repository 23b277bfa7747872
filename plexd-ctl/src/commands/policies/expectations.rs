//! A file of expectations, as `plexd-ctl policies test` reads it: one per line. Parses, and names the line of a mistake;
//! asks nobody whether a node is there.

use std::net::IpAddr;

use plexd_proto::admin::v1 as wire;

use crate::cli::protocol;

/// Expectations in a file.
pub(super) const MAX: usize = 10_000;

/// Longest id of a node, in bytes.
const MAX_ID: usize = 128;

/// An expectation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expectation {
    /// Its line, from 1.
    pub(super) line: usize,
    /// As it was written, without the comment.
    pub(super) text: String,
    /// What it says.
    pub(super) wire: wire::Expectation,
}

/// A mistake.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// The line, from 1.
    pub(super) line: usize,
    /// What is wrong with it, and how it should look.
    pub(super) reason: String,
}

/// Parses the text of a file.
pub(super) fn parse(text: &str) -> Result<Vec<Expectation>, Mistake> {
    let mut expectations = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.split('#').next().unwrap_or_default();
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        let wire = expectation(&words).map_err(|reason| Mistake { line, reason })?;
        if expectations.len() == MAX {
            return Err(Mistake { line, reason: format!("more than {MAX} expectations; use several files") });
        }
        expectations.push(Expectation { line, text: words.join(" "), wire });
    }
    Ok(expectations)
}

fn expectation(words: &[&str]) -> Result<wire::Expectation, String> {
    let (action, protocol, source, destination) = match words {
        [action, source, "->", destination] => (action, None, source, destination),
        [action, protocol, source, "->", destination] => (action, Some(*protocol), source, destination),
        _ => {
            let shape = "an expectation looks like: allow tcp n_a -> n_b:443";
            return Err(format!("{:?} is not understood; {shape}", words.join(" ")));
        }
    };
    let verdict = match *action {
        "allow" => wire::Verdict::Allow,
        "deny" => wire::Verdict::Deny,
        other => return Err(format!("{other:?} is neither allow nor deny")),
    };
    if let Some(text) = protocol {
        self::protocol(text).map_err(|reason| format!("protocol {text:?} {reason}"))?;
    }
    let (destination, port) = destination_and_port(destination)?;
    if port != 0 && !["tcp", "udp", "6", "17"].contains(&protocol.unwrap_or_default()) {
        return Err(format!("port {port} needs a protocol that has ports, tcp or udp"));
    }
    let flow = wire::Flow {
        source: end(source)?,
        destination: end(destination)?,
        protocol: protocol.unwrap_or_default().to_owned(),
        port: port.into(),
    };
    Ok(wire::Expectation { flow: Some(flow), verdict: verdict.into() })
}

/// Splits the port off; 0 is none.
fn destination_and_port(text: &str) -> Result<(&str, u16), String> {
    let (destination, port) = if let Some(rest) = text.strip_prefix('[') {
        let (inner, port) =
            rest.split_once(']').ok_or_else(|| format!("{text:?} lacks its closing bracket"))?;
        let port = match port.strip_prefix(':') {
            None if !port.is_empty() => return Err(format!("{port:?} behind the bracket is no port")),
            port => port,
        };
        (inner, port)
    } else if text.parse::<IpAddr>().is_ok() {
        (text, None)
    } else {
        text.rsplit_once(':').map_or((text, None), |(destination, port)| (destination, Some(port)))
    };
    let Some(port) = port else { return Ok((destination, 0)) };
    match port.parse() {
        Ok(0) | Err(_) => Err(format!("port {port:?} is not a number from 1 to 65535")),
        Ok(port) => Ok((destination, port)),
    }
}

fn end(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
    let is_id = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.len() <= MAX_ID
        && text.bytes().all(allowed);
    if is_id || text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is neither an address nor the id of a node"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Result<(wire::Verdict, wire::Flow), String> {
        let parsed = parse(line).map_err(|mistake| mistake.reason)?;
        let [expectation] = parsed.as_slice() else { panic!("{parsed:?}") };
        Ok((expectation.wire.verdict(), expectation.wire.flow.clone().unwrap()))
    }

    #[test]
    fn each_form_of_an_expectation_is_understood() {
        let (allow, deny) = (wire::Verdict::Allow, wire::Verdict::Deny);
        for (line, verdict, source, destination, protocol, port) in [
            ("allow tcp n_a -> n_b:443", allow, "n_a", "n_b", "tcp", 443),
            ("  deny\tn_a   ->  n_b # whatever", deny, "n_a", "n_b", "", 0),
            ("deny udp 10.0.0.1 -> 10.0.0.2", deny, "10.0.0.1", "10.0.0.2", "udp", 0),
            ("allow icmp fd00::1 -> fd00::2", allow, "fd00::1", "fd00::2", "icmp", 0),
            ("allow 6 fd00::1 -> [fd00::2]:65535", allow, "fd00::1", "fd00::2", "6", 65535),
            ("allow 47 n_a -> [n:b]", allow, "n_a", "n:b", "47", 0),
        ] {
            let flow = wire::Flow {
                source: source.into(),
                destination: destination.into(),
                protocol: protocol.into(),
                port,
            };
            assert_eq!(one(line), Ok((verdict, flow)), "{line}");
        }
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_what_to_write() {
        for (line, words) in [
            ("allow tcp n_a n_b:443", "looks like: allow tcp n_a -> n_b:443"),
            ("allow tcp n_a -> n_b : 443", "looks like"),
            ("permit tcp n_a -> n_b:443", "\"permit\" is neither allow nor deny"),
            ("allow sctp n_a -> n_b", "protocol \"sctp\" must be tcp, udp, icmp or a number"),
            ("allow n_a -> n_b:443", "port 443 needs a protocol"),
            ("allow icmp n_a -> n_b:443", "port 443 needs a protocol"),
            ("allow tcp n_a -> n_b:0", "port \"0\" is not a number from 1 to 65535"),
            ("allow tcp n_a -> n_b:http", "port \"http\" is not"),
            ("allow tcp n_a -> [fd00::2:443", "closing bracket"),
            ("allow tcp n_a -> [fd00::2]443", "behind the bracket"),
            ("allow tcp 10.0.0.0/8 -> n_b:443", "\"10.0.0.0/8\" is neither an address"),
            ("allow tcp * -> n_b:443", "\"*\" is neither an address"),
        ] {
            let text = format!("# a comment\n\n{line}\nnonsense");
            let mistake = parse(&text).unwrap_err();
            assert_eq!(mistake.line, 3, "{line}");
            assert!(mistake.reason.contains(words), "{line}: {}", mistake.reason);
        }
    }

    #[test]
    fn a_file_has_its_bound() {
        let line = "deny n_a -> n_b\n";
        assert_eq!(parse(&line.repeat(MAX)).unwrap().len(), MAX);
        let mistake = parse(&line.repeat(MAX + 1)).unwrap_err();
        assert_eq!((mistake.line, mistake.reason.contains("10000")), (MAX + 1, true));
        assert_eq!(parse("# nothing\n"), Ok(Vec::new()));
    }
}
