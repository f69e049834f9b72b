//! Has changes made that users ask for, each with its audit record.

use tonic::{Request, Response, Status};

use crate::audit::Audit;
use crate::caller::Caller;
use crate::handle::{Answer, Command};
use crate::lead::Leader;
use crate::machine::Reply;

/// Who asks, and for what.
pub(super) fn opened<M>(request: Request<M>) -> (Option<Caller>, M) {
    (request.extensions().get::<Caller>().cloned(), request.into_inner())
}

#[derive(Clone)]
pub(super) struct Orders {
    leader: Leader,
    pub audit: Audit,
}

impl Orders {
    pub fn new(leader: Leader, audit: Audit) -> Orders {
        Orders { leader, audit }
    }

    /// The driver answers each command with its own kind of reply, of which `taken` takes what counts, and gives back any other.
    pub async fn order<T: Send>(
        &self,
        command: impl FnOnce(Answer<Reply>) -> Command + Send,
        taken: impl FnOnce(Reply) -> Result<T, Reply> + Send,
    ) -> Result<T, Status> {
        let reply = self.leader.order(command).await?;
        taken(reply).map_err(|reply| Status::internal(format!("the coordinator answered something else: {reply:?}")))
    }

    /// The same with an audit record: `call` of `what`.
    pub async fn change<T: Send>(
        &self,
        caller: Option<Caller>,
        (call, what): (&str, &str),
        command: impl FnOnce(Answer<Reply>) -> Command + Send,
        taken: impl FnOnce(Reply) -> Result<T, Reply> + Send,
    ) -> Result<Response<T>, Status> {
        let change = async { self.order(command, taken).await.map(Response::new) };
        self.audit.change(caller.as_ref(), call, what, change).await
    }
}
