//! Inputs made from others by chance, the same ones for the same seed: what the smoke run has instead of guidance.

/// A small generator of numbers (`SplitMix64`), good enough to choose by.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts at a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.number() % end).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.number().to_le_bytes()[0]
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        list.get(self.below(list.len()))
    }
}

/// Longest input that is made, in bytes.
const MAX_LENGTH: usize = 16 * 1024;

/// Returns an input made from one of `inputs`, others of them, and `words`.
pub fn mutated(random: &mut Random, inputs: &[Vec<u8>], words: &[Vec<u8>]) -> Vec<u8> {
    let mut input = random.pick(inputs).cloned().unwrap_or_default();
    for _ in 0..=random.below(5) {
        mutate(random, &mut input, inputs, words);
    }
    input.truncate(MAX_LENGTH);
    input
}

fn mutate(random: &mut Random, input: &mut Vec<u8>, inputs: &[Vec<u8>], words: &[Vec<u8>]) {
    let at = random.below(input.len() + 1);
    let end = input.len().min(at + 1 + random.below(32));
    match random.below(9) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = random.byte();
            }
        }
        2 => drop(input.drain(at..end)),
        3 => {
            let copy = input[at..end].to_vec();
            let to = random.below(input.len() + 1);
            input.splice(to..to, copy);
        }
        4 => {
            if let Some(other) = random.pick(inputs) {
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
        5 => {
            if let Some(other) = random.pick(inputs) {
                let from = random.below(other.len() + 1);
                let to = other.len().min(from + 1 + random.below(64));
                input.splice(at..at, other[from..to].iter().copied());
            }
        }
        6 => {
            if let Some(word) = random.pick(words) {
                input.splice(at..end, word.iter().copied());
            }
        }
        7 => {
            let count = 1 << random.below(9);
            let byte = random.byte();
            input.splice(at..at, std::iter::repeat_n(byte, count));
        }
        _ => {
            if let Some(word) = random.pick(words) {
                input.splice(at..at, word.iter().copied());
            }
        }
    }
}
