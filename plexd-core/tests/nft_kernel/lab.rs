//! Namespaces of a test's own, two that are joined as by a tunnel, and packets between them.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use plexd_core::kernel::{Counters, ObservedTable};

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

pub(super) fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

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
