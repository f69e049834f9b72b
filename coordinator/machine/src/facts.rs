//! What workers say of the data and the model that they train, compared and told.

use toroid_proto as proto;

use super::record::DataFacts;

pub(crate) fn facts(prepared: &proto::Prepared) -> DataFacts {
    let digest = hex(&prepared.data_digest);
    let weights = prepared.weights.clone();
    DataFacts { digest, num_samples: prepared.num_samples, num_params: prepared.num_params, weights }
}

/// Whether both are of one job: weights that either has not read do not count.
pub(crate) fn agree(a: &DataFacts, b: &DataFacts) -> bool {
    let read_by_both = |(key, named): (&String, &String)| b.weights.get(key).is_none_or(|other| other == named);
    (&a.digest, a.num_samples, a.num_params) == (&b.digest, b.num_samples, b.num_params)
        && a.weights.iter().all(read_by_both)
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

pub(crate) fn in_words(facts: &DataFacts) -> String {
    let digest = short(&facts.digest);
    let weights: String = facts.weights.iter().map(|(key, named)| format!(", {key} {}", short(named))).collect();
    format!("data {digest} ({} samples) and {} parameters{weights}", facts.num_samples, facts.num_params)
}
