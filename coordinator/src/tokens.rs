//! The tokens that are known, for whoever lets calls in: published by the driver once they are stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::machine::access::{Digest, Token, Tokens};

/// Tokens by the digest of what their owners show.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenTable(Arc<BTreeMap<Digest, Token>>);

impl TokenTable {
    pub fn of(tokens: &Tokens) -> TokenTable {
        TokenTable(Arc::new(tokens.iter().map(|token| (token.digest, token.clone())).collect()))
    }

    pub fn get(&self, digest: &Digest) -> Option<&Token> {
        self.0.get(digest)
    }
}
