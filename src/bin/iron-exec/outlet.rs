//! Our own stdout and stderr: written in order and never waited for, so that a reader who has stopped reading stops neither the loop, nor a timeout,
//! nor Ctrl-C.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::task::Poll;

use iron_exec::{GapKind, LogStream, OutputStream, StreamError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::Errno;

/// Bytes to be written above which no more are fetched.
const QUEUED_BYTES_MAX: usize = 64 << 10;

/// Bytes written before somebody else gets a word in.
const BUDGET_BYTES: usize = 1 << 20;

/// A pipe that poll(2) calls writable takes this many bytes (PIPE_BUF) without blocking, and no more is promised.
const PIPE_CHUNK_BYTES: usize = 4096;

/// Bytes for one of the two outputs.
#[derive(Debug)]
struct Segment {
    stream: OutputStream,
    bytes: Vec<u8>,
}

/// What is to be written to stdout and stderr, in order.
#[derive(Debug)]
pub(crate) struct Outlet {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that are written already.
    written: usize,
    queued_bytes: usize,
    last_byte: u8,
    /// Bytes that stdout and stderr take at a time.
    chunk_bytes: [usize; 2],
    /// Whether something of what was fetched is missing, which was said.
    is_incomplete: bool,
}

/// How fetching from a job's log went.
#[derive(Debug)]
pub(crate) enum Fetched {
    /// There is more, but not before some of it was written.
    Enough,
    /// There may be more later: the worker will say so.
    NotYet,
    /// That was all.
    All,
    /// The log cannot be read.
    Failed(StreamError),
}

/// Why output is not printed to its end, or not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failing {
    /// Whoever read it has gone.
    ReaderGone,
    /// It could not be read or written; that was said.
    Broken,
    /// We were told twice to stop.
    Abandoned,
}

impl Outlet {
    pub(crate) fn new() -> Self {
        let chunk_bytes = [OutputStream::Stdout, OutputStream::Stderr].map(|stream| match rustix::fs::fstat(descriptor(stream)) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => QUEUED_BYTES_MAX,
            _ => PIPE_CHUNK_BYTES,
        });
        Self { segments: VecDeque::new(), written: 0, queued_bytes: 0, last_byte: b'\n', chunk_bytes, is_incomplete: false }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Whether enough is queued.
    pub(crate) fn is_full(&self) -> bool {
        self.queued_bytes >= QUEUED_BYTES_MAX
    }

    /// Whether what was written last did not end a line.
    pub(crate) fn is_in_line(&self) -> bool {
        self.last_byte != b'\n'
    }

    /// Queues bytes for `stream`.
    pub(crate) fn push(&mut self, stream: OutputStream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.queued_bytes += bytes.len();
        match self.segments.back_mut() {
            Some(last) if last.stream == stream => last.bytes.extend_from_slice(bytes),
            _ => self.segments.push_back(Segment { stream, bytes: bytes.to_vec() }),
        }
    }

    /// Queues a line of our own for stderr.
    pub(crate) fn push_message(&mut self, message: &str) {
        self.push(OutputStream::Stderr, format!("iron-exec: {message}\n").as_bytes());
    }

    /// Queues what a job has logged, until enough is queued.
    pub(crate) fn fetch(&mut self, stream: &mut LogStream) -> Fetched {
        while !self.is_full() {
            match stream.try_next_record() {
                // A raw log of two pipes does not say whose bytes they are.
                Poll::Ready(Ok(Some(record))) => self.push(record.stream.unwrap_or(OutputStream::Stdout), record.bytes),
                Poll::Ready(Ok(None)) => return Fetched::All,
                // What never came into the log is counted, and told when the job has ended.
                Poll::Ready(Err(StreamError::Gap { kind: GapKind::Output, .. })) => {}
                Poll::Ready(Err(error)) if error.is_passable() => {
                    self.push_message(&error.to_string());
                    self.is_incomplete = true;
                }
                Poll::Ready(Err(error)) => return Fetched::Failed(error),
                Poll::Pending => return Fetched::NotYet,
            }
        }
        Fetched::Enough
    }

    /// Whether something is missing of what was fetched since this was asked last.
    pub(crate) fn take_incomplete(&mut self) -> bool {
        std::mem::take(&mut self.is_incomplete)
    }

    /// Forgets what was not written.
    pub(crate) fn clear(&mut self) {
        self.segments.clear();
        (self.written, self.queued_bytes) = (0, 0);
    }

    /// The descriptor that has to become writable; `None` if there is nothing to write.
    pub(crate) fn awaited(&self) -> Option<BorrowedFd<'static>> {
        self.segments.front().map(|segment| descriptor(segment.stream))
    }

    /// Writes what is taken without waiting, up to a budget.
    ///
    /// # Errors
    /// The stream that cannot be written, and why: EPIPE if its reader has gone.
    pub(crate) fn write_ready(&mut self) -> Result<(), (OutputStream, Errno)> {
        let mut budget = BUDGET_BYTES;
        while budget > 0
            && let Some(segment) = self.segments.front()
        {
            let (stream, fd) = (segment.stream, descriptor(segment.stream));
            if !is_writable(fd) {
                return Ok(());
            }
            match self.write_chunk(self.chunk_bytes[stream as usize]) {
                Ok(count) => budget = budget.saturating_sub(count.max(1)),
                Err(Errno::INTR) => {}
                // Somebody has made it non-blocking, and was faster than we.
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err((stream, errno)),
            }
        }
        Ok(())
    }

    /// Writes everything, however long it takes.
    ///
    /// # Errors
    /// As [`write_ready`](Self::write_ready).
    pub(crate) fn write_all(&mut self) -> Result<(), (OutputStream, Errno)> {
        while let Some(segment) = self.segments.front() {
            let (stream, fd) = (segment.stream, descriptor(segment.stream));
            match self.write_chunk(usize::MAX) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // Somebody has made it non-blocking. If waiting fails, the next write tells why.
                    let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], None);
                }
                Err(errno) => return Err((stream, errno)),
            }
        }
        Ok(())
    }

    /// Writes once, up to `bytes_max` of the first segment; returns how much was taken.
    fn write_chunk(&mut self, bytes_max: usize) -> Result<usize, Errno> {
        let Some(segment) = self.segments.front() else { return Ok(0) };
        let rest = segment.bytes.get(self.written..).unwrap_or_default();
        let chunk = rest.get(..bytes_max).unwrap_or(rest);
        let count = rustix::io::write(descriptor(segment.stream), chunk)?;
        if let Some(last) = count.checked_sub(1).and_then(|last| chunk.get(last)) {
            self.last_byte = *last;
        }
        self.queued_bytes -= count;
        self.written += count;
        if self.written == segment.bytes.len() {
            self.segments.pop_front();
            self.written = 0;
        }
        Ok(count)
    }
}

fn descriptor(stream: OutputStream) -> BorrowedFd<'static> {
    match stream {
        OutputStream::Stdout => rustix::stdio::stdout(),
        OutputStream::Stderr => rustix::stdio::stderr(),
    }
}

fn is_writable(fd: BorrowedFd<'_>) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let polled = rustix::io::retry_on_intr(|| poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], Some(&now)));
    // What cannot be polled is written, and tells then what is wrong.
    polled.map_or(true, |ready| ready > 0)
}

/// `text` as it may be printed on a terminal: control characters, but for tabs and line feeds, and bytes that are no UTF-8 made visible.
pub(crate) fn escape(text: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() && character != '\n' && character != '\t' {
                let visible = match character {
                    '\r' => "\\r".to_owned(),
                    low if low.is_ascii() => format!("\\x{:02x}", low as u32),
                    high => format!("\\u{{{:x}}}", high as u32),
                };
                escaped.extend_from_slice(visible.as_bytes());
            } else {
                escaped.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        for byte in chunk.invalid() {
            escaped.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
        }
    }
    escaped
}

/// Why writing to a stream failed, as a message.
pub(crate) fn write_failure(stream: OutputStream, errno: Errno) -> String {
    format!("writing to {stream} failed: {}", io::Error::from(errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_gets_through() {
        let cases: [(&[u8], &str); 6] = [
            (b"plain text\twith a tab\n", "plain text\twith a tab\n"),
            ("grüße 日本".as_bytes(), "grüße 日本"),
            (b"\x1b[2J\x07\x7f", "\\x1b[2J\\x07\\x7f"),
            (b"gone\rback", "gone\\rback"),
            (b"\xff\x9b", "\\xff\\x9b"),
            ("\u{9b}2J".as_bytes(), "\\u{9b}2J"),
        ];
        for (text, expected) in cases {
            assert_eq!(String::from_utf8(escape(text)).unwrap(), expected);
        }
    }

    #[test]
    fn segments_keep_their_order_and_neighbours_of_one_stream_are_joined() {
        let mut outlet = Outlet::new();
        outlet.push(OutputStream::Stdout, b"a");
        outlet.push(OutputStream::Stdout, b"b");
        outlet.push(OutputStream::Stderr, b"");
        outlet.push(OutputStream::Stderr, b"c");
        outlet.push(OutputStream::Stdout, b"d");
        let joined: Vec<_> = outlet.segments.iter().map(|segment| (segment.stream, segment.bytes.as_slice())).collect();
        assert_eq!(joined, [(OutputStream::Stdout, &b"ab"[..]), (OutputStream::Stderr, b"c"), (OutputStream::Stdout, b"d")]);
        outlet.clear();
        assert!(outlet.is_empty() && !outlet.is_full());
    }
}
