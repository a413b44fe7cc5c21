//! The commands of a batch: read as they come, some way ahead, without ever waiting for them.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::report::Fault;

/// Bytes asked for in one read.
const READ_BYTES: usize = 64 << 10;

/// What lines read ahead may cost in memory, in bytes.
const AHEAD_BYTES_MAX: usize = 16 << 20;

/// What a line costs in memory besides its bytes.
const LINE_OVERHEAD_BYTES: usize = 64;

/// The longest line that can be a command: execve(2) takes no longer argument (MAX_ARG_STRLEN, its NUL included).
pub(crate) const LINE_BYTES_MAX: usize = 131_071;

/// Bytes looked at, at the end, for lines that were not started, of an input that may have no end.
const COUNTED_BYTES_MAX: usize = 16 << 20;

/// One command.
#[derive(Debug)]
pub(crate) struct Line {
    /// Its number in the input, from 1.
    pub(crate) number: u64,
    pub(crate) text: Vec<u8>,
    /// Whether it is longer than any command can be; then the end is missing.
    pub(crate) is_too_long: bool,
}

/// The input.
#[derive(Debug)]
pub(crate) struct CommandLines {
    file: OwnedFd,
    name: PathBuf,
    is_regular: bool,
    buffer: Vec<u8>,
    ahead: Ahead,
    has_ended: bool,
}

/// What was read and not taken.
#[derive(Debug, Default)]
struct Ahead {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Lines that were completed, blank ones and comments too.
    count: u64,
    unfinished: Vec<u8>,
    is_too_long: bool,
}

impl CommandLines {
    /// Opens `path`; `-` is stdin.
    pub(crate) fn open(path: &Path) -> Result<Self, Fault> {
        let (opened, name) = if path.as_os_str() == "-" {
            (rustix::stdio::stdin().try_clone_to_owned(), PathBuf::from("stdin"))
        } else {
            (File::open(path).map(OwnedFd::from), path.to_owned())
        };
        let failed = |error: io::Error| Fault::caused(&format!("opening {} for its commands failed", name.display()), &error);
        let file = opened.map_err(failed)?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| failed(errno.into()))?;
        let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(Self { file, name, is_regular, buffer: vec![0; READ_BYTES], ahead: Ahead::default(), has_ended: false })
    }

    /// The descriptor to wait for, as long as more lines are wanted.
    pub(crate) fn awaited(&self) -> Option<BorrowedFd<'_>> {
        (!self.has_ended && self.ahead.bytes < AHEAD_BYTES_MAX).then(|| self.file.as_fd())
    }

    /// The next command, if one was read already.
    pub(crate) fn next(&mut self) -> Option<Line> {
        self.ahead.take()
    }

    /// The number of commands read and not taken.
    pub(crate) fn ahead(&self) -> usize {
        self.ahead.lines.len()
    }

    /// Whether the end of the input was reached; there may be lines read ahead.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Reads once, if more lines are wanted and something is there.
    pub(crate) fn read_ready(&mut self) -> Result<(), Fault> {
        if self.awaited().is_some() && self.is_readable() {
            self.read()?;
        }
        Ok(())
    }

    /// Counts the commands that were not taken, and drops them. `false`: there may be more of them.
    pub(crate) fn count_rest(&mut self) -> Result<(u64, bool), Fault> {
        let mut count = self.ahead.lines.len() as u64;
        let mut counted_bytes = 0;
        while !self.has_ended && (self.is_regular || (counted_bytes < COUNTED_BYTES_MAX && self.is_readable())) {
            self.ahead.clear();
            counted_bytes += self.read()?;
            count += self.ahead.lines.len() as u64;
        }
        self.ahead.clear();
        Ok((count, self.has_ended))
    }

    fn is_readable(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let polled = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&now)));
        // What cannot be polled is read, and tells then what is wrong.
        polled.map_or(true, |ready| ready > 0)
    }

    fn read(&mut self) -> Result<usize, Fault> {
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.file, &mut self.buffer[..])) {
            Ok(0) => {
                self.has_ended = true;
                self.ahead.end();
                Ok(0)
            }
            Ok(count) => {
                self.ahead.push(self.buffer.get(..count).unwrap_or_default());
                Ok(count)
            }
            Err(Errno::AGAIN) => Ok(0),
            Err(errno) => {
                self.has_ended = true;
                Err(Fault::caused(&format!("reading commands from {} failed", self.name.display()), &io::Error::from(errno)))
            }
        }
    }
}

impl Ahead {
    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let content = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = LINE_BYTES_MAX - self.unfinished.len();
            self.is_too_long |= content.len() > room;
            self.unfinished.extend_from_slice(content.get(..room).unwrap_or(content));
            if content.len() < piece.len() {
                self.complete();
            }
        }
    }

    /// The input has ended: a last line needs no line feed.
    fn end(&mut self) {
        if !self.unfinished.is_empty() {
            self.complete();
        }
    }

    fn complete(&mut self) {
        self.count += 1;
        let is_too_long = std::mem::take(&mut self.is_too_long);
        let start = self.unfinished.trim_ascii_start();
        if start.is_empty() || start.starts_with(b"#") {
            self.unfinished.clear();
            return;
        }
        self.unfinished.shrink_to_fit();
        let text = std::mem::take(&mut self.unfinished);
        self.bytes += text.len() + LINE_OVERHEAD_BYTES;
        self.lines.push_back(Line { number: self.count, text, is_too_long });
    }

    fn take(&mut self) -> Option<Line> {
        let line = self.lines.pop_front()?;
        self.bytes -= line.text.len() + LINE_OVERHEAD_BYTES;
        Some(line)
    }

    fn clear(&mut self) {
        self.lines.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(pieces: &[&[u8]]) -> Vec<(u64, Vec<u8>, bool)> {
        let mut ahead = Ahead::default();
        for piece in pieces {
            ahead.push(piece);
        }
        ahead.end();
        std::iter::from_fn(|| ahead.take()).map(|line| (line.number, line.text, line.is_too_long)).collect()
    }

    #[test]
    fn lines_are_the_same_however_they_are_read() {
        let input = b"one\n\n# a comment\n  # another\n \t\ntwo \xff\nlast";
        let expected = [(1, b"one".to_vec(), false), (6, b"two \xff".to_vec(), false), (7, b"last".to_vec(), false)];
        assert_eq!(lines_of(&[input]), expected);
        let bytes: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(lines_of(&bytes), expected);
    }

    #[test]
    fn a_line_longer_than_a_command_can_be_is_cut_and_marked_and_the_next_one_is_whole() {
        let longest = vec![b'x'; LINE_BYTES_MAX];
        let too_long = vec![b'x'; LINE_BYTES_MAX + 1];
        let input = [&longest[..], b"\n", &too_long, b"\n", &too_long, &too_long, b"\nshort\n"];
        let found = lines_of(&input);
        let marks: Vec<_> = found.iter().map(|(number, text, is_too_long)| (*number, text.len(), *is_too_long)).collect();
        assert_eq!(marks, [(1, LINE_BYTES_MAX, false), (2, LINE_BYTES_MAX, true), (3, LINE_BYTES_MAX, true), (4, 5, false)]);
    }

    #[test]
    fn taking_every_line_frees_all_that_was_counted() {
        let mut ahead = Ahead::default();
        ahead.push(b"a\nbb\nccc\n");
        assert!(ahead.bytes > 6);
        while ahead.take().is_some() {}
        assert_eq!(ahead.bytes, 0);
    }
}
