//! Logs as the `AsyncRead` and `AsyncBufRead` of the futures crates, in any runtime or none.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_io::{AsyncBufRead, AsyncRead};

use crate::kernel::stream::LogStream;

/// With the feature `futures-io`, for any runtime or none. Whoever turns the worker wakes the task.
///
/// Errors are of the kind `Other`, with a [`StreamError`](crate::StreamError) inside. After one that is [passable](crate::StreamError::is_passable) the next read
/// goes on behind it: what collects bytes until the end (`read_to_end`) is called again, with the same buffer.
///
/// ```
/// use futures_lite::{AsyncBufReadExt, StreamExt, future};
/// use iron_exec::{Command, Events, Worker};
///
/// let mut worker = Worker::new()?;
/// let job = worker.start(Command::shell("echo one; echo two"))?;
/// let mut lines = worker.stream(job)?.lines();
/// let read = async {
///     let mut seen = Vec::new();
///     while let Some(line) = lines.next().await {
///         seen.push(line?);
///     }
///     Ok::<_, std::io::Error>(seen)
/// };
/// // Any executor does; this one turns the loop whenever the task has nothing to do.
/// let mut read = std::pin::pin!(read);
/// let mut events = Events::new();
/// let seen = loop {
///     match future::block_on(future::poll_once(&mut read)) {
///         Some(seen) => break seen?,
///         None => worker.turn(&mut events, None)?,
///     }
/// };
/// assert_eq!(seen, ["one", "two"]);
/// # worker.wait(job)?;
/// # worker.delete_log(job)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl AsyncBufRead for LogStream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        LogStream::poll_fill_buf(self.get_mut(), cx).map_err(io::Error::other)
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        LogStream::consume(self.get_mut(), amount);
    }
}

/// As [`AsyncBufRead`], by copying. One read gives at most what one `poll_fill_buf` shows: in the CRI format, one record.
impl AsyncRead for LogStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let shown = ready!(AsyncBufRead::poll_fill_buf(self.as_mut(), cx))?;
        let amount = shown.len().min(buffer.len());
        buffer[..amount].copy_from_slice(&shown[..amount]);
        AsyncBufRead::consume(self, amount);
        Poll::Ready(Ok(amount))
    }
}
