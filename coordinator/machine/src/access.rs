//! Who may come: tokens of users, and to whom a worker id belongs. Kept as records, decided by pure functions.
//!
//! Of a secret only its digest is kept. A token that has ended is forgotten a while later; who has which worker id is known as long as there is room
//! ([`MAX_BINDINGS`]), longest for those that are connected or have places.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toroid_proto::{self as proto, Role};
use toroid_torus::ids::WorkerId;

/// Tokens, at most, those that have ended included.
pub const MAX_TOKENS: usize = 10_000;
/// How long a token may be good.
pub const MAX_TOKEN_MS: i64 = 366 * DAY_MS;
/// Worker ids whose owners are known, at most.
pub const MAX_BINDINGS: usize = 1 << 18;
const DAY_MS: i64 = 24 * 3600 * 1000;
/// Tokens that have ended are listed for so long.
const LISTED_MS: i64 = 30 * DAY_MS;

/// Of a secret: BLAKE3, which is enough for one of 256 random bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    pub fn of(secret: &[u8]) -> Digest {
        Digest(*blake3::hash(secret).as_bytes())
    }
}

/// What shows that a call is somebody's who has no certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub id: String,
    /// Who it is for.
    pub name: String,
    #[serde(with = "role_name")]
    pub role: Role,
    pub digest: Digest,
    pub created_unix_ms: i64,
    pub expires_unix_ms: i64,
    pub revoked: bool,
}

impl Token {
    pub fn is_good(&self, unix_ms: i64) -> bool {
        !self.revoked && unix_ms < self.expires_unix_ms
    }
}

impl From<&Token> for proto::Token {
    fn from(token: &Token) -> proto::Token {
        proto::Token {
            id: token.id.clone(),
            name: token.name.clone(),
            role: token.role.name().into(),
            created_unix_ms: token.created_unix_ms,
            expires_unix_ms: token.expires_unix_ms,
            revoked: token.revoked,
        }
    }
}

mod role_name {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use toroid_proto::Role;

    pub fn serialize<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(role.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Role, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A token to be made. Its role is that of a user or a worker.
#[derive(Debug, Clone)]
pub struct NewToken {
    pub name: String,
    pub role: Role,
    pub digest: Digest,
    pub valid_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    #[error("there are {MAX_TOKENS} tokens, which is the most; those that have ended go 30 days later")]
    TooManyTokens,
    #[error("a token is good for 1 s to {} days; asked for were {asked_s} s", MAX_TOKEN_MS / DAY_MS)]
    Validity { asked_s: i64 },
    #[error("a token cannot have the role {0}; expected view, submit, operate, admin or worker")]
    Role(Role),
    #[error("there is no token `{0}`; `toroid token list` shows them")]
    UnknownToken(String),
    #[error("nobody has the worker id `{0}`; it is free")]
    UnknownBinding(WorkerId),
    #[error("a worker of the id `{0}` is connected; stop it first")]
    Connected(WorkerId),
}

/// All tokens, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens(BTreeMap<String, Token>);

impl Tokens {
    pub fn restore(tokens: impl IntoIterator<Item = Token>) -> Tokens {
        Tokens(tokens.into_iter().map(|token| (token.id.clone(), token)).collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Token> {
        self.0.values()
    }

    /// Adds a token; the ids of those that are not listed any longer come with it.
    pub fn create(&mut self, new: NewToken, unix_ms: i64) -> Result<(Token, Vec<String>), AccessError> {
        let NewToken { name, role, digest, valid_ms } = new;
        if !(1000..=MAX_TOKEN_MS).contains(&valid_ms) {
            return Err(AccessError::Validity { asked_s: valid_ms / 1000 });
        }
        if role == Role::Coordinator {
            return Err(AccessError::Role(role));
        }
        let is_old = |token: &Token| token.expires_unix_ms.saturating_add(LISTED_MS) < unix_ms;
        let old: Vec<String> = self.iter().filter(|token| is_old(token)).map(|token| token.id.clone()).collect();
        old.iter().for_each(|id| drop(self.0.remove(id)));
        if self.0.len() >= MAX_TOKENS {
            return Err(AccessError::TooManyTokens);
        }
        let hex: String = digest.0.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let expires_unix_ms = unix_ms.saturating_add(valid_ms);
        let token = Token {
            id: format!("t-{hex}"),
            name,
            role,
            digest,
            created_unix_ms: unix_ms,
            expires_unix_ms,
            revoked: false,
        };
        self.0.insert(token.id.clone(), token.clone());
        Ok((token, old))
    }

    pub fn revoke(&mut self, id: &str) -> Result<Token, AccessError> {
        let token = self.0.get_mut(id).ok_or_else(|| AccessError::UnknownToken(id.into()))?;
        token.revoked = true;
        Ok(token.clone())
    }
}

/// To whom a worker id belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    pub worker: WorkerId,
    pub owner: Owner,
    /// First registered.
    pub since_unix_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// Whoever has a certificate of that name.
    Certificate,
    /// Whoever knows the secret of this digest.
    Secret(Digest),
}

/// What registering an id comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is bound to whoever registers now: to be stored. Of those that have no room any more the id.
    New(Binding, Option<WorkerId>),
    /// It is theirs already.
    Known,
    /// It is somebody else's.
    Refused(&'static str),
}

/// All bindings, by worker id.
#[derive(Debug, Default)]
pub struct Bindings(BTreeMap<WorkerId, Binding>);

impl Bindings {
    pub fn restore(bindings: impl IntoIterator<Item = Binding>) -> Bindings {
        Bindings(bindings.into_iter().map(|binding| (binding.worker.clone(), binding)).collect())
    }

    /// Whether who registers may have the id. A certificate of the id's name is stronger than a secret: it takes an id over from one.
    /// `is_needed`: the worker of that id is connected, or has a place.
    pub fn claim(&mut self, register: &proto::Register, unix_ms: i64, is_needed: impl Fn(&WorkerId) -> bool) -> Claim {
        let worker = WorkerId::from(register.worker_id.as_str());
        let owner = match register.certified == register.worker_id {
            true => Owner::Certificate,
            false => Owner::Secret(Digest::of(&register.secret)),
        };
        match self.0.get(&worker).map(|binding| &binding.owner) {
            Some(bound) if *bound == owner => return Claim::Known,
            Some(Owner::Certificate) => return Claim::Refused("whoever has the certificate of that name"),
            Some(Owner::Secret(_)) if owner != Owner::Certificate => {
                return Claim::Refused("the worker that registered it first, which has another secret");
            }
            _ => {}
        }
        let binding = Binding { worker: worker.clone(), owner, since_unix_ms: unix_ms };
        let mut surplus = None;
        if self.0.len() >= MAX_BINDINGS && !self.0.contains_key(&worker) {
            let oldest = self.0.values().filter(|b| !is_needed(&b.worker)).min_by_key(|b| b.since_unix_ms);
            surplus = oldest.map(|binding| binding.worker.clone());
        }
        if let Some(surplus) = &surplus {
            self.0.remove(surplus);
        }
        self.0.insert(worker, binding.clone());
        Claim::New(binding, surplus)
    }

    pub fn forget(&mut self, worker: &str) -> Result<Binding, AccessError> {
        self.0.remove(worker).ok_or_else(|| AccessError::UnknownBinding(worker.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(id: &str, secret: u8, certified: &str) -> proto::Register {
        proto::Register {
            worker_id: id.into(),
            secret: vec![secret; 32],
            certified: certified.into(),
            ..proto::Register::default()
        }
    }

    #[test]
    fn an_id_belongs_to_the_first_secret_or_to_its_certificate() {
        let mut bindings = Bindings::default();
        let mut claim = |id: &str, secret, certified: &str| {
            let claim = bindings.claim(&register(id, secret, certified), 7, |_| false);
            match claim {
                Claim::New(binding, None) => format!("new {}", binding.worker),
                Claim::New(..) => "there is room".into(),
                Claim::Known => "known".into(),
                Claim::Refused(_) => "refused".into(),
            }
        };
        assert_eq!(claim("w1", 1, "pool"), "new w1");
        assert_eq!(claim("w1", 1, "pool"), "known");
        assert_eq!(claim("w1", 2, "pool"), "refused");
        assert_eq!(claim("w1", 2, "w2"), "refused", "the certificate of another");
        assert_eq!(claim("w1", 2, "w1"), "new w1", "its certificate is stronger");
        assert_eq!(claim("w1", 1, "pool"), "refused", "and stays so");
        assert_eq!(claim("w1", 9, "w1"), "known");
        assert!(bindings.forget("w9").is_err());
        bindings.forget("w1").unwrap();
        assert_eq!(
            bindings.claim(&register("w1", 3, ""), 8, |_| false),
            Claim::New(
                Binding { worker: "w1".into(), owner: Owner::Secret(Digest::of(&[3; 32])), since_unix_ms: 8 },
                None
            )
        );
    }

    #[test]
    fn tokens_end_are_revoked_and_forgotten() {
        let mut tokens = Tokens::default();
        let new = |n: u8, valid_ms, role| NewToken { name: "ci".into(), role, digest: Digest([n; 32]), valid_ms };
        let (token, old) = tokens.create(new(1, DAY_MS, Role::Submit), 1000).unwrap();
        assert!(old.is_empty() && token.is_good(1000) && token.is_good(DAY_MS) && !token.is_good(DAY_MS + 1000));
        assert_eq!(tokens.create(new(2, 999, Role::View), 0), Err(AccessError::Validity { asked_s: 0 }));
        assert!(tokens.create(new(2, MAX_TOKEN_MS + 1, Role::View), 0).is_err());
        assert_eq!(tokens.create(new(2, DAY_MS, Role::Coordinator), 0), Err(AccessError::Role(Role::Coordinator)));
        assert!(!tokens.revoke(&token.id).unwrap().is_good(1000));
        assert!(tokens.revoke("t-0").is_err_and(|e| e.to_string().contains("toroid token list")));
        let (_, old) = tokens.create(new(3, DAY_MS, Role::View), 32 * DAY_MS).unwrap();
        assert_eq!((old, tokens.iter().count()), (vec![token.id], 1));
    }
}
