//! Connections by the thousand, of as many users as it takes: one Python program that becomes each of them before it
//! connects, as a process of Rust with threads cannot.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use plexd_e2e::Node;

/// The first of the users, whom nobody knows by name; they are in group `plexd`.
pub(super) const FIRST: u32 = 61_000;

const PROGRAM: &str = r#"
import grp, os, resource, socket, sys

# As many as it takes; root may.
hard = max(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 8192)
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, hard))
group = grp.getgrnam("plexd").gr_gid
os.setgroups([])
os.setegid(group)
kept = []

def connect(who):
    if who == "tcp":
        return socket.create_connection(("127.0.0.1", 9100), 60)
    os.seteuid(int(who))
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect("/run/plexd/api.sock")
        return connection
    finally:
        os.seteuid(0)

def ask(connection):
    answer = b""
    try:
        connection.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tcp-token\r\n\r\n")
        while not answer.endswith(b"\r\n\r\n"):
            more = connection.recv(4096)
            if not more:
                break
            answer += more
    except ConnectionError:
        # Turned away.
        pass
    return answer[:12].decode()

def listen(connection):
    heard = b""
    while more := connection.recv(4096):
        heard += more
    return repr(heard.decode())

for line in sys.stdin:
    verb, *words = line.split()
    if verb == "come":
        who, count = words[0], int(words[1])
        new = [connect(who) for _ in range(count)]
        kept += new
        good = sum(ask(connection) == "HTTP/1.1 200" for connection in new)
        print(good, flush=True)
    elif verb == "ask":
        print(sum(ask(connection) == "HTTP/1.1 200" for connection in kept), flush=True)
    elif verb == "say":
        text = b"GET /v1/state HTTP/1.1\r\nX: " + b"x" * int(words[0])
        for connection in kept:
            connection.sendall(text)
        print(len(kept), flush=True)
    elif verb == "try":
        print(listen(connect(words[0])), flush=True)
    elif verb == "go":
        for connection in kept:
            connection.close()
        kept = []
        print(0, flush=True)
"#;

/// The program. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Crowd {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Crowd {
    /// Starts it in the node's host, without a connection.
    #[track_caller]
    pub(super) fn gather(node: &Node) -> Self {
        let mut command = node.host().command("python3");
        command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 starts");
        let stdin = child.stdin.take().expect("it is piped");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, stdin, stdout }
    }

    #[track_caller]
    fn tell(&mut self, line: &str) -> String {
        writeln!(self.stdin, "{line}").unwrap_or_else(|error| panic!("{line}: {error}"));
        let mut answer = String::new();
        let read = self.stdout.read_line(&mut answer);
        assert!(matches!(read, Ok(1..)), "{line}: the program ended");
        answer.trim_end().to_owned()
    }

    #[track_caller]
    fn count(&mut self, line: &str) -> usize {
        let answer = self.tell(line);
        answer.parse().unwrap_or_else(|error| panic!("{line}: {error}: {answer}"))
    }

    /// Makes `count` connections more of `who`, a user id or `tcp`, each with one request; returns how many were
    /// answered.
    #[track_caller]
    pub(super) fn come(&mut self, who: &str, count: usize) -> usize {
        self.count(&format!("come {who} {count}"))
    }

    /// Makes a request over each connection; returns how many were answered.
    #[track_caller]
    pub(super) fn ask(&mut self) -> usize {
        self.count("ask")
    }

    /// Sends most of a head over each connection, with a header of `bytes` bytes.
    #[track_caller]
    pub(super) fn say(&mut self, bytes: usize) -> usize {
        self.count(&format!("say {bytes}"))
    }

    /// Makes a connection and returns what it hears until the end, without having said anything, in quotes.
    #[track_caller]
    pub(super) fn hear(&mut self, who: &str) -> String {
        self.tell(&format!("try {who}"))
    }

    /// Ends all connections.
    #[track_caller]
    pub(super) fn go(&mut self) {
        self.count("go");
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
