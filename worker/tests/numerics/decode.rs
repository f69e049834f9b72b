//! What is decoded row by row against a cache has the bits of the training forward over the whole sequence (M-5), also over the places of a split
//! (M-6).

use toroid_torus::geometry::{Place, Shape};
use toroid_torus::init::fill_initial;
use toroid_torus::job::{JobSpec, Products};
use toroid_torus::model::ModelConfig;
use toroid_worker::device::{CachePlace, CachedAttention, CpuDevice, Device};
use toroid_worker::generate::{Batch, Ended, Finish, GenerateError, Listener, Request, Sampling, Sequence, generate};
use toroid_worker::model::{
    Alone, Decode, Decoder, Input, Row, Split, SplitDecoder, ThreadGroup, TpComm, whole_partition,
};

use crate::support::{formula_params, read, spec, splitmix64, stage_on, unfailing, whole};

/// Samples of a micro-batch of the training forward.
const SAMPLES: usize = 2;

fn tokens(spec: &JobSpec, seed: u64) -> Vec<u32> {
    let of = |i: u64| (splitmix64(seed ^ i) % spec.model.vocab as u64) as u32;
    (0..(SAMPLES * spec.model.seq) as u64).map(of).collect()
}

/// `(SAMPLES, seq, vocab)`
fn trained(spec: &JobSpec, tokens: &[u32]) -> Vec<f32> {
    let (mut stage, _) = whole(spec, 2);
    unfailing(stage.forward(0, Input::Tokens(tokens), Some(tokens), &mut Alone, None));
    read(stage.device(), stage.logits(0).expect("the whole model has the head").buf)
}

fn decoder(spec: &JobSpec, sequences: usize, threads: usize) -> Decoder<CpuDevice> {
    decoder_on(CpuDevice::new(threads), spec, sequences)
}

fn decoder_on<D: CachedAttention>(device: D, spec: &JobSpec, sequences: usize) -> Decoder<D> {
    let params = formula_params(spec, &whole_partition(&spec.model));
    Decoder::new(device, &spec.model, spec.products, &params, sequences)
}

#[track_caller]
fn check_row(found: &[f32], expected: &[f32], what: &str) {
    let differs = (0..found.len()).find(|&i| found[i].to_bits() != expected[i].to_bits());
    assert_eq!(differs.map(|i| (i, found[i], expected[i])), None, "{what}");
}

/// A model whose sequences go over several blocks of attention's queries and keys, with dims that fill no vector.
fn long(products: Products) -> JobSpec {
    let text = format!(
        "steps = 1\ndata.path = \"none\"\nbatch.micro_batch = {SAMPLES}\nbatch.micro_batches = 1\n[model]\nlayers = 2\nd_model = 36\n\
         heads = 6\nkv_heads = 3\nhead_dim = 10\nexperts = 5\nff = 28\nseq = 300\nvocab = 270\n"
    );
    JobSpec { products, ..toroid_torus::job::parse(&text).expect("the job is valid") }
}

/// What a decoder has of `spec`'s rows against `expected (SAMPLES, seq, vocab)`: of one sequence token by token, and of sixteen, each so many
/// tokens ahead of the one before, with a prompt in pieces among them. `make` has so many sequences and threads.
fn check_decoded(
    spec: &JobSpec,
    tokens: &[u32],
    expected: &[f32],
    make: impl Fn(usize, usize) -> Box<dyn Decode>,
    what: &str,
) {
    let (seq, vocab) = (spec.model.seq, spec.model.vocab);
    let row = |sample: usize, sequence: usize, position: usize| Row {
        place: CachePlace { sequence, position },
        token: tokens[sample * seq + position],
    };
    let expect = |sample: usize, position: usize| &expected[(sample * seq + position) * vocab..][..vocab];
    let mut alone = make(1, 1);
    for position in 0..seq {
        let mut logits = vec![f32::NAN; vocab];
        alone.forward(&[row(0, 0, position)], &mut logits);
        check_row(&logits, expect(0, position), &format!("position {position} alone, {what}"));
    }
    let mut many = make(16, 2);
    let end = seq.min(80);
    for step in 0..end + 16 {
        let rows: Vec<Row> = (0..16)
            .flat_map(|sequence| {
                let sample = sequence % SAMPLES;
                // The last reads five tokens at a time.
                let positions = match sequence {
                    15 => (5 * step).min(end)..(5 * step + 5).min(end),
                    _ => step.checked_sub(sequence).map_or(0..0, |p| p.min(end)..(p + 1).min(end)),
                };
                positions.map(move |position| (sample, sequence, position))
            })
            .map(|(sample, sequence, position)| row(sample, sequence, position))
            .collect();
        if rows.is_empty() {
            continue;
        }
        let mut logits = vec![f32::NAN; rows.len() * vocab];
        many.forward(&rows, &mut logits);
        for (row, logits) in rows.iter().zip(logits.chunks_exact(vocab)) {
            let CachePlace { sequence, position } = row.place;
            check_row(logits, expect(sequence % SAMPLES, position), &format!("{row:?} among {}, {what}", rows.len()));
        }
    }
}

#[test]
fn decoded_rows_have_the_bits_of_the_training_forward() {
    for spec in [spec(SAMPLES), long(Products::F32), long(Products::Bf16)] {
        let tokens = tokens(&spec, 3);
        let make = |sequences, threads| -> Box<dyn Decode> { Box::new(decoder(&spec, sequences, threads)) };
        check_decoded(&spec, &tokens, &trained(&spec, &tokens), make, "in one place");
    }
}

/// `(SAMPLES, seq, vocab)` by the training forward at a tp and a pp; the stages of a tp_rank are on one thread.
fn trained_by(spec: &JobSpec, tokens: &[u32], tp: usize, pp: usize) -> Vec<f32> {
    let shape = Shape::new(tp, pp, 1).expect("a shape");
    let of_rank = |group: &mut ThreadGroup| {
        let mut activations: Vec<f32> = Vec::new();
        for stage in 0..pp {
            let place = Place { tp: group.rank(), pp: stage, dp: 0 };
            let (mut stage, _) = stage_on(&CpuDevice::new(1), spec, &shape, place);
            let mut next = vec![0.0; stage.activation_len()];
            let input = if place.pp == 0 { Input::Tokens(tokens) } else { Input::Activations(&activations) };
            if place.pp + 1 == pp {
                unfailing(stage.forward(0, input, Some(tokens), group, None));
                return read(stage.device(), stage.logits(0).expect("the last stage has the head").buf);
            }
            unfailing(stage.forward(0, input, None, group, Some(&mut next)));
            activations = next;
        }
        unreachable!("one of the stages is the last")
    };
    let parts: Vec<Vec<f32>> = std::thread::scope(|scope| {
        let rank = |mut group: ThreadGroup| scope.spawn(move || of_rank(&mut group));
        let ranks: Vec<_> = ThreadGroup::new(tp).into_iter().map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank panicked")).collect()
    });
    let own = spec.model.vocab / tp;
    (0..SAMPLES * spec.model.seq)
        .flat_map(|row| parts.iter().flat_map(move |part| &part[row * own..][..own]))
        .copied()
        .collect()
}

/// Every split that the tests of splits are about.
fn splits() -> impl Iterator<Item = (usize, usize)> {
    [1, 2, 4].into_iter().flat_map(|tp| [1, 2].map(|pp| (tp, pp)))
}

fn split(tp: usize, pp: usize, threads: usize) -> Split<CpuDevice> {
    let shape = Shape::new(tp, pp, 1).expect("a shape");
    Split::new(shape, (0..tp * pp).map(|_| CpuDevice::new(threads)).collect())
}

/// M-6, in f32 and bf16. The split of one place, too, goes through threads.
#[test]
fn rows_of_a_split_have_the_bits_of_the_training_forward_at_its_tp() {
    for products in [Products::F32, Products::Bf16] {
        let spec = JobSpec { products, ..spec(SAMPLES) };
        let tokens = tokens(&spec, 3);
        let params = formula_params(&spec, &whole_partition(&spec.model));
        let whole = trained(&spec, &tokens);
        for (tp, pp) in splits() {
            let expected = trained_by(&spec, &tokens, tp, pp);
            assert_eq!(expected == whole, tp == 1, "pp changes no bit, tp does");
            let make = |sequences, threads| -> Box<dyn Decode> {
                let split = split(tp, pp, threads);
                Box::new(SplitDecoder::new(split, &spec.model, products, &params, sequences).expect("threads"))
            };
            check_decoded(&spec, &tokens, &expected, make, &format!("tp {tp} and pp {pp} in {products:?}"));
        }
    }
}

/// Alone, and as one of sixteen.
#[test]
fn a_split_writes_the_text_of_one_place() {
    let mut spec = spec(SAMPLES);
    spec.model = ModelConfig::preset("micro").expect("a preset");
    let whole = whole_partition(&spec.model);
    let mut params = vec![0.0; whole.padded_len];
    for slice in &whole.slices {
        fill_initial(slice, 5, &mut params[slice.offset..slice.offset + slice.len]);
    }
    let sampling = Sampling { temperature: 0.8, top_k: 0, top_p: 1.0 };
    let prompt: Vec<u32> = b"fn main".map(u32::from).to_vec();
    let texts = |tp: usize, pp: usize, samples: usize| {
        let request =
            Request { prompt: &prompt, samples, max_tokens: 100, sampling, seed: 7, stops: &[], num_tokens: 256 };
        let decoder = split(tp, pp, 1).decoder(&spec.model, spec.products, &params, samples);
        generate(&mut *decoder.expect("threads"), &request, |_, _| {}).expect("the prompt fits")
    };
    let expected = texts(1, 1, 16);
    assert_eq!(expected[0].tokens.len(), spec.model.seq - prompt.len());
    assert!((1..16).all(|i| expected[i] != expected[0]), "samples are different texts");
    for (tp, pp) in splits() {
        assert_eq!(texts(tp, pp, 16), expected, "tp {tp} and pp {pp}");
        assert_eq!(texts(tp, pp, 1), expected[..1], "tp {tp} and pp {pp}, alone");
    }
}

/// A prompt in pieces and other sequences beside it on emulated CUDA: the logits are those of the CPU, and what is there for some number of
/// rows is enough for the next call with as many.
#[test]
fn a_gpu_decodes_what_the_cpu_does() {
    for (spec, tolerance) in [(long(Products::F32), 1e-5), (long(Products::Bf16), 2e-3)] {
        let tokens = tokens(&spec, 3);
        let row = |sequence: usize, position: usize| Row {
            place: CachePlace { sequence, position },
            token: tokens[(sequence % SAMPLES) * spec.model.seq + position],
        };
        let (device, vocab) = (crate::emulator::device(), spec.model.vocab);
        let (mut on_gpu, mut on_cpu) = (decoder_on(device.clone(), &spec, 3), decoder(&spec, 3, 2));
        let mut allocated = 0;
        for step in 0..6 {
            // Sequence 2 reads eleven tokens at a time.
            let prompt = (11 * step..11 * step + 11).map(|position| row(2, position));
            let rows: Vec<Row> = [row(0, step), row(1, step)].into_iter().chain(prompt).collect();
            let [mut found, mut expected] = [f32::NAN; 2].map(|value| vec![value; rows.len() * vocab]);
            on_gpu.forward(&rows, &mut found);
            on_cpu.forward(&rows, &mut expected);
            let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < tolerance, "{:?}, step {step}: off by {off}", spec.products);
            let before = std::mem::replace(&mut allocated, device.allocated_bytes());
            assert!(step == 0 || allocated == before, "step {step} allocated {} bytes", allocated - before);
        }
    }
}

/// A text is the same alone and among others, whatever the threads, and what was said of it is it.
#[test]
fn texts_depend_on_their_number_alone() {
    let spec = spec(SAMPLES);
    let prompt: Vec<u32> =
        b"The quick brown fox jumps over the lazy dog; pack my box with five dozen jugs".map(u32::from).to_vec();
    let sampling = Sampling { temperature: 1.5, top_k: 100, top_p: 0.99 };
    let texts = |samples: usize, threads: usize, stops: &[Vec<u32>], max_tokens: usize| {
        let request = Request { prompt: &prompt, samples, max_tokens, sampling, seed: 11, stops, num_tokens: 256 };
        let mut said = vec![Vec::new(); samples];
        let found =
            generate(&mut decoder(&spec, samples, threads), &request, |i, tokens| said[i].extend_from_slice(tokens));
        let found = found.expect("the prompt fits");
        assert!(found.iter().map(|text| &text.tokens).eq(&said));
        found
    };
    let five = texts(5, 2, &[], 20);
    assert!(five.iter().all(|text| text.tokens.len() == 20 && text.finish == Finish::Length));
    assert!(five.iter().flat_map(|text| &text.tokens).all(|token| *token < 256));
    assert!((1..5).all(|i| five[i] != five[0]), "samples are different texts");
    assert_eq!(texts(1, 1, &[], 20), five[..1]);
    assert_eq!(texts(2, 1, &[], 7)[1].tokens, five[1].tokens[..7]);
    // The context ends it.
    let whole = texts(1, 1, &[], 1000).remove(0);
    assert_eq!((whole.tokens.len(), whole.finish), (spec.model.seq - prompt.len(), Finish::Context));
    // A stop is no part of the text, and what might become one is held back.
    let stop = whole.tokens[8..11].to_vec();
    let at = whole.tokens.windows(3).position(|w| w == stop).expect("it is there");
    let never = vec![whole.tokens[2], 256];
    let stopped = texts(1, 1, &[never, stop], 1000).remove(0);
    assert_eq!((&stopped.tokens[..], stopped.finish), (&whole.tokens[..at], Finish::Stop));
}

/// Hears tokens, and has enough after some of them.
struct Hearing {
    number: usize,
    tokens: Vec<u32>,
    gone_after: usize,
}

impl Listener for Hearing {
    fn token(&mut self, token: u32, _logits: &[f32]) -> Option<Finish> {
        self.tokens.push(token);
        None
    }

    fn is_gone(&self) -> bool {
        self.tokens.len() >= self.gone_after
    }
}

/// Sequences of many lengths, with beginnings in common, at few places: some leave early, others come, and each has the tokens that it has alone (G-1).
#[test]
fn a_text_is_the_same_whoever_comes_and_goes() {
    let spec = spec(SAMPLES);
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
    let sequences: Vec<Sequence> = (0..20)
        .map(|i| {
            let beginning =
                if i % 3 == 0 { "a beginning that several of them have in common, so that it is copied; " } else { "" };
            let prompt = format!("{beginning}{}", "other words ".repeat(i % 4 + 1)).bytes().map(u32::from).collect();
            Sequence {
                prompt,
                sample: i as u64 % 2,
                seed: 3,
                sampling,
                max_tokens: 3 + i % 7,
                scores_prompt: i % 5 == 4,
            }
        })
        .collect();
    let mut decoder = decoder(&spec, 3, 2);
    let mut batch = Batch::new(3, decoder.max_tokens(), 256);
    let mut waiting = sequences.iter().enumerate();
    let mut num_ended = 0;
    loop {
        while batch.num_free() > 0
            && let Some((number, sequence)) = waiting.next()
        {
            let gone_after = if number % 6 == 5 { 2 } else { usize::MAX };
            batch.join(sequence.clone(), Hearing { number, tokens: Vec::new(), gone_after });
        }
        if batch.is_idle() {
            break;
        }
        for Ended { listener, result } in batch.step(&mut decoder) {
            let sequence = &sequences[listener.number];
            let mut alone = self::decoder(&spec, 1, 1);
            let mut only = Batch::new(1, alone.max_tokens(), 256);
            only.join(sequence.clone(), Hearing { number: 0, tokens: Vec::new(), gone_after: usize::MAX });
            let ended = loop {
                if let Some(ended) = only.step(&mut alone).pop() {
                    break ended;
                }
            };
            assert_eq!((listener.tokens, &result), (ended.listener.tokens, &ended.result), "{sequence:?}");
            assert_eq!(result, Ok(Finish::Length));
            num_ended += 1;
        }
    }
    // Three had enough before.
    assert_eq!(num_ended, 17);
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let spec = spec(SAMPLES);
    let sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 };
    let run = |prompt: &[u32]| {
        let request = Request { prompt, samples: 1, max_tokens: 1, sampling, seed: 0, stops: &[], num_tokens: 256 };
        generate(&mut decoder(&spec, 1, 1), &request, |_, _| {})
    };
    assert_eq!(run(&[]), Err(GenerateError::Empty));
    assert_eq!(run(&[0; 128]), Err(GenerateError::TooLong { found: 128, most: 128 }));
    assert_eq!(run(&[0; 127]).map(|texts| texts[0].tokens.len()), Ok(1));
}
