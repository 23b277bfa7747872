//! The program that libFuzzer guides, for the target named by `PLEXD_FUZZ_TARGET`. Built and started by `tests/fuzz/run`.
#![no_main]

use std::sync::OnceLock;

use plexd_fuzz::{TARGETS, Target, target};

static TARGET: OnceLock<Target> = OnceLock::new();

fn chosen() -> Target {
    let name = std::env::var("PLEXD_FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        panic!("PLEXD_FUZZ_TARGET is {name:?}, not one of: {}", names.join(" "))
    })
}

libfuzzer_sys::fuzz_target!(init: { TARGET.get_or_init(chosen); }, |data: &[u8]| {
    (TARGET.get_or_init(chosen).run)(data);
});
