//! A node that nobody asks anything: memory, and how often one of its threads wakes up.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::findings::{Findings, Target, say};
use crate::processes::{name, sleeps};
use crate::scene::Scene;

/// How long the node is left alone before it counts as idle.
const SETTLE: Duration = Duration::from_secs(30);

/// How long wakeups are counted.
const COUNTED: Duration = Duration::from_mins(1);

/// Looks at the counts of threads in this time, so that those of a thread that ends are not lost.
const LOOK: Duration = Duration::from_secs(2);

/// Measures a node that was started from its disk and has pulled its state.
pub(crate) fn measure(scene: &mut Scene, findings: &mut Findings) {
    scene.restart();
    let size = scene.size;
    let backend = scene.node.status()["mesh"]["backend"].clone();
    thread::sleep(SETTLE);
    #[expect(clippy::cast_precision_loss, reason = "a process has less memory")]
    let megabytes = |kib: u64| kib as f64 * 1024.0 / 1e6;
    let (api, core) = (megabytes(scene.node.api().pss()), megabytes(scene.node.core().pss()));
    say(&format!(
        "  idle     {size:>5} entries PSS {:.1} MB: plexd-api {api:.1}, plexd-core {core:.1}",
        api + core
    ));
    if let Some(most) = [(10, 12.0), (10_000, 41.0)].into_iter().find(|(of, _)| *of == size) {
        findings.line(&format!("api.idle.pss_mb.{size}"), api + core);
        findings.judge(&format!("idle, {size} entries, PSS in MB"), api + core, Target::Below(most.1));
    }
    let counted = count(scene.pids());
    let wakeups: f64 = counted.iter().map(|(_, each)| each).sum();
    let threads: Vec<String> = counted
        .iter()
        .filter(|(_, each)| *each > 0.0)
        .map(|(name, each)| format!("{name} {each:.2}"))
        .collect();
    say(&format!("  idle     {size:>5} entries {wakeups:.2} wakeups/s: {}", threads.join(", ")));
    // The built-in WireGuard has timers of its own, and the target is that of a node without.
    if backend == json!("kernel") {
        findings.line("api.idle.wakeups_per_s", wakeups);
        findings.judge(&format!("idle, {size} entries, wakeups/s"), wakeups, Target::Below(1.0));
    } else {
        say(
            "           with the built-in WireGuard, without peers; the target is for a node with the kernel's: see tests/vm/bench-api",
        );
    }
}

/// Wakeups per second of each thread.
fn count(pids: [u32; 2]) -> Vec<(String, f64)> {
    let look = || pids.map(sleeps).into_iter().flatten().collect::<BTreeMap<String, u64>>();
    let before = look();
    let names: BTreeMap<String, String> =
        before.keys().map(|thread| (thread.clone(), name(thread))).collect();
    let began = Instant::now();
    let mut last = before.clone();
    while began.elapsed() < COUNTED {
        thread::sleep(LOOK);
        last.extend(look());
    }
    let seconds = began.elapsed().as_secs_f64();
    let each = last.into_iter().map(|(thread, count)| {
        let new = count - before.get(&thread).copied().unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let rate = new as f64 / seconds;
        (names.get(&thread).cloned().unwrap_or(thread), rate)
    });
    each.collect()
}
