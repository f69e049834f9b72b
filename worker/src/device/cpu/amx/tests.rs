//! The emulation against the manual, products by it against exact ones, and the assembly against the emulation.

use super::*;
use crate::device::cpu::simd::{Bf16, Isa};

const WHOLE: usize = SIDE * SIDE;

/// Rows of 16 units of two bf16 each, or of 16 f32.
type Tile = [u32; WHOLE];

fn has_avx512_bf16() -> bool {
    let is_there = Isa::detect().has_bf16();
    if !is_there {
        eprintln!("no AVX-512 with BF16 here, by which operands of AMX are packed: nothing is tried");
    }
    is_there
}

fn has_amx() -> bool {
    Isa::detect().ways_for_bf16().any(|way| way == Bf16::Amx)
}

/// `c` after the product of `a` and `b` was added to it.
fn multiplied<T: Tiles>(a: &Tile, b: &Tile, c: &Tile) -> Tile {
    let mut out = [0; WHOLE];
    // SAFETY: `T` is emulated, or whoever calls has seen that the machine has it; all are 16 rows of 64 bytes.
    unsafe {
        let mut tiles = T::configured();
        tiles.load::<4>(a.as_ptr(), 4 * SIDE);
        tiles.load::<6>(b.as_ptr(), 4 * SIDE);
        tiles.load::<0>(c.as_ptr(), 4 * SIDE);
        tiles.multiply::<0, 4, 6>();
        tiles.store::<0>(out.as_mut_ptr().cast(), 4 * SIDE);
    }
    out
}

/// The same, written down from the manual: `temp1` has two sums for each column.
fn as_the_manual_says(a: &Tile, b: &Tile, c: &Tile) -> Tile {
    let daz_ftz = |x: f32| if x.is_subnormal() { 0.0_f32.copysign(x) } else { x };
    let bf16 = |tile: &Tile, row: usize, i: usize| {
        let half = tile[row * SIDE + i / 2] >> (16 * (i % 2)) & 0xffff;
        daz_ftz(f32::from_bits(half << 16))
    };
    let mut out = *c;
    for m in 0..SIDE {
        let mut temp1 = [0.0_f32; 2 * SIDE];
        for k in 0..SIDE {
            for n in 0..SIDE {
                for i in 0..2 {
                    let (x, y) = (bf16(a, m, 2 * k + i), bf16(b, k, 2 * n + i));
                    temp1[2 * n + i] = daz_ftz(x.mul_add(y, temp1[2 * n + i]));
                }
            }
        }
        for n in 0..SIDE {
            let sum = daz_ftz(temp1[2 * n] + temp1[2 * n + 1]);
            out[m * SIDE + n] = daz_ftz(daz_ftz(f32::from_bits(c[m * SIDE + n])) + sum).to_bits();
        }
    }
    out
}

/// Random bits; exponents within `exponents` bits of the middle, so that sums round.
fn random(seed: u64, of_bf16: bool, exponents: u32) -> Tile {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as u32
    };
    let spread = (1 << exponents) - 1;
    let f32_of = move |bits: u32| bits & 0x807f_ffff | (127 - spread / 2 + (bits >> 23 & spread)) << 23;
    std::array::from_fn(|_| {
        let (low, high) = (f32_of(next()), f32_of(next()));
        if of_bf16 { low >> 16 | high & 0xffff_0000 } else { high }
    })
}

fn is_nan(bits: u32) -> bool {
    f32::from_bits(bits).is_nan()
}

/// The same bits, but that one NaN is as good as another.
fn check_same(found: &Tile, expected: &Tile, what: &str) {
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        let (row, col) = (i / SIDE, i % SIDE);
        assert!(x == y || is_nan(*x) && is_nan(*y), "{what}: ({row}, {col}) is {x:08x}, not {y:08x}");
    }
}

#[test]
fn the_emulation_multiplies_as_the_manual_says() {
    let amx = has_amx();
    if !amx {
        eprintln!("no AMX here: its emulation alone is tried");
    }
    for seed in 0..200 {
        let exponents = 2 + seed as u32 % 6;
        let [a, b] = [1, 2].map(|i| random(3 * seed + i, true, exponents));
        let c = random(3 * seed + 3, false, exponents);
        let emulated = multiplied::<Emulated>(&a, &b, &c);
        check_same(&emulated, &as_the_manual_says(&a, &b, &c), &format!("seed {seed}"));
        if amx {
            check_same(&multiplied::<Registers>(&a, &b, &c), &emulated, &format!("AMX, seed {seed}"));
        }
    }
}

/// What the first element of the result is, for pairs of bf16 of the first row of `a` and the first column of `b`.
fn first_of(a: &[[f32; 2]], b: &[[f32; 2]], c: f32) -> f32 {
    let unit = |[low, high]: [f32; 2]| {
        assert!([low, high].iter().all(|x| x.to_bits() & 0xffff == 0), "{low} and {high} are bf16");
        low.to_bits() >> 16 | high.to_bits()
    };
    let (mut left, mut right, mut there) = ([0; WHOLE], [0; WHOLE], [0; WHOLE]);
    for (k, (a, b)) in a.iter().zip(b).enumerate() {
        (left[k], right[k * SIDE]) = (unit(*a), unit(*b));
    }
    there[0] = c.to_bits();
    let found = multiplied::<Emulated>(&left, &right, &there);
    if has_amx() {
        check_same(&multiplied::<Registers>(&left, &right, &there), &found, "AMX");
    }
    f32::from_bits(found[0])
}

#[test]
fn even_and_odd_depths_are_summed_apart_and_then_added_to_what_is_there() {
    let large = (1u32 << 24) as f32;
    // 2^24 + 1 is a tie that rounds down, twice; in any other order it would be 2^24 + 2.
    assert_eq!(first_of(&[[large, 1.0]], &[[1.0, 1.0]], 1.0), large);
    // Even depths: 2^24 - 2^24; odd ones: 1. Summed together in order, the 1 would be lost.
    assert_eq!(first_of(&[[large, 1.0], [-large, 0.0]], &[[1.0, 1.0], [1.0, 0.0]], 0.0), 1.0);
    // A product is not rounded before it is added: (1 + 2^-7)^2 - (1 + 2^-6) is 2^-14.
    let (x, y) = (1.0 + 1.0 / 128.0, 1.0 + 1.0 / 64.0);
    assert_eq!(first_of(&[[-y, 0.0], [x, 0.0]], &[[1.0, 0.0], [x, 0.0]], 0.0), 1.0 / 16_384.0);
}

#[test]
fn what_is_subnormal_is_zero_wherever_it_comes_up() {
    let power = |n: i32| 2.0_f64.powi(n) as f32;
    let subnormal = f32::from_bits(0x0040_0000);
    assert_eq!(first_of(&[[subnormal, 0.0]], &[[power(100), 0.0]], 0.0), 0.0, "an operand");
    assert_eq!(first_of(&[[0.0, 0.0]], &[[0.0, 0.0]], subnormal), 0.0, "what is there");
    assert_eq!(first_of(&[[power(-70), 0.0]], &[[power(-60), 0.0]], 0.0), 0.0, "a product");
    assert_eq!(first_of(&[[power(-70), power(-70)]], &[[power(-57), power(-57)]], 0.0), 0.0, "two halves of 2^-126");
    let least = f32::MIN_POSITIVE;
    assert_eq!(first_of(&[[power(-70), 0.0]], &[[power(-56), 0.0]], 0.0), least);
    assert_eq!(first_of(&[[power(-70), 0.0]], &[[-1.5 * power(-56), 0.0]], least), -0.0, "a difference");
    // 2^-126 - 2^-151 rounds to 2^-126 whatever the exponent may be; twice as far below, it is tiny, though it is a tie that rounds to
    // 2^-126 where the exponent ends.
    for (below, expected) in [(151, least), (150, 0.0)] {
        let found =
            first_of(&[[power(-70), 0.0], [-power(-75), 0.0]], &[[power(-56), 0.0], [power(75 - below), 0.0]], 0.0);
        assert_eq!(found, expected, "2^-126 - 2^-{below}");
    }
}

fn values(len: usize, seed: u32) -> Vec<f32> {
    let step = |i: usize| (i as u32 + 1).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8;
    (0..len).map(|i| step(i) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// The nearest bf16.
fn rounded(x: &[f32]) -> Vec<f64> {
    let bf16 = |x: &f32| f32::from_bits((x.to_bits() + 0x7fff + (x.to_bits() >> 16 & 1)) & 0xffff_0000);
    x.iter().map(|x| f64::from(bf16(x))).collect()
}

#[test]
fn a_product_is_near_the_exact_one_and_is_scaled_and_added_to_what_is_there() {
    if !has_avx512_bf16() {
        return;
    }
    // Whole tiles, tails of all three dims, several blocks of depth and of columns, several strips, no depth.
    for (m, n, depth) in [(32, 32, 64), (9, 37, 301), (150, 21, 1100), (17, 530, 33), (1, 1, 1), (3, 5, 0)] {
        let (a, b, there) = (values(m * depth, 1), values(depth * n, 2), values(m * n, 3));
        let (x, y) = (rounded(&a), rounded(&b));
        for (alpha, beta) in [(1.0, 0.0), (0.3, 0.7)] {
            let mut c = if beta == 0.0 { vec![f32::NAN; m * n] } else { there.clone() };
            let (a, b) = (Operand::new(&a, m, depth), Operand::new(&b, depth, n));
            // SAFETY: the machine can pack, and `c` has the elements of the product.
            unsafe { product::<Emulated>(alpha, a, b, beta, c.as_mut_ptr(), n, Ahead::of(&[])) };
            for (i, found) in c.iter().enumerate() {
                let products = (0..depth).map(|k| x[i / n * depth + k] * y[k * n + i % n]);
                let (sum, of_sizes) = products.fold((0.0, 0.0), |(sum, sizes), x| (sum + x, sizes + x.abs()));
                let expected = f64::from(alpha) * sum + f64::from(beta) * f64::from(there[i]);
                // Each of the roundings of a sum of `depth` is off by half a unit of 24 bits at most.
                let bound = (depth as f64 + 4.0) * (of_sizes + 2.0) * f64::from(f32::EPSILON) / 2.0;
                let off = (f64::from(*found) - expected).abs();
                assert!(off <= bound, "({m}, {n}, {depth}) element {i}: {found}, not {expected}");
            }
        }
    }
}

#[test]
fn what_an_earlier_product_left_among_the_packed_operands_is_not_seen() {
    if !has_avx512_bf16() {
        return;
    }
    let of = |a: &[f32], b: &[f32], (m, n, depth): (usize, usize, usize)| {
        let mut c = vec![0.0; m * n];
        let (a, b) = (Operand::new(a, depth, m).t(), Operand::new(b, depth, n));
        // SAFETY: the machine can pack, and `c` has the elements of the product.
        unsafe { product::<Emulated>(1.0, a, b, 0.0, c.as_mut_ptr(), n, Ahead::of(&[])) };
        c
    };
    let shape = (5, 19, 37);
    let (a, b) = (values(5 * 37, 1), values(37 * 19, 2));
    let before = of(&a, &b, shape);
    assert!(of(&[f32::NAN; 64 * 600], &[f32::NAN; 600 * 64], (64, 64, 600)).iter().all(|x| x.is_nan()));
    assert_eq!(of(&a, &b, shape), before);
}

/// Runs the assembly: for real where the machine has AMX, else instruction by instruction as it traps.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn the_assembly_does_as_the_emulation() {
    use crate::device::cpu::amx::trap;

    if !has_avx512_bf16() {
        return;
    }
    trap::install();
    if !has_amx() {
        eprintln!("no AMX here: its instructions trap and are emulated one by one");
    }
    let of = |is_assembly: bool, (m, n, depth): (usize, usize, usize), by_depth: bool| {
        let (a, b, mut c) = (values(m * depth, 1), values(depth * n, 2), values(m * n, 3));
        let by_row = (Operand::new(&a, m, depth), Operand::new(&b, n, depth).t());
        let (a, b) = if by_depth { (Operand::new(&a, depth, m).t(), Operand::new(&b, depth, n)) } else { by_row };
        // SAFETY: the machine can pack, what it lacks of tiles traps, and `c` has the elements of the product.
        unsafe {
            match is_assembly {
                true => product::<Registers>(0.5, a, b, 2.0, c.as_mut_ptr(), n, Ahead::of(&[])),
                false => product::<Emulated>(0.5, a, b, 2.0, c.as_mut_ptr(), n, Ahead::of(&[])),
            }
        }
        c
    };
    let (before, _) = trap::seen();
    // One tile of sums, two beside each other, two below each other, four; tails, several blocks of depth, several strips.
    for shape in [(16, 16, 32), (5, 20, 37), (32, 3, 64), (32, 32, 100), (70, 75, 1100), (140, 33, 40), (3, 5, 0)] {
        for by_depth in [false, true] {
            assert!(of(true, shape, by_depth) == of(false, shape, by_depth), "{shape:?}, by depth: {by_depth}");
        }
    }
    let (after, is_configured) = trap::seen();
    assert_eq!(after > before, !has_amx(), "instructions trap where there is no AMX, and nowhere else");
    assert!(!is_configured, "tiles are given back");
}
