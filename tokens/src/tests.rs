//! Files of each kind: what comes back, what is refused, and bytes that no writer makes.

use super::*;

fn file(documents: &[&[u32]], vocabulary: u32) -> Vec<u8> {
    file_of(documents, vocabulary, [7; 32])
}

fn is_whole(bytes: &[u8]) -> Result<(), TokensError> {
    TokenFile::new(bytes).and_then(|file| file.check())
}

/// Of 13 tokens of two bytes.
fn dialogues() -> Vec<u8> {
    let [first, second] = [[false, true, true, false, true], [false; 5]];
    let mut second = [&second[..], &[true, true, true]].concat();
    second[2] = true;
    dialogues_file_of(&[(&[1, 2, 3, 300, 4], &first), (&[9, 8, 7, 6, 5, 4, 3, 2], &second)], 400, [7; 32])
}

const ANSWERED: [bool; 4] = [false, false, true, true];

fn preferences() -> Vec<u8> {
    let pair = |chosen: &'static [u32; 4], rejected: &'static [u32; 3], margin| {
        ([(&chosen[..], &ANSWERED[..]), (&rejected[..], &ANSWERED[..3])], margin)
    };
    let pairs = [pair(&[1, 2, 3, 4], &[1, 2, 4], 0.5), pair(&[5, 6, 7, 8], &[5, 6, 7], -1.0)];
    preferences_file_of(&pairs, 256, BYTES_TOKENIZER)
}

#[test]
fn documents_come_back_whatever_the_width() {
    for vocabulary in [256, 257, 65_536, 65_537, u32::MAX] {
        let documents: [&[u32]; 5] = [&[], &[1, 2, vocabulary - 1], &[], &[0], &[]];
        let bytes = file(&documents, vocabulary);
        let found = TokenFile::new(&bytes).expect("a token file");
        found.check().expect("whole");
        assert_eq!(found.header.num_documents, 5);
        for (n, expected) in documents.iter().enumerate() {
            let at = found.document(n as u64);
            let tokens: Vec<u32> = at.clone().map(|at| found.token(at)).collect();
            assert_eq!(tokens, *expected, "document {n} of {vocabulary}");
            let mut tokens = vec![7; expected.len()];
            read_tokens(found.bytes(), found.header.width, at.start, &mut tokens);
            assert_eq!(tokens, *expected, "document {n} of {vocabulary}, read at once");
        }
        assert_eq!([0, 2, 3].map(|token| found.document_of(token)), [1, 1, 3]);
    }
    let empty = file(&[], 256);
    TokenFile::new(&empty).and_then(|file| file.check()).expect("an empty file");
}

#[test]
fn each_changed_byte_and_each_cut_is_seen() {
    for bytes in [file(&[&[1, 2, 3], &[300, 4]], 400), dialogues(), preferences()] {
        is_whole(&bytes).expect("whole");
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(is_whole(&changed).is_err(), "byte {at}");
            assert!(is_whole(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}

#[test]
fn what_no_writer_makes_is_named() {
    let check = |change: &dyn Fn(&mut Header), expected: TokensError| {
        let bytes = file(&[&[1, 2, 3], &[300, 4]], 400);
        let mut header = Header::parse(&bytes).expect("a header");
        change(&mut header);
        let bytes = [&header.to_bytes()[..], &bytes[HEADER_BYTES..]].concat();
        assert_eq!(TokenFile::new(&bytes).and_then(|file| file.check()), Err(expected));
    };
    check(&|header| header.width = 3, TokensError::Width { found: 3 });
    check(&|header| header.vocabulary = 70_000, TokensError::Vocabulary { vocabulary: 70_000, width: 2 });
    check(&|header| header.vocabulary = 0, TokensError::Vocabulary { vocabulary: 0, width: 2 });
    check(&|header| header.vocabulary = 300, TokensError::Token { at: 3, token: 300, vocabulary: 300 });
    check(&|header| header.num_tokens = u64::MAX, TokensError::Length { found: 200, expected: u64::MAX });
    check(&|header| header.num_tokens = 8, TokensError::TokensDigest);
    let mut bytes = file(&[&[1, 2], &[3]], 256);
    let len = bytes.len();
    bytes[len - 16] = 9;
    let mut header = Header::parse(&bytes).expect("a header");
    header.ends_digest = *blake3::hash(&bytes[len - 16..]).as_bytes();
    bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
    let expected = TokensError::Ends { document: 0, end: 9, before: 0, tokens: 3 };
    assert_eq!(TokenFile::new(&bytes).and_then(|file| file.check()), Err(expected));
    assert_eq!(TokenFile::new(b"no").map(drop), Err(TokensError::Short { found: 2, expected: HEADER_BYTES }));
}

#[test]
fn dialogues_and_pairs_come_back() {
    let bytes = dialogues();
    let found = TokenFile::new(&bytes).expect("a token file");
    assert_eq!((found.header.kind, found.header.num_pairs(), bytes.len()), (Kind::Dialogues, 0, 232 + 32 + 16 + 8));
    let at = found.document(1);
    let (mut tokens, mut trained) = (vec![0; 8], vec![false; 8]);
    read_tokens(found.bytes(), found.header.width, at.start, &mut tokens);
    read_trained(found.trained_bytes(), at.start, &mut trained);
    assert_eq!(tokens, [9, 8, 7, 6, 5, 4, 3, 2]);
    assert_eq!(trained, [false, false, true, false, false, true, true, true]);
    assert_eq!((found.first_trained(at.clone()), found.is_trained(at.start)), (Some(7), false));
    let bytes = preferences();
    let found = TokenFile::new(&bytes).expect("a token file");
    assert_eq!((found.header.kind, found.header.num_pairs()), (Kind::Preferences, 2));
    assert_eq!(found.pair(1), Pair { chosen: 7..11, rejected: 11..14, margin: -1.0 });
    for empty in [dialogues_file_of(&[], 256, [0; 32]), preferences_file_of(&[], 256, [0; 32])] {
        is_whole(&empty).expect("an empty file");
    }
    let wrong = found.header.expect(Kind::Text).expect_err("another kind").to_string();
    assert_eq!(wrong, "it has preferences, and text is wanted here; preferences are for reward models");
}

#[test]
fn bits_are_the_same_taken_out_on_the_way_or_at_the_end() {
    for num in [0, 1, 7, 8, 9, 63, 64, 65, 200] {
        let (mut whole, mut taken, mut written) = (Trained::default(), Trained::default(), Vec::new());
        for n in 0..num {
            whole.push(n % 3 == 0);
            taken.push(n % 3 == 0);
            if n % 5 == 0 {
                written.extend(taken.take_whole());
            }
        }
        let rest = taken.finish(written.len() as u64);
        written.extend(rest);
        assert_eq!((whole.finish(0), written.len() % 8), (written.clone(), 0), "{num} bits");
        let bits: Vec<bool> = (0..num).map(|n| n % 3 == 0).collect();
        let mut found = vec![false; num];
        read_trained(&written, 0, &mut found);
        assert_eq!(found, bits);
    }
}

#[test]
fn rows_that_cannot_be_trained_on_are_named() {
    let check = |bytes: Vec<u8>, expected: TokensError| assert_eq!(is_whole(&bytes), Err(expected));
    let dialogue = |trained: &[bool]| dialogues_file_of(&[(&[1, 2], &[false, true]), (&[3, 4], trained)], 256, [0; 32]);
    check(dialogue(&[false, false]), TokensError::Untrained { document: 1 });
    check(dialogue(&[true, false]), TokensError::FirstTrained { document: 1 });
    check(dialogues_file_of(&[(&[], &[])], 256, [0; 32]), TokensError::Untrained { document: 0 });
    let pair = |rejected: &[u32], margin: f32| {
        let trained = vec![false, false, true, true];
        preferences_file_of(&[([(&[1, 2, 3, 4], &ANSWERED), (rejected, &trained)], margin)], 256, [0; 32])
    };
    is_whole(&pair(&[1, 2, 3, 5], 0.0)).expect("a pair");
    check(pair(&[1, 9, 3, 5], 0.0), TokensError::Prompts { pair: 0 });
    check(pair(&[1, 2, 3, 4], 0.0), TokensError::SameAnswers { pair: 0 });
    check(pair(&[1, 2, 3, 5], f32::NAN), TokensError::Margin { pair: 0, margin: "NaN".into() });
    let mut odd = preferences();
    let header = Header { num_documents: 3, ..Header::parse(&odd).expect("a header") };
    odd[..HEADER_BYTES_MAX].copy_from_slice(&header.to_bytes());
    check(odd, TokensError::Odd { documents: 3 });
    let mut unknown = dialogues();
    unknown[36] = 3;
    sign(&mut unknown);
    check(unknown, TokensError::UnknownKind { found: 3 });
}

/// Makes the digest of the header that of what it says.
fn sign(bytes: &mut [u8]) {
    let digest = blake3::hash(&bytes[..HEADER_BYTES_MAX - 32]);
    bytes[HEADER_BYTES_MAX - 32..HEADER_BYTES_MAX].copy_from_slice(digest.as_bytes());
}

/// All digests right, whatever the bytes are: what is behind them is looked at.
fn sign_all(bytes: &mut [u8]) {
    let Ok(file) = TokenFile::new(bytes) else { return };
    let width = u64::from(file.header.width);
    let tokens = HEADER_BYTES_MAX..HEADER_BYTES_MAX + (file.header.num_tokens * width) as usize;
    let ends = tokens.end + file.header.padding() as usize;
    let trained = ends + 8 * file.header.num_documents as usize;
    let margins = trained + file.header.trained_bytes() as usize;
    let parts = [(72, tokens), (104, ends..trained), (136, trained..margins), (168, margins..bytes.len())];
    for (at, part) in parts {
        let digest = blake3::hash(&bytes[part]);
        bytes[at..at + 32].copy_from_slice(digest.as_bytes());
    }
    sign(bytes);
}

/// A number that follows from another one (splitmix64).
fn mix(n: u64) -> u64 {
    let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

#[test]
fn changed_files_with_right_digests_are_refused_or_can_be_read_whole() {
    let (mut num_whole, mut num_refused) = (0, 0);
    for seed in 0..20_000 {
        let mut bytes = if seed % 2 == 0 { dialogues() } else { preferences() };
        let mut at = mix(seed);
        for _ in 0..1 + at % 3 {
            at = mix(at);
            let place = (at % bytes.len() as u64) as usize;
            bytes[place] = (at >> 32) as u8;
        }
        sign(&mut bytes);
        sign_all(&mut bytes);
        let Ok(file) = TokenFile::new(&bytes).and_then(|file| file.check().map(|()| file)) else {
            num_refused += 1;
            continue;
        };
        num_whole += 1;
        for n in 0..file.header.num_documents {
            let tokens = file.document(n);
            let first = file.first_trained(tokens.clone()).expect("a trained token");
            assert!(first > tokens.start && file.document_of(first) == n, "seed {seed}");
            assert!(tokens.clone().all(|at| file.token(at) < file.header.vocabulary), "seed {seed}");
        }
        assert!((0..file.header.num_pairs()).all(|n| file.pair(n).margin.is_finite()), "seed {seed}");
    }
    assert!(num_whole > 1000 && num_refused > 1000, "{num_whole} whole, {num_refused} refused");
}
