//! Which way products of bf16 go on this machine.
//!
//! ```text
//!   fixed by the user     it, if the machine has it
//!   one way is there      it, without a look at the clock
//!   the cache knows       what was measured before: for this processor, with these ways, by this version
//!   else                  measured, chosen by `choose`, kept
//! ```
//!
//! Ways have bits of their own, so that workers on equal machines have to choose alike. Hence the choice holds on to the order of
//! [`Isa::ways_for_bf16`] unless a way is clearly slower than another, and what is measured is time that this thread ran, which other
//! programs lengthen little ([decision 114](../../../../docs/decisions/114-bf16-is-measured.md)).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Mutex;
use std::time::Duration;

use super::operand::Operand;
use super::product::{Kernel, product};
use super::simd::{Bf16, Isa};
use crate::device::Products;

/// How many times as long as the fastest a way may take before it is passed over.
const CLEARLY_SLOWER: f64 = 1.25;
/// Rounds that count; in each of them every way has its turn.
const ROUNDS: usize = 11;
/// Rows, columns and depth of the products of a run: an expert's of preset `small`, forward, and backward for its input and its weights.
const SHAPES: [(Layout, [usize; 3]); 3] =
    [(Layout::Forward, [128, 512, 256]), (Layout::Input, [128, 256, 512]), (Layout::Weights, [512, 256, 128])];
/// Elements of the largest operand or result of [`SHAPES`].
const LARGEST: usize = 512 * 256;

/// How the operands of a product lie.
#[derive(Clone, Copy)]
enum Layout {
    /// `x w^T`
    Forward,
    /// `dy w`
    Input,
    /// `dy^T x`
    Weights,
}

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bf16Choice {
    /// The way that is fastest on this kind of processor.
    #[default]
    Auto,
    /// This one, or an error.
    Fixed(Bf16),
}

impl FromStr for Bf16Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Bf16Choice, String> {
        match text {
            "auto" => Ok(Bf16Choice::Auto),
            _ => way(text)
                .map(Bf16Choice::Fixed)
                .ok_or_else(|| format!("products of bf16 go by auto, amx, avx512 or f32, found `{text}`")),
        }
    }
}

impl fmt::Display for Bf16Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bf16Choice::Auto => f.write_str("auto"),
            Bf16Choice::Fixed(way) => way.fmt(f),
        }
    }
}

fn way(name: &str) -> Option<Bf16> {
    [Bf16::Amx, Bf16::Avx512, Bf16::F32].into_iter().find(|way| way.to_string() == name)
}

/// The way that was asked for is not there.
#[derive(Debug, thiserror::Error)]
#[error(
    "products of bf16 cannot go by {asked} here: the processor, or its operating system, has {}; take one of them, or auto",
    .found.iter().map(Bf16::to_string).collect::<Vec<_>>().join(" and ")
)]
pub struct Bf16Error {
    asked: Bf16,
    found: Vec<Bf16>,
}

impl Bf16Choice {
    /// The way to go. What was measured is kept in the folder `cache`; a cache that cannot be read or written costs time and nothing
    /// else.
    pub fn way(self, isa: Isa, cache: &Path) -> Result<Bf16, Bf16Error> {
        let found: Vec<Bf16> = isa.ways_for_bf16().collect();
        match (self, &found[..]) {
            (Bf16Choice::Fixed(asked), _) if found.contains(&asked) => Ok(asked),
            (Bf16Choice::Fixed(asked), _) => Err(Bf16Error { asked, found }),
            (Bf16Choice::Auto, [only]) => Ok(*only),
            (Bf16Choice::Auto, _) => {
                Ok(cached(cache, &Key { processor: &processor(), ways: &found }, || measure(isa, &found)))
            }
        }
    }
}

/// How long runs of one way took.
#[derive(Debug, Clone, PartialEq)]
struct Timings {
    way: Bf16,
    runs: Vec<Duration>,
}

impl Timings {
    fn median(&self) -> Duration {
        let mut runs = self.runs.clone();
        runs.sort_unstable();
        runs[runs.len() / 2]
    }
}

/// The first way whose median is not clearly more than the least one. There is one at least, with a run at least.
fn choose(timings: &[Timings]) -> Bf16 {
    let least = timings.iter().map(Timings::median).min().expect("the operands can be rounded everywhere");
    let is_near = |t: &&Timings| t.median().as_secs_f64() <= CLEARLY_SLOWER * least.as_secs_f64();
    timings.iter().find(is_near).expect("the least is near itself").way
}

/// Runs all ways in turns, on this thread alone.
fn measure(isa: Isa, ways: &[Bf16]) -> Vec<Timings> {
    let values = |seed: usize| -> Vec<f32> {
        (0..LARGEST)
            .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8 & 0xffff) as f32 / 65_536.0)
            .collect()
    };
    let (a, b, mut c) = (values(1), values(2), vec![0.0; LARGEST]);
    let mut run = |way: Bf16| {
        let kernel = Kernel::new(isa, Products::Bf16).with_bf16(way);
        let start = ran();
        for (layout, [m, n, depth]) in SHAPES {
            let (a, b) = (&a[..m * depth], &b[..depth * n]);
            let (a, b) = match layout {
                Layout::Forward => (Operand::new(a, m, depth), Operand::new(b, n, depth).t()),
                Layout::Input => (Operand::new(a, m, depth), Operand::new(b, depth, n)),
                Layout::Weights => (Operand::new(a, depth, m).t(), Operand::new(b, depth, n)),
            };
            assert!(m * n <= c.len(), "room for ({m}, {n})");
            // SAFETY: the machine has the way, and `c` has the elements of the product.
            unsafe { product(kernel, 1.0, a, b, 0.0, c.as_mut_ptr(), n) };
            std::hint::black_box(&mut c);
        }
        ran() - start
    };
    // Once for nothing: operands are allocated, and units that sleep wake up.
    for &way in ways {
        run(way);
    }
    let mut timings: Vec<_> = ways.iter().map(|&way| Timings { way, runs: Vec::new() }).collect();
    for _ in 0..ROUNDS {
        for of_way in &mut timings {
            of_way.runs.push(run(of_way.way));
        }
    }
    timings
}

/// How long this thread ran.
fn ran() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    // Times of a thread are not negative.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What a choice holds for, besides the version.
struct Key<'a> {
    processor: &'a str,
    ways: &'a [Bf16],
}

impl Key<'_> {
    fn digest(&self, of: &str) -> String {
        let version = &toroid_proto::build().version;
        let mut hasher = blake3::Hasher::new();
        for part in [self.processor, &format!("{:?}", self.ways), version, of] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_string()
    }

    fn path(&self, cache: &Path) -> PathBuf {
        cache.join("bf16").join(self.digest(""))
    }
}

/// The choice that `cache` has, else that by what `measure` gives, which is kept.
fn cached(cache: &Path, key: &Key<'_>, measure: impl FnOnce() -> Vec<Timings>) -> Bf16 {
    // Devices of one process that are made together neither measure at a time nor choose apart.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = key.path(cache);
    if let Some(way) = load(&path, key) {
        return way;
    }
    let timings = measure();
    let way = choose(&timings);
    let said = |t: &Timings| format!("{} {:.2} ms", t.way, t.median().as_secs_f64() * 1e3);
    let medians = timings.iter().map(said).collect::<Vec<_>>().join(", ");
    tracing::info!("measured on this processor for products of bf16: {medians}");
    store(&path, key, way).unwrap_or_else(|error| {
        tracing::warn!("cannot keep the way for bf16 in {}: {error}; the next start measures again", path.display());
        way
    })
}

/// The way of a whole file of this key, if it is there.
fn load(path: &Path, key: &Key<'_>) -> Option<Bf16> {
    let text = std::fs::read_to_string(path).ok()?;
    let (name, digest) = text.strip_suffix('\n')?.split_once(' ')?;
    (key.digest(name) == digest).then(|| way(name)).flatten().filter(|way| key.ways.contains(way))
}

/// Keeps `way`, unless another process was first: theirs counts then, so that workers which start together on a new machine agree.
fn store(path: &Path, key: &Key<'_>, way: Bf16) -> io::Result<Bf16> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, format!("{way} {}\n", key.digest(&way.to_string())))?;
    let kept = match std::fs::hard_link(&temporary, path) {
        Ok(()) => Ok(way),
        Err(_) => match load(path, key) {
            Some(theirs) => Ok(theirs),
            // Garbled, or a file system without links.
            None => return std::fs::rename(&temporary, path).map(|()| way),
        },
    };
    std::fs::remove_file(&temporary)?;
    kept
}

/// The processor's own name for itself, with family, model and stepping.
#[cfg(target_arch = "x86_64")]
fn processor() -> String {
    use super::simd::cpuid;

    const FIRST_OF_NAME: u32 = 0x8000_0002;
    let last = cpuid(0x8000_0000).eax;
    let parts = (FIRST_OF_NAME..FIRST_OF_NAME + 3).take_while(|leaf| *leaf <= last).map(cpuid);
    let bytes: Vec<u8> = parts.flat_map(|x| [x.eax, x.ebx, x.ecx, x.edx]).flat_map(u32::to_le_bytes).collect();
    format!("{} {:x}", String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ']), cpuid(1).eax)
}

/// Elsewhere there is one way.
#[cfg(not(target_arch = "x86_64"))]
fn processor() -> String {
    std::env::consts::ARCH.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Bf16; 3] = [Bf16::Amx, Bf16::Avx512, Bf16::F32];

    fn timings(medians_us: &[(Bf16, u64)]) -> Vec<Timings> {
        let runs = |us: u64| [us + 5, us, us * 40, us - 1, us.saturating_sub(50)].map(Duration::from_micros).to_vec();
        medians_us.iter().map(|&(way, us)| Timings { way, runs: runs(us) }).collect()
    }

    #[test]
    fn the_first_way_is_taken_unless_it_is_clearly_slower() {
        let check = |medians_us: &[(Bf16, u64)], expected| {
            assert_eq!(choose(&timings(medians_us)), expected, "{medians_us:?}");
        };
        let [amx, avx512, f32] = ALL;
        // As on Sapphire Rapids, with tiles and without; as on Zen 4.
        check(&[(amx, 1000), (avx512, 8000), (f32, 4000)], amx);
        check(&[(avx512, 8000), (f32, 4000)], f32);
        check(&[(avx512, 2000), (f32, 4000)], avx512);
        // Ties, and what is near one.
        check(&[(amx, 1000), (avx512, 1000), (f32, 1000)], amx);
        check(&[(amx, 1250), (avx512, 1000), (f32, 1100)], amx);
        check(&[(amx, 1260), (avx512, 1240), (f32, 1000)], avx512);
        // A slow way for tiles, as an emulator has.
        check(&[(amx, 90_000), (avx512, 5000), (f32, 4000)], avx512);
        check(&[(f32, 4000)], f32);
    }

    #[test]
    fn choices_read_back() {
        for choice in [Bf16Choice::Auto].into_iter().chain(ALL.map(Bf16Choice::Fixed)) {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "tiles".parse::<Bf16Choice>().expect_err("no way");
        assert_eq!(error, "products of bf16 go by auto, amx, avx512 or f32, found `tiles`");
        assert!("emulated".parse::<Bf16Choice>().is_err());
    }

    #[test]
    fn a_choice_is_kept_and_a_garbled_one_is_made_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = folder.path().join("not/yet");
        let key = Key { processor: "a processor", ways: &ALL };
        let never = || -> Vec<Timings> { panic!("the cache knows") };
        let of = |way: Bf16| timings(&ALL.map(|w| (w, if w == way { 1000 } else { 9000 })));
        assert_eq!(cached(&cache, &key, || of(Bf16::Avx512)), Bf16::Avx512);
        assert_eq!(cached(&cache, &key, never), Bf16::Avx512);

        let other = Key { processor: "another", ways: &ALL };
        assert_eq!(cached(&cache, &other, || of(Bf16::F32)), Bf16::F32, "it holds for one kind of processor");
        let fewer = Key { ways: &ALL[1..], ..key };
        let of_two = || timings(&[(Bf16::Avx512, 9000), (Bf16::F32, 1000)]);
        assert_eq!(cached(&cache, &fewer, of_two), Bf16::F32, "and for what the machine has");

        let whole = std::fs::read_to_string(key.path(&cache)).expect("it is kept");
        let (_, digest) = whole.split_once(' ').expect("a name and a digest");
        for garbled in [String::new(), whole[..9].into(), format!("f32 {digest}"), "\0\0".into(), format!("{whole}x")] {
            std::fs::write(key.path(&cache), &garbled).expect("written");
            assert_eq!(cached(&cache, &key, || of(Bf16::Amx)), Bf16::Amx, "measured anew after {garbled:?}");
            assert_eq!(cached(&cache, &key, never), Bf16::Amx, "and kept");
        }
        let names = std::fs::read_dir(cache.join("bf16")).expect("listed").count();
        assert_eq!(names, 3, "a file for each key, and none that is half written");
    }

    #[test]
    fn of_processes_that_measure_at_a_time_the_first_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let key = Key { processor: "a processor", ways: &ALL };
        let path = key.path(folder.path());
        assert_eq!(store(&path, &key, Bf16::Amx).expect("kept"), Bf16::Amx);
        assert_eq!(store(&path, &key, Bf16::F32).expect("theirs"), Bf16::Amx);
        assert_eq!(load(&path, &key), Some(Bf16::Amx));
    }

    #[test]
    fn a_cache_that_cannot_be_written_costs_time_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("written");
        let key = Key { processor: "a processor", ways: &ALL };
        let measured = || timings(&ALL.map(|w| (w, 1000)));
        assert_eq!(cached(&file, &key, measured), Bf16::Amx);
    }

    #[test]
    fn this_machine_gets_a_way_that_it_has() {
        let folder = tempfile::tempdir().expect("a folder");
        let isa = Isa::detect();
        let found: Vec<Bf16> = isa.ways_for_bf16().collect();
        let way = Bf16Choice::Auto.way(isa, folder.path()).expect("there is always one");
        assert!(found.contains(&way));
        let kept = folder.path().join("bf16");
        assert_eq!(kept.exists(), found.len() > 1, "measured where there is a choice, and nowhere else");
        for asked in ALL {
            let fixed = Bf16Choice::Fixed(asked).way(isa, folder.path());
            match found.contains(&asked) {
                true => assert_eq!(fixed.expect("it is there"), asked),
                false => {
                    let error = fixed.expect_err("it is not there").to_string();
                    assert!(error.starts_with(&format!("products of bf16 cannot go by {asked} here")), "{error}");
                    assert!(error.contains("f32; take one of them"), "{error}");
                }
            }
        }
    }
}
