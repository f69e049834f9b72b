//! Token files have the documents of the text, their boundaries and their tokenizer.

use std::collections::BTreeMap;

use toroid_tokens::{BYTES_TOKENIZER, TokenFile};

use crate::texts::{json, text};
use crate::{Place, files};

/// A byte-level BPE with a few merges, in the form of the library `tokenizers`.
pub fn tokenizer_json() -> String {
    // Bytes that cannot be printed have characters of their own, as in GPT-2.
    let is_printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut alphabet: Vec<char> = (0..256).filter(is_printable).filter_map(char::from_u32).collect();
    let others = 256 - alphabet.len() as u32;
    alphabet.extend((256..256 + others).filter_map(char::from_u32));
    let mut vocab: BTreeMap<String, u32> = alphabet.iter().zip(0..).map(|(c, id)| (c.to_string(), id)).collect();
    let merges = ["t h", "th e", "\u{120} the", "\u{120} o", "\u{120}o f"];
    vocab.extend(merges.iter().zip(256..).map(|(merge, id)| (merge.replace(' ', ""), id)));
    let bytes =
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let end = serde_json::json!({"id": 261, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    let model = serde_json::json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges});
    let all = serde_json::json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [end],
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes, "model": model});
    all.to_string()
}

const SOURCE: &str = "[[source]]\nname = \"a\"\npath = \"a.jsonl\"\n[output]\nshard_bytes = 20000\n";

/// Documents of all token files by their place, and the bytes of the files.
fn documents(place: &Place) -> Vec<(String, u64, Vec<u32>)> {
    let mut found = Vec::new();
    for (name, bytes) in files(&place.path("out/tokens")) {
        let file = TokenFile::new(&bytes).expect("a token file");
        file.check().expect("whole");
        for n in 0..file.header.num_documents {
            let range = file.document(n);
            found.push((format!("tokens/{name}"), range.start, range.map(|at| file.token(at)).collect()));
        }
    }
    found
}

#[test]
fn token_files_have_the_documents_of_the_text_with_their_boundaries() {
    let place = Place::empty();
    let texts: Vec<String> = (0..200).map(|n| text(n, 1 + n % 7) + "\n\n the \u{1f600} of\r\n").collect();
    place.write("a.jsonl", texts.iter().map(|text| json("", "", text)).collect::<String>());
    place.write("t.json", tokenizer_json());
    place.write("pipeline.toml", format!("{SOURCE}separator = \"\\u0001\"\n"));
    place.run(&[]);
    // Files end where they do: documents are compared whatever file they are in.
    let in_order: Vec<String> = files(&place.path("out/text"))
        .into_values()
        .flat_map(|file| String::from_utf8(file).expect("UTF-8").split('\u{1}').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert_eq!(in_order.len(), 200);

    place.write("pipeline.toml", format!("{SOURCE}format = \"tokens\"\n"));
    let report = place.run(&["--threads", "1"]);
    let found = documents(&place);
    let as_text = |(_, _, tokens): &(String, u64, Vec<u32>)| {
        String::from_utf8(tokens.iter().map(|token| *token as u8).collect()).expect("UTF-8")
    };
    assert_eq!(found.iter().map(as_text).collect::<Vec<_>>(), in_order);
    assert!(report.files.len() > 2, "{:?}", report.files);
    let num: u64 = report.files.iter().map(|file| file.encoded_tokens.expect("tokens")).sum();
    assert_eq!((num, report.tokens_out), (found.iter().map(|d| d.2.len() as u64).sum(), num));
    for (file, bytes) in report.files.iter().zip(files(&place.path("out/tokens")).into_values()) {
        assert_eq!(file.blake3, blake3::hash(&bytes).to_hex().to_string());
        assert_eq!(file.bytes, bytes.len() as u64);
        assert_eq!(TokenFile::new(&bytes).expect("a token file").header.tokenizer, BYTES_TOKENIZER);
    }

    place.write(
        "pipeline.toml",
        format!("{SOURCE}format = \"tokens\"\ntokenizer = \"t.json\"\nend_token = \"<|end|>\"\n"),
    );
    let report = place.run(&["--threads", "2", "--piece", "10K"]);
    let found = documents(&place);
    assert_eq!(found.len(), 200);
    for (file, at, tokens) in &found {
        assert_eq!(tokens.last(), Some(&261), "{file} at {at}");
        assert!(tokens.contains(&258), "` the` is one token");
    }
    let ask = |file: &str, more: &[&str]| {
        let output = place.output(&[&["tokens", file], more].concat());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said + &String::from_utf8_lossy(&output.stderr))
    };
    let first = "out/tokens/00000.tokens";
    for (n, expected) in in_order.iter().take(5).enumerate() {
        let (is_well, said) = ask(first, &["--document", &n.to_string(), "--tokenizer", "t.json"]);
        assert!(is_well && said == format!("{expected}<|end|>\n"), "{said}");
    }
    // Where the ledger says that a document is, it is.
    let kept = std::fs::read_to_string(place.path("out/ledger/kept.jsonl")).expect("kept");
    for (line, (file, at, _)) in kept.lines().zip(&found) {
        let row: serde_json::Value = serde_json::from_str(line).expect("a row");
        assert_eq!((row["file"].as_str(), row["position"].as_u64()), (Some(file.as_str()), Some(*at)));
    }
    assert!(ask(first, &[]).1.contains("tokens of 2 bytes, vocabulary 262"));
    assert!(ask(first, &["--document", "0"]).1.contains("was made with another tokenizer"));
    assert!(report.files[0].encoded_tokens < Some(report.files[0].tokens));
    let mut bytes = std::fs::read(place.path(first)).expect("read");
    bytes[300] ^= 1;
    place.write("changed", bytes);
    assert!(ask("changed", &[]).1.contains("changed is no whole token file: the digest of its tokens is another"));
}

#[test]
fn tokenizers_that_cannot_be_used_are_named() {
    let place = Place::empty();
    place.write("a.jsonl", json("", "", "text"));
    let complaint = |tokenizer: &str, more: &str| {
        place.write("t.json", tokenizer);
        place.write("pipeline.toml", format!("{SOURCE}format = \"tokens\"\ntokenizer = \"t.json\"\n{more}"));
        place.complaint(&[])
    };
    assert!(complaint("{}", "").contains("t.json: cannot be read as a tokenizer"));
    assert!(complaint(&tokenizer_json(), "end_token = \"</s>\"\n").contains("has no token `</s>`"));
    let random = tokenizer_json().replace("\"dropout\":null", "\"dropout\":0.1");
    assert!(complaint(&random, "").contains("makes other tokens each time"));
}
