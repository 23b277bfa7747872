//! What processes take, from `/proc`.

use std::collections::BTreeMap;
use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// Processor time that process `pid` took so far, in µs; to a hundredth of a second.
pub(crate) fn cpu(pid: u32) -> f64 {
    let text = read(&format!("/proc/{pid}/stat"));
    // Fields 14 and 15; the second, the name, may contain blanks.
    let rest = text.rsplit(") ").next().unwrap_or_default();
    let ticks: f64 = rest.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let per_second = per_second as f64;
    ticks / per_second * 1e6
}

/// How often threads of process `pid` went to sleep so far, by thread.
pub(crate) fn sleeps(pid: u32) -> BTreeMap<String, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process that runs");
    let threads = threads.filter_map(|entry| Some(entry.ok()?.path()));
    let count = |thread: std::path::PathBuf| {
        // A thread may end between the two.
        let text = fs::read_to_string(thread.join("status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        Some((thread.display().to_string(), line.trim().parse().ok()?))
    };
    threads.filter_map(count).collect()
}

/// The name of a thread.
pub(crate) fn name(thread: &str) -> String {
    read(&format!("{thread}/comm")).trim_end().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}
