//! A read-only server of WireGuard's cross-platform user-space API, for `wg show` on the embedded backend. Answers
//! `get=1`, never with a private or preshared key, and refuses `set=1`: only the control plane configures the mesh.
//!
//! <https://www.wireguard.com/xplatform/#configuration-protocol>

use std::fmt::Write;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid};
use plexd_proto::transport::{BindError, SocketOwner, bind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::kernel::{ObservedDevice, ObservedPeer};
use crate::types::PublicKey;

/// Where wg(8) looks for sockets.
const FOLDER: &str = "/run/wireguard";

/// Longest request, in bytes. `get=1` and its blank line are 7.
const MAX_REQUEST: usize = 4096;

/// How long a connection may take in all.
const DEADLINE: Duration = Duration::from_secs(5);

/// Makes the listening socket `/run/wireguard/INTERFACE.sock`, for root only. `None` if this process may not: without
/// root nobody could connect to it either.
///
/// # Errors
/// If something is in the way, another process's socket of that name say.
pub fn bind_uapi(interface: &str) -> io::Result<Option<UnixListener>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    DirBuilder::new().recursive(true).mode(0o755).create(FOLDER)?;
    let path = Path::new(FOLDER).join(format!("{interface}.sock"));
    let owner = SocketOwner { uid: Uid::from_raw(0), gid: Gid::from_raw(0), mode: 0o600 };
    match bind(&path, owner) {
        Ok(listener) => Ok(Some(listener)),
        Err(BindError::System { source, .. }) => Err(source),
        Err(error) => Err(io::Error::new(io::ErrorKind::AddrInUse, error.to_string())),
    }
}

/// Serves one request on `stream`. `observe` reads the device, and is not polled for a request that is refused.
pub(super) async fn serve(
    stream: UnixStream,
    observe: impl Future<Output = io::Result<Option<ObservedDevice>>>,
) {
    match tokio::time::timeout(DEADLINE, exchange(stream, observe)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "UAPI connection failed"),
        Err(_) => tracing::debug!("UAPI connection took too long"),
    }
}

async fn exchange(
    mut stream: UnixStream,
    observe: impl Future<Output = io::Result<Option<ObservedDevice>>>,
) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the peer is not root"));
    }
    let answer = match operation(&read_request(&mut stream).await?) {
        Ok(()) => match observe.await {
            Ok(Some(device)) => device_text(&device),
            Ok(None) => errno_text(Errno::ENODEV),
            Err(error) => error_text(error.raw_os_error().unwrap_or(Errno::EIO as i32)),
        },
        Err(errno) => errno_text(errno),
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// Reads up to the blank line that ends a request.
async fn read_request(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    let mut limited = stream.take(MAX_REQUEST as u64);
    while !request.ends_with(b"\n\n") {
        if limited.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    Ok(request)
}

/// Accepts `get=1` and nothing else.
fn operation(request: &[u8]) -> Result<(), Errno> {
    match request {
        b"get=1\n\n" => Ok(()),
        request if request.starts_with(b"set=1\n") => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

fn errno_text(errno: Errno) -> String {
    error_text(errno as i32)
}

fn error_text(errno: i32) -> String {
    format!("errno=-{errno}\n\n")
}

fn device_text(device: &ObservedDevice) -> String {
    // Writing to a String cannot fail.
    let mut text = format!("listen_port={}\n", device.listen_port);
    if device.mark != 0 {
        let _ = writeln!(text, "fwmark={}", device.mark);
    }
    for (key, peer) in &device.peers {
        let _ = write_peer(&mut text, key, peer);
    }
    text.push_str("errno=0\n\n");
    text
}

fn write_peer(text: &mut String, key: &PublicKey, peer: &ObservedPeer) -> std::fmt::Result {
    text.push_str("public_key=");
    for byte in key.as_bytes() {
        write!(text, "{byte:02x}")?;
    }
    text.push_str("\nprotocol_version=1\n");
    if let Some(endpoint) = peer.endpoint {
        writeln!(text, "endpoint={endpoint}")?;
    }
    let since_epoch =
        peer.last_handshake.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    writeln!(text, "last_handshake_time_sec={}", since_epoch.as_secs())?;
    writeln!(text, "last_handshake_time_nsec={}", since_epoch.subsec_nanos())?;
    writeln!(text, "tx_bytes={}\nrx_bytes={}", peer.tx_bytes, peer.rx_bytes)?;
    let keepalive = peer.persistent_keepalive.map_or(0, Into::into);
    writeln!(text, "persistent_keepalive_interval={keepalive}")?;
    for allowed_ip in &peer.allowed_ips {
        writeln!(text, "allowed_ip={allowed_ip}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::types::PresharedKey;

    fn device() -> ObservedDevice {
        let peer = ObservedPeer {
            preshared_key: Some(PresharedKey::from_bytes([0xab; 32])),
            endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
            allowed_ips: ["10.0.0.2/32", "fd00::/64"].iter().map(|net| net.parse().unwrap()).collect(),
            persistent_keepalive: NonZeroU16::new(25),
            last_handshake: Some(UNIX_EPOCH + Duration::new(1_700_000_000, 5)),
            rx_bytes: 1,
            tx_bytes: 2,
        };
        ObservedDevice {
            public_key: Some(PublicKey::from_bytes([1; 32])),
            listen_port: 51820,
            mark: 0x1000,
            peers: [(PublicKey::from_bytes([0x0f; 32]), peer)].into(),
        }
    }

    #[test]
    fn the_device_is_told_without_its_secrets() {
        let expected = format!(
            "listen_port=51820\nfwmark=4096\npublic_key={}\nprotocol_version=1\nendpoint=[2001:db8::1]:51820\n\
             last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\ntx_bytes=2\nrx_bytes=1\n\
             persistent_keepalive_interval=25\nallowed_ip=10.0.0.2/32\nallowed_ip=fd00::/64\nerrno=0\n\n",
            "0f".repeat(32)
        );
        assert_eq!(device_text(&device()), expected);
        assert!(!expected.contains("abab"));
    }

    async fn ask(request: &[u8]) -> String {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(request).await.unwrap();
        client.shutdown().await.unwrap();
        // Without the deadline of `serve`: on a machine that stands still for longer, it would close the connection with
        // the request unread, which the client sees as a reset.
        exchange(server, async { Ok(Some(device())) }).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn setting_is_refused_and_anything_else_is_invalid() {
        assert!(ask(b"get=1\n\n").await.ends_with("errno=0\n\n"));
        assert_eq!(ask(b"set=1\nlisten_port=1\n\n").await, "errno=-1\n\n");
        for request in [b"".as_slice(), b"get=2\n\n", b"get=1\n", b"get=1\nx=y\n\n", &[b'x'; MAX_REQUEST]] {
            assert_eq!(ask(request).await, "errno=-22\n\n");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_dropped() {
        let (mut client, server) = UnixStream::pair().unwrap();
        serve(server, async { Ok(Some(device())) }).await;
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.is_empty());
    }
}
