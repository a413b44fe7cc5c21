//! Floor 4: one job's log: records on their way into its files, within its bounds, whatever the disk does.

use std::cell::{Cell, OnceCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memchr::{memchr, memrchr};

use crate::kernel::log_dir::{self, LogDir};
use crate::kernel::log_file::{Inode, LogFile, WriteFault};
use crate::kernel::stream::files::LogFiles;
use crate::kernel::stream::progress::LogProgress;
use crate::kernel::stream::{LogStream, Source};
use crate::kernel::watcher::{Watch, Watcher};
use crate::lent::{Alarm, Lent, Queues, unix_nanos};
use crate::logic::bucket::Bucket;
use crate::logic::cri::{Decoded, Decoder};
use crate::logic::deadlines::Deadline;
use crate::logic::mark::Place;
use crate::logic::token::Key;
use crate::model::error::{StreamError, errno};
use crate::model::log_policy::{LogPolicy, OnLogFault, OverRate, WhenFull};
use crate::model::output::{LogFormat, OutputStream, Timestamp};
use crate::model::reading::ReadOptions;
use crate::model::status::OutputCount;

/// How soon writing is tried again where output waits for it, at first and at most.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(20);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(1);

/// Bytes of a full log that are kept free for the record which says how much is missing.
const LAST_WORD_BYTES: u64 = 192;

/// A log and what its readers are told.
#[derive(Debug)]
pub(crate) struct Log {
    key: Key,
    file: LogFile,
    format: LogFormat,
    /// Whether both outputs come through one pipe, or the job itself writes.
    is_merged: bool,
    /// Whether the job itself writes.
    is_direct: bool,
    /// Whether the last write failed.
    is_failing: bool,
    /// Whether it was written since the open logs were last looked through.
    is_recent: bool,
    /// Whether it stands in the list of open logs.
    is_listed: bool,
    /// The error number of the last write that failed.
    fault: i32,
    /// The time of the last record, in nanoseconds since 1970: times never run backwards in a log.
    last_time: u64,
    progress: OnceCell<Arc<LogProgress>>,
    /// Tells readers of a log that the job itself writes.
    watch: Cell<Option<Watch>>,
    /// What only a log has that is bounded, or could not be written once.
    bounds: Option<Box<Bounds>>,
}

/// The bounds of a log, and where it stands within them.
#[derive(Debug)]
struct Bounds {
    policy: LogPolicy,
    /// The files that are full and kept, oldest first.
    earlier: VecDeque<EarlierFile>,
    /// The place of the file that is being written.
    place: Place,
    /// What is in it.
    held: FileContent,
    /// The job's bytes that were dropped since the log last said so.
    missing: Missing,
    /// What is dropped because the log is full: its end, or its middle.
    cut: Option<Cut>,
    bucket: Option<Bucket>,
    hold: Option<Hold>,
    /// When what is held back may go on.
    alarm: Deadline,
    retry_after: Duration,
    /// Nobody will wait for the log any more.
    is_given_up: bool,
}

/// A file of the log that is full.
#[derive(Debug)]
struct EarlierFile {
    place: Place,
    inode: Inode,
    held: FileContent,
}

/// What is in a file of the log.
#[derive(Clone, Copy, Debug, Default)]
struct FileContent {
    /// How many of the job's own bytes.
    content_bytes: u64,
    /// How many bytes it says are missing.
    missing_bytes: u64,
    /// The time of its first record.
    began: Timestamp,
}

/// Bytes of the job that are not in the log, which does not say so yet.
#[derive(Clone, Copy, Debug)]
struct Missing {
    bytes: u64,
    reason: Reason,
    /// When the last of them were read: later than all that is in the log, earlier than all that comes.
    time: Timestamp,
}

/// What of a log is cut away because it is full.
#[derive(Clone, Copy, Debug, Default)]
struct Cut {
    bytes: u64,
    /// Where in the last file the record stands that says so.
    offset: Option<u64>,
}

/// Why output is not read for a while.
#[derive(Debug)]
enum Hold {
    /// It came too fast.
    Rate,
    /// These records could not be written; so many of the job's own bytes are in them.
    Fault { records: Vec<u8>, content_bytes: u64 },
}

/// Why output is missing in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Fault(i32),
    Rate,
    Full,
}

/// What the job's owner is to be told of its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogNews {
    /// Writes have begun to fail.
    pub(crate) fault: bool,
    /// Writing works again.
    pub(crate) resumed: bool,
    /// It is full, and something of it is being dropped.
    pub(crate) full: bool,
    /// A reader that waited has more to read, or the end.
    pub(crate) ready: bool,
    /// The job is to be killed for a log that cannot be written.
    pub(crate) kill: bool,
}

impl std::ops::BitOrAssign for LogNews {
    fn bitor_assign(&mut self, other: Self) {
        if other.fault && self.resumed {
            // It worked again for a moment only: nothing has changed.
            self.resumed = false;
        } else {
            self.fault |= other.fault;
        }
        self.resumed |= other.resumed;
        self.full |= other.full;
        self.ready |= other.ready;
        self.kill |= other.kill;
    }
}

/// Why not all records were written.
enum Refusal {
    Fault(WriteFault),
    Full,
}

impl From<WriteFault> for Refusal {
    fn from(fault: WriteFault) -> Self {
        Refusal::Fault(fault)
    }
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

impl Log {
    /// The log of the job at `key`. `pipes`: how many its output comes through; 0 if the job itself writes.
    pub(crate) fn new(key: Key, file: LogFile, format: LogFormat, policy: LogPolicy, pipes: usize, now: Instant) -> Self {
        let is_plain = policy == LogPolicy::default();
        Self {
            key,
            file,
            format,
            is_merged: pipes < 2,
            is_direct: pipes == 0,
            is_failing: false,
            is_recent: false,
            is_listed: false,
            fault: 0,
            last_time: 0,
            progress: OnceCell::new(),
            watch: Cell::new(None),
            bounds: (!is_plain).then(|| Box::new(Bounds::new(policy, now))),
        }
    }

    pub(crate) fn format(&self) -> LogFormat {
        self.format
    }

    /// Whether both outputs come through one pipe.
    pub(crate) fn is_merged(&self) -> bool {
        self.is_merged
    }

    pub(crate) fn path(&self, log_dir: &LogDir) -> PathBuf {
        log_dir.path_of(self.file.name())
    }

    /// The error number of the last write that failed.
    pub(crate) fn fault(&self) -> i32 {
        self.fault
    }

    /// The time for the next records.
    pub(crate) fn now(&mut self) -> Timestamp {
        self.last_time = self.last_time.max(unix_nanos());
        Timestamp::from_unix_nanos(self.last_time)
    }

    /// Whether the job's output is not to be read now.
    pub(crate) fn is_held(&self) -> bool {
        self.bounds.as_ref().is_some_and(|bounds| bounds.hold.is_some())
    }

    /// A reader of the log.
    pub(crate) fn stream(
        &self,
        options: &ReadOptions,
        has_ended: bool,
        log_dir: &LogDir,
        watcher: &Watcher,
    ) -> Result<LogStream, StreamError> {
        let path = self.path(log_dir);
        let failed = |source: io::Error| StreamError::Io { path: path.clone(), source };
        if self.is_direct && !has_ended && self.watch.get().is_none() {
            // Before the file is read, or what is written in between would be told to nobody.
            self.watch.set(Some(watcher.watch_log(&path, self.key).map_err(failed)?));
        }
        let file = self.file.open_reader(log_dir.as_fd()).map_err(failed)?;
        let progress = self.progress.get_or_init(|| {
            let progress = LogProgress::default();
            progress.set_places(self.places());
            progress.publish(self.length(), has_ended, &mut Vec::new());
            Arc::new(progress)
        });
        let raw_stream = self.is_merged.then_some(OutputStream::Stdout);
        let (places, source) = (progress.places(), Source::live(Arc::clone(progress), self.is_direct));
        let end = (!self.is_direct).then(|| self.length());
        let files = LogFiles::new(log_dir.share(), path.clone(), file.as_fd(), Some(log_dir.worker()), log_dir::read_attribute);
        LogStream::open(files.map_err(failed)?, &file, (&places, end), source, (self.format, raw_stream), options)
    }

    /// Something was written into a log that the job itself writes.
    pub(crate) fn look(&mut self, lent: &mut Lent<'_>) -> LogNews {
        let Some(progress) = self.progress.get() else { return LogNews::default() };
        if Arc::strong_count(progress) == 1 {
            // Nobody reads it any more. Whoever comes next reads from the file, and has it watched again.
            self.unwatch(lent.watcher);
        }
        // Deleted, or replaced: its readers have the file open.
        let _ = self.file.look_at_length(lent.log_dir.as_fd());
        self.publish(false, lent)
    }

    /// Writes the records of this pass.
    pub(crate) fn write(&mut self, count: &mut OutputCount, lent: &mut Lent<'_>) -> LogNews {
        if lent.records.is_empty() {
            return LogNews::default();
        }
        let was_open = self.has_open_file();
        let (records, content_bytes) = lent.records.take();
        let mut news = LogNews::default();
        if self.is_over_rate(lent.now) {
            self.drop_bytes(content_bytes, Reason::Rate, count, lent.now);
        } else {
            news = self.write_records(&records, content_bytes, count, lent);
        }
        lent.records.give_back(records);
        news |= self.publish(false, lent);
        if !was_open {
            self.keep_open(lent);
        }
        news
    }

    /// What was held back may go on now, if that time has come. Whether output may be read again.
    pub(crate) fn go_on(&mut self, count: &mut OutputCount, lent: &mut Lent<'_>) -> (bool, LogNews) {
        let (key, now) = ((self.key, Alarm::Log), lent.now);
        let Some(bounds) = self.bounds.as_mut() else { return (false, LogNews::default()) };
        if !lent.deadlines.settle(&mut bounds.alarm, now, key) {
            return (false, LogNews::default());
        }
        let news = self.try_held(count, lent);
        (!self.is_held(), news)
    }

    /// The job has ended: a limit on its speed has lost its sense.
    pub(crate) fn lift_rate(&mut self) {
        if let Some(bounds) = &mut self.bounds {
            bounds.bucket = None;
            if matches!(bounds.hold, Some(Hold::Rate)) {
                bounds.hold = None;
            }
        }
    }

    /// The time to wait for the log is over: what cannot be written from now on is dropped.
    pub(crate) fn give_up(&mut self, count: &mut OutputCount, lent: &mut Lent<'_>) -> LogNews {
        self.lift_rate();
        if let Some(bounds) = &mut self.bounds {
            bounds.is_given_up = true;
        }
        self.try_held(count, lent)
    }

    /// The log is complete: tells its readers, and seals it. A log that was deleted or replaced by somebody has no seal to get.
    pub(crate) fn seal(&mut self, count: &mut OutputCount, lent: &mut Lent<'_>) -> LogNews {
        let mut news = self.give_up(count, lent);
        news |= self.say_last_word(count, lent);
        self.count_direct(count, lent);
        news |= self.end(lent);
        if self.file.seal(lent.log_dir.as_fd()).is_err_and(WriteFault::is_shortage) && lent.log_dir.lend_spare() {
            let _ = self.file.seal(lent.log_dir.as_fd());
            lent.log_dir.take_spare_back();
        }
        news
    }

    /// Lets go of the log after its [end](Self::end), as it is.
    pub(crate) fn leave(&mut self, count: &mut OutputCount, lent: &mut Lent<'_>) {
        self.count_direct(count, lent);
        self.close();
    }

    /// What a job writes itself is counted by the length of its log.
    fn count_direct(&mut self, count: &mut OutputCount, lent: &mut Lent<'_>) {
        if self.is_direct {
            count.stdout_bytes = self.file.look_at_length(lent.log_dir.as_fd()).unwrap_or(count.stdout_bytes);
        }
    }

    /// Deletes every file of the log; that one is gone already is as good.
    pub(crate) fn delete(&mut self, log_dir: &LogDir) -> io::Result<()> {
        let mut result = Ok(());
        for file in self.bounds.as_mut().map(|bounds| std::mem::take(&mut bounds.earlier)).unwrap_or_default() {
            result = result.and(self.file.delete_earlier(log_dir.as_fd(), file.place.number, file.inode));
        }
        match self.file.delete(log_dir.as_fd()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => result,
        }
    }

    /// Tells the readers that nothing more will come, and lets go of what is the loop's.
    pub(crate) fn end(&mut self, lent: &mut Lent<'_>) -> LogNews {
        if let Some(bounds) = &mut self.bounds {
            lent.deadlines.remove(&mut bounds.alarm, (self.key, Alarm::Log));
        }
        self.unwatch(lent.watcher);
        if self.has_open_file() {
            lent.queues.open_logs_count = lent.queues.open_logs_count.saturating_sub(1);
        }
        self.publish(true, lent)
    }

    /// Closes the file, which is opened again for the next write.
    pub(crate) fn close(&mut self) {
        self.file.close();
    }

    /// Counts a log that has just been opened, and closes it again if too many are open.
    pub(crate) fn keep_open(&mut self, lent: &mut Lent<'_>) {
        if !self.has_open_file() {
            return;
        }
        if lent.queues.open_logs_count >= lent.settings.open_logs_max {
            self.file.close();
            lent.queues.open_logs_wanted += 1;
            return;
        }
        lent.queues.open_logs_count += 1;
        if !std::mem::replace(&mut self.is_listed, true) {
            lent.queues.open_logs.push_back(self.key);
        }
    }

    /// Whether the log is open; one that has ended stays in the list of open logs until that is cleared.
    pub(crate) fn has_open_file(&self) -> bool {
        self.file.fd().is_some()
    }

    /// Makes room among the open logs by closing this one; one that was written lately is passed over once.
    pub(crate) fn make_room(&mut self, queues: &mut Queues) -> Room {
        if !self.is_listed {
            return Room::None;
        }
        if !self.has_open_file() {
            self.is_listed = false;
            return Room::None;
        }
        if std::mem::take(&mut self.is_recent) {
            return Room::Later;
        }
        self.is_listed = false;
        self.file.close();
        queues.open_logs_count = queues.open_logs_count.saturating_sub(1);
        Room::Made
    }

    /// The files that are kept, oldest first.
    fn places(&self) -> impl Iterator<Item = Place> {
        let bounds = self.bounds.as_deref();
        let earlier = bounds.into_iter().flat_map(|bounds| bounds.earlier.iter().map(|file| file.place));
        earlier.chain([bounds.map_or(Place::FIRST, |bounds| bounds.place)])
    }

    /// Bytes of the whole log, also of files that are gone.
    fn length(&self) -> u64 {
        self.bounds.as_ref().map_or(0, |bounds| bounds.place.start) + self.file.length()
    }

    /// Tells the streams of the log how far it reaches.
    fn publish(&self, ended: bool, lent: &mut Lent<'_>) -> LogNews {
        let ready = self.progress.get().is_some_and(|progress| progress.publish(self.length(), ended, &mut lent.queues.wakers));
        LogNews { ready, ..LogNews::default() }
    }

    fn unwatch(&self, watcher: &Watcher) {
        if let Some(watch) = self.watch.take() {
            watcher.unwatch(watch);
        }
    }

    fn is_over_rate(&mut self, now: Instant) -> bool {
        let Some(bounds) = self.bounds.as_mut() else { return false };
        let drops = matches!(bounds.policy.rate, Some((_, OverRate::Drop)));
        drops && bounds.bucket.as_mut().is_some_and(|bucket| !bucket.has_some(now))
    }

    /// Tries to write what is held back.
    fn try_held(&mut self, count: &mut OutputCount, lent: &mut Lent<'_>) -> LogNews {
        let was_open = self.has_open_file();
        let Some(Hold::Fault { records, content_bytes }) = self.bounds.as_mut().and_then(|bounds| bounds.hold.take()) else {
            return LogNews::default();
        };
        let mut news = self.write_records(&records, content_bytes, count, lent);
        news |= self.publish(false, lent);
        if !was_open {
            self.keep_open(lent);
        }
        news
    }

    /// Writes records, and decides what becomes of those that cannot be written.
    fn write_records(&mut self, records: &[u8], content_bytes: u64, count: &mut OutputCount, lent: &mut Lent<'_>) -> LogNews {
        let mut news = LogNews::default();
        let word = self.word_of_missing(lent);
        let (written, outcome) = if word.is_empty() {
            self.put(records, content_bytes, count, lent)
        } else {
            let (written, outcome) = self.put(&[&*word, records].concat(), content_bytes, count, lent);
            if let Some(bounds) = self.bounds.as_mut().filter(|_| written >= word.len()) {
                bounds.missing.bytes = 0;
            }
            (written.saturating_sub(word.len()), outcome)
        };
        let rest = records.get(written..).unwrap_or_default();
        let left = if written == 0 && outcome.is_err() { content_bytes } else { content_of(rest, self.format) };
        let on_fault = self.bounds.as_ref().map_or(OnLogFault::Drop, |bounds| bounds.on_fault());
        match outcome {
            Ok(()) => {
                news.resumed = std::mem::take(&mut self.is_failing);
                self.is_recent = true;
            }
            Err(Refusal::Full) => {
                news.full = self.drop_tail(left, count, lent);
            }
            Err(Refusal::Fault(WriteFault { errno })) => {
                self.fault = errno;
                news.fault = !std::mem::replace(&mut self.is_failing, true);
                if on_fault == OnLogFault::Pause {
                    self.hold_back(Hold::Fault { records: rest.to_vec(), content_bytes: left }, None, lent);
                } else {
                    news.kill = on_fault == OnLogFault::Kill;
                    self.drop_bytes(left, Reason::Fault(errno), count, lent.now);
                }
            }
        }
        self.note_written(content_bytes.saturating_sub(left), lent);
        news
    }

    /// Puts records, in which are so many of the job's bytes, into the file, and into the next ones where that is full. Returns how many bytes were taken, whole
    /// records all.
    fn put(&mut self, records: &[u8], content_bytes: u64, count: &mut OutputCount, lent: &mut Lent<'_>) -> (usize, Result<(), Refusal>) {
        let mut written = 0;
        while let Some(rest) = records.get(written..).filter(|rest| !rest.is_empty()) {
            let part = rest.get(..self.part_that_fits(rest)).unwrap_or(rest);
            let done = if part.is_empty() { self.make_place(count, lent) } else { self.append(part, lent).map_err(Refusal::from) };
            if let Err(refusal) = done {
                return (written, Err(refusal));
            }
            if let Some(bounds) = self.bounds.as_mut().filter(|_| !part.is_empty()) {
                bounds.held.content_bytes += if part.len() == records.len() { content_bytes } else { content_of(part, self.format) };
                let first = if self.format == LogFormat::Cri { Decoder::new().decode(part) } else { Decoded::Incomplete };
                if let Decoded::Dropped { bytes, .. } = first {
                    // It stands at the start, or nowhere.
                    bounds.held.missing_bytes += bytes;
                }
                if let (Decoded::Record { time, .. } | Decoded::Dropped { time, .. }, true) =
                    (first, self.file.length() == part.len() as u64)
                {
                    bounds.held.began = time;
                }
            }
            written += part.len();
        }
        (written, Ok(()))
    }

    fn append(&mut self, records: &[u8], lent: &mut Lent<'_>) -> Result<(), WriteFault> {
        let written = self.file.append(lent.log_dir.as_fd(), records);
        if !(written.is_err_and(WriteFault::is_shortage) && lent.log_dir.lend_spare()) {
            return written;
        }
        let written = self.file.append(lent.log_dir.as_fd(), records);
        self.file.close();
        lent.log_dir.take_spare_back();
        written
    }

    /// How many bytes of these records, whole ones, may still go into the file; 0 if it is full.
    fn part_that_fits(&self, records: &[u8]) -> usize {
        let Some((bounds, bytes_max)) = self.bounds.as_ref().and_then(|bounds| Some((bounds, bounds.policy.bytes_max?))) else {
            return records.len();
        };
        let is_last = bounds.is_last_file();
        if is_last && bounds.cut.is_some() {
            return 0;
        }
        let reserved = if is_last && self.format == LogFormat::Cri { LAST_WORD_BYTES } else { 0 };
        let room = bytes_max.saturating_sub(reserved).saturating_sub(self.file.length());
        let Some(fitting) = usize::try_from(room).ok().and_then(|room| records.get(..room)) else { return records.len() };
        match memrchr(b'\n', fitting) {
            Some(last) => last + 1,
            None if self.file.length() > 0 || (is_last && self.format == LogFormat::Cri) => 0,
            // One record alone is longer than a file may be. In a raw log any byte may be the last.
            None if self.format == LogFormat::Raw => fitting.len(),
            None => memchr(b'\n', records).map_or(records.len(), |end| end + 1),
        }
    }

    /// The file is full: begins the next one, or says that there is none.
    fn make_place(&mut self, count: &mut OutputCount, lent: &mut Lent<'_>) -> Result<(), Refusal> {
        match self.bounds.as_ref().map(|bounds| bounds.policy.when_full) {
            None | Some(WhenFull::DropTail) => Err(Refusal::Full),
            Some(WhenFull::Rotate | WhenFull::DropMiddle) => {
                let rotated = self.rotate(count, lent);
                if !(rotated.is_err_and(WriteFault::is_shortage) && lent.log_dir.lend_spare()) {
                    return Ok(rotated?);
                }
                let rotated = self.rotate(count, lent);
                lent.log_dir.take_spare_back();
                Ok(rotated?)
            }
        }
    }

    /// Begins the next file of the log.
    fn rotate(&mut self, count: &mut OutputCount, lent: &mut Lent<'_>) -> Result<(), WriteFault> {
        // A file that is sealed ends in a whole record.
        self.file.mend(lent.log_dir.as_fd())?;
        let Some(bounds) = self.bounds.as_mut() else { return Ok(()) };
        let fault = |error: io::Error| WriteFault { errno: error.raw_os_error().unwrap_or(errno::EIO) };
        let (place, length) = (bounds.place, self.file.length());
        let next_place = Place { number: place.number + 1, start: place.start + length };
        let next = self.file.prepare_next(lent.log_dir.as_fd(), place.number)?;
        let marked = lent.log_dir.mark_by_attribute(next.fd(), self.format, next_place);
        let is_marked = match marked {
            Ok(is_marked) => is_marked,
            Err(error) => {
                next.discard(lent.log_dir.as_fd());
                return Err(fault(error));
            }
        };
        let full = self.file.rotate(lent.log_dir.as_fd(), next)?;
        if !is_marked && let Err(error) = lent.log_dir.mark_in_table(self.file.name(), self.format, next_place) {
            self.file.rotate_back(lent.log_dir.as_fd(), full, length);
            return Err(fault(error));
        }
        bounds.earlier.push_back(EarlierFile { place, inode: full.inode, held: std::mem::take(&mut bounds.held) });
        bounds.place = next_place;
        count.rotations += 1;
        // Before any of them goes, and after: a reader between the two finds what it was told of, or that it has changed.
        self.tell_places();
        if self.delete_surplus(count, lent) {
            self.tell_places();
        }
        // Only now: whoever sees the seal looks for the next file.
        full.seal();
        Ok(())
    }

    /// Deletes what is more than is to be kept; whether it was anything.
    fn delete_surplus(&mut self, count: &mut OutputCount, lent: &mut Lent<'_>) -> bool {
        let directory = lent.log_dir.as_fd();
        let mut has_changed = false;
        while let Some(bounds) = self.bounds.as_mut() {
            let is_middle = bounds.policy.when_full == WhenFull::DropMiddle;
            // The file that stands for what was dropped is not counted.
            let kept = 1 + bounds.earlier.len() - usize::from(bounds.cut.is_some());
            if kept as u64 <= bounds.policy.files_kept() {
                return has_changed;
            }
            has_changed = true;
            if !is_middle {
                let Some(file) = bounds.earlier.pop_front() else { return has_changed };
                count.deleted_bytes += file.held.content_bytes;
                // One that cannot be deleted is left to whoever cleans up the directory.
                let _ = self.file.delete_earlier(directory, file.place.number, file.inode);
                continue;
            }
            let has_stand_in = bounds.cut.is_some();
            let Some(file) = bounds.earlier.remove(1 + usize::from(has_stand_in)) else { return has_changed };
            let mut cut = bounds.cut.unwrap_or_default();
            // What it said is missing is missing here, too; counted it is.
            cut.bytes += file.held.content_bytes + file.held.missing_bytes;
            bounds.cut = Some(cut);
            count.discarded_bytes += file.held.content_bytes;
            // The file that says what is missing takes the place of the first that was dropped.
            let stand_in = if has_stand_in { bounds.earlier.remove(1) } else { None };
            let replaced = stand_in.as_ref().unwrap_or(&file);
            let (place, inode, began) = (replaced.place, replaced.inode, replaced.held.began);
            let mut word = Vec::new();
            lent.records.encode_dropped(&mut word, began, cut.bytes, Reason::Full.text());
            let (log_dir, format) = (&*lent.log_dir, self.format);
            let mark = |fd: BorrowedFd<'_>| log_dir.mark_by_attribute(fd, format, place).map(drop);
            let inode = self.file.replace_earlier(directory, (place.number, inode), &word, mark).unwrap_or(inode);
            if stand_in.is_some() {
                let _ = self.file.delete_earlier(directory, file.place.number, file.inode);
            }
            bounds.earlier.insert(1, EarlierFile { place, inode, held: FileContent { began, ..FileContent::default() } });
        }
        has_changed
    }

    /// Tells the streams of the log which files it has.
    fn tell_places(&self) {
        if let Some(progress) = self.progress.get() {
            progress.set_places(self.places());
        }
    }

    /// The word that something is missing, if it is and was not said.
    fn word_of_missing(&mut self, lent: &mut Lent<'_>) -> Vec<u8> {
        let mut word = Vec::new();
        let Some(bounds) = self.bounds.as_mut().filter(|bounds| bounds.missing.bytes > 0) else { return word };
        if self.format == LogFormat::Cri {
            let Missing { bytes, reason, time } = bounds.missing;
            lent.records.encode_dropped(&mut word, time, bytes, reason.text());
        } else {
            // In a raw log there is no place for it: the counter and the event tell.
            bounds.missing.bytes = 0;
        }
        word
    }

    /// Drops the end of a log that is full. Whether that is news.
    fn drop_tail(&mut self, bytes: u64, count: &mut OutputCount, lent: &mut Lent<'_>) -> bool {
        count.discarded_bytes += bytes;
        let Some(bounds) = self.bounds.as_mut() else { return false };
        let is_first = bounds.cut.is_none();
        // What was dropped before, and not said, is said with it.
        let cut = bounds.cut.get_or_insert_default();
        cut.bytes += bytes + std::mem::take(&mut bounds.missing.bytes);
        if cut.offset.is_none() && self.format == LogFormat::Cri {
            self.say_tail_is_cut(lent);
        }
        is_first
    }

    /// Says, as the last record of a full log, how much of its end was dropped; where that stands already, says it anew.
    fn say_tail_is_cut(&mut self, lent: &mut Lent<'_>) {
        let Some(Cut { bytes, offset }) = self.bounds.as_ref().and_then(|bounds| bounds.cut) else { return };
        let mut word = Vec::new();
        lent.records.encode_dropped(&mut word, Timestamp::from_unix_nanos(self.last_time), bytes, Reason::Full.text());
        if let Some(offset) = offset {
            // If that fails, the number in the log is too small; the status has the right one.
            let _ = self.file.overwrite(lent.log_dir.as_fd(), &word, offset);
            return;
        }
        if self.append(&word, lent).is_ok()
            && let Some(cut) = self.bounds.as_mut().and_then(|bounds| bounds.cut.as_mut())
        {
            // Where it ends is where the file does: somebody else may have added to that.
            cut.offset = Some(self.file.end().saturating_sub(word.len() as u64));
        }
    }

    /// The end of the log: says what is missing and was not said.
    fn say_last_word(&mut self, count: &mut OutputCount, lent: &mut Lent<'_>) -> LogNews {
        let was_open = self.has_open_file();
        // In a raw log there is no place for it.
        let is_missing = self.format == LogFormat::Cri && self.bounds.as_ref().is_some_and(|bounds| bounds.missing.bytes > 0);
        // As with any record: there may be no room for it in this file.
        let news = if is_missing { self.write_records(&[], 0, count, lent) } else { LogNews::default() };
        if self.format == LogFormat::Cri && self.bounds.as_ref().is_some_and(|bounds| bounds.is_last_file()) {
            self.say_tail_is_cut(lent);
        }
        if !was_open {
            self.keep_open(lent);
        }
        news
    }

    fn drop_bytes(&mut self, bytes: u64, reason: Reason, count: &mut OutputCount, now: Instant) {
        match reason {
            Reason::Fault(_) => count.dropped_bytes += bytes,
            Reason::Rate | Reason::Full => count.discarded_bytes += bytes,
        }
        let bounds = self.bounds.get_or_insert_with(|| Box::new(Bounds::new(LogPolicy::default(), now)));
        let time = Timestamp::from_unix_nanos(self.last_time);
        bounds.missing = Missing { bytes: bounds.missing.bytes + bytes, reason, time };
    }

    /// So many of the job's bytes are in the log now.
    fn note_written(&mut self, content_bytes: u64, lent: &mut Lent<'_>) {
        let Some(bounds) = self.bounds.as_mut().filter(|_| content_bytes > 0) else { return };
        bounds.retry_after = RETRY_AFTER_MIN;
        let wait = bounds.bucket.as_mut().and_then(|bucket| bucket.take(content_bytes, lent.now));
        if let (Some(wait), Some((_, OverRate::Pause))) = (wait, bounds.policy.rate) {
            self.hold_back(Hold::Rate, Some(wait), lent);
        }
    }

    /// Holds the job's output back for so long, or until the next try.
    fn hold_back(&mut self, hold: Hold, wait: Option<Duration>, lent: &mut Lent<'_>) {
        let Some(bounds) = self.bounds.as_mut().filter(|bounds| bounds.hold.is_none()) else { return };
        bounds.hold = Some(hold);
        let wait = wait.unwrap_or_else(|| {
            let doubled = RETRY_AFTER_MAX.min(2 * bounds.retry_after);
            std::mem::replace(&mut bounds.retry_after, doubled)
        });
        // A wait beyond what the clock can say never ends by itself.
        if let Some(due) = lent.now.checked_add(wait) {
            lent.deadlines.arm(&mut bounds.alarm, due, (self.key, Alarm::Log));
        }
    }
}

impl Bounds {
    fn new(policy: LogPolicy, now: Instant) -> Self {
        Self {
            policy,
            earlier: VecDeque::new(),
            place: Place::FIRST,
            held: FileContent::default(),
            missing: Missing { bytes: 0, reason: Reason::Full, time: Timestamp::default() },
            cut: None,
            bucket: policy.rate.map(|(rate, _)| Bucket::new(rate, now)),
            hold: None,
            alarm: Deadline::default(),
            retry_after: RETRY_AFTER_MIN,
            is_given_up: false,
        }
    }

    /// Whether the log is one file, which ends where it is full.
    fn is_last_file(&self) -> bool {
        self.policy.when_full == WhenFull::DropTail
    }

    /// What happens at a fault; at the end of the job nobody is left to wait, nor to kill.
    fn on_fault(&self) -> OnLogFault {
        if self.is_given_up { OnLogFault::Drop } else { self.policy.on_fault }
    }
}

impl Reason {
    /// As the log says it.
    fn text(self) -> &'static str {
        match self {
            Reason::Full => "the log is full",
            Reason::Rate => "it came too fast",
            Reason::Fault(errno::ENOSPC) => "no space left on device",
            Reason::Fault(errno::EDQUOT) => "disk quota exceeded",
            Reason::Fault(errno::EFBIG) => "file too large",
            Reason::Fault(errno::EIO) => "input/output error",
            Reason::Fault(errno::EROFS) => "read-only file system",
            Reason::Fault(errno::EMFILE | errno::ENFILE) => "too many open files",
            Reason::Fault(errno::ESTALE | errno::ENOENT) => "the log was deleted or replaced",
            Reason::Fault(_) => "the log could not be written",
        }
    }
}

/// How many of the job's own bytes are in these records.
fn content_of(mut records: &[u8], format: LogFormat) -> u64 {
    if format == LogFormat::Raw {
        return records.len() as u64;
    }
    let (mut decoder, mut bytes) = (Decoder::new(), 0);
    loop {
        let length = match decoder.decode(records) {
            Decoded::Record { partial, content, len, .. } => {
                bytes += content.len() as u64 + u64::from(!partial);
                len
            }
            Decoded::Dropped { len, .. } | Decoded::Malformed { len } => len,
            Decoded::Incomplete => return bytes,
        };
        records = records.get(length..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_worked_for_a_moment_only_is_not_told_to_work_again() {
        let (fault, resumed) = (LogNews { fault: true, ..LogNews::default() }, LogNews { resumed: true, ..LogNews::default() });
        let both = |first: LogNews, second: LogNews| {
            let mut news = first;
            news |= second;
            (news.fault, news.resumed)
        };
        assert_eq!(both(resumed, fault), (false, false), "a fault that was told goes on");
        assert_eq!(both(fault, resumed), (true, true), "in this order they are told");
    }
}
