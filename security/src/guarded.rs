//! A connection that ends when there is a reason to: its peer's certificate has ended or was revoked, or nobody made a call in time.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Resolves with the reason.
pub(crate) type Ends = Pin<Box<dyn Future<Output = &'static str> + Send>>;

/// `io` until `ends` resolves; then reading and writing fail with that reason.
pub struct Guarded<T> {
    io: T,
    ends: Option<Ends>,
    reason: &'static str,
}

impl<T> Guarded<T> {
    pub(crate) fn new(io: T, ends: Ends) -> Guarded<T> {
        Guarded { io, ends: Some(ends), reason: "" }
    }

    pub fn get_ref(&self) -> &T {
        &self.io
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(ends) = &mut self.ends {
            match ends.as_mut().poll(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(reason) => {
                    self.ends = None;
                    self.reason = reason;
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, self.reason))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Returns at `moment` of the wall clock, also where somebody sets that clock meanwhile: within a minute.
pub async fn until(moment: SystemTime) {
    const MAX_SLEEP: Duration = Duration::from_secs(60);
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(MAX_SLEEP)).await;
    }
}
