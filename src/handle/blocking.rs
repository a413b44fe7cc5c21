//! Blocking reading of a log in a thread of its own.

use std::io::{self, BufRead, Read};

use crate::handle::Handle;
use crate::kernel::stream::LogStream;
use crate::model::error::HandleError;
use crate::worker::read_shown;

/// A job's output as a blocking reader, for a thread other than the worker's: see [`Handle::follow`].
///
/// A read fails where something in the log is to be told ([`StreamError::is_passable`](crate::StreamError::is_passable)); the next one goes on behind it. On the worker's
/// own thread a read that would have to wait fails ([`HandleError::OwnThread`]). When the worker is dropped the log ends.
#[derive(Debug)]
pub struct BlockingLogStream {
    stream: LogStream,
    handle: Handle,
}

impl BlockingLogStream {
    pub(super) fn new(stream: LogStream, handle: Handle) -> Self {
        Self { stream, handle }
    }

    /// The stream itself, for reading that does not block.
    pub fn into_inner(self) -> LogStream {
        self.stream
    }
}

impl BufRead for BlockingLogStream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let stream = &mut self.stream;
        let mut filled = std::future::poll_fn(|cx| stream.poll_fill_buf(cx).map(|filled| filled.map(drop)));
        match self.handle.shared().wait_for(&mut filled, None) {
            Ok(Some(Ok(()))) => Ok(self.stream.shown()),
            Ok(Some(Err(error))) => Err(io::Error::other(error)),
            Ok(None) => Err(io::Error::other(HandleError::Gone)),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn consume(&mut self, amount: usize) {
        self.stream.consume(amount);
    }
}

impl Read for BlockingLogStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_shown(self, buffer)
    }
}
