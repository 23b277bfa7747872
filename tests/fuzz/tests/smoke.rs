//! The targets without guidance: every input in the tree, then inputs made from them by chance, the same in every run.
//! `PLEXD_FUZZ_SEED` chooses others, `PLEXD_FUZZ_SECONDS` how long each target is tried.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use plexd_fuzz::mutate::{Random, mutated};
use plexd_fuzz::{TARGETS, Target, corpus, target};

/// Seed of an ordinary run.
const SEED: u64 = 2026;

/// Inputs per target of an ordinary run.
const ROUNDS: u64 = 1500;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, not a number")))
}

fn smoke(name: &str) {
    let target = target(name).expect("a target");
    let inputs = corpus::inputs(name);
    assert!(!inputs.is_empty());
    for input in &inputs {
        run(target, &input.bytes, &input.path.display().to_string());
    }
    let seed = number("PLEXD_FUZZ_SEED").unwrap_or(SEED);
    let end = number("PLEXD_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let (inputs, words): (Vec<_>, _) =
        (inputs.into_iter().map(|input| input.bytes).collect(), corpus::words());
    let mut random = Random::new(seed);
    for round in 0.. {
        if end.map_or(round == ROUNDS, |end| Instant::now() > end) {
            break;
        }
        let input = mutated(&mut random, &inputs, &words);
        run(target, &input, &format!("PLEXD_FUZZ_SEED={seed}, round {round}"));
    }
}

fn run(target: Target, input: &[u8], origin: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_ok() {
        return;
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-failed", target.name));
    std::fs::write(&path, input).expect("a writable target directory");
    panic!("target {} fails on {origin}; the input is in {}", target.name, path.display());
}

macro_rules! smoke {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                smoke(stringify!($target));
            }
        )*

        #[test]
        fn every_target_has_its_smoke_run_and_its_folder() {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($target)),*]);
        }
    };
}

smoke!(sse envelope event state register rotate heartbeat endpoint secret refusal policy texts config connection path
    conditions report rewriting proof);
