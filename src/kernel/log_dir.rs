//! The log directory, and the worker's mark in it: a lock held for life, by which anyone can tell a live log from a left-over.

pub(crate) mod scan;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, Mode as FileMode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;
use uuid::Uuid;

use crate::logic::mark::{Mark, Place};
use crate::logic::names::LogName;
use crate::model::error::BuildError;
use crate::model::output::LogFormat;

/// The extended attribute of a log that names its worker and format.
pub(crate) const MARK_XATTR: &str = "user.iron-exec";

/// What is read of a table, in bytes, from its end back: half a million logs, the last ones.
const TABLE_BYTES_MAX: u64 = 64 << 20;

/// Lines of its table that an ending worker looks at to see whether one of those logs is still there. A longer table stays.
const TABLE_LINES_MAX: usize = 10_000;

/// Attempts to lock the lock while others look whether it is locked, or clear it away.
const LOCK_LOOKS: usize = 200;

/// How long to let somebody look at a lock that has just been made: that takes microseconds, unless they are forking.
const LOOK_TIME: Duration = Duration::from_millis(1);

/// Attempts to make the lock when another worker, ending, removes the directory under us.
const LOCK_TRIES: usize = 16;

/// The name of the directory of locks below a log directory. One for each user: in a directory that others can write, a shared one would belong
/// to whoever came first, who could then remove the locks of the others.
pub(crate) fn locks_name(uid: u32) -> String {
    format!(".iron-exec-{uid}")
}

/// The name of a worker's lock below the directory of locks.
pub(crate) fn lock_name(worker: Uuid) -> String {
    format!("{worker}.lock")
}

/// The name of the table that stands in for the attribute on file systems without: a line `name mark` for each log.
pub(crate) fn table_name(worker: Uuid) -> String {
    format!("{worker}.logs")
}

/// Reads the mark of a log of any worker: the attribute of the open file, or the tables of the directory of locks.
pub(crate) fn read_mark(log: BorrowedFd<'_>, path: &Path) -> io::Result<Option<Mark>> {
    let mark = read_attribute(log, path)?;
    if mark.is_some() { Ok(mark) } else { look_up_mark(log, path) }
}

/// As [`read_mark`], but for the tables: for who knows whose log it is.
pub(crate) fn read_attribute(log: BorrowedFd<'_>, _path: &Path) -> io::Result<Option<Mark>> {
    let mut value = [0_u8; 128];
    match rustix::fs::fgetxattr(log, MARK_XATTR, &mut value) {
        Ok(length) => Ok(value.get(..length).and_then(|text| std::str::from_utf8(text).ok()).and_then(Mark::decode)),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Looks a log up in the tables.
fn look_up_mark(log: BorrowedFd<'_>, path: &Path) -> io::Result<Option<Mark>> {
    let (Some(name), Some(locks)) = (path.file_name().and_then(|name| name.to_str()), locks_of(log, path)?) else { return Ok(None) };
    let entries = match std::fs::read_dir(&locks) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let table = entry?.path();
        if table.extension() == Some("logs".as_ref())
            && let Some(mark) = mark_in_table(&table, name)?
        {
            return Ok(Some(mark));
        }
    }
    Ok(None)
}

/// Looks a log up in one table. What is no file, or gone with its worker by now, holds nothing.
fn mark_in_table(table: &Path, log: &str) -> io::Result<Option<Mark>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(table, flags, FileMode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::LOOP | Errno::ACCESS) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Ok(None);
    }
    let (mut text, start) = (Vec::new(), meta.len().saturating_sub(TABLE_BYTES_MAX));
    (&file).seek(SeekFrom::Start(start))?;
    file.take(TABLE_BYTES_MAX).read_to_end(&mut text)?;
    // In the middle of a table the first line is a part of one.
    let first = if start == 0 { 0 } else { memchr::memchr(b'\n', &text).map_or(text.len(), |end| end + 1) };
    let text = String::from_utf8_lossy(text.get(first..).unwrap_or_default());
    let mark_in = |line: &str, name: &str| line.strip_prefix(name)?.strip_prefix(' ').and_then(Mark::decode);
    // A name that was given to one file after the other belongs to the last.
    let own = text.lines().rev().find_map(|line| mark_in(line, log));
    // A file that was rotated was marked under the log's own name, before that.
    let rotated = LogName::parse(log).and_then(|parsed| Some((parsed.log, parsed.number?)));
    let former = || {
        let (log, number) = rotated?;
        text.lines().rev().find_map(|line| mark_in(line, log).filter(|mark| mark.place.number == number))
    };
    Ok(own.or_else(former))
}

/// The lock of the worker that writes, or wrote, the log at `path`.
pub(crate) fn lock_path(log: BorrowedFd<'_>, path: &Path, worker: Uuid) -> io::Result<Option<PathBuf>> {
    Ok(locks_of(log, path)?.map(|locks| locks.join(lock_name(worker))))
}

/// Whether somebody holds the lock at `path`.
pub(crate) fn is_locked(path: &Path) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let lock = match rustix::fs::open(path, flags, FileMode::empty()) {
        Ok(lock) => lock,
        Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    };
    Ok(is_held(lock.as_fd())?)
}

/// Whether somebody holds an opened lock, which is let go of at once. That is not left to its close: a child of another thread, between fork and exec, may have a
/// copy of the descriptor.
fn is_held(lock: BorrowedFd<'_>) -> Result<bool, Errno> {
    match rustix::fs::flock(lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => rustix::fs::flock(lock, FlockOperation::Unlock).map(|()| false),
        Err(Errno::AGAIN) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// The directory of locks of the user whose log it is; `None` if what stands at its name is not that user's.
fn locks_of(log: BorrowedFd<'_>, path: &Path) -> io::Result<Option<PathBuf>> {
    let uid = rustix::fs::fstat(log)?.st_uid;
    let locks = path.parent().map(|directory| directory.join(locks_name(uid)));
    Ok(locks.filter(|locks| std::fs::symlink_metadata(locks).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid)))
}

/// The log directory of a worker.
#[derive(Debug)]
pub(crate) struct LogDir {
    path: PathBuf,
    directory: Arc<OwnedFd>,
    locks: OwnedFd,
    lock: OwnedFd,
    worker: Uuid,
    table: Option<OwnedFd>,
    /// A descriptor in reserve: a log that is closed for idleness can be written and sealed also when no more files can be opened. (Not rotated: that takes two.)
    spare: Option<OwnedFd>,
}

impl LogDir {
    /// Opens `path` and takes a lock for this worker in it.
    pub(crate) fn open(path: &Path, worker: Uuid) -> Result<Self, BuildError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| BuildError::LogDir { path, source }
        };
        let (path, directory) = open_log_dir(path).map_err(failed(path))?;
        let uid = rustix::process::geteuid().as_raw();
        let locks_path = path.join(locks_name(uid));
        for _ in 0..LOCK_TRIES {
            let Some(locks) = open_locks(directory.as_fd(), uid).map_err(failed(&locks_path))? else { continue };
            let stat = rustix::fs::fstat(&locks).map_err(|errno| failed(&locks_path)(errno.into()))?;
            if !is_ours_alone(&stat, uid) {
                return Err(BuildError::Untrusted { path: locks_path, uid });
            }
            match make_lock(locks.as_fd(), worker) {
                Ok(lock) => {
                    let mut log_dir = Self { path, directory: Arc::new(directory), locks, lock, worker, table: None, spare: None };
                    log_dir.take_spare_back();
                    return Ok(log_dir);
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(&locks_path.join(lock_name(worker)))(errno.into())),
            }
        }
        Err(failed(&locks_path)(io::Error::other("other workers keep removing it")))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory, for readers that may outlive the worker.
    pub(crate) fn share(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.directory)
    }

    /// The mark of a worker's own logs begins with this.
    pub(crate) fn worker(&self) -> Uuid {
        self.worker
    }

    /// Marks a log file, which is called `name`, as this worker's.
    pub(crate) fn mark(&mut self, log: BorrowedFd<'_>, name: &str, format: LogFormat, place: Place) -> io::Result<()> {
        if self.mark_by_attribute(log, format, place)? { Ok(()) } else { self.mark_in_table(name, format, place) }
    }

    /// Marks a log file by its attribute; `false` if there can be none.
    pub(crate) fn mark_by_attribute(&self, log: BorrowedFd<'_>, format: LogFormat, place: Place) -> io::Result<bool> {
        if self.table.is_some() {
            return Ok(false);
        }
        let mark = Mark { worker: self.worker, format, place }.encode();
        match rustix::fs::fsetxattr(log, MARK_XATTR, mark.as_bytes(), XattrFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::NOSPC) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Marks the log file that is called `name` by a line in this worker's table.
    pub(crate) fn mark_in_table(&mut self, name: &str, format: LogFormat, place: Place) -> io::Result<()> {
        let mark = Mark { worker: self.worker, format, place }.encode();
        let table = match self.table.take() {
            Some(table) => table,
            None => self.make_table()?,
        };
        let table = self.table.insert(table);
        let line = format!("{name} {mark}\n");
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&*table, line.as_bytes()))?;
        if written < line.len() {
            // Nobody else writes here. What is left of a line would be a part of the next.
            let length = (rustix::fs::fstat(&*table)?.st_size as u64).saturating_sub(written as u64);
            let _ = rustix::fs::ftruncate(&*table, length);
            return Err(Errno::NOSPC.into());
        }
        Ok(())
    }

    /// Closes the descriptor in reserve, so that one file can be opened; `false` if it is lent already.
    pub(crate) fn lend_spare(&mut self) -> bool {
        self.spare.take().is_some()
    }

    /// Puts a descriptor in reserve again, if one can be had.
    pub(crate) fn take_spare_back(&mut self) {
        self.spare = rustix::io::fcntl_dupfd_cloexec(&*self.directory, 3).ok();
    }

    /// Whether a log that the table names is still there.
    fn has_tabled_logs(&self) -> bool {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(table) = rustix::fs::openat(&self.locks, table_name(self.worker), flags, FileMode::empty()) else { return false };
        let names = BufReader::new(File::from(table)).lines().map_while(Result::ok);
        let exists = |name: &str| rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        let mut looks = names.enumerate();
        looks.any(|(number, line)| number >= TABLE_LINES_MAX || line.split_once(' ').is_some_and(|(name, _)| exists(name)))
    }

    fn make_table(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.locks, table_name(self.worker), flags, FileMode::from_raw_mode(0o600))?)
    }
}

impl AsFd for LogDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Drop for LogDir {
    fn drop(&mut self) {
        // Sealed logs need no lock. Whatever is not sealed now is a left-over, lock or not.
        let _ = rustix::fs::unlinkat(&self.locks, lock_name(self.worker), AtFlags::empty());
        // The table says what its logs are; with the last of them it goes.
        if self.table.is_some() && !self.has_tabled_logs() {
            let _ = rustix::fs::unlinkat(&self.locks, table_name(self.worker), AtFlags::empty());
        }
        // ENOTEMPTY: other workers have theirs; the last one out succeeds.
        let uid = rustix::process::geteuid().as_raw();
        let _ = rustix::fs::unlinkat(&*self.directory, locks_name(uid), AtFlags::REMOVEDIR);
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

/// Opens a log directory; also returns its absolute path, which stays right when the host changes its working directory.
fn open_log_dir(path: &Path) -> io::Result<(PathBuf, OwnedFd)> {
    let path = std::path::absolute(path)?;
    let directory = rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, FileMode::empty())?;
    Ok((path, directory))
}

/// Whether nobody else can write it.
fn is_ours_alone(stat: &Stat, uid: u32) -> bool {
    stat.st_uid == uid && stat.st_mode & 0o022 == 0
}

/// Makes the directory of locks if it is not there, and opens it; `None` if another worker, ending, has removed it in between.
fn open_locks(directory: BorrowedFd<'_>, uid: u32) -> io::Result<Option<OwnedFd>> {
    let name = locks_name(uid);
    match rustix::fs::mkdirat(directory, &*name, FileMode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, &*name, flags, FileMode::empty()) {
        Ok(locks) => Ok(Some(locks)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn make_lock(locks: BorrowedFd<'_>, worker: Uuid) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let name = lock_name(worker);
    for _ in 0..LOCK_LOOKS {
        let lock = rustix::fs::openat(locks, &*name, flags, FileMode::from_raw_mode(0o600))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            // Until it is locked it looks like that of a dead worker, and may be cleared away.
            Ok(()) if rustix::fs::fstat(&lock)?.st_nlink > 0 => return Ok(lock),
            Ok(()) => {}
            Err(Errno::AGAIN) => std::thread::sleep(LOOK_TIME),
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn of_a_table_that_is_too_long_the_last_lines_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table");
        let log = |number: u128| format!("make_{}.log", Uuid::from_u128(number));
        let line = |number: u128| format!("{} {} cri\n", log(number), Uuid::from_u128(7));
        let mut table = File::create(&path).unwrap();
        table.write_all(line(1).as_bytes()).unwrap();
        assert!(mark_in_table(&path, &log(1)).unwrap().is_some());
        // A hole is a long line of zeros; a part of it is where the reading begins.
        table.set_len(TABLE_BYTES_MAX).unwrap();
        table.seek(SeekFrom::End(0)).unwrap();
        table.write_all(format!("\n{}", line(2)).as_bytes()).unwrap();
        assert!(mark_in_table(&path, &log(2)).unwrap().is_some());
        assert_eq!(mark_in_table(&path, &log(1)).unwrap(), None);
    }
}
