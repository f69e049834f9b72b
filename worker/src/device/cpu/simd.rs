//! Loops that vectorize, compiled once per instruction set and chosen at run time; and the exponential function they
//! need.
//!
//! The build target is plain x86-64, so that one binary runs everywhere. [`multiversion!`] compiles a function's body
//! three times. A multiply-add is fused where a body says `mul_add`, and nowhere else: as one instruction, or where there is none by a call
//! that rounds once, too. Sums run in [`LANES`] fixed lanes. So all versions give the same bits (D-1).

use std::fmt;

/// Lanes of a sum: a vector of AVX-512, two of AVX2, four of SSE.
pub const LANES: usize = 16;

/// Instruction set that the loops use: one that this machine has, as only [`Isa::detect`] makes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa {
    level: Level,
    bf16: bool,
    amx: bool,
}

/// By what products of bf16 are computed; each way has bits of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bf16 {
    /// Tiles of AMX.
    Amx,
    /// `VDPBF16PS` of AVX-512.
    Avx512,
    /// Operands are rounded, and go the way of f32.
    F32,
    /// What [`Bf16::Amx`] is, with its instructions emulated.
    #[cfg(test)]
    Emulated,
}

impl fmt::Display for Bf16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bf16::Amx => "amx",
            Bf16::Avx512 => "avx512",
            Bf16::F32 => "f32",
            #[cfg(test)]
            Bf16::Emulated => "emulated",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The best that this machine has.
    pub fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                let bf16 = is_x86_feature_detected!("avx512bf16");
                // Operands of AMX are packed by AVX-512 with BF16, which no processor with AMX lacks.
                return Isa { level: Level::Avx512, bf16, amx: bf16 && amx::is_granted() };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Isa::without_bf16(Level::Avx2);
            }
        }
        Isa::without_bf16(Level::Baseline)
    }

    const fn without_bf16(level: Level) -> Isa {
        Isa { level, bf16: false, amx: false }
    }

    /// All that this machine has.
    #[cfg(test)]
    pub fn all() -> impl Iterator<Item = Isa> {
        let best = Isa::detect();
        [best, best.less_bf16(), Isa::without_bf16(Level::Baseline)].into_iter().chain(Isa::avx2())
    }

    #[cfg(test)]
    fn avx2() -> Option<Isa> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Some(Isa::without_bf16(Level::Avx2));
        }
        None
    }

    /// The same without bf16 products.
    #[cfg(test)]
    pub fn less_bf16(self) -> Isa {
        Isa { bf16: false, amx: false, ..self }
    }

    pub fn level(self) -> Level {
        self.level
    }

    #[cfg(target_arch = "x86_64")]
    pub fn has_avx512(self) -> bool {
        self.level == Level::Avx512
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn has_avx512(self) -> bool {
        false
    }

    /// Products of bf16 with f32 sums, besides AVX-512.
    #[cfg(test)]
    pub fn has_bf16(self) -> bool {
        self.bf16
    }

    /// The ways for products of bf16 that this machine has: the first is the fastest as a rule, the last is there everywhere.
    pub fn ways_for_bf16(self) -> impl Iterator<Item = Bf16> {
        let ways = [(self.amx, Bf16::Amx), (self.bf16, Bf16::Avx512), (true, Bf16::F32)];
        ways.into_iter().filter_map(|(is_there, way)| is_there.then_some(way))
    }

    pub fn preferred_for_bf16(self) -> Bf16 {
        self.ways_for_bf16().next().unwrap_or(Bf16::F32)
    }
}

/// What the processor says of itself: leaf `leaf`, of which number 0 of several.
#[cfg(target_arch = "x86_64")]
// Later versions of Rust than the oldest that this builds with call the instruction safe.
#[allow(unused_unsafe)]
pub fn cpuid(leaf: u32) -> std::arch::x86_64::CpuidResult {
    // SAFETY: all processors of 64 bits have the instruction.
    unsafe { std::arch::x86_64::__cpuid_count(leaf, 0) }
}

/// Whether tiles of bf16 may be used: the processor has them, and the system gives them to this process.
#[cfg(target_arch = "x86_64")]
mod amx {
    use std::arch::x86_64::_xgetbv;
    use std::sync::OnceLock;

    /// Asks once a process. A process starts without the right to tile registers, which make what a signal saves 8 KiB longer.
    pub fn is_granted() -> bool {
        static IS_GRANTED: OnceLock<bool> = OnceLock::new();
        *IS_GRANTED.get_or_init(|| is_there() && system_grants())
    }

    /// The processor has AMX and its products of bf16, and the system keeps tiles when it switches threads.
    fn is_there() -> bool {
        const OSXSAVE: u32 = 1 << 27;
        const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
        const TILE_CONFIG_AND_DATA: u64 = 1 << 17 | 1 << 18;
        let has = |register: u32, bits: u32| register & bits == bits;
        super::cpuid(0).eax >= 7
            && has(super::cpuid(1).ecx, OSXSAVE)
            && has(super::cpuid(7).edx, AMX_BF16_AND_TILE)
            // SAFETY: OSXSAVE says that the instruction is there.
            && unsafe { _xgetbv(0) } & TILE_CONFIG_AND_DATA == TILE_CONFIG_AND_DATA
    }

    /// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`, for all threads of this process; see `Documentation/arch/x86/xstate.rst` of Linux.
    #[cfg(target_os = "linux")]
    fn system_grants() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_ulong = 18;
        // SAFETY: gives this process the use of registers, and touches no memory.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn system_grants() -> bool {
        false
    }
}

/// `fn name(args) { body }` becomes `fn name(isa, args)` that runs the body compiled for `isa`. Helpers that the body
/// calls must be `#[inline(always)]`.
macro_rules! multiversion {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name(isa: $crate::device::cpu::simd::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }
            match isa.level() {
                $crate::device::cpu::simd::Level::Baseline => body($($arg),*),
                // SAFETY: `Isa::detect` found the features.
                #[cfg(target_arch = "x86_64")]
                $crate::device::cpu::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::device::cpu::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(super) use multiversion;

/// `e^x` to within 1 ulp; 0 below -87, `e^88` above 88, NaN for NaN. Coefficients and range reduction of Cephes' `expf`
/// (Moshier).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LO: f32 = -87.0;
    const HI: f32 = 88.0;
    // Adding and taking off 1.5 * 2^23 rounds to an integer, which is then in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Comparisons in this order let NaN through, unlike `clamp`.
    let t = if x < LO { LO } else { x };
    let t = if t > HI { HI } else { t };
    let shifted = t.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, t));
    let mut p = 1.987_569_2e-4_f32;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
        p = p.mul_add(r, coefficient);
    }
    let p = p.mul_add(r * r, r) + 1.0;
    let y = p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    if x < LO { 0.0 } else { y }
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// One value of the lanes, as a tree of `f`.
#[inline(always)]
fn tree(lanes: &[f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = *lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = f(lanes[l], lanes[l + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The sum of the lanes. A function of its own: inlined, its pairs make the compiler keep the lanes as pairs in the loop before it, too.
#[inline(never)]
fn reduce(lanes: &[f32; LANES]) -> f32 {
    tree(lanes, |a, b| a + b)
}

/// The largest of the lanes, none of which is NaN; apart as [`reduce`].
#[inline(never)]
fn largest(lanes: &[f32; LANES]) -> f32 {
    tree(lanes, |a, b| if b > a { b } else { a })
}

/// `sum_i f(i)` for `i` in `0..n`, lane `i % LANES`.
#[inline(always)]
pub fn sum_by(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for l in 0..LANES {
            lanes[l] += f(i + l);
        }
        i += LANES;
    }
    for l in 0..n - whole {
        lanes[l] += f(whole + l);
    }
    reduce(&lanes)
}

/// The largest element; NaN elements are passed over.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] = if chunk[l] > lanes[l] { chunk[l] } else { lanes[l] };
        }
    }
    for (l, &v) in rest.iter().enumerate() {
        lanes[l] = if v > lanes[l] { v } else { lanes[l] };
    }
    largest(&lanes)
}

/// `x = f(x)` of each element, a vector at a time.
#[inline(always)]
pub fn map(x: &mut [f32], f: impl Fn(f32) -> f32) {
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for x in chunk {
            *x = f(*x);
        }
    }
    for x in rest {
        *x = f(*x);
    }
}

/// `(x, y) = f(x, y)` of each pair of elements, a vector at a time; both are as long.
#[inline(always)]
pub fn map_both(x: &mut [f32], y: &mut [f32], f: impl Fn(f32, f32) -> (f32, f32)) {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks_mut::<LANES>(), y.as_chunks_mut::<LANES>());
    for (x, y) in x.iter_mut().zip(y) {
        for l in 0..LANES {
            (x[l], y[l]) = f(x[l], y[l]);
        }
    }
    for (x, y) in x_rest.iter_mut().zip(y_rest) {
        (*x, *y) = f(*x, *y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units in the last place of the exact value.
    fn ulps(found: f32, exact: f64) -> f64 {
        let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
        ((f64::from(found) - exact) / ulp).abs()
    }

    #[test]
    fn exp_is_within_one_ulp() {
        let worst =
            (-86_990..=87_990).map(|i| i as f32 * 1e-3).map(|x| ulps(exp(x), f64::from(x).exp())).fold(0.0, f64::max);
        assert!(worst < 1.0, "exp is off by {worst} ulp");
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan(), "a NaN must be seen in the loss");
    }

    multiversion! {
        fn versioned(x: &[f32]) -> f32 {
            sum_by(x.len(), |i| exp(x[i]) * sigmoid(x[i]))
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let x: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.37).sin() * 20.0).collect();
        let baseline = versioned(Isa::without_bf16(Level::Baseline), &x).to_bits();
        for isa in Isa::all() {
            assert_eq!(versioned(isa, &x).to_bits(), baseline, "{isa:?}");
        }
    }
}
