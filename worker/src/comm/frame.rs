//! One message on a link: a header of 40 bytes, then the payload.
//!
//! ```text
//!   0      4       5        6     8       16         24       32            36           40
//!   magic  stream  summed   0 0   epoch   sequence   length   payload crc   header crc   payload ...
//! ```
//!
//! Numbers are little endian, sums are CRC-32C; the header's covers the 36 bytes before it. A payload that crosses a wire has a sum, one
//! that stays in the memory of a machine has none. Nothing of a header is believed before
//! its sum is right, so a flipped bit can neither choose a buffer nor a length. A *stream* is a channel, or the one kind
//! of control message there is, [`Stream::Resume`]. Sequence numbers count the frames of a stream in one direction and one
//! epoch, from 0.
//!
//! Deliberately absent: sockets. `conn` reads and writes.

use std::fmt;

/// Payloads travel as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "links carry f32 and f64 in little-endian order");

pub const HEADER_LEN: usize = 40;
const MAGIC: u32 = u32::from_le_bytes(*b"TORF");

/// The largest payload. A gradient chunk of the largest model planned for stays below it.
pub const MAX_PAYLOAD_BYTES: usize = 4 << 30;

/// An ordered stream of messages between two ranks; each direction of each has its own sequence numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// Sums and gathers of a TP group.
    Tp,
    /// Activations to the next stage.
    Forward,
    /// Gradients of activations to the stage before.
    Backward,
    /// Reduce-scatter and all-gather of a DP group.
    Dp,
    /// The all-reduce over the whole torus that commits a step.
    Global,
    /// Shards on their way to the other holder.
    Backup,
    /// Held-out loss.
    Eval,
}

pub(super) const NUM_CHANNELS: usize = 7;

const CHANNELS: [Channel; NUM_CHANNELS] =
    [Channel::Tp, Channel::Forward, Channel::Backward, Channel::Dp, Channel::Global, Channel::Backup, Channel::Eval];

impl Channel {
    pub(super) fn index(self) -> usize {
        self as usize
    }
}

impl Channel {
    pub fn name(self) -> &'static str {
        match self {
            Channel::Tp => "tp",
            Channel::Forward => "forward",
            Channel::Backward => "backward",
            Channel::Dp => "dp",
            Channel::Global => "global",
            Channel::Backup => "backup",
            Channel::Eval => "eval",
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Data(Channel),
    /// First frame of an epoch on a connection that was kept from the epoch before; its payload proves the epoch's key.
    Resume,
}

const RESUME: u8 = 0xff;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub stream: Stream,
    pub epoch: u64,
    pub sequence: u64,
    pub length: usize,
    /// `None` where the payload stays in memory.
    pub payload_crc: Option<u32>,
}

/// What of a frame is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FrameFault {
    pub what: &'static str,
    pub expected: String,
    pub found: String,
}

impl FrameFault {
    pub fn new(what: &'static str, expected: impl fmt::Display, found: impl fmt::Display) -> FrameFault {
        FrameFault { what, expected: expected.to_string(), found: found.to_string() }
    }
}

impl Header {
    /// Of a payload that crosses a wire.
    pub fn of(stream: Stream, epoch: u64, sequence: u64, payload: &[u8]) -> Header {
        let payload_crc = Some(crc32c::crc32c(payload));
        Header { payload_crc, ..Header::without_sum(stream, epoch, sequence, payload) }
    }

    /// Of a payload that stays in memory.
    pub fn without_sum(stream: Stream, epoch: u64, sequence: u64, payload: &[u8]) -> Header {
        assert!(payload.len() <= MAX_PAYLOAD_BYTES, "a message of {} bytes is above the bound", payload.len());
        Header { stream, epoch, sequence, length: payload.len(), payload_crc: None }
    }

    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = match self.stream {
            Stream::Data(channel) => channel as u8,
            Stream::Resume => RESUME,
        };
        bytes[5] = u8::from(self.payload_crc.is_some());
        bytes[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&(self.length as u64).to_le_bytes());
        bytes[32..36].copy_from_slice(&self.payload_crc.unwrap_or(0).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, FrameFault> {
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if u32_at(0) != MAGIC {
            return Err(FrameFault::new("magic number", format!("{MAGIC:#010x}"), format!("{:#010x}", u32_at(0))));
        }
        let crc = crc32c::crc32c(&bytes[..36]);
        if u32_at(36) != crc {
            let (expected, found) = (format!("{:#010x}", u32_at(36)), format!("{crc:#010x}"));
            return Err(FrameFault::new("checksum of the header", expected, found));
        }
        let stream = match bytes[4] {
            RESUME => Stream::Resume,
            code => match CHANNELS.get(usize::from(code)) {
                Some(&channel) => Stream::Data(channel),
                None => return Err(FrameFault::new("channel", format!("below {NUM_CHANNELS}"), code)),
            },
        };
        let length = u64_at(24);
        if length > MAX_PAYLOAD_BYTES as u64 {
            return Err(FrameFault::new("length", format!("at most {MAX_PAYLOAD_BYTES}"), length));
        }
        let length = length as usize;
        let payload_crc = (bytes[5] != 0).then(|| u32_at(32));
        Ok(Header { stream, epoch: u64_at(8), sequence: u64_at(16), length, payload_crc })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_numbered_in_order() {
        for (index, channel) in CHANNELS.into_iter().enumerate() {
            assert_eq!(channel.index(), index, "{channel}");
        }
    }

    #[test]
    fn headers_survive_the_wire() {
        for stream in CHANNELS.map(Stream::Data).into_iter().chain([Stream::Resume]) {
            for make in [Header::of, Header::without_sum] {
                let header = make(stream, u64::MAX - 1, 7, b"payload");
                assert_eq!(Header::decode(&header.encode()), Ok(header));
            }
        }
    }

    /// A golden frame: a change of the layout needs a new version of links (`toroid_proto::Build`).
    #[test]
    fn the_layout_is_fixed() {
        let bytes = Header::of(Stream::Data(Channel::Dp), 2, 3, b"abc").encode();
        assert_eq!(&bytes[..32], b"TORF\x03\x01\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0");
        assert_eq!(&bytes[32..36], &0x364b_3fb7_u32.to_le_bytes(), "CRC-32C of abc");
    }

    #[test]
    fn every_single_bit_is_guarded() {
        let good = Header::of(Stream::Data(Channel::Forward), 5, 9, &[1; 64]).encode();
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad).is_err(), "bit {bit} was believed");
        }
    }

    #[test]
    fn a_length_above_the_bound_is_refused_even_with_a_right_sum() {
        let mut bytes = Header::of(Stream::Data(Channel::Tp), 1, 0, &[]).encode();
        bytes[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&bytes).unwrap_err().what, "length");
    }
}
