//! The control plane's own certificate authority: made once and kept beside the state, with a server certificate
//! issued anew at every start for the names that start was given.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{Timestamp, ToSpan as _, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::store::files;

/// Why there is no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the authority cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the authority cannot be written.
    #[error(transparent)]
    Write(#[from] crate::store::StoreError),
    /// One of the two files is there without the other, or does not parse.
    #[error("{} is damaged ({why}): remove it and ca.pem to make a new authority", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        why: String,
    },
    /// A certificate cannot be made, most likely because of a name given with `--name`.
    #[error("cannot issue the server certificate for {names}: {source}")]
    Issue {
        /// The names asked for.
        names: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The TLS library refuses what was issued.
    #[error("cannot configure TLS: {0}")]
    Tls(#[source] rustls::Error),
}

/// The authority: its key and where its certificate lies.
#[derive(Debug)]
pub struct Authority {
    key: KeyPair,
    pem_path: PathBuf,
}

impl Authority {
    /// Loads the authority of `dir`, or makes it when neither of its files exists.
    ///
    /// # Errors
    /// A file that cannot be read, written or parsed; one of the two files missing.
    pub fn open(dir: &Path) -> Result<Self, CaError> {
        let pem_path = dir.join("ca.pem");
        let key_path = dir.join("ca-key.pem");
        match (read(&pem_path)?, read(&key_path)?) {
            (Some(_), Some(key_pem)) => match KeyPair::from_pem(&key_pem) {
                Ok(key) => Ok(Self { key, pem_path }),
                Err(error) => Err(damaged(key_path, &error.to_string())),
            },
            (None, None) => Self::create(pem_path, &key_path),
            (Some(_), None) => Err(damaged(key_path, "missing beside ca.pem")),
            (None, Some(_)) => Err(damaged(key_path, "ca.pem is missing beside it")),
        }
    }

    fn create(pem_path: PathBuf, key_path: &Path) -> Result<Self, CaError> {
        let issue = |source| CaError::Issue { names: "the authority itself".to_owned(), source };
        let key = KeyPair::generate().map_err(issue)?;
        let certificate = authority_params().self_signed(&key).map_err(issue)?;
        files::write(key_path, key.serialize_pem().as_bytes())?;
        files::write_public(&pem_path, certificate.pem().as_bytes())?;
        Ok(Self { key, pem_path })
    }

    /// Path of the certificate that clients pin.
    #[must_use]
    pub fn pem_path(&self) -> &Path {
        &self.pem_path
    }

    /// Issues a server certificate for `names` and returns the TLS configuration that serves it.
    ///
    /// # Errors
    /// A name that is neither an address nor a DNS name.
    pub fn server_config(&self, names: &[String]) -> Result<Arc<ServerConfig>, CaError> {
        issue(&self.key, names)
    }
}

/// Issues a server certificate for `names` by an authority that calls itself as this one does, and is nowhere to be
/// found; returns the TLS configuration that serves it.
///
/// # Errors
/// As [`Authority::server_config`].
pub(crate) fn strangers_config(names: &[String]) -> Result<Arc<ServerConfig>, CaError> {
    let key = KeyPair::generate().map_err(|source| CaError::Issue { names: names.join(", "), source })?;
    issue(&key, names)
}

fn issue(authority_key: &KeyPair, names: &[String]) -> Result<Arc<ServerConfig>, CaError> {
    let issue = |source| CaError::Issue { names: names.join(", "), source };
    let key = KeyPair::generate().map_err(issue)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(issue)?;
    params.distinguished_name.push(DnType::CommonName, "plexd-devcp");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    // From yesterday, for clients whose clock is a little behind, for a year.
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let [first, last] = [today.saturating_sub(1.day()), today.saturating_add(365.days())]
        .map(|day| date_time_ymd(day.year().into(), day.month().unsigned_abs(), day.day().unsigned_abs()));
    (params.not_before, params.not_after) = (first, last);
    let authority = authority_params();
    let issuer = Issuer::from_params(&authority, authority_key);
    let certificate = params.signed_by(&key, &issuer).map_err(issue)?;
    tls_config(certificate.der().clone(), &key)
}

/// The names every server certificate has, with those of this start added.
#[must_use]
pub fn server_names(listen: IpAddr, extra: &[String]) -> Vec<String> {
    let mut names: Vec<String> = ["127.0.0.1", "::1", "localhost"].map(str::to_owned).into();
    if !listen.is_unspecified() {
        names.push(listen.to_string());
    }
    names.extend_from_slice(extra);
    let mut unique = Vec::with_capacity(names.len());
    for name in names {
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique
}

/// Fixed, because the issuer of later server certificates is rebuilt from these and has to match `ca.pem`.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "plexd-devcp development CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
    params
}

fn tls_config(certificate: CertificateDer<'static>, key: &KeyPair) -> Result<Arc<ServerConfig>, CaError> {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate], key))
        .map_err(CaError::Tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CaError::Read { path: path.to_owned(), source }),
    }
}

fn damaged(path: PathBuf, why: &str) -> CaError {
    CaError::Damaged { path, why: why.to_owned() }
}
