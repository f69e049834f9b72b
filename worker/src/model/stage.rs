//! The layers of one (tp, pp) place, and their activations.

use toroid_torus::geometry::{Place, Shape};
use toroid_torus::job::JobSpec;
use toroid_torus::partition::Partition;
use toroid_torus::pipeline::Schedule;

use crate::device::{Buffer, Device, View};

use super::block::{Context, Scratch, sum_over_tp};
use super::layout::Layout;
use super::tp::{Alone, TpComm};
use super::watch::{Unwatched, Watch};
use super::{attention, head, moe};

/// What a stage is fed with.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// `(B, S)`, on the first stage.
    Tokens(&'a [u32]),
    /// `(B, S, d)`, on every other.
    Activations(&'a [f32]),
}

/// The router's own losses of one layer and micro-batch, without their coefficients.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RouterStats {
    /// Mean over the tokens of `logsumexp(logits)^2`.
    pub z: f64,
    /// `E * sum_e f_e P_e`
    pub balance: f64,
}

/// The loss terms of one micro-batch that arise in a stage. The loss is `ce + z_coef * z + balance_coef * balance` over
/// all stages.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MicroBatchStats {
    /// Mean over the tokens of the cross-entropy; 0 but on the last stage.
    pub ce: f64,
    /// Sum over the stage's layers, as [`RouterStats::z`].
    pub z: f64,
    /// Sum over the stage's layers, as [`RouterStats::balance`].
    pub balance: f64,
}

/// One layer's activations.
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

/// The activations of one micro-batch. Layer `l` uses `layers[l % layers.len()]`, reads `x[l % x.len()]` and writes the
/// next: a slot for evaluation has one layer and two `x`.
struct Slot<D: Device> {
    state: State,
    /// `(N)`: input of the first stage.
    tokens: D::Ids,
    /// `(N, d)` each: the residual stream between layers.
    x: Vec<D::Buf>,
    layers: Vec<LayerSaved<D>>,
    /// On the last stage.
    head: Option<head::Saved<D>>,
    /// `(layers, E)`: assignments.
    counts: Vec<u32>,
    /// `(layers)`
    router: Vec<RouterStats>,
}

impl<D: Device> Slot<D> {
    fn new(device: &D, layout: &Layout, num_layers: usize, splits_backward: bool) -> Slot<D> {
        let layer = |_| LayerSaved {
            attention: attention::Saved::new(device, layout),
            moe: moe::Saved::new(device, layout),
            kept: splits_backward.then(|| (attention::Kept::new(device, layout), moe::Kept::new(device, layout))),
        };
        Slot {
            state: State::Free,
            tokens: device.alloc_ids(layout.tokens()),
            x: (0..=num_layers).map(|_| device.alloc(layout.tokens() * layout.d)).collect(),
            layers: (0..num_layers).map(layer).collect(),
            head: layout.head.as_ref().map(|_| head::Saved::new(device, layout)),
            counts: vec![0; layout.layers.len() * layout.experts],
            router: vec![RouterStats::default(); layout.layers.len()],
        }
    }

    /// Takes the router's losses and the assignments of layer `l` from the device.
    fn read_stats(&mut self, layout: &Layout, device: &D, l: usize, prob_sums: &mut [f32]) {
        let counts = &mut self.counts[l * layout.experts..(l + 1) * layout.experts];
        self.router[l] = self.layers[l % self.layers.len()].moe.stats(device, counts, prob_sums);
    }

    /// Input and output of layer `l`.
    fn x_of(&mut self, l: usize) -> (&D::Buf, &mut D::Buf, &mut LayerSaved<D>) {
        let (input, output, layer) = (l % self.x.len(), (l + 1) % self.x.len(), l % self.layers.len());
        let [input, output] = self.x.get_disjoint_mut([input, output]).expect("a slot has at least two x");
        (input, output, &mut self.layers[layer])
    }
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
    params: D::Buf,
    /// `(padded_len)`
    grads: D::Buf,
    /// `(seq, head_dim)`
    rope: D::Buf,
    scratch: Scratch<D>,
    /// `max_in_flight` of them.
    slots: Vec<Slot<D>>,
    evaluation: Slot<D>,
    /// `(E)`, host scratch.
    prob_sums: Vec<f32>,
}

impl<D: Device> Stage<D> {
    /// A stage with all parameters 0. `partition` is that of `place`; up to `max_in_flight` micro-batches are between
    /// their forward and the end of their backward at a time. The job's schedule says whether backwards are split.
    pub fn new(
        device: D,
        spec: &JobSpec,
        shape: &Shape,
        place: Place,
        partition: &Partition,
        max_in_flight: usize,
    ) -> Stage<D> {
        assert!(max_in_flight > 0, "a stage needs room for at least one micro-batch");
        let layout = Layout::new(spec, shape, place, partition);
        let splits_backward = spec.pipeline.schedule == Schedule::ZeroBubble;
        let slot = |num_layers, splits_backward| Slot::new(&device, &layout, num_layers, splits_backward);
        let mut rope = device.alloc(layout.attention.seq * layout.attention.head_dim);
        device.write(rope.all_mut(), &layout.rope_table());
        device.reserve(layout.products, layout.largest_operands());
        Stage {
            params: device.alloc(partition.padded_len),
            grads: device.alloc(partition.padded_len),
            rope,
            scratch: Scratch::new(&device, &layout),
            slots: (0..max_in_flight).map(|_| slot(layout.layers.len(), splits_backward)).collect(),
            evaluation: slot(1, false),
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
        &self.params
    }
    pub fn params_mut(&mut self) -> &mut D::Buf {
        &mut self.params
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
    /// Micro-batches that may be in flight.
    pub fn num_slots(&self) -> usize {
        self.slots.len()
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
        slot.head.as_ref().filter(|_| slot.state == State::Forward).map(|head| head.logits.all())
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
        self.forward_watched(slot, input, targets, tp, output, &mut Unwatched)
    }

    /// [`Stage::forward`] that says before which parameters are needed.
    ///
    /// # Errors
    ///
    /// What the TP group or `watch` says; the slot is then empty.
    pub fn forward_watched<T: TpComm>(
        &mut self,
        slot: usize,
        input: Input<'_>,
        targets: Option<&[u32]>,
        tp: &mut T,
        output: Option<&mut [f32]>,
        watch: &mut impl Watch<D, T>,
    ) -> Result<MicroBatchStats, T::Error> {
        let Stage { device, layout, params, rope, scratch, slots, prob_sums, .. } = self;
        let slot = &mut slots[slot];
        assert_eq!(slot.state, State::Free, "the slot's micro-batch has not had its backward");
        let mut context = Context { device, layout, params, rope, scratch, tp };
        let ce = slot_forward(&mut context, slot, prob_sums, input, targets, output, watch)?;
        slot.state = State::Forward;
        let (z, balance) = slot.router.iter().fold((0.0, 0.0), |(z, b), s| (z + s.z, b + s.balance));
        Ok(MicroBatchStats { ce: ce / layout.tokens() as f64, z, balance })
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
        let Stage { device, layout, params, rope, scratch, evaluation, prob_sums, .. } = self;
        let mut context = Context { device, layout, params, rope, scratch, tp };
        slot_forward(&mut context, evaluation, prob_sums, input, targets, output, &mut Unwatched)
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
        scale: f32,
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
        scale: f32,
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
        let Stage { device, layout, params, grads, rope, scratch, slots, .. } = self;
        let slot = &mut slots[slot];
        assert_eq!(slot.state, State::BackwardInput, "the first part of the slot's backward has not run");
        slot.state = State::Free;
        let mut context = Context { device, layout, params, rope, scratch, tp };
        if let (Some(ranges), Some(saved)) = (&layout.head, &slot.head) {
            head::backward_weight(&mut context, ranges, saved, grads);
            watch.after_grads(context.tp, grads, ranges.all().start)?;
        }
        for (ranges, saved) in layout.layers.iter().zip(&mut slot.layers).rev() {
            let LayerSaved { attention, moe, kept } = saved;
            let (of_attention, of_moe) = kept.as_mut().expect(NOT_SPLIT);
            of_moe.restore(device, moe, context.scratch);
            moe::backward_weight(&mut context, ranges, moe, grads);
            watch.after_grads(context.tp, grads, ranges.moe().start)?;
            of_attention.restore(context.scratch);
            attention::backward_weight(&mut context, ranges, attention, grads);
            watch.after_grads(context.tp, grads, ranges.attention().start)?;
        }
        watch.after_grads(context.tp, grads, 0)
    }

    fn backward_part<T: TpComm>(
        &mut self,
        slot: usize,
        part: Part,
        grad_output: Option<&[f32]>,
        scale: f32,
        tp: &mut T,
        grad_input: Option<&mut [f32]>,
        watch: &mut impl Watch<D, T>,
    ) -> Result<(), T::Error> {
        let Stage { device, layout, params, grads, rope, scratch, slots, .. } = self;
        let slot = &mut slots[slot];
        assert_eq!(slot.state, State::Forward, "the slot holds no micro-batch whose backward may run");
        slot.state = State::Free;
        let mut context = Context { device, layout, params, rope, scratch, tp };
        slot_backward(&mut context, slot, part, scale, grad_output, grads, watch)?;
        if part == Part::Input {
            slot.state = State::BackwardInput;
        }
        let dx = &context.scratch.dx;
        match (&layout.embedding, grad_input) {
            (Some(table), None) => {
                let table = grads.view_mut(table.clone());
                device.embedding_backward(layout.d, &slot.tokens, layout.vocab.start, dx.all(), table);
            }
            (None, Some(grad_input)) => device.read(dx.all(), grad_input),
            _ => panic!("a stage has either the embedding or a grad_input"),
        }
        if part == Part::Whole { watch.after_grads(context.tp, grads, 0) } else { Ok(()) }
    }

    /// Gives up all micro-batches in flight, as after a TP group's error.
    pub fn clear_slots(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.state = State::Free);
    }
}

/// Returns the sum of the cross-entropy over the tokens.
fn slot_forward<D: Device, T: TpComm>(
    context: &mut Context<'_, D, T>,
    slot: &mut Slot<D>,
    prob_sums: &mut [f32],
    input: Input<'_>,
    targets: Option<&[u32]>,
    output: Option<&mut [f32]>,
    watch: &mut impl Watch<D, T>,
) -> Result<f64, T::Error> {
    let (device, layout) = (context.device, context.layout);
    assert_eq!((context.tp.size(), context.tp.rank()), (layout.tp, layout.tp_rank), "the TP group is not the stage's");
    if let Some(table) = &layout.embedding {
        watch.before_params(context.tp, context.params, table.clone())?;
    }
    slot_input(context, slot, input)?;
    for (l, ranges) in layout.layers.iter().enumerate() {
        let (x, x_out, saved) = slot.x_of(l);
        watch.before_params(context.tp, context.params, ranges.attention())?;
        attention::forward(context, ranges, &mut saved.attention, x, &mut saved.moe.x)?;
        watch.before_params(context.tp, context.params, ranges.moe())?;
        moe::forward(context, ranges, &mut saved.moe, x_out)?;
        if slot.layers.len() < layout.layers.len() {
            // The next layer takes this one's place.
            slot.read_stats(layout, device, l, prob_sums);
        }
    }
    if slot.layers.len() == layout.layers.len() {
        // All at once: a read waits for the device.
        (0..layout.layers.len()).for_each(|l| slot.read_stats(layout, device, l, prob_sums));
    }
    let x = &slot.x[layout.layers.len() % slot.x.len()];
    match (&layout.head, &mut slot.head, targets, output) {
        (Some(ranges), Some(saved), Some(targets), None) => {
            check_ids(layout, targets, "target");
            device.write_ids(&mut saved.targets, targets);
            watch.before_params(context.tp, context.params, ranges.all())?;
            head::forward(context, ranges, saved, x)
        }
        (None, None, None, Some(output)) => {
            device.read(x.all(), output);
            Ok(0.0)
        }
        _ => panic!("a stage has either the head and targets or an output"),
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
    let largest = ids.iter().max().copied().unwrap_or(0);
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
    part: Part,
    scale: f32,
    grad_output: Option<&[f32]>,
    grads: &mut D::Buf,
    watch: &mut impl Watch<D, T>,
) -> Result<(), T::Error> {
    let (device, layout) = (context.device, context.layout);
    let Slot { x, layers, head, .. } = slot;
    match (&layout.head, head, grad_output) {
        (Some(ranges), Some(saved), None) => {
            head::backward_input(context, ranges, saved, scale, &x[layers.len()], grads)?;
            if part == Part::Whole {
                head::backward_weight(context, ranges, saved, grads);
                watch.after_grads(context.tp, grads, ranges.all().start)?;
            }
        }
        (None, None, Some(grad_output)) => device.write(context.scratch.dx.all_mut(), grad_output),
        _ => panic!("a stage has either the head or a grad_output"),
    }
    for ((ranges, saved), x) in layout.layers.iter().zip(layers).zip(x).rev() {
        let LayerSaved { attention, moe, kept } = saved;
        let mut kept = (part == Part::Input).then(|| kept.as_mut().expect(NOT_SPLIT));
        moe::backward_products(context, ranges, moe, scale);
        match &mut kept {
            Some((_, kept)) => kept.keep(device, context.scratch),
            None => moe::backward_weight(context, ranges, moe, grads),
        }
        moe::backward_norm(context, ranges, moe, grads)?;
        if part == Part::Whole {
            watch.after_grads(context.tp, grads, ranges.moe().start)?;
        }
        attention::backward_products(context, ranges, attention);
        match &mut kept {
            Some((kept, _)) => kept.keep(device, context.scratch),
            None => attention::backward_weight(context, ranges, attention, grads),
        }
        attention::backward_norm(context, ranges, attention, x, grads)?;
        if part == Part::Whole {
            watch.after_grads(context.tp, grads, ranges.attention().start)?;
        }
    }
    Ok(())
}
