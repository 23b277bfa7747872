//! Chance that can be had again: what a test does and when is drawn from a seed that is printed and can be given
//! (`PLEXD_E2E_SEED`).

/// Numbers that look random and come again with the same seed.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Begins with the seed that is given, or with another one each time, and prints it.
    #[expect(clippy::print_stdout, reason = "the seed is what repeats a failure")]
    pub(crate) fn thrown() -> Self {
        let seed = std::env::var("PLEXD_E2E_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 0x9e37);
        println!("PLEXD_E2E_SEED={seed}");
        Self(seed.max(1))
    }

    /// Returns other dice, for another thread.
    pub(crate) fn other(&mut self) -> Self {
        Self(self.below(u64::MAX).max(1))
    }

    /// Returns a number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// Returns one of `list`.
    pub(crate) fn of<T: Copy>(&mut self, list: &[T]) -> T {
        let at = self.below(list.len() as u64);
        list[usize::try_from(at).unwrap_or(0)]
    }
}
