//! The one inotify descriptor: tells when something has changed in a job's cgroup.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::logic::token::Key;

/// A watch, as inotify numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Watch(i32);

/// Notices read at a time: jobs that write their logs themselves may send more of them than are read.
const NOTICES_MAX: usize = 1024;

/// What a watched file tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Watched {
    /// `cgroup.events`: whether processes are left in it, whether it is frozen.
    Tree,
    /// `memory.events`.
    Memory,
    /// `pids.events`.
    Pids,
    /// A log that the job itself writes.
    Log,
}

#[derive(Debug)]
pub(crate) struct Watcher {
    fd: OwnedFd,
    /// A stream may be opened, and its log watched, through a shared reference to the worker.
    owners: RefCell<HashMap<i32, (Key, Watched)>>,
}

impl Watcher {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { fd: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?, owners: RefCell::default() })
    }

    /// Watches a file of the cgroup of `owner`. Look at the file after this, not before.
    pub(crate) fn watch(&self, path: &Path, owner: Key, watched: Watched) -> io::Result<Watch> {
        let watch = inotify::add_watch(&self.fd, path, WatchFlags::MODIFY)?;
        self.owners.borrow_mut().insert(watch, (owner, watched));
        Ok(Watch(watch))
    }

    /// Watches a log of `owner`, but nothing that a link points to.
    pub(crate) fn watch_log(&self, path: &Path, owner: Key) -> io::Result<Watch> {
        let watch = inotify::add_watch(&self.fd, path, WatchFlags::MODIFY | WatchFlags::DONT_FOLLOW)?;
        self.owners.borrow_mut().insert(watch, (owner, Watched::Log));
        Ok(Watch(watch))
    }

    /// Ends a watch. A cgroup's file sends no word of its removal: the watch would stay.
    pub(crate) fn unwatch(&self, watch: Watch) {
        if self.owners.borrow_mut().remove(&watch.0).is_some() {
            // EINVAL: the file went away before us, and the watch with it.
            let _ = inotify::remove_watch(&self.fd, watch.0);
        }
    }

    /// Calls `notify` with the owner of every notice and what it is about; after an overflow with every one there is. Whether there may be more.
    pub(crate) fn read(&self, mut notify: impl FnMut((Key, Watched))) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        let mut read = 0;
        loop {
            // What is in the buffer is to be told.
            if read >= NOTICES_MAX && reader.is_buffer_empty() {
                return Ok(true);
            }
            read += 1;
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    self.owners.borrow().values().copied().for_each(&mut notify);
                }
                Ok(event) if event.events().contains(ReadFlags::IGNORED) => {
                    self.owners.borrow_mut().remove(&event.wd());
                }
                Ok(event) => {
                    if let Some(owner) = self.owners.borrow().get(&event.wd()) {
                        notify(*owner);
                    }
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
