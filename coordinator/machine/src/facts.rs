//! What workers say of the data and the model that they train, compared and told.

use toroid_proto as proto;

use super::record::DataFacts;

pub(crate) fn facts(prepared: &proto::Prepared) -> DataFacts {
    let digest = hex(&prepared.data_digest);
    DataFacts { digest, num_samples: prepared.num_samples, num_params: prepared.num_params }
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
    format!("data {digest} ({} samples) and {} parameters", facts.num_samples, facts.num_params)
}
