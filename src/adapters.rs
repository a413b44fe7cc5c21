//! Floor 6: the worker and its logs in the terms of other loops; each behind a feature of its own name.

#[cfg(feature = "calloop")]
pub mod calloop;
#[cfg(feature = "futures-io")]
mod futures_io;

#[cfg(feature = "futures-io")]
use std::io;
#[cfg(feature = "futures-io")]
use std::task::{Context, Poll};

#[cfg(feature = "futures-io")]
use crate::kernel::stream::LogStream;

/// What every asynchronous `BufRead` of a stream does: its errors are those of I/O, with the [`StreamError`](crate::StreamError) inside.
#[cfg(feature = "futures-io")]
fn poll_fill_buf<'a>(stream: &'a mut LogStream, cx: &mut Context<'_>) -> Poll<io::Result<&'a [u8]>> {
    stream.poll_fill_buf(cx).map_err(io::Error::other)
}

/// What every asynchronous `Read` of a stream does: `take` says how many of the bytes that it is shown it has taken; nothing is no end if it had no room.
#[cfg(feature = "futures-io")]
fn poll_read(stream: &mut LogStream, cx: &mut Context<'_>, take: impl FnOnce(&[u8]) -> usize) -> Poll<io::Result<usize>> {
    let taken = std::task::ready!(poll_fill_buf(stream, cx)).map(take);
    if let Ok(amount) = taken {
        stream.consume(amount);
    }
    Poll::Ready(taken)
}
