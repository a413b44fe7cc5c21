//! The report: one line for each file, written when its fate is certain, each with one write(2).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::report::{Fault, exit};

/// Characters of a reason that a line of the report holds.
const REASON_CHARACTERS_MAX: usize = 400;

/// What became of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// An object with this many bytes and this SHA-256 is there, and was seen to be there.
    Stored { bytes: u64, sha256: String },
    /// Nothing can be relied on; the reason.
    Failed(String),
}

/// Where the report goes.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// `None`: stdout.
    fd: Option<OwnedFd>,
}

impl Ledger {
    /// A report to descriptor `number` of this process, or to stdout.
    ///
    /// # Errors
    /// There is no such descriptor, or it cannot be written.
    pub(crate) fn open(number: Option<i32>) -> Result<Self, Fault> {
        let ledger = match number {
            None => Self { fd: None },
            Some(number) => Self { fd: Some(duplicate(number).map_err(|errno| refused(number, &io::Error::from(errno).to_string()))?) },
        };
        let number = number.unwrap_or(1);
        let flags = rustix::fs::fcntl_getfl(ledger.fd()).map_err(|errno| refused(number, &io::Error::from(errno).to_string()))?;
        match flags & (OFlags::WRONLY | OFlags::RDWR) {
            mode if mode.is_empty() => Err(refused(number, "it is open for reading only")),
            _ => Ok(ledger),
        }
    }

    /// Writes the line of one file.
    ///
    /// # Errors
    /// The line cannot be written; the exit code where that needs no message, because the reader has gone.
    pub(crate) fn write(&self, fate: &Fate, name: &OsStr) -> Result<(), Result<u8, Fault>> {
        let line = line(fate, name);
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            match rustix::io::write(self.fd(), rest) {
                // The kernel splits a line only where it has to: on a full disk, say.
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // Somebody has made it non-blocking. If waiting fails, the next write tells why.
                    let _ = poll(&mut [PollFd::from_borrowed_fd(self.fd(), PollFlags::OUT)], None);
                }
                Err(Errno::PIPE) => return Err(Ok(exit::READER_GONE)),
                Err(errno) => return Err(Err(Fault::new(format!("writing the report failed: {}", io::Error::from(errno))))),
            }
        }
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Some(fd) => fd.as_fd(),
            None => rustix::stdio::stdout(),
        }
    }
}

/// Another descriptor of our own for what is open as `number`.
fn duplicate(number: i32) -> Result<OwnedFd, Errno> {
    let own = pidfd_open(getpid(), PidfdFlags::empty());
    match own.and_then(|own| pidfd_getfd(own, number, PidfdGetfdFlags::empty())) {
        // A seccomp filter that does not ask whose descriptors these are.
        Err(Errno::PERM | Errno::NOSYS) => reopen(number),
        result => result,
    }
}

/// As [`duplicate`], for pipes and files. What is opened anew begins at the beginning, and is set to where the descriptor stands. It appends only if that does:
/// the end of a file that cannot grow is no place to write to.
fn reopen(number: i32) -> Result<OwnedFd, Errno> {
    let (position, flags) = standing_of(number)?;
    let access = if (flags & OFlags::ACCMODE).is_empty() { OFlags::RDONLY } else { OFlags::WRONLY };
    let flags = access | (flags & OFlags::APPEND) | OFlags::CLOEXEC;
    let fd = rustix::fs::open(format!("/proc/self/fd/{number}"), flags, Mode::empty())?;
    match rustix::fs::seek(&fd, SeekFrom::Start(position)) {
        // A pipe or a terminal has no positions.
        Ok(_) | Err(Errno::SPIPE) => Ok(fd),
        Err(errno) => Err(errno),
    }
}

/// Where in its file a descriptor stands, and how it is open.
fn standing_of(number: i32) -> Result<(u64, OFlags), Errno> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"));
    let text = text.map_err(|error| Errno::from_io_error(&error).filter(|errno| *errno != Errno::NOENT).unwrap_or(Errno::BADF))?;
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let position = value("pos:").and_then(|value| value.parse().ok()).ok_or(Errno::IO)?;
    let flags = value("flags:").and_then(|value| u32::from_str_radix(value, 8).ok()).ok_or(Errno::IO)?;
    Ok((position, OFlags::from_bits_retain(flags)))
}

fn refused(number: i32, reason: &str) -> Fault {
    Fault::new(format!("the report cannot be written to descriptor {number}: {reason}; open it for writing, as in `3>report`"))
}

fn line(fate: &Fate, name: &OsStr) -> Vec<u8> {
    let mut line = match fate {
        Fate::Stored { bytes, sha256 } => format!("stored\t{bytes}\t{sha256}\t"),
        Fate::Failed(reason) => format!("failed\t{}\t", one_line(reason)),
    }
    .into_bytes();
    // A name with a line feed is never stored; whoever reads its line finds no such file.
    line.extend(name.as_bytes().iter().map(|byte| if *byte == b'\n' { b'?' } else { *byte }));
    line.push(b'\n');
    line
}

/// A text without tabs and line feeds, and not too long.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().take(REASON_CHARACTERS_MAX).map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{MemfdFlags, SealFlags};

    #[test]
    fn a_line_holds_the_fate_and_the_name_and_stays_one_line() {
        let stored = Fate::Stored { bytes: 7, sha256: "ab".to_owned() };
        assert_eq!(line(&stored, OsStr::from_bytes(b"a \xff\tb")), b"stored\t7\tab\ta \xff\tb\n");
        let failed = Fate::Failed("one\ttwo\nthree".to_owned());
        assert_eq!(line(&failed, OsStr::new("a\nb")), b"failed\tone two three\ta?b\n");
        assert!(line(&Fate::Failed("x".repeat(100_000)), OsStr::new("a")).len() < 500);
    }

    #[test]
    fn a_descriptor_is_found_by_its_number_either_way() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let number = writer.as_raw_fd();
        for found in [duplicate(number).unwrap(), reopen(number).unwrap()] {
            Ledger { fd: Some(found) }.write(&Fate::Failed("why".to_owned()), OsStr::new("log")).unwrap();
        }
        drop(writer);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::fs::File::from(reader), &mut text).unwrap();
        assert_eq!(text, "failed\twhy\tlog\n".repeat(2));
    }

    fn write_reopened(number: i32, name: &str) {
        Ledger { fd: Some(reopen(number).unwrap()) }.write(&Fate::Failed("why".to_owned()), OsStr::new(name)).unwrap();
    }

    #[test]
    fn a_report_in_memory_that_cannot_grow_is_written_from_where_it_stands() {
        // As a worker makes it for its archive.
        let report = rustix::fs::memfd_create("report", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&report, 4096).unwrap();
        rustix::fs::fcntl_add_seals(&report, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL).unwrap();
        let mut file = File::from(report);
        file.write_all(b"before\n").unwrap();
        write_reopened(file.as_raw_fd(), "log");
        let mut bytes = vec![0; 4096];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes.split(|byte| *byte == 0).next().unwrap(), b"before\nfailed\twhy\tlog\n");
    }

    #[test]
    fn what_is_opened_anew_appends_only_where_the_descriptor_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report");
        std::fs::write(&path, "before\n").unwrap();
        let appending = File::options().append(true).open(&path).unwrap();
        write_reopened(appending.as_raw_fd(), "a");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nfailed\twhy\ta\n");
        let mut writing = File::create(&path).unwrap();
        writing.write_all(b"one\n").unwrap();
        write_reopened(writing.as_raw_fd(), "b");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\nfailed\twhy\tb\n");
        let reading = File::open(&path).unwrap();
        assert!(rustix::io::write(reopen(reading.as_raw_fd()).unwrap(), b"x").is_err());
        assert_eq!(reopen(987_654).unwrap_err(), Errno::BADF);
    }

    #[test]
    fn a_descriptor_that_is_not_there_or_only_read_is_refused() {
        assert!(Ledger::open(Some(987_654)).is_err_and(|fault| fault.to_string().contains("987654")));
        let file = std::fs::File::open("/dev/null").unwrap();
        let number = file.as_raw_fd();
        assert!(Ledger::open(Some(number)).is_err_and(|fault| fault.to_string().contains("reading only")));
    }
}
