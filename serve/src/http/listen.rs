//! Connections, as many as are let in at a time, until the process is asked to end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::Served;

/// After an error of accepting, such as too many open files, until the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Between two looks at whether all is computed that was on its way at SIGTERM.
const IDLE_LOOK: Duration = Duration::from_millis(50);

/// What connections may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// At a time; more wait to be let in.
    pub connections: usize,
    /// A connection on which nothing moves for so long ends.
    pub idle: Duration,
    /// After SIGTERM or SIGINT, what is on its way may take so long.
    pub drain: Duration,
}

/// Serves until SIGTERM or SIGINT; then nothing new is taken, and what is on its way is answered. As long as that is computed, connections are let
/// in and requests told so: a balancer that has not heard yet asks another server. A second signal ends at once.
pub async fn serve(listener: TcpListener, router: Router, served: Arc<Served>, limits: Limits) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let (end, ends) = oneshot::channel::<()>();
    let listener = Bounded { listener, permits: Arc::new(Semaphore::new(limits.connections)), idle: limits.idle };
    let serving = axum::serve(listener, router).with_graceful_shutdown(async {
        // An error is that whoever would say so is gone.
        let _ = ends.await;
    });
    let mut serving = std::pin::pin!(serving.into_future());
    tokio::select! {
        result = &mut serving => return result.context("serve"),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    served.drain();
    toroid::output::note(format_args!(
        "ends: what is on its way is answered within {} s; a second signal ends at once",
        limits.drain.as_secs()
    ));
    let computed = async {
        while !served.is_idle() {
            sleep(IDLE_LOOK).await;
        }
        // No connection is let in any more, and those that are open are answered to their ends.
        let _ = end.send(());
    };
    let drained = async { tokio::join!(serving, computed).0 };
    tokio::select! {
        result = drained => result.context("serve"),
        () = sleep(limits.drain) => {
            toroid::output::note("ends with requests unanswered: the time for them is over");
            Ok(())
        }
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

/// Accepts no more connections than there are permits.
struct Bounded {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    idle: Duration,
}

impl axum::serve::Listener for Bounded {
    type Io = Held;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Held, SocketAddr) {
        loop {
            // It is never closed.
            let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    // A token is small and wanted at once; without it, it comes later.
                    let _ = stream.set_nodelay(true);
                    let deadline = Box::pin(sleep(self.idle));
                    return (Held { stream, deadline, idle: self.idle, _permit: permit }, address);
                }
                Err(error) => {
                    toroid::output::note(format_args!("cannot accept a connection: {error}"));
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with its permit, which ends when nothing moves on it.
pub struct Held {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    idle: Duration,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Something moves, or else the time is looked at.
    fn check<T>(&mut self, cx: &mut Context<'_>, moved: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if moved.is_ready() {
            let next = Instant::now() + self.idle;
            // Setting it anew is dear, and to a second it does not matter.
            if next > self.deadline.deadline() + Duration::from_secs(1) {
                self.deadline = Box::pin(sleep_until(next));
            }
            return moved;
        }
        match self.deadline.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut))),
        }
    }
}

impl AsyncRead for Held {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.check(cx, moved)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.check(cx, moved)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
