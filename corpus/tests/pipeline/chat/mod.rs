//! `toroid data chat`: which tokens are trained, which rows are refused, and that nothing else decides what is written.

mod rows;
mod whole;

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};
use toroid_corpus::chat::refusal::Refused;
use toroid_corpus::chat::report::Report;
use toroid_tokens::{Kind, TokenFile};

use crate::Place;
use crate::token_files::tokenizer_json;

/// Names and numbers of the added tokens of [`tokenizer`].
const START: u32 = 261;
const END: u32 = 262;
const BOS: u32 = 263;

/// Bytes and a few merges, with the tokens of ChatML.
fn tokenizer() -> Value {
    let mut json: Value = serde_json::from_str(&tokenizer_json()).expect("JSON");
    let added = [("<|im_start|>", true), ("<|im_end|>", true), ("<s>", true), ("<think>", false), ("</think>", false)];
    let token = |(n, (content, special)): (u32, (&str, bool))| {
        json!({"id": START + n, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special})
    };
    json["added_tokens"] = (0..).zip(added).map(token).collect();
    json
}

/// A folder of Hugging Face's with such a tokenizer in a place.
fn with_tokenizer(place: &Place, template: Option<&str>, settings: Value) {
    place.write("model/tokenizer.json", tokenizer().to_string());
    place.write("model/tokenizer_config.json", settings.to_string());
    if let Some(template) = template {
        place.write("model/chat_template.jinja", template);
    }
}

/// A document as a test looks at it.
#[derive(Debug, Clone, PartialEq)]
struct Document {
    tokens: Vec<u32>,
    trained: Vec<bool>,
}

impl Document {
    /// With what is trained in brackets, where tokens are bytes.
    fn bytes(&self) -> String {
        let (mut bytes, mut was) = (Vec::new(), false);
        for (token, trained) in self.tokens.iter().zip(&self.trained) {
            if *trained != was {
                bytes.push(if *trained { b'[' } else { b']' });
                was = *trained;
            }
            bytes.push(*token as u8);
        }
        if was {
            bytes.push(b']');
        }
        String::from_utf8(bytes).expect("UTF-8")
    }

    fn trained_tokens(&self) -> Vec<u32> {
        self.tokens.iter().zip(&self.trained).filter(|(_, trained)| **trained).map(|(token, _)| *token).collect()
    }
}

/// Documents of a split, with the margins of pairs.
fn documents(place: &Place, split: &str) -> (Vec<Document>, Vec<f32>) {
    let bytes = fs::read(place.path(&format!("out/{split}/00000.tokens"))).expect("a token file");
    let file = TokenFile::new(&bytes).expect("a token file");
    file.check().expect("whole");
    let document = |n: u64| {
        let (tokens, trained) = file.document(n).map(|at| (file.token(at), file.is_trained(at))).unzip();
        Document { tokens, trained }
    };
    assert_eq!(file.header.kind == Kind::Preferences, file.header.num_pairs() > 0);
    (
        (0..file.header.num_documents).map(document).collect(),
        (0..file.header.num_pairs()).map(|n| file.pair(n).margin).collect(),
    )
}

fn refused(place: &Place) -> Vec<Refused> {
    let text = fs::read_to_string(place.path("out/refused.jsonl")).expect("a list");
    text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
}

/// Runs the command on `rows.jsonl`, which must succeed.
fn chat(place: &Place, arguments: &[&str]) -> Report {
    let output = place.output(&[&["chat", "rows.jsonl", "--to", "out", "-o", "json"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Report = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(report.rows, report.used + report.num_refused() + report.unbalanced, "{report:?}");
    report
}

/// What a command that must fail says.
fn complaint(place: &Place, arguments: &[&str]) -> String {
    let output = place.output(&[&["chat", "rows.jsonl", "--to", "out"], arguments].concat());
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn turn(user: &str, assistant: &str) -> Vec<Value> {
    vec![json!({"role": "user", "content": user}), json!({"role": "assistant", "content": assistant})]
}

fn counts(report: &Report) -> BTreeMap<String, u64> {
    report.refused.iter().map(|(reason, num)| (reason.to_string(), *num)).collect()
}
