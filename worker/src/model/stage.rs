//! The layers of one (tp, pp) place, and their activations.

use std::ops::Range;

use toroid_torus::geometry::{Place, Shape};
use toroid_torus::job::JobSpec;
use toroid_torus::partition::Partition;
use toroid_torus::pipeline::{InFlight, Schedule};

use crate::device::{Buffer, Device, NOWHERE, View};

use super::block::{Context, Scratch, sum_over_tp};
use super::end::{self, EndStats, Target};
use super::layout::Layout;
use super::moe::RouterStats;
use super::params::{Frozen, Params};
use super::policy::{EvaluatedRows, Saved};
use super::policy_loss::{AnswerRows, PolicyStats};
use super::rows::Rows;
use super::score::PairStats;
use super::tp::{Alone, TpComm};
use super::watch::{Unwatched, Watch};
use super::{attention, moe};

/// What a stage is fed with.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// `(B, S)`, on the first stage.
    Tokens(&'a [u32]),
    /// `(B, S, d)`, on every other.
    Activations(&'a [f32]),
}

/// A micro-batch as a stage takes it.
#[derive(Debug, Clone, Copy)]
pub struct Feed<'a> {
    pub input: Input<'a>,
    /// On the last stage.
    pub target: Option<Target<'a>>,
    /// Rows of each text, ascending, where samples are texts with padding behind them; `None` in pre-training.
    pub texts: Option<&'a [Range<usize>]>,
}

impl<'a> Feed<'a> {
    /// Of pre-training: every row is a token that is trained.
    pub fn text(input: Input<'a>, targets: Option<&'a [u32]>) -> Feed<'a> {
        Feed { input, target: targets.map(Target::Tokens), texts: None }
    }
}

/// What the losses of a micro-batch are multiplied by in its gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScale {
    /// Of each token that is trained, or of each pair.
    pub each: f32,
    /// Of the micro-batch's losses of routers.
    pub routers: f32,
}

impl LossScale {
    /// Of a mean over `tokens` tokens.
    pub fn mean(scale: f32, tokens: usize) -> LossScale {
        LossScale { each: scale / tokens as f32, routers: scale }
    }
}

/// The loss terms of one micro-batch that arise in a stage. The loss is `ce + z_coef * z + balance_coef * balance` over
/// all stages.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MicroBatchStats {
    /// Mean over the tokens of the cross-entropy, or where samples are texts the sum over those that are trained; 0 but on the last stage.
    pub ce: f64,
    /// Sum over the stage's layers, as [`RouterStats::z`].
    pub z: f64,
    /// Sum over the stage's layers, as [`RouterStats::balance`].
    pub balance: f64,
    /// On the last stage of a reward model.
    pub pairs: PairStats,
    /// On the last stage of a policy.
    pub policy: PolicyStats,
}

/// One layer's activations: a slot's own, or those of the layer that is at work.
struct LayerSaved<D: Device> {
    attention: attention::Saved<D>,
    moe: moe::Saved<D>,
    /// Where the gradients of the weights come later than that of the input.
    kept: Option<(attention::Kept<D>, moe::Kept<D>)>,
}

/// What has run of a slot's micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Forward,
    BackwardInput,
}

impl<D: Device> LayerSaved<D> {
    fn new(device: &D, layout: &Layout, splits_backward: bool) -> LayerSaved<D> {
        LayerSaved {
            attention: attention::Saved::new(device, layout),
            moe: moe::Saved::new(device, layout),
            kept: splits_backward.then(|| (attention::Kept::new(device, layout), moe::Kept::new(device, layout))),
        }
    }
}

/// What a slot keeps of a micro-batch between its forward and its backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeps {
    /// All that the backward needs.
    Activations,
    /// What goes into the two halves of each layer; the rest is computed again (Chen et al., "Training deep nets with sublinear memory
    /// cost"). Both came out of sums over the TP group, so none is made again (M-2), nor are the products before them.
    Inputs,
    /// Nothing: an evaluation.
    Nothing,
}

/// The activations of one micro-batch. Layer `l` reads `x[l % x.len()]` and writes the next: a slot for evaluation has two `x`. A layer that
/// has no activations here uses those of the stage's `work`.
struct Slot<D: Device> {
    state: State,
    /// `(N)`: input of the first stage.
    tokens: D::Ids,
    /// `(N, d)` each: the residual stream between layers.
    x: Vec<D::Buf>,
    /// `(N, d)` each: what goes into the second half of a layer. [`Keeps::Inputs`].
    mids: Vec<D::Buf>,
    /// By layer. With [`Keeps::Inputs`] only between the two parts of a split backward, lent by the stage.
    layers: Vec<LayerSaved<D>>,
    /// Where samples are texts.
    rows: Option<Rows<D>>,
    /// On the last stage.
    head: Option<end::Saved<D>>,
    /// `(layers, E)`: assignments.
    counts: Vec<u32>,
    /// `(layers)`
    router: Vec<RouterStats>,
}

impl<D: Device> Slot<D> {
    fn new(device: &D, layout: &Layout, keeps: Keeps, splits_backward: bool) -> Slot<D> {
        let num_layers = layout.layers.len();
        let residual = |num: usize| (0..num).map(|_| device.alloc(layout.tokens() * layout.d)).collect();
        let layer = |_| LayerSaved::new(device, layout, splits_backward);
        Slot {
            state: State::Free,
            tokens: device.alloc_ids(layout.tokens()),
            x: residual(if keeps == Keeps::Nothing { 2 } else { num_layers + 1 }),
            mids: residual(if keeps == Keeps::Inputs { num_layers } else { 0 }),
            layers: (0..if keeps == Keeps::Activations { num_layers } else { 0 }).map(layer).collect(),
            rows: layout.has_texts.then(|| Rows::new(device, layout)),
            head: layout.head.as_ref().map(|_| end::Saved::new(device, layout)),
            counts: vec![0; layout.layers.len() * layout.experts],
            router: vec![RouterStats::default(); layout.layers.len()],
        }
    }

    /// Takes the router's losses and the assignments of layer `l` from the device.
    fn read_stats(&mut self, layout: &Layout, device: &D, l: usize, work: &LayerSaved<D>, prob_sums: &mut [f32]) {
        let counts = &mut self.counts[l * layout.experts..(l + 1) * layout.experts];
        self.router[l] = self.layers.get(l).unwrap_or(work).moe.stats(device, counts, prob_sums);
    }

    /// Input and output of layer `l`.
    fn x_of(x: &mut [D::Buf], l: usize) -> (&D::Buf, &mut D::Buf) {
        let (input, output) = (l % x.len(), (l + 1) % x.len());
        let [input, output] = x.get_disjoint_mut([input, output]).expect("a slot has at least two x");
        (input, output)
    }
}

/// Bytes that a stage allocated on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocated {
    pub parameter_bytes: u64,
    pub gradient_bytes: u64,
    pub activation_bytes: u64,
    pub scratch_bytes: u64,
}

/// The layers of one (tp, pp) place: parameters, gradients, and the activations of the micro-batches in flight.
///
/// Parameters and gradients are one flat buffer each, laid out as [`Partition`] says. Every buffer is allocated by
/// [`Stage::new`] (M-3). Gradients are added up over the calls of [`Stage::backward`] until [`Stage::zero_grads`].
///
/// Those of replicated tensors are parts of a sum over the TP group where the partition says so
/// ([`grad_is_partial`](toroid_torus::partition::LocalSlice::grad_is_partial)); that sum is the caller's, once a step.
pub struct Stage<D: Device> {
    device: D,
    layout: Layout,
    /// `(padded_len)`
    params: Params<D>,
    /// `(padded_len)`
    grads: D::Buf,
    /// `(seq, head_dim)`
    rope: D::Buf,
    /// The same on the host.
    rope_table: Vec<f32>,
    scratch: Scratch<D>,
    in_flight: InFlight,
    allocated: Allocated,
    /// `in_flight.micro_batches` of them.
    slots: Vec<Slot<D>>,
    evaluation: Slot<D>,
    /// Of the layer that is at work, where its slot does not keep it.
    work: LayerSaved<D>,
    /// By layer each: for slots that keep inputs only, between the two parts of a split backward. `in_flight.split` of them, less those
    /// that are lent.
    lent: Vec<Vec<LayerSaved<D>>>,
    /// `(E)`, host scratch.
    prob_sums: Vec<f32>,
}

impl<D: Device> Stage<D> {
    /// A stage with all parameters 0. `partition` is that of `place`; the job's schedule says whether backwards are split.
    pub fn new(
        device: D,
        spec: &JobSpec,
        shape: &Shape,
        place: Place,
        partition: &Partition,
        in_flight: InFlight,
    ) -> Stage<D> {
        assert!(in_flight.micro_batches > 0, "a stage needs room for at least one micro-batch");
        let layout = Layout::new(spec, shape, place, partition);
        let splits_backward = spec.pipeline.schedule == Schedule::ZeroBubble;
        let keeps = if spec.recompute { Keeps::Inputs } else { Keeps::Activations };
        let num_lent = if spec.recompute && splits_backward { in_flight.split } else { 0 };
        let layers = |_| layout.layers.iter().map(|_| LayerSaved::new(&device, &layout, true)).collect();
        let mut last = device.allocated_bytes();
        let mut since = || {
            let now = device.allocated_bytes();
            now - std::mem::replace(&mut last, now)
        };
        let params = Params { own: device.alloc(partition.padded_len), lent: None };
        let parameter_bytes = since();
        let grads = device.alloc(partition.padded_len);
        let gradient_bytes = since();
        let slots = (0..in_flight.micro_batches).map(|_| Slot::new(&device, &layout, keeps, splits_backward)).collect();
        let evaluation = Slot::new(&device, &layout, Keeps::Nothing, false);
        let work = LayerSaved::new(&device, &layout, false);
        let lent = (0..num_lent).map(layers).collect();
        let activation_bytes = since();
        let scratch = Scratch::new(&device, &layout);
        let mut rope = device.alloc(layout.attention.seq * layout.attention.head_dim);
        let rope_table = layout.rope_table();
        device.write(rope.all_mut(), &rope_table);
        device.reserve_scratch(layout.products, layout.largest_operands());
        Stage {
            params,
            grads,
            rope,
            rope_table,
            allocated: Allocated { parameter_bytes, gradient_bytes, activation_bytes, scratch_bytes: since() },
            scratch,
            slots,
            evaluation,
            work,
            lent,
            in_flight,
            prob_sums: vec![0.0; layout.experts],
            layout,
            device,
        }
    }

    pub fn device(&self) -> &D {
        &self.device
    }
    /// The flat working parameters, `(padded_len)`.
    pub fn params(&self) -> &D::Buf {
        self.params.lent.as_ref().unwrap_or(&self.params.own)
    }
    pub fn params_mut(&mut self) -> &mut D::Buf {
        if let Some(lent) = self.params.lent.take() {
            self.device.copy(lent.all(), self.params.own.all_mut());
        }
        &mut self.params.own
    }
    /// The working parameters are `master (padded_len)` from here on: in the same memory where the device can share it, until
    /// [`Stage::return_params`], or else as a copy.
    pub fn borrow_params(&mut self, master: &D::Buf) {
        self.params.lent = self.device.share(master);
        if self.params.lent.is_none() {
            self.device.copy(master.all(), self.params.own.all_mut());
        }
    }
    /// Lets go of the memory of [`Stage::borrow_params`], so that its owner can change it in place. Where there was such, parameters mean nothing
    /// until they are set again.
    pub fn return_params(&mut self) {
        self.params.lent = None;
    }
    /// The flat gradients, `(padded_len)`; those of the padding stay 0.
    pub fn grads(&self) -> &D::Buf {
        &self.grads
    }
    pub fn grads_mut(&mut self) -> &mut D::Buf {
        &mut self.grads
    }
    pub fn zero_grads(&mut self) {
        self.device.fill(self.grads.all_mut(), 0.0);
    }
    /// f32 elements that go between stages, `B * S * d`.
    pub fn activation_len(&self) -> usize {
        self.layout.tokens() * self.layout.d
    }
    /// What [`Stage::new`] allocated.
    pub fn allocated(&self) -> Allocated {
        self.allocated
    }
    /// Micro-batches that may be in flight.
    pub fn in_flight(&self) -> InFlight {
        self.in_flight
    }
    /// The embedding is here.
    pub fn is_first(&self) -> bool {
        self.layout.embedding.is_some()
    }
    /// The head is here.
    pub fn is_last(&self) -> bool {
        self.layout.head.is_some()
    }

    /// Assignments of the slot's micro-batch, `(layers of the stage, E)`, all experts whatever the TP rank.
    pub fn expert_counts(&self, slot: usize) -> &[u32] {
        &self.slots[slot].counts
    }
    /// The router's losses of the slot's micro-batch by layer.
    pub fn router_stats(&self, slot: usize) -> &[RouterStats] {
        &self.slots[slot].router
    }
    /// On the last stage, between a slot's forward and its backward: the logits, `(B * S, vocab_local)`.
    pub fn logits(&self, slot: usize) -> Option<View<'_, D::Buf>> {
        let slot = &self.slots[slot];
        match slot.head.as_ref().filter(|_| slot.state == State::Forward)? {
            end::Saved::Head(head) => Some(head.logits.all()),
            end::Saved::Policy(policy) => Some(policy.head.logits.all()),
            end::Saved::Score(_) => None,
        }
    }

    /// On the last stage of a policy, after an evaluation.
    pub fn evaluated_rows(&self) -> Option<EvaluatedRows<'_>> {
        match self.evaluation.head.as_ref()? {
            end::Saved::Policy(Saved { logps, row_values: values, .. }) => Some(EvaluatedRows { logps, values }),
            end::Saved::Head(_) | end::Saved::Score(_) => None,
        }
    }

    /// The working parameters are `other`, and those are here, until both are exchanged again.
    pub fn exchange_params(&mut self, other: &mut Frozen<D>) {
        other.exchange(&mut self.params);
    }

    /// The working parameters for another that reads them, as a decoder does.
    pub fn working_params(&mut self) -> &mut D::Buf {
        self.params.current()
    }

    /// Forward of one micro-batch into `slot`. The first stage takes tokens, the last takes targets `(B, S)`, all but
    /// the last write `output (B, S, d)`.
    ///
    /// # Errors
    ///
    /// What the TP group says; the slot is then empty.
    pub fn forward<T: TpComm>(
        &mut self,
        slot: usize,
        input: Input<'_>,
        targets: Option<&[u32]>,
        tp: &mut T,
        output: Option<&mut [f32]>,
    ) -> Result<MicroBatchStats, T::Error> {
        self.forward_watched(slot, &Feed::text(input, targets), tp, output, &mut Unwatched)
    }

    /// [`Stage::forward`] that says before which parameters are needed.
    ///
    /// # Errors
    ///
    /// What the TP group or `watch` says; the slot is then empty.
    pub fn forward_watched<T: TpComm>(
        &mut self,
        slot: usize,
        feed: &Feed<'_>,
        tp: &mut T,
        output: Option<&mut [f32]>,
        watch: &mut impl Watch<D, T>,
    ) -> Result<MicroBatchStats, T::Error> {
        let Stage { device, layout, params, rope, rope_table, scratch, slots, work, prob_sums, .. } = self;
        let slot = &mut slots[slot];
        assert_eq!(slot.state, State::Free, "the slot's micro-batch has not had its backward");
        let rows = set_rows(device, layout, slot, feed, rope_table);
        let mut context = Context { device, layout, params: params.current(), rope, rows: rows.as_ref(), scratch, tp };
        let stats = slot_forward(&mut context, slot, work, prob_sums, feed, output, watch);
        slot.rows = rows;
        let EndStats { ce, pairs, policy } = stats?;
        slot.state = State::Forward;
        let (z, balance) = slot.router.iter().fold((0.0, 0.0), |(z, b), s| (z + s.z, b + s.balance));
        let ce = if layout.has_texts { ce } else { ce / layout.tokens() as f64 };
        Ok(MicroBatchStats { ce, z, balance, pairs, policy })
    }

    /// Forward of one micro-batch of which nothing is kept; arguments as in [`Stage::forward`]. Returns the *sum* of
    /// the cross-entropy over the tokens, 0 but on the last stage.
    ///
    /// # Errors
    ///
    /// What the TP group says.
    pub fn evaluate<T: TpComm>(
        &mut self,
        input: Input<'_>,
        targets: Option<&[u32]>,
        tp: &mut T,
        output: Option<&mut [f32]>,
    ) -> Result<f64, T::Error> {
        Ok(self.evaluate_feed(&Feed::text(input, targets), tp, output)?.ce)
    }

    /// The same of any kind of job.
    ///
    /// # Errors
    ///
    /// What the TP group says.
    pub fn evaluate_feed<T: TpComm>(
        &mut self,
        feed: &Feed<'_>,
        tp: &mut T,
        output: Option<&mut [f32]>,
    ) -> Result<EndStats, T::Error> {
        let Stage { device, layout, params, rope, rope_table, scratch, evaluation, work, prob_sums, .. } = self;
        let rows = set_rows(device, layout, evaluation, feed, rope_table);
        let mut context = Context { device, layout, params: params.current(), rope, rows: rows.as_ref(), scratch, tp };
        let stats = slot_forward(&mut context, evaluation, work, prob_sums, feed, output, &mut Unwatched);
        evaluation.rows = rows;
        stats
    }

    /// Backward of the micro-batch in `slot`, which is then free: adds to the gradients. `scale` multiplies every term
    /// of the loss (1 / micro-batches of the step). All but the last stage take `grad_output (B, S, d)`, all but the
    /// first write `grad_input`.
    ///
    /// # Errors
    ///
    /// What the TP group says; the gradients are then incomplete and the slot is free.
    pub fn backward<T: TpComm>(
        &mut self,
        slot: usize,
        grad_output: Option<&[f32]>,
        scale: f32,
        tp: &mut T,
        grad_input: Option<&mut [f32]>,
    ) -> Result<(), T::Error> {
        let scale = LossScale::mean(scale, self.layout.tokens());
        self.backward_watched(slot, grad_output, scale, tp, grad_input, &mut Unwatched)
    }

    /// [`Stage::backward`] that says which gradients it is done with.
    ///
    /// # Errors
    ///
    /// What the TP group or `watch` says; as with [`Stage::backward`].
    pub fn backward_watched<T: TpComm>(
        &mut self,
        slot: usize,
        grad_output: Option<&[f32]>,
        scale: LossScale,
        tp: &mut T,
        grad_input: Option<&mut [f32]>,
        watch: &mut impl Watch<D, T>,
    ) -> Result<(), T::Error> {
        self.backward_part(slot, Part::Whole, grad_output, scale, tp, grad_input, watch)
    }

    /// As [`Stage::backward`], of which it leaves the gradients of matrices to [`Stage::backward_weight`]; until then the slot is taken.
    /// Those of the norms and of the embedding are by-products of the gradient of the input.
    ///
    /// # Errors
    ///
    /// As [`Stage::backward`].
    pub fn backward_input<T: TpComm>(
        &mut self,
        slot: usize,
        grad_output: Option<&[f32]>,
        scale: LossScale,
        tp: &mut T,
        grad_input: Option<&mut [f32]>,
    ) -> Result<(), T::Error> {
        self.backward_part(slot, Part::Input, grad_output, scale, tp, grad_input, &mut Unwatched)
    }

    /// The rest of the backward of the micro-batch in `slot`, which is then free. Both parts add the same bits to the gradients as
    /// [`Stage::backward`] where micro-batches come in the same order.
    pub fn backward_weight(&mut self, slot: usize) {
        let Ok(()) = self.backward_weight_watched(slot, &mut Alone, &mut Unwatched);
    }

    /// [`Stage::backward_weight`] that says which gradients it is done with. `tp` is for `watch`: no sum over the group is left to make.
    ///
    /// # Errors
    ///
    /// What `watch` says; the gradients are then incomplete and the slot is free.
    pub fn backward_weight_watched<T: TpComm>(
        &mut self,
        slot: usize,
        tp: &mut T,
        watch: &mut impl Watch<D, T>,
    ) -> Result<(), T::Error> {
        let Stage { device, layout, params, grads, rope, scratch, slots, lent, .. } = self;
        let slot = &mut slots[slot];
        assert_eq!(slot.state, State::BackwardInput, "the first part of the slot's backward has not run");
        slot.state = State::Free;
        let mut context = Context { device, layout, params: params.current(), rope, rows: None, scratch, tp };
        if let (Some(ranges), Some(saved)) = (&layout.head, &slot.head) {
            end::backward_weight(&mut context, ranges, saved, grads);
            watch.after_grads(context.tp, grads, ranges.all().start)?;
        }
        for (ranges, saved) in layout.layers.iter().zip(&mut slot.layers).rev() {
            let LayerSaved { attention, moe, kept } = saved;
            let (of_attention, of_moe) = kept.as_mut().expect(NOT_SPLIT);
            of_moe.lend(context.scratch);
            moe::Kept::gather(device, moe, context.scratch);
            moe::backward_weight(&mut context, ranges, moe, grads);
            of_moe.lend(context.scratch);
            watch.after_grads(context.tp, grads, ranges.moe().start)?;
            of_attention.lend(context.scratch);
            attention::backward_weight(&mut context, ranges, attention, grads);
            of_attention.lend(context.scratch);
            watch.after_grads(context.tp, grads, ranges.attention().start)?;
        }
        device.submit();
        let done = watch.after_grads(context.tp, grads, 0);
        give_back(slot, lent);
        done
    }

    fn backward_part<T: TpComm>(
        &mut self,
        slot: usize,
        part: Part,
        grad_output: Option<&[f32]>,
        scale: LossScale,
        tp: &mut T,
        grad_input: Option<&mut [f32]>,
        watch: &mut impl Watch<D, T>,
    ) -> Result<(), T::Error> {
        let Stage { device, layout, params, grads, rope, scratch, slots, work, lent, .. } = self;
        let slot = &mut slots[slot];
        assert_eq!(slot.state, State::Forward, "the slot holds no micro-batch whose backward may run");
        slot.state = State::Free;
        let rows = slot.rows.take();
        let mut context = Context {
            device,
            layout,
            params: params.current(),
            rope,
            rows: rows.as_ref(),
            scratch: &mut *scratch,
            tp: &mut *tp,
        };
        if part == Part::Input && slot.layers.is_empty() {
            slot.layers = lent.pop().expect("as many as the schedule has between the two parts of their backward");
        }
        let done = slot_backward(&mut context, slot, work, part, scale, grad_output, grads, watch);
        slot.rows = rows;
        done?;
        if part == Part::Input {
            slot.state = State::BackwardInput;
        }
        let dx = &scratch.dx;
        match (&layout.embedding, grad_input) {
            (Some(table), None) => {
                let table = grads.view_mut(table.clone());
                device.embedding_backward(layout.d, &slot.tokens, layout.vocab.start, dx.all(), table);
            }
            (None, Some(grad_input)) => device.read(dx.all(), grad_input),
            _ => panic!("a stage has either the embedding or a grad_input"),
        }
        device.submit();
        if part == Part::Whole { watch.after_grads(tp, grads, 0) } else { Ok(()) }
    }

    /// Gives back most of its memory, all that grows with the model or with the micro-batches in flight: only to be replaced by another.
    pub fn give_up(&mut self) {
        self.params = Params { own: self.device.alloc(0), lent: None };
        self.grads = self.device.alloc(0);
        self.slots.clear();
        self.lent.clear();
    }

    /// Gives up all micro-batches in flight, as after a TP group's error.
    pub fn clear_slots(&mut self) {
        for slot in &mut self.slots {
            slot.state = State::Free;
            give_back(slot, &mut self.lent);
        }
    }
}

/// A slot that keeps inputs only needs the rest no longer.
fn give_back<D: Device>(slot: &mut Slot<D>, lent: &mut Vec<Vec<LayerSaved<D>>>) {
    if !slot.mids.is_empty() && !slot.layers.is_empty() {
        lent.push(std::mem::take(&mut slot.layers));
    }
}

/// Which rows of the slot's micro-batch are tokens; taken out of the slot, to be put back.
fn set_rows<D: Device>(
    device: &D,
    layout: &Layout,
    slot: &mut Slot<D>,
    feed: &Feed<'_>,
    rope_table: &[f32],
) -> Option<Rows<D>> {
    let mut rows = slot.rows.take();
    match (&mut rows, feed.texts) {
        (Some(rows), Some(texts)) => rows.set(device, &layout.attention, texts, rope_table),
        (None, None) => {}
        (rows, _) => panic!("a job of texts is fed with them, and no other; it is one: {}", rows.is_some()),
    }
    rows
}

/// Returns the losses of the last stage.
fn slot_forward<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    slot: &mut Slot<D>,
    work: &mut LayerSaved<D>,
    prob_sums: &mut [f32],
    feed: &Feed<'_>,
    output: Option<&mut [f32]>,
    watch: &mut impl Watch<D, T>,
) -> Result<EndStats, T::Error> {
    let (device, layout) = (context.device, context.layout);
    assert_eq!((context.tp.size(), context.tp.rank()), (layout.tp, layout.tp_rank), "the TP group is not the stage's");
    if let Some(table) = &layout.embedding {
        watch.before_params(context.tp, context.params, table.clone())?;
    }
    slot_input(context, slot, feed.input)?;
    for (l, ranges) in layout.layers.iter().enumerate() {
        let (x, x_out) = Slot::<D>::x_of(&mut slot.x, l);
        let saved = slot.layers.get_mut(l).unwrap_or(work);
        // What is kept is written where it stays. Buffers are exchanged back, so that each operation has the same ones every time.
        exchange(&mut slot.mids, l, saved);
        watch.before_params(context.tp, context.params, ranges.attention())?;
        attention::forward(context, ranges, &mut saved.attention, x, &mut saved.moe.x)?;
        watch.before_params(context.tp, context.params, ranges.moe())?;
        moe::forward(context, ranges, &mut saved.moe, x_out)?;
        exchange(&mut slot.mids, l, saved);
        if slot.layers.is_empty() {
            // The next layer takes this one's place.
            slot.read_stats(layout, device, l, work, prob_sums);
        }
    }
    if !slot.layers.is_empty() {
        // All at once: a read waits for the device.
        (0..layout.layers.len()).for_each(|l| slot.read_stats(layout, device, l, work, prob_sums));
    }
    let x = &slot.x[layout.layers.len() % slot.x.len()];
    match (&layout.head, &mut slot.head, feed.target, output) {
        (Some(ranges), Some(saved), Some(target), None) => {
            if let Target::Tokens(targets) | Target::Answers(AnswerRows { targets, .. }) = target {
                check_ids(layout, targets, "target");
            }
            watch.before_params(context.tp, context.params, ranges.all())?;
            end::forward(context, ranges, saved, target, feed.texts.unwrap_or_default(), x)
        }
        (None, None, None, Some(output)) => {
            device.read(x.all(), output);
            Ok(EndStats::default())
        }
        _ => panic!("a stage has either the head and targets or an output"),
    }
}

/// Exchanges what goes into the second half of layer `l`, where the slot keeps it.
fn exchange<D: Device>(mids: &mut [D::Buf], l: usize, saved: &mut LayerSaved<D>) {
    if let Some(mid) = mids.get_mut(l) {
        std::mem::swap(mid, &mut saved.moe.x);
    }
}

/// Fills the slot's first `x`.
fn slot_input<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    slot: &mut Slot<D>,
    input: Input<'_>,
) -> Result<(), T::Error> {
    let Context { device, layout, params, tp, .. } = context;
    let x = &mut slot.x[0];
    match (input, &layout.embedding) {
        (Input::Tokens(tokens), Some(table)) => {
            check_ids(layout, tokens, "token");
            device.write_ids(&mut slot.tokens, tokens);
            let table = params.view(table.clone());
            device.embedding(layout.d, &slot.tokens, layout.vocab.start, table, x.all_mut());
            sum_over_tp(*device, x, *tp)
        }
        (Input::Activations(activations), None) => {
            device.write(x.all_mut(), activations);
            Ok(())
        }
        (Input::Tokens(_), None) => panic!("a stage without the embedding takes activations, found tokens"),
        (Input::Activations(_), Some(_)) => panic!("the first stage takes tokens, found activations"),
    }
}

fn check_ids(layout: &Layout, ids: &[u32], what: &str) {
    assert_eq!(ids.len(), layout.tokens(), "{what}s of a micro-batch");
    let is_token = |id: &&u32| !(layout.has_texts && **id == NOWHERE);
    let largest = ids.iter().filter(is_token).max().copied().unwrap_or(0);
    assert!(
        (largest as usize) < layout.vocab_size,
        "{what} {largest} is outside of a vocabulary of {}",
        layout.vocab_size
    );
}

/// What of a backward is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    /// All that the stage before waits for.
    Input,
}

const NOT_SPLIT: &str = "the job's schedule does not split backwards";

/// Leaves the gradient of the stage's first `x` in `scratch.dx`.
fn slot_backward<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    slot: &mut Slot<D>,
    work: &mut LayerSaved<D>,
    part: Part,
    scale: LossScale,
    grad_output: Option<&[f32]>,
    grads: &mut D::Buf,
    watch: &mut impl Watch<D, T>,
) -> Result<(), T::Error> {
    let (device, layout) = (context.device, context.layout);
    let Slot { x, mids, layers, head, .. } = slot;
    match (&layout.head, head, grad_output) {
        (Some(ranges), Some(saved), None) => {
            end::backward_input(context, ranges, saved, scale.each, &x[layout.layers.len()], grads)?;
            if part == Part::Whole {
                end::backward_weight(context, ranges, saved, grads);
                watch.after_grads(context.tp, grads, ranges.all().start)?;
            }
        }
        (None, None, Some(grad_output)) => device.write(context.scratch.dx.all_mut(), grad_output),
        _ => panic!("a stage has either the head or a grad_output"),
    }
    for (l, (ranges, x)) in layout.layers.iter().zip(x).enumerate().rev() {
        let recomputes = !mids.is_empty();
        let saved = layers.get_mut(l).unwrap_or(work);
        exchange(mids, l, saved);
        let LayerSaved { attention, moe, kept } = &mut *saved;
        let mut kept = (part == Part::Input).then(|| kept.as_mut().expect(NOT_SPLIT));
        if recomputes {
            moe::activations(context, ranges, moe);
        }
        if let Some((_, kept)) = &mut kept {
            kept.exchange(context.scratch);
            moe::backward_products(context, ranges, moe, scale.routers);
            kept.keep(device, context.scratch);
            context.tp.progress()?;
        } else {
            moe::backward_products(context, ranges, moe, scale.routers);
            context.tp.progress()?;
            moe::backward_weight(context, ranges, moe, grads);
        }
        context.tp.progress()?;
        moe::backward_norm(context, ranges, moe, grads)?;
        if part == Part::Whole {
            watch.after_grads(context.tp, grads, ranges.moe().start)?;
        }
        if recomputes {
            attention::activations(context, ranges, attention, x);
        }
        if let Some((kept, _)) = &mut kept {
            kept.exchange(context.scratch);
            attention::backward_products(context, ranges, attention);
            kept.keep(device, context.scratch);
            context.tp.progress()?;
        } else {
            attention::backward_products(context, ranges, attention);
            context.tp.progress()?;
            attention::backward_weight(context, ranges, attention, grads);
        }
        attention::backward_norm(context, ranges, attention, x, grads)?;
        exchange(mids, l, saved);
        if part == Part::Whole {
            watch.after_grads(context.tp, grads, ranges.attention().start)?;
        }
    }
    Ok(())
}
