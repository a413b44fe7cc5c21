//! One log file: written in whole records, sealed at its end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Why a batch was not written; the file ends where it ended before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WriteFault {
    pub(crate) errno: i32,
}

impl WriteFault {
    /// Whether only a descriptor was wanting, of this process or of the machine.
    pub(crate) fn is_shortage(self) -> bool {
        [Errno::MFILE, Errno::NFILE].iter().any(|errno| errno.raw_os_error() == self.errno)
    }
}

impl From<Errno> for WriteFault {
    fn from(errno: Errno) -> Self {
        Self { errno: errno.raw_os_error() }
    }
}

/// Device and inode number: a file's identity, whatever stands at its name.
type Inode = (u64, u64);

/// A log file, by name in the log directory. Its descriptor may be closed while the job is idle.
#[derive(Debug)]
pub(crate) struct LogFile {
    name: Box<str>,
    fd: Option<OwnedFd>,
    /// Which file it is; looked up when the descriptor that says so is about to go.
    inode: Option<Inode>,
    length: u64,
}

impl LogFile {
    /// Makes the file. It must not be there yet: neither a file of somebody else nor a symbolic link is ever written.
    pub(crate) fn create(directory: BorrowedFd<'_>, name: String) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(directory, &*name, flags, Mode::from_raw_mode(0o600))?;
        Ok(Self { name: name.into(), fd: Some(fd), inode: None, length: 0 })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes in the file.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The open file; `None` while it is closed for idleness.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Closes the descriptor; the next write opens it again.
    pub(crate) fn close(&mut self) {
        self.inode = self.inode().ok();
        self.fd = None;
    }

    /// Appends whole records, all or none: what a failing write has left of them is cut off again.
    pub(crate) fn append(&mut self, directory: BorrowedFd<'_>, records: &[u8]) -> Result<(), WriteFault> {
        let fault = WriteFault::from;
        let fd = match self.fd.take() {
            Some(fd) => fd,
            None => self.open(directory, OFlags::WRONLY | OFlags::APPEND).map_err(fault)?,
        };
        let fd = self.fd.insert(fd);
        let mut rest = records;
        while !rest.is_empty() {
            match rustix::io::write(&*fd, rest) {
                Ok(0) => return Err(fault(cut_back(fd, records.len() - rest.len(), Errno::IO))),
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(fault(cut_back(fd, records.len() - rest.len(), errno))),
            }
        }
        self.length += records.len() as u64;
        Ok(())
    }

    /// Clears the write bits: the sign, for everybody, that nothing more will come. (A watcher sees IN_ATTRIB.)
    pub(crate) fn seal(&mut self, directory: BorrowedFd<'_>) -> Result<(), WriteFault> {
        // Readers come after that, too.
        self.inode = self.inode().ok();
        let fd = match self.fd.take() {
            Some(fd) => fd,
            None => self.open(directory, OFlags::RDONLY)?,
        };
        Ok(rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o400))?)
    }

    /// Deletes the file: its job never ran.
    pub(crate) fn delete(&mut self, directory: BorrowedFd<'_>) -> io::Result<()> {
        self.close();
        self.open(directory, OFlags::PATH)?;
        Ok(rustix::fs::unlinkat(directory, &*self.name, AtFlags::empty())?)
    }

    /// Opens the file for a reader.
    pub(crate) fn open_reader(&self, directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        Ok(self.open(directory, OFlags::RDONLY)?)
    }

    /// Opens the file and makes sure that it is still the one that was made.
    fn open(&self, directory: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
        let fd = rustix::fs::openat(directory, &*self.name, flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        // The number alone is not enough: a file that was deleted gives its own to the next. Nobody but us can make one of ours.
        let is_ours = FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_uid == rustix::process::geteuid().as_raw();
        // ESTALE: somebody has put another file in its place.
        if is_ours && (stat.st_dev, stat.st_ino) == self.inode()? { Ok(fd) } else { Err(Errno::STALE) }
    }

    fn inode(&self) -> Result<Inode, Errno> {
        match (&self.inode, &self.fd) {
            (Some(inode), _) => Ok(*inode),
            (None, Some(fd)) => inode_of(fd),
            (None, None) => Err(Errno::STALE),
        }
    }
}

fn inode_of(fd: &OwnedFd) -> Result<Inode, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Cuts the last `written` bytes off the file, so that no torn record stays; returns `errno`.
fn cut_back(fd: &OwnedFd, written: usize, errno: Errno) -> Errno {
    // The length is the file's own, not what we have written in all: somebody else may have added to it. If even that fails, readers skip the
    // torn record.
    if written > 0
        && let Ok(stat) = rustix::fs::fstat(fd)
    {
        let length = (stat.st_size as u64).saturating_sub(written as u64);
        let _ = rustix::io::retry_on_intr(|| rustix::fs::ftruncate(fd, length));
    }
    errno
}
