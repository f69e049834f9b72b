//! `AdminService`: tokens, the audit record, worker ids. Each change is in that record.

use std::fmt::Write as _;

use tonic::{Request, Response, Status};
use toroid_proto::admin_service_server::AdminService;
use toroid_proto::{self as proto, Role};
use toroid_security::Name;

use super::orders::{Orders, opened};
use crate::audit::{Audit, MAX_RECORDS};
use crate::handle::{Command, Question};
use crate::lead::Leader;
use crate::machine::Reply;
use crate::machine::access::{Digest, NewToken};

/// Records where no number is asked for.
const DEFAULT_RECORDS: usize = 100;
/// How the secret of a token begins: it is found where it should not be.
const SECRET_PREFIX: &str = "toroid_";

pub(crate) struct Admin {
    leader: Leader,
    orders: Orders,
}

impl Admin {
    pub fn new(leader: Leader, audit: Audit) -> Admin {
        Admin { orders: Orders::new(leader.clone(), audit), leader }
    }
}

/// 256 random bits in hex.
fn new_secret() -> Result<String, Status> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|e| Status::unavailable(format!("drawing random bytes failed: {e}; try again")))?;
    let mut secret = SECRET_PREFIX.to_string();
    for byte in bytes {
        // Writing into a string does not fail.
        let _ = write!(secret, "{byte:02x}");
    }
    Ok(secret)
}

/// Made or revoked.
fn token_of(reply: Reply) -> Result<proto::Token, Reply> {
    match reply {
        Reply::Token(token) => Ok((&*token).into()),
        reply => Err(reply),
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn create_token(
        &self,
        request: Request<proto::CreateTokenRequest>,
    ) -> Result<Response<proto::CreateTokenResponse>, Status> {
        let (caller, proto::CreateTokenRequest { name, role, valid_s }) = opened(request);
        let name: Name = name.parse().map_err(Status::invalid_argument)?;
        let role: Role = role.parse().map_err(Status::invalid_argument)?;
        let valid_ms = i64::try_from(valid_s.saturating_mul(1000)).unwrap_or(i64::MAX);
        let what = format!("{name} {role}, for {valid_s} s");
        let change = async {
            let secret = new_secret()?;
            let new = NewToken { name: name.to_string(), role, digest: Digest::of(secret.as_bytes()), valid_ms };
            let token = self.orders.order(|answer| Command::CreateToken { new, answer }, token_of).await?;
            Ok(Response::new(proto::CreateTokenResponse { secret, token: Some(token) }))
        };
        self.orders.audit.change(caller.as_ref(), "CreateToken", &what, change).await
    }

    async fn list_tokens(
        &self,
        _: Request<proto::ListTokensRequest>,
    ) -> Result<Response<proto::ListTokensResponse>, Status> {
        let tokens = self.leader.ask(|answer| Question::Tokens { answer }).await?;
        Ok(Response::new(proto::ListTokensResponse { tokens: tokens.iter().map(proto::Token::from).collect() }))
    }

    async fn revoke_token(
        &self,
        request: Request<proto::RevokeTokenRequest>,
    ) -> Result<Response<proto::Token>, Status> {
        let (caller, proto::RevokeTokenRequest { id }) = opened(request);
        let what = id.clone();
        self.orders.change(caller, ("RevokeToken", &what), |answer| Command::RevokeToken { id, answer }, token_of).await
    }

    async fn get_audit(
        &self,
        request: Request<proto::GetAuditRequest>,
    ) -> Result<Response<proto::GetAuditResponse>, Status> {
        let limit = match request.into_inner().limit {
            0 => DEFAULT_RECORDS,
            limit => MAX_RECORDS.min(limit as usize),
        };
        Ok(Response::new(proto::GetAuditResponse { records: self.orders.audit.newest(limit).await? }))
    }

    async fn forget_worker(
        &self,
        request: Request<proto::ForgetWorkerRequest>,
    ) -> Result<Response<proto::ForgetWorkerResponse>, Status> {
        let (caller, proto::ForgetWorkerRequest { worker_id: worker }) = opened(request);
        let what = worker.clone();
        let taken = |reply| match reply {
            Reply::Forgotten { worker } => Ok(proto::ForgetWorkerResponse { worker_id: worker.to_string() }),
            reply => Err(reply),
        };
        self.orders
            .change(caller, ("ForgetWorker", &what), |answer| Command::ForgetWorker { worker, answer }, taken)
            .await
    }
}
