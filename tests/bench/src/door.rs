//! Ways in: a Unix socket, or TLS over TCP. Connections do not block once they are made.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// Where a load goes.
#[derive(Debug, Clone)]
pub(crate) enum Door {
    /// A Unix socket.
    Unix(PathBuf),
    /// TLS.
    Tls(SocketAddr, Arc<ClientConfig>),
}

impl Door {
    /// TLS to `address`, whose certificate the authority `ca` (PEM) vouches for.
    pub(crate) fn tls(address: SocketAddr, ca: &str) -> Self {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(ca.as_bytes()).expect("the authority's certificate");
        roots.add(certificate).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the protocol versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self::Tls(address, Arc::new(config))
    }

    /// Makes a connection.
    pub(crate) fn connect(&self) -> io::Result<Connection> {
        match self {
            Self::Unix(path) => {
                let stream = std::os::unix::net::UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(Connection::Unix(UnixStream::from_std(stream)))
            }
            Self::Tls(address, config) => {
                let name = ServerName::from(address.ip());
                let mut tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
                let mut stream = std::net::TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                while tls.is_handshaking() {
                    tls.complete_io(&mut stream)?;
                }
                stream.set_nonblocking(true)?;
                Ok(Connection::Tls(Box::new(tls), TcpStream::from_std(stream)))
            }
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) enum Connection {
    /// To a Unix socket.
    Unix(UnixStream),
    /// By TLS.
    Tls(Box<ClientConnection>, TcpStream),
}

impl Connection {
    /// Has `registry` tell when there is something to read.
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Self::Unix(stream) => registry.register(stream, token, Interest::READABLE),
            Self::Tls(_, stream) => registry.register(stream, token, Interest::READABLE),
        }
    }

    /// Sends a request, which is small enough for what the kernel takes at once.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.write_all(bytes),
            Self::Tls(tls, stream) => {
                tls.writer().write_all(bytes)?;
                while tls.wants_write() {
                    tls.write_tls(stream)?;
                }
                Ok(())
            }
        }
    }

    /// Reads what is there; "would block" if nothing is, 0 at the end.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tls(tls, stream) => loop {
                match tls.reader().read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                }
                if tls.read_tls(stream)? == 0 {
                    return Ok(0);
                }
                tls.process_new_packets().map_err(io::Error::other)?;
            },
        }
    }
}
