//! The files of one log, each opened by name below the log's directory, and only if it belongs there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use uuid::Uuid;

use crate::logic::mark::{Mark, Place};
use crate::logic::names::{LogName, rotated_name};

/// Looks up the mark of a log file that is open and stands at a path. What marks are kept in is another kernel object.
pub(crate) type MarkOf = fn(BorrowedFd<'_>, &Path) -> io::Result<Option<Mark>>;

/// How often the files of a log are looked up again when they change meanwhile.
const LOOK_TRIES: usize = 100;

/// One file of a log, opened.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) file: OwnedFd,
    pub(crate) number: u64,
    /// The bytes of the log before it; `None` where nothing says so.
    pub(crate) start: Option<u64>,
}

/// The files of one log: where they are, and how one of them is told from a stranger's.
#[derive(Debug)]
pub(crate) struct LogFiles {
    directory: Arc<OwnedFd>,
    /// The log's own path: that of its newest file.
    path: PathBuf,
    name: String,
    /// Whether this file is all that is read: it has been rotated, or has no name of a log.
    is_alone: bool,
    uid: u32,
    worker: Option<Uuid>,
    mark_of: MarkOf,
}

/// A file that is open and belongs to the log.
struct Opened {
    file: OwnedFd,
    stat: Stat,
    place: Option<Place>,
}

impl Opened {
    /// Whether it is the next file on its way to its name: empty, and not sealed.
    fn is_on_its_way(&self) -> bool {
        self.stat.st_size == 0 && !is_sealed(&self.stat)
    }

    fn into_part(self, number: u64) -> Part {
        let start = if number == 1 { Some(0) } else { self.place.filter(|place| place.number == number).map(|place| place.start) };
        Part { file: self.file, number, start }
    }
}

impl LogFiles {
    /// The files of the log at `path`, the first of which, `file`, is open already. `None` if its name is no text.
    pub(crate) fn new(
        directory: Arc<OwnedFd>,
        path: PathBuf,
        file: BorrowedFd<'_>,
        worker: Option<Uuid>,
        mark_of: MarkOf,
    ) -> io::Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let is_alone = LogName::parse(&name).is_none_or(|parsed| parsed.number.is_some());
        let uid = rustix::fs::fstat(file)?.st_uid;
        Ok(Self { directory, path, name, is_alone, uid, worker, mark_of })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is this one file, and no others are looked for.
    pub(crate) fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// Whether the file stands at the log's own name.
    pub(crate) fn is_newest(&self, file: &Stat) -> io::Result<bool> {
        self.stands_at(file, &self.name)
    }

    /// Whether the file stands at the name that it gets when it is rotated.
    pub(crate) fn is_rotated(&self, file: &Stat, number: u64) -> io::Result<bool> {
        self.stands_at(file, &rotated_name(&self.name, number))
    }

    /// File `number`, if it is still there; `is_newest` as it was a moment ago: it may have been rotated since.
    pub(crate) fn open(&self, number: u64, is_newest: bool) -> io::Result<Option<Part>> {
        // The newest first: if it is rotated after that, it is still the one that we have. If it was rotated before, another one says so itself.
        let newest = if is_newest { self.open_name(&self.name)? } else { None };
        let newest = newest.filter(|newest| newest.place.is_none_or(|place| place.number == number));
        let full = self.open_full(number)?;
        Ok(full.or_else(|| newest.map(|newest| newest.into_part(number))))
    }

    /// Whether the newest file says that it comes after `number`.
    pub(crate) fn is_beyond(&self, number: u64) -> io::Result<bool> {
        Ok(self.open_name(&self.name)?.and_then(|newest| newest.place).is_some_and(|place| place.number > number))
    }

    /// The file that comes after `number`, or the first that is left of those that do; `None` if there is none. Not to be asked before file `number` was seen
    /// to be no longer the newest.
    pub(crate) fn after(&self, number: u64) -> io::Result<Option<Part>> {
        let Some(next) = number.checked_add(1) else { return Ok(None) };
        for _ in 0..LOOK_TRIES {
            if let Some(part) = self.open_full(next)? {
                return Ok(Some(part));
            }
            let newest = self.open_name(&self.name)?;
            if let Some(part) = self.open_full(next)? {
                return Ok(Some(part));
            }
            let named = newest.as_ref().and_then(|newest| newest.place).map(|place| place.number);
            if named != Some(next) {
                // What does not open is a stranger's, not ready, or was deleted meanwhile.
                for later in self.numbers()?.into_iter().filter(|later| *later > next && named.is_none_or(|named| *later < named)) {
                    if let Some(part) = self.open_full(later)? {
                        return Ok(Some(part));
                    }
                }
                if let Some(newest) = &newest
                    && !self.is_newest(&newest.stat)?
                {
                    // Rotated meanwhile: others may have come before it.
                    continue;
                }
            }
            // A mark in a table may be that of the file before: it is written a moment later.
            return Ok(newest.map(|newest| newest.into_part(named.map_or(next, |named| named.max(next)))));
        }
        Ok(None)
    }

    /// The places of the log's files, oldest first; the last is that of `newest`, whose mark says `marked`.
    pub(crate) fn places(&self, newest: BorrowedFd<'_>, marked: Option<Place>) -> io::Result<Vec<Place>> {
        if self.is_alone {
            return Ok(vec![Place { number: marked.map_or(1, |place| place.number), start: 0 }]);
        }
        let newest = inode(&rustix::fs::fstat(newest)?);
        let mut place = marked;
        if let Some(marked) = marked
            && let Some(former) = self.open_full(marked.number)?
        {
            // A mark in a table may be that of the file before: it is written a moment later. Or the newest file has just been rotated.
            let former = rustix::fs::fstat(&former.file)?;
            if inode(&former) != newest {
                let start = marked.start.saturating_add(former.st_size as u64);
                place = Some(Place { number: marked.number.saturating_add(1), start });
            }
        }
        if place == Some(Place::FIRST) {
            return Ok(vec![Place::FIRST]);
        }
        let mut places: Vec<Place> = Vec::new();
        // Of files that nothing is known of, one begins where the one before ends.
        let mut end = 0;
        for number in self.numbers()?.into_iter().filter(|number| place.is_none_or(|place| *number < place.number)) {
            let Some(part) = self.open_full(number)? else { continue };
            let stat = rustix::fs::fstat(&part.file)?;
            if inode(&stat) == newest {
                break;
            }
            let start = part.start.unwrap_or(end);
            end = start.saturating_add(stat.st_size as u64);
            places.push(Place { number, start });
        }
        let number = places.last().map_or(1, |last| last.number.saturating_add(1));
        places.push(place.unwrap_or(Place { number, start: end }));
        Ok(places)
    }

    /// The numbers of the files that were rotated, in order.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&self.directory, ".", flags, Mode::empty())?;
        let mut numbers = Vec::new();
        for entry in Dir::new(directory)? {
            let entry = entry?;
            let parsed = entry.file_name().to_str().ok().and_then(LogName::parse).filter(|parsed| parsed.log == self.name);
            numbers.extend(parsed.and_then(|parsed| parsed.number));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// File `number` at the name that it has when it is full.
    fn open_full(&self, number: u64) -> io::Result<Option<Part>> {
        let found = self.open_name(&rotated_name(&self.name, number))?.filter(|found| !found.is_on_its_way());
        let found = found.filter(|found| found.place.is_none_or(|place| place.number == number));
        Ok(found.map(|found| found.into_part(number)))
    }

    /// Opens what is called `name`; `None` if that is nothing, or not of this log, or not for us to read: then its bytes are missing, as if it were gone.
    fn open_name(&self, name: &str) -> io::Result<Option<Opened>> {
        // Looked at first: what somebody else puts there is not even opened, and whatever opening it would say is no fault of the log.
        match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) if self.may_belong(&named) => {}
            Ok(_) | Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        let file = match open_below(self.directory.as_fd(), name) {
            Ok(file) => file,
            // Another one by now, if it is a link or a FIFO.
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::ACCESS | Errno::PERM) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let stat = rustix::fs::fstat(&file)?;
        if !self.may_belong(&stat) {
            return Ok(None);
        }
        let mark = (self.mark_of)(file.as_fd(), &self.path.with_file_name(name))?;
        let is_strange = mark.zip(self.worker).is_some_and(|(mark, worker)| mark.worker != worker);
        Ok((!is_strange).then_some(Opened { file, stat, place: mark.map(|mark| mark.place) }))
    }

    fn may_belong(&self, file: &Stat) -> bool {
        file.st_uid == self.uid && FileType::from_raw_mode(file.st_mode).is_file()
    }

    fn stands_at(&self, file: &Stat, name: &str) -> io::Result<bool> {
        match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(inode(&found) == inode(file)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Opens a file for reading, without waiting for anything and through no link.
pub(crate) fn open_below(directory: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// Whether the write bits are cleared: nothing more will come into this file.
pub(crate) fn is_sealed(file: &Stat) -> bool {
    file.st_mode & 0o222 == 0
}

fn inode(file: &Stat) -> (u64, u64) {
    (file.st_dev, file.st_ino)
}
