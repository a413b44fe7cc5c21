//! Looking through a log directory for the logs of workers, a slice at a time; repairing what dead ones have left; deleting.
//!
//! Others may write the directory. A file counts only if it is a regular one of our user with one name and a worker's mark, and is opened by the directory's
//! descriptor, never through a link and without waiting. It is looked at again right before it is deleted.

use std::collections::{HashMap, HashSet, VecDeque, hash_map};
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode as FileMode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use uuid::Uuid;

use super::{LogDir, MARK_XATTR, is_held, is_ours_alone, lock_name, locks_name, open_log_dir, table_name};
use crate::logic::mark::Mark;
use crate::logic::names::LogName;
use crate::logic::retention::{FileSeen, LogFileSeen};
use crate::model::output::LogFormat;
use crate::model::retention::{LogState, RetentionFailure};

/// Bytes of directory entries that one slice looks at: some 50 logs, each of them looked at in 7 us (tmpfs) to 15 us (ext4, not in the cache).
const SLICE_BYTES: usize = 4 << 10;

/// Bytes of a table that one slice reads.
const TABLE_SLICE_BYTES: usize = 64 << 10;

/// Bytes of a table that one slice reads when it looks whether each name is still there: some 80 names.
const CHECKED_SLICE_BYTES: usize = 8 << 10;

/// Names of tables that are held in mind unseen. A table only grows while its worker lives, so beyond that a name counts only if it is still there.
const UNCHECKED_LOGS_MAX: usize = 10_000;

/// Names of tables that are held in mind, and with each some 150 bytes. Logs beyond that are not known as ours, and stay.
const TABLED_LOGS_MAX: usize = 200_000;

/// The longest line of a table: a name and a mark.
const TABLE_LINE_BYTES_MAX: usize = 512;

/// Workers of which it is held in mind whether they live. Beyond that they are asked again.
const WORKERS_HELD_MAX: usize = 10_000;

/// Bytes that are read, or the like in effort, for the repair of left-overs before the slice ends.
const REPAIR_SLICE_BYTES: u64 = 1 << 20;

/// What a repair costs at least, in bytes read.
const REPAIR_EFFORT_BYTES: u64 = 64 << 10;

/// How far from its end the last whole record of a log is looked for: the longest there is, and room for the NUL bytes that a power cut leaves. Where none
/// is found the file is sealed as it is.
const REPAIR_BYTES_MAX: u64 = 16 << 20;

/// Bytes read at a time on the way back from the end.
const REPAIR_BLOCK_BYTES: usize = 64 << 10;

/// Locks of dead workers that one slice removes.
const LOCKS_SLICE_MAX: usize = 16;

/// The end of the name of a file that is to take another's place, which is what stands before it.
const NEXT_SUFFIX: &str = ".next";

/// Whose files are looked at, and how much is done about them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScanRights {
    /// The worker that looks: it lives.
    pub(crate) own: Option<Uuid>,
    /// Whether left-overs are repaired and sealed.
    pub(crate) repairs: bool,
}

/// What a scan tells while it goes on.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    /// A file of a log.
    Log(LogName<'a>, LogFileSeen),
    /// A left-over was repaired and sealed, or would be.
    Leftover(&'a str),
    /// Something could not be done; the scan goes on.
    Failure(RetentionFailure),
}

/// What became of a file that was to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deletion {
    /// It is gone.
    Deleted,
    /// Somebody else has deleted it.
    Absent,
    /// It, or what stands in its place, is not what was looked at.
    Changed,
}

#[derive(Debug)]
enum Stage {
    /// Which workers are dead. This comes first: a worker that is dead by then makes no log later.
    Locks,
    /// What their tables say.
    Tables,
    Logs,
    /// Everything was seen.
    Seen,
}

/// One look through a log directory.
#[derive(Debug)]
pub(crate) struct LogScan {
    path: PathBuf,
    directory: OwnedFd,
    device: u64,
    uid: u32,
    locks: Option<OwnedFd>,
    rights: ScanRights,
    stage: Stage,
    buffer: Box<[MaybeUninit<u8>]>,
    /// Names of the slice that are still to be looked at.
    names: VecDeque<String>,
    /// Tables that are still to be read.
    tables: VecDeque<Uuid>,
    table: Option<TableReading>,
    /// What tables say of logs without the attribute.
    tabled: HashMap<Box<str>, Mark>,
    /// What is left of that while it is forgotten.
    going: Option<hash_map::IntoIter<Box<str>, Mark>>,
    /// Which workers live. One that does may be taken to for the rest of the scan; one that is dead is asked again before anything is done about it.
    lives: HashMap<Uuid, bool>,
    /// Workers with a lock or a table that were dead before the first log was looked at.
    dead: Vec<Uuid>,
    /// Those of which something is left for which lock or table is needed.
    needed: HashSet<Uuid>,
}

/// A table while it is read.
#[derive(Debug)]
struct TableReading {
    file: File,
    /// The beginning of a line whose end was not read yet.
    line: Vec<u8>,
}

impl LogDir {
    /// Begins a look through the directory, by and for this worker.
    pub(crate) fn scan(&self) -> Result<LogScan, RetentionFailure> {
        let rights = ScanRights { own: Some(self.worker), repairs: true };
        LogScan::new(self.path.clone(), self.directory.as_fd(), rights)
    }
}

impl LogScan {
    /// Begins a look from outside, which changes nothing.
    pub(crate) fn open(path: &Path) -> Result<Self, RetentionFailure> {
        let failed = |error: io::Error| RetentionFailure::at("opening the log directory", path.to_owned(), &error);
        let (path, directory) = open_log_dir(path).map_err(failed)?;
        Self::new(path, directory.as_fd(), ScanRights { own: None, repairs: false })
    }

    fn new(path: PathBuf, directory: BorrowedFd<'_>, rights: ScanRights) -> Result<Self, RetentionFailure> {
        let failed = |path: &Path, errno: Errno| RetentionFailure::at("opening the log directory", path.to_owned(), &errno.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(directory, ".", flags, FileMode::empty()).map_err(|errno| failed(&path, errno))?;
        let device = rustix::fs::fstat(&directory).map_err(|errno| failed(&path, errno))?.st_dev;
        let uid = rustix::process::geteuid().as_raw();
        let locks_path = || path.join(locks_name(uid));
        let locks = match rustix::fs::openat(&directory, locks_name(uid), flags, FileMode::empty()) {
            Ok(locks) => Some(locks),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(failed(&locks_path(), errno)),
        };
        if let Some(locks) = &locks {
            let stat = rustix::fs::fstat(locks).map_err(|errno| failed(&locks_path(), errno))?;
            if !is_ours_alone(&stat, uid) {
                return Err(failed(&locks_path(), Errno::PERM));
            }
        }
        Ok(Self {
            path,
            directory,
            device,
            uid,
            locks,
            rights,
            stage: Stage::Locks,
            buffer: vec![MaybeUninit::uninit(); SLICE_BYTES].into(),
            names: VecDeque::new(),
            tables: VecDeque::new(),
            table: None,
            tabled: HashMap::new(),
            going: None,
            lives: HashMap::new(),
            dead: Vec::new(),
            needed: HashSet::new(),
        })
    }

    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Goes on for one slice; whether something is left to look at. `now`, in nanoseconds since 1970, is when a left-over would be sealed that is not.
    pub(crate) fn step(&mut self, now: u64, mut tell: impl FnMut(Found<'_>)) -> Result<bool, RetentionFailure> {
        match self.stage {
            Stage::Locks => self.look_at_locks()?,
            Stage::Tables => self.read_tables(&mut tell)?,
            Stage::Logs => self.look_at_logs(now, &mut tell)?,
            Stage::Seen => {}
        }
        Ok(!matches!(self.stage, Stage::Seen))
    }

    /// Removes locks and tables of dead workers of which nothing is left that needs them; whether more of them are to be looked at. For the end of a scan.
    pub(crate) fn clear_locks(&mut self) -> bool {
        for _ in 0..LOCKS_SLICE_MAX {
            let Some(worker) = self.dead.pop() else { return false };
            if !self.needed.contains(&worker) && self.rights.repairs {
                self.clear_lock(worker);
            }
        }
        !self.dead.is_empty()
    }

    /// Forgets up to `count` names of tables, for the end of a pass, so that letting go of all of them takes no long moment; whether some are left.
    pub(crate) fn forget(&mut self, count: usize) -> bool {
        let going = self.going.get_or_insert_with(|| std::mem::take(&mut self.tabled).into_iter());
        going.by_ref().take(count).for_each(drop);
        going.len() > 0
    }

    /// Deletes a file, if it is still what was seen, and no worker that lives is writing it.
    pub(crate) fn delete(&mut self, name: &str, seen: FileSeen) -> io::Result<Deletion> {
        let stat = match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Deletion::Absent),
            Err(errno) => return Err(errno.into()),
        };
        if !self.is_candidate(&stat) || file_seen(&stat) != seen {
            return Ok(Deletion::Changed);
        }
        if !is_sealed(&stat) {
            let Some(fd) = self.open_candidate(name, OFlags::RDONLY)? else { return Ok(Deletion::Changed) };
            let mark = self.mark_of(fd.as_fd(), name)?;
            if mark.is_none_or(|(mark, _)| !self.is_still_dead(mark.worker)) {
                return Ok(Deletion::Changed);
            }
        }
        match rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) => Ok(Deletion::Deleted),
            Err(Errno::NOENT) => Ok(Deletion::Absent),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether anything stands at `name`.
    pub(crate) fn exists(&self, name: &str) -> bool {
        !matches!(rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT))
    }

    fn failure(&self, operation: &'static str, name: &str, error: &io::Error) -> RetentionFailure {
        RetentionFailure::at(operation, self.path_of(name), error)
    }

    fn look_at_locks(&mut self) -> Result<(), RetentionFailure> {
        let names = match &self.locks {
            Some(locks) => next_names(locks.as_fd(), &mut self.buffer, &mut self.names),
            None => Ok(false),
        };
        let is_more = names.map_err(|error| self.failure("reading the directory of locks", &locks_name(self.uid), &error))?;
        while let Some(name) = self.names.pop_front() {
            let Some((worker, kind)) = name.rsplit_once('.') else { continue };
            let Ok(worker) = worker.parse::<Uuid>() else { continue };
            let is_table = kind == "logs" && table_name(worker) == name;
            if is_table {
                self.tables.push_back(worker);
            }
            if (is_table || (kind == "lock" && lock_name(worker) == name)) && !self.is_alive(worker) && !self.dead.contains(&worker) {
                self.dead.push(worker);
            }
        }
        if !is_more {
            self.stage = Stage::Tables;
            // A worker that had not locked its lock yet looked dead. Whoever has a log has locked it, so what is found out from the logs on holds.
            self.lives.retain(|_, lives| *lives);
        }
        Ok(())
    }

    fn read_tables(&mut self, tell: &mut impl FnMut(Found<'_>)) -> Result<(), RetentionFailure> {
        if self.table.is_none() {
            let (Some(worker), Some(locks)) = (self.tables.pop_front(), &self.locks) else {
                self.stage = Stage::Logs;
                return Ok(());
            };
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = match rustix::fs::openat(locks, table_name(worker), flags, FileMode::empty()) {
                Ok(file) => file,
                // It has gone with its worker.
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(self.failure("opening a table of logs", &table_name(worker), &errno.into())),
            };
            let is_ours = rustix::fs::fstat(&file)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_uid == self.uid);
            if is_ours {
                self.table = Some(TableReading { file: file.into(), line: Vec::new() });
            }
            return Ok(());
        }
        let Some(mut table) = self.table.take() else { return Ok(()) };
        let slice = if self.tabled.len() < UNCHECKED_LOGS_MAX { TABLE_SLICE_BYTES } else { CHECKED_SLICE_BYTES };
        let mut bytes = vec![0; slice];
        let count = match table.file.read(&mut bytes) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.table = Some(table);
                return Ok(());
            }
            Err(error) => return Err(self.failure("reading a table of logs", &locks_name(self.uid), &error)),
        };
        let bytes = bytes.get(..count).unwrap_or_default();
        let mut is_full = false;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if table.line.len() <= TABLE_LINE_BYTES_MAX {
                table.line.extend_from_slice(piece);
            }
            if !piece.ends_with(b"\n") {
                continue;
            }
            let line = std::mem::take(&mut table.line);
            let Some((name, mark)) = std::str::from_utf8(&line).ok().and_then(|line| line.split_once(' ')) else { continue };
            let Some(mark) = Mark::decode(mark) else { continue };
            // A name that was given to one file after the other belongs to the last.
            let is_new = !self.tabled.contains_key(name);
            if is_new && self.tabled.len() >= UNCHECKED_LOGS_MAX && !self.exists(name) {
                continue;
            }
            is_full = is_new && self.tabled.len() >= TABLED_LOGS_MAX;
            if is_full {
                break;
            }
            self.tabled.insert(name.into(), mark);
        }
        if is_full {
            let error = io::Error::other("the tables name too many logs; those beyond stay");
            tell(Found::Failure(self.failure("reading the tables of logs", &locks_name(self.uid), &error)));
            // What is not known must not be forgotten.
            self.dead.clear();
            self.tables.clear();
        }
        if count > 0 && !is_full {
            self.table = Some(table);
        }
        Ok(())
    }

    fn look_at_logs(&mut self, now: u64, tell: &mut impl FnMut(Found<'_>)) -> Result<(), RetentionFailure> {
        if self.names.is_empty() {
            let read = next_names(self.directory.as_fd(), &mut self.buffer, &mut self.names);
            if !read.map_err(|error| RetentionFailure::at("reading the log directory", self.path.clone(), &error))? {
                self.stage = Stage::Seen;
            }
        }
        let mut repair_bytes = 0;
        while repair_bytes < REPAIR_SLICE_BYTES
            && let Some(name) = self.names.pop_front()
        {
            // A worker makes no name with such characters, and a list of names is to be readable.
            if name.contains(|character: char| character.is_control()) {
                continue;
            }
            if name.strip_suffix(NEXT_SUFFIX).and_then(LogName::parse).is_some() {
                self.clear_next(&name);
            }
            let Some(log) = LogName::parse(&name) else { continue };
            match self.look(&name, now, &mut repair_bytes, tell) {
                Ok(Some(seen)) => tell(Found::Log(log, seen)),
                // What could not be looked at, or has a second name for now, may need its table yet.
                Ok(None) => self.need_table_of(&name),
                Err(error) if matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::MFILE | Errno::NFILE)) => {
                    return Err(self.failure("looking at", &name, &error));
                }
                Err(error) => {
                    self.need_table_of(&name);
                    tell(Found::Failure(self.failure("looking at", &name, &error)));
                }
            }
        }
        if !self.names.is_empty() {
            self.stage = Stage::Logs;
        }
        Ok(())
    }

    /// Deletes a file that a dead worker had not put into its place yet: what it holds stands elsewhere, too, or says only that something was dropped.
    fn clear_next(&mut self, name: &str) {
        let Ok(Some(fd)) = self.open_candidate(name, OFlags::RDONLY) else { return };
        let Ok(Some((mark, _))) = self.mark_of(fd.as_fd(), name) else { return };
        if self.rights.repairs
            && !self.is_alive(mark.worker)
            && self.is_still_dead(mark.worker)
            && let Ok(stat) = rustix::fs::fstat(&fd)
        {
            // If this fails it is tried again in the next pass, and nothing depends on it.
            let _ = self.delete(name, file_seen(&stat));
        }
    }

    /// Looks at one file; `None` if it is not a worker's.
    fn look(&mut self, name: &str, now: u64, repair_bytes: &mut u64, tell: &mut impl FnMut(Found<'_>)) -> io::Result<Option<LogFileSeen>> {
        let Some(fd) = self.open_candidate(name, OFlags::RDONLY)? else { return Ok(None) };
        let Some((mark, is_tabled)) = self.mark_of(fd.as_fd(), name)? else { return Ok(None) };
        // The lock comes first: a log that is not sealed after its worker was seen to be dead never will be.
        let mut worker_lives = self.is_alive(mark.worker);
        let mut stat = rustix::fs::fstat(&fd)?;
        if !is_sealed(&stat) && !worker_lives {
            worker_lives = !self.is_still_dead(mark.worker);
            // What it was when its worker was seen to be dead counts.
            stat = rustix::fs::fstat(&fd)?;
        }
        let mut changed_at = None;
        if !is_sealed(&stat) && !worker_lives {
            if self.rights.repairs {
                match self.repair(name, &stat, mark.format, repair_bytes) {
                    Ok(repaired) => {
                        stat = repaired;
                        tell(Found::Leftover(name));
                    }
                    Err(error) => tell(Found::Failure(self.failure("repairing", name, &error))),
                }
            } else {
                changed_at = Some(now);
                tell(Found::Leftover(name));
            }
        }
        let state = match (is_sealed(&stat), worker_lives) {
            (true, _) => LogState::Sealed,
            (false, true) => LogState::Live,
            (false, false) => LogState::Leftover,
        };
        if !worker_lives && (is_tabled || state == LogState::Leftover) {
            self.needed.insert(mark.worker);
        }
        let mut file = file_seen(&stat);
        file.changed = changed_at.unwrap_or(file.changed);
        Ok(Some(LogFileSeen { file, state, worker_lives }))
    }

    /// Opens a file that may be a worker's; `None` if it is not, or gone.
    fn open_candidate(&self, name: &str, access: OFlags) -> io::Result<Option<OwnedFd>> {
        // Before it is opened: opening a device or a FIFO may do something.
        match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if self.is_candidate(&stat) => {}
            Ok(_) | Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.directory, name, flags, FileMode::empty()) {
            Ok(fd) => fd,
            // It has changed in between.
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Some(fd).filter(|_| self.is_candidate(&stat)))
    }

    /// Whether it is a regular file of our user, in this directory and under no other name.
    fn is_candidate(&self, stat: &Stat) -> bool {
        let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        is_regular && stat.st_uid == self.uid && stat.st_nlink == 1 && stat.st_dev == self.device
    }

    /// The mark of a file, and whether it stands in a table.
    fn mark_of(&self, file: BorrowedFd<'_>, name: &str) -> io::Result<Option<(Mark, bool)>> {
        let mut value = [0_u8; 128];
        match rustix::fs::fgetxattr(file, MARK_XATTR, &mut value) {
            Ok(length) => {
                let text = value.get(..length).and_then(|text| std::str::from_utf8(text).ok());
                Ok(text.and_then(Mark::decode).map(|mark| (mark, false)))
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(self.tabled_mark(name).map(|mark| (mark, true))),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What the tables say of a file.
    fn tabled_mark(&self, name: &str) -> Option<Mark> {
        // A file that was rotated was marked under the log's own name, before that.
        let of_log = || LogName::parse(name).and_then(|parsed| self.tabled.get(parsed.log));
        self.tabled.get(name).or_else(of_log).copied()
    }

    /// Keeps the table that names a file, if there is one.
    fn need_table_of(&mut self, name: &str) {
        if let Some(mark) = self.tabled_mark(name) {
            self.needed.insert(mark.worker);
        }
    }

    /// Whether a worker lives. In doubt it does.
    fn is_alive(&mut self, worker: Uuid) -> bool {
        if self.rights.own == Some(worker) {
            return true;
        }
        if let Some(lives) = self.lives.get(&worker) {
            return *lives;
        }
        self.ask_whether_alive(worker)
    }

    /// As [`is_alive`](Self::is_alive), right before something is done that a worker that lives would not survive: one that has made its lock and not locked it
    /// yet looked dead, and may have begun to write since then.
    fn is_still_dead(&mut self, worker: Uuid) -> bool {
        self.rights.own != Some(worker) && !self.ask_whether_alive(worker)
    }

    fn ask_whether_alive(&mut self, worker: Uuid) -> bool {
        let lives = match self.open_lock(worker) {
            Ok(None) => false,
            Ok(Some(lock)) => is_held(lock.as_fd()).unwrap_or(true),
            Err(_) => true,
        };
        if self.lives.len() < WORKERS_HELD_MAX || self.lives.contains_key(&worker) {
            self.lives.insert(worker, lives);
        }
        lives
    }

    fn open_lock(&self, worker: Uuid) -> Result<Option<OwnedFd>, Errno> {
        let Some(locks) = &self.locks else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(locks, lock_name(worker), flags, FileMode::empty()) {
            Ok(lock) => Ok(Some(lock)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn clear_lock(&self, worker: Uuid) {
        let Some(locks) = &self.locks else { return };
        let Ok(lock) = self.open_lock(worker) else { return };
        if let Some(lock) = &lock
            && rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).is_err()
        {
            return;
        }
        // If this fails it is tried again in the next pass, and nothing depends on it.
        let _ = rustix::fs::unlinkat(locks, table_name(worker), AtFlags::empty());
        if lock.is_some() {
            let _ = rustix::fs::unlinkat(locks, lock_name(worker), AtFlags::empty());
        }
    }

    /// Cuts off a torn last record, and seals the file.
    fn repair(&self, name: &str, seen: &Stat, format: LogFormat, repair_bytes: &mut u64) -> io::Result<Stat> {
        *repair_bytes += REPAIR_EFFORT_BYTES;
        let file = self.open_candidate(name, OFlags::RDWR)?.map(File::from);
        let is_same = |stat: &Stat| (stat.st_ino, stat.st_size) == (seen.st_ino, seen.st_size);
        let Some(file) = file.filter(|file| rustix::fs::fstat(file).is_ok_and(|stat| is_same(&stat))) else {
            return Err(Errno::STALE.into());
        };
        if format == LogFormat::Cri {
            let length = seen.st_size as u64;
            let whole = whole_length(&file, length, repair_bytes)?;
            if whole < length {
                file.set_len(whole)?;
            }
        }
        rustix::fs::fchmod(&file, FileMode::from_raw_mode(0o400))?;
        Ok(rustix::fs::fstat(&file)?)
    }
}

/// The bytes of a log up to the end of its last whole record: to its last line feed. What a write or a power cut has left behind that, NUL bytes also, is torn.
fn whole_length(file: &File, length: u64, read_bytes: &mut u64) -> io::Result<u64> {
    let mut block = vec![0; REPAIR_BLOCK_BYTES];
    let mut end = length;
    while end > 0 {
        if length - end >= REPAIR_BYTES_MAX {
            return Ok(length);
        }
        let start = end.saturating_sub(REPAIR_BLOCK_BYTES as u64);
        let bytes = block.get_mut(..(end - start) as usize).unwrap_or_default();
        file.read_exact_at(bytes, start)?;
        *read_bytes += bytes.len() as u64;
        if let Some(at) = memchr::memrchr(b'\n', bytes) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Whether nobody is to write it any more.
fn is_sealed(stat: &Stat) -> bool {
    stat.st_mode & 0o222 == 0
}

fn file_seen(stat: &Stat) -> FileSeen {
    let seconds = u64::try_from(stat.st_ctime).unwrap_or(0);
    let changed = seconds.saturating_mul(1_000_000_000).saturating_add(stat.st_ctime_nsec);
    FileSeen { inode: stat.st_ino, bytes: stat.st_size as u64, changed }
}

/// Reads the names of one slice of a directory; whether there were any.
fn next_names(directory: BorrowedFd<'_>, buffer: &mut [MaybeUninit<u8>], names: &mut VecDeque<String>) -> io::Result<bool> {
    let mut entries = RawDir::new(directory, buffer);
    let mut is_more = false;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        is_more = true;
        let may_be_file = matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown);
        // All names that are looked for are plain text.
        if let (true, Ok(name)) = (may_be_file, entry.file_name().to_str()) {
            names.push_back(name.to_owned());
        }
        if entries.is_buffer_empty() {
            break;
        }
    }
    Ok(is_more)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::XattrFlags;

    use super::*;
    use crate::logic::names::{entry_name, log_name};
    use crate::model::id::JobId;

    /// The worker that looks, and another one.
    const OWN: Uuid = Uuid::from_u128(8);
    const OTHER: Uuid = Uuid::from_u128(7);

    fn name_of(number: u128) -> String {
        log_name(&entry_name("make", JobId::from(Uuid::from_u128(number))))
    }

    /// A log of the other worker that is not sealed and ends in a torn record.
    fn plant(directory: &Path, name: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, "torn").unwrap();
        rustix::fs::setxattr(&path, MARK_XATTR, format!("{OTHER} cri").as_bytes(), XattrFlags::empty()).unwrap();
        path
    }

    /// The other worker's lock, not locked.
    fn make_lock(directory: &Path) -> File {
        let locks = directory.join(locks_name(rustix::process::geteuid().as_raw()));
        File::create(locks.join(lock_name(OTHER))).unwrap()
    }

    fn lock(lock: &File) {
        rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    }

    /// Goes on up to the logs.
    fn go_up_to_logs(scan: &mut LogScan) {
        while !matches!(scan.stage, Stage::Logs) {
            assert!(scan.step(0, |found| panic!("{found:?}")).unwrap());
        }
    }

    /// The rest of a scan; what it finds.
    fn finish(scan: &mut LogScan) -> (Vec<(String, LogFileSeen)>, usize) {
        let (mut logs, mut leftovers) = (Vec::new(), 0);
        while scan
            .step(0, |found| match found {
                Found::Log(name, seen) => logs.push((name.log.to_owned(), seen)),
                Found::Leftover(_) => leftovers += 1,
                Found::Failure(failure) => panic!("{failure}"),
            })
            .unwrap()
        {}
        (logs, leftovers)
    }

    #[test]
    fn a_worker_that_locks_its_lock_during_a_scan_lives_from_then_on() {
        let directory = tempfile::tempdir().unwrap();
        let log_dir = LogDir::open(directory.path(), OWN).unwrap();
        let other = make_lock(directory.path());
        let (log, next) = (plant(directory.path(), &name_of(1)), plant(directory.path(), &format!("{}.000001.next", name_of(1))));
        let mut scan = log_dir.scan().unwrap();
        go_up_to_logs(&mut scan);
        // Asked for in between, too, it still looks dead.
        assert!(!scan.is_alive(OTHER));
        lock(&other);
        let (logs, leftovers) = finish(&mut scan);
        assert_eq!((logs.len(), leftovers), (1, 0));
        assert_eq!((logs[0].1.state, logs[0].1.worker_lives), (LogState::Live, true));
        assert_eq!((fs::read(&log).unwrap(), next.exists()), (b"torn".to_vec(), true));
        assert!(scan.is_alive(OTHER));
    }

    fn table_path(directory: &Path) -> PathBuf {
        directory.join(locks_name(rustix::process::geteuid().as_raw())).join(table_name(OTHER))
    }

    /// A sealed log without the attribute.
    fn plant_bare(directory: &Path, number: u128) -> PathBuf {
        let path = directory.join(name_of(number));
        fs::write(&path, "").unwrap();
        rustix::fs::chmod(&path, FileMode::from_raw_mode(0o400)).unwrap();
        path
    }

    #[test]
    fn a_table_stays_while_a_log_that_it_names_cannot_be_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let log_dir = LogDir::open(directory.path(), OWN).unwrap();
        let log = plant_bare(directory.path(), 1);
        let table = table_path(directory.path());
        fs::write(&table, format!("{} {OTHER} cri\n", name_of(1))).unwrap();
        let found = || {
            let mut scan = log_dir.scan().unwrap();
            let found = finish(&mut scan).0.len();
            while scan.clear_locks() {}
            found
        };
        // As a backup does it.
        let backup = directory.path().join("backup");
        fs::hard_link(&log, &backup).unwrap();
        assert_eq!((found(), table.exists()), (0, true));
        fs::remove_file(&backup).unwrap();
        assert_eq!((found(), table.exists()), (1, true));
        fs::remove_file(&log).unwrap();
        assert_eq!((found(), table.exists()), (0, false));
    }

    #[test]
    fn names_that_are_gone_do_not_fill_the_tables() {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let log_dir = LogDir::open(directory.path(), OWN).unwrap();
        let gone = TABLED_LOGS_MAX as u128;
        let (first, last) = (plant_bare(directory.path(), 1), plant_bare(directory.path(), gone + 1));
        let table = (1..=gone + 1).map(|number| format!("{} {OTHER} cri\n", name_of(number))).collect::<Vec<_>>().concat();
        fs::write(table_path(directory.path()), table).unwrap();
        let mut scan = log_dir.scan().unwrap();
        let (mut logs, _) = finish(&mut scan);
        logs.sort_unstable_by(|left, right| left.0.cmp(&right.0));
        let names: Vec<&str> = logs.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [&first, &last].map(|path| path.file_name().unwrap().to_str().unwrap());
        assert_eq!(names, expected);
        assert!(scan.tabled.len() <= UNCHECKED_LOGS_MAX + 1);
    }

    #[test]
    fn what_is_not_sealed_is_not_deleted_once_its_worker_lives() {
        let directory = tempfile::tempdir().unwrap();
        let _log_dir = LogDir::open(directory.path(), OWN).unwrap();
        let other = make_lock(directory.path());
        let log = plant(directory.path(), &name_of(1));
        let mut scan = LogScan::open(directory.path()).unwrap();
        let (logs, _) = finish(&mut scan);
        assert_eq!(logs[0].1.state, LogState::Leftover);
        let seen = file_seen(&rustix::fs::stat(&log).unwrap());
        lock(&other);
        assert_eq!(scan.delete(&name_of(1), seen).unwrap(), Deletion::Changed);
        assert!(log.exists());
        drop(other);
        assert_eq!(scan.delete(&name_of(1), seen).unwrap(), Deletion::Deleted);
    }
}
