//! Event files as TensorBoard reads them: records of TFRecord, each an `Event` of `tensorflow/core/util/event.proto`.
//!
//! ```text
//!   u64 length | u32 masked CRC of the length | the event | u32 masked CRC of the event        little endian, CRC-32C
//! ```
//!
//! Only what is written here has a field; readers pass over none of it.

use prost::Message;
use toroid_proto as proto;

/// Before and behind the bytes of an event.
const HEAD_BYTES: usize = 12;
const TAIL_BYTES: usize = 4;
/// Of an event that is read back: those that are written are far shorter.
const MAX_EVENT_BYTES: u64 = 16 << 20;
const FILE_VERSION: &str = "brain.Event:2";

#[derive(Clone, PartialEq, Message)]
pub(super) struct Event {
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    #[prost(int64, tag = "2")]
    pub step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    pub what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    Session(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Value {
    #[prost(string, tag = "1")]
    pub tag: String,
    #[prost(float, optional, tag = "2")]
    pub simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionLog {
    #[prost(enumeration = "Status", tag = "1")]
    pub status: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Status {
    Unspecified = 0,
    /// Whatever was said before of this step and those after it does not count.
    Start = 1,
    /// All has been said.
    Stop = 2,
}

pub(super) const LOSS: &str = "train/loss";
pub(super) const EPOCH: &str = "cluster/epoch";
pub(super) const VALIDATION: &str = "validation/cross_entropy";

impl Event {
    fn new(wall_time: f64, step: u64, what: What) -> Event {
        Event { wall_time, step: i64::try_from(step).unwrap_or(i64::MAX), what: Some(what) }
    }

    /// The first of a file.
    pub fn version(wall_time: f64) -> Event {
        Event::new(wall_time, 0, What::FileVersion(FILE_VERSION.into()))
    }

    pub fn session(wall_time: f64, step: u64, status: Status) -> Event {
        Event::new(wall_time, step, What::Session(SessionLog { status: status.into() }))
    }

    fn scalars(wall_time: f64, step: u64, scalars: impl IntoIterator<Item = (String, f64)>) -> Event {
        // Single precision is what scalars have there.
        let value = |(tag, value): (String, f64)| Value { tag, simple_value: Some(value as f32) };
        Event::new(wall_time, step, What::Summary(Summary { values: scalars.into_iter().map(value).collect() }))
    }

    pub fn step(wall_time: f64, record: &proto::StepRecord) -> Event {
        let scalars = [
            (LOSS, record.loss),
            ("train/cross_entropy", record.ce),
            ("train/z_loss", record.z_loss),
            ("train/balance_loss", record.balance_loss),
            ("train/gradient_norm", record.grad_norm),
            ("train/learning_rate", record.lr),
            ("train/weight_decay", record.weight_decay),
            ("speed/tokens_per_s", record.tokens_per_s),
            ("speed/step_s", record.step_s),
            ("speed/communication_hidden_s", record.hidden_s),
            ("speed/communication_exposed_s", record.exposed_s),
            (EPOCH, record.epoch as f64),
        ];
        let scalars = scalars.into_iter().map(|(tag, value)| (tag.to_string(), value));
        let of_trained = record.trained_tokens.map(|num| ("train/trained_tokens".to_string(), num as f64));
        let accuracy = (record.pairs > 0).then(|| record.correct as f64 / record.pairs as f64);
        let accuracy = accuracy.map(|accuracy| ("train/accuracy".to_string(), accuracy));
        let policy = record.policy.iter().flat_map(|policy| policy.figures());
        let policy = policy.map(|(name, figure)| (format!("train/{name}"), figure));
        let taught = of_trained.into_iter().chain(accuracy).chain(policy);
        Event::scalars(wall_time, record.step, scalars.chain(taught).chain(imbalances(record)))
    }

    pub fn validation(wall_time: f64, validation: &proto::Validation) -> Event {
        // Of tokens that are no bytes it is not known.
        let of_bytes = Some(validation.bits_per_byte).filter(|bits| *bits != 0.0);
        let of_bytes = of_bytes.map(|bits| ("validation/bits_per_byte", bits));
        let has_pairs = validation.correct + validation.ties > 0;
        let accuracy = has_pairs.then(|| ("validation/accuracy", validation.correct as f64 / validation.tokens as f64));
        let scalars = std::iter::once((VALIDATION, validation.ce)).chain(of_bytes).chain(accuracy);
        Event::scalars(wall_time, validation.step, scalars.map(|(tag, value)| (tag.to_string(), value)))
    }

    pub fn scalar(&self, tag: &str) -> Option<f32> {
        match &self.what {
            Some(What::Summary(summary)) => summary.values.iter().find(|value| value.tag == tag)?.simple_value,
            _ => None,
        }
    }

    /// With what is around it in a file.
    pub fn write_into(&self, file: &mut Vec<u8>) {
        let event = self.encode_to_vec();
        let length = (event.len() as u64).to_le_bytes();
        file.extend_from_slice(&length);
        file.extend_from_slice(&masked(&length).to_le_bytes());
        file.extend_from_slice(&event);
        file.extend_from_slice(&masked(&event).to_le_bytes());
    }
}

/// Of each layer: assignments of its fullest expert over the mean of all.
fn imbalances(record: &proto::StepRecord) -> impl Iterator<Item = (String, f64)> {
    let num_experts = record.expert_load.len().checked_div(record.num_layers as usize).unwrap_or(0).max(1);
    record.expert_load.chunks(num_experts).enumerate().map(|(layer, load)| {
        let mean = load.iter().sum::<u64>() as f64 / load.len() as f64;
        let fullest = load.iter().copied().max().unwrap_or(0) as f64;
        (format!("expert_load/layer_{layer:02}_max_over_mean"), if mean > 0.0 { fullest / mean } else { 0.0 })
    })
}

/// As TFRecord has it, so that a CRC over data with CRCs in it is none of nothing.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The first event of these bytes, and how many are its; `None`: they end within it, or are no event.
pub(super) fn read(bytes: &[u8]) -> Option<(Event, usize)> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let num_bytes = u64::from_le_bytes(*length);
    if u32::from_le_bytes(*sum) != masked(length) || num_bytes > MAX_EVENT_BYTES {
        return None;
    }
    let num_bytes = num_bytes as usize;
    let (event, rest) = rest.split_at_checked(num_bytes)?;
    let (sum, _) = rest.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*sum) != masked(event) {
        return None;
    }
    Some((Event::decode(event).ok()?, HEAD_BYTES + num_bytes + TAIL_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> proto::StepRecord {
        let expert_load = vec![1, 3, 2, 2];
        proto::StepRecord { step: 7, loss: 2.5, epoch: 3, num_layers: 2, expert_load, ..Default::default() }
    }

    #[test]
    fn what_is_written_reads_back_and_nothing_else_does() {
        let events = [Event::version(1.5), Event::session(2.0, 7, Status::Start), Event::step(3.0, &record())];
        let mut file = Vec::new();
        events.iter().for_each(|event| event.write_into(&mut file));
        let mut at = 0;
        for event in &events {
            let (found, bytes) = read(&file[at..]).expect("it was written");
            assert_eq!(found, *event);
            (0..bytes).for_each(|end| assert_eq!(read(&file[at..at + end]), None, "it ends after {end} bytes"));
            for bit in 0..8 * bytes {
                let mut damaged = file[at..at + bytes].to_vec();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(read(&damaged), None, "bit {bit} has flipped");
            }
            at += bytes;
        }
        assert_eq!(at, file.len());
    }

    #[test]
    fn each_layer_has_its_imbalance() {
        let event = Event::step(0.0, &record());
        assert_eq!(event.scalar("expert_load/layer_00_max_over_mean"), Some(1.5));
        assert_eq!(event.scalar("expert_load/layer_01_max_over_mean"), Some(1.0));
        assert_eq!((event.scalar(LOSS), event.scalar(EPOCH)), (Some(2.5), Some(3.0)));
        let none = Event::step(0.0, &proto::StepRecord::default());
        assert_eq!(none.scalar("expert_load/layer_00_max_over_mean"), None);
    }

    #[test]
    fn a_policy_has_its_figures_by_their_names() {
        let policy =
            proto::PolicyStep { score: 0.75, kl: 1.5, kl_coef: 0.0625, answer_tokens: 9.5, ..Default::default() };
        let event = Event::step(0.0, &proto::StepRecord { policy: Some(policy), ..record() });
        let found = ["score", "kl", "kl_coef", "answer_tokens", "clip_fraction", "entropy", "value_loss"]
            .map(|name| event.scalar(&format!("train/{name}")));
        assert_eq!(found, [0.75, 1.5, 0.0625, 9.5, 0.0, 0.0, 0.0].map(Some));
        assert_eq!(Event::step(0.0, &record()).scalar("train/score"), None);
    }

    /// By TensorFlow's own writer.
    #[test]
    fn the_framing_is_that_of_tfrecord() {
        let mut file = Vec::new();
        Event::version(0.0).write_into(&mut file);
        // Of eight bytes, 15 and seven zeros.
        assert_eq!(file[..8], 15_u64.to_le_bytes());
        assert_eq!(masked(b""), 0xa282_ead8);
        assert_eq!(masked(b"123456789"), (0xe306_9283_u32).rotate_right(15).wrapping_add(0xa282_ead8));
    }
}
