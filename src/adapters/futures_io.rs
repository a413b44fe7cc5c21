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
/// It has no budget of its own: a log that is always ahead of its reader never has that wait, and a runtime of one thread does nothing else meanwhile, unless the task
/// yields now and then.
///
/// ```
/// use futures_lite::{AsyncBufReadExt, StreamExt, future};
/// use iron_exec::{Command, Worker};
///
/// let mut worker = Worker::new()?;
/// let handle = worker.handle();
/// let thread = std::thread::spawn(move || worker.run()); // it wakes the tasks
///
/// let seen = future::block_on(async {
///     let job = handle.start(Command::shell("echo one; echo two")).await?;
///     let mut lines = handle.stream(job).await?.lines();
///     let mut seen = Vec::new();
///     while let Some(line) = lines.next().await {
///         seen.push(line?);
///     }
///     handle.wait(job).await?;
///     handle.delete_log(job).await?;
///     Ok::<_, Box<dyn std::error::Error>>(seen)
/// })?;
/// assert_eq!(seen, ["one", "two"]);
/// drop(handle);
/// thread.join().unwrap()?;
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
