//! What is a client and what is not, with real sockets. Whose file a socket is bound to takes `CAP_NET_ADMIN` to know.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::*;

/// Whether it is the error that it is to be.
type Expected = fn(&Unproven) -> bool;

struct Rig {
    folder: tempfile::TempDir,
    path: PathBuf,
    listener: UnixListener,
}

fn rig() -> Rig {
    assert!(nix::unistd::geteuid().is_root(), "needs root");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    Rig { folder, path, listener }
}

/// Connects, and returns both ends: the client's and the accepted one.
fn connection(listener: &UnixListener, path: &Path) -> (UnixStream, UnixStream) {
    let client = UnixStream::connect(path).unwrap();
    (client, listener.accept().unwrap().0)
}

impl Rig {
    fn see(&self, socket: impl Into<OwnedFd>) -> Result<Client<OwnedFd>, Unproven> {
        Client::see(socket.into(), &self.path)
    }
}

#[test]
fn root_a_client_is_who_it_was_when_it_connected() {
    let rig = rig();
    let (client, accepted) = connection(&rig.listener, &rig.path);
    let (_other, other_accepted) = connection(&rig.listener, &rig.path);
    let seen = rig.see(accepted.try_clone().unwrap()).unwrap();
    assert_eq!(seen.peer, PeerCredentials::of(&accepted).unwrap());
    assert_eq!((seen.peer.uid, u32::try_from(seen.peer.pid).unwrap()), (0, std::process::id()));
    let again = rig.see(accepted.try_clone().unwrap()).unwrap();
    assert_eq!(seen.cookie, again.cookie, "one connection");
    assert_ne!(seen.cookie, rig.see(other_accepted).unwrap().cookie);

    // Who has no more to say still listens.
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(seen.is_connected() && rig.see(accepted.try_clone().unwrap()).is_ok());
    drop(client);
    assert!(!seen.is_connected());
    assert!(matches!(rig.see(accepted), Err(Unproven::Left)));
}

#[test]
fn root_a_client_in_another_network_namespace_is_seen() {
    let rig = rig();
    let path = rig.path.clone();
    let client = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        UnixStream::connect(path).unwrap()
    });
    let accepted = rig.listener.accept().unwrap().0;
    let _client = client.join().unwrap();
    assert!(rig.see(accepted).is_ok());
}

#[test]
fn root_a_client_that_the_sidecar_turned_away_or_that_left_in_a_hurry_is_gone() {
    let rig = rig();
    let (_client, accepted) = connection(&rig.listener, &rig.path);
    accepted.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(matches!(rig.see(accepted), Err(Unproven::Left)));
    let (mut client, accepted) = connection(&rig.listener, &rig.path);
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    drop(client);
    assert!(matches!(rig.see(accepted), Err(Unproven::Left)));
}

#[test]
fn root_whatever_else_is_shown_proves_nothing() {
    use Unproven::{AcceptedElsewhere, Listens, NotAStream};
    let rig = rig();
    let elsewhere = rig.folder.path().join("elsewhere.sock");
    // Root's, and whoever is accepted there has root's credentials, or gives them to who connected.
    let of_root = UnixListener::bind(&elsewhere).unwrap();
    let (connected, accepted_elsewhere) = connection(&of_root, &elsewhere);
    let (client, _accepted) = connection(&rig.listener, &rig.path);
    let (one, two) = UnixStream::pair().unwrap();
    let unconnected = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
    let sequenced = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
    let datagram = UnixDatagram::bind(rig.folder.path().join("datagram.sock")).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp_client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
    let (tcp_accepted, _) = tcp.accept().unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    let folder = fs::File::open(rig.folder.path()).unwrap();
    // The very file of api.sock, opened.
    let itself = plexd_sys::bound_file(&rig.listener).unwrap();

    let no_stream: Expected = |error| matches!(error, NotAStream);
    let no_client: Expected = |error| matches!(error, AcceptedElsewhere(_));
    let listens: Expected = |error| matches!(error, Listens);
    let table: [(&str, OwnedFd, Expected); 15] = [
        ("the listener", rig.listener.try_clone().unwrap().into(), listens),
        ("another listener", of_root.into(), listens),
        ("a client's end", client.into(), no_client),
        ("an end that connected to a listener of root's", connected.into(), no_client),
        ("a connection of another listener", accepted_elsewhere.into(), no_client),
        ("one of a pair", one.into(), no_client),
        ("the other of the pair", two.into(), no_client),
        ("a socket that is not connected", unconnected, no_client),
        ("a socket of sequenced packets", sequenced, no_stream),
        ("a datagram socket", datagram.into(), no_stream),
        ("a TCP client", tcp_client.into(), no_stream),
        ("a TCP connection", tcp_accepted.into(), no_stream),
        ("a device", file.into(), no_stream),
        ("a folder", folder.into(), no_stream),
        ("the file of the socket", itself, no_stream),
    ];
    for (what, socket, expected) in table {
        let error = rig.see(socket).expect_err(what);
        assert!(expected(&error), "{what}: {error:?}");
    }
}

#[test]
fn root_the_name_proves_nothing_when_the_file_is_another() {
    let rig = rig();
    let (_before, accepted_before) = connection(&rig.listener, &rig.path);
    // As somebody else would in a folder, a mount namespace or a chroot of its own.
    fs::rename(&rig.path, rig.folder.path().join("aside.sock")).unwrap();
    let other = UnixListener::bind(&rig.path).unwrap();
    let (_client, accepted) = connection(&other, &rig.path);
    assert_eq!(accepted.local_addr().unwrap().as_pathname(), Some(rig.path.as_path()));
    assert!(rig.see(accepted.try_clone().unwrap()).is_ok(), "as long as it is the file at the path");
    let same_name = accepted_before.local_addr().unwrap();
    assert_eq!(same_name.as_pathname(), Some(rig.path.as_path()));
    let error = rig.see(accepted_before.try_clone().unwrap()).unwrap_err();
    assert!(matches!(error, Unproven::AcceptedElsewhere(_)), "{error:?}");

    // And back again; then nothing is there any more.
    fs::rename(rig.folder.path().join("aside.sock"), &rig.path).unwrap();
    assert!(rig.see(accepted_before.try_clone().unwrap()).is_ok() && rig.see(accepted).is_err());
    fs::remove_file(&rig.path).unwrap();
    let error = rig.see(accepted_before).unwrap_err();
    assert!(matches!(error, Unproven::ApiSocket { .. }), "{error:?}");
}
