//! Where in a log reading begins: the place that was asked for, looked up in its files.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};

use memchr::{memchr, memrchr, memrchr_iter};

use crate::logic::cri::{Decoded, Decoder};
use crate::logic::mark::Place;
use crate::model::output::{LogFormat, OutputStream, StreamSelect, Timestamp};
use crate::model::reading::{LogPosition, ReadOptions};

/// Bytes that are looked at at a time.
const BLOCK_BYTES: usize = 64 << 10;

/// What is looked at of a line to see what kind of record it is: longer than any header, and than a record that tells of missing output.
const HEAD_BYTES: usize = 512;

/// How far back the start of a line is looked for in what the other stream has written.
const OTHER_STREAM_BYTES_MAX: u64 = 1 << 20;

/// Where reading begins.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) file: OwnedFd,
    pub(crate) place: Place,
    /// Bytes in that file.
    pub(crate) position: u64,
    /// That is in the middle of a record, or just before its end: the rest of it is passed over.
    pub(crate) in_record: bool,
    /// Records of this stream only, up to this offset in the log.
    pub(crate) lead: Option<(OutputStream, u64)>,
    /// Bytes of the log before it that were asked for and are gone.
    pub(crate) missing: u64,
}

/// What a log is looked up in.
pub(crate) struct Log<'a, F> {
    /// Its files, oldest first; never empty.
    pub(crate) places: &'a [Place],
    /// Opens one of them; `None` if it is gone.
    pub(crate) open: F,
    pub(crate) format: LogFormat,
    /// The end of what is to be looked at, in bytes of the log; what is in the newest file, if `None`.
    pub(crate) end: Option<u64>,
}

impl<F: FnMut(Place) -> io::Result<Option<OwnedFd>>> Log<'_, F> {
    /// Looks up where `options` begin. `None` if no file is left.
    pub(crate) fn find(&mut self, options: &ReadOptions) -> io::Result<Option<Begin>> {
        match options.position {
            LogPosition::Start => self.at(0),
            LogPosition::Offset(offset) => self.at(offset),
            LogPosition::End | LogPosition::LastLines(0) => self.at_end(),
            LogPosition::LastLines(count) => self.last_lines(count, options.select),
            LogPosition::Since(time) => self.since(time),
        }
    }

    /// The first file that is left at or behind index `from`.
    fn first_from(&mut self, from: usize) -> io::Result<Option<(OwnedFd, Place)>> {
        for place in self.places.iter().skip(from) {
            if let Some(file) = (self.open)(*place)? {
                return Ok(Some((file, *place)));
            }
        }
        Ok(None)
    }

    fn at(&mut self, offset: u64) -> io::Result<Option<Begin>> {
        let from = self.places.iter().rposition(|place| place.start <= offset).unwrap_or(0);
        let Some((file, place)) = self.first_from(from)? else { return Ok(None) };
        if offset < place.start {
            return Ok(Some(Begin { missing: place.start - offset, ..Begin::new(file, place, 0) }));
        }
        let end = self.end_in(&file, place)?;
        if place.start.saturating_add(end) <= offset {
            let next = self.places.iter().position(|other| other.number == place.number).map_or(self.places.len(), |index| index + 1);
            if let Some((file, next)) = self.first_from(next)? {
                // In what is gone between this file and the next, or just at the end of this one.
                return Ok(Some(Begin { missing: next.start.saturating_sub(offset), ..Begin::new(file, next, 0) }));
            }
            let position = self.whole_end(&file, end)?;
            return Ok(Some(Begin::new(file, place, position)));
        }
        let position = offset - place.start;
        // The byte before belongs to the record before, and may be the line feed that ends it.
        let in_record = self.format == LogFormat::Cri && position > 0;
        Ok(Some(Begin { in_record, ..Begin::new(file, place, position - u64::from(in_record)) }))
    }

    fn at_end(&mut self) -> io::Result<Option<Begin>> {
        let Some((file, place)) = self.first_from(self.places.len().saturating_sub(1))? else { return Ok(None) };
        let end = self.end_in(&file, place)?;
        let position = self.whole_end(&file, end)?;
        Ok(Some(Begin::new(file, place, position)))
    }

    fn last_lines(&mut self, count: u64, select: StreamSelect) -> io::Result<Option<Begin>> {
        let mut tail = Tail::new(count, select);
        let mut oldest = None;
        for place in self.places.iter().rev() {
            let Some(file) = (self.open)(*place)? else { continue };
            let end = self.end_in(&file, *place)?;
            let end = self.whole_end(&file, end)?;
            let is_over = lines_backwards(&file, end, |position, head| match self.format {
                LogFormat::Raw => tail.note_line((*place, position)),
                LogFormat::Cri => tail.note_record((*place, position), head),
            })?;
            oldest = Some((file, *place));
            if is_over {
                break;
            }
        }
        let Some((file, place)) = oldest else { return Ok(None) };
        let lead = tail.lead();
        match tail.begin.filter(|_| tail.found == tail.wanted) {
            Some((begin, position)) if begin.number == place.number => Ok(Some(Begin { lead, ..Begin::new(file, begin, position) })),
            Some((begin, position)) => match (self.open)(begin)? {
                Some(file) => Ok(Some(Begin { lead, ..Begin::new(file, begin, position) })),
                // Deleted since.
                None => self.at(begin.start),
            },
            // There are not so many lines: everything that is left.
            None => Ok(Some(Begin { missing: place.start, ..Begin::new(file, place, 0) })),
        }
    }

    fn since(&mut self, time: Timestamp) -> io::Result<Option<Begin>> {
        // The last file that begins before that time: everything before it is older.
        let (mut low, mut high) = (0, self.places.len());
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.is_before(middle, high, time)? { low = middle } else { high = middle }
        }
        let Some((file, place)) = self.first_from(low)? else { return Ok(None) };
        let end = self.end_in(&file, place)?;
        let (position, is_older) = since_in(&file, end, time)?;
        let missing = if is_older { 0 } else { place.start };
        Ok(Some(Begin { missing, ..Begin::new(file, place, position) }))
    }

    /// Whether the first record of file `index`, or of the first behind it that has one, is older than `time`.
    fn is_before(&mut self, index: usize, high: usize, time: Timestamp) -> io::Result<bool> {
        for place in self.places.iter().take(high).skip(index) {
            let Some(file) = (self.open)(*place)? else { continue };
            let end = self.end_in(&file, *place)?;
            if let Some((_, first)) = first_record(&file, 0, end)? {
                return Ok(first < time);
            }
        }
        Ok(false)
    }

    /// The bytes of a file that are looked at.
    fn end_in(&self, file: &OwnedFd, place: Place) -> io::Result<u64> {
        let size = rustix::fs::fstat(file)?.st_size as u64;
        Ok(self.end.map_or(size, |end| size.min(end.saturating_sub(place.start))))
    }

    /// The end of the last whole record before `end`; in a raw log any byte may be the last.
    fn whole_end(&self, file: &OwnedFd, end: u64) -> io::Result<u64> {
        match self.format {
            LogFormat::Raw => Ok(end),
            LogFormat::Cri => record_end(file, end),
        }
    }
}

impl Begin {
    fn new(file: OwnedFd, place: Place, position: u64) -> Self {
        Self { file, place, position, in_record: false, lead: None, missing: 0 }
    }
}

/// Counts lines from the end of a log.
struct Tail {
    wanted: u64,
    select: StreamSelect,
    found: u64,
    /// The earliest line, or piece of one, that belongs to those that are wanted.
    begin: Option<(Place, u64)>,
    /// Per stream: whether a record of it was seen.
    seen: [bool; 2],
    /// The record of the line before those that are wanted, and whose it is; where it ends, and the earliest wanted record behind it.
    before: Option<(OutputStream, u64)>,
}

impl Tail {
    fn new(wanted: u64, select: StreamSelect) -> Self {
        Self { wanted, select, found: 0, begin: None, seen: [false; 2], before: None }
    }

    /// A line of a raw log.
    fn note_line(&mut self, at: (Place, u64)) -> ControlFlow<()> {
        self.begin = Some(at);
        self.found += 1;
        if self.found == self.wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// A record of a CRI log.
    fn note_record(&mut self, at: (Place, u64), head: &[u8]) -> ControlFlow<()> {
        let Some((stream, is_partial, _)) = record_of(head).filter(|(stream, ..)| self.select.includes(*stream)) else {
            return ControlFlow::Continue(());
        };
        let was_seen = std::mem::replace(&mut self.seen[stream as usize], true);
        if let Some((before, end)) = self.before {
            // Only the pieces of the other stream's line are still looked for.
            let offset = at.0.start.saturating_add(at.1);
            if end.saturating_sub(offset) > OTHER_STREAM_BYTES_MAX || (stream != before && !is_partial) {
                return ControlFlow::Break(());
            }
            if stream != before {
                self.begin = Some(at);
            }
            return ControlFlow::Continue(());
        }
        // The last record of a stream ends a line, be it finished or not.
        if !is_partial || !was_seen {
            if self.found == self.wanted {
                let other = 1 - stream as usize;
                self.before = self.begin.map(|(place, position)| (stream, place.start.saturating_add(position)));
                let is_other_cut = self.select == StreamSelect::Both && self.seen[other];
                return if is_other_cut { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
            }
            self.found += 1;
        }
        self.begin = Some(at);
        ControlFlow::Continue(())
    }

    /// What of the records at the beginning is wanted, if it is not all of them.
    fn lead(&self) -> Option<(OutputStream, u64)> {
        let (before, end) = self.before?;
        let other = if before == OutputStream::Stdout { OutputStream::Stderr } else { OutputStream::Stdout };
        Some((other, end))
    }
}

/// Calls `each` with the position and the beginning of every line in the first `end` bytes of a file, from the last to the first. `true` if it was stopped.
fn lines_backwards(file: &OwnedFd, end: u64, mut each: impl FnMut(u64, &[u8]) -> ControlFlow<()>) -> io::Result<bool> {
    let mut buffer = vec![0; BLOCK_BYTES + HEAD_BYTES];
    // Bytes of what comes after the block, which stand behind it.
    let mut behind = 0;
    let mut block_end = end;
    while block_end > 0 {
        let block_start = block_end.saturating_sub(BLOCK_BYTES as u64);
        let length = (block_end - block_start) as usize;
        buffer.copy_within(..behind, length);
        read_exact_at(file, buffer.get_mut(..length).unwrap_or_default(), block_start)?;
        let filled = buffer.get(..length + behind).unwrap_or_default();
        let block = filled.get(..length).unwrap_or_default();
        let first = if block_start == 0 { Some(0) } else { None };
        for start in memrchr_iter(b'\n', block).map(|line_feed| line_feed + 1).chain(first) {
            let rest = filled.get(start..).unwrap_or_default();
            let head = rest.get(..HEAD_BYTES).unwrap_or(rest);
            let is_line = block_start + (start as u64) < end;
            if is_line && each(block_start + start as u64, head).is_break() {
                return Ok(true);
            }
        }
        behind = filled.len().min(HEAD_BYTES);
        block_end = block_start;
    }
    Ok(false)
}

/// The stream of a record, whether it is partial, and its time, told by its beginning; `None` for what is no output.
fn record_of(head: &[u8]) -> Option<(OutputStream, bool, Timestamp)> {
    let decoded = |bytes: &[u8]| match Decoder::new().decode(bytes) {
        Decoded::Record { time, stream, partial, .. } => Some((stream, partial, time)),
        Decoded::Dropped { .. } | Decoded::Incomplete | Decoded::Malformed { .. } => None,
    };
    if memchr(b'\n', head).is_some() {
        return decoded(head);
    }
    // A long record is told by its beginning.
    let mut cut = [b'\n'; HEAD_BYTES + 1];
    cut.get_mut(..head.len())?.copy_from_slice(head);
    decoded(&cut)
}

/// The end of the last line feed before `end`; 0 if there is none.
fn record_end(file: &OwnedFd, end: u64) -> io::Result<u64> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut block_end = end;
    while block_end > 0 {
        // Nearly always it is the very last byte.
        let wanted = if block_end == end { 1 } else { BLOCK_BYTES as u64 };
        let block_start = block_end.saturating_sub(wanted);
        let block = block.get_mut(..(block_end - block_start) as usize).unwrap_or_default();
        read_exact_at(file, block, block_start)?;
        if let Some(last) = memrchr(b'\n', block) {
            return Ok(block_start + last as u64 + 1);
        }
        block_end = block_start;
    }
    Ok(0)
}

/// A record in the file before which every record is older than `time`, and not far from the first that is not; and whether the record that stands there is
/// older.
fn since_in(file: &OwnedFd, end: u64, time: Timestamp) -> io::Result<(u64, bool)> {
    let (mut low, mut high) = (0, end);
    let mut is_older = first_record(file, 0, end)?.is_some_and(|(_, first)| first < time);
    while high - low > BLOCK_BYTES as u64 {
        let middle = low + (high - low) / 2;
        match first_record(file, middle, high)? {
            Some((position, first)) if first < time => (low, is_older) = (position, true),
            // Nothing begins between the middle and that record.
            _ => high = middle,
        }
    }
    Ok((low, is_older))
}

/// The first record that begins behind `from` (or at it, if that is the beginning of the file), and before `end`, and its time.
fn first_record(file: &OwnedFd, from: u64, end: u64) -> io::Result<Option<(u64, Timestamp)>> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut position = from;
    let mut is_at_line = from == 0;
    while position < end {
        let count = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut block[..], position))?;
        let mut rest = block.get(..count).unwrap_or_default();
        let is_last = count < HEAD_BYTES;
        if rest.is_empty() {
            return Ok(None);
        }
        loop {
            if is_at_line {
                if rest.len() < HEAD_BYTES && !is_last {
                    // It begins at the end of the block: once more, from there.
                    break;
                }
                if position >= end {
                    return Ok(None);
                }
                if let Some((.., time)) = record_of(rest.get(..HEAD_BYTES).unwrap_or(rest)) {
                    return Ok(Some((position, time)));
                }
                is_at_line = false;
            }
            let Some(line_feed) = memchr(b'\n', rest) else {
                position += rest.len() as u64;
                break;
            };
            is_at_line = true;
            position += line_feed as u64 + 1;
            rest = rest.get(line_feed + 1..).unwrap_or_default();
        }
    }
    Ok(None)
}

/// Fills the buffer from the file; with zeros, where the file has become shorter.
fn read_exact_at(file: &OwnedFd, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::pread(file.as_fd(), &mut *buffer, offset))?;
        if count == 0 {
            buffer.fill(0);
            return Ok(());
        }
        buffer = buffer.get_mut(count..).unwrap_or_default();
        offset += count as u64;
    }
    Ok(())
}
