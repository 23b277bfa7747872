//! Who gets what of the Local Node API, by real users and groups: every route and method with each kind of user, and
//! what becomes of a connection whose process gains or loses a group.

use std::fmt::Write as _;

use plexd_e2e::As;

use crate::support::Single;

/// What a user may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum May {
    Nothing,
    Access,
    Secrets,
}

const USERS: [(&str, May); 9] = [
    ("plexdt-none", May::Nothing),
    ("plexdt-secrets", May::Nothing),
    ("plexdt-gid-secrets", May::Nothing),
    ("plexdt-api", May::Access),
    ("plexdt-gid-api", May::Access),
    ("plexdt-both", May::Secrets),
    ("plexdt-gid-both", May::Secrets),
    ("plexdt-both-gid", May::Secrets),
    ("root", May::Secrets),
];

const METHODS: [&str; 5] = ["GET", "HEAD", "PUT", "DELETE", "POST"];

/// Each route with the status of each of [`METHODS`], for who may access it.
const ROUTES: [(&str, [u16; 5]); 13] = [
    ("/v1/state", [200, 200, 405, 405, 405]),
    ("/v1/state/metadata", [200, 200, 405, 405, 405]),
    ("/v1/state/metadata/region", [200, 200, 405, 405, 405]),
    ("/v1/state/data", [200, 200, 405, 405, 405]),
    ("/v1/state/data/nginx.conf", [200, 200, 405, 405, 405]),
    ("/v1/state/secrets", [200, 200, 405, 405, 405]),
    ("/v1/state/secrets/db%2Fpassword", [200, 200, 405, 405, 405]),
    ("/v1/state/report", [200, 200, 405, 405, 405]),
    ("/v1/state/report/of-USER", [404, 404, 200, 204, 405]),
    ("/v1/openapi.json", [200, 200, 405, 405, 405]),
    ("/healthz", [200, 200, 405, 405, 405]),
    ("/readyz", [200, 200, 405, 405, 405]),
    ("/metrics", [404, 404, 405, 405, 405]),
];

/// Returns a command line that makes each request of the table, in its order, and prints the statuses; 000 is no
/// connection.
fn requests(user: &str) -> String {
    let mut line = String::from("curl");
    for (path, _) in ROUTES {
        let path = path.replace("USER", user);
        for method in METHODS {
            let method = match method {
                "HEAD" => "--head".into(),
                "PUT" => r#"-X PUT -d '{"content_type":"t","payload":1}'"#.into(),
                method => format!("-X {method}"),
            };
            let _ = write!(
                line,
                " -s -o /dev/null -w '%{{http_code}}\n' --unix-socket /var/run/plexd/api.sock {method} \
                 http://localhost{path} --next"
            );
        }
    }
    line.trim_end_matches(" --next").into()
}

#[test]
fn every_route_and_method_with_each_kind_of_user() {
    let single = Single::new("").with_the_guides_state();
    for (user, may) in USERS {
        let output = single.a.node.host().shell(Some(As::user(user)), &requests(user));
        let mut statuses = output.stdout.lines();
        for (path, expected) in ROUTES {
            for (method, expected) in METHODS.into_iter().zip(expected) {
                let expected = match may {
                    May::Nothing => 0,
                    May::Access if path.starts_with("/v1/state/secrets/") => 403,
                    May::Access | May::Secrets => expected,
                };
                let found = statuses.next().and_then(|status| status.parse::<u16>().ok());
                assert_eq!(found, Some(expected), "{user}: {method} {path}");
            }
        }
        assert_eq!(statuses.next(), None);
    }
}

/// What a process does that changes its groups between connecting and asking. It prints statuses, and `refused`.
const CHANGING: &str = r#"
import grp, os, pwd, socket

def become(groups):
    os.seteuid(0)
    os.setgroups([grp.getgrnam(name).gr_gid for name in groups])
    os.setegid(grp.getgrnam("nogroup").gr_gid)
    os.seteuid(pwd.getpwnam("plexdt-none").pw_uid)

def connect():
    connection = socket.socket(socket.AF_UNIX)
    connection.connect("/var/run/plexd/api.sock")
    return connection

def status(connection, path):
    connection.sendall(b"HEAD %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        more = connection.recv(4096)
        assert more, "closed"
        answer += more
    return answer.split()[1].decode()

STATE, SECRET = b"/v1/state", b"/v1/state/secrets/db%2Fpassword"

become(["plexd", "plexd-secrets"])
both = connect()
become(["plexd"])
member = connect()
print("had both:", status(both, SECRET), "has one:", status(member, SECRET))
become([])
print("had both:", status(both, SECRET), status(both, STATE), "had one:", status(member, SECRET), status(member, STATE))
try:
    connect()
    print("connected")
except PermissionError:
    print("refused")
become(["plexd", "plexd-secrets"])
print("had one, has both:", status(member, SECRET), "new:", status(connect(), SECRET))
"#;

#[test]
fn a_connection_keeps_what_its_process_had_when_it_was_made() {
    let single = Single::new("").with_the_guides_state();
    let output = single.a.node.host().run(&["python3", "-c", CHANGING]).succeeded();
    let expected = "had both: 200 has one: 403\nhad both: 200 200 had one: 403 200\nrefused\nhad one, has both: 403 new: 200\n";
    assert_eq!(output.stdout, expected);
}
