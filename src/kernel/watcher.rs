//! The one inotify descriptor: tells when something has changed in a job's cgroup.

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

/// What a watched file tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// `cgroup.events`: whether processes are left in it, whether it is frozen.
    Tree,
    /// `memory.events`.
    Memory,
    /// `pids.events`.
    Pids,
}

#[derive(Debug)]
pub(crate) struct Watcher {
    fd: OwnedFd,
    owners: HashMap<i32, (Key, Watched)>,
}

impl Watcher {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { fd: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?, owners: HashMap::new() })
    }

    /// Watches a file of the cgroup of `owner`. Look at the file after this, not before.
    pub(crate) fn watch(&mut self, path: &Path, owner: Key, watched: Watched) -> io::Result<Watch> {
        let watch = inotify::add_watch(&self.fd, path, WatchFlags::MODIFY)?;
        self.owners.insert(watch, (owner, watched));
        Ok(Watch(watch))
    }

    /// Ends a watch. A cgroup's file sends no word of its removal: the watch would stay.
    pub(crate) fn unwatch(&mut self, watch: Watch) {
        if self.owners.remove(&watch.0).is_some() {
            // EINVAL: the file went away before us, and the watch with it.
            let _ = inotify::remove_watch(&self.fd, watch.0);
        }
    }

    /// Calls `notify` with the owner of every notice and what it is about; after an overflow with every one there is. Reads to the end.
    pub(crate) fn read(&mut self, mut notify: impl FnMut((Key, Watched))) -> io::Result<()> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => self.owners.values().copied().for_each(&mut notify),
                Ok(event) if event.events().contains(ReadFlags::IGNORED) => {
                    self.owners.remove(&event.wd());
                }
                Ok(event) => {
                    if let Some(owner) = self.owners.get(&event.wd()) {
                        notify(*owner);
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
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
