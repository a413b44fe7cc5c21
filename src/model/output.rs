//! What becomes of a job's output.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One of the two output streams of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl fmt::Display for OutputStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OutputStream::Stdout => "stdout",
            OutputStream::Stderr => "stderr",
        })
    }
}

/// Where the two output streams of a job go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Capture {
    /// Two pipes into the log: each line keeps its stream, lines of the two are never torn. Their order is that of arrival at the loop.
    #[default]
    Split,
    /// One pipe into the log: exactly the order in which the job wrote, everything counts as stdout.
    Merged,
    /// The log file itself is the job's stdout and stderr, with nothing of ours in between: no cost, and no way to hold it back. The log is
    /// [`LogFormat::Raw`] and has no bounds; nothing of it is counted but its bytes, at the end. It is sealed when the job is over: what a process that has escaped
    /// the job's tree writes after that goes into it all the same.
    Direct,
    /// No log: the job writes to the host's own stdout and stderr.
    Inherit,
    /// No log: the caller reads the pipes (see [`Worker::take_stdout`](crate::Worker::take_stdout)). A job whose pipes nobody reads waits once they
    /// are full.
    Piped,
    /// No log: everything goes to `/dev/null`.
    Discard,
}

impl Capture {
    /// Whether output in this mode is written to a log file.
    pub fn is_logged(self) -> bool {
        matches!(self, Capture::Split | Capture::Merged | Capture::Direct)
    }

    /// Whether the loop reads the output from pipes and writes it to a log file.
    pub(crate) fn is_pumped(self) -> bool {
        matches!(self, Capture::Split | Capture::Merged)
    }
}

/// How output stands in the log file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LogFormat {
    /// The Kubernetes CRI text format: one record a line, with time, stream and a `P`(artial) or `F`(ull) tag. See [`framing::cri`](crate::framing::cri).
    #[default]
    Cri,
    /// The job's bytes and nothing else.
    Raw,
}

/// What of a log a [`LogStream`](crate::LogStream) yields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamSelect {
    /// The bytes of both streams, in log order.
    #[default]
    Both,
    /// The bytes of one stream only. Needs to be told apart in the log: CRI, or a single pipe.
    Only(OutputStream),
}

impl StreamSelect {
    /// Whether bytes of `stream` are wanted.
    pub fn includes(self, stream: OutputStream) -> bool {
        match self {
            StreamSelect::Both => true,
            StreamSelect::Only(only) => only == stream,
        }
    }
}

/// A point in time with nanoseconds, as log records carry it: nanoseconds since 1970-01-01 00:00:00 UTC, without leap seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// A timestamp from nanoseconds since the Unix epoch.
    pub const fn from_unix_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the Unix epoch.
    pub const fn as_unix_nanos(self) -> u64 {
        self.0
    }
}

impl From<Timestamp> for SystemTime {
    fn from(timestamp: Timestamp) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(timestamp.0)
    }
}

/// One record of a log: a line, or a piece of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When the loop read the bytes; `None` in a raw log.
    pub time: Option<Timestamp>,
    /// Which stream they came from; `None` in a raw log of two pipes.
    pub stream: Option<OutputStream>,
    /// The bytes, including the line feed that ended the line. Without one, the line goes on in the stream's next record
    /// or the stream ended in the middle of a line.
    pub bytes: &'a [u8],
}
