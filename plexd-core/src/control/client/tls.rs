//! TLS towards the control plane: whom to believe, and by which time. The system's authorities or those of
//! `api_ca_file` alone; verification cannot be switched off.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::SetupError;
use crate::clock::NodeClock;
use crate::types::Clock;

/// Makes the configuration of TLS, and what tells when the control plane's certificate is valid.
pub(super) fn configure(
    ca_file: Option<&Path>,
    clock: &Arc<NodeClock>,
) -> Result<(rustls::ClientConfig, Arc<Verifier>), SetupError> {
    let failed = |error: Error| SetupError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Verifier::new(trusted(ca_file, &provider)?));
    let time = Arc::new(ClockTime(Arc::clone(clock)));
    let mut config = rustls::ClientConfig::builder_with_details(provider, time)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        // Not less than the usual verification: it is the usual one, and remembers what it verified.
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((config, verifier))
}

fn trusted(
    ca_file: Option<&Path>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, SetupError> {
    let failed = |error: &dyn std::error::Error| SetupError::Tls(error.to_string());
    let Some(path) = ca_file else {
        let system = rustls_platform_verifier::Verifier::new(Arc::clone(provider));
        return Ok(Arc::new(system.map_err(|error| failed(&error))?));
    };
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|error| failed(&error))?;
    }
    let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    Ok(builder.build().map_err(|error| failed(&error))?)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let pem = std::fs::read(path).map_err(|source| SetupError::ReadCa { path: path.to_owned(), source })?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(SetupError::NoCertificate(path.to_owned())),
    }
}

/// The node's clock, for rustls.
#[derive(Debug)]
struct ClockTime(Arc<NodeClock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        unix_time(self.0.now())
    }
}

fn unix_time(time: Timestamp) -> Option<UnixTime> {
    let seconds = u64::try_from(time.as_second()).ok()?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

/// Verifies as another verifier does, and remembers the last certificates that held.
#[derive(Debug)]
pub(super) struct Verifier {
    verifier: Arc<dyn ServerCertVerifier>,
    last: Mutex<Option<Arc<Chain>>>,
}

/// Certificates of the control plane, and the name that they are for.
#[derive(Debug)]
struct Chain {
    leaf: CertificateDer<'static>,
    intermediates: Vec<CertificateDer<'static>>,
    name: ServerName<'static>,
}

impl Verifier {
    fn new(verifier: Arc<dyn ServerCertVerifier>) -> Self {
        Self { verifier, last: Mutex::new(None) }
    }

    /// Returns whether the control plane's certificates, as the last handshake had them, are valid at `time`.
    pub(super) fn allows(&self, time: Timestamp) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (Some(chain), Some(time)) = (last, unix_time(time)) else { return false };
        self.verifier.verify_server_cert(&chain.leaf, &chain.intermediates, &chain.name, &[], time).is_ok()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.verifier.verify_server_cert(leaf, intermediates, name, ocsp_response, now)?;
        let chain = Chain {
            leaf: leaf.clone().into_owned(),
            intermediates: intermediates.iter().map(|one| one.clone().into_owned()).collect(),
            name: name.to_owned(),
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(chain));
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
