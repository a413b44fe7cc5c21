//! Floor 4: what the loop lends a job while that handles something, and what a job leaves for the loop to do. Never the loop itself.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::task::Waker;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use memchr::memchr_iter;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::kernel::cgroup::CgroupTree;
use crate::kernel::log_dir::LogDir;
use crate::kernel::spawner::Spawner;
use crate::kernel::stdio::{ReadOutcome, read_output};
use crate::kernel::watcher::Watcher;
use crate::logic::cri::{self, Stamp};
use crate::logic::deadlines::DeadlineQueue;
use crate::logic::lifecycle::Timer;
use crate::logic::lines::{Ending, LineSplitter, Piece};
use crate::logic::token::{Key, Source, Target};
use crate::model::output::{OutputStream, Timestamp};
use crate::model::settings::Settings;

/// What a deadline of a job is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    Life(Timer),
    /// The unfinished line of this output was held long enough.
    Flush(OutputIndex),
    /// Look again whether the cgroup is empty.
    Tree,
    /// A process that is dead, but not for us to reap, was waited for long enough.
    Reap,
    /// A spawn slot was waited for long enough.
    Slot,
    /// Output that is held back, because its log cannot be written or is written too fast, may go on.
    Log,
    /// What was left to gather in the pipes is to be read.
    Gather,
    /// Look again whether the child has left the host's memory.
    Leave,
}

/// Which of a job's outputs: 0 is stdout or both, 1 is stderr.
pub(crate) type OutputIndex = u8;

/// What a job may touch while it handles something.
pub(crate) struct Lent<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) deadlines: &'a mut DeadlineQueue<(Key, Alarm)>,
    pub(crate) watcher: &'a mut Watcher,
    pub(crate) spawner: &'a mut Spawner,
    pub(crate) cgroups: &'a mut Option<CgroupTree>,
    pub(crate) log_dir: &'a mut LogDir,
    /// What output is read into that is not written as it comes.
    pub(crate) read_buffer: &'a mut Vec<u8>,
    pub(crate) records: &'a mut Records,
    pub(crate) queues: &'a mut Queues,
    pub(crate) settings: &'a Settings,
    pub(crate) now: Instant,
    /// Counts turns: a job's read budget is renewed by a new number.
    pub(crate) turn: u64,
}

impl Lent<'_> {
    /// Puts a descriptor of the job at `key` into the loop.
    pub(crate) fn register(&self, fd: i32, key: Key, source: Source) -> io::Result<()> {
        self.registry.register(&mut SourceFd(&fd), Token(Target::Job(key, source).pack()), Interest::READABLE)
    }

    /// As [`register`](Self::register), for one that tells by POLLPRI.
    pub(crate) fn register_priority(&self, fd: i32, key: Key, source: Source) -> io::Result<()> {
        self.registry.register(&mut SourceFd(&fd), Token(Target::Job(key, source).pack()), Interest::PRIORITY)
    }

    /// Takes a descriptor out of the loop. Before its close: a child between clone and exec may still hold the file, and the registration would
    /// outlive our descriptor.
    pub(crate) fn deregister(&self, fd: BorrowedFd<'_>) {
        self.deregister_number(fd.as_raw_fd());
    }

    /// As [`deregister`](Self::deregister), for a start that is being undone.
    pub(crate) fn deregister_number(&self, fd: i32) {
        let _ = self.registry.deregister(&mut SourceFd(&fd));
    }
}

/// The records of the job whose turn it is, on their way to its log. Empty between jobs; its memory is everybody's.
#[derive(Debug, Default)]
pub(crate) struct Records {
    bytes: Vec<u8>,
    /// How many of the job's own bytes are in them.
    content_bytes: u64,
    stamp: Stamp,
}

impl Records {
    /// Adds a piece of a line as a CRI record.
    pub(crate) fn push_piece(&mut self, time: Timestamp, stream: OutputStream, piece: Piece<'_>) {
        self.content_bytes += piece.bytes.len() as u64 + u64::from(piece.ending == Ending::Newline);
        cri::encode(&mut self.bytes, self.stamp.at(time), stream, piece);
    }

    /// Adds the lines that end with `chunk`, and counts them.
    pub(crate) fn push_lines(&mut self, time: Timestamp, stream: OutputStream, chunk: &[u8], splitter: &mut LineSplitter) -> u64 {
        let mut lines = 0;
        splitter.push(chunk, |piece| {
            lines += u64::from(piece.ending == Ending::Newline);
            self.push_piece(time, stream, piece);
        });
        lines
    }

    /// Adds the lines of a raw log that end with `chunk`, and counts them.
    pub(crate) fn push_bulk(&mut self, chunk: &[u8], splitter: &mut LineSplitter) -> u64 {
        splitter.push_bulk(chunk, |bytes| self.push_raw(bytes));
        memchr_iter(b'\n', chunk).count() as u64
    }

    /// Reads at most `bytes_max` bytes of a raw log, and counts the lines that end in them. An unfinished line is left to the `splitter`, if there is one: it is
    /// copied, so it should be short.
    pub(crate) fn read_raw(
        &mut self,
        fd: BorrowedFd<'_>,
        bytes_max: usize,
        splitter: Option<&mut LineSplitter>,
    ) -> (io::Result<ReadOutcome>, u64) {
        let start = self.bytes.len();
        if let Some(splitter) = &splitter {
            self.bytes.extend_from_slice(splitter.held_line());
        }
        let behind = self.bytes.len();
        let outcome = read_output(fd, &mut self.bytes, bytes_max);
        let chunk = self.bytes.get(behind..).unwrap_or_default();
        let lines = memchr_iter(b'\n', chunk).count() as u64;
        let kept = match splitter {
            Some(splitter) => splitter.push_bulk_in_place(chunk),
            None => chunk.len(),
        };
        self.bytes.truncate(start + kept);
        self.content_bytes += kept as u64;
        (outcome, lines)
    }

    /// Adds bytes of a raw log.
    pub(crate) fn push_raw(&mut self, bytes: &[u8]) {
        self.content_bytes += bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes them out, and says how many of the job's own bytes are in them. Their memory is to be [given back](Self::give_back).
    pub(crate) fn take(&mut self) -> (Vec<u8>, u64) {
        (std::mem::take(&mut self.bytes), std::mem::take(&mut self.content_bytes))
    }

    /// Gives back the memory of what was taken out.
    pub(crate) fn give_back(&mut self, mut bytes: Vec<u8>) {
        bytes.clear();
        self.bytes = bytes;
    }

    /// Adds the word that `bytes` bytes of output are missing.
    pub(crate) fn encode_dropped(&mut self, out: &mut Vec<u8>, time: Timestamp, bytes: u64, reason: &str) {
        cri::encode_dropped(out, self.stamp.at(time), bytes, reason);
    }
}

/// What jobs leave for the loop to do once they are done.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    /// Jobs that spent their budget with output left to read.
    pub(crate) ready: VecDeque<Key>,
    /// Jobs whose child is on a spawn slot: only a look tells when it is off.
    pub(crate) in_flight: Vec<Key>,
    /// Jobs that wait for a spawn slot, longest first.
    pub(crate) waiting_for_slot: VecDeque<Key>,
    /// Whether a child has taken a slot since the loop last saw to the time of the next look.
    pub(crate) look_soon: bool,
    /// Jobs with something to tell.
    pub(crate) reports: VecDeque<Key>,
    /// Tasks to wake once dispatch is over.
    pub(crate) wakers: Vec<Waker>,
    /// Jobs whose log is open, longest since they were last looked at first.
    pub(crate) open_logs: VecDeque<Key>,
    /// How many logs are open.
    pub(crate) open_logs_count: usize,
    /// How many logs had to be closed at once because too many were open: so many idle ones are to make room.
    pub(crate) open_logs_wanted: usize,
    /// Jobs that have not finished.
    pub(crate) unfinished: usize,
    /// Jobs that a handle waits for, of which there is news.
    pub(crate) awaited: Vec<Key>,
    /// Hidden jobs that may be over.
    pub(crate) gone: Vec<Key>,
}

/// The wall clock in milliseconds since 1970.
pub(crate) fn unix_millis() -> u64 {
    unix_nanos() / 1_000_000
}

/// The wall clock; before 1970 it says 1970.
pub(crate) fn unix_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[test]
    fn raw_output_is_read_behind_the_unfinished_line_and_goes_back_to_it_where_it_ends_no_line() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let (mut records, mut splitter) = (Records::default(), LineSplitter::new(80));
        let mut feed = |text: &str, splitter: &mut LineSplitter| {
            rustix::io::write(&write, text.as_bytes()).unwrap();
            let (outcome, lines) = records.read_raw(read.as_fd(), 100, Some(splitter));
            let (bytes, content_bytes) = records.take();
            assert_eq!(bytes.len() as u64, content_bytes);
            (outcome.unwrap(), lines, String::from_utf8(bytes).unwrap())
        };
        let bytes = |count| ReadOutcome::Bytes { count, filled: false };
        assert_eq!(feed("ab", &mut splitter), (bytes(2), 0, String::new()));
        assert_eq!(feed("", &mut splitter), (ReadOutcome::WouldBlock, 0, String::new()));
        assert_eq!(splitter.held_line(), b"ab");
        assert_eq!(feed("c\nd\ne", &mut splitter), (bytes(5), 2, "abc\nd\n".to_owned()));
        assert_eq!(splitter.held_line(), b"e");
        let long = "x".repeat(100);
        assert_eq!(feed(&long, &mut splitter), (ReadOutcome::Bytes { count: 100, filled: true }, 0, format!("e{long}")));
        assert_eq!(splitter.held(), 0);
    }
}
