//! The tokens that are known, for whoever lets calls in: published by the driver once they are stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::machine::access::{Digest, Token, Tokens};

/// Tokens by the digest of what their owners show.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenTable {
    /// `None`: this coordinator does not lead, and knows no tokens.
    tokens: Option<Arc<BTreeMap<Digest, Token>>>,
}

impl TokenTable {
    pub fn of(tokens: &Tokens) -> TokenTable {
        let by_digest = tokens.iter().map(|token| (token.digest, token.clone())).collect();
        TokenTable { tokens: Some(Arc::new(by_digest)) }
    }

    pub fn get(&self, digest: &Digest) -> Option<&Token> {
        self.tokens.as_ref()?.get(digest)
    }

    pub fn is_known(&self) -> bool {
        self.tokens.is_some()
    }
}
