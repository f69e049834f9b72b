//! Bytes of strangers: a parser is fed with mutations of kept inputs, from a seed, and may neither panic nor hang.
//!
//! `TOROID_FUZZ` says how many inputs for each target (`make soak` has more), and a failure prints the seed of its input, which
//! `TOROID_SEED` tries alone. What once failed is kept in `corpora/<target>/` beside this package, and every run begins with it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Inputs for each target where nothing else is said: some seconds for all of them.
const NUM_INPUTS: u64 = 5_000;
/// No input is longer.
const MAX_BYTES: usize = 1 << 16;

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() % n.max(1) as u64) as usize
    }

    /// A number as those who attack choose it: small, at a bound, or any.
    pub fn number(&mut self) -> u64 {
        match self.below(4) {
            0 | 1 => self.draw() % 8,
            2 => [u64::MAX, u64::MAX - 1, 1 << 63, 1 << 32, u64::from(u32::MAX), 255, 1 << 20][self.below(7)],
            _ => self.draw(),
        }
    }
}

/// What parsers trip over: bounds of numbers, lengths of varints and DER, signs of TOML and JSON.
const TOKENS: [&[u8]; 20] = [
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80\x80\x80\x80\x80",
    b"\0",
    b"\xff",
    b"-1",
    b"18446744073709551615",
    b"1e999",
    b"NaN",
    b"[",
    b"]",
    b"{",
    b"}",
    b"\"",
    b"..",
    b"\n",
    b"=",
    b"[[a]]",
    b"\x30\x84\xff\xff\xff\xff",
    b"\xf0\x9f",
    b"\\u0000",
];

/// One to eight changes of one input: bytes flipped, cut, doubled, joined with another's.
pub fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len() + 1);
        let to = at + random.below(bytes.len() - at + 1).min(random.below(64));
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.draw() as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..to)),
            4 => drop(bytes.splice(at..at, TOKENS[random.below(TOKENS.len())].iter().copied())),
            5 => {
                let doubled = bytes[at..to].to_vec();
                bytes.splice(at..at, doubled);
            }
            _ => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
        }
        bytes.truncate(MAX_BYTES);
    }
    bytes
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Inputs that once failed, or that no mutation of the others finds soon.
fn kept(target: &str) -> Vec<Vec<u8>> {
    let folder = crate::root().join("integration-tests/testkit/corpora").join(target);
    // A target need not have any.
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("read an input that is kept")).collect()
}

/// Feeds `parse` with the corpus, what is kept for this target, and mutations of both.
pub fn fuzz(target: &str, corpus: &[Vec<u8>], mut parse: impl FnMut(&[u8])) {
    let corpus: Vec<Vec<u8>> = corpus.iter().cloned().chain(kept(target)).collect();
    corpus.iter().for_each(|bytes| parse(bytes));
    fuzz_from_seeds(target, |random| {
        let bytes = mutated(&corpus, random);
        parse(&bytes);
    });
}

/// Calls `attempt` with the random numbers of each seed, for inputs that are made and not mutated.
pub fn fuzz_from_seeds(target: &str, mut attempt: impl FnMut(&mut Random)) {
    let seeds = match number("TOROID_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TOROID_FUZZ").unwrap_or(NUM_INPUTS),
    };
    let (start, num) = (Instant::now(), seeds.end - seeds.start);
    for seed in seeds {
        let tried = catch_unwind(AssertUnwindSafe(|| attempt(&mut Random::new(seed))));
        assert!(tried.is_ok(), "{target}: TOROID_SEED={seed} panics, see above");
    }
    let taken = start.elapsed().as_secs_f64();
    println!("{target}: {num} inputs in {taken:.1} s, {:.0} a second", num as f64 / taken);
}
