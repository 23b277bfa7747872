//! How much memory plexd-api may take, by what is documented ("Limits" in docs/local-node-api.md).

use plexd_e2e::{Daemon, Memory};

/// A MiB in KiB.
pub(super) const MIB: u64 = 1024;

/// What a connection costs, in KiB, that has had answers and is silent: a buffer of 8 KiB, as small as there are, and its
/// state.
pub(super) const IDLE_CONNECTION: u64 = 16;

/// What a connection costs at most, in KiB: a head of 32 KiB, with the room that a buffer grows to when it is nearly
/// full, its state.
pub(super) const FULL_CONNECTION: u64 = 80;

/// What bodies of one user (or over TCP) take at most: 8 MiB are read at a time. Each is held as it came, as the message
/// to plexd-core, and in what is being sent of that.
pub(super) const BODIES_OF_ONE_USER: u64 = 3 * 8 * MIB;

/// What the allocator does not give back.
pub(super) const SLACK: u64 = 8 * MIB;

/// What a process took before.
#[derive(Debug)]
pub(super) struct Before {
    name: &'static str,
    memory: Memory,
}

impl Before {
    /// Notes what `daemon` takes.
    #[track_caller]
    pub(super) fn of(name: &'static str, daemon: &Daemon) -> Self {
        Self { name, memory: daemon.memory() }
    }

    /// Panics if `daemon` has taken, at any time, more than `bound` KiB besides.
    #[track_caller]
    #[expect(clippy::print_stdout, reason = "a figure")]
    pub(super) fn has_grown_by_at_most(&self, bound: u64, daemon: &Daemon) {
        let now = daemon.memory();
        let grown = now.peak.saturating_sub(self.memory.resident);
        let Self { name, memory } = self;
        println!(
            "{name}: {} KiB before, {} now, {} at most: {grown} of {bound}",
            memory.resident, now.resident, now.peak
        );
        assert!(grown <= bound, "{name} took {grown} KiB besides, and {bound} are allowed");
    }
}
