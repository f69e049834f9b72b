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

use std::collections::BTreeMap;

use toroid_torus::geometry::{Place, Shape};
use toroid_torus::job::Products;
use toroid_torus::model::ModelConfig;
use toroid_torus::partition::{self, Partition};

use super::block::{Context, Scratch};
use super::layout::Layout;
use super::tp::Alone;
use super::{attention, head, moe};
use crate::device::{Buffer, CachePlace, CachedAttention, Device};

/// A token of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub place: CachePlace,
    pub token: u32,
}

/// Numbers of rows whose buffers are kept.
const MAX_WORKSPACES: usize = 32;

/// Buffers for one number of rows.
struct Workspace<D: Device> {
    /// Attention has one sample of as many tokens as there are rows.
    layout: Layout,
    ids: D::Ids,
    /// `(2, rows)`: as [`CachePlace::ids`].
    places: D::Ids,
    /// `(rows, d)` each: the residual stream.
    x: [D::Buf; 2],
    attention: attention::Saved<D>,
    moe: moe::Saved<D>,
    scratch: Scratch<D>,
    /// `(rows, head_dim)`: cosines, then sines of each row's position.
    rope: D::Buf,
}

impl<D: Device> Workspace<D> {
    fn new(device: &D, whole: &Layout, rows: usize) -> Workspace<D> {
        let layout = whole.of_rows(rows);
        Workspace {
            ids: device.alloc_ids(rows),
            places: device.alloc_ids(2 * rows),
            x: [(); 2].map(|()| device.alloc(rows * layout.d)),
            attention: attention::Saved::new(device, &layout),
            moe: moe::Saved::new(device, &layout),
            scratch: Scratch::new(device, &layout),
            rope: device.alloc(rows * layout.attention.head_dim),
            layout,
        }
    }
}

/// Buffers for the end of one number of rows: those whose logits are wanted.
struct Ends<D: Device> {
    layout: Layout,
    /// Which rows.
    ids: D::Ids,
    /// `(ends, d)`: the residual stream.
    x: D::Buf,
    head: head::Saved<D>,
}

impl<D: Device> Ends<D> {
    fn new(device: &D, whole: &Layout, ends: usize) -> Ends<D> {
        let layout = whole.of_rows(ends);
        Ends {
            ids: device.alloc_ids(ends),
            x: device.alloc(ends * layout.d),
            head: head::Saved::new(device, &layout),
            layout,
        }
    }
}

/// What is kept of one number, made where it is not there.
fn kept<T>(all: &mut BTreeMap<usize, T>, number: usize, make: impl FnOnce() -> T) -> &mut T {
    if all.len() >= MAX_WORKSPACES && !all.contains_key(&number) {
        all.clear();
    }
    all.entry(number).or_insert_with(make)
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
    /// By their number of rows.
    workspaces: BTreeMap<usize, Workspace<D>>,
    ends: BTreeMap<usize, Ends<D>>,
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
        Decoder {
            rope: layout.rope_table(),
            params: own,
            caches,
            workspaces: BTreeMap::new(),
            ends: BTreeMap::new(),
            layout,
            device,
        }
    }

    /// Tokens that a sequence can have.
    pub fn max_tokens(&self) -> usize {
        self.layout.attention.seq
    }

    /// Sequences that it has room for.
    pub fn sequences(&self) -> usize {
        self.layout.attention.batch
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
        let all: Vec<usize> = (0..rows.len()).collect();
        self.forward_some(rows, &all, logits);
    }

    /// As [`Decoder::forward`], with the logits of the rows `wanted` alone, `(wanted, vocab)`.
    pub fn forward_some(&mut self, rows: &[Row], wanted: &[usize], logits: &mut [f32]) {
        let device = self.device.clone();
        device.enter(|| self.compute(rows, wanted, logits));
    }

    fn compute(&mut self, rows: &[Row], wanted: &[usize], logits: &mut [f32]) {
        let Decoder { device, layout, params, caches, rope, workspaces, ends } = self;
        let n = rows.len();
        assert!(n > 0 && logits.len() == wanted.len() * layout.vocab_size, "logits of {} rows", wanted.len());
        let dims = layout.attention;
        for row in rows {
            let CachePlace { sequence, position } = row.place;
            assert!(sequence < dims.batch && position < dims.seq, "{row:?} is outside of {dims:?}");
            assert!((row.token as usize) < layout.vocab_size, "{row:?} is outside of the vocabulary");
        }
        let work = kept(workspaces, n, || Workspace::new(device, layout, n));
        let tokens: Vec<u32> = rows.iter().map(|row| row.token).collect();
        device.write_ids(&mut work.ids, &tokens);
        let table: Vec<f32> =
            rows.iter().flat_map(|row| &rope[row.place.position * dims.head_dim..][..dims.head_dim]).copied().collect();
        device.write(work.rope.all_mut(), &table);
        let places: Vec<CachePlace> = rows.iter().map(|row| row.place).collect();
        device.write_ids(&mut work.places, &CachePlace::ids(&places));

        let embedding = layout.embedding.clone().expect("the whole model has the embedding");
        device.embedding(layout.d, &work.ids, 0, params.view(embedding), work.x[0].all_mut());
        let Workspace { layout: of_rows, places, x, attention, moe, scratch, rope, .. } = work;
        let [x, x_out] = x;
        let mut context = Context { device, layout: of_rows, params, rope, rows: None, scratch, tp: &mut Alone };
        for (ranges, cache) in layout.layers.iter().zip(caches) {
            attention::projections(&mut context, ranges, attention, x);
            attention::attend_cached(&context, attention, &dims, places, cache);
            let Ok(()) = attention::output(&mut context, ranges, attention, x, &mut moe.x);
            let Ok(()) = moe::forward(&mut context, ranges, moe, x_out);
            std::mem::swap(x, x_out);
        }
        if wanted.is_empty() {
            return;
        }
        let end = kept(ends, wanted.len(), || Ends::new(device, layout, wanted.len()));
        let ids: Vec<u32> = wanted.iter().map(|row| *row as u32).collect();
        device.write_ids(&mut end.ids, &ids);
        // A row of the stream by its number is what an embedding is of a table.
        device.embedding(layout.d, &end.ids, 0, x.all(), end.x.all_mut());
        let ranges = layout.head.as_ref().expect("the whole model has the head");
        let mut context = Context { layout: &end.layout, ..context };
        head::logits(&mut context, ranges, &mut end.head, &end.x);
        device.read(end.head.logits.all(), logits);
    }
}
