//! Floor 4: a job's outputs on their way into its log: pipes read within a budget, lines split, records written, readers told.

use std::cell::OnceCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use crate::kernel::log_dir::LogDir;
use crate::kernel::log_file::{LogFile, WriteFault};
use crate::kernel::stdio::{PIPE_BYTES, ReadOutcome, enlarge_pipe, read_output};
use crate::kernel::stream::LogStream;
use crate::kernel::stream::progress::LogProgress;
use crate::lent::{Alarm, Lent, OutputIndex, Queues, unix_nanos};
use crate::logic::deadlines::Deadline;
use crate::logic::lines::{Ending, LineSplitter};
use crate::logic::mark::Place;
use crate::logic::token::Key;
use crate::model::error::StreamError;
use crate::model::output::{LogFormat, OutputStream, StreamSelect, Timestamp};
use crate::model::status::OutputCount;

/// One captured output.
#[derive(Debug)]
struct Output {
    fd: OwnedFd,
    splitter: LineSplitter,
    /// Whether a read is worth trying.
    readable: bool,
    /// Whether the other end is closed, so that a short read is not the end yet.
    hung_up: bool,
    /// Whether the pipe was enlarged.
    enlarged: bool,
}

/// A log and what its readers are told.
#[derive(Debug)]
struct Log {
    file: LogFile,
    format: LogFormat,
    /// Whether both outputs come through one pipe.
    merged: bool,
    progress: OnceCell<Arc<LogProgress>>,
    /// The time of the last record, in nanoseconds since 1970: times never run backwards in a file.
    last_time: u64,
    /// Whether the last write failed.
    failing: bool,
    /// The error number of the last write that failed.
    fault: i32,
    /// Whether it was written since the open logs were last looked through.
    recent: bool,
    /// Whether it stands in the list of open logs.
    listed: bool,
}

/// The captured outputs of one job, and its log. Both may be missing: an output that is not captured, or at its end.
#[derive(Debug)]
pub(crate) struct Outputs {
    key: Key,
    pipes: [Option<Output>; 2],
    log: Option<Log>,
    /// When the unfinished line of each is written as it stands.
    flush: [Deadline; 2],
    /// The turn that the budget is for.
    turn: u64,
    budget_left: usize,
    /// The output that is read first: 1 after a turn in which output 0 used up the budget.
    reads_first: usize,
    count: OutputCount,
    news: LogNews,
}

/// What the job's owner is to be told of its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogNews {
    /// Writes have begun to fail.
    pub(crate) fault: bool,
    /// A reader that waited has more to read, or the end.
    pub(crate) ready: bool,
}

/// Where the outputs stand after a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// The budget is spent: there may be more.
    More,
    /// Nothing can be read now.
    Quiet,
    /// Every output is at its end.
    Closed,
}

/// What asking for the room of an open log came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// The log was closed.
    Made,
    /// It was written lately: ask again.
    Later,
    /// It is not open.
    None,
}

impl Outputs {
    /// The outputs of the job at `key`: the read ends of its pipes, and the log that they go to.
    pub(crate) fn new(key: Key, pipes: [Option<OwnedFd>; 2], log: Option<(LogFile, LogFormat)>, line_bytes_max: usize) -> Self {
        let merged = pipes[1].is_none();
        let new_output = |fd| Output { fd, splitter: LineSplitter::new(line_bytes_max), readable: false, hung_up: false, enlarged: false };
        let new_log = |(file, format)| Log {
            file,
            format,
            merged,
            progress: OnceCell::new(),
            last_time: 0,
            failing: false,
            fault: 0,
            recent: false,
            listed: false,
        };
        Self {
            key,
            pipes: pipes.map(|fd| fd.map(new_output)),
            log: log.map(new_log),
            flush: [Deadline::default(); 2],
            turn: 0,
            budget_left: 0,
            reads_first: 0,
            count: OutputCount::default(),
            news: LogNews::default(),
        }
    }

    pub(crate) fn count(&self) -> OutputCount {
        self.count
    }

    /// Whether some output can still be read from.
    pub(crate) fn is_open(&self) -> bool {
        self.pipes.iter().any(Option::is_some)
    }

    pub(crate) fn log_path(&self, log_dir: &LogDir) -> Option<PathBuf> {
        Some(log_dir.path_of(self.log.as_ref()?.file.name()))
    }

    /// The error number of the last write that failed.
    pub(crate) fn fault(&self) -> i32 {
        self.log.as_ref().map_or(0, |log| log.fault)
    }

    /// What is to be told since the last time that this was asked.
    pub(crate) fn take_news(&mut self) -> LogNews {
        std::mem::take(&mut self.news)
    }

    /// A reader of the log; `None` if there is no log.
    pub(crate) fn stream(&self, select: StreamSelect, has_ended: bool, log_dir: &LogDir) -> Option<Result<LogStream, StreamError>> {
        let log = self.log.as_ref()?;
        let path = log_dir.path_of(log.file.name());
        let file = match log.file.open_reader(log_dir.as_fd()) {
            Ok(file) => file,
            Err(source) => return Some(Err(StreamError::Io { path, source })),
        };
        let progress = log.progress.get_or_init(|| {
            let progress = LogProgress::default();
            progress.set_places([Place::FIRST].into_iter());
            progress.publish(log.file.length(), has_ended, &mut Vec::new());
            Arc::new(progress)
        });
        let raw_stream = log.merged.then_some(OutputStream::Stdout);
        Some(LogStream::live(file, path, Arc::clone(progress), log.format, select, raw_stream))
    }

    /// The kernel says that an output can be read; `closed`, that its other end is closed.
    pub(crate) fn set_readable(&mut self, index: OutputIndex, closed: bool) {
        if let Some(output) = &mut self.pipes[usize::from(index)] {
            output.readable = true;
            output.hung_up |= closed;
        }
    }

    /// Reads what is there, within the budget of this turn; one write to the log at the end. Returns the number of bytes, too.
    pub(crate) fn read(&mut self, lent: &mut Lent<'_>) -> (usize, Readiness) {
        if self.turn != lent.turn {
            self.turn = lent.turn;
            self.budget_left = lent.settings.read_budget_bytes;
        }
        let mut seen = 0;
        for index in [self.reads_first, 1 - self.reads_first] {
            seen += self.read_one(index, lent);
        }
        if seen > 0 {
            // A loud output must not leave the other unread for ever.
            self.reads_first = if self.budget_left == 0 { 1 - self.reads_first } else { 0 };
        }
        self.write(lent);
        (seen, self.readiness())
    }

    /// An unfinished line was held long enough: writes it as it stands, unless the rest of it has come by now. As [`read`](Self::read).
    pub(crate) fn flush_line(&mut self, index: OutputIndex, lent: &mut Lent<'_>) -> (usize, Readiness) {
        let (alarm, index) = ((self.key, Alarm::Flush(index)), usize::from(index));
        if !lent.deadlines.settle(&mut self.flush[index], lent.now, alarm) {
            return (0, self.readiness());
        }
        // In a loop that is behind, the word that there is more may still wait in line.
        if let Some(output) = &mut self.pipes[index] {
            output.readable = true;
        }
        let read = self.read(lent);
        if self.flush[index].is_armed() {
            return read;
        }
        if self.pipes[index].as_ref().is_some_and(|output| output.readable) {
            // The budget is spent: the next turn reads on, then it is looked at again.
            lent.deadlines.arm(&mut self.flush[index], lent.now, alarm);
            return read;
        }
        self.take_unfinished(index, lent);
        self.write(lent);
        read
    }

    /// Lets go of every output; what was not read is lost, what was read goes into the log.
    pub(crate) fn close(&mut self, lent: &mut Lent<'_>) {
        for index in 0..self.pipes.len() {
            self.close_one(index, lent);
        }
        self.write(lent);
    }

    /// Nobody is left to write, so what the pipes hold now is all: the next read goes on until they say that they are empty. (A short read does not
    /// say so where a job has put its pipe into packet mode.)
    pub(crate) fn read_to_the_end(&mut self) {
        for index in 0..self.pipes.len() {
            self.set_readable(index as OutputIndex, true);
        }
    }

    /// Notes that outputs are closed before their end. With nobody left to write, that is only where something was left to read.
    pub(crate) fn note_cut_off(&mut self, nobody_writes: bool) {
        self.count.cut_off |= if nobody_writes { self.readiness() == Readiness::More } else { self.is_open() };
    }

    /// Tells the readers that nothing more will come.
    pub(crate) fn end_streams(&mut self, lent: &mut Lent<'_>) {
        self.publish(true, lent);
    }

    /// The log is complete: tells its readers, and seals it. A log that was deleted or replaced by somebody has no seal to get.
    pub(crate) fn seal_log(&mut self, lent: &mut Lent<'_>) {
        self.end_log(lent);
        let Some(log) = &mut self.log else { return };
        if log.file.seal(lent.log_dir.as_fd()).is_err_and(WriteFault::is_shortage) && lent.log_dir.lend_spare() {
            let _ = log.file.seal(lent.log_dir.as_fd());
            lent.log_dir.take_spare_back();
        }
    }

    /// The job never ran: its log goes.
    pub(crate) fn delete_log(&mut self, lent: &mut Lent<'_>) {
        self.end_log(lent);
        if let Some(mut log) = self.log.take() {
            let _ = log.file.delete(lent.log_dir.as_fd());
        }
    }

    /// Counts a log that has just been opened, and closes it again if too many are open.
    pub(crate) fn keep_log_open(&mut self, lent: &mut Lent<'_>) {
        let Some(log) = self.log.as_mut().filter(|log| log.file.fd().is_some()) else { return };
        if lent.queues.open_logs_count >= lent.settings.open_logs_max {
            log.file.close();
            lent.queues.open_logs_wanted += 1;
            return;
        }
        lent.queues.open_logs_count += 1;
        if !std::mem::replace(&mut log.listed, true) {
            lent.queues.open_logs.push_back(self.key);
        }
    }

    /// Whether the log is open; one that has ended stays in the list of open logs until that is cleared.
    pub(crate) fn has_open_log(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.file.fd().is_some())
    }

    /// Makes room among the open logs by closing this one; one that was written lately is passed over once.
    pub(crate) fn make_room(&mut self, queues: &mut Queues) -> Room {
        let Some(log) = self.log.as_mut().filter(|log| log.listed) else { return Room::None };
        if log.file.fd().is_none() {
            log.listed = false;
            return Room::None;
        }
        if std::mem::take(&mut log.recent) {
            return Room::Later;
        }
        log.listed = false;
        log.file.close();
        queues.open_logs_count = queues.open_logs_count.saturating_sub(1);
        Room::Made
    }

    fn readiness(&self) -> Readiness {
        if self.pipes.iter().flatten().any(|output| output.readable) {
            Readiness::More
        } else if self.is_open() {
            Readiness::Quiet
        } else {
            Readiness::Closed
        }
    }

    /// Reads one output until it is empty, at its end, or the budget is spent. Returns the number of bytes.
    fn read_one(&mut self, index: usize, lent: &mut Lent<'_>) -> usize {
        let mut total = 0;
        while let Some(output) = self.pipes[index].as_mut().filter(|output| output.readable && self.budget_left > 0) {
            match read_output(output.fd.as_fd(), lent.read_buffer) {
                Ok(ReadOutcome::Bytes(count)) => {
                    // A pipe gives what it has: less than asked for means empty, unless its end is still to be read.
                    output.readable = count == lent.read_buffer.len() || output.hung_up;
                    if count >= PIPE_BYTES && !std::mem::replace(&mut output.enlarged, true) {
                        enlarge_pipe(output.fd.as_fd());
                    }
                    total += count;
                    self.budget_left = self.budget_left.saturating_sub(count);
                    self.take_bytes(index, count, lent);
                }
                Ok(ReadOutcome::WouldBlock) => output.readable = false,
                // A pipe cannot fail to be read; whatever it is, nothing more will come of it.
                Ok(ReadOutcome::End) | Err(_) => self.close_one(index, lent),
            }
        }
        total
    }

    /// Turns the first `count` bytes of the read buffer into records.
    fn take_bytes(&mut self, index: usize, count: usize, lent: &mut Lent<'_>) {
        let (Some(output), Some(log)) = (self.pipes[index].as_mut(), self.log.as_mut()) else { return };
        let Some(chunk) = lent.read_buffer.get(..count) else { return };
        let stream = stream_of(index);
        match stream {
            OutputStream::Stdout => self.count.stdout_bytes += count as u64,
            OutputStream::Stderr => self.count.stderr_bytes += count as u64,
        }
        let held_before = output.splitter.held();
        let records = &mut *lent.records;
        let mut lines = 0;
        match log.format {
            LogFormat::Cri => {
                let time = log.now();
                output.splitter.push(chunk, |piece| {
                    lines += u64::from(piece.ending == Ending::Newline);
                    records.push_piece(time, stream, piece);
                });
            }
            LogFormat::Raw => {
                lines = memchr::memchr_iter(b'\n', chunk).count() as u64;
                if log.merged {
                    // One pipe: nothing to keep apart.
                    records.push_raw(chunk);
                } else {
                    output.splitter.push_bulk(chunk, |bytes| records.push_raw(bytes));
                }
            }
        }
        self.count.lines += lines;
        // The flush time runs from when the unfinished line began; a line that went on keeps its deadline.
        if output.splitter.held() == 0 {
            self.flush[index].disarm();
        } else if held_before == 0 || lines > 0 {
            let due = lent.now + lent.settings.line_flush_time;
            lent.deadlines.arm(&mut self.flush[index], due, (self.key, Alarm::Flush(index as OutputIndex)));
        }
    }

    /// Moves the unfinished line of an output into the records.
    fn take_unfinished(&mut self, index: usize, lent: &mut Lent<'_>) {
        let (Some(output), Some(log)) = (self.pipes[index].as_mut(), self.log.as_mut()) else { return };
        if output.splitter.held() == 0 {
            return;
        }
        let (time, records) = (log.now(), &mut *lent.records);
        output.splitter.flush(|piece| match log.format {
            LogFormat::Raw => records.push_raw(piece.bytes),
            LogFormat::Cri => records.push_piece(time, stream_of(index), piece),
        });
    }

    /// Writes the records of this pass, all in one.
    fn write(&mut self, lent: &mut Lent<'_>) {
        if lent.records.bytes().is_empty() {
            return;
        }
        let Some(log) = &mut self.log else { return };
        let was_open = log.file.fd().is_some();
        let mut written = log.file.append(lent.log_dir.as_fd(), lent.records.bytes());
        if written.is_err_and(WriteFault::is_shortage) && lent.log_dir.lend_spare() {
            written = log.file.append(lent.log_dir.as_fd(), lent.records.bytes());
            log.file.close();
            lent.log_dir.take_spare_back();
        }
        let content_bytes = lent.records.clear();
        match written {
            Ok(()) => {
                log.failing = false;
                log.recent = true;
            }
            Err(fault) => {
                self.count.dropped_bytes += content_bytes;
                log.fault = fault.errno;
                self.news.fault |= !std::mem::replace(&mut log.failing, true);
            }
        }
        self.publish(false, lent);
        if !was_open {
            self.keep_log_open(lent);
        }
    }

    /// Tells the streams of the log how far it reaches.
    fn publish(&mut self, ended: bool, lent: &mut Lent<'_>) {
        let Some(log) = &self.log else { return };
        if let Some(progress) = log.progress.get() {
            self.news.ready |= progress.publish(log.file.length(), ended, &mut lent.queues.wakers);
        }
    }

    /// Lets go of an output; its unfinished line goes into the records of this pass.
    fn close_one(&mut self, index: usize, lent: &mut Lent<'_>) {
        self.take_unfinished(index, lent);
        lent.deadlines.remove(&mut self.flush[index], (self.key, Alarm::Flush(index as OutputIndex)));
        if let Some(output) = self.pipes[index].take() {
            lent.deregister(output.fd.as_fd());
        }
    }

    fn end_log(&mut self, lent: &mut Lent<'_>) {
        self.publish(true, lent);
        if self.has_open_log() {
            lent.queues.open_logs_count = lent.queues.open_logs_count.saturating_sub(1);
        }
    }
}

impl Log {
    /// The time for the next records.
    fn now(&mut self) -> Timestamp {
        self.last_time = self.last_time.max(unix_nanos());
        Timestamp::from_unix_nanos(self.last_time)
    }
}

fn stream_of(index: usize) -> OutputStream {
    if index == 0 { OutputStream::Stdout } else { OutputStream::Stderr }
}
