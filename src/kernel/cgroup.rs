//! Control groups, version 2: where they are, one for each job.

mod above;
mod base;
mod leftovers;
mod limits;
mod usage;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;
use uuid::Uuid;

use self::above::{Above, cgroups_above};
use self::base::View;
use self::leftovers::WorkerLock;
pub(crate) use self::limits::LimitFault;
use crate::logic::cgroup_text;
use crate::logic::ladder::LimitsAbove;
use crate::model::capabilities::CgroupReport;
use crate::model::error::BuildError;
use crate::model::settings::{CgroupBase, Settings};

/// cgroups nested deeper than this by a job are left to whoever made them.
const NESTING_MAX: usize = 64;

/// Attempts to open a base while other workers remove it.
const OPEN_TRIES: usize = 16;

/// How often, at least, a cgroup that is waited for is looked at.
const EMPTY_LOOK_EVERY: Duration = Duration::from_millis(20);

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// The base directory, in which every job gets a directory of its own.
#[derive(Debug)]
pub(crate) struct CgroupTree {
    mount: PathBuf,
    base: PathBuf,
    directory: OwnedFd,
    /// Whether the base is a directory of workers only: made when it is not there, removed by the last one to leave.
    is_own: bool,
    /// Tells others that the worker lives; it keeps the base in being, too.
    lock: Option<WorkerLock>,
    /// The base and the cgroups above it, as far as the host is not in them; `None` if they are out of sight.
    above: Option<Vec<Above>>,
    /// Whether a controller that the base does not have may be asked for further up.
    enables_above: bool,
    /// Whether the controllers that tell what a job has used are enabled for every job.
    accounting: bool,
    /// A descriptor in reserve: a tree is killed also when this process, or the machine, can open no more files.
    spare: Option<OwnedFd>,
}

/// What came of removing a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It is not there any more.
    Gone,
    /// Processes are left in it.
    Populated,
    /// No process is left in it, but others are nested in it too deep (or one was made just now).
    Stuck,
}

/// What was found: the base, or why there is none.
#[derive(Debug)]
pub(crate) enum Discovery {
    Found(CgroupTree),
    Missing(String),
}

impl CgroupTree {
    /// Finds or makes the base, for this worker.
    ///
    /// # Errors
    /// If a base was asked for by path and cannot be used, or our own cgroup was to be taken over and cannot be. Otherwise a base that cannot be used is one
    /// that is missing.
    pub(crate) fn discover(settings: &Settings, worker: Uuid) -> Result<Discovery, BuildError> {
        let view = || View::take().map_err(|error| format!("/proc/self cannot be read: {error}"));
        match &settings.cgroup_base {
            CgroupBase::Off => Ok(Discovery::Missing("cgroups are switched off".to_owned())),
            CgroupBase::Path(path) => {
                let failed = |source| BuildError::CgroupBase { path: path.clone(), source };
                let view = view().map_err(|text| failed(io::Error::other(text)))?;
                // It stays right when the host changes its working directory.
                let path = std::path::absolute(path).map_err(failed)?;
                let mount = view.mount_of(&path).map(|mount| mount.mount_point.clone()).unwrap_or_default();
                Ok(Discovery::Found(Self::open(view, mount, path, settings, worker).map_err(failed)?))
            }
            CgroupBase::Auto => {
                let take_over = settings.take_over_cgroup;
                let found = view().and_then(|view| Ok((view.default_base(take_over)?, view)));
                let ((mount, base), view) = match found {
                    Ok(found) => found,
                    Err(reason) => return Ok(Discovery::Missing(reason)),
                };
                match Self::open(view, mount, base.clone(), settings, worker) {
                    Ok(tree) => Ok(Discovery::Found(tree)),
                    Err(source) if take_over => Err(BuildError::CgroupBase { path: base, source }),
                    Err(error) => Ok(Discovery::Missing(format!("{} cannot be used: {error}", base.display()))),
                }
            }
        }
    }

    fn open(mut view: View, mount: PathBuf, base: PathBuf, settings: &Settings, worker: Uuid) -> io::Result<Self> {
        let (directory, is_own, lock) = open_locked(&base, worker)?;
        // It is a tree from here on: one that is not finished goes, with what it made.
        let enables_above = settings.enable_controllers;
        let mut tree = Self {
            mount,
            base,
            directory,
            is_own,
            lock: Some(lock),
            above: None,
            enables_above,
            accounting: settings.accounting,
            spare: None,
        };
        tree.spare = Some(rustix::io::fcntl_dupfd_cloexec(&tree.directory, 3)?);
        if settings.take_over_cgroup {
            base::take_over(&view, &tree.base, &tree.directory)?;
            view = View::take()?;
        }
        tree.above = cgroups_above(&view, &tree.base)?;
        if settings.accounting {
            tree.enable_accounting();
        }
        Ok(tree)
    }

    pub(crate) fn report(&self) -> CgroupReport {
        let controllers = read_at(self.directory.as_fd(), "cgroup.controllers").unwrap_or_default();
        CgroupReport { mount: self.mount.clone(), base: self.base.clone(), controllers: cgroup_text::words(&controllers) }
    }

    pub(crate) fn path_of(&self, cgroup: &JobCgroup) -> PathBuf {
        self.path_named(&cgroup.name)
    }

    /// The path of the job cgroup of this name, whether or not it is there.
    pub(crate) fn path_named(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// Makes a job's cgroup, without limits yet.
    pub(crate) fn make(&mut self, name: &str) -> io::Result<JobCgroup> {
        let mode = Mode::from_raw_mode(0o755);
        match rustix::fs::mkdirat(&self.directory, name, mode) {
            Err(Errno::NOENT | Errno::NODEV) => {
                self.make_base_again()?;
                rustix::fs::mkdirat(&self.directory, name, mode)?;
            }
            made => made?,
        }
        Ok(JobCgroup::named(name))
    }

    /// Somebody has removed the base, and our lock in it: no job is left in it. It is made again, with a lock.
    fn make_base_again(&mut self) -> io::Result<()> {
        let worker = self.lock.as_ref().map(WorkerLock::worker).ok_or(Errno::NOENT)?;
        let (directory, is_own, lock) = open_locked(&self.base, worker)?;
        (self.directory, self.is_own, self.lock) = (directory, is_own, Some(lock));
        self.spare = rustix::io::fcntl_dupfd_cloexec(&self.directory, 3).ok();
        // Out of sight counts as limited.
        self.above = View::take().and_then(|view| cgroups_above(&view, &self.base)).unwrap_or(None);
        if self.accounting {
            self.enable_accounting();
        }
        Ok(())
    }

    /// What limits the cgroups above the jobs' own, as far as they are not above the host's.
    pub(crate) fn limits_above(&mut self) -> LimitsAbove {
        let Some(above) = &mut self.above else { return LimitsAbove::ALL };
        above.iter_mut().map(Above::limits).fold(LimitsAbove::default(), LimitsAbove::or)
    }

    /// Whether the job's cgroup is frozen, as one is from birth below a frozen one.
    pub(crate) fn is_frozen(&self, cgroup: &JobCgroup) -> bool {
        read_at(self.directory.as_fd(), &cgroup.file("cgroup.events")).is_ok_and(|events| cgroup_text::frozen(&events))
    }

    /// The job's directory, for clone3.
    pub(crate) fn open_directory(&self, cgroup: &JobCgroup) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.directory, &*cgroup.name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// The job's `cgroup.procs`, for a child that writes itself into it.
    pub(crate) fn open_procs(&self, cgroup: &JobCgroup) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.directory, cgroup.file("cgroup.procs"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// The path of a file of the job's cgroup.
    pub(crate) fn file_path(&self, cgroup: &JobCgroup, file: &str) -> PathBuf {
        self.base.join(cgroup.file(file))
    }

    /// Kills every process in the job's cgroup and below, also those being forked at this moment.
    pub(crate) fn kill(&mut self, cgroup: &JobCgroup) -> io::Result<()> {
        let open = || rustix::fs::openat(&self.directory, cgroup.file("cgroup.kill"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        let opened = match open() {
            Err(Errno::MFILE | Errno::NFILE) => {
                drop(self.spare.take());
                open()
            }
            opened => opened,
        };
        let killed = opened.and_then(|file| rustix::io::retry_on_intr(|| rustix::io::write(&file, b"1")));
        self.spare = self.spare.take().or_else(|| rustix::io::fcntl_dupfd_cloexec(&self.directory, 3).ok());
        killed.map(drop).map_err(Into::into)
    }

    /// Removes the job's cgroup, and those that the job has made inside it.
    pub(crate) fn remove(&self, cgroup: &JobCgroup) -> io::Result<Removal> {
        match rustix::fs::unlinkat(&self.directory, &*cgroup.name, AtFlags::REMOVEDIR) {
            // Somebody else has removed it, or is about to: just as well.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => return Ok(Removal::Gone),
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno.into()),
        }
        if self.is_populated(cgroup)? {
            return Ok(Removal::Populated);
        }
        let name = CString::new(&*cgroup.name).map_err(|_| Errno::INVAL)?;
        let is_gone = remove_nested(self.directory.as_fd(), &name, NESTING_MAX)?;
        Ok(if is_gone { Removal::Gone } else { Removal::Stuck })
    }

    /// Waits, up to `timeout`, until no process is left in the job's cgroup; for the rare case that the loop cannot be left to see to it.
    pub(crate) fn wait_empty(&self, cgroup: &JobCgroup, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let events = match rustix::fs::openat(&self.directory, cgroup.file("cgroup.events"), flags, Mode::empty()) {
            Ok(events) => events,
            Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let mut content = [0_u8; 256];
        loop {
            // POLLPRI tells of changes since the last read.
            let length = match rustix::io::retry_on_intr(|| rustix::io::pread(&events, &mut content, 0)) {
                // Somebody else has removed it.
                Err(Errno::NODEV) => return Ok(()),
                read => read?,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if cgroup_text::populated(content.get(..length).unwrap_or_default()) != Some(true) || left.is_zero() {
                return Ok(());
            }
            // Nobody is woken when somebody else removes the cgroup.
            let wait = left.min(EMPTY_LOOK_EVERY);
            let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&wait)))?;
        }
    }

    /// Whether processes are left in the job's cgroup, or below it; not if it is gone.
    pub(crate) fn is_populated(&self, cgroup: &JobCgroup) -> io::Result<bool> {
        match read_at(self.directory.as_fd(), &cgroup.file("cgroup.events")) {
            Ok(events) => Ok(cgroup_text::populated(&events).unwrap_or(true)),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for CgroupTree {
    fn drop(&mut self) {
        // For a look at what is there: it has to be possible also when this process can open no more files.
        self.spare = None;
        self.give_up_lock();
        if self.is_own {
            // EBUSY: other workers live in it; the last one out succeeds.
            let _ = rustix::fs::rmdir(&self.base);
        }
    }
}

/// Opens the base, or makes it, and takes this worker's lock in it; says also whether the base is one of workers only.
fn open_locked(base: &Path, worker: Uuid) -> io::Result<(OwnedFd, bool, WorkerLock)> {
    let mut tries = OPEN_TRIES;
    loop {
        tries -= 1;
        let opened = base::open_base(base).and_then(|(directory, is_own)| {
            let lock = WorkerLock::take(directory.as_fd(), worker)?;
            Ok((directory, is_own, lock))
        });
        match opened {
            // Another worker, ending, has removed the base that we share.
            Err(error) if is_gone(&error) && tries > 0 => {}
            opened => return opened,
        }
    }
}

/// A job's own cgroup, by name below the base.
#[derive(Clone, Debug)]
pub(crate) struct JobCgroup {
    name: Box<str>,
}

impl JobCgroup {
    fn named(name: &str) -> Self {
        Self { name: name.into() }
    }

    fn file(&self, file: &str) -> String {
        format!("{}/{file}", self.name)
    }
}

/// Writes a file whole. Not blocking: from Linux 6.15 on a limit on memory is then set without its writer reclaiming what is too much.
fn write_at(directory: impl AsFd, name: impl Arg, value: &str) -> io::Result<()> {
    let file = rustix::fs::openat(directory, name, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::retry_on_intr(|| rustix::io::write(&file, value.as_bytes()))?;
    Ok(())
}

fn read_at(directory: impl AsFd, name: &str) -> io::Result<Vec<u8>> {
    const PIECE_BYTES: usize = 4096;
    let file = rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = Vec::new();
    loop {
        let length = content.len();
        content.resize(length + PIECE_BYTES, 0);
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(&file, content.get_mut(length..).unwrap_or_default(), length as u64))?;
        content.truncate(length + read);
        // The kernel lays such a file out in one piece: a short read is the end.
        if read < PIECE_BYTES {
            return Ok(content);
        }
    }
}

/// Whether a cgroup, or a file of one, is not there any more. A file that was open when its cgroup was removed says ENODEV.
fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NODEV))
}

/// Removes an empty cgroup and the empty ones in it, from the bottom up. `false`: one of them is not empty, or they are nested too deep.
fn remove_nested(parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<bool> {
    if depth == 0 {
        return Ok(false);
    }
    let directory = match rustix::fs::openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT | Errno::NODEV) => return Ok(true),
        Err(errno) => return Err(errno.into()),
    };
    let entries = match Dir::read_from(&directory) {
        // Somebody else has removed it just now.
        Err(Errno::NOENT | Errno::NODEV) => return Ok(true),
        entries => entries?,
    };
    for entry in entries {
        let entry = match entry {
            Err(Errno::NOENT | Errno::NODEV) => return Ok(true),
            entry => entry?,
        };
        let nested = entry.file_name();
        let is_nested = entry.file_type() == FileType::Directory && nested != c"." && nested != c"..";
        if is_nested && !remove_nested(directory.as_fd(), nested, depth - 1)? {
            return Ok(false);
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(true),
        Err(Errno::BUSY) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
