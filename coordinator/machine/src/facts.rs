//! What workers say of the data and the model that they train, compared and told.

use toroid_proto as proto;

use super::record::DataFacts;

pub(crate) fn facts(prepared: &proto::Prepared) -> DataFacts {
    let digest = hex(&prepared.data_digest);
    let weights = prepared.weights.clone();
    DataFacts { digest, num_samples: prepared.num_samples, num_params: prepared.num_params, weights }
}

/// In what a place differs from the others, as in `data 07ab and not 08cd`; nothing: it is of their job. Weights that either has not read do not count.
pub(crate) fn differences(found: &DataFacts, known: &DataFacts) -> Vec<String> {
    let mut out = Vec::new();
    let mut differs = |what: &str, found: String, known: String| out.push(format!("{what} {found} and not {known}"));
    if (&found.digest, found.num_samples) != (&known.digest, known.num_samples) {
        let data = |facts: &DataFacts| format!("{} ({} samples)", short(&facts.digest), facts.num_samples);
        differs("data", data(found), data(known));
    }
    if found.num_params != known.num_params {
        differs("parameters", found.num_params.to_string(), known.num_params.to_string());
    }
    for (key, named) in &found.weights {
        if let Some(other) = known.weights.get(key).filter(|other| *other != named) {
            differs(key, short(named), short(other));
        }
    }
    out
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}

/// The beginning of a digest, enough to tell two from each other.
pub(crate) fn short(digest: &str) -> String {
    digest.chars().take(16).collect()
}
