//! A connection that ends when no byte has moved for a while: slow is no fault, silent is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::client::TlsStream;

/// The reason of an [`io::Error`] of a connection that has been silent for too long.
#[derive(Debug, thiserror::Error)]
#[error("no byte has moved for {} s", .0.as_secs_f32())]
pub(super) struct Silence(pub Duration);

/// A connection to a store, with or without TLS.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What hyper speaks over.
pub(super) struct Watched {
    stream: Stream,
    silence: Duration,
    ends: Pin<Box<Sleep>>,
}

impl Watched {
    pub fn over(stream: Stream, silence: Duration) -> TokioIo<Watched> {
        TokioIo::new(Watched { stream, silence, ends: Box::pin(tokio::time::sleep(silence)) })
    }

    /// Something moved.
    fn moved(&mut self) {
        let ends = Instant::now() + self.silence;
        self.ends.as_mut().reset(ends);
    }

    /// Nothing moves now: an error where that has lasted too long, and a wake-up for when it will have.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        ready!(self.ends.as_mut().poll(context));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, Silence(self.silence)))
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let watched = self.get_mut();
        let before = buffer.filled().len();
        let read = match &mut watched.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        match read {
            Poll::Pending => watched.poll_silence(context).map(Err),
            Poll::Ready(result) => {
                if buffer.filled().len() > before {
                    watched.moved();
                }
                Poll::Ready(result)
            }
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, |stream, context| match stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(context, |stream, context| match stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
        })
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let watched = self.get_mut();
        let flushed = match &mut watched.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        };
        match flushed {
            Poll::Pending => watched.poll_silence(context).map(Err),
            ready => ready,
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl Watched {
    fn write(
        &mut self,
        context: &mut Context<'_>,
        poll: impl FnOnce(&mut Stream, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match poll(&mut self.stream, context) {
            Poll::Pending => self.poll_silence(context).map(Err),
            Poll::Ready(result) => {
                if matches!(result, Ok(num_bytes) if num_bytes > 0) {
                    self.moved();
                }
                Poll::Ready(result)
            }
        }
    }
}

impl Connection for Watched {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
