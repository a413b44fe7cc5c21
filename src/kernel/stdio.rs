//! Descriptors 0, 1 and 2 of a job: null device, pipes, bytes from memory.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use iron_exec_sys::{message, read};
use rustix::fs::{Gid, MemfdFlags, Mode, OFlags, SeekFrom, Uid};
use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::pipe::PipeFlags;

use crate::model::command::Stdin;
use crate::model::output::Capture;

/// A descriptor for the child: shared with somebody, made for it, or the host's own.
#[derive(Debug)]
pub(crate) enum ChildEnd {
    Made(OwnedFd),
    Shared(Arc<OwnedFd>),
}

impl AsFd for ChildEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            ChildEnd::Made(fd) => fd.as_fd(),
            ChildEnd::Shared(fd) => fd.as_fd(),
        }
    }
}

/// The three descriptors as the child gets them, and our ends of the pipes among them.
#[derive(Debug)]
pub(crate) struct Stdio {
    stdin: ChildEnd,
    stdout: ChildEnd,
    /// `None`: the same as stdout.
    stderr: Option<ChildEnd>,
    /// The end to write the job's stdin to.
    pub(crate) to_stdin: Option<OwnedFd>,
    /// The ends to read its outputs from; non-blocking if the loop reads them.
    pub(crate) from: [Option<OwnedFd>; 2],
}

impl Stdio {
    /// Makes what `stdin` and `capture` ask for; `log` is what the job writes into by itself. The child's ends of pipes get numbers from `low_fds` up.
    pub(crate) fn new(stdin: &Stdin, capture: Capture, log: Option<BorrowedFd<'_>>, null: &Arc<OwnedFd>, low_fds: i32) -> io::Result<Self> {
        let (stdin, to_stdin) = match stdin {
            Stdin::Null => (ChildEnd::Shared(Arc::clone(null)), None),
            Stdin::Bytes(bytes) => (ChildEnd::Made(memory_file(bytes)?), None),
            Stdin::File(file) => (ChildEnd::Shared(Arc::clone(file)), None),
            Stdin::Inherit => (ChildEnd::Made(duplicate(rustix::stdio::stdin())?), None),
            Stdin::Piped => {
                let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
                (ChildEnd::Made(raised(read, low_fds)?), Some(raised(write, low_fds)?))
            }
        };
        let null = || ChildEnd::Shared(Arc::clone(null));
        let (stdout, stderr, from) = match capture {
            Capture::Split => {
                let (out_read, out_write) = captured_pipe(low_fds)?;
                let (err_read, err_write) = captured_pipe(low_fds)?;
                (ChildEnd::Made(out_write), Some(ChildEnd::Made(err_write)), [Some(out_read), Some(err_read)])
            }
            Capture::Merged => {
                let (read, write) = captured_pipe(low_fds)?;
                (ChildEnd::Made(write), None, [Some(read), None])
            }
            Capture::Inherit => {
                let stdout = duplicate(rustix::stdio::stdout())?;
                (ChildEnd::Made(stdout), Some(ChildEnd::Made(duplicate(rustix::stdio::stderr())?)), [None, None])
            }
            Capture::Piped => {
                let (out_read, out_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
                let (err_read, err_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
                let (out_write, err_write) = (raised(out_write, low_fds)?, raised(err_write, low_fds)?);
                (ChildEnd::Made(out_write), Some(ChildEnd::Made(err_write)), [Some(out_read), Some(err_read)])
            }
            // Not the job's own, as a pipe is: whoever owns the file could open it again, and change what is in it.
            Capture::Direct => match log {
                Some(log) => (ChildEnd::Shared(Arc::new(rustix::io::fcntl_dupfd_cloexec(log, low_fds)?)), None, [None, None]),
                None => (null(), None, [None, None]),
            },
            Capture::Discard => (null(), None, [None, None]),
        };
        Ok(Self { stdin, stdout, stderr, to_stdin, from })
    }

    /// Makes the job's user the owner of what was made for it, so that it can open `/dev/stdout` and the like again by name.
    pub(crate) fn give_to(&self, uid: u32, gid: Option<u32>) {
        for end in [Some(&self.stdin), Some(&self.stdout), self.stderr.as_ref()].into_iter().flatten() {
            if let ChildEnd::Made(fd) = end {
                // Without CAP_CHOWN it stays ours: the open descriptor works all the same.
                let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), gid.map(Gid::from_raw));
            }
        }
    }

    /// The descriptors and their numbers in the child.
    pub(crate) fn child_ends(&self) -> [(BorrowedFd<'_>, i32); 3] {
        [(self.stdin.as_fd(), 0), (self.stdout.as_fd(), 1), (self.stderr.as_ref().unwrap_or(&self.stdout).as_fd(), 2)]
    }
}

/// Every descriptor that a job gets, until it has them.
#[derive(Debug)]
pub(crate) enum ChildFds {
    /// Open in this process.
    Open {
        stdio: Stdio,
        /// The command's own, with their numbers.
        own: Vec<(i32, Arc<OwnedFd>)>,
    },
    /// On their way from this process to itself.
    Parked(Parking),
    /// Back from there.
    Back(Vec<(OwnedFd, i32)>),
}

impl ChildFds {
    /// The descriptors and their numbers in the child; none as long as they are parked.
    pub(crate) fn list(&self) -> Vec<(BorrowedFd<'_>, i32)> {
        match self {
            ChildFds::Open { stdio, own } => {
                let own = own.iter().map(|(number, fd)| (fd.as_fd(), *number));
                stdio.child_ends().into_iter().chain(own).collect()
            }
            ChildFds::Parked(_) => Vec::new(),
            ChildFds::Back(fds) => fds.iter().map(|(fd, number)| (fd.as_fd(), *number)).collect(),
        }
    }

    /// Takes them out of this process's table of descriptors, for a while: a child that is forked meanwhile, for another job, would have copies, and hold
    /// the ends of these pipes open for as long as something holds it up. Where that cannot be done they stay.
    pub(crate) fn park(&mut self) {
        if let Ok(parking) = Parking::new(&self.list()) {
            *self = ChildFds::Parked(parking);
        }
    }

    /// Puts them back, at numbers from `low_fds` up.
    pub(crate) fn unpark(&mut self, low_fds: i32) -> io::Result<()> {
        if let ChildFds::Parked(parking) = self {
            let fds = parking.take()?.into_iter().map(|fd| raised(fd, low_fds)).collect::<io::Result<Vec<_>>>()?;
            // The kernel leaves out what the limit of open files does not allow.
            if fds.len() != parking.numbers.len() {
                return Err(Errno::MFILE.into());
            }
            *self = ChildFds::Back(fds.into_iter().zip(std::mem::take(&mut parking.numbers)).collect());
        }
        Ok(())
    }
}

/// Descriptors in a message from this process to itself.
#[derive(Debug)]
pub(crate) struct Parking {
    from: OwnedFd,
    to: OwnedFd,
    numbers: Vec<i32>,
}

impl Parking {
    fn new(fds: &[(BorrowedFd<'_>, i32)]) -> io::Result<Self> {
        let (numbers, fds): (Vec<i32>, Vec<BorrowedFd<'_>>) = fds.iter().map(|(fd, number)| (*number, *fd)).unzip();
        let (from, to) = message::pair()?;
        message::send(from.as_fd(), &fds)?;
        Ok(Self { from, to, numbers })
    }

    fn take(&mut self) -> io::Result<Vec<OwnedFd>> {
        message::receive(self.to.as_fd())
    }
}

impl Drop for Parking {
    fn drop(&mut self) {
        // A forked child may have a copy of the socket, in which the message would go on.
        let _ = self.take();
        let _ = rustix::net::shutdown(&self.from, Shutdown::Both);
    }
}

/// `/dev/null`, open for reading and writing; not at the number of a stdin, stdout or stderr that the host has closed, and may open again.
pub(crate) fn open_null() -> io::Result<OwnedFd> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    if null.as_raw_fd() < 3 { duplicate(null.as_fd()) } else { Ok(null) }
}

/// A pipe whose read end does not block. The write end does: a job that writes faster than we read waits, as every program expects.
fn captured_pipe(low_fds: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, raised(write, low_fds)?))
}

/// The same descriptor at a number from `low_fds` up. What stands below is, for a moment, in the hands of every child that is being made: one that is
/// held in that moment would hold up the end of this pipe.
fn raised(fd: OwnedFd, low_fds: i32) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= low_fds { Ok(fd) } else { Ok(rustix::io::fcntl_dupfd_cloexec(fd, low_fds)?) }
}

fn duplicate(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?)
}

/// A file in memory that holds `bytes`, to be read from its start.
fn memory_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create(c"iron-exec-stdin", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    Ok(file.into())
}

/// What one read of an output gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    /// So many bytes; `filled`, that they are all that was asked for.
    Bytes { count: usize, filled: bool },
    /// Nothing now; more may come.
    WouldBlock,
    /// The end: nobody holds the write end any more.
    End,
}

/// Reads from an output pipe, at most `bytes_max` bytes, which stand behind the end of `bytes` then.
pub(crate) fn read_output(fd: BorrowedFd<'_>, bytes: &mut Vec<u8>, bytes_max: usize) -> io::Result<ReadOutcome> {
    match read::read_behind(fd, bytes, bytes_max) {
        Ok(0) => Ok(ReadOutcome::End),
        Ok(count) => Ok(ReadOutcome::Bytes { count, filled: count == bytes_max }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(ReadOutcome::WouldBlock),
        Err(error) => Err(error),
    }
}

/// A pipe that is found this full, in bytes, is worth enlarging: it is what a pipe holds unless somebody says otherwise.
pub(crate) const PIPE_BYTES: usize = 64 << 10;

/// What a busy pipe is enlarged to. Its pages are taken only while there is data in them.
const BUSY_PIPE_BYTES: usize = 256 << 10;

/// Enlarges the pipe of a job that writes faster than we read: fewer turns for both. Where that is refused (a user's pipes are limited in all, see
/// pipe(7)) the pipe stays as it is.
pub(crate) fn enlarge_pipe(fd: BorrowedFd<'_>) {
    let _ = rustix::pipe::fcntl_setpipe_size(fd, BUSY_PIPE_BYTES);
}
