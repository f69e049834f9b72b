//! Tokens that are made and revoked, and worker ids that are given to whoever registers them first.

use toroid_proto as proto;

use super::Machine;
use crate::access::{AccessError, Claim, NewToken, Tokens};
use crate::api::{Reply, RequestId};
use crate::clock::Now;
use crate::record::Record;

impl Machine {
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub(crate) fn create_token(&mut self, request: RequestId, new: NewToken, now: Now) {
        let reply = self.tokens.create(new, now.unix_ms).map(|(token, old)| {
            self.out.records.push(Record::Token(Box::new(token.clone())));
            self.drop_records(old.iter().map(|id| Record::token_key(id)).collect());
            Reply::Token(Box::new(token))
        });
        self.out.reply(request, reply.map_err(Into::into));
    }

    pub(crate) fn revoke_token(&mut self, request: RequestId, id: &str) {
        let reply = self.tokens.revoke(id).map(|token| {
            self.out.records.push(Record::Token(Box::new(token.clone())));
            Reply::Token(Box::new(token))
        });
        self.out.reply(request, reply.map_err(Into::into));
    }

    /// The id is free for whoever registers it next.
    pub(crate) fn forget_worker(&mut self, request: RequestId, worker: &str) {
        let forgotten = match self.pool.get(worker) {
            Some(_) => Err(AccessError::Connected(worker.into())),
            None => self.bindings.forget(worker),
        };
        let reply = forgotten.map(|binding| {
            self.drop_records(vec![Record::binding_key(&binding.worker)]);
            Reply::Forgotten { worker: binding.worker }
        });
        self.out.reply(request, reply.map_err(Into::into));
    }

    /// Why who registers may not have the id, if so. Otherwise it is theirs from now on.
    pub(crate) fn bind(&mut self, register: &proto::Register, now: Now) -> Option<String> {
        let Machine { bindings, pool, jobs, .. } = self;
        let is_needed = |id: &toroid_torus::ids::WorkerId| {
            pool.get(id).is_some() || jobs.values().any(|j| j.record().rank_of(id).is_some())
        };
        match bindings.claim(register, now.unix_ms, is_needed) {
            Claim::Known => None,
            Claim::New(binding, surplus) => {
                self.out.records.push(Record::Binding(binding));
                self.drop_records(surplus.iter().map(Record::binding_key).collect());
                None
            }
            Claim::Refused(owner) => {
                let id = &register.worker_id;
                Some(format!(
                    "the worker id `{id}` belongs to {owner}; start it with the cache folder (--cache) or the certificate that it had, give it \
                     another id (--id), or have the id forgotten: `toroid workers --forget {id}`"
                ))
            }
        }
    }

    fn drop_records(&mut self, keys: Vec<String>) {
        self.out.removed.extend(keys);
    }
}
