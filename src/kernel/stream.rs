//! Reading a log while it grows: in this process, told by the loop, or a file of another one.
//!
//! A log is the sequence of its files. The reader has one of them open, and its end is not the log's as long as another one follows:
//!
//! ```text
//! log.000003 (open) -> end of file -> is there a next one? -> read once more -> log.000004 or log
//! ```
//!
//! "Once more", because what was written before the file was rotated may have come after the first look.

pub(crate) mod files;
pub(crate) mod progress;
pub(crate) mod seek;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use memchr::memchr;

use crate::kernel::stream::files::{LogFiles, Part, is_sealed};
use crate::kernel::stream::progress::LogProgress;
use crate::kernel::stream::seek::Begin;
use crate::logic::cri::{Decoded, Decoder};
use crate::logic::mark::Place;
use crate::model::error::StreamError;
use crate::model::output::{LogFormat, OutputStream, Record, StreamSelect, Timestamp};
use crate::model::reading::{GapKind, LogEnd, LogPosition, ReadOptions};

/// Bytes asked of the file in one read.
const READ_BYTES: usize = 64 << 10;

/// The same, until a read has filled what it was given: what comes after a wait is a line, mostly, and to clear more takes longer than the read.
const SHORT_READ_BYTES: usize = 4 << 10;

/// A record longer than this is no record of ours: the file was changed.
const RECORD_BYTES_MAX: usize = 16 << 20;

/// How much of the beginning of a file is remembered: in the CRI format that is more than a time, which no other file has.
const HEAD_BYTES: usize = 128;

/// Where a stream learns that there is more, or that there will be no more.
#[derive(Debug)]
pub(crate) enum Source {
    /// The loop of this process writes the log.
    Live {
        progress: Arc<LogProgress>,
        id: u64,
        /// How far the log reached when the end of the file was last seen.
        told: u64,
        /// Whether what is in the file is read, and not as much as the loop says: somebody has cut it, or the job itself writes it.
        is_measured: bool,
    },
    /// Another process writes it, or nobody any more.
    File {
        /// Whether its end is waited for.
        follows: bool,
        /// Whether its worker was found dead.
        is_given_up: bool,
    },
}

impl Source {
    /// A new reader of a log that the loop of this process writes, or only watches: then the file says how far it reaches.
    pub(crate) fn live(progress: Arc<LogProgress>, is_measured: bool) -> Self {
        let id = progress.next_id.fetch_add(1, Ordering::Relaxed);
        Source::Live { progress, id, told: u64::MAX, is_measured }
    }
}

/// A reader of one log: yields the job's exact bytes, never waits, never slows the job down.
///
/// It owns its place and its file descriptor, is `Send`, and goes on after the worker is gone (the log has ended then). Dropping it ends it.
/// It is not `Read`: with "not yet" as an error, `lines()` and its like would lose bytes. For blocking reading see
/// [`Worker::follow`](crate::Worker::follow).
///
/// It reads on through the files of a log that is rotated, without losing or repeating a byte; where files were deleted before they were read, it says how much
/// is missing ([`StreamError::Gap`]).
///
/// Where bytes were cut off a file that had been read already, it says so ([`StreamError::Truncated`]). If the file still begins as it did, it goes on where
/// that ends now, and repeats nothing (a writer on a full disk takes records back that it could not write in one piece with others; a record that is cut in the
/// middle is passed over); else the file was begun anew, and is read from its beginning.
#[derive(Debug)]
pub struct LogStream {
    files: LogFiles,
    /// The file that is read.
    file: OwnedFd,
    /// Its place in the log.
    place: Place,
    /// Where in it the next read begins.
    position: u64,
    /// How the file begins, as far as it was read: what tells one that has lost its end from one that was begun anew.
    head: Vec<u8>,
    /// The file that comes next; this one is read to its end first.
    next: Option<Part>,
    /// How the log ends; what is in the file is read first.
    closing: Option<LogEnd>,
    end: Option<LogEnd>,
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
    /// Where in the log the record begins that is shown.
    shown_at: u64,
    /// Whether the rest of a record is to be passed over first.
    in_record: bool,
    /// Records of this stream only, up to this offset in the log.
    lead: Option<(OutputStream, u64)>,
    /// Records that are older than this are passed over, up to the first that is not.
    since: Option<Timestamp>,
    /// Whether the last record said that output is missing.
    is_gap_told: bool,
    /// What is to be told before anything else.
    notices: VecDeque<StreamError>,
}

/// What stands at the beginning of the unread bytes.
enum Step {
    Show(usize, std::ops::Range<usize>, Option<(OutputStream, Timestamp)>),
    Skip(usize),
    Missing(usize, u64),
    Malformed(usize),
    Refill,
}

/// What was found at the end of a file.
enum Found {
    /// There is nothing more, for now.
    Nothing,
    /// The next file.
    Next(Part),
    /// That was the last file.
    End(LogEnd),
    /// It is shorter than what was read of it.
    Cut(u64),
}

impl LogStream {
    /// Opens a reader of `files`, which stand at `places`, oldest first; the last of them is open already. `end`: the end of the log, in bytes of it; that of the
    /// newest file, if `None`.
    pub(crate) fn open(
        files: LogFiles,
        newest: &OwnedFd,
        (places, end): (&[Place], Option<u64>),
        source: Source,
        (format, raw_stream): (LogFormat, Option<OutputStream>),
        options: &ReadOptions,
    ) -> Result<Self, StreamError> {
        match (format, options.select, raw_stream, options.position) {
            (LogFormat::Raw, StreamSelect::Only(stream), None, _) => return Err(StreamError::NotSeparable { stream }),
            (LogFormat::Raw, .., LogPosition::Since(_)) => return Err(StreamError::NoTimes { path: files.path().to_owned() }),
            _ => {}
        }
        let last = places.last().map(|last| last.number);
        let open = |place: Place| {
            if Some(place.number) == last {
                return newest.try_clone().map(Some);
            }
            Ok(files.open(place.number, false)?.map(|part| part.file))
        };
        let begin = seek::Log { places, open, format, end }.find(options);
        let begin = begin.and_then(|begin| begin.ok_or_else(|| io::ErrorKind::NotFound.into()));
        match begin {
            Ok(begin) => Ok(Self::new(files, begin, source, (format, raw_stream), options)),
            Err(source) => Err(StreamError::Io { path: files.path().to_owned(), source }),
        }
    }

    fn new(
        files: LogFiles,
        begin: Begin,
        source: Source,
        (format, raw_stream): (LogFormat, Option<OutputStream>),
        options: &ReadOptions,
    ) -> Self {
        let mut notices = VecDeque::new();
        if begin.missing > 0 {
            notices.push_back(StreamError::Gap { path: files.path().to_owned(), bytes: begin.missing, kind: GapKind::Files });
        }
        let since = if let LogPosition::Since(time) = options.position { Some(time) } else { None };
        // No more than stands before what is read: the rest may still be taken back. Without it, a file that is cut is read from its beginning.
        let head_length = usize::try_from(begin.position).unwrap_or(usize::MAX).min(HEAD_BYTES);
        let head = if head_length > 0 { read_head(&begin.file, head_length).unwrap_or_default() } else { Vec::new() };
        Self {
            files,
            file: begin.file,
            place: begin.place,
            position: begin.position,
            head,
            next: None,
            closing: None,
            end: None,
            source,
            format,
            select: options.select,
            raw_stream,
            decoder: Decoder::new(),
            buffer: Vec::new(),
            unread: 0..0,
            shown: 0..0,
            shown_meta: None,
            shown_at: 0,
            in_record: begin.in_record,
            lead: begin.lead,
            since,
            is_gap_told: false,
            notices,
        }
    }

    /// The log file: the newest one, if there are several.
    pub fn path(&self) -> &Path {
        self.files.path()
    }

    /// Where in the log stands what comes next, in bytes from its beginning, all its files counted: [`LogPosition::Offset`] goes on from here another time. It
    /// counts bytes of the log, not of the job's output. In the CRI format that is where a record begins; one that is not consumed whole comes again.
    ///
    /// (Of a log whose marks are lost, a copy for instance, and whose first files are gone, it counts from the oldest that is left.)
    pub fn offset(&self) -> u64 {
        match (self.shown.is_empty(), self.format) {
            (true, _) => self.unread_at(),
            (false, LogFormat::Cri) => self.shown_at,
            (false, LogFormat::Raw) => self.unread_at() - self.shown.len() as u64,
        }
    }

    /// How the log has ended; `None` before that was seen.
    pub fn end(&self) -> Option<LogEnd> {
        self.end
    }

    /// The next bytes of the job's output: at least one, nothing at the end of the log, `Pending` if more may come. Call
    /// [`consume`](Self::consume) with what was used of them.
    ///
    /// After `Pending`, the worker's [`Event::LogReady`](crate::Event::LogReady) tells when to ask again.
    ///
    /// # Errors
    /// [`StreamError::Io`] if the file cannot be read; what is [passable](StreamError::is_passable) tells of something in the log, and reading goes on behind it.
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

    pub(crate) fn format(&self) -> LogFormat {
        self.format
    }

    /// The file that is read now, for a follower that watches it, and its number.
    pub(crate) fn file(&self) -> (&OwnedFd, u64) {
        (&self.file, self.place.number)
    }

    /// The writer was found dead: what is in the log now is all.
    pub(crate) fn give_up(&mut self) {
        if let Source::File { is_given_up, .. } = &mut self.source {
            *is_given_up = true;
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

    /// Where in the log the next read begins. What a mark says of the start is not to be trusted with a sum.
    fn read_at(&self) -> u64 {
        self.place.start.saturating_add(self.position)
    }

    /// Where in the log the unread bytes begin.
    fn unread_at(&self) -> u64 {
        self.read_at() - self.unread.len() as u64
    }

    /// Moves on until there is something to show (or the end: `shown` stays empty).
    fn advance(&mut self, mut cx: Option<&mut Context<'_>>) -> Poll<Result<(), StreamError>> {
        self.shown = 0..0;
        loop {
            if let Some(notice) = self.notices.pop_front() {
                return Poll::Ready(Err(notice));
            }
            match self.step() {
                Step::Show(length, shown, meta) => {
                    self.shown_at = self.unread_at();
                    self.unread.start += length;
                    (self.shown, self.shown_meta) = (shown, meta);
                    return Poll::Ready(Ok(()));
                }
                Step::Skip(length) => self.unread.start += length,
                Step::Missing(length, bytes) => {
                    self.unread.start += length;
                    self.notices.push_back(StreamError::Gap { path: self.path().to_owned(), bytes, kind: GapKind::Output });
                }
                Step::Malformed(length) => {
                    self.note_malformed();
                    self.unread.start += length;
                }
                Step::Refill if self.end.is_some() => return Poll::Ready(Ok(())),
                Step::Refill => match self.refill(cx.as_deref_mut()) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(source)) => return Poll::Ready(Err(StreamError::Io { path: self.path().to_owned(), source })),
                    Poll::Ready(Ok(())) => {}
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
        if self.in_record {
            let end = memchr(b'\n', unread);
            self.in_record = end.is_none();
            return Step::Skip(end.map_or(unread.len(), |end| end + 1));
        }
        match self.decoder.decode(unread) {
            Decoded::Record { time, stream, partial, content, len } => {
                self.is_gap_told = false;
                // The line feed that ends a full record in the file is the very one that ended the job's line.
                let shown = content.len() + usize::from(!partial);
                let content = start + len - 1 - content.len();
                if shown == 0 || !self.select.includes(stream) || self.is_passed_over(stream, time) {
                    return Step::Skip(len);
                }
                Step::Show(len, content..content + shown, Some((stream, time)))
            }
            Decoded::Dropped { time, bytes, len } => {
                self.is_gap_told = true;
                let is_passed_over = self.lead.is_some() || self.since.is_some_and(|since| time < since);
                if is_passed_over { Step::Skip(len) } else { Step::Missing(len, bytes) }
            }
            Decoded::Malformed { len } => Step::Malformed(len),
            Decoded::Incomplete if unread.len() > RECORD_BYTES_MAX => Step::Malformed(unread.len()),
            Decoded::Incomplete => Step::Refill,
        }
    }

    /// Whether this record, the next one, stands before what was asked for.
    fn is_passed_over(&mut self, stream: OutputStream, time: Timestamp) -> bool {
        if let Some((wanted, until)) = self.lead {
            if self.unread_at() < until {
                return stream != wanted;
            }
            self.lead = None;
        }
        if self.since.is_some_and(|since| time < since) {
            return true;
        }
        self.since = None;
        false
    }

    fn note_malformed(&mut self) {
        self.notices.push_back(StreamError::Malformed { path: self.path().to_owned(), offset: self.unread_at() });
    }

    /// Reads more of the log behind the unread bytes, or notes its end, or something to be told.
    fn refill(&mut self, mut cx: Option<&mut Context<'_>>) -> Poll<io::Result<()>> {
        loop {
            let is_last_look = self.next.is_some() || self.closing.is_some();
            let seen = if is_last_look { Some((u64::MAX, true)) } else { self.look_at_progress(cx.as_deref_mut()) };
            let Some((available, has_ended)) = seen else { return Poll::Pending };
            // As much again as a long record has so far: it is gone through a few times, not once for every read.
            let was_filled = !self.buffer.is_empty() && self.unread.end == self.buffer.len();
            let wanted = if was_filled { READ_BYTES } else { SHORT_READ_BYTES }.max(self.unread.len());
            if self.read(usize::try_from(available).unwrap_or(usize::MAX).min(wanted))? > 0 {
                return Poll::Ready(Ok(()));
            }
            if let Some(next) = self.next.take() {
                self.go_on_with(next);
                if !self.notices.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            if let Some(end) = self.closing {
                // A torn record at the end was never a record.
                (self.end, self.unread, self.buffer) = (Some(end), 0..0, Vec::new());
                return Poll::Ready(Ok(()));
            }
            match self.look(has_ended)? {
                Found::Next(part) => self.next = Some(part),
                Found::End(end) => self.closing = Some(end),
                Found::Cut(size) => {
                    if self.take_back(size)? {
                        return Poll::Ready(Ok(()));
                    }
                }
                Found::Nothing => match &mut self.source {
                    // What the loop says to be there is not: now it is only for it to say that something has changed.
                    Source::Live { is_measured, .. } => *is_measured = true,
                    Source::File { .. } => return Poll::Pending,
                },
            }
        }
    }

    /// How much may be read now, and whether the log has ended; `None` if there is nothing more yet. The task is woken when there is.
    fn look_at_progress(&mut self, cx: Option<&mut Context<'_>>) -> Option<(u64, bool)> {
        let offset = self.read_at();
        let Source::Live { progress, id, told, is_measured } = &mut self.source else { return Some((u64::MAX, false)) };
        // Once it has ended its length is final: look in this order.
        let look = || (progress.ended.load(Ordering::SeqCst), progress.length.load(Ordering::SeqCst));
        let known = if *is_measured { *told } else { offset };
        let (mut ended, mut length) = look();
        if !ended && length == known {
            if let Some(cx) = cx {
                progress.enlist(*id, cx.waker());
            }
            progress.awaited.store(true, Ordering::SeqCst);
            // The loop may have written between the look and the word that we wait.
            (ended, length) = look();
            if !ended && length == known {
                return None;
            }
        }
        *told = length;
        // At the end the file is the measure: somebody else may have added to it.
        let is_all = ended || *is_measured || length < offset;
        Some((if is_all { u64::MAX } else { length - offset }, ended))
    }

    /// Looks at what comes after the end of this file.
    fn look(&mut self, has_ended: bool) -> io::Result<Found> {
        let stat = rustix::fs::fstat(&self.file)?;
        let size = stat.st_size as u64;
        if size < self.position {
            return Ok(Found::Cut(size));
        }
        let (follows, is_given_up) = match &self.source {
            Source::Live { progress, .. } => return live_next(progress, &self.files, self.place, has_ended),
            Source::File { follows, is_given_up } => (*follows, *is_given_up),
        };
        // In this order: a file is sealed after it was rotated. One that is sealed, and then found to be the newest, is the last.
        let is_newest = self.files.is_alone() || self.files.is_newest(&stat)?;
        if !is_newest && let Some(next) = self.files.after(self.place.number)? {
            return Ok(Found::Next(next));
        }
        let is_sealed = is_sealed(&stat);
        let is_deleted = stat.st_nlink == 0 || (!is_newest && is_sealed && self.files.is_rotated(&stat, self.place.number)?);
        Ok(match () {
            () if is_deleted => Found::End(LogEnd::Deleted),
            () if is_sealed => Found::End(LogEnd::Complete),
            () if is_given_up => Found::End(LogEnd::WriterGone),
            () if !follows => Found::End(LogEnd::Unfinished),
            () => Found::Nothing,
        })
    }

    /// The file was cut to `size` bytes. Whether that is to be told: a writer that could not write takes back what was torn.
    fn take_back(&mut self, size: u64) -> io::Result<bool> {
        let whole = self.position - self.unread.len() as u64;
        self.unread = 0..0;
        if size >= whole {
            self.position = whole;
            self.head.truncate(usize::try_from(whole).unwrap_or(usize::MAX));
            return Ok(false);
        }
        if self.begins_as_before(size)? {
            // Only its end is gone: what is left was read.
            (self.position, self.in_record) = (size, self.format == LogFormat::Cri && self.byte_before(size)? != Some(b'\n'));
            self.head.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        } else {
            (self.position, self.in_record) = (0, false);
            self.head.clear();
        }
        if let Source::Live { told, is_measured, .. } = &mut self.source {
            // There may be something already.
            (*told, *is_measured) = (u64::MAX, true);
        }
        self.notices.push_back(StreamError::Truncated { path: self.path().to_owned() });
        Ok(true)
    }

    /// Whether the first `size` bytes of the file, as many of them as are remembered, are what they were.
    fn begins_as_before(&self, size: u64) -> io::Result<bool> {
        let known = usize::try_from(size).unwrap_or(usize::MAX).min(self.head.len());
        Ok(known > 0 && read_head(&self.file, known)? == self.head.get(..known).unwrap_or_default())
    }

    fn byte_before(&self, position: u64) -> io::Result<Option<u8>> {
        let mut byte = [0; 1];
        let Some(before) = position.checked_sub(1) else { return Ok(None) };
        let count = rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut byte, before))?;
        Ok(byte.first().copied().filter(|_| count > 0))
    }

    /// Goes on with the next file. Notes what is missing between the two.
    fn go_on_with(&mut self, next: Part) {
        let end = self.read_at();
        if !self.unread.is_empty() {
            // What is torn in the middle of a log is told.
            self.note_malformed();
        }
        // A file that stands for others which were dropped has said what is missing, unless more of them were dropped since.
        let is_told = self.is_gap_told && rustix::fs::fstat(&self.file).is_ok_and(|stat| stat.st_nlink > 0);
        if next.number - 1 > self.place.number && !is_told {
            let (bytes, kind) = match next.start {
                Some(start) => (start.saturating_sub(end), GapKind::Files),
                None => (0, GapKind::UncountedFiles),
            };
            if bytes > 0 || kind == GapKind::UncountedFiles {
                self.notices.push_back(StreamError::Gap { path: self.path().to_owned(), bytes, kind });
            }
        }
        self.file = next.file;
        self.place = Place { number: next.number, start: next.start.unwrap_or(end) };
        (self.position, self.unread, self.in_record) = (0, 0..0, false);
        self.head.clear();
        if let Source::Live { is_measured, .. } = &mut self.source {
            *is_measured = false;
        }
    }

    /// The last `count` unread bytes were read at `position`: remembers them, if the file begins with them.
    fn note_head(&mut self, count: usize, position: u64) {
        if self.head.len() < HEAD_BYTES && position == self.head.len() as u64 {
            let read = self.buffer.get(self.unread.end - count..self.unread.end).unwrap_or_default();
            self.head.extend_from_slice(read.get(..HEAD_BYTES - self.head.len()).unwrap_or(read));
        }
    }

    /// Reads up to `wanted` bytes behind the unread ones, which move to the front of the buffer.
    fn read(&mut self, wanted: usize) -> io::Result<usize> {
        self.buffer.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        self.buffer.resize(self.unread.len() + wanted, 0);
        let space = self.buffer.get_mut(self.unread.end..).unwrap_or_default();
        let count = rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut *space, self.position))?;
        self.unread.end += count;
        self.note_head(count, self.position);
        self.position += count as u64;
        if self.unread.is_empty() {
            // Nothing came: a reader that waits holds no buffer.
            self.buffer = Vec::new();
        }
        Ok(count)
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        if let Source::Live { progress, id, .. } = &self.source {
            drop(progress.strike_off(*id));
        }
    }
}

/// The first `length` bytes of a file, or fewer, if it is shorter.
fn read_head(file: &OwnedFd, length: usize) -> io::Result<Vec<u8>> {
    let mut head = vec![0; length];
    let count = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut head[..], 0))?;
    head.truncate(count);
    Ok(head)
}

/// What comes after a file of a log that the loop of this process writes.
fn live_next(progress: &LogProgress, files: &LogFiles, place: Place, has_ended: bool) -> io::Result<Found> {
    'again: loop {
        let places = progress.places();
        for (index, next) in places.iter().enumerate().filter(|(_, next)| next.number > place.number) {
            let is_newest = index + 1 == places.len();
            let Some(part) = files.open(next.number, is_newest)? else { continue };
            if is_newest && progress.places() != places {
                // After two rotations it is another file that has the log's own name, and the one that was meant may be gone.
                continue 'again;
            }
            return Ok(Found::Next(Part { start: Some(next.start), ..part }));
        }
        let last = places.last().filter(|last| last.number > place.number);
        return Ok(match last {
            None if has_ended => Found::End(LogEnd::Complete),
            None => Found::Nothing,
            Some(_) if progress.places() != places => continue,
            // The loop is rotating the log just now, and is about to say so.
            Some(last) if !has_ended && files.is_beyond(last.number)? => Found::Nothing,
            // Where there are others, somebody has deleted them.
            Some(_) => Found::End(LogEnd::Deleted),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs::{self, File};
    use std::os::fd::{AsFd, BorrowedFd};

    use uuid::Uuid;

    use super::*;
    use crate::logic::mark::Mark;

    const NAME: &str = "job_0190d3b1-7c8a-7def-8123-456789abcdef.log";

    thread_local! {
        /// What the loop comes to say while a file is being opened.
        static WORD: RefCell<Option<Arc<LogProgress>>> = const { RefCell::new(None) };
    }

    /// The places of files of ten bytes each.
    fn places(numbers: &[u64]) -> impl Iterator<Item = Place> {
        numbers.iter().map(|number| Place { number: *number, start: (number - 1) * 10 })
    }

    /// The files of a log of which the first two are gone, each with its number in it.
    fn log_of_four(mark_of: files::MarkOf) -> (tempfile::TempDir, LogFiles) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        fs::write(directory.path().join(format!("{NAME}.000003")), "3").unwrap();
        fs::write(&path, "4").unwrap();
        let opened = Arc::new(OwnedFd::from(File::open(directory.path()).unwrap()));
        let files = LogFiles::new(opened, path.clone(), File::open(&path).unwrap().as_fd(), None, mark_of).unwrap();
        (directory, files)
    }

    fn next(progress: &LogProgress, files: &LogFiles) -> Option<(u64, Option<u64>, Vec<u8>)> {
        match live_next(progress, files, Place::FIRST, false).unwrap() {
            Found::Next(part) => Some((part.number, part.start, read_head(&part.file, 10).unwrap())),
            Found::Nothing => None,
            Found::End(_) | Found::Cut(_) => panic!("it goes on"),
        }
    }

    #[test]
    fn a_file_that_has_got_the_logs_name_since_the_places_were_asked_for_is_not_taken_for_the_one_before() {
        // No file says its number; the loop says where they are just when the newest was opened.
        let (_directory, files) = log_of_four(|_, _| {
            if let Some(progress) = WORD.take() {
                progress.set_places(places(&[3, 4]));
            }
            Ok(None)
        });
        let progress = Arc::new(LogProgress::default());
        progress.set_places(places(&[1, 2]));
        WORD.set(Some(Arc::clone(&progress)));
        assert_eq!(next(&progress, &files), Some((3, Some(20), b"3".to_vec())));
    }

    #[test]
    fn a_file_that_says_that_it_is_a_later_one_is_waited_for_until_the_loop_says_so() {
        let (_directory, files) = log_of_four(|_: BorrowedFd<'_>, path| {
            let number = if path.ends_with(NAME) { 4 } else { 3 };
            Ok(Some(Mark { worker: Uuid::nil(), format: LogFormat::Raw, place: Place { number, start: 0 } }))
        });
        let progress = LogProgress::default();
        progress.set_places(places(&[1, 2]));
        assert_eq!(next(&progress, &files), None);
        progress.set_places(places(&[3, 4]));
        assert_eq!(next(&progress, &files), Some((3, Some(20), b"3".to_vec())));
    }
}
