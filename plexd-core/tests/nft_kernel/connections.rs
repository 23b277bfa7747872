//! Connections that are open while the policy changes: one that is still allowed goes on, one that is not ends at once,
//! whichever way it goes and whoever speaks next.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use plexd_core::kernel::Firewall;
use plexd_core::kernel::nft::NfTables;

use super::support::{DROPPED, PASSES, Peer, at, in_namespace, run, set_sysctl, table, wait};

/// First of ten ports of the connections that stay allowed, and of those that do not; each way has its own.
const KEPT: u16 = 80;
const REVOKED: u16 = 90;

/// Changes under which data flows.
const CHANGES: u16 = 20;

/// A connection's two ends: who opened it, and whom it was opened to.
type Ends = [TcpStream; 2];

/// Where a connection goes: over which way, and its destination.
struct Way {
    name: &'static str,
    from: Place,
    to: (Place, &'static str),
}

#[derive(Clone, Copy)]
enum Place {
    Node,
    Mesh,
    Lan,
}

const WAYS: [Way; 6] = [
    Way { name: "in", from: Place::Mesh, to: (Place::Node, "10.100.0.1") },
    Way { name: "in, IPv6", from: Place::Mesh, to: (Place::Node, "fd00:100::1") },
    Way { name: "out", from: Place::Node, to: (Place::Mesh, "10.100.0.2") },
    Way { name: "out, IPv6", from: Place::Node, to: (Place::Mesh, "fd00:100::2") },
    Way { name: "through, from the mesh", from: Place::Mesh, to: (Place::Lan, "10.101.0.2") },
    Way { name: "through, to the mesh", from: Place::Lan, to: (Place::Mesh, "10.100.0.2") },
];

/// The node, in whose namespace the test runs, a peer in its mesh, and a network behind it.
struct Places {
    mesh: Peer,
    lan: Peer,
}

impl Places {
    fn new() -> Self {
        let (mesh, lan) = (Peer::joined(), Peer::joined_by("lan0", 101));
        set_sysctl("net/ipv4/ip_forward", "1");
        mesh.run(|| run("ip route add 10.101.0.0/24 via 10.100.0.1"));
        lan.run(|| run("ip route add 10.100.0.0/24 via 10.101.0.1"));
        Self { mesh, lan }
    }

    fn run<T: Send + 'static>(&self, place: Place, work: impl FnOnce() -> T + Send + 'static) -> T {
        match place {
            Place::Node => work(),
            Place::Mesh => self.mesh.run(work),
            Place::Lan => self.lan.run(work),
        }
    }

    /// Opens a connection.
    fn open(&self, way: &Way, port: u16) -> Ends {
        let to: SocketAddr = at(way.to.1, port);
        let listener = self.run(way.to.0, move || TcpListener::bind(to).unwrap());
        let opened = self.run(way.from, move || TcpStream::connect_timeout(&to, PASSES));
        let near = opened.unwrap_or_else(|error| panic!("{}: {error}", way.name));
        [near, listener.accept().unwrap().0]
    }
}

/// Sends numbers to and fro until it is told to stop; returns how many came.
fn pump([mut near, mut far]: Ends, is_over: &Arc<AtomicBool>) -> JoinHandle<u32> {
    let is_over = Arc::clone(is_over);
    let pass = |from: &mut TcpStream, to: &mut TcpStream, number: u32| {
        let mut arrived = [0; 4];
        from.write_all(&number.to_be_bytes()).unwrap();
        to.read_exact(&mut arrived).unwrap();
        assert_eq!(u32::from_be_bytes(arrived), number);
    };
    thread::spawn(move || {
        for end in [&near, &far] {
            end.set_read_timeout(Some(PASSES)).unwrap();
            end.set_nodelay(true).unwrap();
        }
        let mut number = 0;
        while !is_over.load(Ordering::Relaxed) {
            pass(&mut near, &mut far, number);
            pass(&mut far, &mut near, number);
            number += 1;
        }
        number
    })
}

/// Rules that allow these ports every way, and one that makes a difference.
fn rules(ports: &[u16], difference: u16) -> Vec<String> {
    let ways = [
        "n_peer n_here",
        "n_here n_peer",
        "10.100.0.0/24 10.101.0.0/24",
        "10.101.0.0/24 10.100.0.0/24",
        "fd00:100::/64 fd00:100::/64",
    ];
    let each = |first: &u16| *first..*first + 10;
    let allowed = |port: u16| ways.map(|way| format!("allow {way} tcp/{port}"));
    let mut rules = vec![format!("deny n_peer n_here udp/{difference}")];
    rules.extend(ports.iter().flat_map(each).flat_map(allowed));
    rules
}

#[test]
fn root_connections_survive_changes_that_allow_them_and_end_with_those_that_do_not() {
    in_namespace(|| {
        let places = Places::new();
        let nft = NfTables::new().unwrap();
        let put = |ports: &[u16], difference| {
            let rules = rules(ports, difference);
            let rules: Vec<_> = rules.iter().map(String::as_str).collect();
            wait(nft.replace(&table(&rules))).unwrap();
        };
        put(&[KEPT, REVOKED], 1);
        let is_over = Arc::<AtomicBool>::default();
        let mut revoked: Vec<Ends> =
            WAYS.iter().zip(REVOKED..).map(|(way, port)| places.open(way, port)).collect();
        let kept: Vec<_> =
            WAYS.iter().zip(KEPT..).map(|(way, port)| pump(places.open(way, port), &is_over)).collect();
        for ends in &mut revoked {
            let [near, far] = ends;
            near.write_all(b"x").unwrap();
            far.read_exact(&mut [0]).unwrap();
        }
        for difference in 2..CHANGES {
            put(&[KEPT, REVOKED], difference);
        }
        put(&[KEPT], CHANGES);

        for end in revoked.iter_mut().flatten() {
            // What is on its way, the answer to what came last among it, is not what is looked for.
            end.write_all(b"must not arrive").unwrap();
        }
        // That something does not come can only be waited for.
        thread::sleep(DROPPED);
        for (way, ends) in WAYS.iter().zip(&mut revoked) {
            for (end, who) in ends.iter_mut().zip(["who opened it", "the other"]) {
                end.set_nonblocking(true).unwrap();
                let read = end.read(&mut [0; 16]).map_err(|error| error.kind());
                assert_eq!(read, Err(ErrorKind::WouldBlock), "{}: something came to {who}", way.name);
            }
        }
        is_over.store(true, Ordering::Relaxed);
        for (way, pump) in WAYS.iter().zip(kept) {
            let numbers = pump.join().unwrap_or_else(|_| panic!("{}: it did not go on", way.name));
            assert!(numbers > u32::from(CHANGES), "{}: {numbers}", way.name);
        }
    });
}
