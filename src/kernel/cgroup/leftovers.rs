//! What workers leave in a base when they die: each holds a lock there for life, and the ids of its jobs tell whose they are.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::{CgroupTree, JobCgroup, is_gone};
use crate::logic::ids;
use crate::model::leftover::Leftover;

/// What a worker's lock is called, before its id: an empty cgroup whose directory it has locked. No job's cgroup begins with a dot.
const LOCK_PREFIX: &str = ".worker_";

/// Attempts to make a lock while somebody clears left-overs away, or looks whether it is locked.
const LOCK_TRIES: usize = 200;

/// How long to let somebody look: that takes microseconds, unless they are forking.
const LOOK_TIME: Duration = Duration::from_millis(1);

/// The longest time that left-overs are waited for: what is longer might not fit the clock.
const KILL_TIME_MAX: Duration = Duration::from_hours(365 * 24);

/// A worker's lock in its base.
#[derive(Debug)]
pub(super) struct WorkerLock {
    name: String,
    worker: Uuid,
    _locked: Locked,
}

impl WorkerLock {
    pub(super) fn take(base: BorrowedFd<'_>, worker: Uuid) -> io::Result<Self> {
        let name = format!("{LOCK_PREFIX}{worker}");
        for _ in 0..LOCK_TRIES {
            match rustix::fs::mkdirat(base, &name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            // Until it is locked it looks like that of a dead worker, and may be cleared away.
            match lock(base, &name, FlockOperation::NonBlockingLockExclusive) {
                Ok(Some(locked)) if is_same(base, &name, &locked) => return Ok(Self { name, worker, _locked: locked }),
                Ok(Some(_)) => {}
                Ok(None) => std::thread::sleep(LOOK_TIME),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(format!("the worker's lock {name} is removed again and again, or locked by somebody else")))
    }

    pub(super) fn worker(&self) -> Uuid {
        self.worker
    }
}

/// An open directory with flock(2) on it. The lock goes with this, and not with the last copy of the descriptor: a child of another thread, between fork and
/// exec, may have one.
#[derive(Debug)]
struct Locked(OwnedFd);

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Opens and locks a directory; `None` if somebody else has locked it.
fn lock(base: BorrowedFd<'_>, name: &str, operation: FlockOperation) -> io::Result<Option<Locked>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(base, name, flags, Mode::empty())?;
    match rustix::fs::flock(&directory, operation) {
        Ok(()) => Ok(Some(Locked(directory))),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether what stands at `name` is still what was opened.
fn is_same(base: BorrowedFd<'_>, name: &str, opened: &Locked) -> bool {
    let (there, ours) = (rustix::fs::statat(base, name, AtFlags::SYMLINK_NOFOLLOW), rustix::fs::fstat(&opened.0));
    matches!((there, ours), (Ok(there), Ok(ours)) if there.st_ino == ours.st_ino)
}

/// What stands in a base.
#[derive(Debug, Default)]
struct Listed {
    /// The locks of workers, by name and id.
    locks: Vec<(String, Uuid)>,
    /// As in [`Found`].
    jobs: Vec<(String, String, Uuid)>,
}

/// What a look into a base finds.
#[derive(Debug, Default)]
struct Found {
    /// The locks of dead workers, by name and id.
    dead: Vec<(String, Uuid)>,
    live: Vec<Uuid>,
    /// Everything that is called like a job's cgroup, by name, the job's name and its id.
    jobs: Vec<(String, String, Uuid)>,
}

impl Found {
    fn left_over(&self) -> impl Iterator<Item = &(String, String, Uuid)> {
        self.jobs.iter().filter(|(_, _, job)| {
            let is_of_the_dead = self.dead.iter().any(|(_, worker)| ids::are_of_one_maker(*worker, *job));
            is_of_the_dead && !self.live.iter().any(|worker| ids::are_of_one_maker(*worker, *job))
        })
    }
}

impl CgroupTree {
    /// The cgroups of jobs whose worker is dead.
    pub(crate) fn leftovers(&self) -> io::Result<Vec<Leftover>> {
        let found = self.look()?;
        let leftovers = found.left_over().map(|(name, job_name, job)| Leftover {
            job: (*job).into(),
            name: job_name.clone(),
            path: self.path_named(name),
            populated: self.is_populated(&JobCgroup::named(name)).unwrap_or(true),
        });
        Ok(leftovers.collect())
    }

    /// Kills what is left of dead workers, waits up to `timeout` in all for its end, and removes it. What it could not remove is still to be found.
    pub(crate) fn kill_leftovers(&mut self, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout.min(KILL_TIME_MAX);
        let found = self.look()?;
        let mut outcome = Ok(());
        let cgroups: Vec<JobCgroup> = found.left_over().map(|(name, ..)| JobCgroup::named(name)).collect();
        // All of them first: they die side by side.
        for cgroup in &cgroups {
            match self.kill(cgroup) {
                Err(error) if !is_gone(&error) => outcome = Err(error),
                _ => {}
            }
        }
        for cgroup in &cgroups {
            let removed =
                self.wait_empty(cgroup, deadline.saturating_duration_since(Instant::now())).and_then(|()| self.remove(cgroup)).map(drop);
            outcome = outcome.and(removed);
        }
        for (name, worker) in &found.dead {
            outcome = outcome.and(self.remove_lock(name, *worker));
        }
        outcome
    }

    /// Removes the lock of a dead worker, of which nothing else may be left.
    fn remove_lock(&self, name: &str, worker: Uuid) -> io::Result<()> {
        let locked = match lock(self.directory.as_fd(), name, FlockOperation::NonBlockingLockExclusive) {
            Ok(Some(locked)) => locked,
            Ok(None) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        if !self.has_jobs_of(worker)? {
            let _ = rustix::fs::unlinkat(&self.directory, name, AtFlags::REMOVEDIR);
        }
        drop(locked);
        Ok(())
    }

    /// The worker ends: its lock goes, unless something is left of its jobs, which are to be found by it.
    pub(super) fn give_up_lock(&mut self) {
        if let Some(lock) = self.lock.take()
            && !self.has_jobs_of(lock.worker).unwrap_or(true)
        {
            let _ = rustix::fs::unlinkat(&self.directory, &lock.name, AtFlags::REMOVEDIR);
        }
    }

    fn has_jobs_of(&self, worker: Uuid) -> io::Result<bool> {
        Ok(self.list()?.jobs.iter().any(|(_, _, job)| ids::are_of_one_maker(worker, *job)))
    }

    fn look(&self) -> io::Result<Found> {
        let Listed { locks, jobs } = self.list()?;
        let mut found = Found { jobs, ..Found::default() };
        // Not before all jobs are listed: a worker locks its lock before it makes one, so a lock that is free by then is not that of a new worker with jobs.
        for (name, worker) in locks {
            match lock(self.directory.as_fd(), &name, FlockOperation::NonBlockingLockShared) {
                Ok(Some(directory)) if is_same(self.directory.as_fd(), &name, &directory) => found.dead.push((name, worker)),
                // It was removed, and let go of, since it was listed: its worker has ended in order, and left nothing.
                Ok(Some(_)) => {}
                Ok(None) => found.live.push(worker),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// What is called like a lock or a job's cgroup.
    fn list(&self) -> io::Result<Listed> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&self.directory, ".", flags, Mode::empty())?;
        let mut listed = Listed::default();
        for entry in Dir::new(directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if entry.file_type() != FileType::Directory {
                continue;
            }
            if let Some(worker) = name.strip_prefix(LOCK_PREFIX).and_then(|id| id.parse().ok()) {
                listed.locks.push((name.to_owned(), worker));
            } else if let Some((job_name, id)) = name.rsplit_once('_')
                && let Ok(id) = id.parse()
            {
                listed.jobs.push((name.to_owned(), job_name.to_owned(), id));
            }
        }
        Ok(listed)
    }
}
