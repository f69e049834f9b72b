//! Forward and backward of the layers that one place holds (the mathematics is in the repository's description of the
//! model).
//!
//! ```text
//!   first stage:   tokens -> embedding, sum over TP -> x             others:  activations -> x
//!   every layer:   x += sum over TP of wo attention(wqkv norm1(x))
//!                  x += sum over TP of routed(h) + shared(h), with h = norm2(x)
//!   last stage:    x -> norm -> head -> cross-entropy -> loss        others:  x -> activations
//! ```
//!
//! | file | what |
//! |---|---|
//! | `stage` | [`Stage`]: parameters, gradients, the slots of the micro-batches in flight |
//! | `attention`, `moe`, `head`, `score`, `policy` | forward and backward of each part, side by side, with what is saved between them |
//! | `params` | parameters of a stage, lent ones, and [`Frozen`] ones of other models |
//! | `policy_loss` | what a policy loses at a token of an answer, a pure function |
//! | `end` | which of `head`, `score` and `policy` the model ends with |
//! | `rows` | which rows are tokens, and of which text, where samples are dialogues or answers |
//! | `decode` | [`StageDecoder`], [`Decoder`]: any rows against cached keys and values, for generation; [`Decode`] is what that asks for |
//! | `split` | [`SplitDecoder`]: the same over the places of a [`Split`], each a thread |
//! | `layout` | dims of this place's share, and where its tensors lie in the flat buffers |
//! | `block` | scratch, and linear layers |
//! | `tp` | [`TpComm`]: what is asked of the TP group |
//! | `threads` | [`ThreadGroup`]: a TP group of threads |
//! | `watch` | [`Watch`]: who is told which parameters are needed now, and which gradients are final |
//!
//! Invariants:
//!
//! - **M-1.** The residual stream, what the norms and the router read, and the gradient of the residual stream are the
//!   same bits on every rank of a TP group: they are computed from sums over the group, by the same operations.
//! - **M-2.** A layer's forward and its backward each sum over the TP group twice, whether activations are computed again or not.
//! - **M-3.** No buffer is allocated after [`Stage::new`].
//! - **M-5.** A row that is decoded has the bits of the training forward, see `decode`.
//! - **M-6.** So has a row that is decoded by the places of a split, at the same tp, see `split`.
//! - **M-4.** A stage's results depend on its parameters and its inputs alone, not on what its buffers held before.
//!
//! Deliberately absent: the pipeline's order, the sum of gradients over replicas, the optimizer's state.

mod attention;
mod block;
mod decode;
mod end;
mod head;
mod layout;
mod moe;
mod params;
mod policy;
mod policy_loss;
mod rows;
mod score;
mod split;
mod stage;
mod threads;
mod tp;
mod watch;

pub use decode::{Decode, DecodeInput, DecodeOutput, Decoder, Row, StageDecoder, whole_partition};
pub use end::{EndStats, Target};
pub use layout::largest_operands;
pub use moe::RouterStats;
pub use params::Frozen;
pub use policy::EvaluatedRows;
pub use policy_loss::{AnswerRows, PolicyLoss, PolicyStats};
pub use score::PairStats;
pub use split::{Split, SplitDecoder};
pub use stage::{Allocated, Feed, Input, LossScale, MicroBatchStats, Stage};
pub use threads::{RankGone, ThreadGroup};
pub use tp::{Alone, TpComm, all_gather_through_host, all_reduce_through_host};
pub use watch::{Unwatched, Watch};
