//! How two ranks prove to each other that they belong to the same epoch of the same job, before a link carries a frame (T-1).
//!
//! ```text
//!   dialer (lower rank)                              acceptor
//!     Hello{versions, job, epoch, from, to, nonce, kind, link key} ->
//!                              <- Challenge{version, nonce, proof, link key}   or Refuse{why, text}
//!     Proof{proof}   or Refuse{Key, text}         ->
//!                                                 <- Welcome [memory]          or Refuse{Key, text}
//! ```
//!
//! A proof is BLAKE3 keyed with the epoch's key over a label for the role and the *binding*, the hash of the hello and both nonces:
//! it says nothing about the key, and fits no other connection, role, rank, epoch or job. The binding stays with the connection:
//! when an epoch keeps it, [`resume_proof`] proves the next epoch's key over it.
//!
//! Hello and Challenge also name the key that their process has for TLS, so the proofs cover both: a TLS link that follows is with the
//! process that has proven the epoch's key, and with nobody in between.
//!
//! A message is `magic (8), kind (1), length of the body (2), body`. A stranger fails on the magic number and is dropped.
//! A refusal says why in words that are right for the reader; only "not yet" (the caller's epoch is ahead of the acceptor's, which will
//! advance soon) is worth another try.
//!
//! The caller names the versions that it speaks, the acceptor takes the greatest that both do, and the binding covers both, so that nobody in between
//! chooses an older one. A Hello begins in all versions as it does here, what a later one has to say more stands behind, and a refusal does not change; all else is that
//! of the version which was taken.
//!
//! The caller says what kind of link it wants; memory to share goes along with the welcome, so nobody has it who has not proven the key.
//!
//! Deliberately absent: sockets, clocks, random sources; nonces are arguments. `establish` drives this.

use std::fmt;

use toroid_proto::Versions;

use super::LinkKind;
use super::transport::PublicKey;

const MAGIC: &[u8; 8] = b"TOROIDLK";
const PREFIX_LEN: usize = 11;
const MAX_BODY_LEN: usize = 1024;
/// The longest job id that a hello carries.
pub(super) const MAX_JOB_ID_LEN: usize = 256;

pub(super) type Nonce = [u8; 32];
pub(super) type Binding = [u8; 32];

/// Who this rank is, for its side of a handshake.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity<'a> {
    pub job_id: &'a str,
    pub epoch: u64,
    pub rank: usize,
    pub key: &'a [u8; 32],
    pub link_key: PublicKey,
    /// Of handshake and frames together, that it speaks.
    pub versions: Versions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    NotYet,
    Version,
    Job,
    Epoch,
    Rank,
    Key,
    Kind,
}

const WHYS: [Why; 7] = [Why::NotYet, Why::Version, Why::Job, Why::Epoch, Why::Rank, Why::Key, Why::Kind];
const KINDS: [LinkKind; 4] = [LinkKind::Shm, LinkKind::Unix, LinkKind::Tcp, LinkKind::Tls];

/// What the caller says of itself. Not to be trusted before its proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    pub versions: Versions,
    pub job_id: String,
    pub epoch: u64,
    pub from: usize,
    pub to: usize,
    pub nonce: Nonce,
    pub kind: LinkKind,
    pub link_key: PublicKey,
    /// Of a later version, for itself.
    pub more: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    Hello(Hello),
    Challenge {
        /// The greatest that both speak.
        version: u32,
        nonce: Nonce,
        proof: [u8; 32],
        link_key: PublicKey,
    },
    Proof {
        proof: [u8; 32],
    },
    Welcome,
    Refuse {
        why: Why,
        text: String,
    },
    /// A probe: another worker asks whether this is the worker that it means ([`super::probe`]).
    Knock {
        number: u64,
        nonce: Nonce,
        proof: [u8; 32],
    },
    /// It is.
    Here {
        proof: [u8; 32],
    },
}

/// Bytes that are no handshake of ours: a port scan, a browser, another service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a handshake of Toroid: {0}")]
pub(super) struct Garbage(pub String);

/// What a side does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Continue,
    /// The peer has proven that it is `rank`.
    Established {
        rank: usize,
        binding: Binding,
        kind: LinkKind,
        /// Of the peer, which has proven to have named it.
        link_key: PublicKey,
    },
    /// Send what there is to send, then close. `rank` is what the peer claims to be.
    Refused {
        rank: usize,
        why: Why,
        text: String,
    },
}

/// The side that calls.
#[derive(Debug)]
pub(super) struct Dialer {
    peer: usize,
    versions: Versions,
    kind: LinkKind,
    key: [u8; 32],
    hello: Vec<u8>,
    /// And the peer's key.
    binding: Option<(Binding, PublicKey)>,
}

impl Dialer {
    /// Also the first message to send.
    pub fn new(me: &Identity<'_>, peer: usize, kind: LinkKind, nonce: Nonce) -> (Dialer, Message) {
        let hello = Message::Hello(Hello {
            versions: me.versions,
            job_id: me.job_id.to_owned(),
            epoch: me.epoch,
            from: me.rank,
            to: peer,
            nonce,
            kind,
            link_key: me.link_key,
            more: Vec::new(),
        });
        (Dialer { peer, versions: me.versions, kind, key: *me.key, hello: hello.encode(), binding: None }, hello)
    }

    pub fn receive(&mut self, message: Message) -> Result<(Option<Message>, Verdict), Garbage> {
        let rank = self.peer;
        match (message, self.binding) {
            (Message::Refuse { why, text }, _) => Ok((None, Verdict::Refused { rank, why, text })),
            (Message::Challenge { version, .. }, None) if !self.versions.has(version) => {
                Err(Garbage(format!("a link of version {version}, where the caller speaks {}", self.versions)))
            }
            (Message::Challenge { version, nonce, proof, link_key }, None) => {
                let binding = bind(&self.hello, version, &nonce, &link_key);
                if self::proof(&self.key, Role::Acceptor, &binding) != blake3::Hash::from_bytes(proof) {
                    let theirs = format!("rank {rank} proved another key than the caller has for this epoch");
                    let ours = "it proved another key than this rank has for this epoch".to_owned();
                    let why = Why::Key;
                    return Ok((
                        Some(Message::Refuse { why, text: theirs }),
                        Verdict::Refused { rank, why, text: ours },
                    ));
                }
                self.binding = Some((binding, link_key));
                let proof = self::proof(&self.key, Role::Dialer, &binding).into();
                Ok((Some(Message::Proof { proof }), Verdict::Continue))
            }
            (Message::Welcome, Some((binding, link_key))) => {
                Ok((None, Verdict::Established { rank, binding, kind: self.kind, link_key }))
            }
            (other, _) => Err(Garbage(format!("{} out of turn", other.name()))),
        }
    }
}

/// What a caller has said and not proven yet.
#[derive(Debug, Clone, Copy)]
struct Claim {
    rank: usize,
    binding: Binding,
    kind: LinkKind,
    link_key: PublicKey,
}

/// The side that is called.
#[derive(Debug)]
pub(super) struct Acceptor {
    nonce: Nonce,
    /// What this call may become.
    kinds: Vec<LinkKind>,
    claim: Option<Claim>,
}

impl Acceptor {
    pub fn new(nonce: Nonce, kinds: Vec<LinkKind>) -> Acceptor {
        Acceptor { nonce, kinds, claim: None }
    }

    /// `expects` says whether this rank waits for a call from that one.
    pub fn receive(
        &mut self,
        me: &Identity<'_>,
        expects: impl Fn(usize) -> bool,
        message: Message,
    ) -> Result<(Option<Message>, Verdict), Garbage> {
        match (message, self.claim) {
            (Message::Hello(hello), None) => {
                let (rank, kind, link_key) = (hello.from, hello.kind, hello.link_key);
                let version = match admitted(me, expects, &self.kinds, &hello) {
                    Ok(version) => version,
                    Err((why, text)) => {
                        return Ok((
                            Some(Message::Refuse { why, text: text.clone() }),
                            Verdict::Refused { rank, why, text },
                        ));
                    }
                };
                let binding = bind(&Message::Hello(hello).encode(), version, &self.nonce, &me.link_key);
                self.claim = Some(Claim { rank, binding, kind, link_key });
                let proof = proof(me.key, Role::Acceptor, &binding).into();
                let challenge = Message::Challenge { version, nonce: self.nonce, proof, link_key: me.link_key };
                Ok((Some(challenge), Verdict::Continue))
            }
            (Message::Proof { proof }, Some(Claim { rank, binding, kind, link_key })) => {
                if self::proof(me.key, Role::Dialer, &binding) == blake3::Hash::from_bytes(proof) {
                    return Ok((Some(Message::Welcome), Verdict::Established { rank, binding, kind, link_key }));
                }
                let (why, text) = (Why::Key, format!("rank {rank} proved another key than rank {} has", me.rank));
                Ok((Some(Message::Refuse { why, text: text.clone() }), Verdict::Refused { rank, why, text }))
            }
            (Message::Refuse { why, text }, Some(Claim { rank, .. })) => {
                Ok((None, Verdict::Refused { rank, why, text }))
            }
            // Whoever probes this worker asks again when this epoch's links are made.
            (Message::Knock { .. }, None) => {
                let (rank, why) = (me.rank, Why::NotYet);
                let text = format!("this worker makes the links of epoch {} just now", me.epoch);
                Ok((Some(Message::Refuse { why, text: text.clone() }), Verdict::Refused { rank, why, text }))
            }
            (other, _) => Err(Garbage(format!("{} out of turn", other.name()))),
        }
    }
}

/// The version in which a call is taken, or why it cannot be, in words that are right on both sides.
fn admitted(
    me: &Identity<'_>,
    expects: impl Fn(usize) -> bool,
    kinds: &[LinkKind],
    hello: &Hello,
) -> Result<u32, (Why, String)> {
    let Identity { rank, epoch, job_id, versions, .. } = *me;
    let Some(shared) = versions.shared(hello.versions) else {
        let text = format!(
            "rank {rank} speaks links of version {versions}, the caller {}: they have none in common; upgrade one release at a time",
            hello.versions
        );
        return Err((Why::Version, text));
    };
    if hello.job_id != job_id {
        return Err((Why::Job, format!("rank {rank} works on job {job_id:?}, the caller on job {:?}", hello.job_id)));
    }
    if hello.epoch > epoch {
        let text = format!("rank {rank} is in epoch {epoch} and not yet in the caller's epoch {}", hello.epoch);
        return Err((Why::NotYet, text));
    }
    if hello.epoch < epoch {
        let text =
            format!("rank {rank} is in epoch {epoch}, the caller still in epoch {}; it was replaced", hello.epoch);
        return Err((Why::Epoch, text));
    }
    if hello.to != rank || !expects(hello.from) {
        let text = format!(
            "this is rank {rank}, which expects no call from rank {} for rank {}; the two have different plans",
            hello.from, hello.to
        );
        return Err((Why::Rank, text));
    }
    if !kinds.contains(&hello.kind) {
        let (allowed, wanted) = (kinds.iter().map(LinkKind::to_string).collect::<Vec<_>>().join(" or "), hello.kind);
        let text = format!(
            "rank {rank} takes {allowed} here and the caller wants {wanted}; run all workers with the same --links"
        );
        return Err((Why::Kind, text));
    }
    Ok(shared.newest)
}

#[derive(Clone, Copy)]
enum Role {
    Dialer,
    Acceptor,
}

fn proof(key: &[u8; 32], role: Role, binding: &Binding) -> blake3::Hash {
    let label: &[u8] = match role {
        Role::Dialer => b"toroid link: dialer",
        Role::Acceptor => b"toroid link: acceptor",
    };
    blake3::Hasher::new_keyed(key).update(label).update(binding).finalize()
}

/// Proves the key of `epoch` over a connection that was established in an earlier one. Compared in constant time.
pub(super) fn resume_proof(key: &[u8; 32], binding: &Binding, epoch: u64, from: usize, to: usize) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(b"toroid link: resume").update(binding);
    for number in [epoch, from as u64, to as u64] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.finalize()
}

fn bind(hello: &[u8], version: u32, acceptor_nonce: &Nonce, acceptor_key: &PublicKey) -> Binding {
    let mut hasher = blake3::Hasher::new();
    hasher.update(hello).update(&version.to_le_bytes()).update(acceptor_nonce).update(acceptor_key);
    hasher.finalize().into()
}

impl Message {
    fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) => "hello",
            Message::Challenge { .. } => "challenge",
            Message::Proof { .. } => "proof",
            Message::Welcome => "welcome",
            Message::Refuse { .. } => "refusal",
            Message::Knock { .. } => "knock",
            Message::Here { .. } => "answer to a knock",
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let kind = match self {
            Message::Hello(hello) => {
                assert!(hello.job_id.len() <= MAX_JOB_ID_LEN, "a job id of {} bytes", hello.job_id.len());
                body.extend(hello.versions.newest.to_le_bytes());
                body.extend(hello.versions.oldest.to_le_bytes());
                body.extend(hello.epoch.to_le_bytes());
                body.extend((hello.from as u64).to_le_bytes());
                body.extend((hello.to as u64).to_le_bytes());
                body.extend(hello.nonce);
                body.push(hello.kind as u8);
                body.extend(hello.link_key);
                body.extend((hello.job_id.len() as u16).to_le_bytes());
                body.extend(hello.job_id.as_bytes());
                body.extend(&hello.more);
                0
            }
            Message::Challenge { version, nonce, proof, link_key } => {
                body.extend(version.to_le_bytes());
                body.extend(nonce);
                body.extend(proof);
                body.extend(link_key);
                1
            }
            Message::Proof { proof } => {
                body.extend(proof);
                2
            }
            Message::Welcome => 3,
            Message::Refuse { why, text } => {
                body.push(*why as u8);
                let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
                let end = ends.take_while(|&end| end < MAX_BODY_LEN).last().unwrap_or(0);
                body.extend(&text.as_bytes()[..end]);
                4
            }
            Message::Knock { number, nonce, proof } => {
                body.extend(number.to_le_bytes());
                body.extend(nonce);
                body.extend(proof);
                5
            }
            Message::Here { proof } => {
                body.extend(proof);
                6
            }
        };
        let mut bytes = MAGIC.to_vec();
        bytes.push(kind);
        bytes.extend((body.len() as u16).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    /// How many bytes of the message that begins with `bytes` are still to be read; 0 when it is whole. A reader that asks for no more
    /// takes nothing of the frames behind it.
    pub fn missing(bytes: &[u8]) -> Result<usize, Garbage> {
        let magic = &bytes[..bytes.len().min(MAGIC.len())];
        if !MAGIC.starts_with(magic) {
            return Err(Garbage(format!("begins with {:?}", String::from_utf8_lossy(magic))));
        }
        let Some(length) = bytes.get(PREFIX_LEN - 2..PREFIX_LEN) else {
            return Ok(PREFIX_LEN - bytes.len());
        };
        let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
        if length > MAX_BODY_LEN {
            return Err(Garbage(format!("a message of {length} bytes, at most {MAX_BODY_LEN} are allowed")));
        }
        Ok(PREFIX_LEN + length - bytes.len())
    }

    /// `bytes` is one whole message.
    pub fn decode(bytes: &[u8]) -> Result<Message, Garbage> {
        assert_eq!(Message::missing(bytes), Ok(0), "decode takes one whole message");
        let mut body = Body(&bytes[PREFIX_LEN..]);
        let message = match bytes[MAGIC.len()] {
            0 => Message::Hello(Hello {
                versions: body.versions()?,
                epoch: u64::from_le_bytes(body.take()?),
                from: body.rank()?,
                to: body.rank()?,
                nonce: body.take()?,
                kind: body.kind()?,
                link_key: body.take()?,
                job_id: body.job_id()?,
                more: std::mem::take(&mut body.0).to_vec(),
            }),
            1 => Message::Challenge {
                version: u32::from_le_bytes(body.take()?),
                nonce: body.take()?,
                proof: body.take()?,
                link_key: body.take()?,
            },
            2 => Message::Proof { proof: body.take()? },
            3 => Message::Welcome,
            4 => {
                let [code] = body.take()?;
                let why = WHYS.get(usize::from(code)).copied();
                let why = why.ok_or_else(|| Garbage(format!("a refusal for reason {code}")))?;
                Message::Refuse { why, text: body.text(MAX_BODY_LEN)? }
            }
            5 => Message::Knock { number: u64::from_le_bytes(body.take()?), nonce: body.take()?, proof: body.take()? },
            6 => Message::Here { proof: body.take()? },
            kind => return Err(Garbage(format!("a message of kind {kind}"))),
        };
        if body.0.is_empty() { Ok(message) } else { Err(Garbage(format!("{} bytes too many", body.0.len()))) }
    }
}

/// What of a body is still to be parsed.
struct Body<'a>(&'a [u8]);

impl Body<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Garbage> {
        let (head, rest) =
            self.0.split_first_chunk().ok_or_else(|| Garbage(format!("{} bytes where {N} belong", self.0.len())))?;
        self.0 = rest;
        Ok(*head)
    }

    fn rank(&mut self) -> Result<usize, Garbage> {
        let rank = u64::from_le_bytes(self.take()?);
        usize::try_from(rank).map_err(|_| Garbage(format!("rank {rank}")))
    }

    fn versions(&mut self) -> Result<Versions, Garbage> {
        let newest = u32::from_le_bytes(self.take()?);
        Ok(Versions::new(u32::from_le_bytes(self.take()?), newest))
    }

    /// Behind its length: more may follow.
    fn job_id(&mut self) -> Result<String, Garbage> {
        let len = usize::from(u16::from_le_bytes(self.take()?));
        let Some((text, rest)) = self.0.split_at_checked(len) else {
            return Err(Garbage(format!("{} bytes where a job id of {len} belongs", self.0.len())));
        };
        self.0 = rest;
        Body(text).text(MAX_JOB_ID_LEN)
    }

    fn kind(&mut self) -> Result<LinkKind, Garbage> {
        let [code] = self.take()?;
        KINDS.get(usize::from(code)).copied().ok_or_else(|| Garbage(format!("a link of kind {code}")))
    }

    fn text(&mut self, max: usize) -> Result<String, Garbage> {
        if self.0.len() > max {
            return Err(Garbage(format!("a text of {} bytes, at most {max} are allowed", self.0.len())));
        }
        let text =
            std::str::from_utf8(std::mem::take(&mut self.0)).map_err(|_| Garbage("text that is not UTF-8".into()))?;
        // It will be logged: no line breaks or escape sequences from a stranger.
        Ok(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::NotYet => "not yet",
            Why::Version => "protocol version",
            Why::Job => "job",
            Why::Epoch => "epoch",
            Why::Rank => "rank",
            Why::Key => "key",
            Why::Kind => "kind of link",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn me(rank: usize) -> Identity<'static> {
        let versions = Versions::new(6, 7);
        Identity { job_id: "job-a", epoch: 4, rank, key: &KEY, link_key: [rank as u8; 32], versions }
    }

    /// Over the wire format, so that the tests cover it.
    fn wire(message: &Message) -> Message {
        Message::decode(&message.encode()).unwrap()
    }

    /// Runs rank 0 against rank 1, with `meddle` between the two; returns the verdicts of dialer and acceptor.
    fn shake(
        dialer: &Identity<'_>,
        acceptor: &Identity<'_>,
        meddle: impl Fn(Message) -> Message,
    ) -> [Option<Verdict>; 2] {
        let (mut dial, hello) = Dialer::new(dialer, 1, LinkKind::Unix, [1; 32]);
        let mut accept = Acceptor::new([2; 32], vec![LinkKind::Shm, LinkKind::Unix]);
        let mut verdicts = [None, None];
        let mut next = Some((hello, 1));
        while let Some((message, side)) = next.take() {
            let message = meddle(wire(&message));
            let (reply, verdict) = match side {
                0 => dial.receive(message).unwrap(),
                _ => accept.receive(acceptor, |rank| rank == 0, message).unwrap(),
            };
            if verdict != Verdict::Continue {
                verdicts[side] = Some(verdict);
            }
            next = reply.map(|reply| (reply, 1 - side));
        }
        verdicts
    }

    /// Both sides end with `why` and a text that contains `text`.
    fn check_refused(dialer: &Identity<'_>, acceptor: &Identity<'_>, why: Why, text: &str) {
        for (side, verdict) in shake(dialer, acceptor, |m| m).into_iter().enumerate() {
            match verdict {
                Some(Verdict::Refused { why: found, text: found_text, rank }) => {
                    assert_eq!((found, rank), (why, 1 - side), "{found_text}");
                    assert!(found_text.contains(text), "{found_text:?} does not say {text:?}");
                }
                other => panic!("side {side} ended with {other:?}, expected to be refused for its {why}"),
            }
        }
    }

    #[test]
    fn the_right_key_establishes_one_binding_on_both_sides() {
        let [dialer, acceptor] = shake(&me(0), &me(1), |m| m);
        let (
            Some(Verdict::Established { rank: 1, binding: a, kind: LinkKind::Unix, link_key: theirs }),
            Some(Verdict::Established { rank: 0, binding: b, kind: LinkKind::Unix, link_key: ours }),
        ) = (dialer, acceptor)
        else {
            panic!("not established");
        };
        assert_eq!(a, b);
        assert_eq!((theirs, ours), ([1; 32], [0; 32]), "each knows the other's key for TLS");
    }

    /// Whoever is in between and names a key of its own has to prove the epoch's key over it.
    #[test]
    fn a_key_for_tls_that_was_exchanged_on_its_way_is_refused() {
        let of_dialer = shake(&me(0), &me(1), |message| match message {
            Message::Hello(hello) => Message::Hello(Hello { link_key: [9; 32], ..hello }),
            other => other,
        });
        let of_acceptor = shake(&me(0), &me(1), |message| match message {
            Message::Challenge { version, nonce, proof, .. } => {
                Message::Challenge { version, nonce, proof, link_key: [9; 32] }
            }
            other => other,
        });
        for verdicts in [of_dialer, of_acceptor] {
            assert!(verdicts.iter().all(|v| matches!(v, Some(Verdict::Refused { why: Why::Key, .. }))), "{verdicts:?}");
        }
    }

    #[test]
    fn a_wrong_key_version_job_epoch_or_rank_is_refused_on_both_sides() {
        check_refused(&Identity { key: &[8; 32], ..me(0) }, &me(1), Why::Key, "another key");
        check_refused(&Identity { job_id: "job-b", ..me(0) }, &me(1), Why::Job, "the caller on job \"job-b\"");
        check_refused(&Identity { epoch: 3, ..me(0) }, &me(1), Why::Epoch, "the caller still in epoch 3");
        check_refused(&Identity { epoch: 5, ..me(0) }, &me(1), Why::NotYet, "not yet in the caller's epoch 5");
        check_refused(&me(0), &me(2), Why::Rank, "this is rank 2");
        let kind = LinkKind::Tcp;
        let mut hello = Hello {
            versions: Versions::new(9, 9),
            job_id: "job-a".into(),
            epoch: 4,
            from: 0,
            to: 1,
            nonce: [0; 32],
            kind,
            link_key: [0; 32],
            more: Vec::new(),
        };
        let acceptor = |kind| Acceptor::new([2; 32], vec![kind]);
        let (reply, verdict) = acceptor(kind).receive(&me(1), |_| true, Message::Hello(hello.clone())).unwrap();
        assert!(matches!(reply, Some(Message::Refuse { why: Why::Version, .. })));
        assert!(
            matches!(verdict, Verdict::Refused { why: Why::Version, text, .. } if text.contains("version 6 to 7, the caller 9"))
        );
        hello.versions = Versions::new(7, 9);
        let (_, verdict) = acceptor(kind).receive(&me(1), |_| false, Message::Hello(hello.clone())).unwrap();
        assert!(matches!(verdict, Verdict::Refused { why: Why::Rank, .. }), "nobody expects this rank");
        let (_, verdict) = acceptor(LinkKind::Shm).receive(&me(1), |_| true, Message::Hello(hello)).unwrap();
        assert!(
            matches!(verdict, Verdict::Refused { why: Why::Kind, text, .. } if text.contains("takes shm here and the caller wants tcp"))
        );
    }

    #[test]
    fn two_builds_speak_the_greatest_version_that_both_do_and_nobody_in_between_chooses_another() {
        let speaks = |rank, oldest, newest| Identity { versions: Versions::new(oldest, newest), ..me(rank) };
        for (dialer, acceptor, expected) in
            [((6, 7), (7, 9), 7), ((7, 9), (6, 7), 7), ((5, 8), (6, 9), 8), ((7, 7), (7, 7), 7)]
        {
            let chosen = std::cell::Cell::new(0);
            let verdicts = shake(&speaks(0, dialer.0, dialer.1), &speaks(1, acceptor.0, acceptor.1), |message| {
                if let Message::Challenge { version, .. } = &message {
                    chosen.set(*version);
                }
                message
            });
            assert!(verdicts.iter().all(|v| matches!(v, Some(Verdict::Established { .. }))), "{verdicts:?}");
            assert_eq!(chosen.get(), expected, "{dialer:?} and {acceptor:?}");
        }
        check_refused(
            &speaks(0, 8, 9),
            &me(1),
            Why::Version,
            "version 6 to 7, the caller 8 to 9: they have none in common",
        );
        // An older version than both speak, by somebody in between.
        let of_hello = shake(&me(0), &me(1), |message| match message {
            Message::Hello(hello) => Message::Hello(Hello { versions: Versions::new(6, 6), ..hello }),
            other => other,
        });
        let of_challenge = shake(&me(0), &me(1), |message| match message {
            Message::Challenge { nonce, proof, link_key, .. } => {
                Message::Challenge { version: 6, nonce, proof, link_key }
            }
            other => other,
        });
        for verdicts in [of_hello, of_challenge] {
            assert!(verdicts.iter().all(|v| matches!(v, Some(Verdict::Refused { why: Why::Key, .. }))), "{verdicts:?}");
        }
    }

    /// What a later version says behind what all versions say is taken along.
    #[test]
    fn a_hello_of_a_later_version_is_read_as_far_as_it_is_known() {
        let (mut dialer, hello) = Dialer::new(&me(0), 1, LinkKind::Unix, [1; 32]);
        let Message::Hello(hello) = hello else { panic!("a dialer begins with a hello") };
        let hello = Message::Hello(Hello { more: b"of version 9".to_vec(), ..hello });
        dialer.hello = hello.encode();
        let mut acceptor = Acceptor::new([2; 32], vec![LinkKind::Unix]);
        let (challenge, _) = acceptor.receive(&me(1), |rank| rank == 0, wire(&hello)).unwrap();
        let (proof, _) = dialer.receive(wire(&challenge.unwrap())).unwrap();
        let (_, verdict) = acceptor.receive(&me(1), |rank| rank == 0, wire(&proof.unwrap())).unwrap();
        assert!(matches!(verdict, Verdict::Established { rank: 0, .. }), "{verdict:?}");
    }

    #[test]
    fn a_caller_without_the_key_gets_no_further_than_its_proof() {
        let verdicts = shake(&me(0), &me(1), |message| match message {
            Message::Proof { .. } => Message::Proof { proof: [0; 32] },
            other => other,
        });
        assert!(verdicts.iter().all(|v| matches!(v, Some(Verdict::Refused { why: Why::Key, .. }))), "{verdicts:?}");
    }

    #[test]
    fn a_proof_cannot_be_reflected() {
        let binding = [5; 32];
        assert_ne!(proof(&KEY, Role::Dialer, &binding), proof(&KEY, Role::Acceptor, &binding));
        assert_ne!(resume_proof(&KEY, &binding, 1, 0, 1), resume_proof(&KEY, &binding, 1, 1, 0));
        assert_ne!(resume_proof(&KEY, &binding, 1, 0, 1), resume_proof(&KEY, &binding, 2, 0, 1));
    }

    #[test]
    fn strangers_are_told_from_the_first_bytes() {
        assert!(Message::missing(b"GET / HTTP/1.1").is_err());
        assert!(Message::missing(b"\x16\x03\x01").is_err(), "a TLS hello");
        assert_eq!(Message::missing(b""), Ok(PREFIX_LEN));
        assert_eq!(Message::missing(b"TOR"), Ok(PREFIX_LEN - 3));
        assert!(Message::missing(b"TOROIDLK\x00\xff\xff").is_err(), "a body above the bound");
        assert!(Message::decode(b"TOROIDLK\x00\x00\x00").is_err(), "a hello without a body");
        assert!(Message::decode(b"TOROIDLK\x03\x01\x00x").is_err(), "a welcome with a body");
        assert!(Message::decode(b"TOROIDLK\x04\x01\x00\x77").is_err(), "a refusal for no reason");
        assert!(
            Dialer::new(&me(0), 1, LinkKind::Tcp, [0; 32]).0.receive(Message::Welcome).is_err(),
            "a welcome without a proof"
        );
    }

    #[test]
    fn a_strangers_text_cannot_forge_log_lines() {
        let text = "x\n\u{1b}[31mforged".to_owned();
        let Message::Refuse { text, .. } = wire(&Message::Refuse { why: Why::Key, text }) else { panic!("a refusal") };
        assert_eq!(text, "x  [31mforged");
    }
}
