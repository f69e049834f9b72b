//! The forward of any rows, each a token at a position of a sequence, against what is cached of the tokens before it.
//!
//! ```text
//!   rows (sequence, position, token)
//!     every layer:  q, k, v of all rows -> k and v into the cache -> attention of each row over its sequence -> the rest as in training
//!     at the end:   logits of every row
//! ```
//!
//! One row of each sequence is decoding, many rows of one sequence are its prompt, and both may be in one call.
//!
//! Invariant **M-5**: the logits of a row are, bit for bit, those of the training forward at that position, whatever other rows come with it,
//! where the device's products are the same however they are cut ([`CachedAttention::rows_are_independent`]). All that a layer does to a
//! row but attention is the training's own code, with as many tokens as there are rows; attention adds the same keys in the same order.
//!
//! Deliberately absent: TP and PP, which token comes next.

use toroid_torus::geometry::{Place, Shape};
use toroid_torus::job::Products;
use toroid_torus::model::ModelConfig;
use toroid_torus::partition::{self, Partition};

use super::block::{Context, Scratch};
use super::layout::Layout;
use super::tp::Alone;
use super::{attention, head, moe};
use crate::device::{AttentionDims, Buffer, CachePlace, CachedAttention, Device};

/// A token of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub place: CachePlace,
    pub token: u32,
}

/// Buffers for one number of rows.
struct Workspace<D: Device> {
    /// Attention has one sample of as many tokens as there are rows.
    layout: Layout,
    ids: D::Ids,
    /// `(rows, d)` each: the residual stream.
    x: [D::Buf; 2],
    attention: attention::Saved<D>,
    moe: moe::Saved<D>,
    head: head::Saved<D>,
    scratch: Scratch<D>,
    /// `(rows, head_dim)`: cosines, then sines of each row's position.
    rope: D::Buf,
}

impl<D: Device> Workspace<D> {
    fn new(device: &D, whole: &Layout, rows: usize) -> Workspace<D> {
        let attention = AttentionDims { batch: 1, seq: rows, ..whole.attention };
        let layout = Layout { attention, ..whole.clone() };
        Workspace {
            ids: device.alloc_ids(rows),
            x: [(); 2].map(|()| device.alloc(rows * layout.d)),
            attention: attention::Saved::new(device, &layout),
            moe: moe::Saved::new(device, &layout),
            head: head::Saved::new(device, &layout),
            scratch: Scratch::new(device, &layout),
            rope: device.alloc(rows * layout.attention.head_dim),
            layout,
        }
    }
}

/// The whole model with a cache of keys and values.
pub struct Decoder<D: CachedAttention> {
    device: D,
    /// `batch` sequences of up to `seq` tokens.
    layout: Layout,
    /// `(len)`
    params: D::Buf,
    /// By layer, `(sequences, seq, 2 * kv_heads * head_dim)`: keys, then values of each token.
    caches: Vec<D::Buf>,
    /// `(seq, head_dim)`
    rope: Vec<f32>,
    /// Of the last number of rows.
    workspace: Option<Workspace<D>>,
}

/// The partition of a model that is on one place.
pub fn whole_partition(model: &ModelConfig) -> Partition {
    let shape = Shape::new(1, 1, 1).expect("one place is a shape");
    partition::partition(model, &shape, 0, 0)
}

impl<D: CachedAttention> Decoder<D> {
    /// A decoder of `sequences` sequences of up to `model.seq` tokens. `params (padded_len)` is laid out as [`whole_partition`] says.
    pub fn new(device: D, model: &ModelConfig, products: Products, params: &[f32], sequences: usize) -> Decoder<D> {
        let shape = Shape::new(1, 1, 1).expect("one place is a shape");
        let partition = whole_partition(model);
        assert_eq!(params.len(), partition.padded_len, "params do not have the length of the partition");
        let place = Place { tp: 0, pp: 0, dp: 0 };
        let layout = Layout::of(model, products, sequences, &shape, place, &partition);
        let dims = &layout.attention;
        let cache_len = dims.tokens() * 2 * dims.kv_heads * dims.head_dim;
        let caches = layout.layers.iter().map(|_| device.alloc(cache_len)).collect();
        let mut own = device.alloc(params.len());
        device.write(own.all_mut(), params);
        Decoder { rope: layout.rope_table(), params: own, caches, workspace: None, layout, device }
    }

    /// Tokens that a sequence can have.
    pub fn max_tokens(&self) -> usize {
        self.layout.attention.seq
    }

    /// Tokens of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.layout.vocab_size
    }

    /// The first `tokens` of sequence `to` become those of sequence `from`.
    pub fn copy_sequence(&mut self, from: usize, to: usize, tokens: usize) {
        let Decoder { device, layout, caches, .. } = self;
        let dims = &layout.attention;
        let row_len = 2 * dims.kv_heads * dims.head_dim;
        let range = |sequence: usize| sequence * dims.seq * row_len..(sequence * dims.seq + tokens) * row_len;
        let mut values = vec![0.0; tokens * row_len];
        for cache in caches {
            device.read(cache.view(range(from)), &mut values);
            device.write(cache.view_mut(range(to)), &values);
        }
    }

    /// The logits of `rows`, `(rows, vocab)`, into `logits`. Rows of a sequence come in ascending order, and all positions before them are in the
    /// cache, or come before them here. Each token is below the model's vocabulary.
    pub fn forward(&mut self, rows: &[Row], logits: &mut [f32]) {
        let Decoder { device, layout, params, caches, rope, workspace } = self;
        let n = rows.len();
        assert!(n > 0 && logits.len() == n * layout.vocab_size, "logits of {n} rows");
        let dims = layout.attention;
        for row in rows {
            let CachePlace { sequence, position } = row.place;
            assert!(sequence < dims.batch && position < dims.seq, "{row:?} is outside of {dims:?}");
            assert!((row.token as usize) < layout.vocab_size, "{row:?} is outside of the vocabulary");
        }
        if workspace.as_ref().is_none_or(|w| w.layout.tokens() != n) {
            *workspace = Some(Workspace::new(device, layout, n));
        }
        let Some(work) = workspace else { unreachable!("it was just made") };
        let tokens: Vec<u32> = rows.iter().map(|row| row.token).collect();
        device.write_ids(&mut work.ids, &tokens);
        let table: Vec<f32> =
            rows.iter().flat_map(|row| &rope[row.place.position * dims.head_dim..][..dims.head_dim]).copied().collect();
        device.write(work.rope.all_mut(), &table);
        let places: Vec<CachePlace> = rows.iter().map(|row| row.place).collect();

        let embedding = layout.embedding.clone().expect("the whole model has the embedding");
        device.embedding(layout.d, &work.ids, 0, params.view(embedding), work.x[0].all_mut());
        let Workspace { layout: of_rows, x, attention, moe, head, scratch, rope, .. } = work;
        let [x, x_out] = x;
        let mut context = Context { device, layout: of_rows, params, rope, rows: None, scratch, tp: &mut Alone };
        for (ranges, cache) in layout.layers.iter().zip(caches) {
            attention::projections(&mut context, ranges, attention, x);
            attention::attend_cached(&context, attention, &dims, &places, cache);
            let Ok(()) = attention::output(&mut context, ranges, attention, x, &mut moe.x);
            let Ok(()) = moe::forward(&mut context, ranges, moe, x_out);
            std::mem::swap(x, x_out);
        }
        let ranges = layout.head.as_ref().expect("the whole model has the head");
        head::logits(&mut context, ranges, head, x);
        device.read(head.logits.all(), logits);
    }
}
