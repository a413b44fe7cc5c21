//! Blocking reading of a log on the loop's own thread.

use std::io::{self, BufRead, Read};

use super::Worker;
use crate::kernel::stream::LogStream;

/// A job's output as a blocking reader: see [`Worker::follow`].
#[derive(Debug)]
pub struct Follow<'a> {
    pub(super) worker: &'a mut Worker,
    pub(super) stream: LogStream,
}

impl Drop for Follow<'_> {
    fn drop(&mut self) {
        // The events that were kept are for the next turn. If this fails, so does that, which says so.
        let _ = self.worker.reactor.announce_reports();
    }
}

impl BufRead for Follow<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        loop {
            match self.stream.try_fill_buf() {
                std::task::Poll::Pending => self.worker.turn_reactor(None).map_err(io::Error::other)?,
                std::task::Poll::Ready(Err(error)) => return Err(io::Error::other(error)),
                std::task::Poll::Ready(Ok(_)) => break,
            }
        }
        Ok(self.stream.shown())
    }

    fn consume(&mut self, amount: usize) {
        self.stream.consume(amount);
    }
}

impl Read for Follow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_shown(self, buffer)
    }
}

/// `Read::read` by way of `BufRead`.
pub(crate) fn read_shown(reader: &mut impl BufRead, buffer: &mut [u8]) -> io::Result<usize> {
    if buffer.is_empty() {
        return Ok(0);
    }
    let count = reader.fill_buf()?.read(buffer)?;
    reader.consume(count);
    Ok(count)
}
