//! Reading a log while it grows: in this process, told by the loop, or a file of another one.

pub(crate) mod progress;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use crate::kernel::stream::progress::LogProgress;
use crate::logic::cri::{Decoded, Decoder};
use crate::model::error::StreamError;
use crate::model::output::{LogFormat, OutputStream, Record, StreamSelect, Timestamp};

/// Bytes asked of the file in one read.
const READ_BYTES: usize = 64 << 10;

/// A record longer than this is no record of ours: the file was changed.
const RECORD_BYTES_MAX: usize = 16 << 20;

/// Where a stream learns that there is more, or that there will be no more.
#[derive(Debug)]
enum Source {
    /// The loop of this process writes the log.
    Live { progress: Arc<LogProgress>, id: u64 },
    /// Another process writes it, or nobody any more.
    File { ended: bool },
}

/// A reader of one log: yields the job's exact bytes, never waits, never slows the job down.
///
/// It owns its place and its file descriptor, is `Send`, and goes on after the worker is gone (the log has ended then). Dropping it ends it.
/// It is not `Read`: with "not yet" as an error, `lines()` and its like would lose bytes. For blocking reading see
/// [`Worker::follow`](crate::Worker::follow).
#[derive(Debug)]
pub struct LogStream {
    file: OwnedFd,
    path: PathBuf,
    source: Source,
    format: LogFormat,
    select: StreamSelect,
    /// The one stream that a raw log holds; `None` if it holds two.
    raw_stream: Option<OutputStream>,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// What of the buffer is not looked at yet.
    unread: std::ops::Range<usize>,
    /// What of the buffer the caller is being shown.
    shown: std::ops::Range<usize>,
    /// The stream and time of what is shown, in a log that has them.
    shown_meta: Option<(OutputStream, Timestamp)>,
    /// Where in the file the next read begins.
    offset: u64,
}

/// What stands at the beginning of the unread bytes.
enum Step {
    Show(usize, std::ops::Range<usize>, Option<(OutputStream, Timestamp)>),
    Skip(usize),
    Malformed(usize),
    Refill,
}

impl LogStream {
    pub(crate) fn live(
        file: OwnedFd,
        path: PathBuf,
        progress: Arc<LogProgress>,
        format: LogFormat,
        select: StreamSelect,
        raw_stream: Option<OutputStream>,
    ) -> Result<Self, StreamError> {
        let id = progress.next_id.fetch_add(1, Ordering::Relaxed);
        Self::new(file, path, Source::Live { progress, id }, format, select, raw_stream)
    }

    pub(crate) fn file(file: OwnedFd, path: PathBuf, format: LogFormat, select: StreamSelect) -> Result<Self, StreamError> {
        Self::new(file, path, Source::File { ended: false }, format, select, None)
    }

    fn new(
        file: OwnedFd,
        path: PathBuf,
        source: Source,
        format: LogFormat,
        select: StreamSelect,
        raw_stream: Option<OutputStream>,
    ) -> Result<Self, StreamError> {
        if let (LogFormat::Raw, StreamSelect::Only(stream), None) = (format, select, raw_stream) {
            return Err(StreamError::NotSeparable { stream });
        }
        let decoder = Decoder::new();
        Ok(Self {
            file,
            path,
            source,
            format,
            select,
            raw_stream,
            decoder,
            buffer: Vec::new(),
            unread: 0..0,
            shown: 0..0,
            shown_meta: None,
            offset: 0,
        })
    }

    /// The log file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next bytes of the job's output: at least one, nothing at the end of the log, `Pending` if more may come. Call
    /// [`consume`](Self::consume) with what was used of them.
    ///
    /// After `Pending`, the worker's [`Event::LogReady`](crate::Event::LogReady) tells when to ask again.
    ///
    /// # Errors
    /// If the file cannot be read, or holds something that is no log; reading goes on behind it.
    pub fn try_fill_buf(&mut self) -> Poll<Result<&[u8], StreamError>> {
        self.fill(None)
    }

    /// As [`try_fill_buf`](Self::try_fill_buf), and on `Pending` the task is woken when it is worth asking again.
    ///
    /// # Errors
    /// As `try_fill_buf`.
    pub fn poll_fill_buf(&mut self, cx: &mut Context<'_>) -> Poll<Result<&[u8], StreamError>> {
        self.fill(Some(cx))
    }

    /// Marks `amount` of the bytes shown last as used; more than were shown counts as all of them.
    pub fn consume(&mut self, amount: usize) {
        self.shown.start = self.shown.start.saturating_add(amount).min(self.shown.end);
    }

    /// The next record of the log, `None` at its end, `Pending` if more may come. Skips what is left of bytes shown before. In a raw log a record
    /// is whatever one read gave.
    ///
    /// # Errors
    /// As [`try_fill_buf`](Self::try_fill_buf).
    pub fn try_next_record(&mut self) -> Poll<Result<Option<Record<'_>>, StreamError>> {
        self.next_record(None)
    }

    /// As [`try_next_record`](Self::try_next_record), and on `Pending` the task is woken when it is worth asking again.
    ///
    /// # Errors
    /// As [`try_fill_buf`](Self::try_fill_buf).
    pub fn poll_next_record(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Record<'_>>, StreamError>> {
        self.next_record(Some(cx))
    }

    /// What was shown and not consumed; empty before anything was asked for, and at the end.
    pub(crate) fn shown(&self) -> &[u8] {
        self.bytes(self.shown.clone())
    }

    /// The file, for a follower that watches it.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.file
    }

    /// The file was found sealed or given up by its writer: what is in it now is all.
    pub(crate) fn set_ended(&mut self) {
        if let Source::File { ended } = &mut self.source {
            *ended = true;
        }
    }

    fn fill(&mut self, cx: Option<&mut Context<'_>>) -> Poll<Result<&[u8], StreamError>> {
        if self.shown.is_empty() {
            match self.advance(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
        }
        Poll::Ready(Ok(self.shown()))
    }

    fn next_record(&mut self, cx: Option<&mut Context<'_>>) -> Poll<Result<Option<Record<'_>>, StreamError>> {
        match self.advance(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => Poll::Ready(Ok(self.take_shown_record())),
        }
    }

    /// What is shown, as a record; `None` if nothing is, which is the end: `advance` never shows an empty record.
    pub(crate) fn take_shown_record(&mut self) -> Option<Record<'_>> {
        let shown = std::mem::take(&mut self.shown);
        let (stream, time) = self.shown_meta.map_or((self.raw_stream, None), |(stream, time)| (Some(stream), Some(time)));
        let bytes = self.bytes(shown);
        (!bytes.is_empty()).then_some(Record { time, stream, bytes })
    }

    fn bytes(&self, range: std::ops::Range<usize>) -> &[u8] {
        self.buffer.get(range).unwrap_or_default()
    }

    /// Moves on until there is something to show (or the end: `shown` stays empty).
    fn advance(&mut self, mut cx: Option<&mut Context<'_>>) -> Poll<Result<(), StreamError>> {
        self.shown = 0..0;
        loop {
            match self.step() {
                Step::Show(length, shown, meta) => {
                    self.unread.start += length;
                    (self.shown, self.shown_meta) = (shown, meta);
                    return Poll::Ready(Ok(()));
                }
                Step::Skip(length) => self.unread.start += length,
                Step::Malformed(length) => {
                    let offset = self.offset - self.unread.len() as u64;
                    self.unread.start += length;
                    return Poll::Ready(Err(StreamError::Malformed { path: self.path.clone(), offset }));
                }
                Step::Refill => match self.refill(cx.as_deref_mut()) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(source)) => return Poll::Ready(Err(StreamError::Io { path: self.path.clone(), source })),
                    Poll::Ready(Ok(true)) => {}
                    // The end. A torn record before it was never a record.
                    Poll::Ready(Ok(false)) => {
                        self.unread = 0..0;
                        self.buffer = Vec::new();
                        return Poll::Ready(Ok(()));
                    }
                },
            }
        }
    }

    fn step(&mut self) -> Step {
        let start = self.unread.start;
        let unread = self.buffer.get(self.unread.clone()).unwrap_or_default();
        if unread.is_empty() {
            return Step::Refill;
        }
        if self.format == LogFormat::Raw {
            if !self.raw_stream.is_none_or(|stream| self.select.includes(stream)) {
                return Step::Skip(unread.len());
            }
            return Step::Show(unread.len(), self.unread.clone(), None);
        }
        match self.decoder.decode(unread) {
            Decoded::Record { time, stream, partial, content, len } => {
                // The line feed that ends a full record in the file is the very one that ended the job's line.
                let shown = content.len() + usize::from(!partial);
                if shown == 0 || !self.select.includes(stream) {
                    return Step::Skip(len);
                }
                let content = start + len - 1 - content.len();
                Step::Show(len, content..content + shown, Some((stream, time)))
            }
            Decoded::Dropped { len, .. } => Step::Skip(len),
            Decoded::Malformed { len } => Step::Malformed(len),
            Decoded::Incomplete if unread.len() > RECORD_BYTES_MAX => Step::Malformed(unread.len()),
            Decoded::Incomplete => Step::Refill,
        }
    }

    /// Reads more of the file behind the unread bytes. `false` at the end.
    fn refill(&mut self, cx: Option<&mut Context<'_>>) -> Poll<io::Result<bool>> {
        let available = match &self.source {
            Source::Live { progress, id } => {
                // Once it has ended its length is final: look in this order.
                let look = || (progress.ended.load(Ordering::SeqCst), progress.length.load(Ordering::SeqCst));
                let (mut ended, mut length) = look();
                if !ended && length <= self.offset {
                    if let Some(cx) = cx {
                        progress.enlist(*id, cx.waker());
                    }
                    progress.awaited.store(true, Ordering::SeqCst);
                    // The loop may have written between the look and the word that we wait.
                    (ended, length) = look();
                    if !ended && length <= self.offset {
                        return Poll::Pending;
                    }
                }
                // At the end the file is the measure: somebody else may have added to it.
                if ended { u64::MAX } else { length.saturating_sub(self.offset) }
            }
            Source::File { .. } => u64::MAX,
        };
        // As much again as a long record has so far: it is gone through a few times, not once for every read.
        let wanted = READ_BYTES.max(self.unread.len());
        let read = self.read(usize::try_from(available).unwrap_or(usize::MAX).min(wanted));
        match (read, &self.source) {
            (Ok(0), Source::File { ended: false }) => Poll::Pending,
            (read, _) => Poll::Ready(read.map(|count| count > 0)),
        }
    }

    /// Reads up to `wanted` bytes behind the unread ones, which move to the front of the buffer.
    fn read(&mut self, wanted: usize) -> io::Result<usize> {
        self.buffer.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        self.buffer.resize(self.unread.len() + wanted, 0);
        let space = self.buffer.get_mut(self.unread.end..).unwrap_or_default();
        let count = rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut *space, self.offset))?;
        self.unread.end += count;
        self.offset += count as u64;
        if self.unread.is_empty() {
            // Nothing came: a reader that waits holds no buffer.
            self.buffer = Vec::new();
        }
        Ok(count)
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        if let Source::Live { progress, id } = &self.source {
            drop(progress.strike_off(*id));
        }
    }
}
