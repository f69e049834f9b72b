//! Types of the elements in a file, and the way between them and f32.
//!
//! From bf16 and f16 nothing is lost; to bf16 values are rounded to nearest, ties to even.

/// Type of a tensor's elements in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dtype {
    #[default]
    F32,
    Bf16,
    F16,
}

const _: () = assert!(cfg!(target_endian = "little"), "f32 are copied as they lie in memory: little-endian");

impl Dtype {
    /// The name in the header of a safetensors file.
    pub fn safetensors(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::Bf16 => "BF16",
            Dtype::F16 => "F16",
        }
    }

    /// The name in `config.json`.
    pub fn torch(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::Bf16 => "bfloat16",
            Dtype::F16 => "float16",
        }
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
        }
    }

    /// Fills `out` with the elements from `first` on of a tensor that lies in `data`, which must hold as many.
    pub fn decode(self, data: &[u8], first: usize, out: &mut [f32]) {
        let data = &data[self.size() * first..self.size() * (first + out.len())];
        let halves = data.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match self {
            Dtype::F32 => bytemuck::cast_slice_mut::<f32, u8>(out).copy_from_slice(data),
            Dtype::Bf16 => out.iter_mut().zip(halves).for_each(|(x, bits)| *x = f32::from_bits(u32::from(bits) << 16)),
            Dtype::F16 => out.iter_mut().zip(halves).for_each(|(x, bits)| *x = f32_of_f16(bits)),
        }
    }
}

/// The bf16 nearest to `x`, of two the even one; `None` where it has none that is finite.
pub fn bf16_of_f32(x: f32) -> Option<u16> {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let is_finite = x.is_finite() && rounded & 0x7f80 != 0x7f80;
    // 32 bits less 16 fit into 16.
    is_finite.then_some(rounded as u16)
}

/// IEEE 754 binary16 to binary32; exact.
fn f32_of_f16(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let (exponent, fraction) = (u32::from(bits >> 10) & 0x1f, u32::from(bits) & 0x3ff);
    match exponent {
        // Zero and subnormals: fraction * 2^-24, exact in f32.
        0 => f32::from_bits(sign | (fraction as f32 * f32::from_bits((127 - 24) << 23)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 127 - 15) << 23 | fraction << 13),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the formula of the standard, in f64, for every finite half.
    #[test]
    fn every_half_converts_exactly() {
        for bits in 0..=u16::MAX {
            let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            let found = f32_of_f16(bits);
            match exponent {
                31 if fraction == 0.0 => assert_eq!(found, (sign * f64::INFINITY) as f32),
                31 => assert!(found.is_nan(), "{bits:#06x} gave {found}"),
                0 => assert_eq!(f64::from(found), sign * fraction * 2f64.powi(-24), "{bits:#06x}"),
                _ => assert_eq!(
                    f64::from(found),
                    sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
                    "{bits:#06x}"
                ),
            }
        }
    }

    /// Every bf16 comes back from f32, and what lies between two goes to the nearer one, from the middle to the even one.
    #[test]
    fn bf16_is_rounded_to_the_nearest_and_ties_to_even() {
        for bits in (0..=u16::MAX).filter(|bits| bits & 0x7f80 != 0x7f80) {
            let exact = u32::from(bits) << 16;
            assert_eq!(bf16_of_f32(f32::from_bits(exact)), Some(bits));
            let next = Some(bits + 1).filter(|next| next & 0x7f80 != 0x7f80);
            assert_eq!(bf16_of_f32(f32::from_bits(exact | 0x7fff)), Some(bits), "{bits:#06x}, below the middle");
            assert_eq!(bf16_of_f32(f32::from_bits(exact | 0x8001)), next, "{bits:#06x}, above the middle");
            let even = if bits % 2 == 0 { Some(bits) } else { next };
            assert_eq!(bf16_of_f32(f32::from_bits(exact | 0x8000)), even, "{bits:#06x}, the middle");
        }
        assert_eq!([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX].map(bf16_of_f32), [None; 4]);
    }
}
