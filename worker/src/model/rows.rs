//! Which rows of a micro-batch are tokens, and of which text: where samples are not text from end to end.
//!
//! ```text
//!   sample   t t t t t . . .            one text, and padding behind it
//!   packed   t t t t t . . . u u u .    several texts, each from a tile of attention on ([`TEXT_ALIGN`])
//! ```
//!
//! Padding is computed, as the shapes of a stage are static, and counts nowhere: it goes to no expert, no token sees it, and its loss and
//! gradient are zeros that were put there. What a text computes is, bit for bit, what it computes alone.

use std::ops::Range;

use crate::device::{AttentionDims, Device, Kept, NOWHERE, TEXT_ALIGN};

use super::layout::Layout;

/// Of one micro-batch, on the device.
pub(super) struct Rows<D: Device> {
    /// `(N)`: [`NOWHERE`] at padding.
    kept: D::Ids,
    num_kept: usize,
    /// Where texts share samples.
    packed: Option<Packed<D>>,
}

struct Packed<D: Device> {
    /// `(2, N)`: see [`Device::attention`].
    bounds: D::Ids,
    /// `(N, head_dim)`: cosines, then sines of each row's position in its text.
    rope: D::Buf,
}

impl<D: Device> Rows<D> {
    pub fn new(device: &D, layout: &Layout) -> Rows<D> {
        let tokens = layout.tokens();
        Rows {
            kept: device.alloc_ids(tokens),
            num_kept: 0,
            packed: layout.is_packed.then(|| Packed {
                bounds: device.alloc_ids(2 * tokens),
                rope: device.alloc(tokens * layout.attention.head_dim),
            }),
        }
    }

    /// The micro-batch has these `texts`, ascending; `table (seq, head_dim)` is the rotary one.
    pub fn set(&mut self, device: &D, dims: &AttentionDims, texts: &[Range<usize>], table: &[f32]) {
        check(dims, texts, self.packed.is_some());
        let mut kept = vec![NOWHERE; dims.tokens()];
        texts.iter().for_each(|text| kept[text.clone()].fill(0));
        device.write_ids(&mut self.kept, &kept);
        self.num_kept = texts.iter().map(ExactSizeIterator::len).sum();
        if let Some(Packed { bounds, rope }) = &mut self.packed {
            let of_texts = bounds_of(dims, texts);
            device.write_ids(bounds, &of_texts);
            let starts = &of_texts[..dims.tokens()];
            let position = |(row, start): (usize, &u32)| row % dims.seq - *start as usize;
            let row = |position: usize| &table[position * dims.head_dim..][..dims.head_dim];
            let rows: Vec<f32> = starts.iter().enumerate().flat_map(|at| row(position(at))).copied().collect();
            device.write(crate::device::Buffer::all_mut(rope), &rows);
        }
    }

    pub fn kept(&self) -> Kept<'_, D> {
        Kept { rows: &self.kept, num: self.num_kept }
    }

    /// As [`Device::attention`] takes them.
    pub fn bounds(&self) -> Option<&D::Ids> {
        self.packed.as_ref().map(|packed| &packed.bounds)
    }

    /// The rotary table of the rows, where positions are not those in the samples.
    pub fn rope(&self) -> Option<&D::Buf> {
        self.packed.as_ref().map(|packed| &packed.rope)
    }
}

/// Texts lie within samples, in order; where they do not share them, each begins one.
fn check(dims: &AttentionDims, texts: &[Range<usize>], is_packed: bool) {
    let align = if is_packed { TEXT_ALIGN } else { dims.seq };
    let mut end = 0;
    for text in texts {
        let is_within = text.start >= end && text.end <= (text.start / dims.seq + 1) * dims.seq;
        assert!(
            is_within && text.end <= dims.tokens(),
            "the text {text:?} is not within a sample of {dims:?}, or not behind {end}"
        );
        assert!(
            (text.start % dims.seq).is_multiple_of(align),
            "the text {text:?} does not begin at a multiple of {align}"
        );
        end = text.end;
    }
}

/// `(2, N)`: where the text of each row begins in its sample, and where the next does. Padding is of the text before it, or of its own.
fn bounds_of(dims: &AttentionDims, texts: &[Range<usize>]) -> Vec<u32> {
    let mut bounds = vec![0; 2 * dims.tokens()];
    let (starts, ends) = bounds.split_at_mut(dims.tokens());
    for sample in 0..dims.batch {
        let first = sample * dims.seq;
        let within = texts.iter().filter(|text| text.start / dims.seq == sample);
        let mut cuts: Vec<usize> = within.map(|text| text.start - first).filter(|start| *start > 0).collect();
        cuts.push(dims.seq);
        let mut start = 0;
        for end in cuts {
            starts[first + start..first + end].fill(start as u32);
            ends[first + start..first + end].fill(end as u32);
            start = end;
        }
    }
    bounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_knows_the_text_that_it_is_of() {
        let dims = AttentionDims { batch: 2, seq: 160, heads: 1, kv_heads: 1, head_dim: 2 };
        let texts = [0..40, 64..160, 160..161];
        check(&dims, &texts, true);
        let bounds = bounds_of(&dims, &texts);
        let at = |row: usize| (bounds[row], bounds[dims.tokens() + row]);
        assert_eq!([0, 63, 64, 159, 160, 319].map(at), [(0, 64), (0, 64), (64, 160), (64, 160), (0, 160), (0, 160)]);
    }
}
