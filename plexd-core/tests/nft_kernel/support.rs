//! What the tests here share: namespaces joined by cables that stand for the mesh interface, rules from text, and packets that
//! pass or do not. Every test has network namespaces of its own, which end with its threads.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use plexd_core::kernel::{Counters, ObservedTable};
use plexd_core::policy::{Action, Context, Policy, PolicySet, Rule, Selector, Service, Table, compile};

/// Long enough for a packet between two namespaces that is not going to be dropped.
pub(super) const PASSES: Duration = Duration::from_secs(5);
/// Long enough to say that a packet was dropped.
pub(super) const DROPPED: Duration = Duration::from_millis(300);

/// Runs a test on a thread with a network namespace of its own.
pub(super) fn in_namespace<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link set lo up");
        test()
    })
    .join()
    .unwrap()
}

/// Runs a command in the namespace of the calling thread.
pub(super) fn run(command: &str) -> String {
    let (done, output) = attempt(command);
    assert!(done, "{command}: {output}");
    output
}

pub(super) fn attempt(command: &str) -> (bool, String) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Runs the lines as commands of `ip`, in the namespace of the calling thread.
pub(super) fn batch(lines: &[String]) {
    feed("ip -batch -", &lines.join("\n"));
}

/// Runs a command in the namespace of the calling thread, with this on its standard input.
pub(super) fn feed(command: &str, input: &str) {
    let mut words = command.split_whitespace();
    let mut child = Command::new(words.next().unwrap()).args(words).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{command}: {input}");
}

/// Sets a value below `/proc/sys`, of the namespace of the calling thread.
pub(super) fn set_sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/{name}"), value).unwrap();
}

pub(super) fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn selector(text: &str) -> Selector {
    match text {
        "*" => Selector::Any,
        text if text.starts_with("n_") => Selector::Node(text.parse().unwrap()),
        text if text.contains('/') => Selector::Net(text.parse().unwrap()),
        text => Selector::Net(text.parse::<IpAddr>().unwrap().into()),
    }
}

pub(super) fn service(text: &str) -> Service {
    let port = |text: &str| NonZeroU16::new(text.parse().unwrap());
    match text.split_once('/') {
        None if text == "any" => Service::Any,
        Some(("tcp", number)) => Service::Tcp(port(number)),
        Some(("udp", number)) => Service::Udp(port(number)),
        _ => panic!("{text}"),
    }
}

/// `allow SRC DST SERVICE`, where a port of 0 is any.
pub(super) fn policy(rules: &[&str]) -> PolicySet {
    let rule = |text: &&str| {
        let words: Vec<_> = text.split(' ').collect();
        let action = if words[0] == "allow" { Action::Allow } else { Action::Deny };
        Rule { src: selector(words[1]), dst: selector(words[2]), service: service(words[3]), action }
    };
    PolicySet { policies: vec![Policy { id: "p".to_owned(), rules: rules.iter().map(rule).collect() }] }
}

pub(super) fn context() -> Context {
    let member = |id: &str, nets: &[&str]| {
        (id.parse().unwrap(), nets.iter().map(|net| net.parse().unwrap()).collect::<BTreeSet<_>>())
    };
    Context {
        node: "n_here".parse().unwrap(),
        mesh_ip: "10.100.0.1".parse().unwrap(),
        members: BTreeMap::from([
            member("n_here", &["10.100.0.1/32", "fd00:100::1/128"]),
            member("n_peer", &["10.100.0.2/32", "fd00:100::2/128"]),
        ]),
        interface: "plexd0".to_owned(),
        default: Action::Deny,
        enabled: true,
        log_denied: true,
    }
}

pub(super) fn table(rules: &[&str]) -> Table {
    compile(&policy(rules), &context()).unwrap().unwrap()
}

/// Returns the counters of a table that is as it should be.
pub(super) fn counters(observed: ObservedTable) -> Counters {
    match observed {
        ObservedTable::Same { counters } => counters,
        other => panic!("{other:?}"),
    }
}

/// Runs work in the peer's namespace.
pub(super) struct Peer(mpsc::Sender<Box<dyn FnOnce() + Send>>);

impl Peer {
    /// Makes a second namespace, joined to the calling thread's by a veth pair that stands for the mesh interface.
    pub(super) fn joined() -> Self {
        Self::joined_by("plexd0", 100)
    }

    /// Makes a second namespace, joined by a veth pair of that name: 10.NET.0.1 here, 10.NET.0.2 there.
    pub(super) fn joined_by(interface: &'static str, net: u8) -> Self {
        let (send, work) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, id) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip link set lo up");
            ready.send(nix::unistd::gettid()).unwrap();
            for work in work {
                work();
            }
        });
        let peer = Self(send);
        let namespace = format!("/proc/{}/task/{}/ns/net", std::process::id(), id.recv().unwrap());
        run(&format!("ip link add {interface} type veth peer name {interface} netns {namespace}"));
        // Addresses and neighbours by hand, as WireGuard has no neighbour discovery either.
        let up = move |own: u8, other: u8| {
            run(&format!("ip link set {interface} address 02:00:00:00:00:0{own}"));
            run(&format!("ip address add 10.{net}.0.{own}/24 dev {interface}"));
            run(&format!("ip address add fd00:{net}::{own}/64 dev {interface} nodad"));
            run(&format!("ip link set {interface} up"));
            for address in [format!("10.{net}.0.{other}"), format!("fd00:{net}::{other}")] {
                let there = format!("lladdr 02:00:00:00:00:0{other} dev {interface} nud permanent");
                run(&format!("ip neigh add {address} {there}"));
            }
        };
        up(1, 2);
        peer.run(move || up(2, 1));
        peer
    }

    pub(super) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (send, result) = mpsc::channel();
        self.0.send(Box::new(move || send.send(work()).unwrap())).unwrap();
        result.recv().unwrap()
    }
}

/// Connects and passes a byte both ways.
pub(super) fn connect(to: SocketAddr, patience: Duration) -> Option<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
    echo(&mut stream, patience).then_some(stream)
}

pub(super) fn echo(stream: &mut TcpStream, patience: Duration) -> bool {
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut answer = [0];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut answer).is_ok() && answer == *b"x"
}

/// Answers on these ports, in the namespace of the calling thread.
pub(super) fn serve(host: &str, ports: &[u16]) {
    for port in ports {
        let address = SocketAddr::new(host.parse().unwrap(), *port);
        let listener = TcpListener::bind(address).unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
                });
            }
        });
        let socket = UdpSocket::bind(address).unwrap();
        thread::spawn(move || {
            let mut byte = [0];
            while let Ok((_, from)) = socket.recv_from(&mut byte) {
                let _ = socket.send_to(&byte, from);
            }
        });
    }
}

pub(super) fn udp_answers(to: SocketAddr, patience: Duration) -> bool {
    let local = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(local).unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    // The kernel says by an error that our own output was dropped.
    socket.send_to(b"x", to).is_ok() && socket.recv(&mut [0]).is_ok()
}

pub(super) fn at(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().unwrap(), port)
}
