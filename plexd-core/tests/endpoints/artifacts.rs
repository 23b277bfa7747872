//! Binaries arrive as they are, or not at all.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use plexd_core::control::client::{Artifact, ArtifactError, ClientError};
use plexd_core::types::Checksum;
use sha2::{Digest as _, Sha256};

use crate::devcp::Devcp;

pub(crate) const BINARY: &[u8] = b"\x7fELF of another version";

pub(crate) fn checksum_of(binary: &[u8]) -> Checksum {
    <[u8; 32]>::from(Sha256::digest(binary)).into()
}

fn offer(devcp: &Devcp, version: &str) -> std::fs::File {
    let folder = devcp.dir.path().join("artifacts/plexd").join(version).join("linux");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::File::create(folder.join("arm64")).unwrap()
}

fn wanted(version: &str, checksum: Checksum) -> Artifact<'_> {
    Artifact { version, os: "linux", arch: "arm64", checksum }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_binary_replaces_the_old_one_whole_and_is_not_executable_yet() {
    let devcp = Devcp::start().await;
    let who = devcp.enrol("one").await;
    let binary: Vec<u8> = (0..5_000_000_u32).flat_map(|number| number.to_le_bytes()[..2].to_vec()).collect();
    std::io::Write::write_all(&mut offer(&devcp, "1.5.0+deb"), &binary).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let destination = directory.path().join("plexd-core");
    std::fs::write(&destination, "old").unwrap();
    std::fs::set_permissions(&destination, std::fs::Permissions::from_mode(0o755)).unwrap();
    let wanted = wanted("1.5.0+deb", checksum_of(&binary));
    let length = devcp.client.artifact(&who, &wanted, &destination).await.unwrap();
    assert_eq!(length, binary.len() as u64);
    assert!(std::fs::read(&destination).unwrap() == binary);
    assert_eq!(std::fs::metadata(&destination).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(names(directory.path()), ["plexd-core"]);
}

#[tokio::test]
async fn whatever_goes_wrong_nothing_is_left_behind_and_the_old_one_stays() {
    let devcp = Devcp::start().await;
    let who = devcp.enrol("one").await;
    std::io::Write::write_all(&mut offer(&devcp, "1.5.0"), BINARY).unwrap();
    offer(&devcp, "1.6.0").set_len((256 << 20) + 1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let destination = directory.path().join("plexd-core");
    std::fs::write(&destination, "old").unwrap();
    let (right, wrong) = (checksum_of(BINARY), checksum_of(b"something else"));
    let folder = directory.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    for (version, checksum, destination, text) in [
        (
            "1.5.0",
            wrong,
            destination.clone(),
            format!("its checksum is {right}, not {wrong}; it was removed"),
        ),
        ("1.6.0", right, destination.clone(), "it is larger than 268435456 bytes".to_owned()),
        (
            "1.7.0",
            right,
            destination.clone(),
            "does not know a plexd of this version for this system".to_owned(),
        ),
        ("..", right, destination.clone(), "does not know".to_owned()),
        ("1.5.0", right, folder.clone(), "cannot keep the downloaded binary".to_owned()),
        ("1.5.0", right, directory.path().join("none/plexd-core"), "No such file or directory".to_owned()),
    ] {
        let result = devcp.client.artifact(&who, &wanted(version, checksum), &destination).await;
        let error = result.unwrap_err().to_string();
        assert!(error.contains(&text), "{error}");
        let mut left = names(directory.path());
        left.sort();
        assert_eq!(left, ["folder", "plexd-core"], "{error}");
        assert_eq!(std::fs::read(directory.path().join("plexd-core")).unwrap(), b"old", "{error}");
    }
    devcp.break_with("artifacts", 503).await;
    let error = devcp.client.artifact(&who, &wanted("1.5.0", right), &destination).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Call(ClientError::Server { status: 503, .. })), "{error}");
}
