//! Each line of the log as text, for whoever keeps the last ones.

use std::io;
use std::sync::Arc;

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use crate::context::Context;

pub(crate) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(context: Arc<dyn Context>) -> impl Layer<S> {
    tracing_subscriber::fmt::layer().with_ansi(false).with_writer(Keeper(context))
}

struct Keeper(Arc<dyn Context>);

/// A line is one write.
struct Line<'a>(&'a dyn Context);

impl<'a> MakeWriter<'a> for Keeper {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&*self.0)
    }
}

impl io::Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.line(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
