//! Where the programs under test are: `PLEXD_BIN_DIR`, or beside the test itself.

use std::env;
use std::path::PathBuf;

/// Returns the directory of plexd's programs.
#[track_caller]
pub(crate) fn directory() -> PathBuf {
    if let Some(directory) = env::var_os("PLEXD_BIN_DIR") {
        return directory.into();
    }
    let test = env::current_exe().unwrap_or_else(|error| panic!("cannot tell where this test is: {error}"));
    let beside = test.parent().map(PathBuf::from).unwrap_or_default();
    // Cargo puts tests into target/PROFILE/deps, programs one level up.
    if beside.ends_with("deps") { beside.parent().map(PathBuf::from).unwrap_or_default() } else { beside }
}

/// Panics unless `program` has been built.
#[track_caller]
pub(crate) fn require(program: &str) {
    let directory = directory();
    assert!(
        directory.join(program).is_file(),
        "{program} is not in {}; build it first with: cargo build --workspace --bins",
        directory.display()
    );
}
