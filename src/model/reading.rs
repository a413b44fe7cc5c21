//! How a log is read: from where, what of it, and how that ended.

use crate::model::output::{OutputStream, StreamSelect, Timestamp};

/// Where in a log reading begins.
///
/// Of a log that was rotated only the newest files are kept. Where the place that is asked for lies before what is left,
/// [`StreamError::Gap`](crate::StreamError::Gap) comes first, and reading begins with the oldest file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogPosition {
    /// At the beginning of the log.
    #[default]
    Start,
    /// At its end: only what comes from now on.
    End,
    /// So many bytes behind its beginning, all its files counted, also those that are gone: what [`LogStream::offset`](crate::LogStream::offset) has said. In
    /// the CRI format reading begins with the next whole record. Behind the end is the end.
    Offset(u64),
    /// So many lines before its end, those of the stream that is selected. A line that stands in the log in pieces is one line, and so is one at the end that is
    /// not finished. Where both streams are read, each line is had from its start, unless so much of the other stream stands in between (1 MiB) that it is not
    /// looked for.
    LastLines(u64),
    /// With the first record that is not older than this. Needs the CRI format: a raw log holds no times.
    Since(Timestamp),
}

/// What of a log is read, and from where: everything from its start, if nothing else is said.
///
/// ```
/// use iron_exec::{LogPosition, OutputStream, ReadOptions};
///
/// let options = ReadOptions::new().only(OutputStream::Stderr).position(LogPosition::LastLines(10));
/// # let _ = options;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    pub(crate) select: StreamSelect,
    pub(crate) position: LogPosition,
}

impl ReadOptions {
    /// Both streams, from the start.
    pub fn new() -> Self {
        Self::default()
    }

    /// One stream only.
    pub fn only(self, stream: OutputStream) -> Self {
        self.select(StreamSelect::Only(stream))
    }

    /// One of the two streams, or both.
    pub fn select(mut self, select: StreamSelect) -> Self {
        self.select = select;
        self
    }

    /// Where reading begins.
    pub fn position(mut self, position: LogPosition) -> Self {
        self.position = position;
        self
    }
}

/// How the reading of a log has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogEnd {
    /// The job is over and this was all of its log.
    Complete,
    /// The log was deleted; what was in it when that was seen has been read.
    Deleted,
    /// Its worker is dead, or unknown: nobody will write the rest.
    WriterGone,
    /// There may come more, but it was not to be waited for: the log was opened, not followed.
    Unfinished,
}

/// What is missing where a [`StreamError::Gap`](crate::StreamError::Gap) is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GapKind {
    /// Files of the log that were deleted, as rotation does with the oldest ones. Counted are the bytes of the log.
    Files,
    /// Files of a log that has lost its marks (a copy of it, for instance): there is no saying how many bytes.
    UncountedFiles,
    /// Output that never came into the log: it could not be written, came too fast, or was dropped because the log was full. Counted are the bytes that the job
    /// wrote.
    Output,
}
