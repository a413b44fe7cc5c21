//! Floor 4: a job's outputs on their way into its log: pipes read within a budget, lines split, records written, readers told.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use crate::kernel::log_dir::LogDir;
use crate::kernel::stdio::{PIPE_BYTES, ReadOutcome, enlarge_pipe, read_output};
use crate::kernel::stream::LogStream;
use crate::kernel::watcher::Watcher;
use crate::lent::{Alarm, Lent, OutputIndex, Queues};
use crate::log::{Log, LogNews, Room};
use crate::logic::deadlines::Deadline;
use crate::logic::lines::LineSplitter;
use crate::logic::pace::Pace;
use crate::logic::token::{Key, Source};
use crate::model::error::StreamError;
use crate::model::output::{LogFormat, OutputStream};
use crate::model::reading::ReadOptions;
use crate::model::status::OutputCount;

/// Bytes that are read of a pipe at most when its output is given up: what one may hold (/proc/sys/fs/pipe-max-size, unless a job is root), and more than one
/// holds that its job has left alone.
const CLOSING_BYTES: usize = 1 << 20;

/// Bytes that are read of an output at a time, at most.
const READ_BYTES_MAX: usize = 256 << 10;

/// Bytes of an unfinished line that is put in front of each read of a raw log, at most: a longer one would be copied too often.
const HELD_IN_FRONT_MAX: usize = 64 << 10;

/// How soon, at least, an unfinished line is looked at again that waits for its log.
const HELD_FLUSH_AFTER: Duration = Duration::from_millis(100);

/// How soon a pipe is looked at again that could not be put back into the loop.
const GATHER_RETRY_AFTER: Duration = Duration::from_millis(10);

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
    /// How it has been written to lately.
    pace: Pace,
    /// Whether it is out of the loop for a moment, for more to gather in the pipe.
    is_gathering: bool,
}

/// The captured outputs of one job, and its log. Both may be missing: an output that is not captured, or at its end.
#[derive(Debug)]
pub(crate) struct Outputs {
    key: Key,
    pipes: [Option<Output>; 2],
    log: Option<Log>,
    /// When the unfinished line of each is written as it stands.
    flush: [Deadline; 2],
    /// When what is left to gather in the pipes is read.
    gather: Deadline,
    /// The turn that the budget is for.
    turn: u64,
    budget_left: usize,
    /// The output that is read first: 1 after a turn in which output 0 used up the budget.
    reads_first: usize,
    count: OutputCount,
    news: LogNews,
}

/// Where the outputs stand after a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// The budget is spent: there may be more.
    More,
    /// Nothing can be read now.
    Quiet,
    /// Nothing is to be read now: it waits for the log.
    Held,
    /// Every output is at its end.
    Closed,
}

impl Outputs {
    /// The outputs of the job at `key`: the read ends of its pipes, and the log that they go to.
    pub(crate) fn new(key: Key, pipes: [Option<OwnedFd>; 2], log: Option<Log>, line_bytes_max: usize) -> Self {
        let new_output = |fd| Output {
            fd,
            splitter: LineSplitter::new(line_bytes_max),
            readable: false,
            hung_up: false,
            enlarged: false,
            pace: Pace::default(),
            is_gathering: false,
        };
        Self {
            key,
            pipes: pipes.map(|fd| fd.map(new_output)),
            log,
            flush: [Deadline::default(); 2],
            gather: Deadline::default(),
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
        Some(self.log.as_ref()?.path(log_dir))
    }

    /// The error number of the last write that failed.
    pub(crate) fn fault(&self) -> i32 {
        self.log.as_ref().map_or(0, Log::fault)
    }

    /// What is to be told since the last time that this was asked.
    pub(crate) fn take_news(&mut self) -> LogNews {
        std::mem::take(&mut self.news)
    }

    /// Whether the job is to be killed for a log that cannot be written. Says so once.
    pub(crate) fn take_kill(&mut self) -> bool {
        std::mem::take(&mut self.news.kill)
    }

    /// A reader of the log; `None` if there is no log.
    pub(crate) fn stream(
        &self,
        options: &ReadOptions,
        has_ended: bool,
        log_dir: &LogDir,
        watcher: &Watcher,
    ) -> Option<Result<LogStream, StreamError>> {
        Some(self.log.as_ref()?.stream(options, has_ended, log_dir, watcher))
    }

    /// Something was written into a log that the job itself writes.
    pub(crate) fn look_at_log(&mut self, lent: &mut Lent<'_>) {
        if let Some(log) = &mut self.log {
            self.news |= log.look(lent);
        }
    }

    /// Output that was held back may go on now. As [`read`](Self::read).
    pub(crate) fn go_on(&mut self, lent: &mut Lent<'_>) -> (usize, Readiness) {
        let Some(log) = &mut self.log else { return (0, self.readiness()) };
        let (goes_on, news) = log.go_on(&mut self.count, lent);
        self.news |= news;
        if !goes_on {
            return (0, self.readiness());
        }
        for output in self.pipes.iter_mut().flatten() {
            output.readable = true;
        }
        self.read(lent)
    }

    /// Whether output waits for a log that cannot be written.
    pub(crate) fn is_held(&self) -> bool {
        self.log.as_ref().is_some_and(Log::is_held)
    }

    /// The kernel says that an output can be read; `closed`, that its other end is closed: not that it is empty, whatever else is said or not (the kernel looks at
    /// the two without a lock). What comes in many small pieces is left to gather for a moment, out of the loop: each piece would wake it.
    pub(crate) fn set_readable(&mut self, index: OutputIndex, closed: bool, lent: &mut Lent<'_>) {
        let Some(output) = &mut self.pipes[usize::from(index)] else { return };
        output.hung_up |= closed;
        if !(output.hung_up || output.readable || output.is_gathering)
            && let Some(wait) = output.pace.wait(lent.now, lent.settings.coalesce_time)
        {
            output.is_gathering = true;
            lent.deregister(output.fd.as_fd());
            lent.deadlines.arm_sooner(&mut self.gather, lent.now + wait, (self.key, Alarm::Gather));
            return;
        }
        output.readable = true;
    }

    /// What was left to gather is to be read. As [`read`](Self::read).
    pub(crate) fn gathered(&mut self, lent: &mut Lent<'_>) -> (usize, Readiness) {
        if !lent.deadlines.settle(&mut self.gather, lent.now, (self.key, Alarm::Gather)) {
            return (0, self.readiness());
        }
        for output in self.pipes.iter_mut().flatten() {
            output.readable |= output.is_gathering;
        }
        let (bytes, _) = self.read(lent);
        for (index, output) in self.pipes.iter_mut().enumerate() {
            let Some(output) = output.as_mut().filter(|output| output.is_gathering) else { continue };
            let source = if index == 0 { Source::Stdout } else { Source::Stderr };
            output.is_gathering = lent.register(output.fd.as_raw_fd(), self.key, source).is_err();
            if output.is_gathering {
                // Out of memory for a moment: it is read without being told.
                lent.deadlines.arm(&mut self.gather, lent.now + GATHER_RETRY_AFTER, (self.key, Alarm::Gather));
            }
        }
        (bytes, self.readiness())
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
        if self.is_held() {
            // It is looked at again when it may be written.
            lent.deadlines.arm(&mut self.flush[index], lent.now + lent.settings.line_flush_time.max(HELD_FLUSH_AFTER), alarm);
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

    /// The time to wait for the log is over. What the pipes hold was written by the job: it is to be in the log, or counted.
    pub(crate) fn give_up_waiting(&mut self, lent: &mut Lent<'_>) {
        let Some(log) = self.log.as_mut().filter(|log| log.is_held()) else { return };
        self.news |= log.give_up(&mut self.count, lent);
        self.read_what_is_there(lent);
    }

    /// Reads what the pipes hold, up to a bound.
    pub(crate) fn read_what_is_there(&mut self, lent: &mut Lent<'_>) {
        self.read_to_the_end();
        for index in 0..self.pipes.len() {
            self.budget_left = CLOSING_BYTES;
            self.read_one(index, lent);
        }
        self.write(lent);
    }

    /// The main process has ended: a limit on the speed of output has lost its sense. Whether there is something to be read.
    pub(crate) fn lift_rate(&mut self) -> bool {
        let Some(log) = self.log.as_mut().filter(|log| log.is_held()) else { return false };
        log.lift_rate();
        let is_lifted = !log.is_held();
        for output in self.pipes.iter_mut().flatten().filter(|_| is_lifted) {
            output.readable = true;
        }
        is_lifted
    }

    /// Lets go of every output; what was not read is lost, what was read goes into the log, or is counted.
    pub(crate) fn close(&mut self, lent: &mut Lent<'_>) {
        self.give_up_waiting(lent);
        for index in 0..self.pipes.len() {
            self.close_one(index, lent);
        }
        self.write(lent);
    }

    /// Nobody is left to write, so what the pipes hold now is all: the next read goes on until they say that they are empty. (A short read does not
    /// say so where a job has put its pipe into packet mode.)
    pub(crate) fn read_to_the_end(&mut self) {
        if let Some(log) = &mut self.log {
            log.lift_rate();
        }
        for output in self.pipes.iter_mut().flatten() {
            (output.readable, output.hung_up) = (true, true);
        }
    }

    /// Notes that outputs are closed before their end. With nobody left to write, that is only where something was left to read.
    pub(crate) fn note_cut_off(&mut self, nobody_writes: bool) {
        self.count.cut_off |= if nobody_writes { self.readiness() == Readiness::More } else { self.is_open() };
    }

    /// Tells the readers that nothing more will come.
    pub(crate) fn end_streams(&mut self, lent: &mut Lent<'_>) {
        if let Some(log) = &mut self.log {
            self.news |= log.end(lent);
        }
    }

    /// The job goes on without us: its log is not written any more, and not sealed.
    pub(crate) fn close_log(&mut self, lent: &mut Lent<'_>) {
        if let Some(log) = &mut self.log {
            log.leave(&mut self.count, lent);
        }
    }

    /// The log is complete: tells its readers, and seals it.
    pub(crate) fn seal_log(&mut self, lent: &mut Lent<'_>) {
        if let Some(log) = &mut self.log {
            self.news |= log.seal(&mut self.count, lent);
        }
    }

    /// The job is over, and its log is to go.
    pub(crate) fn forget_log(&mut self, log_dir: &LogDir) -> io::Result<()> {
        self.log.take().map_or(Ok(()), |mut log| log.delete(log_dir))
    }

    /// The job never ran: its log goes.
    pub(crate) fn delete_log(&mut self, lent: &mut Lent<'_>) {
        if let Some(mut log) = self.log.take() {
            self.news |= log.end(lent);
            let _ = log.delete(lent.log_dir);
        }
    }

    /// Counts a log that has just been opened, and closes it again if too many are open.
    pub(crate) fn keep_log_open(&mut self, lent: &mut Lent<'_>) {
        if let Some(log) = &mut self.log {
            log.keep_open(lent);
        }
    }

    /// Whether the log is open.
    pub(crate) fn has_open_log(&self) -> bool {
        self.log.as_ref().is_some_and(Log::has_open_file)
    }

    /// See [`Log::make_room`].
    pub(crate) fn make_room(&mut self, queues: &mut Queues) -> Room {
        self.log.as_mut().map_or(Room::None, |log| log.make_room(queues))
    }

    fn readiness(&self) -> Readiness {
        if self.is_held() && self.is_open() {
            Readiness::Held
        } else if self.pipes.iter().flatten().any(|output| output.readable) {
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
        if self.is_held() {
            return total;
        }
        while let Some(output) = self.pipes[index].as_mut().filter(|output| output.readable && self.budget_left > 0) {
            let bytes_max = READ_BYTES_MAX.min(lent.settings.read_budget_bytes);
            let held_before = output.splitter.held();
            let (outcome, lines) = match &mut self.log {
                Some(log) if log.format() == LogFormat::Raw && held_before <= HELD_IN_FRONT_MAX => {
                    // Two pipes have lines to keep apart.
                    let splitter = (!log.is_merged()).then_some(&mut output.splitter);
                    lent.records.read_raw(output.fd.as_fd(), bytes_max, splitter)
                }
                log => {
                    lent.read_buffer.clear();
                    let outcome = read_output(output.fd.as_fd(), lent.read_buffer, bytes_max);
                    let lines = match log {
                        Some(log) if log.format() == LogFormat::Raw => lent.records.push_bulk(lent.read_buffer, &mut output.splitter),
                        Some(log) if !lent.read_buffer.is_empty() => {
                            lent.records.push_lines(log.now(), stream_of(index), lent.read_buffer, &mut output.splitter)
                        }
                        _ => 0,
                    };
                    (outcome, lines)
                }
            };
            match outcome {
                Ok(ReadOutcome::Bytes { count, filled }) => {
                    // A pipe gives what it has: less than asked for means empty, unless its end is still to be read.
                    output.readable = filled || output.hung_up;
                    if count >= PIPE_BYTES && !std::mem::replace(&mut output.enlarged, true) {
                        enlarge_pipe(output.fd.as_fd());
                    }
                    output.pace.note_read(count, lent.now);
                    total += count;
                    self.budget_left = self.budget_left.saturating_sub(count);
                    self.count_bytes(index, count, lines, held_before, lent);
                }
                Ok(ReadOutcome::WouldBlock) => output.readable = false,
                // A pipe cannot fail to be read; whatever it is, nothing more will come of it.
                Ok(ReadOutcome::End) | Err(_) => self.close_one(index, lent),
            }
        }
        total
    }

    /// Counts what was read of an output, and sees to the time of its unfinished line, of which `held_before` bytes were there before.
    fn count_bytes(&mut self, index: usize, bytes: usize, lines: u64, held_before: usize, lent: &mut Lent<'_>) {
        match stream_of(index) {
            OutputStream::Stdout => self.count.stdout_bytes += bytes as u64,
            OutputStream::Stderr => self.count.stderr_bytes += bytes as u64,
        }
        self.count.lines += lines;
        // The flush time runs from when the unfinished line began; a line that went on keeps its deadline.
        let held = self.pipes[index].as_ref().map_or(0, |output| output.splitter.held());
        if held == 0 {
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
        output.splitter.flush(|piece| match log.format() {
            LogFormat::Raw => records.push_raw(piece.bytes),
            LogFormat::Cri => records.push_piece(time, stream_of(index), piece),
        });
    }

    /// Writes the records of this pass, all in one.
    fn write(&mut self, lent: &mut Lent<'_>) {
        if let Some(log) = &mut self.log {
            self.news |= log.write(&mut self.count, lent);
        }
    }

    /// Lets go of an output; its unfinished line goes into the records of this pass.
    fn close_one(&mut self, index: usize, lent: &mut Lent<'_>) {
        self.take_unfinished(index, lent);
        lent.deadlines.remove(&mut self.flush[index], (self.key, Alarm::Flush(index as OutputIndex)));
        if let Some(output) = self.pipes[index].take() {
            lent.deregister(output.fd.as_fd());
        }
        if !self.is_open() {
            lent.deadlines.remove(&mut self.gather, (self.key, Alarm::Gather));
        }
    }
}

fn stream_of(index: usize) -> OutputStream {
    if index == 0 { OutputStream::Stdout } else { OutputStream::Stderr }
}
