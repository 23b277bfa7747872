//! What the node tells of its machine and binary.

use std::io;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use crate::control::wire::{BinaryInfo, CapabilitiesPayload, NodeMetadata};

/// The machine and the running binary. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Machine {
    hostname: String,
    checksum: Arc<OnceCell<String>>,
}

impl Machine {
    /// Takes the host name from the configuration, or else from the system.
    ///
    /// # Errors
    /// If the system has no host name.
    pub fn new(configured: Option<&str>) -> io::Result<Self> {
        let hostname = match configured {
            Some(name) => name.to_owned(),
            None => nix::sys::utsname::uname()?.nodename().to_string_lossy().into_owned(),
        };
        Ok(Self { hostname, checksum: Arc::default() })
    }

    /// Returns the name the node registers under.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Returns the registration's metadata (contract, section 2).
    pub fn metadata() -> NodeMetadata {
        let kernel = nix::sys::utsname::uname().map(|uname| uname.release().to_string_lossy().into_owned());
        NodeMetadata {
            os: "linux".to_owned(),
            arch: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            }
            .to_owned(),
            kernel: kernel.unwrap_or_default(),
        }
    }

    /// Returns what the node can do.
    pub async fn capabilities(&self) -> CapabilitiesPayload {
        let binary = BinaryInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            checksum: self.binary_checksum().await,
        };
        CapabilitiesPayload { binary: Some(binary), builtin_actions: Vec::new(), hooks: Vec::new() }
    }

    /// Returns `sha256:` and the hexadecimal digest of the running file.
    pub async fn binary_checksum(&self) -> String {
        let digest = || async {
            let hashed = tokio::task::spawn_blocking(hash_binary).await;
            match hashed.map_err(io::Error::other).flatten() {
                Ok(digest) => format!("sha256:{digest}"),
                Err(error) => {
                    tracing::warn!(%error, "the running binary cannot be read; its checksum is left empty");
                    String::new()
                }
            }
        };
        self.checksum.get_or_init(digest).await.clone()
    }
}

fn hash_binary() -> io::Result<String> {
    use std::fmt::Write as _;
    let mut file = std::fs::File::open("/proc/self/exe")?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    Ok(hasher.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_checksum_is_that_of_the_running_file() {
        let machine = Machine::new(Some("web-01")).unwrap();
        let checksum = machine.binary_checksum().await;
        assert_eq!(checksum.len(), "sha256:".len() + 64);
        let exe = std::env::current_exe().unwrap();
        let output = std::process::Command::new("sha256sum").arg(exe).output().unwrap();
        assert!(String::from_utf8(output.stdout).unwrap().starts_with(&checksum["sha256:".len()..]));
    }

    /// Set in the process that the next test starts.
    const CHILD: &str = "PLEXD_TEST_CHECKSUM_CHILD";

    #[test]
    fn the_checksum_is_of_the_running_file_also_after_an_upgrade_put_another_in_its_place() {
        use std::io::{BufRead, Write};
        use std::process::{Command, Stdio};

        if std::env::var_os(CHILD).is_some() {
            // Once the file is another one.
            std::io::stdin().lock().read_line(&mut String::new()).unwrap();
            writeln!(std::io::stdout(), "checksum {}", hash_binary().unwrap()).unwrap();
            return;
        }
        let exe = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(exe.parent().unwrap()).unwrap();
        let (running, next) = (folder.path().join("agent"), folder.path().join("next"));
        std::fs::hard_link(&exe, &running).unwrap();
        let test = std::thread::current().name().unwrap().to_owned();
        let mut child = Command::new(&running);
        child.args(["--exact", "--nocapture", &test]).env(CHILD, "1");
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::fs::write(&next, "another version").unwrap();
        std::fs::rename(&next, &running).unwrap();
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert!(output.contains(&format!("checksum {}", hash_binary().unwrap())), "{output}");
    }

    #[test]
    fn the_architecture_has_the_documents_name() {
        assert!(["amd64", "arm64"].contains(&Machine::metadata().arch.as_str()));
        assert!(!Machine::metadata().kernel.is_empty());
    }
}
