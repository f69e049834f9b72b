//! A model that is decoded on several (tp, pp) places of one process: the forward of [`StageDecoder`] at each, on a thread of its own.
//!
//! ```text
//!   forward ──rows──> every place
//!     stage 0:  tp 0 <──sums──> tp 1        a ThreadGroup a stage
//!                 │ activations   │
//!     stage 1:  tp 0 <──sums──> tp 1
//!                 │ logits of its │ part of the vocabulary
//!                 '──> logits  <──'         put together by who asked
//! ```
//!
//! Invariants:
//!
//! - **M-6.** Logits are, bit for bit, those of the training forward at the same tp (M-5), whose TP group adds in the order of the ranks as well. pp
//!   changes no bit, and neither do the rows beside a row.
//! - A place that panics has whoever asks panic with it: it leaves its TP group and hangs up on its neighbours, which then end, and so on to who
//!   asked. Nobody waits for ever.
//!
//! Stages compute one after the other: rows of a forward are not cut for the pipeline. Who waits sleeps.
//!
//! Deliberately absent: which cores a thread runs on, replicas.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::{io, panic};

use toroid_torus::geometry::{Place, Shape};
use toroid_torus::job::Products;
use toroid_torus::model::ModelConfig;
use toroid_torus::partition::{self, Partition};

use super::decode::{Decode, DecodeInput, DecodeOutput, Decoder, Row, StageDecoder, whole_partition};
use super::threads::ThreadGroup;
use crate::device::{Buffer, CachedAttention};

/// Tasks of a place that wait. Tensors of parameters are among them, so these are few.
const MAX_TASKS: usize = 2;

/// How a model is split over places of one process, and what each computes with.
#[derive(Clone)]
pub struct Split<D> {
    shape: Shape,
    /// By rank.
    devices: Vec<D>,
}

impl<D: CachedAttention> Split<D> {
    /// `devices` by rank: `pp_rank * tp + tp_rank`. There is one replica, and `shape` has passed [`partition::check`] with the model.
    pub fn new(shape: Shape, devices: Vec<D>) -> Split<D> {
        assert!(shape.dp() == 1 && devices.len() == shape.world(), "{} devices for {shape}", devices.len());
        Split { shape, devices }
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// What decides the bits of logits: the device, and the number of those that a sum is cut into.
    pub fn fingerprint(&self, products: Products) -> String {
        let device = self.devices[0].fingerprint(products);
        match self.shape.tp() {
            1 => device,
            tp => format!("{device}-tp-{tp}"),
        }
    }

    /// A decoder of `sequences` sequences of up to `model.seq` tokens; `params (padded_len)` is laid out as [`whole_partition`] says.
    ///
    /// # Errors
    ///
    /// The system gives no more threads.
    pub fn decoder(
        mut self,
        model: &ModelConfig,
        products: Products,
        params: &[f32],
        sequences: usize,
    ) -> io::Result<Box<dyn Decode + Send>> {
        if self.shape.world() == 1
            && let Some(device) = self.devices.pop()
        {
            return Ok(Box::new(Decoder::new(device, model, products, params, sequences)));
        }
        Ok(Box::new(SplitDecoder::new(self, model, products, params, sequences)?))
    }
}

/// What a place does next.
enum Task {
    /// Its parameters from `offset` on.
    Params {
        offset: usize,
        values: Vec<f32>,
    },
    CopySequence {
        from: usize,
        to: usize,
        tokens: usize,
    },
    /// `logits` is room for this rank's part, where the stage has the head; empty elsewhere.
    Forward {
        rows: Arc<[Row]>,
        wanted: Arc<[usize]>,
        logits: Vec<f32>,
    },
}

/// A neighbour has ended, by a panic of its own or because one of its neighbours has.
struct Gone;

/// A place, on its thread.
struct AtPlace<D: CachedAttention> {
    device: D,
    stage: StageDecoder<D>,
    /// `(padded_len)`
    params: D::Buf,
    tp: ThreadGroup,
    ends: Ends,
}

/// What a place is connected to.
struct Ends {
    tasks: Receiver<Task>,
    /// `(rows, d)` of the stage before; `None`: this is the first.
    before: Option<Receiver<Vec<f32>>>,
    /// `(rows, d)` to the stage behind; of the last stage `(wanted, vocab_local)` to who asked.
    behind: SyncSender<Vec<f32>>,
    is_last: bool,
}

impl<D: CachedAttention> AtPlace<D> {
    fn run(mut self) {
        while let Ok(task) = self.ends.tasks.recv() {
            match task {
                Task::Params { offset, values } => {
                    self.device.write(self.params.view_mut(offset..offset + values.len()), &values);
                }
                Task::CopySequence { from, to, tokens } => self.stage.copy_sequence(from, to, tokens),
                Task::Forward { rows, wanted, logits } => {
                    if let Err(Gone) = self.forward(&rows, &wanted, logits) {
                        return;
                    }
                }
            }
        }
    }

    fn forward(&mut self, rows: &[Row], wanted: &[usize], mut logits: Vec<f32>) -> Result<(), Gone> {
        let AtPlace { device, stage, params, tp, ends } = self;
        let received = match &ends.before {
            Some(before) => Some(before.recv().map_err(|_| Gone)?),
            None => None,
        };
        let input = received.as_deref().map_or(DecodeInput::Tokens, DecodeInput::Activations);
        let len = if ends.is_last { wanted.len() * stage.vocab().1.len() } else { rows.len() * stage.width() };
        logits.resize(len, 0.0);
        let out = &mut logits[..];
        let output =
            if ends.is_last { DecodeOutput::Logits { wanted, logits: out } } else { DecodeOutput::Activations(out) };
        device.enter(|| stage.forward(params, rows, input, tp, output)).map_err(|_| Gone)?;
        ends.behind.send(logits).map_err(|_| Gone)
    }
}

/// The whole model over the places of a [`Split`], with a cache of keys and values at each.
pub struct SplitDecoder {
    tp: usize,
    model: ModelConfig,
    sequences: usize,
    /// By rank.
    tasks: Vec<SyncSender<Task>>,
    /// From the last stage, by tp_rank.
    answers: Vec<Receiver<Vec<f32>>>,
    /// Room for its parts of the logits, `(wanted, vocab / tp)`, by tp_rank.
    parts: Vec<Vec<f32>>,
    threads: Vec<JoinHandle<()>>,
}

impl SplitDecoder {
    /// As [`Split::decoder`].
    ///
    /// # Errors
    ///
    /// The system gives no more threads.
    ///
    /// # Panics
    ///
    /// A place has panicked.
    pub fn new<D: CachedAttention>(
        split: Split<D>,
        model: &ModelConfig,
        products: Products,
        params: &[f32],
        sequences: usize,
    ) -> io::Result<SplitDecoder> {
        let Split { shape, devices } = split;
        let whole = whole_partition(model);
        assert_eq!(params.len(), whole.padded_len, "params do not have the length of the partition");
        let mut decoder = SplitDecoder {
            tp: shape.tp(),
            model: model.clone(),
            sequences,
            tasks: Vec::with_capacity(shape.world()),
            answers: Vec::with_capacity(shape.tp()),
            parts: vec![Vec::new(); shape.tp()],
            threads: Vec::with_capacity(shape.world()),
        };
        // Activations on their way to the next stage, by tp_rank.
        let mut between: Vec<Option<Receiver<Vec<f32>>>> = (0..shape.tp()).map(|_| None).collect();
        let mut groups: Vec<ThreadGroup> = (0..shape.pp()).flat_map(|_| ThreadGroup::new(shape.tp())).rev().collect();
        let mut partitions = Vec::with_capacity(shape.world());
        for (rank, device) in devices.into_iter().enumerate() {
            let place = shape.place(rank);
            let is_last = place.pp + 1 == shape.pp();
            let ((tasks, own_tasks), (behind, sent)) = (sync_channel(MAX_TASKS), sync_channel(1));
            let ends = Ends { tasks: own_tasks, before: between[place.tp].take(), behind, is_last };
            if is_last {
                decoder.answers.push(sent)
            } else {
                between[place.tp] = Some(sent)
            }
            let partition = partition::partition(model, &shape, place.tp, place.pp);
            let tp = groups.pop().expect("each place is in a group");
            let begin = begin(device, model.clone(), products, (shape, place), partition.clone(), sequences, tp, ends);
            let name = format!("tp{}-pp{}", place.tp, place.pp);
            decoder.threads.push(thread::Builder::new().name(name).spawn(begin)?);
            decoder.tasks.push(tasks);
            partitions.push(partition);
        }
        for (rank, partition) in partitions.iter().enumerate() {
            for slice in &partition.slices {
                let of_whole = whole.slice(&slice.tensor).expect("a part of the model has no tensor of its own");
                let values = slice.of_tensor(&params[of_whole.offset..of_whole.offset + of_whole.len]);
                decoder.give(rank, Task::Params { offset: slice.offset, values });
            }
        }
        Ok(decoder)
    }

    fn give(&mut self, rank: usize, task: Task) {
        if self.tasks.get(rank).is_none_or(|tasks| tasks.send(task).is_err()) {
            self.fail();
        }
    }

    /// A place has ended before its time: the others end as well, and its panic goes on here.
    fn fail(&mut self) -> ! {
        self.tasks.clear();
        self.answers.clear();
        let panicked = self.threads.drain(..).filter_map(|thread| thread.join().err()).reduce(|first, _| first);
        match panicked {
            Some(payload) => panic::resume_unwind(payload),
            None => panic!("a decoder is used after one of its places has panicked"),
        }
    }
}

/// What the thread of a place does. All that it computes with is allocated there.
fn begin<D: CachedAttention>(
    device: D,
    model: ModelConfig,
    products: Products,
    (shape, place): (Shape, Place),
    partition: Partition,
    sequences: usize,
    tp: ThreadGroup,
    ends: Ends,
) -> impl FnOnce() + Send + 'static {
    move || {
        let params = device.alloc(partition.padded_len);
        let stage = StageDecoder::new(device.clone(), &model, products, (&shape, place), &partition, sequences);
        AtPlace { device, stage, params, tp, ends }.run();
    }
}

impl Decode for SplitDecoder {
    fn max_tokens(&self) -> usize {
        self.model.seq
    }

    fn sequences(&self) -> usize {
        self.sequences
    }

    fn vocab(&self) -> usize {
        self.model.vocab
    }

    fn copy_sequence(&mut self, from: usize, to: usize, tokens: usize) {
        (0..self.tasks.len()).for_each(|rank| self.give(rank, Task::CopySequence { from, to, tokens }));
    }

    fn forward_some(&mut self, rows: &[Row], wanted: &[usize], logits: &mut [f32]) {
        let (vocab, own) = (self.model.vocab, self.model.vocab / self.tp);
        assert_eq!(logits.len(), wanted.len() * vocab, "logits of {} rows", wanted.len());
        let (rows, asked): (Arc<[Row]>, Arc<[usize]>) = (rows.into(), wanted.into());
        let first_of_last = self.tasks.len().saturating_sub(self.tp);
        for rank in 0..self.tasks.len() {
            let part = rank.checked_sub(first_of_last).map_or_else(Vec::new, |tp| std::mem::take(&mut self.parts[tp]));
            self.give(rank, Task::Forward { rows: Arc::clone(&rows), wanted: Arc::clone(&asked), logits: part });
        }
        for tp in 0..self.tp {
            let Some(Ok(part)) = self.answers.get(tp).map(Receiver::recv) else { self.fail() };
            for (all, part) in logits.chunks_exact_mut(vocab).zip(part.chunks_exact(own)) {
                all[tp * own..(tp + 1) * own].copy_from_slice(part);
            }
            self.parts[tp] = part;
        }
    }
}

impl Drop for SplitDecoder {
    /// Ends the threads.
    fn drop(&mut self) {
        self.tasks.clear();
        self.answers.clear();
        // One that has panicked has said so.
        self.threads.drain(..).for_each(|thread| _ = thread.join());
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use super::*;
    use crate::device::{CachePlace, CpuDevice};

    /// Whichever place panics, who asks has its panic, and then no answer ever.
    #[test]
    fn a_panic_at_a_place_is_one_of_who_asks() {
        let model = ModelConfig::preset("micro").expect("a preset");
        let params = vec![0.0; whole_partition(&model).padded_len];
        let shape = Shape::new(2, 2, 1).expect("a shape");
        for rank in 0..4 {
            let split = Split::new(shape, vec![CpuDevice::new(1); 4]);
            let mut decoder = SplitDecoder::new(split, &model, Products::F32, &params, 1).expect("threads");
            let rows = [Row { place: CachePlace { sequence: 0, position: 0 }, token: 0 }];
            let mut logits = vec![f32::NAN; model.vocab];
            decoder.forward(&rows, &mut logits);
            assert!(logits.iter().all(|logit| *logit == 0.0), "of weights that are nothing");
            decoder.give(rank, Task::Params { offset: usize::MAX / 2, values: vec![0.0] });
            for expected in ["view 9223372036854775807", "is used after"] {
                let again = panic::catch_unwind(AssertUnwindSafe(|| decoder.forward(&rows, &mut logits)));
                let payload = again.expect_err("a panic");
                let said = payload.downcast_ref::<String>().map(String::as_str);
                let said = said.or(payload.downcast_ref::<&str>().copied());
                assert!(said.is_some_and(|said| said.contains(expected)), "rank {rank}: {said:?}");
            }
        }
    }
}
