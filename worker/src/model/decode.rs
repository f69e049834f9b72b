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
//! where the device's products are the same however they are cut ([`CachedAttention::rows_are_independent`]) and the TP group, if there is one,
//! sums in the same order. All that a layer does to a row but attention is the training's own code, with as many tokens as there are rows;
//! attention adds the same keys in the same order.
//!
//! A [`StageDecoder`] is that of the layers of one (tp, pp) place: rows come in as tokens or as the residual stream, and leave as that or as this
//! rank's part of the logits. A [`Decoder`] is the whole model in one place, with parameters of its own; one over several places is in `split`.
//! Whoever generates asks either by [`Decode`].
//!
//! Deliberately absent: which token comes next.

use std::collections::BTreeMap;
use std::ops::Range;

use toroid_torus::geometry::{Place, Shape};
use toroid_torus::job::Products;
use toroid_torus::model::ModelConfig;
use toroid_torus::partition::{self, Partition};

use super::block::{Context, Scratch, sum_over_tp};
use super::layout::Layout;
use super::tp::{Alone, TpComm};
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

/// The partition of a model that is on one place.
pub fn whole_partition(model: &ModelConfig) -> Partition {
    let shape = Shape::new(1, 1, 1).expect("one place is a shape");
    partition::partition(model, &shape, 0, 0)
}

/// What goes into a stage, for some rows.
#[derive(Debug, Clone, Copy)]
pub enum DecodeInput<'a> {
    /// Of the first stage: the rows' own tokens.
    Tokens,
    /// `(rows, d)`: the residual stream, of every other.
    Activations(&'a [f32]),
}

/// What comes out of it.
#[derive(Debug)]
pub enum DecodeOutput<'a> {
    /// `(rows, d)`: the residual stream, of every stage but the last.
    Activations(&'a mut [f32]),
    /// Of the last: the logits of the rows that are wanted, `(wanted, vocab_local)`.
    Logits { wanted: &'a [usize], logits: &'a mut [f32] },
}

/// What has logits of rows, by keys and values that it caches: a model in one place or on several.
pub trait Decode {
    /// Tokens that a sequence can have.
    fn max_tokens(&self) -> usize;

    /// Sequences that it has room for.
    fn sequences(&self) -> usize;

    /// Tokens of the vocabulary.
    fn vocab(&self) -> usize;

    /// The first `tokens` of sequence `to` become those of sequence `from`.
    fn copy_sequence(&mut self, from: usize, to: usize, tokens: usize);

    /// The logits of those of `rows` that are `wanted`, `(wanted, vocab)`, into `logits`; which rows may come: see [`StageDecoder::forward`].
    ///
    /// # Panics
    ///
    /// Whatever computes has panicked.
    fn forward_some(&mut self, rows: &[Row], wanted: &[usize], logits: &mut [f32]);

    /// As [`Decode::forward_some`], with the logits of all rows, `(rows, vocab)`.
    fn forward(&mut self, rows: &[Row], logits: &mut [f32]) {
        let all: Vec<usize> = (0..rows.len()).collect();
        self.forward_some(rows, &all, logits);
    }
}

/// The layers of one (tp, pp) place with a cache of keys and values. The parameters are somebody else's.
pub struct StageDecoder<D: CachedAttention> {
    device: D,
    /// `batch` sequences of up to `seq` tokens.
    layout: Layout,
    /// By layer, `(sequences, seq, 2 * kv_heads * head_dim)`: keys, then values of each token.
    caches: Vec<D::Buf>,
    /// `(seq, head_dim)`
    rope: Vec<f32>,
    /// By their number of rows.
    workspaces: BTreeMap<usize, Workspace<D>>,
    ends: BTreeMap<usize, Ends<D>>,
}

impl<D: CachedAttention> StageDecoder<D> {
    /// Of `sequences` sequences of up to `model.seq` tokens; `partition` is that of `place`.
    pub fn new(
        device: D,
        model: &ModelConfig,
        products: Products,
        (shape, place): (&Shape, Place),
        partition: &Partition,
        sequences: usize,
    ) -> StageDecoder<D> {
        let layout = Layout::of(model, products, sequences, shape, place, partition);
        let dims = &layout.attention;
        let cache_len = dims.tokens() * 2 * dims.kv_heads * dims.head_dim;
        let caches = layout.layers.iter().map(|_| device.alloc(cache_len)).collect();
        StageDecoder {
            rope: layout.rope_table(),
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

    /// Tokens of the vocabulary, and those whose logits this rank has.
    pub fn vocab(&self) -> (usize, Range<usize>) {
        (self.layout.vocab_size, self.layout.vocab.clone())
    }

    /// Width of the residual stream.
    pub fn width(&self) -> usize {
        self.layout.d
    }

    /// The first `tokens` of sequence `to` become those of sequence `from`.
    pub(super) fn copy_sequence(&mut self, from: usize, to: usize, tokens: usize) {
        let StageDecoder { device, layout, caches, .. } = self;
        let dims = &layout.attention;
        let row_len = 2 * dims.kv_heads * dims.head_dim;
        let range = |sequence: usize| sequence * dims.seq * row_len..(sequence * dims.seq + tokens) * row_len;
        let mut values = vec![0.0; tokens * row_len];
        for cache in caches {
            device.read(cache.view(range(from)), &mut values);
            device.write(cache.view_mut(range(to)), &values);
        }
    }

    /// `rows` through the layers, by the flat `params (padded_len)` of the stage. Rows of a sequence come in ascending order, and all positions before
    /// them are in the cache, or come before them here. Each token is below the model's vocabulary.
    ///
    /// # Errors
    ///
    /// What the TP group says; what the cache has of these rows then means nothing.
    pub fn forward<T: TpComm>(
        &mut self,
        params: &mut D::Buf,
        rows: &[Row],
        input: DecodeInput<'_>,
        tp: &mut T,
        output: DecodeOutput<'_>,
    ) -> Result<(), T::Error> {
        let StageDecoder { device, layout, caches, rope, workspaces, ends } = self;
        let n = rows.len();
        assert!(n > 0, "a forward of no row");
        let dims = layout.attention;
        for row in rows {
            let CachePlace { sequence, position } = row.place;
            assert!(sequence < dims.batch && position < dims.seq, "{row:?} is outside of {dims:?}");
            assert!((row.token as usize) < layout.vocab_size, "{row:?} is outside of the vocabulary");
        }
        let work = kept(workspaces, n, || Workspace::new(device, layout, n));
        let table: Vec<f32> =
            rows.iter().flat_map(|row| &rope[row.place.position * dims.head_dim..][..dims.head_dim]).copied().collect();
        device.write(work.rope.all_mut(), &table);
        let of_rows: Vec<CachePlace> = rows.iter().map(|row| row.place).collect();
        device.write_ids(&mut work.places, &CachePlace::ids(&of_rows));
        let Workspace { layout: of_rows, ids, places, x, attention, moe, scratch, rope } = work;
        let [x, x_out] = x;
        match (input, &layout.embedding) {
            (DecodeInput::Tokens, Some(embedding)) => {
                let tokens: Vec<u32> = rows.iter().map(|row| row.token).collect();
                device.write_ids(ids, &tokens);
                let table = params.view(embedding.clone());
                device.embedding(layout.d, ids, layout.vocab.start, table, x.all_mut());
                sum_over_tp(device, x, tp)?;
            }
            (DecodeInput::Activations(values), None) => device.write(x.all_mut(), values),
            (input, embedding) => panic!("a stage takes tokens where it has the embedding: {input:?}, {embedding:?}"),
        }
        let mut context = Context { device, layout: of_rows, params, rope, rows: None, scratch, tp };
        for (ranges, cache) in layout.layers.iter().zip(caches) {
            attention::projections(&mut context, ranges, attention, x);
            attention::attend_cached(&context, attention, &dims, places, cache);
            attention::output(&mut context, ranges, attention, x, &mut moe.x)?;
            moe::forward(&mut context, ranges, moe, x_out)?;
            std::mem::swap(x, x_out);
        }
        let (wanted, logits) = match output {
            DecodeOutput::Activations(values) => {
                device.read(x.all(), values);
                return Ok(());
            }
            DecodeOutput::Logits { wanted: [], .. } => return Ok(()),
            DecodeOutput::Logits { wanted, logits } => (wanted, logits),
        };
        assert_eq!(logits.len(), wanted.len() * layout.vocab.len(), "logits of {} rows", wanted.len());
        let end = kept(ends, wanted.len(), || Ends::new(device, layout, wanted.len()));
        let ids: Vec<u32> = wanted.iter().map(|row| *row as u32).collect();
        device.write_ids(&mut end.ids, &ids);
        // A row of the stream by its number is what an embedding is of a table.
        device.embedding(layout.d, &end.ids, 0, x.all(), end.x.all_mut());
        let ranges = layout.head.as_ref().expect("a stage without an output of its own has the head");
        let mut context = Context { layout: &end.layout, ..context };
        head::logits(&mut context, ranges, &mut end.head, &end.x);
        device.read(end.head.logits.all(), logits);
        Ok(())
    }
}

/// The whole model with a cache of keys and values.
pub struct Decoder<D: CachedAttention> {
    stage: StageDecoder<D>,
    /// `(len)`
    params: D::Buf,
}

impl<D: CachedAttention> Decoder<D> {
    /// A decoder of `sequences` sequences of up to `model.seq` tokens. `params (padded_len)` is laid out as [`whole_partition`] says.
    pub fn new(device: D, model: &ModelConfig, products: Products, params: &[f32], sequences: usize) -> Decoder<D> {
        let shape = Shape::new(1, 1, 1).expect("one place is a shape");
        let partition = whole_partition(model);
        assert_eq!(params.len(), partition.padded_len, "params do not have the length of the partition");
        let mut own = device.alloc(params.len());
        device.write(own.all_mut(), params);
        let at = (&shape, Place { tp: 0, pp: 0, dp: 0 });
        Decoder { stage: StageDecoder::new(device, model, products, at, &partition, sequences), params: own }
    }
}

impl<D: CachedAttention> Decode for Decoder<D> {
    fn max_tokens(&self) -> usize {
        self.stage.max_tokens()
    }

    fn sequences(&self) -> usize {
        self.stage.sequences()
    }

    fn vocab(&self) -> usize {
        self.stage.vocab().0
    }

    fn copy_sequence(&mut self, from: usize, to: usize, tokens: usize) {
        self.stage.copy_sequence(from, to, tokens);
    }

    fn forward_some(&mut self, rows: &[Row], wanted: &[usize], logits: &mut [f32]) {
        let device = self.stage.device.clone();
        let Decoder { stage, params } = self;
        device.enter(|| {
            let output = DecodeOutput::Logits { wanted, logits };
            let Ok(()) = stage.forward(params, rows, DecodeInput::Tokens, &mut Alone, output);
        });
    }
}
