//! One log file: written in whole records, sealed at its end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::logic::names::rotated_name;

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
pub(crate) type Inode = (u64, u64);

/// A log file, by name in the log directory. Its descriptor may be closed while the job is idle.
#[derive(Debug)]
pub(crate) struct LogFile {
    name: Box<str>,
    fd: Option<OwnedFd>,
    /// Which file it is; looked up when the descriptor that says so is about to go.
    inode: Option<Inode>,
    length: u64,
    /// Bytes that a failing write has left, and that could not be cut off: the file ends in the middle of a record.
    torn: usize,
}

/// A file that is to take the place of a log's newest one. Until then it stands at the name that that will have.
#[derive(Debug)]
pub(crate) struct NextFile {
    name: String,
    fd: OwnedFd,
}

impl NextFile {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// It is not to be after all.
    pub(crate) fn discard(self, directory: BorrowedFd<'_>) {
        let _ = rustix::fs::unlinkat(directory, &*self.name, AtFlags::empty());
    }
}

/// A file of a log that is full.
#[derive(Debug)]
pub(crate) struct FullFile {
    name: String,
    fd: OwnedFd,
    pub(crate) inode: Inode,
}

impl FullFile {
    /// Clears the write bits: nothing more will come into it.
    pub(crate) fn seal(self) {
        // What cannot be sealed is a left-over once the worker is gone.
        let _ = rustix::fs::fchmod(&self.fd, SEALED);
    }
}

/// What the mode of a log file becomes when it is complete.
const SEALED: Mode = Mode::from_raw_mode(0o400);

impl LogFile {
    /// Makes the file. It must not be there yet: neither a file of somebody else nor a symbolic link is ever written.
    pub(crate) fn create(directory: BorrowedFd<'_>, name: String) -> io::Result<Self> {
        let fd = create_file(directory, &name)?;
        Ok(Self { name: name.into(), fd: Some(fd), inode: None, length: 0, torn: 0 })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that were written into the file.
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
        self.mend(directory)?;
        let fd = self.opened(directory)?;
        let mut rest = records;
        while !rest.is_empty() {
            let errno = match rustix::io::write(fd, rest) {
                Ok(0) => Errno::IO,
                Ok(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(errno) => errno,
            };
            let left = records.len() - rest.len();
            self.torn = if cut_back(fd, left).is_ok() { 0 } else { left };
            return Err(errno.into());
        }
        self.length += records.len() as u64;
        Ok(())
    }

    /// Cuts off, or ends, what a failing write may have left.
    pub(crate) fn mend(&mut self, directory: BorrowedFd<'_>) -> Result<(), WriteFault> {
        if self.torn > 0 {
            let torn = self.torn;
            self.length += mend(self.opened(directory)?, torn)?;
            self.torn = 0;
        }
        Ok(())
    }

    /// Where the file ends, whoever has written it.
    pub(crate) fn end(&self) -> u64 {
        let stat = self.fd.as_ref().and_then(|fd| rustix::fs::fstat(fd).ok());
        stat.map_or(self.length, |stat| stat.st_size as u64)
    }

    /// Overwrites what stands at `offset`, which is as long.
    pub(crate) fn overwrite(&self, directory: BorrowedFd<'_>, record: &[u8], offset: u64) -> Result<(), WriteFault> {
        // Through a descriptor that appends, the kernel would append (pwrite(2), BUGS).
        let fd = self.open(directory, OFlags::WRONLY)?;
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(&fd, record, offset))?;
        if written < record.len() { Err(Errno::IO.into()) } else { Ok(()) }
    }

    /// Makes the file that is to be written once this one is full and has the name of `number`.
    pub(crate) fn prepare_next(&self, directory: BorrowedFd<'_>, number: u64) -> Result<NextFile, WriteFault> {
        let name = rotated_name(&self.name, number);
        let fd = create_file(directory, &name)?;
        Ok(NextFile { name, fd })
    }

    /// This file gets the name of its number, and `next` its own: in one step, where the file system can do that. A failure leaves everything as it was, but for
    /// `next`, which is gone.
    pub(crate) fn rotate(&mut self, directory: BorrowedFd<'_>, next: NextFile) -> Result<FullFile, WriteFault> {
        let opened = match self.fd.take() {
            Some(fd) => Ok(fd),
            // If nothing comes of it, it is written on.
            None => self.open(directory, OFlags::WRONLY | OFlags::APPEND),
        };
        let exchanged = opened.and_then(|fd| {
            let inode = self.inode.map_or_else(|| inode_of(&fd), Ok);
            self.fd = Some(fd);
            inode.and_then(|inode| exchange(directory, &self.name, &next.name).map(|()| inode))
        });
        match (exchanged, self.fd.take()) {
            (Ok(inode), Some(fd)) => {
                let full = FullFile { name: next.name, fd, inode };
                (self.fd, self.inode, self.length, self.torn) = (Some(next.fd), None, 0, 0);
                Ok(full)
            }
            (exchanged, fd) => {
                self.fd = fd;
                next.discard(directory);
                Err(exchanged.err().unwrap_or(Errno::BADF).into())
            }
        }
    }

    /// Undoes a rotation.
    pub(crate) fn rotate_back(&mut self, directory: BorrowedFd<'_>, full: FullFile, length: u64) {
        if exchange(directory, &self.name, &full.name).is_ok() {
            let _ = rustix::fs::unlinkat(directory, &*full.name, AtFlags::empty());
            (self.fd, self.inode, self.length) = (Some(full.fd), Some(full.inode), length);
        }
    }

    /// Clears the write bits: the sign, for everybody, that nothing more will come. (A watcher sees IN_ATTRIB.)
    pub(crate) fn seal(&mut self, directory: BorrowedFd<'_>) -> Result<(), WriteFault> {
        // Readers come after that, too.
        self.inode = self.inode().ok();
        let fd = match self.fd.take() {
            Some(fd) => fd,
            None => self.open(directory, OFlags::RDONLY)?,
        };
        Ok(rustix::fs::fchmod(&fd, SEALED)?)
    }

    /// Deletes the file.
    pub(crate) fn delete(&mut self, directory: BorrowedFd<'_>) -> io::Result<()> {
        self.close();
        self.open(directory, OFlags::PATH)?;
        Ok(rustix::fs::unlinkat(directory, &*self.name, AtFlags::empty())?)
    }

    /// Deletes an earlier file of this log; that it is gone already is as good.
    pub(crate) fn delete_earlier(&self, directory: BorrowedFd<'_>, number: u64, inode: Inode) -> io::Result<()> {
        let name = rotated_name(&self.name, number);
        match open_as(directory, &name, OFlags::PATH, inode) {
            Ok(_) => Ok(rustix::fs::unlinkat(directory, &*name, AtFlags::empty())?),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Puts a small file, complete and sealed, in the place of an earlier one. Returns which file it is.
    pub(crate) fn replace_earlier(
        &self,
        directory: BorrowedFd<'_>,
        (number, inode): (u64, Inode),
        content: &[u8],
        mark: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<Inode> {
        let name = rotated_name(&self.name, number);
        let way = format!("{name}.next");
        open_as(directory, &name, OFlags::PATH, inode)?;
        let fd = create_file(directory, &way)?;
        let placed = mark(fd.as_fd()).and_then(|()| {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(&fd, content))?;
            if written < content.len() {
                return Err(Errno::NOSPC.into());
            }
            rustix::fs::fchmod(&fd, SEALED)?;
            let inode = inode_of(&fd)?;
            rustix::fs::renameat(directory, &*way, directory, &*name)?;
            Ok(inode)
        });
        if placed.is_err() {
            let _ = rustix::fs::unlinkat(directory, &*way, AtFlags::empty());
        }
        placed
    }

    /// Opens the file for a reader.
    pub(crate) fn open_reader(&self, directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        Ok(self.open(directory, OFlags::RDONLY)?)
    }

    /// The bytes in the file, whoever wrote them.
    pub(crate) fn look_at_length(&mut self, directory: BorrowedFd<'_>) -> io::Result<u64> {
        let stat = rustix::fs::statat(directory, &*self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        if (stat.st_dev, stat.st_ino) != self.inode()? {
            return Err(Errno::STALE.into());
        }
        self.length = stat.st_size as u64;
        Ok(self.length)
    }

    /// The file, open to be appended to.
    fn opened(&mut self, directory: BorrowedFd<'_>) -> Result<&OwnedFd, Errno> {
        let fd = match self.fd.take() {
            Some(fd) => fd,
            None => self.open(directory, OFlags::WRONLY | OFlags::APPEND)?,
        };
        Ok(self.fd.insert(fd))
    }

    /// Opens the file and makes sure that it is still the one that was made.
    fn open(&self, directory: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
        open_as(directory, &self.name, flags, self.inode()?)
    }

    fn inode(&self) -> Result<Inode, Errno> {
        match (&self.inode, &self.fd) {
            (Some(inode), _) => Ok(*inode),
            (None, Some(fd)) => inode_of(fd),
            (None, None) => Err(Errno::STALE),
        }
    }
}

/// Makes a log file. It must not be there yet.
fn create_file(directory: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o600))
}

/// Opens the file that is called `name`, if it is this one.
fn open_as(directory: BorrowedFd<'_>, name: &str, flags: OFlags, inode: Inode) -> Result<OwnedFd, Errno> {
    let fd = rustix::fs::openat(directory, name, flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    // The number alone is not enough: a file that was deleted gives its own to the next. Nobody but us can make one of ours.
    let is_ours = FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_uid == rustix::process::geteuid().as_raw();
    // ESTALE: somebody has put another file in its place.
    if is_ours && (stat.st_dev, stat.st_ino) == inode { Ok(fd) } else { Err(Errno::STALE) }
}

/// Exchanges the names of two files. A file system that cannot do that in one step does it in four, with a moment in which there is no `newest`.
fn exchange(directory: BorrowedFd<'_>, newest: &str, numbered: &str) -> Result<(), Errno> {
    match rustix::fs::renameat_with(directory, newest, directory, numbered, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        exchanged => return exchanged,
    }
    // Nothing that somebody else puts at one of these names meanwhile is overwritten: link(2) refuses.
    let (link, unlink) = (
        |from: &str, to: &str| rustix::fs::linkat(directory, from, directory, to, AtFlags::empty()),
        |name: &str| rustix::fs::unlinkat(directory, name, AtFlags::empty()),
    );
    let away = format!("{numbered}.next");
    link(numbered, &away)?;
    let exchanged = unlink(numbered).and_then(|()| link(newest, numbered)).and_then(|()| unlink(newest)).and_then(|()| link(&away, newest));
    if exchanged.is_err() {
        // As far as it went, back again; what is there already is refused, and all is well.
        let _ = link(numbered, newest);
        let _ = unlink(numbered);
        let _ = link(&away, numbered);
    }
    let _ = unlink(&away);
    exchanged
}

fn inode_of(fd: &OwnedFd) -> Result<Inode, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Cuts the last `written` bytes off the file, so that no torn record stays.
fn cut_back(fd: &OwnedFd, written: usize) -> Result<(), Errno> {
    if written == 0 {
        return Ok(());
    }
    // The length is the file's own, not what we have written in all: somebody else may have added to it.
    let length = (rustix::fs::fstat(fd)?.st_size as u64).saturating_sub(written as u64);
    rustix::io::retry_on_intr(|| rustix::fs::ftruncate(fd, length))
}

/// Cuts a torn record off; where that still cannot be done, ends it, so that it costs the reader that one line and no more. Returns how many bytes stay.
fn mend(fd: &OwnedFd, torn: usize) -> Result<u64, Errno> {
    if cut_back(fd, torn).is_ok() {
        return Ok(0);
    }
    let written = rustix::io::retry_on_intr(|| rustix::io::write(fd, b"\n"))?;
    Ok((torn + written) as u64)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek};

    use rustix::fs::{MemfdFlags, SealFlags};

    use super::*;

    /// A log that a failing write has left torn: the last three bytes are of no record.
    fn torn_log(can_be_cut: bool) -> (LogFile, File) {
        let fd = rustix::fs::memfd_create(c"log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::io::write(&fd, b"whole\ntor").unwrap();
        if !can_be_cut {
            rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
        }
        let file = File::from(fd.try_clone().unwrap());
        rustix::fs::seek(&fd, rustix::fs::SeekFrom::End(0)).unwrap();
        rustix::fs::fcntl_setfl(&fd, OFlags::APPEND).unwrap();
        (LogFile { name: "log".into(), fd: Some(fd), inode: None, length: 6, torn: 3 }, file)
    }

    fn text(file: &mut File) -> String {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_rotation_that_fails_leaves_a_closed_log_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(directory.path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let mut log = LogFile::create(fd.as_fd(), "log".to_owned()).unwrap();
        log.append(fd.as_fd(), b"one\n").unwrap();
        log.close();
        let next = log.prepare_next(fd.as_fd(), 1).unwrap();
        std::fs::remove_file(directory.path().join("log.000001")).unwrap();
        assert_eq!(log.rotate(fd.as_fd(), next).unwrap_err().errno, Errno::NOENT.raw_os_error());
        log.append(fd.as_fd(), b"two\n").unwrap();
        assert_eq!((std::fs::read(directory.path().join("log")).unwrap(), log.length()), (b"one\ntwo\n".to_vec(), 8));
    }

    #[test]
    fn a_torn_record_is_cut_off_before_the_next_is_written() {
        let (mut log, mut file) = torn_log(true);
        log.append(rustix::fs::CWD, b"next\n").unwrap();
        assert_eq!((text(&mut file).as_str(), log.length(), log.torn), ("whole\nnext\n", 11, 0));
    }

    #[test]
    fn a_torn_record_that_cannot_be_cut_off_is_ended_and_costs_that_one_line() {
        let (mut log, mut file) = torn_log(false);
        log.append(rustix::fs::CWD, b"next\n").unwrap();
        assert_eq!((text(&mut file).as_str(), log.length(), log.torn), ("whole\ntor\nnext\n", 15, 0));
        log.append(rustix::fs::CWD, b"more\n").unwrap();
        assert!(text(&mut file).ends_with("\nnext\nmore\n"));
    }
}
