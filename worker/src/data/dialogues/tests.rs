//! What samples have of dialogues and pairs, and which are refused.

use std::path::Path;

use toroid_tokens::{BYTES_TOKENIZER, Document, dialogues_file_of, preferences_file_of};

use super::*;
use crate::data::{Sources, prepare};

/// Dialogues of these lengths; the second half of each is trained. Their tokens tell them apart.
fn dialogues(lengths: &[usize]) -> Vec<u8> {
    let of = |(n, len): (usize, &usize)| -> (Vec<u32>, Vec<bool>) {
        ((0..*len).map(|i| ((n * 50 + i) % 256) as u32).collect(), (0..*len).map(|i| i > 0 && i >= len / 2).collect())
    };
    let all: Vec<_> = lengths.iter().enumerate().map(of).collect();
    let documents: Vec<Document<'_>> = all.iter().map(|(tokens, trained)| (&tokens[..], &trained[..])).collect();
    dialogues_file_of(&documents, 256, BYTES_TOKENIZER)
}

fn spec(kind: &str, file: &Path, keys: &str) -> JobSpec {
    toroid_torus::job::parse(&format!(
        "kind = {kind:?}\nsteps = 4\n[model]\nseq = 192\nvocab = 256\n[batch]\nmicro_batch = 2\nmicro_batches = 1\n\
         [data]\npath = {file:?}\norder = \"sequential\"\nvalidation = 0.0\n{keys}"
    ))
    .expect("a valid job")
}

/// The samples that a job has of a file with these bytes.
fn sources(kind: &str, bytes: &[u8], keys: &str) -> Result<(Sources, JobSpec), DataError> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("data.tokens");
    std::fs::write(&file, bytes).expect("write the file");
    let spec = spec(kind, &file, keys);
    let tokens = prepare(&spec.data.all_sources()[0], dir.path(), &mut |_: u64| {})?;
    Ok((Sources::new(&spec, &[Arc::new(tokens)])?, spec))
}

#[test]
fn a_sample_is_a_dialogue_from_its_first_token() {
    let (sources, spec) = sources("sft", &dialogues(&[6, 193, 3]), "").expect("dialogues");
    let dataset = sources.dataset(0);
    assert_eq!((dataset.num_train(), dataset.num_validation()), (3, 0));
    let mut batch = Batch::new(&spec);
    batch.clear();
    dataset.train_sample(0, 0, &mut batch);
    dataset.train_sample(1, 1, &mut batch);
    assert_eq!(batch.texts, [0..5, 192..384]);
    assert_eq!(batch.inputs[..7], [0, 1, 2, 3, 4, 0, 0], "the last token is a target alone");
    // Token 3 is the first that is trained: it is the target of the row before it.
    assert_eq!(batch.targets[..6], [NOWHERE, NOWHERE, 3, 4, 5, NOWHERE]);
    assert_eq!((batch.num_trained(), dataset.num_trained(0), dataset.num_trained(1)), (3 + 97, 3, 97));
    assert_eq!(batch.num_tokens(), 5 + 192);
    // What was there before is gone.
    batch.clear();
    dataset.train_sample(2, 1, &mut batch);
    assert_eq!((batch.num_tokens(), batch.inputs[..192].iter().sum::<u32>()), (2, 0));
}

#[test]
fn a_row_that_is_too_long_and_data_of_another_kind_are_refused() {
    let error =
        |kind: &str, bytes: &[u8], keys: &str| sources(kind, bytes, keys).map(drop).expect_err("an error").to_string();
    let long = error("sft", &dialogues(&[6, 194]), "");
    assert!(
        long.contains("document 1 of ") && long.contains("has 194 tokens") && long.contains("at most 193"),
        "{long}"
    );
    let text = toroid_tokens::file_of(&[&[1, 2, 3]], 256, BYTES_TOKENIZER);
    let other = error("sft", &text, "");
    assert!(other.contains("trains on dialogues") && other.contains("has text"), "{other}");
    let other = error("reward", &dialogues(&[6]), "");
    assert!(other.contains("trains on preferences") && other.contains("has dialogues"), "{other}");
}

/// T-5: each dialogue is in one sample, where a tile begins, and where it was the last time.
#[test]
fn t5_packing_is_a_function_of_the_data_and_the_seed() {
    let lengths: Vec<usize> = (0..60).map(|n| 2 + n * 37 % 190).collect();
    let plan = || {
        let (sources, spec) = sources("sft", &dialogues(&lengths), "packing = true\n").expect("dialogues");
        let dataset = sources.dataset(0);
        let mut batch = Batch::new(&spec);
        let mut samples = Vec::new();
        let (mut tokens, mut trained) = (0, 0);
        for id in 0..dataset.num_train() {
            batch.clear();
            dataset.train_sample(id, 0, &mut batch);
            assert!(
                batch.texts.iter().all(|text| text.start % TEXT_ALIGN == 0 && text.end <= 192),
                "{:?}",
                batch.texts
            );
            assert!(batch.texts.windows(2).all(|pair| pair[0].end <= pair[1].start), "{:?}", batch.texts);
            assert_eq!(batch.num_trained(), dataset.num_trained(id));
            (tokens, trained) = (tokens + batch.num_tokens(), trained + batch.num_trained());
            samples.push((batch.inputs.clone(), batch.texts.clone()));
        }
        assert_eq!(tokens, lengths.iter().map(|len| *len as u64 - 1).sum::<u64>(), "each is there once");
        assert_eq!(trained, lengths.iter().map(|len| (len - (len / 2).max(1)) as u64).sum::<u64>());
        samples
    };
    let samples = plan();
    assert!(samples.len() < 50, "{} samples of 60 dialogues", samples.len());
    assert_eq!(samples, plan());
}

/// The shorter answer keeps its end: its score is read there, and not where the longer one ends.
#[test]
fn a_pair_is_two_texts() {
    let answer = |len: usize, first: u32| {
        let tokens: Vec<u32> = [1, 2].into_iter().chain(first..first + len as u32).collect();
        (tokens.clone(), (0..tokens.len()).map(|i| i >= 2).collect::<Vec<bool>>())
    };
    let (chosen, rejected) = (answer(3, 10), answer(7, 20));
    let [c, r]: [Document<'_>; 2] = [(&chosen.0[..], &chosen.1[..]), (&rejected.0[..], &rejected.1[..])];
    let pairs = [([c, r], 0.5), ([r, c], 0.0)];
    let (sources, spec) = sources("reward", &preferences_file_of(&pairs, 256, BYTES_TOKENIZER), "").expect("pairs");
    let mut batch = Batch::new(&spec);
    batch.clear();
    sources.dataset(0).train_sample(0, 0, &mut batch);
    sources.dataset(0).train_sample(1, 1, &mut batch);
    assert_eq!(batch.texts, [0..5, 192..201, 384..393, 576..581]);
    assert_eq!(batch.margins, [0.5, 0.0]);
    assert_eq!((batch.inputs[4], batch.inputs[5], batch.inputs[200]), (12, 0, 26));
}
